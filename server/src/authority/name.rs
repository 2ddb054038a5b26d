//! Distinguished names: ours written in Go's order and string types, foreign ones changed without being rewritten.

use super::der::{self, DerFault, Reader, oid, tlv};
use super::profile::Serial;

/// The attributes that Go's certificate library knows, in the order in which it writes them. Others are dropped.
const GO_ORDER: [&[u8]; 9] = [
    oid::COUNTRY,
    oid::ORGANIZATION,
    oid::ORGANIZATIONAL_UNIT,
    oid::LOCALITY,
    oid::PROVINCE,
    oid::STREET,
    oid::POSTAL_CODE,
    oid::COMMON_NAME,
    oid::SERIAL_NUMBER,
];

/// `ca_subject`. With all of it empty the default holds: C=US, O=SPIFFE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubjectSettings {
    pub country: Vec<String>,
    pub organization: Vec<String>,
    pub common_name: String,
}

/// C=US, O=SPIRE.
pub(super) fn default_leaf() -> Vec<u8> {
    name(&[rdn(oid::COUNTRY, &["US"]), rdn(oid::ORGANIZATION, &["SPIRE"])])
}

/// C=US, O=SPIRE, CN=`common_name`.
pub(super) fn default_leaf_named(common_name: &str) -> Vec<u8> {
    name(&[
        rdn(oid::COUNTRY, &["US"]),
        rdn(oid::ORGANIZATION, &["SPIRE"]),
        rdn(oid::COMMON_NAME, &[common_name]),
    ])
}

/// The CA's name. No serialNumber attribute can be configured, so it is the certificate's serial number in decimal:
/// it keeps the names of successive CAs apart.
pub(super) fn authority(settings: &SubjectSettings, serial: Serial) -> Vec<u8> {
    let (country, organization, common_name) = if *settings == SubjectSettings::default() {
        (vec!["US".to_owned()], vec!["SPIFFE".to_owned()], Vec::new())
    } else {
        let common_name = Some(settings.common_name.clone()).filter(|text| !text.is_empty());
        (settings.country.clone(), settings.organization.clone(), common_name.into_iter().collect())
    };
    name(&[
        rdn(oid::COUNTRY, &country),
        rdn(oid::ORGANIZATION, &organization),
        rdn(oid::COMMON_NAME, &common_name),
        rdn(oid::SERIAL_NUMBER, &[serial.to_string()]),
    ])
}

/// The CSR's subject in Go's form, with `common_name` in place of its own if given; the default leaf name when the CSR
/// has none that we know.
pub(super) fn leaf_from_csr(subject: &[u8], common_name: Option<&str>) -> Vec<u8> {
    let given = attributes(subject).unwrap_or_default();
    if !given.iter().any(|(kind, _)| GO_ORDER.contains(&kind.as_slice())) {
        return common_name.map_or_else(default_leaf, default_leaf_named);
    }
    in_go_order(&given, |kind| {
        (kind == oid::COMMON_NAME).then(|| common_name.map(|text| vec![string(text)])).flatten()
    })
}

/// A CA's name (DER) in Go's form with `unit` as its only organizational unit.
pub(super) fn with_organizational_unit(subject: &[u8], unit: &str) -> Result<Vec<u8>, DerFault> {
    let given = attributes(subject)?;
    Ok(in_go_order(&given, |kind| (kind == oid::ORGANIZATIONAL_UNIT).then(|| vec![string(unit)])))
}

type Attribute = (Vec<u8>, Vec<u8>);

fn in_go_order(given: &[Attribute], replaced: impl Fn(&[u8]) -> Option<Vec<Vec<u8>>>) -> Vec<u8> {
    let single = [oid::COMMON_NAME, oid::SERIAL_NUMBER];
    let rdns: Vec<Vec<u8>> = GO_ORDER
        .iter()
        .map(|kind| {
            let values = replaced(kind).unwrap_or_else(|| {
                let mut all = given.iter().filter(|(found, _)| found == kind).map(|(_, value)| value.clone());
                // Of a name's common names and serial numbers the last one counts.
                if single.contains(kind) { all.next_back().into_iter().collect() } else { all.collect() }
            });
            rdn_of(kind, values)
        })
        .collect();
    name(&rdns)
}

/// All attributes of a name as (object identifier, DER of the value), in order.
fn attributes(subject: &[u8]) -> Result<Vec<Attribute>, DerFault> {
    let mut found = Vec::new();
    let mut rdns = Reader::new(subject).expect(der::SEQUENCE)?.inside();
    while !rdns.is_empty() {
        let mut set = rdns.expect(der::SET)?.inside();
        while !set.is_empty() {
            let mut attribute = set.expect(der::SEQUENCE)?.inside();
            let kind = attribute.expect(der::OID)?.content.to_vec();
            found.push((kind, attribute.next()?.raw.to_vec()));
        }
    }
    Ok(found)
}

fn name(rdns: &[Vec<u8>]) -> Vec<u8> {
    tlv(der::SEQUENCE, &rdns.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Nothing without values; several values are one multi-valued RDN, as in Go.
fn rdn(kind: &[u8], values: &[impl AsRef<str>]) -> Vec<u8> {
    rdn_of(kind, values.iter().map(|value| string(value.as_ref())).collect())
}

fn rdn_of(kind: &[u8], values: Vec<Vec<u8>>) -> Vec<u8> {
    if values.is_empty() {
        return Vec::new();
    }
    let kind = tlv(der::OID, &[kind]);
    let mut attributes: Vec<_> = values.iter().map(|value| tlv(der::SEQUENCE, &[&kind, value])).collect();
    attributes.sort();
    tlv(der::SET, &attributes.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// PrintableString where it can be one, else UTF8String.
fn string(text: &str) -> Vec<u8> {
    let printable = |byte: u8| byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte);
    let tag = if text.bytes().all(printable) { der::PRINTABLE_STRING } else { der::UTF8_STRING };
    tlv(tag, &[text.as_bytes()])
}
