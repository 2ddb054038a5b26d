//! Bundles as text: the SPIFFE bundle format (SPIFFE_Trust_Domain_and_Bundle.md §4), bundle maps (§5), and PEM.
//!
//! Writing follows what SPIRE prints, to the byte where it is deterministic. Reading follows the specification where
//! SPIRE is stricter: an element that is not understood (unknown or missing `kty` or `use`, unknown curve, no `x5c`) is
//! skipped, while one that is understood but wrong refuses the whole document, so that no authority is lost in silence.

use std::collections::HashSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value};

use super::jwk::{KeyFault, PublicKey};
use super::{Bundle, JwtAuthority, X509Authority};
use crate::spiffe_id::SpiffeIdError;
use crate::trust_domain::TrustDomain;
use crate::x509_svid::AuthorityCertificate;

/// The longest document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 16 * 1024 * 1024;

const X509_USE: &str = "x509-svid";
const JWT_USE: &str = "jwt-svid";
const WIT_USE: &str = "wit-svid";

/// A bundle as it was read, and what was skipped on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub bundle: Bundle,
    pub skipped: Vec<Skipped>,
}

/// An element of `keys` that was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its place in `keys`, from 0.
    pub index: usize,
    pub reason: String,
}

/// Which authorities a document holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    pub x509: bool,
    pub jwt: bool,
    pub wit: bool,
    /// A JWK Set of RFC 7517 only: no `use`, no members of SPIFFE.
    pub plain: bool,
}

/// Why a document cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("bundle document has {0} bytes; at most 16777216 are read")]
    TooLong(usize),
    #[error("bundle document is not JSON of the SPIFFE bundle format: {0}")]
    NotJson(String),
    #[error("bundle document has no member \"keys\"; it must be an array, empty if there is no authority")]
    NoKeys,
    #[error("member {name:?} of the bundle document is not {expected}")]
    WrongMember { name: &'static str, expected: &'static str },
    #[error("element {index} of \"keys\" is wrong: {cause}")]
    WrongElement { index: usize, cause: String },
    #[error("two different keys of the bundle have the key ID {0:?}")]
    AmbiguousKeyId(String),
    #[error("bundle map names the trust domain {0:?} twice")]
    TrustDomainTwice(String),
    #[error("bundle map names the trust domain {name:?}: {cause}")]
    WrongTrustDomain { name: String, cause: SpiffeIdError },
    #[error("no PEM blocks of type CERTIFICATE found")]
    NoPem,
    #[error("PEM cannot be read: {0}")]
    WrongPem(String),
    #[error("the authority {authority} of {trust_domain} cannot be written as JSON: {cause}")]
    NotWritable { trust_domain: TrustDomain, authority: String, cause: String },
}

impl Content {
    /// Everything, in the SPIFFE bundle format.
    pub const ALL: Content = Content { x509: true, jwt: true, wit: true, plain: false };
    /// X.509 authorities alone, in the SPIFFE bundle format.
    pub const X509: Content = Content { x509: true, jwt: false, wit: false, plain: false };
    /// JWT keys alone, in the SPIFFE bundle format.
    pub const JWT: Content = Content { x509: false, jwt: true, wit: false, plain: false };
    /// JWT keys as a plain JWK Set: what the Workload API hands out.
    pub const PLAIN_JWT: Content = Content { x509: false, jwt: true, wit: false, plain: true };
    /// WIT keys as a plain JWK Set.
    pub const PLAIN_WIT: Content = Content { x509: false, jwt: false, wit: true, plain: true };
}

/// Writes the bundle as JSON, indented by four spaces, without a line end behind it.
pub fn to_json(bundle: &Bundle) -> Result<String, DocumentError> {
    to_json_of(bundle, Content::ALL)
}

/// Writes part of the bundle as JSON. See [`to_json`].
pub fn to_json_of(bundle: &Bundle, content: Content) -> Result<String, DocumentError> {
    let mut document = Map::new();
    document.insert("keys".into(), Value::Array(elements_of(bundle, content)?));
    if !content.plain {
        if bundle.sequence_number != 0 {
            document.insert("spiffe_sequence".into(), bundle.sequence_number.into());
        }
        if bundle.refresh_hint != 0 {
            document.insert("spiffe_refresh_hint".into(), bundle.refresh_hint.into());
        }
    }
    Ok(indented(&Value::Object(document)))
}

/// Reads the bundle of a trust domain from JSON. Elements that are not understood are skipped; see [`read`].
pub fn parse(trust_domain: &TrustDomain, json: &[u8]) -> Result<Bundle, DocumentError> {
    read(trust_domain, json).map(|document| document.bundle)
}

/// Reads the bundle of a trust domain from JSON, and says what was skipped. An empty bundle is no error: it takes all
/// trust from its trust domain.
pub fn read(trust_domain: &TrustDomain, json: &[u8]) -> Result<Document, DocumentError> {
    let document: Map<String, Value> = from_json(json)?;
    read_members(trust_domain, &document)
}

/// Reads a bundle map. Bundles are in the order of the document.
pub fn read_map(json: &[u8]) -> Result<Vec<Document>, DocumentError> {
    #[derive(serde::Deserialize)]
    struct BundleMap {
        trust_domains: Pairs,
    }
    let map: BundleMap = from_json(json)?;
    let mut names = HashSet::new();
    let mut documents = Vec::new();
    for (name, members) in map.trust_domains.0 {
        let wrong = |cause| DocumentError::WrongTrustDomain { name: name.clone(), cause };
        if name.contains('/') {
            return Err(wrong(SpiffeIdError::BadTrustDomainCharacter));
        }
        let trust_domain = TrustDomain::parse(&name).map_err(wrong)?;
        if !names.insert(name.clone()) {
            return Err(DocumentError::TrustDomainTwice(name));
        }
        documents.push(read_members(&trust_domain, &members)?);
    }
    Ok(documents)
}

/// Writes the X.509 authorities as PEM certificates.
pub fn to_pem(bundle: &Bundle) -> String {
    bundle.x509_authorities.iter().map(|authority| certificate_pem(&authority.der)).collect()
}

/// Writes one DER certificate as PEM.
pub fn certificate_pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in encoded.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}

/// Reads a bundle of X.509 authorities from PEM. Text around the blocks and blocks of other types are skipped; at least
/// one certificate is needed.
pub fn from_pem(trust_domain: &TrustDomain, pem: &[u8]) -> Result<Bundle, DocumentError> {
    let mut bundle = Bundle::new(trust_domain.clone());
    for certificate in certificates_from_pem(pem)? {
        add_x509(&mut bundle, certificate.to_vec());
    }
    Ok(bundle)
}

/// Reads PEM certificates in their order; at least one.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, DocumentError> {
    if pem.len() > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::TooLong(pem.len()));
    }
    let wrong = |cause: String| DocumentError::WrongPem(cause);
    let mut certificates = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|error| wrong(error.to_string()))?;
        AuthorityCertificate::read(&der).map_err(|error| wrong(error.to_string()))?;
        certificates.push(der);
    }
    if certificates.is_empty() { Err(DocumentError::NoPem) } else { Ok(certificates) }
}

fn elements_of(bundle: &Bundle, content: Content) -> Result<Vec<Value>, DocumentError> {
    let not_writable = |authority: String, cause: String| DocumentError::NotWritable {
        trust_domain: bundle.trust_domain.clone(),
        authority,
        cause,
    };
    let mut elements = Vec::new();
    if content.x509 {
        for authority in &bundle.x509_authorities {
            let certificate = AuthorityCertificate::read(&authority.der)
                .map_err(|fault| not_writable("certificate".into(), fault.to_string()))?;
            let key = PublicKey::from_der(certificate.public_key_der())
                .map_err(|fault| not_writable(certificate.authority_id(), fault.to_string()))?;
            let mut element = element_of(&key, (!content.plain).then_some(X509_USE), None);
            element.insert("x5c".into(), vec![STANDARD.encode(&authority.der)].into());
            elements.push(Value::Object(element));
        }
    }
    let kinds =
        [(content.jwt, JWT_USE, &bundle.jwt_authorities), (content.wit, WIT_USE, &bundle.wit_authorities)];
    for (_, key_use, authorities) in kinds.into_iter().filter(|(wanted, ..)| *wanted) {
        for authority in authorities {
            let key = PublicKey::from_der(&authority.public_key)
                .map_err(|fault| not_writable(authority.key_id.clone(), fault.to_string()))?;
            let key_use = (!content.plain).then_some(key_use);
            elements.push(Value::Object(element_of(&key, key_use, Some(&authority.key_id))));
        }
    }
    Ok(elements)
}

fn element_of(key: &PublicKey, key_use: Option<&str>, key_id: Option<&str>) -> Map<String, Value> {
    let mut element = Map::new();
    if let Some(key_use) = key_use {
        element.insert("use".into(), key_use.into());
    }
    element.insert("kty".into(), key.kind().into());
    if let Some(key_id) = key_id {
        element.insert("kid".into(), key_id.into());
    }
    for (name, value) in key.members() {
        element.insert(name.into(), value.into());
    }
    element
}

fn indented(value: &Value) -> String {
    let mut json = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(b"    "));
    // Writing a value into memory cannot fail: it has no keys but texts.
    if value.serialize(&mut serializer).is_err() {
        return String::new();
    }
    // Go writes these as escapes; outside of texts they do not occur.
    String::from_utf8_lossy(&json)
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn from_json<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, DocumentError> {
    if json.len() > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::TooLong(json.len()));
    }
    serde_json::from_slice(json).map_err(|error| DocumentError::NotJson(error.to_string()))
}

fn read_members(
    trust_domain: &TrustDomain,
    document: &Map<String, Value>,
) -> Result<Document, DocumentError> {
    let keys = document.get("keys").ok_or(DocumentError::NoKeys)?;
    let keys = keys.as_array().ok_or(DocumentError::WrongMember { name: "keys", expected: "an array" })?;
    let mut bundle = Bundle::new(trust_domain.clone());
    if let Some(sequence) = number(document, "spiffe_sequence") {
        bundle.sequence_number = sequence.as_u64().ok_or(DocumentError::WrongMember {
            name: "spiffe_sequence",
            expected: "an integer from 0 to 18446744073709551615",
        })?;
    }
    if let Some(hint) = number(document, "spiffe_refresh_hint") {
        bundle.refresh_hint = hint.as_i64().filter(|hint| *hint >= 0).ok_or(DocumentError::WrongMember {
            name: "spiffe_refresh_hint",
            expected: "a number of whole seconds",
        })?;
    }
    let mut skipped = Vec::new();
    for (index, element) in keys.iter().enumerate() {
        match read_element(element, &mut bundle) {
            Ok(()) => {}
            Err(ElementFault::Skip(reason)) => skipped.push(Skipped { index, reason }),
            Err(ElementFault::Wrong(cause)) => return Err(DocumentError::WrongElement { index, cause }),
            Err(ElementFault::AmbiguousKeyId(key_id)) => return Err(DocumentError::AmbiguousKeyId(key_id)),
        }
    }
    Ok(Document { bundle, skipped })
}

fn number<'a>(document: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    document.get(name).filter(|value| !value.is_null())
}

enum ElementFault {
    Skip(String),
    Wrong(String),
    AmbiguousKeyId(String),
}

fn read_element(element: &Value, bundle: &mut Bundle) -> Result<(), ElementFault> {
    let Some(jwk) = element.as_object() else {
        return Err(ElementFault::Wrong("it is not an object".into()));
    };
    let key_use = match jwk.get("use").and_then(Value::as_str) {
        Some(known @ (X509_USE | JWT_USE | WIT_USE)) => known,
        Some(other) => return Err(ElementFault::Skip(format!("\"use\" {other:?} is not known"))),
        None => return Err(ElementFault::Skip("it has no \"use\"".into())),
    };
    let key = PublicKey::from_jwk(jwk)?;
    if key_use == X509_USE {
        let der = certificate_of(jwk, &key)?;
        add_x509(bundle, der);
        return Ok(());
    }
    let key_id = jwk.get("kid").and_then(Value::as_str).filter(|key_id| !key_id.is_empty());
    let key_id = key_id.ok_or_else(|| ElementFault::Wrong("it has no \"kid\"".into()))?;
    add_key(bundle, key_use, key_id, &key)
}

/// The certificate of an element for X.509, which must be a CA's and hold the element's own key.
fn certificate_of(jwk: &Map<String, Value>, key: &PublicKey) -> Result<Vec<u8>, ElementFault> {
    let wrong = |cause: String| ElementFault::Wrong(cause);
    let chain = match jwk.get("x5c") {
        None => return Err(ElementFault::Skip("it has no \"x5c\"".into())),
        Some(chain) => chain.as_array().ok_or_else(|| wrong("\"x5c\" is not an array".into()))?,
    };
    // §4.2.4: only the first counts.
    let Some(first) = chain.first() else { return Err(ElementFault::Skip("\"x5c\" is empty".into())) };
    let der = first.as_str().and_then(|text| STANDARD.decode(text).ok());
    let der = der.ok_or_else(|| wrong("\"x5c\" does not hold base64".into()))?;
    let certificate = AuthorityCertificate::read(&der).map_err(|fault| wrong(format!("\"x5c\": {fault}")))?;
    if PublicKey::from_der(certificate.public_key_der()).as_ref() != Ok(key) {
        return Err(wrong("the key of the certificate in \"x5c\" is not the key of the element".into()));
    }
    if !certificate.is_ca() {
        return Err(wrong("the certificate in \"x5c\" is not a CA's".into()));
    }
    Ok(der)
}

fn add_x509(bundle: &mut Bundle, der: Vec<u8>) {
    if !bundle.x509_authorities.iter().any(|present| present.der == der) {
        bundle.x509_authorities.push(X509Authority { der, tainted: false });
    }
}

fn add_key(bundle: &mut Bundle, key_use: &str, key_id: &str, key: &PublicKey) -> Result<(), ElementFault> {
    let ambiguous = || ElementFault::AmbiguousKeyId(key_id.to_owned());
    let (same, other) = match key_use {
        JWT_USE => (&mut bundle.jwt_authorities, &bundle.wit_authorities),
        _ => (&mut bundle.wit_authorities, &bundle.jwt_authorities),
    };
    if other.iter().any(|present| present.key_id == key_id) {
        return Err(ambiguous());
    }
    let public_key = key.to_der();
    match same.iter().find(|present| present.key_id == key_id) {
        Some(present) if present.public_key == public_key => {}
        Some(_) => return Err(ambiguous()),
        None => {
            same.push(JwtAuthority { key_id: key_id.to_owned(), public_key, expires_at: 0, tainted: false })
        }
    }
    Ok(())
}

impl From<KeyFault> for ElementFault {
    fn from(fault: KeyFault) -> ElementFault {
        match fault {
            KeyFault::NotSupported(reason) => ElementFault::Skip(reason),
            KeyFault::Wrong(cause) => ElementFault::Wrong(cause),
        }
    }
}

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (KeyFault::NotSupported(text) | KeyFault::Wrong(text)) = self;
        f.write_str(text)
    }
}

/// The members of an object with repeated names kept, which a map would lose.
struct Pairs(Vec<(String, Map<String, Value>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of bundles by trust domain name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}
