//! Certificates with any fault one may wish for, signed with ECDSA P-256.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use der::Encode;
use der::asn1::UtcTime;
use rustls_pki_types::CertificateDer;

/// The present of all tests: 2026-01-01.
pub const NOW: i64 = 1_767_225_600;
pub const HOUR: i64 = 3600;

pub const DIGITAL_SIGNATURE: u8 = 0x80;
pub const KEY_ENCIPHERMENT: u8 = 0x20;
pub const KEY_AGREEMENT: u8 = 0x08;
pub const KEY_CERT_SIGN: u8 = 0x04;
pub const CRL_SIGN: u8 = 0x02;

pub const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

pub fn at(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix.try_into().unwrap())
}

pub fn now() -> SystemTime {
    at(NOW)
}

/// A P-256 key that signs.
pub struct Signer(EcdsaKeyPair);

impl Signer {
    pub fn new() -> Signer {
        Signer(EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    pub fn spki(&self) -> Vec<u8> {
        AsDer::<PublicKeyX509Der<'_>>::as_der(self.0.public_key()).unwrap().as_ref().to_vec()
    }
}

pub fn rsa_spki() -> Vec<u8> {
    let pair = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap().as_ref().to_vec()
}

pub fn ec_spki(algorithm: &'static signature::EcdsaSigningAlgorithm) -> Vec<u8> {
    let pair = EcdsaKeyPair::generate(algorithm).unwrap();
    AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap().as_ref().to_vec()
}

pub fn ed25519_spki() -> Vec<u8> {
    let pair = Ed25519KeyPair::generate().unwrap();
    let algorithm = tlv(0x30, &tlv(6, &[0x2b, 0x65, 0x70]));
    tlv(0x30, &[algorithm, tlv(3, &[&[0], pair.public_key().as_ref()].concat())].concat())
}

/// What will stand in a certificate.
#[derive(Clone)]
pub struct Draft {
    pub serial: Vec<u8>,
    pub subject: Vec<u8>,
    pub spki: Vec<u8>,
    pub not_before: i64,
    pub not_after: i64,
    pub algorithm: Vec<u8>,
    pub extensions: Vec<Vec<u8>>,
}

impl Draft {
    pub fn new(subject: Vec<u8>, spki: Vec<u8>, extensions: Vec<Vec<u8>>) -> Draft {
        Draft {
            serial: vec![0x12, 0x34],
            subject,
            spki,
            not_before: NOW - HOUR,
            not_after: NOW + HOUR,
            algorithm: ECDSA_SHA256.to_vec(),
            extensions,
        }
    }

    pub fn signed_by(&self, issuer: &[u8], signer: &Signer) -> CertificateDer<'static> {
        let algorithm = tlv(0x30, &tlv(6, &self.algorithm));
        let tbs = [
            tlv(0xa0, &tlv(2, &[2])),
            tlv(2, &self.serial),
            algorithm.clone(),
            issuer.to_vec(),
            tlv(0x30, &[utc(self.not_before), utc(self.not_after)].concat()),
            self.subject.clone(),
            self.spki.clone(),
            tlv(0xa3, &tlv(0x30, &self.extensions.concat())),
        ];
        let tbs = tlv(0x30, &tbs.concat());
        let signature = signer.0.sign(&SystemRandom::new(), &tbs).unwrap();
        let signature = tlv(3, &[&[0], signature.as_ref()].concat());
        CertificateDer::from(tlv(0x30, &[tbs, algorithm, signature].concat()))
    }
}

/// A CA: its name, its key and its certificate.
pub struct Ca {
    pub name: Vec<u8>,
    pub signer: Signer,
    pub der: CertificateDer<'static>,
}

impl Ca {
    /// A root for the trust domain. All roots bear the same name, as those of one maker do.
    pub fn root(trust_domain: &str) -> Ca {
        Ca::root_with(trust_domain, |_| {})
    }

    pub fn root_with(trust_domain: &str, edit: impl FnOnce(&mut Draft)) -> Ca {
        let signer = Signer::new();
        let mut draft = Draft::new(name("SPIFFE"), signer.spki(), ca_extensions(Some(trust_domain)));
        edit(&mut draft);
        let der = draft.signed_by(&draft.subject.clone(), &signer);
        Ca { name: draft.subject, signer, der }
    }

    pub fn intermediate(&self, common_name: &str, edit: impl FnOnce(&mut Draft)) -> Ca {
        let signer = Signer::new();
        let mut draft = Draft::new(name(common_name), signer.spki(), ca_extensions(Some("example.org")));
        edit(&mut draft);
        Ca { name: draft.subject.clone(), der: draft.signed_by(&self.name, &self.signer), signer }
    }

    /// A leaf with the ID, changed as wished.
    pub fn leaf(&self, id: &str, edit: impl FnOnce(&mut Draft)) -> CertificateDer<'static> {
        let spki = Signer::new().spki();
        let mut draft = Draft::new(name("SPIRE"), spki, leaf_extensions(vec![uri(id)]));
        edit(&mut draft);
        draft.signed_by(&self.name, &self.signer)
    }
}

pub fn ca_extensions(trust_domain: Option<&str>) -> Vec<Vec<u8>> {
    let mut extensions = vec![basic_constraints(true, None), key_usage(KEY_CERT_SIGN | CRL_SIGN, true)];
    extensions.extend(trust_domain.map(|name| san(&[uri(&format!("spiffe://{name}"))], false)));
    extensions
}

pub fn leaf_extensions(names: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    vec![
        basic_constraints(false, None),
        key_usage(DIGITAL_SIGNATURE, true),
        extended_key_usage(&[SERVER_AUTH, CLIENT_AUTH]),
        san(&names, false),
    ]
}

/// A name with one organisation, or an empty one.
pub fn name(organisation: &str) -> Vec<u8> {
    if organisation.is_empty() {
        return tlv(0x30, &[]);
    }
    let attribute = [tlv(6, &[0x55, 4, 10]), tlv(0x0c, organisation.as_bytes())].concat();
    tlv(0x30, &tlv(0x31, &tlv(0x30, &attribute)))
}

pub fn uri(text: &str) -> Vec<u8> {
    tlv(0x86, text.as_bytes())
}

pub fn dns(text: &str) -> Vec<u8> {
    tlv(0x82, text.as_bytes())
}

pub fn email(text: &str) -> Vec<u8> {
    tlv(0x81, text.as_bytes())
}

pub fn address(bytes: [u8; 4]) -> Vec<u8> {
    tlv(0x87, &bytes)
}

pub fn san(names: &[Vec<u8>], critical: bool) -> Vec<u8> {
    extension(&[0x55, 0x1d, 17], critical, &tlv(0x30, &names.concat()))
}

pub fn basic_constraints(ca: bool, path_len: Option<u8>) -> Vec<u8> {
    let mut content = if ca { tlv(1, &[0xff]) } else { Vec::new() };
    content.extend(path_len.map(|length| tlv(2, &[length])).unwrap_or_default());
    extension(&[0x55, 0x1d, 19], true, &tlv(0x30, &content))
}

pub fn key_usage(bits: u8, critical: bool) -> Vec<u8> {
    let unused = bits.trailing_zeros() as u8;
    extension(&[0x55, 0x1d, 15], critical, &tlv(3, &[unused, bits]))
}

pub fn extended_key_usage(usages: &[&[u8]]) -> Vec<u8> {
    let usages: Vec<u8> = usages.iter().flat_map(|usage| tlv(6, usage)).collect();
    extension(&[0x55, 0x1d, 37], false, &tlv(0x30, &usages))
}

pub fn subject_key_id(id: &[u8]) -> Vec<u8> {
    extension(&[0x55, 0x1d, 14], false, &tlv(4, id))
}

pub fn authority_key_id(id: &[u8]) -> Vec<u8> {
    extension(&[0x55, 0x1d, 35], false, &tlv(0x30, &tlv(0x80, id)))
}

/// `tag` is 0 to permit and 1 to exclude.
pub fn uri_name_constraint(tag: u8, host: &str) -> Vec<u8> {
    let subtree = tlv(0x30, &tlv(0x86, host.as_bytes()));
    extension(&[0x55, 0x1d, 30], true, &tlv(0x30, &tlv(0xa0 | tag, &subtree)))
}

pub fn unknown_critical() -> Vec<u8> {
    extension(&[0x2a, 3, 4, 5], true, &tlv(5, &[]))
}

pub fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { tlv(1, &[0xff]) } else { Vec::new() };
    tlv(0x30, &[tlv(6, id), critical, tlv(4, value)].concat())
}

pub fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match value.len() {
        length @ 0..0x80 => der.push(length as u8),
        length @ 0x80..0x100 => der.extend([0x81, length as u8]),
        length => der.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    der.extend(value);
    der
}

fn utc(unix: i64) -> Vec<u8> {
    UtcTime::from_unix_duration(Duration::from_secs(unix.try_into().unwrap())).unwrap().to_der().unwrap()
}
