//! Bundles as text: PEM certificates, or a document of the SPIFFE bundle format.

use std::io::{self, Read};

use finial_daemon::argv::text;
use finial_identity::TrustDomain;
use finial_identity::bundle::document::{self, DocumentError, certificate_pem};
use finial_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use finial_proto::spire::api::types::{Bundle as WireBundle, JwtKey, X509Certificate};

use crate::cli::output::{Failure, fail};

/// `-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Pem,
    Spiffe,
}

impl Format {
    /// `pem` or `spiffe` in any case; empty is `pem`.
    pub fn parse(given: &str) -> Result<Format, Failure> {
        let lower = given.to_lowercase();
        match lower.as_str() {
            "" | "pem" => Ok(Format::Pem),
            "spiffe" => Ok(Format::Spiffe),
            _ => Err(fail(format!("invalid format: {}", text::quote(&lower)))),
        }
    }

    /// The bundle as text.
    pub fn show(self, bundle: &WireBundle) -> Result<String, Failure> {
        match self {
            Format::Pem => {
                let certificates = bundle.x509_authorities.iter();
                Ok(certificates.map(|authority| certificate_pem(&authority.asn1)).collect())
            }
            Format::Spiffe => {
                let json = document::to_json(&from_wire(bundle)?);
                Ok(format!("{}\n", json.map_err(|error| fail(error.to_string()))?))
            }
        }
    }

    /// A bundle out of a file, and what the operator should know of it.
    pub fn read(self, id: &str, bytes: &[u8]) -> Result<(WireBundle, String), Failure> {
        match self {
            Format::Pem => {
                let certificates = certificates(bytes)
                    .map_err(|cause| fail(format!("unable to parse bundle data: {cause}")))?;
                let x509_authorities = certificates.into_iter().map(wire_certificate).collect();
                let trust_domain = id.to_owned();
                Ok((WireBundle { trust_domain, x509_authorities, ..WireBundle::default() }, String::new()))
            }
            Format::Spiffe => {
                let trust_domain = TrustDomain::parse(id)?;
                let wrong =
                    |cause: String| fail(format!("unable to parse to spiffe bundle: spiffebundle: {cause}"));
                let document = document::read(&trust_domain, bytes).map_err(|error| match error {
                    DocumentError::NoKeys => wrong("no authorities found".to_owned()),
                    error => wrong(format!("unable to parse JWKS: {error}")),
                })?;
                let skipped: Vec<String> = document
                    .skipped
                    .iter()
                    .map(|skipped| format!("element {} of \"keys\": {}", skipped.index, skipped.reason))
                    .collect();
                let bundle = document.bundle;
                // To set nothing because nothing was understood would take all trust from the trust domain.
                let is_empty = bundle.x509_authorities.is_empty() && bundle.jwt_authorities.is_empty();
                if is_empty && !skipped.is_empty() {
                    return Err(wrong(format!("no authority is understood: {}", skipped.join("; "))));
                }
                let warnings = skipped.iter().map(|skipped| format!("Warning: left out: {skipped}\n"));
                Ok((to_wire(bundle), warnings.collect()))
            }
        }
    }
}

/// All that there is, or one byte more than a document may have: the rest would be refused anyhow.
pub fn read_at_most(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(document::MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The certificates of a PEM file that holds nothing else.
fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    const BEGIN: &str = "-----BEGIN ";
    let text = String::from_utf8_lossy(pem);
    let labels = text.lines().filter_map(|line| line.trim_end().strip_prefix(BEGIN)?.strip_suffix("-----"));
    let mut count = 0;
    for label in labels {
        if label != "CERTIFICATE" {
            return Err(format!("expected block type \"CERTIFICATE\"; got {}", text::quote(label)));
        }
        count += 1;
    }
    if count == 0 {
        return Err("no PEM blocks".to_owned());
    }
    let certificates = document::certificates_from_pem(pem).map_err(|error| match error {
        DocumentError::NoPem => "no PEM blocks".to_owned(),
        error if count == 1 => {
            format!("unable to parse \"CERTIFICATE\" PEM block 1: x509: malformed certificate: {error}")
        }
        error => format!("x509: malformed certificate: {error}"),
    })?;
    Ok(certificates.into_iter().map(|der| der.to_vec()).collect())
}

pub(super) fn wire_certificate(asn1: Vec<u8>) -> X509Certificate {
    X509Certificate { asn1, tainted: false }
}

fn to_wire(bundle: Bundle) -> WireBundle {
    let jwt_authorities = bundle.jwt_authorities.into_iter().map(|key| JwtKey {
        public_key: key.public_key,
        key_id: key.key_id,
        expires_at: key.expires_at,
        tainted: false,
    });
    let certificates = bundle.x509_authorities.into_iter();
    WireBundle {
        trust_domain: bundle.trust_domain.name().to_owned(),
        x509_authorities: certificates.map(|authority| wire_certificate(authority.der)).collect(),
        jwt_authorities: jwt_authorities.collect(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
        wit_authorities: Vec::new(),
    }
}

/// Without the keys for WITs, which SPIRE's command does not show either.
fn from_wire(wire: &WireBundle) -> Result<Bundle, Failure> {
    let mut bundle = Bundle::new(TrustDomain::parse(&wire.trust_domain)?);
    let certificates = wire.x509_authorities.iter();
    bundle.x509_authorities = certificates
        .map(|authority| X509Authority { der: authority.asn1.clone(), tainted: authority.tainted })
        .collect();
    bundle.jwt_authorities = wire
        .jwt_authorities
        .iter()
        .map(|key| JwtAuthority {
            key_id: key.key_id.clone(),
            public_key: key.public_key.clone(),
            expires_at: key.expires_at,
            tainted: key.tainted,
        })
        .collect();
    bundle.refresh_hint = wire.refresh_hint.max(0);
    bundle.sequence_number = wire.sequence_number;
    Ok(bundle)
}
