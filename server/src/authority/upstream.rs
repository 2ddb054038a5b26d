//! A CA whose certificate comes from above. Nothing that comes from there is believed: it is read and checked as if a
//! stranger had sent it, before it is written down anywhere.

use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::keys::{self, Key, KeyError};
use finial_identity::x509_svid::{AuthorityCertificate, AuthorityFault, Malformed};
use rustls_pki_types::CertificateDer;
use x509_cert::der::Decode;
use x509_cert::name::Name;

use super::NewCa;
use super::chain::{self, ChainFault};
use super::issue::{self, IssueError};
use super::profile::Profiles;
use crate::plugins::upstream_authority::{UpstreamAuthority, UpstreamError};

/// Why no CA came from above, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamFault {
    #[error(transparent)]
    Authority(#[from] UpstreamError),
    #[error("the CSR for the upstream authority can not be made: {0}")]
    Csr(#[from] KeyError),
    #[error("{0}")]
    Issue(#[from] Box<IssueError>),
    #[error("the upstream authority returned a CA certificate that can not be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("the upstream authority returned a CA certificate for another key; look into its log")]
    OtherKey,
    #[error("the upstream authority returned no certificate")]
    Nothing,
    #[error("X509 CA minted by upstream authority is invalid: {0}")]
    Authorities(#[from] AuthorityFault),
    #[error("X509 CA minted by upstream authority is invalid: {0}")]
    Chain(#[from] ChainFault),
}

/// Asks `authority` for a CA certificate for `key`.
pub(super) async fn mint(
    authority: &dyn UpstreamAuthority,
    profiles: &Profiles,
    key: &Arc<Key>,
    now: SystemTime,
) -> Result<NewCa, UpstreamFault> {
    let wanted = profiles.upstream_csr(issue::serial().map_err(Box::new)?);
    let subject = Name::from_der(&wanted.subject).map_err(|error| KeyError::Request(error.to_string()))?;
    let csr = keys::csr(key, &subject, &[wanted.uri.as_str()]).await?;
    let minted = authority.mint_x509_ca(&csr, profiles.ca_ttl()).await?;

    let (first, above) = minted.chain.split_first().ok_or(UpstreamFault::Nothing)?;
    let certificate = AuthorityCertificate::read(first)?;
    if certificate.public_key_der() != key.public_key_der() {
        return Err(UpstreamFault::OtherKey);
    }
    certificate.check_for(profiles.trust_domain())?;
    let anchored = chain::check(&minted.chain, &minted.roots, 0, now)?;

    // Roots are in the bundle; a chain ends below them.
    let self_signed = |der: &CertificateDer<'_>| {
        AuthorityCertificate::read(der).is_ok_and(|certificate| certificate.is_self_signed())
    };
    let sent = above.iter().filter(|der| !(minted.roots.contains(der) && self_signed(der)));
    Ok(NewCa {
        above: std::iter::once(first).chain(sent).cloned().collect(),
        der: first.clone(),
        roots: minted.roots,
        ends: anchored.ends,
    })
}
