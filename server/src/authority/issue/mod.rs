//! The only code that signs certificates and tokens.
//!
//! There is one door for each kind of them. It asks for a proof that only the file which checked it can make
//! ([`Authorized`], [`Attested`], [`Renewable`], [`Granted`]), and for a signing request whose signature holds
//! ([`VerifiedCsr`]). What was signed is read back before anyone gets it; see [`read_back`].

mod file_key;
mod jwt;
mod read_back;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::keys::{Key, KeyError};
use finial_identity::bundle::Bundle;
use finial_identity::csr::VerifiedCsr;
use finial_identity::peer::PeerError;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use finial_identity::x509_svid::{AuthorityCertificate, X509Svid};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use x509_cert::der::Encode;

pub use file_key::{FileKey, FileKeyFault};
pub use jwt::{ActiveJwtKey, IssuedJwt, JwtReadBackFault};
pub use read_back::ReadBackFault;

use jwt::JwtSigner;

use super::der::{self, tlv};
use super::profile::{self, Intent, MintIntent, Occasion, Parent, ProfileError, Profiles, Serial};
use crate::access::permit::Granted;
use crate::agents::attest::Attested;
use crate::agents::renew::Renewable;
use crate::entries::authorized::Authorized;
use crate::store::issued::{IssuedKind, IssuedLog, IssuedRecord, key_fingerprint};

/// The calls whose permits open the doors of [`Issuer::minted_x509`] and [`Issuer::downstream_ca`].
const MINT: &str = "/spire.api.server.svid.v1.SVID/MintX509SVID";
const DOWNSTREAM: &str = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA";

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("X509 CA is not available for signing")]
    NoAuthority,
    #[error("JWT key is not available for signing")]
    NoJwtKey,
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("the CA key can not sign: {0}")]
    Key(#[from] KeyError),
    #[error("the upstream key can not sign: {0}")]
    FileKey(#[from] file_key::SignFault),
    #[error("no random number can be had from the system")]
    Random,
    #[error("what was signed is not what was meant, and was thrown away: {0}; report this as a defect")]
    ReadBack(#[from] ReadBackFault),
    #[error("what was signed is not what was meant, and was thrown away: {0}; report this as a defect")]
    JwtReadBack(#[from] JwtReadBackFault),
    #[error("peers would refuse what this CA signs: {0}; check the chain that the upstream authority gave")]
    Refused(#[from] PeerError),
    #[error("the key and the CA certificate do not belong together")]
    KeyMismatch,
    #[error("the caller was let into {0}, which does not issue this")]
    OtherPermit(&'static str),
}

/// An SVID as it goes to its owner: leaf first, then every intermediate, never the root.
#[derive(Clone, Debug)]
pub struct Issued {
    pub svid: X509Svid,
    /// The authority that signed it.
    pub authority_id: String,
}

/// A CA certificate for a nested server.
#[derive(Clone, Debug)]
pub struct IssuedAuthority {
    /// DER; the new CA first, then our own chain without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub not_after: SystemTime,
}

/// Why an agent may have an SVID.
#[derive(Clone, Copy, Debug)]
pub enum AgentProof<'a> {
    Attested(&'a Attested),
    Renewable(&'a Renewable),
}

impl AgentProof<'_> {
    fn agent_id(&self) -> &SpiffeId {
        match self {
            AgentProof::Attested(proof) => proof.agent_id(),
            AgentProof::Renewable(proof) => proof.agent_id(),
        }
    }
}

impl<'a> From<&'a Attested> for AgentProof<'a> {
    fn from(proof: &'a Attested) -> Self {
        AgentProof::Attested(proof)
    }
}

impl<'a> From<&'a Renewable> for AgentProof<'a> {
    fn from(proof: &'a Renewable) -> Self {
        AgentProof::Renewable(proof)
    }
}

/// A CA that can sign, with what its children repeat encoded once.
pub struct ActiveCa {
    key: Arc<Key>,
    certificate: AuthorityCertificate,
    der: CertificateDer<'static>,
    /// What is sent behind a leaf: nothing when self-signed, else this CA and every intermediate above it.
    above: Vec<CertificateDer<'static>>,
    parent: Parent,
    authority_id: String,
}

impl ActiveCa {
    /// `above` as sent behind a leaf; `ends`: unix seconds at which the first certificate above, root included, ends.
    pub(super) fn new(
        key: Arc<Key>,
        der: CertificateDer<'static>,
        above: Vec<CertificateDer<'static>>,
        ends: i64,
    ) -> Result<ActiveCa, IssueError> {
        let certificate = AuthorityCertificate::read(&der).map_err(ReadBackFault::from)?;
        if key.public_key_der() != certificate.public_key_der() {
            return Err(IssueError::KeyMismatch);
        }
        let parent = Parent::new(&certificate, algorithm(&key)?, ends);
        Ok(ActiveCa { authority_id: certificate.authority_id(), key, certificate, der, above, parent })
    }

    /// Lowercase hex of the subject key identifier.
    pub fn authority_id(&self) -> &str {
        &self.authority_id
    }

    /// Lowercase hex of the key identifier of whoever signed it; empty when self-signed.
    pub fn upstream_authority_id(&self) -> String {
        self.certificate.upstream_authority_id()
    }

    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// What is sent behind a leaf: this CA and the intermediates above it, or nothing when self-signed.
    pub fn above(&self) -> &[CertificateDer<'static>] {
        &self.above
    }

    /// Unix seconds at which the first certificate of its chain, root included, ends: nothing it signs lasts longer.
    pub fn ends(&self) -> i64 {
        self.parent.ends()
    }

    /// Signs an SVID for a key that exists nowhere and verifies it up to `roots` as a peer would, with the signature.
    pub(super) async fn prove(
        &self,
        profiles: &Profiles,
        roots: &[impl AsRef<[u8]> + Sync],
        now: SystemTime,
    ) -> Result<(), IssueError> {
        let nobody =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| IssueError::Random)?;
        let public_key = nobody.public_key().as_der().map_err(|_| IssueError::Random)?;
        let intent = profiles.throwaway(public_key.as_ref(), &self.parent, occasion_at(now)?)?;
        let svid = read_back::leaf(self.certify(&intent).await?, &self.above, &intent)?;
        Ok(read_back::prove(&svid, roots, now)?)
    }

    /// What the log says of this CA itself, whoever signed it.
    pub(super) fn own_record(&self) -> IssuedRecord {
        IssuedRecord {
            kind: IssuedKind::Ca,
            serial: self.certificate.serial_decimal(),
            spiffe_id: self.certificate.uri().unwrap_or_default().to_owned(),
            authority_id: match self.above.is_empty() {
                true => self.authority_id.clone(),
                false => self.upstream_authority_id(),
            },
            not_before: unix_seconds(self.certificate.not_before()),
            not_after: unix_seconds(self.certificate.not_after()),
            key_fingerprint: key_fingerprint(self.certificate.public_key_der()),
            ..IssuedRecord::default()
        }
    }

    fn record(&self, kind: IssuedKind, intent: &Intent) -> IssuedRecord {
        IssuedRecord {
            kind,
            serial: intent.serial.to_string(),
            spiffe_id: intent.uri.to_string(),
            authority_id: self.authority_id.clone(),
            not_before: intent.not_before,
            not_after: intent.not_after,
            key_fingerprint: key_fingerprint(&intent.public_key),
            ..IssuedRecord::default()
        }
    }

    pub(super) async fn certify(&self, intent: &Intent) -> Result<CertificateDer<'static>, IssueError> {
        let tbs = intent.tbs()?;
        let signature = self.key.sign(&tbs).await?;
        Ok(assemble(&tbs, intent, &signature))
    }
}

/// Signs with the CA of the moment. Cheap to clone.
#[derive(Clone)]
pub struct Issuer {
    profiles: Arc<Profiles>,
    clock: Clock,
    active: watch::Receiver<Option<Arc<ActiveCa>>>,
    jwt: JwtSigner,
    log: IssuedLog,
}

impl Issuer {
    pub(super) fn new(
        profiles: Arc<Profiles>,
        clock: Clock,
        active: watch::Receiver<Option<Arc<ActiveCa>>>,
        jwt: watch::Receiver<Option<Arc<ActiveJwtKey>>>,
        log: IssuedLog,
    ) -> Issuer {
        Issuer { profiles, clock, active, jwt: JwtSigner::new(jwt), log }
    }

    /// The CA that signs now.
    pub fn active(&self) -> Option<Arc<ActiveCa>> {
        self.active.borrow().clone()
    }

    /// Whether the CA can sign, and peers that know `bundle` would believe what it signs. Nothing that is signed for this
    /// leaves the process.
    pub async fn prove(&self, bundle: &Bundle) -> Result<(), IssueError> {
        let ca = self.active().ok_or(IssueError::NoAuthority)?;
        ca.prove(&self.profiles, &bundle.x509_authorities, self.clock.now()).await
    }

    /// Wakes when another CA signs.
    pub fn active_changes(&self) -> watch::Receiver<Option<Arc<ActiveCa>>> {
        let mut changes = self.active.clone();
        changes.mark_unchanged();
        changes
    }

    /// An SVID for a workload behind an agent.
    pub async fn workload_x509(&self, who: &Authorized, csr: &VerifiedCsr) -> Result<Issued, IssueError> {
        let ca = self.active().ok_or(IssueError::NoAuthority)?; // 1. the CA of this moment
        let entry = who.entry();
        let intent = self.profiles.workload(entry, csr, &ca.parent, self.occasion()?)?; // 2. exactly what we mean to sign
        let leaf = ca.certify(&intent).await?; // 3. the only signature
        let svid = read_back::leaf(leaf, &ca.above, &intent)?; // 4. as a stranger reads it
        self.log.record(IssuedRecord {
            entry_id: entry.id.clone(),
            entry_revision: entry.revision_number,
            agent_id: who.agent_id().to_string(),
            ..ca.record(IssuedKind::Workload, &intent)
        }); // 5. one line for the inventory
        Ok(Issued { svid, authority_id: ca.authority_id.clone() })
    }

    /// An SVID for an agent that attested or renews.
    pub async fn agent_x509<'a>(
        &self,
        proof: impl Into<AgentProof<'a>>,
        csr: &VerifiedCsr,
    ) -> Result<Issued, IssueError> {
        let proof = proof.into();
        let ca = self.active().ok_or(IssueError::NoAuthority)?;
        let intent = self.profiles.agent(proof.agent_id(), csr, &ca.parent, self.occasion()?)?;
        self.issue(&ca, intent, IssuedKind::Agent).await
    }

    /// The server's own SVID, for a key (SubjectPublicKeyInfo DER) of this process.
    pub(super) async fn server_x509(&self, public_key: &[u8]) -> Result<Issued, IssueError> {
        let ca = self.active().ok_or(IssueError::NoAuthority)?;
        let intent = self.profiles.server(public_key, &ca.parent, self.occasion()?)?;
        self.issue(&ca, intent, IssuedKind::Server).await
    }

    /// An SVID that an administrator asked for. Which CSR names are taken over is the caller's to check.
    pub async fn minted_x509(
        &self,
        granted: &Granted,
        csr: &VerifiedCsr,
        mint: MintIntent,
    ) -> Result<Issued, IssueError> {
        permits(granted, MINT)?;
        let ca = self.active().ok_or(IssueError::NoAuthority)?;
        let intent = self.profiles.minted(&mint, csr, &ca.parent, self.occasion()?)?;
        self.issue(&ca, intent, IssuedKind::Minted).await
    }

    /// A CA certificate for the nested server that calls. A `ttl` of zero is `ca_ttl`.
    pub async fn downstream_ca(
        &self,
        granted: &Granted,
        csr: &VerifiedCsr,
        ttl: Duration,
    ) -> Result<IssuedAuthority, IssueError> {
        permits(granted, DOWNSTREAM)?;
        let ca = self.active().ok_or(IssueError::NoAuthority)?;
        let chain_length = ca.above.len().max(1);
        let intent = self.profiles.downstream(csr, chain_length, ttl, &ca.parent, self.occasion()?)?;
        let der = ca.certify(&intent).await?;
        let trust_domain = self.profiles.trust_domain();
        let certificate = read_back::authority(&der, &intent, trust_domain, Some(&ca.certificate))?;
        self.log.record(ca.record(IssuedKind::DownstreamCa, &intent));
        let chain = std::iter::once(der).chain(ca.above.iter().cloned()).collect();
        Ok(IssuedAuthority { chain, not_after: certificate.not_after() })
    }

    /// Steps 3 to 5 of [`Issuer::workload_x509`].
    async fn issue(&self, ca: &ActiveCa, intent: Intent, kind: IssuedKind) -> Result<Issued, IssueError> {
        let leaf = ca.certify(&intent).await?;
        let svid = read_back::leaf(leaf, &ca.above, &intent)?;
        self.log.record(ca.record(kind, &intent));
        Ok(Issued { svid, authority_id: ca.authority_id.clone() })
    }

    fn occasion(&self) -> Result<Occasion, IssueError> {
        occasion_at(self.clock.now())
    }
}

/// A key and certificate from an operator's files, checked by whoever read them: signs our CA when there is no service
/// that does.
pub struct UpstreamKey {
    key: FileKey,
    certificate: AuthorityCertificate,
    parent: Parent,
}

impl UpstreamKey {
    /// `ends`: unix seconds at which the first certificate above, root included, ends.
    pub fn new(
        key: FileKey,
        certificate: AuthorityCertificate,
        ends: i64,
    ) -> Result<UpstreamKey, IssueError> {
        if key.public_key_der() != certificate.public_key_der() {
            return Err(IssueError::KeyMismatch);
        }
        let parent = Parent::new(&certificate, key.algorithm().to_vec(), ends);
        Ok(UpstreamKey { key, certificate, parent })
    }
}

/// The CA certificate that an operator's key gives for our CSR, which has to ask for the trust domain's ID. It lasts for
/// `ttl`, but never longer than a certificate above it.
pub fn upstream_signed_ca(
    upstream: &UpstreamKey,
    trust_domain: &TrustDomain,
    csr: &VerifiedCsr,
    ttl: Duration,
    now: SystemTime,
) -> Result<CertificateDer<'static>, IssueError> {
    let intent = profile::upstream_signed(trust_domain, csr, ttl, &upstream.parent, occasion_at(now)?)?;
    let tbs = intent.tbs()?;
    let signature = upstream.key.sign(&tbs)?;
    let der = assemble(&tbs, &intent, &signature);
    read_back::authority(&der, &intent, trust_domain, Some(&upstream.certificate))?;
    Ok(der)
}

/// A CA certificate for `key`, signed by `key`.
pub(super) async fn self_signed_ca(
    profiles: &Profiles,
    key: &Key,
    now: SystemTime,
) -> Result<CertificateDer<'static>, IssueError> {
    let intent = profiles.self_signed(key.public_key_der(), algorithm(key)?, occasion_at(now)?)?;
    let tbs = intent.tbs()?;
    let signature = key.sign(&tbs).await?;
    let der = assemble(&tbs, &intent, &signature);
    read_back::authority(&der, &intent, profiles.trust_domain(), None)?;
    Ok(der)
}

/// A random serial number.
pub(super) fn serial() -> Result<Serial, IssueError> {
    let mut bytes = [0; 16];
    loop {
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueError::Random)?;
        if let Some(serial) = Serial::from_random(bytes) {
            return Ok(serial);
        }
    }
}

/// AlgorithmIdentifier of the key's signatures, DER.
fn algorithm(key: &Key) -> Result<Vec<u8>, IssueError> {
    key.signature_algorithm().to_der().map_err(|_| IssueError::KeyMismatch)
}

fn permits(granted: &Granted, method: &str) -> Result<(), IssueError> {
    if granted.method() == method { Ok(()) } else { Err(IssueError::OtherPermit(granted.method())) }
}

fn occasion_at(now: SystemTime) -> Result<Occasion, IssueError> {
    Ok(Occasion { now, serial: serial()? })
}

fn assemble(tbs: &[u8], intent: &Intent, signature: &[u8]) -> CertificateDer<'static> {
    let signature = tlv(der::BIT_STRING, &[&[0], signature]);
    CertificateDer::from(tlv(der::SEQUENCE, &[tbs, &intent.algorithm, &signature]))
}
