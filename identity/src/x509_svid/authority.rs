//! Certificates that sign SVIDs.

use std::time::SystemTime;

use crate::certificate::{Certificate, Malformed};
use crate::distinguished_name;
use crate::signature;
use crate::trust_domain::TrustDomain;

/// A CA certificate, taken apart.
///
/// Reading does not judge: bundles may hold roots of all kinds. [`check_for`](AuthorityCertificate::check_for) says
/// whether it may sign for a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityCertificate {
    certificate: Certificate,
}

/// Why a certificate cannot be an X.509 authority of a trust domain (X509-SVID.md §3.2, §4).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityFault {
    #[error("basic constraints are not valid")]
    NoBasicConstraints,
    #[error("cA constraint is not set")]
    NotCa,
    #[error("keyCertSign key usage must be set")]
    CannotSign,
    #[error("only keyCertSign, cRLSign, or digitalSignature key usage can be set")]
    OtherKeyUsage,
    #[error("expected URI SAN {expected:?} but got {found:?}")]
    OtherId { expected: String, found: Vec<String> },
}

impl AuthorityCertificate {
    /// Reads one DER certificate.
    pub fn read(der: &[u8]) -> Result<AuthorityCertificate, Malformed> {
        Ok(AuthorityCertificate { certificate: Certificate::read(der)? })
    }

    /// The key identifier that names this authority in the API: lowercase hex of the subject key identifier, empty if
    /// the certificate has none.
    pub fn authority_id(&self) -> String {
        self.subject_key_id().map(hex::encode).unwrap_or_default()
    }

    /// The key identifier of whoever signed it: lowercase hex, empty if the certificate does not say.
    pub fn upstream_authority_id(&self) -> String {
        self.authority_key_id().map(hex::encode).unwrap_or_default()
    }

    /// The subject key identifier.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.certificate.extensions.subject_key_id.as_deref()
    }

    /// The authority key identifier.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.certificate.extensions.authority_key_id.as_deref()
    }

    /// The subject, DER, byte for byte: what must stand as issuer in what it signs.
    pub fn subject_der(&self) -> &[u8] {
        &self.certificate.subject
    }

    /// The subject for people, in Go's form: `O=SPIRE,C=US`.
    pub fn subject_text(&self) -> String {
        distinguished_name::text(self.subject_der())
    }

    /// The issuer, DER, byte for byte.
    pub fn issuer_der(&self) -> &[u8] {
        &self.certificate.issuer
    }

    /// The SubjectPublicKeyInfo, DER, byte for byte.
    pub fn public_key_der(&self) -> &[u8] {
        &self.certificate.public_key
    }

    /// The serial number in decimal.
    pub fn serial_decimal(&self) -> String {
        super::decimal(&self.certificate.serial)
    }

    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        self.certificate.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.certificate.not_after
    }

    /// The URI SANs.
    pub fn uris(&self) -> &[String] {
        self.certificate.extensions.subject_alt_name.as_ref().map_or(&[], |names| &names.uris)
    }

    /// The URI SAN, if there is exactly one.
    pub fn uri(&self) -> Option<&str> {
        match self.uris() {
            [uri] => Some(uri),
            _ => None,
        }
    }

    /// Whether the CA flag is set.
    pub fn is_ca(&self) -> bool {
        self.certificate.is_ca()
    }

    /// Whether it may sign certificates: CA flag, and keyCertSign unless there is no key usage at all.
    pub fn can_sign(&self) -> bool {
        self.is_ca() && self.certificate.extensions.key_usage.is_none_or(|usage| usage.key_cert_sign())
    }

    /// The most intermediates that may stand between it and a leaf, if it sets a limit.
    pub fn path_len(&self) -> Option<u64> {
        self.certificate.extensions.basic_constraints.and_then(|constraints| constraints.path_len)
    }

    /// Whether the time lies within the validity, both ends included.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.not_before()..=self.not_after()).contains(&now)
    }

    /// Whether it names itself as issuer and its own key signed it.
    pub fn is_self_signed(&self) -> bool {
        self.subject_der() == self.issuer_der() && self.was_signed_by(self)
    }

    /// Whether the other's key made the signature. Names and validity are not looked at.
    pub fn was_signed_by(&self, other: &AuthorityCertificate) -> bool {
        signature::verify(
            other.public_key_der(),
            &self.certificate.signature_algorithm,
            &self.certificate.tbs,
            &self.certificate.signature,
        )
        .is_ok()
    }

    /// Checks that it may sign SVIDs of the trust domain. The URI SAN may be absent, as in roots of other makers.
    pub fn check_for(&self, trust_domain: &TrustDomain) -> Result<(), AuthorityFault> {
        let extensions = &self.certificate.extensions;
        if extensions.basic_constraints.is_none() {
            return Err(AuthorityFault::NoBasicConstraints);
        }
        if !self.is_ca() {
            return Err(AuthorityFault::NotCa);
        }
        let usage = extensions.key_usage.filter(|usage| usage.key_cert_sign());
        if !usage.ok_or(AuthorityFault::CannotSign)?.is_for_signing_only() {
            return Err(AuthorityFault::OtherKeyUsage);
        }
        let expected = trust_domain.id();
        match self.uris() {
            [] => Ok(()),
            [uri] if uri == expected.as_str() => Ok(()),
            found => Err(AuthorityFault::OtherId { expected: expected.to_string(), found: found.to_vec() }),
        }
    }
}
