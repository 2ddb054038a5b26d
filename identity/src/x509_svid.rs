//! X509-SVIDs (X509-SVID.md) and the certificates of those who sign them.

mod authority;

use std::sync::Arc;
use std::time::SystemTime;

use const_oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use rustls_pki_types::CertificateDer;

pub use authority::{AuthorityCertificate, AuthorityFault};

pub use crate::certificate::Malformed;
use crate::certificate::{Certificate, SubjectAltName, split};
use crate::spiffe_id::{SpiffeId, SpiffeIdError};

/// A certificate chain, leaf first, whose leaf is an X509-SVID.
///
/// Holding one means that the leaf obeys the rules that a validator must hold it to (X509-SVID.md §5.2) and that the
/// other certificates may sign. It does *not* mean that anybody trusts it: see [`crate::peer`]. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Svid {
    chain: Arc<[CertificateDer<'static>]>,
    id: SpiffeId,
    leaf: Arc<Certificate>,
}

/// Why a chain is not an X509-SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum X509SvidError {
    #[error("certificate chain is empty")]
    Empty,
    /// `position` counts from 0, the leaf.
    #[error("certificate {position} of the chain cannot be read: {cause}")]
    Malformed { position: usize, cause: Malformed },
    #[error("certificate contains no URI SAN")]
    NoUri,
    #[error("certificate contains more than one URI SAN")]
    ManyUris,
    #[error("certificate contains an invalid SPIFFE ID {uri:?}: {cause}")]
    InvalidId { uri: String, cause: SpiffeIdError },
    /// X509-SVID.md §3.1: only signing certificates have an ID without a path.
    #[error("leaf certificate has a SPIFFE ID without a path")]
    NoPath,
    #[error("leaf certificate with CA flag set to true")]
    LeafIsCa,
    #[error("leaf certificate with KeyCertSign key usage")]
    LeafSignsCertificates,
    #[error("leaf certificate with KeyCrlSign key usage")]
    LeafSignsCrls,
    #[error("certificate {position} of the chain is no signing certificate: CA flag is not set")]
    IntermediateNotCa { position: usize },
    #[error(
        "certificate {position} of the chain is no signing certificate: KeyCertSign key usage is not set"
    )]
    IntermediateCannotSign { position: usize },
}

/// What an issuer must or should do and this one did not (X509-SVID.md §2, §4). A validator may tolerate these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerFault {
    #[error("basic constraints are missing")]
    NoBasicConstraints,
    #[error("key usage is missing")]
    NoKeyUsage,
    #[error("key usage is not critical")]
    KeyUsageNotCritical,
    #[error("key usage lacks digitalSignature")]
    NoDigitalSignature,
    #[error("extended key usage lacks serverAuth or clientAuth")]
    ExtendedKeyUsageIncomplete,
    #[error("subject is empty but the subject alternative name is not critical")]
    SubjectAltNameNotCritical,
}

impl X509Svid {
    /// Reads a chain of DER certificates, leaf first, and checks it as an SVID.
    pub fn read(chain: Vec<CertificateDer<'static>>) -> Result<X509Svid, X509SvidError> {
        let mut certificates = chain.iter().enumerate().map(|(position, der)| {
            Certificate::read(der).map_err(|cause| X509SvidError::Malformed { position, cause })
        });
        let leaf = certificates.next().ok_or(X509SvidError::Empty)??;
        let id = check_leaf(&leaf)?;
        for (position, signer) in certificates.enumerate().map(|(index, signer)| (index + 1, signer)) {
            let signer = signer?;
            if !signer.is_ca() {
                return Err(X509SvidError::IntermediateNotCa { position });
            }
            if !signer.extensions.key_usage.is_some_and(|usage| usage.key_cert_sign()) {
                return Err(X509SvidError::IntermediateCannotSign { position });
            }
        }
        Ok(X509Svid { chain: chain.into(), id, leaf: Arc::new(leaf) })
    }

    /// Reads DER certificates that follow one another without separators, leaf first, as in the Workload API.
    pub fn parse_concatenated(der: &[u8]) -> Result<X509Svid, X509SvidError> {
        let chain = split(der).map_err(|cause| X509SvidError::Malformed { position: 0, cause })?;
        X509Svid::read(chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect())
    }

    /// The SPIFFE ID of the leaf.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// All certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// All certificates, leaf first, one behind the other without separators.
    pub fn concatenated(&self) -> Vec<u8> {
        self.chain.iter().flat_map(|der| der.as_ref()).copied().collect()
    }

    /// The leaf.
    pub fn leaf_der(&self) -> &CertificateDer<'static> {
        // A chain without a leaf is refused when it is read.
        &self.chain[0]
    }

    /// The leaf's serial number: big-endian, without leading zeros.
    pub fn serial(&self) -> &[u8] {
        &self.leaf.serial
    }

    /// The leaf's serial number in decimal, as the API and the tables have it.
    pub fn serial_decimal(&self) -> String {
        decimal(&self.leaf.serial)
    }

    /// Start of the leaf's validity.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// End of the leaf's validity.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// The leaf's SubjectPublicKeyInfo, DER, byte for byte.
    pub fn public_key_der(&self) -> &[u8] {
        &self.leaf.public_key
    }

    /// The leaf's subject, DER, byte for byte.
    pub fn subject_der(&self) -> &[u8] {
        &self.leaf.subject
    }

    /// The leaf's DNS names in the order of the certificate.
    pub fn dns_names(&self) -> &[String] {
        self.leaf.extensions.subject_alt_name.as_ref().map_or(&[], |names| &names.dns_names)
    }

    /// The key identifier of whoever signed the leaf: lowercase hex, if the leaf has it.
    pub fn authority_key_id(&self) -> Option<String> {
        self.leaf.extensions.authority_key_id.as_ref().map(hex::encode)
    }

    /// What the issuer should have done better. Empty for an SVID that obeys X509-SVID.md to the letter.
    pub fn issuer_faults(&self) -> Vec<IssuerFault> {
        let extensions = &self.leaf.extensions;
        let mut faults = Vec::new();
        if extensions.basic_constraints.is_none() {
            faults.push(IssuerFault::NoBasicConstraints);
        }
        match extensions.key_usage {
            None => faults.push(IssuerFault::NoKeyUsage),
            Some(usage) => {
                if !usage.critical {
                    faults.push(IssuerFault::KeyUsageNotCritical);
                }
                if !usage.digital_signature() {
                    faults.push(IssuerFault::NoDigitalSignature);
                }
            }
        }
        if let Some(usages) = &extensions.extended_key_usage
            && !(usages.contains(&ID_KP_SERVER_AUTH) && usages.contains(&ID_KP_CLIENT_AUTH))
        {
            faults.push(IssuerFault::ExtendedKeyUsageIncomplete);
        }
        let empty_subject = self.leaf.subject == [0x30, 0];
        if empty_subject && !extensions.subject_alt_name.as_ref().is_some_and(|names| names.critical) {
            faults.push(IssuerFault::SubjectAltNameNotCritical);
        }
        faults
    }
}

/// The SPIFFE ID of a leaf certificate, for finding the bundle that must judge it. Nothing else is checked.
pub fn leaf_id(leaf_der: &[u8]) -> Result<SpiffeId, X509SvidError> {
    let leaf =
        Certificate::read(leaf_der).map_err(|cause| X509SvidError::Malformed { position: 0, cause })?;
    single_id(leaf.extensions.subject_alt_name.as_ref())
}

/// Splits DER certificates that follow one another without separators.
pub fn split_concatenated(der: &[u8]) -> Result<Vec<CertificateDer<'static>>, Malformed> {
    Ok(split(der)?.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect())
}

/// A big-endian number of any size in decimal.
pub fn decimal(big_endian: &[u8]) -> String {
    // Groups of nine digits, least first.
    let mut groups = vec![0_u64];
    for byte in big_endian {
        let mut carry = u64::from(*byte);
        for group in &mut groups {
            let value = *group * 256 + carry;
            *group = value % 1_000_000_000;
            carry = value / 1_000_000_000;
        }
        if carry > 0 {
            groups.push(carry);
        }
    }
    let mut text = String::new();
    for (index, group) in groups.iter().rev().enumerate() {
        text.push_str(&if index == 0 { group.to_string() } else { format!("{group:09}") });
    }
    text
}

fn check_leaf(leaf: &Certificate) -> Result<SpiffeId, X509SvidError> {
    let id = single_id(leaf.extensions.subject_alt_name.as_ref())?;
    if leaf.is_ca() {
        return Err(X509SvidError::LeafIsCa);
    }
    if let Some(usage) = leaf.extensions.key_usage {
        if usage.key_cert_sign() {
            return Err(X509SvidError::LeafSignsCertificates);
        }
        if usage.crl_sign() {
            return Err(X509SvidError::LeafSignsCrls);
        }
    }
    if id.path().is_empty() {
        return Err(X509SvidError::NoPath);
    }
    Ok(id)
}

fn single_id(names: Option<&SubjectAltName>) -> Result<SpiffeId, X509SvidError> {
    match names.map_or(&[][..], |names| &names.uris) {
        [] => Err(X509SvidError::NoUri),
        [uri] => SpiffeId::parse(uri)
            .map_err(|cause| X509SvidError::InvalidId { uri: uri.chars().take(200).collect(), cause }),
        _ => Err(X509SvidError::ManyUris),
    }
}
