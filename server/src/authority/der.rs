//! The little DER that certificates need: writing a TBSCertificate without building an object tree first, and
//! reading one back as slices.
//!
//! Writing by hand keeps foreign names byte for byte (a name that was parsed and written again may differ, and
//! then the chain is broken) and costs about a microsecond for each certificate.

use std::time::Duration;

use ::der::asn1::{GeneralizedTime, UtcTime};
use ::der::{DateTime, Decode, Encode};

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// The content octets of object identifiers.
pub(crate) mod oid {
    pub(crate) const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x0e];
    pub(crate) const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];
    pub(crate) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

    pub(crate) const COUNTRY: &[u8] = &[0x55, 0x04, 0x06];
    pub(crate) const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
    pub(crate) const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 0x04, 0x0b];
    pub(crate) const LOCALITY: &[u8] = &[0x55, 0x04, 0x07];
    pub(crate) const PROVINCE: &[u8] = &[0x55, 0x04, 0x08];
    pub(crate) const STREET: &[u8] = &[0x55, 0x04, 0x09];
    pub(crate) const POSTAL_CODE: &[u8] = &[0x55, 0x04, 0x11];
    pub(crate) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    pub(crate) const SERIAL_NUMBER: &[u8] = &[0x55, 0x04, 0x05];
}

/// What is wrong with bytes that should be DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed DER: {0}")]
pub struct DerFault(&'static str);

/// One element: tag, shortest length, then the parts one after another.
pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let skip = bytes.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | (bytes.len() - skip) as u8);
            out.extend_from_slice(&bytes[skip..]);
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// The content octets of a positive INTEGER from big-endian bytes.
pub(crate) fn positive_integer(bytes: &[u8]) -> Vec<u8> {
    let skip = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = &bytes[skip..];
    match digits.first() {
        None => vec![0],
        Some(first) if *first >= 0x80 => [&[0], digits].concat(),
        Some(_) => digits.to_vec(),
    }
}

/// A Time as RFC 5280 4.1.2.5 wants it: UTCTime through 2049, GeneralizedTime after.
pub(crate) fn time(unix: i64) -> Result<Vec<u8>, DerFault> {
    let fault = DerFault("a time outside 1970 to 9999");
    let seconds = u64::try_from(unix).map_err(|_| fault)?;
    let moment = DateTime::from_unix_duration(Duration::from_secs(seconds)).map_err(|_| fault)?;
    if moment.year() <= 2049 {
        UtcTime::from_date_time(moment).and_then(|time| time.to_der()).map_err(|_| fault)
    } else {
        GeneralizedTime::from_date_time(moment).to_der().map_err(|_| fault)
    }
}

/// One element as it lies in the input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    /// Tag, length and content.
    pub(crate) raw: &'a [u8],
    pub(crate) content: &'a [u8],
}

impl<'a> Element<'a> {
    pub(crate) fn inside(&self) -> Reader<'a> {
        Reader { rest: self.content }
    }
}

/// Reads elements one after another; refuses indefinite and overlong lengths and high tag numbers.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Reader { rest: input }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn next(&mut self) -> Result<Element<'a>, DerFault> {
        let short = DerFault("it ends too early");
        let tag = *self.rest.first().ok_or(short)?;
        if tag & 0x1f == 0x1f {
            return Err(DerFault("a tag number over 30"));
        }
        let first = *self.rest.get(1).ok_or(short)?;
        let (head, length) = match first {
            0..=0x7f => (2, usize::from(first)),
            0x81..=0x84 => {
                let count = usize::from(first & 0x7f);
                let digits = self.rest.get(2..2 + count).ok_or(short)?;
                let length = digits.iter().fold(0usize, |sum, digit| sum << 8 | usize::from(*digit));
                if digits[0] == 0 || length < 0x80 {
                    return Err(DerFault("a length that is not the shortest"));
                }
                (2 + count, length)
            }
            _ => return Err(DerFault("an indefinite or excessive length")),
        };
        let end = head.checked_add(length).ok_or(short)?;
        let raw = self.rest.get(..end).ok_or(short)?;
        self.rest = &self.rest[end..];
        Ok(Element { tag, raw, content: &raw[head..] })
    }

    pub(crate) fn expect(&mut self, tag: u8) -> Result<Element<'a>, DerFault> {
        let element = self.next()?;
        if element.tag == tag { Ok(element) } else { Err(DerFault("an element of an unexpected kind")) }
    }

    pub(crate) fn finish(&self) -> Result<(), DerFault> {
        if self.is_empty() { Ok(()) } else { Err(DerFault("bytes after the end")) }
    }
}

/// A certificate of ours as slices of its own DER, to be compared byte for byte with what was meant.
#[derive(Clone, Debug)]
pub(crate) struct RawCertificate<'a> {
    /// Content octets of the serial number.
    pub(crate) serial: &'a [u8],
    pub(crate) issuer: &'a [u8],
    /// Unix seconds.
    pub(crate) not_before: i64,
    /// Unix seconds.
    pub(crate) not_after: i64,
    pub(crate) subject: &'a [u8],
    /// SubjectPublicKeyInfo.
    pub(crate) public_key: &'a [u8],
    /// The extensions one after another.
    pub(crate) extensions: &'a [u8],
    /// AlgorithmIdentifier.
    pub(crate) algorithm: &'a [u8],
}

impl<'a> RawCertificate<'a> {
    /// Reads an X.509 version 3 certificate; nothing may follow it.
    pub(crate) fn read(input: &'a [u8]) -> Result<Self, DerFault> {
        let mut outer = Reader::new(input);
        let mut certificate = outer.expect(SEQUENCE)?.inside();
        outer.finish()?;
        let tbs = certificate.expect(SEQUENCE)?;
        let algorithm = certificate.expect(SEQUENCE)?.raw;
        bits(certificate.expect(BIT_STRING)?)?;
        certificate.finish()?;

        let mut fields = tbs.inside();
        if fields.expect(0xa0)?.content != [INTEGER, 1, 2] {
            return Err(DerFault("a certificate that is not version 3"));
        }
        let serial = fields.expect(INTEGER)?.content;
        if fields.expect(SEQUENCE)?.raw != algorithm {
            return Err(DerFault("two different signature algorithms in one certificate"));
        }
        let issuer = fields.expect(SEQUENCE)?.raw;
        let mut validity = fields.expect(SEQUENCE)?.inside();
        let not_before = unix(validity.next()?)?;
        let not_after = unix(validity.next()?)?;
        validity.finish()?;
        let subject = fields.expect(SEQUENCE)?.raw;
        let public_key = fields.expect(SEQUENCE)?.raw;
        let extensions = fields.expect(0xa3)?;
        fields.finish()?;
        let extensions = extensions.inside().expect(SEQUENCE)?.content;
        Ok(RawCertificate {
            serial,
            issuer,
            not_before,
            not_after,
            subject,
            public_key,
            extensions,
            algorithm,
        })
    }
}

/// The bits of the subjectPublicKey in a SubjectPublicKeyInfo, and its AlgorithmIdentifier's content.
pub(crate) fn public_key_parts(spki: &[u8]) -> Result<(&[u8], &[u8]), DerFault> {
    let mut fields = Reader::new(spki).expect(SEQUENCE)?.inside();
    let algorithm = fields.expect(SEQUENCE)?.content;
    let key = bits(fields.expect(BIT_STRING)?)?;
    Ok((algorithm, key))
}

fn bits(element: Element<'_>) -> Result<&[u8], DerFault> {
    match element.content.split_first() {
        Some((0, bits)) => Ok(bits),
        _ => Err(DerFault("a bit string with unused bits")),
    }
}

fn unix(element: Element<'_>) -> Result<i64, DerFault> {
    let fault = DerFault("a time that can not be read");
    let since = match element.tag {
        UTC_TIME => UtcTime::from_der(element.raw).map_err(|_| fault)?.to_unix_duration(),
        GENERALIZED_TIME => GeneralizedTime::from_der(element.raw).map_err(|_| fault)?.to_unix_duration(),
        _ => return Err(fault),
    };
    i64::try_from(since.as_secs()).map_err(|_| fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_the_shortest_and_are_read_back() {
        for length in [0usize, 1, 127, 128, 255, 256, 65535, 65536] {
            let content = vec![7u8; length];
            let element = tlv(OCTET_STRING, &[&content]);
            let mut reader = Reader::new(&element);
            let read = reader.expect(OCTET_STRING).unwrap();
            assert_eq!(read.content.len(), length);
            assert_eq!(read.raw, element);
            reader.finish().unwrap();
        }
        assert!(Reader::new(&[0x04, 0x81, 0x01, 0x00]).next().is_err(), "a long form for a short length");
        assert!(Reader::new(&[0x04, 0x80, 0x00, 0x00]).next().is_err(), "an indefinite length");
        assert!(Reader::new(&[0x04, 0x05, 0x00]).next().is_err(), "cut short");
        assert!(
            Reader::new(&[0x04, 0x84, 0xff, 0xff, 0xff, 0xff]).next().is_err(),
            "4 GiB that are not there"
        );
    }

    #[test]
    fn integers_stay_positive_and_short() {
        assert_eq!(positive_integer(&[0, 0, 1]), [1]);
        assert_eq!(positive_integer(&[0xff; 2]), [0, 0xff, 0xff]);
        assert_eq!(positive_integer(&[0x7f, 0]), [0x7f, 0]);
    }

    #[test]
    fn times_change_form_in_2050() {
        assert_eq!(&time(2_524_607_999).unwrap()[2..], b"491231235959Z");
        assert_eq!(&time(2_524_608_000).unwrap()[2..], b"20500101000000Z");
        assert!(time(-1).is_err());
        for moment in [0, 1_795_000_000, 2_524_607_999, 2_524_608_000, 4_000_000_000] {
            let written = time(moment).unwrap();
            assert_eq!(unix(Reader::new(&written).next().unwrap()).unwrap(), moment);
        }
    }
}
