//! Deciding whether a peer's certificate chain proves its SPIFFE ID (X509-SVID.md §5).
//!
//! Path building and signatures are webpki's. What webpki does not do is done here: exactly one SPIFFE ID, the rules
//! for leaf and signing certificates, expired authorities, and the path length limit of an authority. Any extended key
//! usage will do and host names play no part, as in go-spiffe.
//!
//! Known gap: webpki refuses every chain in which a certificate has a name constraint for URIs, even one that permits
//! the leaf's trust domain ([`PeerError::NameConstraint`]).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};

use crate::signature::ACCEPTED;
use crate::spiffe_id::SpiffeId;
use crate::x509_svid::{AuthorityCertificate, X509Svid, X509SvidError};

/// Why a peer is not believed. The texts of the usual causes contain those of Go's crypto/x509, which agents and
/// operators look for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    NotAnSvid(#[from] X509SvidError),
    #[error("x509: certificate signed by unknown authority: {id} ({detail})")]
    UnknownAuthority { id: SpiffeId, detail: String },
    #[error(
        "x509: certificate has expired or is not yet valid: a certificate in the chain of {id} has expired"
    )]
    Expired { id: SpiffeId },
    #[error(
        "x509: certificate has expired or is not yet valid: a certificate in the chain of {id} is not yet valid; compare the clocks of both machines"
    )]
    NotYetValid { id: SpiffeId },
    #[error(
        "x509: certificate has expired or is not yet valid: the authority that signed the chain of {id} is outside its validity; fetch the bundle of its trust domain again"
    )]
    AuthorityNotValid { id: SpiffeId },
    #[error(
        "the chain of {id} has a name constraint that excludes it or that is for URIs, which Finial does not support; use authorities without URI name constraints"
    )]
    NameConstraint { id: SpiffeId },
    #[error("the chain of {id} cannot be verified: {detail}")]
    Path { id: SpiffeId, detail: String },
}

/// Verifies a chain (DER, leaf first) against the X.509 authorities (DER, one certificate each) of the *leaf's* trust
/// domain. The caller picks those: see [`crate::x509_svid::leaf_id`].
pub fn verify<A: AsRef<[u8]>>(
    chain: &[CertificateDer<'_>],
    authorities: &[A],
    now: SystemTime,
) -> Result<X509Svid, PeerError> {
    let svid = X509Svid::read(chain.iter().map(|der| der.clone().into_owned()).collect())?;
    verify_svid(&svid, authorities, now)?;
    Ok(svid)
}

/// Verifies a chain that was read already. See [`verify`].
pub fn verify_svid<A: AsRef<[u8]>>(
    svid: &X509Svid,
    authorities: &[A],
    now: SystemTime,
) -> Result<(), PeerError> {
    let ders: Vec<CertificateDer<'_>> =
        authorities.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
    let all: Vec<Anchor<'_>> = ders.iter().filter_map(Anchor::read).collect();
    let (valid, stale): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|anchor| anchor.certificate.is_valid_at(now));

    let Err(error) = verify_path(svid, &valid, now) else { return Ok(()) };
    let is_unknown = matches!(error, PeerError::UnknownAuthority { .. });
    if is_unknown && !stale.is_empty() && verify_path(svid, &stale, now).is_ok() {
        return Err(PeerError::AuthorityNotValid { id: svid.id().clone() });
    }
    Err(error)
}

/// The certificates of a chain, leaf first, followed by the authority (of these, DER) that signed its last one; None when
/// none of them did. For showing: nothing is verified but that last signature.
pub fn path<A: AsRef<[u8]>>(svid: &X509Svid, authorities: &[A]) -> Option<Vec<AuthorityCertificate>> {
    let read = |der: &[u8]| AuthorityCertificate::read(der).ok();
    let mut path = svid.chain().iter().map(|der| read(der)).collect::<Option<Vec<_>>>()?;
    let last = path.last()?;
    let root = authorities
        .iter()
        .filter_map(|der| read(der.as_ref()))
        .find(|root| root.subject_der() == last.issuer_der() && last.was_signed_by(root))?;
    path.push(root);
    Some(path)
}

struct Anchor<'a> {
    trust: TrustAnchor<'a>,
    certificate: AuthorityCertificate,
}

impl<'a> Anchor<'a> {
    /// Certificates that cannot be authorities vouch for nobody.
    fn read(der: &'a CertificateDer<'_>) -> Option<Anchor<'a>> {
        let certificate = AuthorityCertificate::read(der).ok().filter(AuthorityCertificate::can_sign)?;
        let trust = webpki::anchor_from_trusted_cert(der).ok()?;
        Some(Anchor { trust, certificate })
    }
}

pub(crate) struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn verify_path(svid: &X509Svid, anchors: &[Anchor<'_>], now: SystemTime) -> Result<(), PeerError> {
    let id = || svid.id().clone();
    if anchors.is_empty() {
        let detail =
            format!("the bundle of {} holds no usable X.509 authority", svid.id().trust_domain_name());
        return Err(PeerError::UnknownAuthority { id: id(), detail });
    }
    let trusted: Vec<TrustAnchor<'_>> = anchors.iter().map(|anchor| anchor.trust.clone()).collect();
    let leaf = EndEntityCert::try_from(svid.leaf_der())
        .map_err(|error| PeerError::Path { id: id(), detail: error.to_string() })?;
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);

    // webpki takes an anchor as a name and a key; the limit that its certificate sets is checked here.
    let check_limit = |path: &VerifiedPath<'_>| {
        let position = trusted.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let limit = position.and_then(|index| anchors[index].certificate.path_len());
        let intermediates = path.intermediate_certificates().count();
        match limit {
            Some(limit) if intermediates as u64 > limit => Err(webpki::Error::PathLenConstraintViolated),
            _ => Ok(()),
        }
    };
    leaf.verify_for_usage(
        ACCEPTED,
        &trusted,
        &svid.chain()[1..],
        UnixTime::since_unix_epoch(since_epoch),
        AnyUsage,
        None,
        Some(&check_limit),
    )
    .map(|_| ())
    .map_err(|error| explain(error, id()))
}

/// All authorities of a trust domain may bear the same name, so a signature that fails under each of them says the
/// same as a name that none of them bears.
fn explain(error: webpki::Error, id: SpiffeId) -> PeerError {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => PeerError::Expired { id },
        Error::CertNotValidYet { .. } => PeerError::NotYetValid { id },
        Error::NameConstraintViolation => PeerError::NameConstraint { id },
        Error::UnknownIssuer => {
            PeerError::UnknownAuthority { id, detail: "no authority of its trust domain signed it".into() }
        }
        Error::InvalidSignatureForPublicKey
        | Error::SignatureAlgorithmMismatch
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            PeerError::UnknownAuthority { id, detail: error.to_string() }
        }
        _ => PeerError::Path { id, detail: error.to_string() },
    }
}
