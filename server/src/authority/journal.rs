//! What this server knows of its own CAs, in SPIRE's format: one blob in the row of `ca_journals` that bears the ID of
//! the active X.509 authority. A server finds its row by the keys that it holds.
//!
//! Whatever else is in the blob (JWT and WIT keys, fields of later releases) is written back as it was.

use std::time::SystemTime;

use finial_daemon::clock::unix_seconds;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use super::rotate::SlotId;
use crate::store::journal::JournalRow;
use crate::store::{Store, StoreError};

/// How many X.509 entries are kept.
const KEPT: usize = 10;
const X509_CAS: u32 = 1;
/// The greatest field number of an X.509 entry that this release knows.
const LAST_KNOWN: u32 = 8;

/// `status` of an entry.
pub(super) mod status {
    /// Written before the certificate exists. Go takes such an entry for an expired one and skips it.
    pub(crate) const INTENDED: i32 = 0;
    pub(crate) const PREPARED: i32 = 2;
    pub(crate) const ACTIVE: i32 = 3;
    pub(crate) const OLD: i32 = 4;
}

/// One X.509 CA.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    /// "A" or "B".
    #[prost(string, tag = "1")]
    pub(super) slot_id: String,
    /// Unix seconds.
    #[prost(int64, tag = "2")]
    pub(super) issued_at: i64,
    /// DER.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) certificate: Vec<u8>,
    /// DER, what is sent behind a leaf; empty for a self-signed CA.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub(super) upstream_chain: Vec<Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub(super) status: i32,
    #[prost(string, tag = "6")]
    pub(super) authority_id: String,
    /// Unix seconds.
    #[prost(int64, tag = "7")]
    pub(super) not_after: i64,
    #[prost(string, tag = "8")]
    pub(super) upstream_authority_id: String,
}

/// Why the journal can not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the CA journal can not be stored or loaded: {0}")]
    Store(#[from] StoreError),
    #[error(
        "the CA journal of authority {authority_id} in table ca_journals is damaged: {cause}; restore the database from a \
         backup, or delete that row to start with a new CA"
    )]
    Damaged { authority_id: String, cause: prost::DecodeError },
}

/// The journal of this server. What is in memory is what the store holds: a change that can not be stored does not happen.
pub(super) struct Journal {
    store: Store,
    /// 0: not stored yet.
    row: i64,
    blob: Blob,
    active: String,
}

impl Journal {
    /// Finds the row that one of these authorities (IDs from the keys that we hold) is the active one of.
    pub(super) async fn load(store: Store, ours: &[String]) -> Result<Journal, JournalError> {
        let Some(found) = store.journal().fetch(ours).await? else {
            tracing::info!(
                "There is not a CA journal record that matches any of the local X509 authority IDs"
            );
            return Ok(Journal { store, row: 0, blob: Blob::default(), active: String::new() });
        };
        let active = found.active_x509_authority_id;
        let blob = Blob::read(&found.data)
            .map_err(|cause| JournalError::Damaged { authority_id: active.clone(), cause })?;
        Ok(Journal { store, row: found.id, blob, active })
    }

    /// The X.509 CAs, oldest first.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.blob.entries.iter().map(|kept| &kept.entry)
    }

    /// A key was made in `slot` and a certificate will be asked for: what the slot held is gone.
    pub(super) async fn intend(
        &mut self,
        slot: SlotId,
        authority_id: &str,
        now: SystemTime,
    ) -> Result<(), JournalError> {
        self.put(Entry {
            slot_id: slot.name().to_owned(),
            issued_at: unix_seconds(now),
            status: status::INTENDED,
            authority_id: authority_id.to_owned(),
            ..Entry::default()
        })
        .await
    }

    /// The certificate exists. Takes the place of the intention.
    pub(super) async fn prepared(&mut self, entry: Entry) -> Result<(), JournalError> {
        self.put(Entry { status: status::PREPARED, ..entry }).await
    }

    /// One authority begins to sign and the one before ends, in one write.
    pub(super) async fn activated(&mut self, authority_id: &str) -> Result<(), JournalError> {
        let mut blob = self.blob.clone();
        for Kept { entry, .. } in &mut blob.entries {
            if entry.authority_id == authority_id {
                entry.status = status::ACTIVE;
            } else if entry.status == status::ACTIVE {
                entry.status = status::OLD;
            }
        }
        self.save(blob, authority_id.to_owned()).await
    }

    async fn put(&mut self, entry: Entry) -> Result<(), JournalError> {
        let mut blob = self.blob.clone();
        blob.entries.retain(|kept| {
            kept.entry.authority_id != entry.authority_id && kept.entry.status != status::INTENDED
        });
        // The row is found by a key that is still there: the active one's, or until there is one that of the next.
        let still_there = blob.entries.iter().any(|Kept { entry: other, .. }| {
            other.authority_id == self.active
                && other.status == status::ACTIVE
                && other.slot_id != entry.slot_id
        });
        let active = if still_there { self.active.clone() } else { entry.authority_id.clone() };
        blob.entries.push(Kept { entry, unknown: Vec::new() });
        let excess = blob.entries.len().saturating_sub(KEPT);
        blob.entries.drain(..excess);
        self.save(blob, active).await
    }

    async fn save(&mut self, blob: Blob, active: String) -> Result<(), JournalError> {
        let row = JournalRow { id: self.row, data: blob.write(), active_x509_authority_id: active.clone() };
        self.row = self.store.journal().set(row).await?;
        self.blob = blob;
        self.active = active;
        Ok(())
    }
}

/// The whole blob.
#[derive(Clone, Debug, Default, PartialEq)]
struct Blob {
    entries: Vec<Kept>,
    /// Every other field as it was.
    rest: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Kept {
    entry: Entry,
    /// Fields that this release does not know, as they were.
    unknown: Vec<u8>,
}

impl Blob {
    fn read(bytes: &[u8]) -> Result<Blob, prost::DecodeError> {
        let mut blob = Blob::default();
        for field in fields(bytes)? {
            match field.content {
                Some(content) if field.number == X509_CAS => {
                    let unknown = fields(content)?.into_iter().filter(|inner| inner.number > LAST_KNOWN);
                    blob.entries.push(Kept {
                        entry: Entry::decode(content)?,
                        unknown: unknown.flat_map(|inner| inner.raw.iter().copied()).collect(),
                    });
                }
                _ => blob.rest.extend_from_slice(field.raw),
            }
        }
        Ok(blob)
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for kept in &self.entries {
            let known = kept.entry.encode_to_vec();
            encode_key(X509_CAS, WireType::LengthDelimited, &mut bytes);
            encode_varint((known.len() + kept.unknown.len()) as u64, &mut bytes);
            bytes.extend_from_slice(&known);
            bytes.extend_from_slice(&kept.unknown);
        }
        bytes.extend_from_slice(&self.rest);
        bytes
    }
}

struct Field<'a> {
    number: u32,
    /// Key, length and content.
    raw: &'a [u8],
    /// Of a length-delimited field.
    content: Option<&'a [u8]>,
}

fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, prost::DecodeError> {
    // Validates the framing of the whole message, of whatever kind its fields are.
    <() as Message>::decode(message)?;
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let (number, wire) = decode_key(&mut rest)?;
        let mut content = None;
        match wire {
            WireType::Varint => {
                decode_varint(&mut rest)?;
            }
            WireType::SixtyFourBit => rest = rest.get(8..).unwrap_or_default(),
            WireType::ThirtyTwoBit => rest = rest.get(4..).unwrap_or_default(),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut rest)?).unwrap_or(usize::MAX).min(rest.len());
                content = Some(&rest[..length]);
                rest = &rest[length..];
            }
            // Groups were never part of this format; what follows is kept with the key.
            WireType::StartGroup | WireType::EndGroup => rest = &[],
        }
        found.push(Field { number, raw: &start[..start.len() - rest.len()], content });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, status: i32) -> Entry {
        Entry {
            slot_id: "A".into(),
            issued_at: 1_795_000_000,
            certificate: vec![0x30, 1, 2],
            upstream_chain: vec![vec![1], vec![]],
            status,
            authority_id: id.into(),
            not_after: 1_795_086_400,
            upstream_authority_id: "root".into(),
        }
    }

    #[test]
    fn the_blob_is_spires_and_what_is_not_ours_stays() {
        use finial_proto::journal as wire;
        let theirs = wire::Entries {
            x509_c_as: vec![wire::X509caEntry {
                slot_id: "B".into(),
                issued_at: 5,
                certificate: vec![9; 300],
                upstream_chain: vec![vec![9; 300], vec![8; 200]],
                status: wire::Status::Active as i32,
                authority_id: "ab".into(),
                not_after: 7,
                upstream_authority_id: "cd".into(),
            }],
            jwt_keys: vec![wire::JwtKeyEntry {
                kid: "kid".into(),
                public_key: vec![1, 2],
                ..Default::default()
            }],
            wit_keys: vec![wire::WitKeyEntry { kid: "wit".into(), ..Default::default() }],
        };
        let bytes = theirs.encode_to_vec();
        let blob = Blob::read(&bytes).unwrap();
        assert_eq!(blob.write(), bytes);
        assert_eq!(blob.entries[0].entry.status, status::ACTIVE);
        assert_eq!(blob.entries[0].entry.upstream_chain.len(), 2);

        // Fields of a later release: number 15 in the entry, number 20 in the blob.
        let mut later_entry = blob.entries[0].entry.encode_to_vec();
        later_entry.extend([0x7a, 2, 5, 5]);
        let mut later = vec![0x0a];
        encode_varint(later_entry.len() as u64, &mut later);
        later.extend(&later_entry);
        later.extend([0xa2, 0x01, 1, 7, 0xa8, 0x01, 3]);
        let blob = Blob::read(&later).unwrap();
        assert_eq!(blob.entries[0].unknown, [0x7a, 2, 5, 5]);
        assert_eq!(blob.write(), later);
    }

    #[test]
    fn damage_is_found() {
        let good =
            Blob { entries: vec![Kept { entry: entry("x", 3), unknown: vec![] }], rest: vec![] }.write();
        for length in 1..good.len() {
            assert!(Blob::read(&good[..length]).is_err(), "cut at {length}");
        }
        assert!(Blob::read(&[0x0a, 3, 0x08, 0x01, 0x00]).is_err());
    }
}
