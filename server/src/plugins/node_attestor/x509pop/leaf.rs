//! The agent's certificate: what selectors, the agent's ID and the checks are made of.

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc4519;
use der::asn1::{BmpString, Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use der::{Decode, Encode, Tag, Tagged};
use finial_identity::chain::Link;
use finial_identity::possession::PublicKey;
use finial_identity::x509_svid::decimal;
use serde_json::{Map, Value, json};
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::time::Time;

/// A certificate that an agent showed, taken apart.
pub struct Leaf {
    pub link: Link,
    pub key: PublicKey,
    /// As written.
    pub uris: Vec<String>,
    pub addresses: Vec<IpAddr>,
    certificate: Certificate,
    dns_names: Vec<String>,
    emails: Vec<String>,
}

impl Leaf {
    /// Reads one DER certificate.
    ///
    /// # Errors
    ///
    /// In words, for whoever sent it.
    pub fn read(der: &[u8]) -> Result<Leaf, String> {
        let link = Link::read(der).map_err(|error| error.to_string())?;
        let certificate = Certificate::from_der(der).map_err(|error| error.to_string())?;
        let key = PublicKey::read(link.certificate().public_key_der()).map_err(|error| error.to_string())?;
        let mut leaf = Leaf {
            link,
            key,
            uris: Vec::new(),
            addresses: Vec::new(),
            dns_names: Vec::new(),
            emails: Vec::new(),
            certificate,
        };
        let names = leaf.certificate.tbs_certificate().get_extension::<SubjectAltName>();
        let names = names.map_err(|error| error.to_string())?.map_or(Vec::new(), |(_, names)| names.0);
        for name in names {
            match name {
                GeneralName::Rfc822Name(email) => leaf.emails.push(email.to_string()),
                GeneralName::DnsName(name) => leaf.dns_names.push(name.to_string()),
                GeneralName::UniformResourceIdentifier(uri) => leaf.uris.push(uri.to_string()),
                GeneralName::IpAddress(address) => leaf.addresses.push(ip(address.as_bytes())?),
                _ => {}
            }
        }
        Ok(leaf)
    }

    /// Lowercase hex of the SHA-1.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.link.der())
    }

    /// The subject's common name; the last, if there are several.
    pub fn common_name(&self) -> String {
        attributes(self.certificate.tbs_certificate().subject(), rfc4519::COMMON_NAME)
            .pop()
            .unwrap_or_default()
    }

    /// Lowercase hex with an even number of digits.
    pub fn serial_hex(&self) -> String {
        match self.serial() {
            [] => "00".to_owned(),
            serial => hex::encode(serial),
        }
    }

    /// Whether the key usage digitalSignature is set; not without the extension.
    pub fn is_for_signatures(&self) -> bool {
        self.key_usage() & 1 != 0
    }

    /// From URIs such as `x509pop://<trust domain>/<key>/<value>`, in their order; the last of a key counts.
    pub fn uri_selectors(&self, trust_domain: &str) -> Result<Vec<(String, String)>, String> {
        let mut selectors: Vec<(String, String)> = Vec::new();
        for uri in &self.uris {
            let Some((scheme, rest)) = uri.split_once(':') else { continue };
            let prefix = format!("//{trust_domain}/");
            let Some(path) = rest.strip_prefix(&prefix).filter(|_| scheme.eq_ignore_ascii_case("x509pop"))
            else {
                continue;
            };
            let path = path.split(['?', '#']).next().unwrap_or_default();
            let path = unescaped(path).ok_or_else(|| format!("x509: cannot parse URI {uri:?}"))?;
            match path.trim_matches('/').split_once('/') {
                Some((key, value)) => {
                    selectors.retain(|(known, _)| known != key);
                    selectors.push((key.to_owned(), value.to_owned()));
                }
                None => tracing::warn!(uri, "cannot extract x509pop san selectors from a URI"),
            }
        }
        Ok(selectors)
    }

    /// What a template may name of Go's `x509.Certificate`. Texts stand for values that Go prints as such: times, addresses,
    /// URIs, algorithms, the serial number.
    pub fn template_fields(&self) -> Map<String, Value> {
        let body = self.certificate.tbs_certificate();
        let constraints = body.get_extension::<BasicConstraints>().ok().flatten().map(|(_, found)| found);
        let subject_key_id = body.get_extension::<SubjectKeyIdentifier>().ok().flatten();
        let authority_key_id = body.get_extension::<AuthorityKeyIdentifier>().ok().flatten();
        let fields = json!({
            "Subject": name_fields(body.subject()),
            "Issuer": name_fields(body.issuer()),
            "SerialNumber": decimal(self.serial()),
            "Version": body.version() as u8 + 1,
            "NotBefore": go_time(&body.validity().not_before),
            "NotAfter": go_time(&body.validity().not_after),
            "KeyUsage": self.key_usage(),
            "BasicConstraintsValid": constraints.is_some(),
            "IsCA": constraints.as_ref().is_some_and(|found| found.ca),
            "MaxPathLen": constraints.and_then(|found| found.path_len_constraint).map_or(-1, i64::from),
            "PublicKeyAlgorithm": self.key_algorithm(),
            "SubjectKeyId": subject_key_id.map(|(_, id)| id.0.as_bytes().to_vec()).unwrap_or_default(),
            "AuthorityKeyId": authority_key_id
                .and_then(|(_, id)| id.key_identifier)
                .map(|id| id.as_bytes().to_vec())
                .unwrap_or_default(),
            "DNSNames": self.dns_names,
            "EmailAddresses": self.emails,
            "IPAddresses": self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "URIs": self.uris,
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    fn serial(&self) -> &[u8] {
        let mut serial = self.certificate.tbs_certificate().serial_number().as_bytes();
        while let [0, rest @ ..] = serial {
            serial = rest;
        }
        serial
    }

    fn key_usage(&self) -> u16 {
        let usage = self.certificate.tbs_certificate().get_extension::<KeyUsage>().ok().flatten();
        usage.map_or(0, |(_, usage)| usage.0.bits())
    }

    fn key_algorithm(&self) -> String {
        match &self.key {
            PublicKey::Rsa { .. } => "RSA".to_owned(),
            PublicKey::Ecdsa { .. } => "ECDSA".to_owned(),
            PublicKey::Ed25519 => "Ed25519".to_owned(),
            PublicKey::Other(_) => "0".to_owned(),
        }
    }
}

/// Lowercase hex of the SHA-1 of a certificate, DER.
pub fn fingerprint(der: &[u8]) -> String {
    hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
}

/// The fields of Go's `pkix.Name`.
fn name_fields(name: &Name) -> Value {
    let all = |id| attributes(name, id);
    let last = |id| attributes(name, id).pop().unwrap_or_default();
    json!({
        "CommonName": last(rfc4519::COMMON_NAME),
        "SerialNumber": last(SERIAL_NUMBER),
        "Country": all(rfc4519::COUNTRY_NAME),
        "Organization": all(rfc4519::ORGANIZATION_NAME),
        "OrganizationalUnit": all(rfc4519::ORGANIZATIONAL_UNIT_NAME),
        "Locality": all(rfc4519::LOCALITY_NAME),
        "Province": all(rfc4519::ST),
        "StreetAddress": all(rfc4519::STREET),
        "PostalCode": all(rfc4519::POSTAL_CODE),
    })
}

/// id-at-serialNumber.
const SERIAL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.5");

fn attributes(name: &Name, id: ObjectIdentifier) -> Vec<String> {
    name.iter()
        .filter(|attribute| attribute.oid == id)
        .filter_map(|attribute| text(&attribute.value))
        .collect()
}

fn text(value: &der::Any) -> Option<String> {
    let der = value.to_der().ok()?;
    match value.tag() {
        Tag::Utf8String => Utf8StringRef::from_der(&der).ok().map(|text| text.as_str().to_owned()),
        Tag::PrintableString => PrintableStringRef::from_der(&der).ok().map(|text| text.as_str().to_owned()),
        Tag::Ia5String => Ia5StringRef::from_der(&der).ok().map(|text| text.as_str().to_owned()),
        Tag::TeletexString => TeletexStringRef::from_der(&der).ok().map(|text| text.as_str().to_owned()),
        Tag::BmpString => BmpString::from_der(&der).ok().map(|text| text.to_string()),
        _ => None,
    }
}

fn ip(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(four.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(sixteen) => Ok(sixteen.into()),
        Err(_) => Err(format!("x509: cannot parse IP address of length {}", bytes.len())),
    }
}

/// As Go prints a `time.Time` in UTC.
fn go_time(time: &Time) -> String {
    let date = time.to_date_time();
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} +0000 UTC",
        date.year(),
        date.month(),
        date.day(),
        date.hour(),
        date.minutes(),
        date.seconds()
    )
}

fn unescaped(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit =
                    |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit(high)? << 4 | digit(low)?);
                after
            }
            (b'%', _) => return None,
            (byte, after) => {
                bytes.push(*byte);
                after
            }
        };
    }
    String::from_utf8(bytes).ok()
}
