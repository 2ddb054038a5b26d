//! The parts of an X.509 certificate that Finial looks at, as they stand in the DER.
//!
//! Keys and names stay the bytes that were signed: an encoder that puts them together anew may choose differently.

use std::time::SystemTime;

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{
    ID_CE_AUTHORITY_KEY_IDENTIFIER, ID_CE_BASIC_CONSTRAINTS, ID_CE_EXT_KEY_USAGE, ID_CE_KEY_USAGE,
    ID_CE_SUBJECT_ALT_NAME, ID_CE_SUBJECT_KEY_IDENTIFIER,
};
use der::asn1::BitStringRef;
use der::{Decode, Reader, SliceReader};
use x509_cert::time::Time;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
const EXPLICIT_0: u8 = 0xa0;
const EXPLICIT_3: u8 = 0xa3;

const DIGITAL_SIGNATURE: u16 = 0x8000;
const KEY_CERT_SIGN: u16 = 0x0400;
const CRL_SIGN: u16 = 0x0200;

/// What is wrong with the DER, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) String);

/// A certificate, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The signed part.
    pub tbs: Vec<u8>,
    /// The outer AlgorithmIdentifier.
    pub signature_algorithm: Vec<u8>,
    pub signature: Vec<u8>,
    /// Big-endian magnitude without leading zeros.
    pub serial: Vec<u8>,
    pub issuer: Vec<u8>,
    pub subject: Vec<u8>,
    pub public_key: Vec<u8>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub extensions: Extensions,
}

/// The extensions that matter to SPIFFE. Others are for path validation to judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub basic_constraints: Option<BasicConstraints>,
    pub key_usage: Option<KeyUsage>,
    pub extended_key_usage: Option<Vec<ObjectIdentifier>>,
    pub subject_alt_name: Option<SubjectAltName>,
    pub subject_key_id: Option<Vec<u8>>,
    pub authority_key_id: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BasicConstraints {
    pub ca: bool,
    pub path_len: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUsage {
    /// Bit 0 of the BIT STRING is the highest bit.
    bits: u16,
    pub critical: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SubjectAltName {
    pub critical: bool,
    pub uris: Vec<String>,
    pub dns_names: Vec<String>,
    /// Names of other kinds: addresses, mail, directory names, ...
    pub others: usize,
}

/// One tag-length-value.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    pub tag: u8,
    pub value: &'a [u8],
    /// The whole of it, header included.
    pub raw: &'a [u8],
}

impl Certificate {
    pub fn read(der: &[u8]) -> Result<Certificate, Malformed> {
        let [tbs, algorithm, signature] = fixed(whole(der, "certificate")?, "certificate")?;
        let mut parts = elements(tbs.is(SEQUENCE, "certificate body")?)?.into_iter().peekable();
        if parts.next_if(|part| part.tag == EXPLICIT_0).is_none() {
            return Err(malformed("certificate is not of version 3"));
        }
        let mut next =
            |what: &str| parts.next().ok_or_else(|| malformed(&format!("certificate has no {what}")));
        let serial = magnitude(next("serial number")?.is(INTEGER, "serial number")?, "serial number")?;
        next("signature algorithm")?.is(SEQUENCE, "signature algorithm")?;
        let issuer = next("issuer")?.sequence("issuer")?;
        let [not_before, not_after] = fixed(next("validity")?, "validity")?;
        let subject = next("subject")?.sequence("subject")?;
        let public_key = next("public key")?.sequence("public key")?;
        let extensions = match parts.find(|part| part.tag == EXPLICIT_3) {
            Some(part) => {
                let [list] = fixed_value(part.value, "extensions")?;
                Extensions::read(list.is(SEQUENCE, "extensions")?)?
            }
            None => Extensions::default(),
        };
        Ok(Certificate {
            tbs: tbs.raw.to_vec(),
            signature_algorithm: algorithm.sequence("signature algorithm")?.to_vec(),
            signature: bit_string(signature, "signature")?.to_vec(),
            serial,
            issuer: issuer.to_vec(),
            subject: subject.to_vec(),
            public_key: public_key.to_vec(),
            not_before: time(not_before)?,
            not_after: time(not_after)?,
            extensions,
        })
    }

    pub fn is_ca(&self) -> bool {
        self.extensions.basic_constraints.is_some_and(|constraints| constraints.ca)
    }
}

impl Extensions {
    /// Reads the inside of the SEQUENCE OF Extension.
    pub fn read(list: &[u8]) -> Result<Extensions, Malformed> {
        let mut extensions = Extensions::default();
        let mut seen = Vec::new();
        for extension in elements(list)? {
            let parts = elements(extension.is(SEQUENCE, "extension")?)?;
            let (id, critical, value) = match parts.as_slice() {
                [id, value] => (id, false, value),
                [id, critical, value] => (id, critical.is(BOOLEAN, "extension")? != [0], value),
                _ => return Err(malformed("extension has a wrong number of parts")),
            };
            let id = object_identifier(*id)?;
            if seen.contains(&id) {
                return Err(malformed(&format!("extension {id} appears twice")));
            }
            seen.push(id);
            extensions.take(id, critical, value.is(OCTET_STRING, "extension value")?)?;
        }
        Ok(extensions)
    }

    fn take(&mut self, id: ObjectIdentifier, critical: bool, value: &[u8]) -> Result<(), Malformed> {
        match id {
            ID_CE_BASIC_CONSTRAINTS => self.basic_constraints = Some(BasicConstraints::read(value)?),
            ID_CE_KEY_USAGE => self.key_usage = Some(KeyUsage::read(value, critical)?),
            ID_CE_EXT_KEY_USAGE => {
                let list = whole(value, "extended key usage")?.is(SEQUENCE, "extended key usage")?;
                let usages = elements(list)?.into_iter().map(object_identifier);
                self.extended_key_usage = Some(usages.collect::<Result<_, _>>()?);
            }
            ID_CE_SUBJECT_ALT_NAME => self.subject_alt_name = Some(SubjectAltName::read(value, critical)?),
            ID_CE_SUBJECT_KEY_IDENTIFIER => {
                let id = whole(value, "subject key identifier")?;
                self.subject_key_id = Some(id.is(OCTET_STRING, "subject key identifier")?.to_vec());
            }
            ID_CE_AUTHORITY_KEY_IDENTIFIER => {
                let parts = whole(value, "authority key identifier")?;
                let parts = elements(parts.is(SEQUENCE, "authority key identifier")?)?;
                self.authority_key_id =
                    parts.iter().find(|part| part.tag == 0x80).map(|part| part.value.to_vec());
            }
            _ => {}
        }
        Ok(())
    }
}

impl BasicConstraints {
    fn read(value: &[u8]) -> Result<BasicConstraints, Malformed> {
        let what = "basic constraints";
        let mut constraints = BasicConstraints { ca: false, path_len: None };
        for part in elements(whole(value, what)?.is(SEQUENCE, what)?)? {
            match part.tag {
                BOOLEAN => constraints.ca = part.value != [0],
                INTEGER => {
                    let length = magnitude(part.value, what)?;
                    let length = length
                        .iter()
                        .try_fold(0_u64, |sum, byte| Some(sum.checked_mul(256)? + u64::from(*byte)));
                    constraints.path_len = Some(length.unwrap_or(u64::MAX));
                }
                _ => return Err(malformed("basic constraints hold an unknown part")),
            }
        }
        Ok(constraints)
    }
}

impl KeyUsage {
    fn read(value: &[u8], critical: bool) -> Result<KeyUsage, Malformed> {
        let bits = BitStringRef::from_der(value).map_err(|e| malformed(&format!("key usage: {e}")))?;
        let byte = |index: usize| u16::from(bits.raw_bytes().get(index).copied().unwrap_or(0));
        Ok(KeyUsage { bits: byte(0) << 8 | byte(1), critical })
    }

    pub fn digital_signature(self) -> bool {
        self.bits & DIGITAL_SIGNATURE != 0
    }

    pub fn key_cert_sign(self) -> bool {
        self.bits & KEY_CERT_SIGN != 0
    }

    pub fn crl_sign(self) -> bool {
        self.bits & CRL_SIGN != 0
    }

    /// Whether only keyCertSign, cRLSign and digitalSignature may be set, and nothing else is.
    pub fn is_for_signing_only(self) -> bool {
        self.bits & !(DIGITAL_SIGNATURE | KEY_CERT_SIGN | CRL_SIGN) == 0
    }
}

impl SubjectAltName {
    pub fn read(value: &[u8], critical: bool) -> Result<SubjectAltName, Malformed> {
        let mut names = SubjectAltName { critical, ..SubjectAltName::default() };
        for name in
            elements(whole(value, "subject alternative name")?.is(SEQUENCE, "subject alternative name")?)?
        {
            match name.tag {
                0x82 => names.dns_names.push(ia5(name.value, "DNS name")?),
                0x86 => names.uris.push(ia5(name.value, "URI")?),
                _ => names.others += 1,
            }
        }
        Ok(names)
    }
}

impl<'a> Element<'a> {
    /// The value, if the tag is this one.
    pub fn is(self, tag: u8, what: &str) -> Result<&'a [u8], Malformed> {
        if self.tag == tag { Ok(self.value) } else { Err(malformed(&format!("{what} has a wrong type"))) }
    }

    /// The whole of it, if it is a SEQUENCE.
    pub fn sequence(self, what: &str) -> Result<&'a [u8], Malformed> {
        self.is(SEQUENCE, what).map(|_| self.raw)
    }
}

pub(crate) fn malformed(text: &str) -> Malformed {
    Malformed(text.to_owned())
}

/// The elements that follow one another in `bytes`.
pub(crate) fn elements(mut bytes: &[u8]) -> Result<Vec<Element<'_>>, Malformed> {
    // Most lists are shorter.
    let mut found = Vec::with_capacity(8);
    while !bytes.is_empty() {
        found.push(element(&mut bytes)?);
    }
    Ok(found)
}

/// The one element that `bytes` hold, with nothing behind it.
pub(crate) fn whole<'a>(bytes: &'a [u8], what: &str) -> Result<Element<'a>, Malformed> {
    let [element] = fixed_value(bytes, what)?;
    Ok(element)
}

/// Exactly `N` elements inside a SEQUENCE.
pub(crate) fn fixed<'a, const N: usize>(
    element: Element<'a>,
    what: &str,
) -> Result<[Element<'a>; N], Malformed> {
    fixed_value(element.is(SEQUENCE, what)?, what)
}

pub(crate) fn object_identifier(element: Element<'_>) -> Result<ObjectIdentifier, Malformed> {
    let value = element.is(OBJECT_IDENTIFIER, "object identifier")?;
    ObjectIdentifier::from_bytes(value).map_err(|e| malformed(&format!("object identifier: {e}")))
}

/// The bytes of a BIT STRING that holds whole bytes.
pub(crate) fn bit_string<'a>(element: Element<'a>, what: &str) -> Result<&'a [u8], Malformed> {
    match element.is(BIT_STRING, what)? {
        [0, bytes @ ..] => Ok(bytes),
        _ => Err(malformed(&format!("{what} does not hold whole bytes"))),
    }
}

/// The magnitude of a non-negative INTEGER without leading zeros.
pub(crate) fn magnitude(value: &[u8], what: &str) -> Result<Vec<u8>, Malformed> {
    match value {
        [] => Err(malformed(&format!("{what} is empty"))),
        [first, ..] if first & 0x80 != 0 => Err(malformed(&format!("{what} is negative"))),
        _ => Ok(value.iter().copied().skip_while(|byte| *byte == 0).collect()),
    }
}

/// Splits certificates (or other SEQUENCEs) that follow one another without separators.
pub(crate) fn split(der: &[u8]) -> Result<Vec<&[u8]>, Malformed> {
    elements(der)?.into_iter().map(|element| element.sequence("certificate")).collect()
}

fn fixed_value<'a, const N: usize>(mut bytes: &'a [u8], what: &str) -> Result<[Element<'a>; N], Malformed> {
    let mut found = [Element { tag: 0, value: &[], raw: &[] }; N];
    let mut count = 0;
    while !bytes.is_empty() {
        let element = element(&mut bytes).map_err(|e| malformed(&format!("{what}: {e}")))?;
        if let Some(place) = found.get_mut(count) {
            *place = element;
        }
        count += 1;
    }
    if count == N { Ok(found) } else { Err(malformed(&format!("{what} has {count} parts instead of {N}"))) }
}

/// Takes the first element off `bytes`, which are not empty.
fn element<'a>(bytes: &mut &'a [u8]) -> Result<Element<'a>, Malformed> {
    let (header, end) = match plain_header(bytes) {
        Some(bounds) => bounds,
        None => header(bytes).map_err(|e| malformed(&e.to_string()))?,
    };
    let (raw, rest) = bytes.split_at(end);
    *bytes = rest;
    Ok(Element { tag: raw[0], value: &raw[header..], raw })
}

/// Where the value of an element begins and ends, for the tags and lengths that certificates are made of: signing reads
/// some sixty elements for each certificate, and this takes a tenth of the time that the general reader takes. `None`
/// asks the general reader, which also has the words for what is wrong.
fn plain_header(bytes: &[u8]) -> Option<(usize, usize)> {
    let known = |tag: u8| match tag {
        BOOLEAN | INTEGER | BIT_STRING | OCTET_STRING | OBJECT_IDENTIFIER | SEQUENCE | SET => true,
        // NULL, UTF8String, PrintableString, IA5String, UTCTime, GeneralizedTime.
        0x05 | 0x0c | 0x13 | 0x16 | 0x17 | 0x18 => true,
        // Context-specific, with a number that fits into the tag.
        0x80..=0x9e | 0xa0..=0xbe => true,
        _ => false,
    };
    let (header, length) = match *bytes {
        [tag, length @ ..=0x7f, ..] if known(tag) => (2, usize::from(length)),
        [tag, 0x81, length @ 0x80..=0xff, ..] if known(tag) => (3, usize::from(length)),
        [tag, 0x82, high @ 1..=0xff, low, ..] if known(tag) => (4, usize::from(high) << 8 | usize::from(low)),
        _ => return None,
    };
    let end = header + length;
    (end <= bytes.len()).then_some((header, end))
}

fn header(bytes: &[u8]) -> der::Result<(usize, usize)> {
    let raw = SliceReader::new(bytes)?.tlv_bytes()?;
    let value = der::asn1::AnyRef::from_der(raw)?.value();
    Ok((raw.len() - value.len(), raw.len()))
}

fn time(element: Element<'_>) -> Result<SystemTime, Malformed> {
    let time = Time::from_der(element.raw).map_err(|e| malformed(&format!("validity: {e}")))?;
    Ok(time.to_system_time())
}

fn ia5(bytes: &[u8], what: &str) -> Result<String, Malformed> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => Ok(text.to_owned()),
        _ => Err(malformed(&format!("{what} is not ASCII"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quick way reads nothing that the general reader refuses, or otherwise than that does.
    #[test]
    fn plain_headers_are_read_as_the_general_reader_reads_them() {
        let mut plain = 0;
        for tag in 0..=0xff_u8 {
            for first in 0..=0xff_u8 {
                for second in [0, 1, 0x7f, 0x80, 0xff] {
                    for length in [0, 1, 126, 127, 128, 255, 256, 257, 0xff01] {
                        let mut bytes = vec![tag, first, second, 1];
                        bytes.resize(bytes.len() + length, 0);
                        let Some(bounds) = plain_header(&bytes) else { continue };
                        assert_eq!(header(&bytes), Ok(bounds), "{:?}, {} bytes", &bytes[..4], bytes.len());
                        plain += 1;
                    }
                }
            }
        }
        assert!(plain > 100_000, "{plain}");
    }

    #[test]
    fn lists_of_elements_are_split() {
        let bytes =
            [&[INTEGER, 1, 5, 0x30, 0x81, 0x80][..], &[0; 0x80], &[0x30, 0x82, 1, 0], &[1; 256]].concat();
        let found = elements(&bytes).unwrap();
        let shapes: Vec<_> = found.iter().map(|e| (e.tag, e.value.len(), e.raw.len())).collect();
        assert_eq!(shapes, [(INTEGER, 1, 3), (SEQUENCE, 128, 131), (SEQUENCE, 256, 260)]);
        assert!(elements(&bytes[..bytes.len() - 1]).is_err(), "cut short");
        assert!(elements(&[INTEGER, 0x81, 1, 5]).is_err(), "a length that is not the shortest");
    }
}
