//! Protobuf blobs in columns, rewritten without the loss of fields that this release does not know.
//!
//! prost drops such fields. Here the raw bytes of each are kept and written back behind the known ones, which is also
//! where Go puts them.

use std::collections::HashMap;

use finial_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use finial_identity::entry::AdditionalAttributes;
use finial_identity::trust_domain::TrustDomain;
use finial_proto::spire::common;
use prost::Message;

/// Why a blob is not readable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BlobError {
    #[error("the protobuf message is cut off or malformed")]
    Malformed,
    #[error("the protobuf message is malformed: {0}")]
    Decode(String),
    #[error("the trust domain of the bundle is not valid: {0}")]
    TrustDomain(String),
}

/// Reads `registered_entries.additional_attributes`; an empty blob means that there are none.
pub(super) fn read_attributes(blob: &[u8]) -> Result<Option<AdditionalAttributes>, BlobError> {
    if blob.is_empty() {
        return Ok(None);
    }
    let mut attributes = AdditionalAttributes::default();
    for field in fields(blob)? {
        match (field.number, field.value) {
            (1, Content::Varint(value)) => attributes.disable_x509_svid_prefetch = value != 0,
            (2, Content::Varint(value)) => attributes.jwt_svid_include_jti = value != 0,
            _ => attributes.unknown.extend_from_slice(field.raw),
        }
    }
    Ok(Some(attributes))
}

/// Writes `registered_entries.additional_attributes`.
pub(super) fn write_attributes(attributes: &AdditionalAttributes) -> Vec<u8> {
    let mut blob = common::registration_entry::AdditionalAttributes {
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
    }
    .encode_to_vec();
    blob.extend_from_slice(&attributes.unknown);
    blob
}

/// Reads `bundles.data`.
pub(super) fn read_bundle(blob: &[u8]) -> Result<Bundle, BlobError> {
    let message = common::Bundle::decode(blob).map_err(|error| BlobError::Decode(error.to_string()))?;
    let trust_domain = TrustDomain::parse(&message.trust_domain_id)
        .map_err(|error| BlobError::TrustDomain(error.to_string()))?;
    Ok(Bundle {
        trust_domain,
        x509_authorities: message
            .root_cas
            .into_iter()
            .map(|root| X509Authority { der: root.der_bytes, tainted: root.tainted_key })
            .collect(),
        jwt_authorities: message.jwt_signing_keys.into_iter().map(read_key).collect(),
        wit_authorities: message.wit_signing_keys.into_iter().map(read_key).collect(),
        refresh_hint: message.refresh_hint,
        sequence_number: message.sequence_number,
    })
}

/// Writes `bundles.data`. Fields that this release does not know are taken from `stored`, the blob that is replaced:
/// those of the bundle, and those of each authority that is still there.
pub(super) fn write_bundle(bundle: &Bundle, stored: &[u8]) -> Result<Vec<u8>, BlobError> {
    let mut unknown = Vec::new();
    let mut of_authorities: HashMap<Authority<'_>, Vec<u8>> = HashMap::new();
    for field in fields(stored)? {
        match (field.number, field.value) {
            (ROOT_CAS, Content::Bytes(element)) => {
                let (der, _) = two_bytes_fields(element)?;
                of_authorities.insert((ROOT_CAS, der, &[]), unknown_fields(element, 2)?);
            }
            (number @ (JWT_SIGNING_KEYS | WIT_SIGNING_KEYS), Content::Bytes(element)) => {
                let (key, kid) = two_bytes_fields(element)?;
                of_authorities.insert((number, key, kid), unknown_fields(element, 4)?);
            }
            (TRUST_DOMAIN_ID | REFRESH_HINT | SEQUENCE_NUMBER, _) => {}
            _ => unknown.extend_from_slice(field.raw),
        }
    }

    let mut blob =
        common::Bundle { trust_domain_id: bundle.trust_domain.id().to_string(), ..Default::default() }
            .encode_to_vec();
    for authority in &bundle.x509_authorities {
        let known = common::Certificate { der_bytes: authority.der.to_vec(), tainted_key: authority.tainted };
        let kept = of_authorities.get(&(ROOT_CAS, &authority.der[..], &[][..]));
        push_element(&mut blob, ROOT_CAS, known.encode_to_vec(), kept);
    }
    push_keys(&mut blob, JWT_SIGNING_KEYS, &bundle.jwt_authorities, &of_authorities);
    common::Bundle {
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
        ..Default::default()
    }
    .encode(&mut blob)
    .map_err(|error| BlobError::Decode(error.to_string()))?;
    push_keys(&mut blob, WIT_SIGNING_KEYS, &bundle.wit_authorities, &of_authorities);
    blob.extend_from_slice(&unknown);
    Ok(blob)
}

const TRUST_DOMAIN_ID: u32 = 1;
const ROOT_CAS: u32 = 2;
const JWT_SIGNING_KEYS: u32 = 3;
const REFRESH_HINT: u32 = 4;
const SEQUENCE_NUMBER: u32 = 5;
const WIT_SIGNING_KEYS: u32 = 6;

/// What tells an authority from others: the list that it is in, its certificate or key, its key ID.
type Authority<'a> = (u32, &'a [u8], &'a [u8]);

pub(super) struct Field<'b> {
    pub(super) number: u32,
    /// Tag and content.
    pub(super) raw: &'b [u8],
    pub(super) value: Content<'b>,
}

pub(super) enum Content<'b> {
    Varint(u64),
    Bytes(&'b [u8]),
    Fixed,
}

/// The fields of a message, in order.
pub(super) fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, BlobError> {
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let (tag, after) = varint(rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| BlobError::Malformed)?;
        let (value, after) = match tag & 7 {
            0 => varint(after).map(|(value, after)| (Content::Varint(value), after))?,
            1 => (Content::Fixed, after.get(8..).ok_or(BlobError::Malformed)?),
            2 => {
                let (length, after) = varint(after)?;
                let length = usize::try_from(length).map_err(|_| BlobError::Malformed)?;
                let (bytes, after) = after.split_at_checked(length).ok_or(BlobError::Malformed)?;
                (Content::Bytes(bytes), after)
            }
            5 => (Content::Fixed, after.get(4..).ok_or(BlobError::Malformed)?),
            _ => return Err(BlobError::Malformed),
        };
        let raw = start.get(..start.len() - after.len()).ok_or(BlobError::Malformed)?;
        found.push(Field { number, raw, value });
        rest = after;
    }
    Ok(found)
}

fn varint(bytes: &[u8]) -> Result<(u64, &[u8]), BlobError> {
    let mut value = 0_u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok((value, bytes.get(i + 1..).unwrap_or_default()));
        }
    }
    Err(BlobError::Malformed)
}

fn push_varint(blob: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        blob.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    blob.push(value as u8);
}

/// The raw fields with numbers above `known`.
pub(super) fn unknown_fields(message: &[u8], known: u32) -> Result<Vec<u8>, BlobError> {
    let unknown = fields(message)?.into_iter().filter(|field| field.number > known);
    Ok(unknown.flat_map(|field| field.raw.iter().copied()).collect())
}

/// The content of fields 1 and 2, where they are bytes.
fn two_bytes_fields(message: &[u8]) -> Result<(&[u8], &[u8]), BlobError> {
    let (mut first, mut second): (&[u8], &[u8]) = (&[], &[]);
    for field in fields(message)? {
        match (field.number, field.value) {
            (1, Content::Bytes(bytes)) => first = bytes,
            (2, Content::Bytes(bytes)) => second = bytes,
            _ => {}
        }
    }
    Ok((first, second))
}

fn push_keys(blob: &mut Vec<u8>, number: u32, keys: &[JwtAuthority], kept: &HashMap<Authority<'_>, Vec<u8>>) {
    for key in keys {
        let known = common::PublicKey {
            pkix_bytes: key.public_key.to_vec(),
            kid: key.key_id.clone(),
            not_after: key.expires_at,
            tainted_key: key.tainted,
        };
        let kept = kept.get(&(number, &key.public_key[..], key.key_id.as_bytes()));
        push_element(blob, number, known.encode_to_vec(), kept);
    }
}

pub(super) fn push_element(blob: &mut Vec<u8>, number: u32, mut element: Vec<u8>, unknown: Option<&Vec<u8>>) {
    if let Some(unknown) = unknown {
        element.extend_from_slice(unknown);
    }
    push_varint(blob, u64::from(number << 3 | 2));
    push_varint(blob, element.len() as u64);
    blob.extend_from_slice(&element);
}

fn read_key(key: common::PublicKey) -> JwtAuthority {
    JwtAuthority {
        key_id: key.kid,
        public_key: key.pkix_bytes,
        expires_at: key.not_after,
        tainted: key.tainted_key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field 90, bytes "new".
    const UNKNOWN: &[u8] = &[0xd2, 0x05, 0x03, b'n', b'e', b'w'];

    fn key(kid: &str) -> common::PublicKey {
        common::PublicKey { pkix_bytes: vec![1, 2], kid: kid.into(), not_after: 7, tainted_key: true }
    }

    fn message() -> common::Bundle {
        common::Bundle {
            trust_domain_id: "spiffe://example.org".into(),
            root_cas: vec![
                common::Certificate { der_bytes: vec![9; 200], tainted_key: false },
                common::Certificate { der_bytes: vec![8], tainted_key: true },
            ],
            jwt_signing_keys: vec![key("a")],
            refresh_hint: 60,
            sequence_number: 300,
            wit_signing_keys: vec![key("b")],
        }
    }

    #[test]
    fn a_bundle_is_written_as_go_writes_it() {
        let blob = message().encode_to_vec();
        assert_eq!(write_bundle(&read_bundle(&blob).unwrap(), &[]).unwrap(), blob);
    }

    #[test]
    fn unknown_fields_of_a_bundle_survive_a_rewrite() {
        let mut element = key("a").encode_to_vec();
        element.extend_from_slice(UNKNOWN);
        let mut stored = common::Bundle { jwt_signing_keys: vec![], ..message() }.encode_to_vec();
        push_element(&mut stored, JWT_SIGNING_KEYS, element, None);
        stored.extend_from_slice(UNKNOWN);

        let mut bundle = read_bundle(&stored).unwrap();
        bundle.sequence_number += 1;
        bundle.jwt_authorities[0].tainted = false;
        let blob = write_bundle(&bundle, &stored).unwrap();
        assert_eq!(read_bundle(&blob).unwrap(), bundle);
        assert!(blob.ends_with(UNKNOWN));
        assert_eq!(blob.windows(UNKNOWN.len()).filter(|window| *window == UNKNOWN).count(), 2);

        bundle.jwt_authorities.clear();
        let blob = write_bundle(&bundle, &blob).unwrap();
        assert_eq!(blob.windows(UNKNOWN.len()).filter(|window| *window == UNKNOWN).count(), 1);
    }

    #[test]
    fn unknown_attributes_survive_a_rewrite() {
        let mut blob = vec![0x08, 1];
        blob.extend_from_slice(UNKNOWN);
        let mut attributes = read_attributes(&blob).unwrap().unwrap();
        assert!(attributes.disable_x509_svid_prefetch && !attributes.jwt_svid_include_jti);
        attributes.jwt_svid_include_jti = true;
        let mut expected = vec![0x08, 1, 0x10, 1];
        expected.extend_from_slice(UNKNOWN);
        assert_eq!(write_attributes(&attributes), expected);
        assert_eq!(read_attributes(&[]).unwrap(), None);
    }

    #[test]
    fn broken_blobs_are_refused() {
        for broken in [&[0x08][..], &[0x12, 5, 1], &[0xff; 11], &[0x0b], &[0x09, 1], &[0x0d]] {
            assert_eq!(read_attributes(broken), Err(BlobError::Malformed), "{broken:?}");
        }
        assert!(read_bundle(&[0x12, 5, 1]).is_err());
        assert!(read_bundle(&[]).is_err());
    }
}
