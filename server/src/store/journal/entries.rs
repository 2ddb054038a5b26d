//! What is in a journal: SPIRE's protobuf message `Entries`, rewritten without the loss of what is not ours.
//!
//! WIT keys and fields of later releases are kept as raw bytes and written back behind what is known, which is also where
//! Go puts them.

use finial_proto::journal as wire;
use prost::Message;

use crate::store::blob::{self, BlobError};

/// `status` of a record.
pub mod status {
    /// Written before the authority exists. Go takes such a record for an expired one and skips it.
    pub const INTENDED: i32 = 0;
    pub const PREPARED: i32 = 2;
    pub const ACTIVE: i32 = 3;
    pub const OLD: i32 = 4;
}

/// All records of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    x509_cas: Vec<Record>,
    jwt_keys: Vec<Record>,
    /// Every other field as it was.
    rest: Vec<u8>,
}

/// One of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    X509Cas,
    JwtKeys,
}

/// One authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// "A" or "B".
    pub slot: String,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// One of [`status`], or a number that this release does not know.
    pub status: i32,
    /// X.509: lowercase hex of the subject key identifier; JWT: the key ID.
    pub authority_id: String,
    pub content: Content,
    unknown: Vec<u8>,
}

/// What belongs to one kind of authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    X509Ca {
        /// DER.
        certificate: Vec<u8>,
        /// DER, what is sent behind a leaf; empty for a self-signed CA.
        upstream_chain: Vec<Vec<u8>>,
        upstream_authority_id: String,
    },
    JwtKey {
        /// SubjectPublicKeyInfo, DER.
        public_key: Vec<u8>,
    },
}

/// The blob is not a journal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Entries {
    /// Reads `ca_journals.data`.
    pub fn read(blob: &[u8]) -> Result<Entries, Unreadable> {
        read(blob).map_err(|error| Unreadable(error.to_string()))
    }

    /// Writes `ca_journals.data`.
    pub fn write(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        for (number, records) in [(X509_CAS, &self.x509_cas), (JWT_KEYS, &self.jwt_keys)] {
            for record in records {
                blob::push_element(&mut blob, number, record.encode(), Some(&record.unknown));
            }
        }
        blob.extend_from_slice(&self.rest);
        blob
    }

    /// The records of a list, oldest first.
    pub fn list(&self, list: List) -> &[Record] {
        match list {
            List::X509Cas => &self.x509_cas,
            List::JwtKeys => &self.jwt_keys,
        }
    }

    pub fn list_mut(&mut self, list: List) -> &mut Vec<Record> {
        match list {
            List::X509Cas => &mut self.x509_cas,
            List::JwtKeys => &mut self.jwt_keys,
        }
    }
}

impl Record {
    /// A record of something that does not exist yet.
    pub fn intended(list: List, slot: &str, authority_id: &str, issued_at: i64) -> Record {
        let content = match list {
            List::X509Cas => Content::X509Ca {
                certificate: Vec::new(),
                upstream_chain: Vec::new(),
                upstream_authority_id: String::new(),
            },
            List::JwtKeys => Content::JwtKey { public_key: Vec::new() },
        };
        Record {
            slot: slot.to_owned(),
            issued_at,
            not_after: 0,
            status: status::INTENDED,
            authority_id: authority_id.to_owned(),
            content,
            unknown: Vec::new(),
        }
    }

    /// The record once the authority exists.
    pub fn prepared(self, not_after: i64, content: Content) -> Record {
        Record { status: status::PREPARED, not_after, content, ..self }
    }

    fn encode(&self) -> Vec<u8> {
        let (slot_id, authority_id) = (self.slot.clone(), self.authority_id.clone());
        match &self.content {
            Content::X509Ca { certificate, upstream_chain, upstream_authority_id } => wire::X509caEntry {
                slot_id,
                issued_at: self.issued_at,
                certificate: certificate.clone(),
                upstream_chain: upstream_chain.clone(),
                status: self.status,
                authority_id,
                not_after: self.not_after,
                upstream_authority_id: upstream_authority_id.clone(),
            }
            .encode_to_vec(),
            Content::JwtKey { public_key } => wire::JwtKeyEntry {
                slot_id,
                issued_at: self.issued_at,
                not_after: self.not_after,
                kid: authority_id.clone(),
                public_key: public_key.clone(),
                status: self.status,
                authority_id,
            }
            .encode_to_vec(),
        }
    }
}

const X509_CAS: u32 = 1;
const JWT_KEYS: u32 = 2;
/// The greatest field numbers of a record that this release knows.
const LAST_OF_X509_CA: u32 = 8;
const LAST_OF_JWT_KEY: u32 = 7;

fn read(blob: &[u8]) -> Result<Entries, BlobError> {
    let mut entries = Entries::default();
    for field in blob::fields(blob)? {
        match (field.number, field.value) {
            (X509_CAS, blob::Content::Bytes(element)) => entries.x509_cas.push(x509_ca(element)?),
            (JWT_KEYS, blob::Content::Bytes(element)) => entries.jwt_keys.push(jwt_key(element)?),
            _ => entries.rest.extend_from_slice(field.raw),
        }
    }
    Ok(entries)
}

fn x509_ca(element: &[u8]) -> Result<Record, BlobError> {
    let entry = wire::X509caEntry::decode(element).map_err(|error| BlobError::Decode(error.to_string()))?;
    Ok(Record {
        slot: entry.slot_id,
        issued_at: entry.issued_at,
        not_after: entry.not_after,
        status: entry.status,
        authority_id: entry.authority_id,
        content: Content::X509Ca {
            certificate: entry.certificate,
            upstream_chain: entry.upstream_chain,
            upstream_authority_id: entry.upstream_authority_id,
        },
        unknown: blob::unknown_fields(element, LAST_OF_X509_CA)?,
    })
}

fn jwt_key(element: &[u8]) -> Result<Record, BlobError> {
    let entry = wire::JwtKeyEntry::decode(element).map_err(|error| BlobError::Decode(error.to_string()))?;
    Ok(Record {
        slot: entry.slot_id,
        issued_at: entry.issued_at,
        not_after: entry.not_after,
        status: entry.status,
        // The two are equal, but old releases wrote the key ID alone.
        authority_id: entry.kid,
        content: Content::JwtKey { public_key: entry.public_key },
        unknown: blob::unknown_fields(element, LAST_OF_JWT_KEY)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spires() -> wire::Entries {
        wire::Entries {
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
                slot_id: "A".into(),
                issued_at: 6,
                not_after: 8,
                kid: "kid".into(),
                public_key: vec![1, 2],
                status: wire::Status::Old as i32,
                authority_id: "kid".into(),
            }],
            wit_keys: vec![wire::WitKeyEntry { kid: "wit".into(), ..Default::default() }],
        }
    }

    #[test]
    fn the_blob_is_spires_and_what_is_not_ours_stays() {
        let bytes = spires().encode_to_vec();
        let entries = Entries::read(&bytes).unwrap();
        assert_eq!(entries.write(), bytes);
        let [ca] = entries.list(List::X509Cas) else { panic!("{entries:?}") };
        let [key] = entries.list(List::JwtKeys) else { panic!("{entries:?}") };
        assert_eq!((ca.status, key.status), (status::ACTIVE, status::OLD));
        assert!(
            matches!(&ca.content, Content::X509Ca { upstream_chain, .. } if upstream_chain.len() == 2),
            "{ca:?}"
        );
        assert_eq!(key.content, Content::JwtKey { public_key: vec![1, 2] });
        assert_eq!((key.authority_id.as_str(), key.not_after), ("kid", 8));
    }

    #[test]
    fn fields_of_later_releases_stay() {
        // Number 15 in each record, numbers 20 and 21 in the blob.
        let Entries { mut x509_cas, mut jwt_keys, mut rest } =
            Entries::read(&spires().encode_to_vec()).unwrap();
        let unknown = vec![0x7a, 2, 5, 5];
        x509_cas[0].unknown.clone_from(&unknown);
        jwt_keys[0].unknown.clone_from(&unknown);
        rest.extend([0xa2, 0x01, 1, 7, 0xa8, 0x01, 3]);
        let later = Entries { x509_cas, jwt_keys, rest }.write();
        let entries = Entries::read(&later).unwrap();
        assert_eq!(entries.x509_cas[0].unknown, unknown);
        assert_eq!(entries.jwt_keys[0].unknown, unknown);
        assert_eq!(entries.write(), later);
        assert_eq!(wire::Entries::decode(later.as_slice()).unwrap(), spires(), "as Go reads it");
    }

    #[test]
    fn damage_is_found() {
        let good = wire::Entries { wit_keys: Vec::new(), jwt_keys: Vec::new(), ..spires() }.encode_to_vec();
        for length in 1..good.len() {
            assert!(Entries::read(&good[..length]).is_err(), "cut at {length}");
        }
        assert!(Entries::read(&[0x0a, 3, 0x08, 0x01, 0x00]).is_err());
    }
}
