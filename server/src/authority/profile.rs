//! Exactly what we mean to sign, before anything is signed: plain values, no keys, no clock.
//!
//! The profiles are SPIRE's: version 3, a random serial number, ten seconds of backdating, an end that no parent in
//! the chain reaches before us, one URI SAN, explicit critical BasicConstraints, critical KeyUsage, both extended
//! key usages, and Go's order of extensions (KeyUsage, ExtendedKeyUsage, BasicConstraints, subject key identifier,
//! authority key identifier, SubjectAltName).

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use finial_daemon::clock::unix_seconds;
use finial_identity::csr::VerifiedCsr;
use finial_identity::entry::Entry;
use finial_identity::jwt_svid::MAX_TOKEN_BYTES;
use finial_identity::lifetime::BACKDATE;
use finial_identity::spiffe_id::{MembershipError, SpiffeId};
use finial_identity::trust_domain::TrustDomain;
use finial_identity::x509_svid::AuthorityCertificate;

use super::chain::at;
use super::der::{self, DerFault, oid, tlv};
use super::name;

mod jwt;

pub use super::name::SubjectSettings;
pub use jwt::{DEFAULT_JWT_SVID_TTL, JwtIntent, JwtParent, MintJwtIntent};

/// Defaults of `ca_ttl` and `default_x509_svid_ttl`.
pub const DEFAULT_CA_TTL: Duration = Duration::from_secs(24 * 3600);
pub const DEFAULT_X509_SVID_TTL: Duration = Duration::from_secs(3600);

/// KeyUsage (critical) digitalSignature, keyEncipherment, keyAgreement; ExtendedKeyUsage serverAuth, clientAuth;
/// BasicConstraints (critical), not a CA. The same in every leaf.
const LEAF_EXTENSIONS: &[u8] = &[
    0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x03, 0xa8, //
    0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x16, 0x30, 0x14, //
    0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01, //
    0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02, //
    0x30, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x02, 0x30, 0x00,
];

/// KeyUsage (critical) keyCertSign, cRLSign; BasicConstraints (critical), a CA, no path length.
const AUTHORITY_EXTENSIONS: &[u8] = &[
    0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x01, 0x06, //
    0x30, 0x0f, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x05, 0x30, 0x03, 0x01, 0x01, 0xff,
];

/// Why something can not be put into a certificate or a token.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("invalid X509-SVID ID: {0}")]
    Id(#[from] MembershipError),
    #[error(
        "the CSR asks for {0:?}, but a CA of this trust domain is named {1:?} alone; ask for exactly that URI"
    )]
    AuthorityUri(Vec<String>, String),
    #[error("a certificate above it ended at {}; the CA has to be renewed first", at(*.0))]
    ParentExpired(i64),
    #[error("the public key can not be read: {0}")]
    PublicKey(DerFault),
    #[error("the lifetime ends outside of what a certificate can say: {0}")]
    Lifetime(DerFault),
    #[error("the subject of the CA can not be read: {0}")]
    Subject(DerFault),
    #[error("invalid JWT-SVID ID: {0}")]
    JwtId(MembershipError),
    #[error("at least one audience is required")]
    NoAudience,
    #[error("a token for this audience would be longer than {MAX_TOKEN_BYTES} bytes, which nobody reads")]
    LongAudience,
    #[error("the JWT key ended at {}; it has to be renewed first", at(*.0))]
    JwtKeyExpired(i64),
}

/// A serial number: random in 1 to 2^128-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial(u128);

impl Serial {
    /// From 16 random bytes; `None` for zero, which is no serial number.
    pub fn from_random(bytes: [u8; 16]) -> Option<Serial> {
        match u128::from_be_bytes(bytes) {
            0 => None,
            number => Some(Serial(number)),
        }
    }

    /// The content octets of the INTEGER.
    pub(crate) fn integer(self) -> Vec<u8> {
        der::positive_integer(&self.0.to_be_bytes())
    }
}

impl std::fmt::Display for Serial {
    /// Decimal, as SPIRE's tables and names hold it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The two things a certificate takes from the moment it is made.
#[derive(Clone, Copy, Debug)]
pub struct Occasion {
    pub now: SystemTime,
    pub serial: Serial,
}

/// What operators set, with SPIRE's defaults.
#[derive(Clone, Debug)]
pub struct ProfileSettings {
    pub trust_domain: TrustDomain,
    /// `ca_subject`.
    pub ca_subject: SubjectSettings,
    /// `ca_ttl`.
    pub ca_ttl: Duration,
    /// `default_x509_svid_ttl`.
    pub x509_svid_ttl: Duration,
    /// `agent_ttl`; when not set, `default_x509_svid_ttl`.
    pub agent_ttl: Option<Duration>,
    /// `default_jwt_svid_ttl`.
    pub jwt_svid_ttl: Duration,
    /// `jwt_issuer`.
    pub jwt_issuer: Option<String>,
}

impl ProfileSettings {
    pub fn new(trust_domain: TrustDomain) -> Self {
        ProfileSettings {
            trust_domain,
            ca_subject: SubjectSettings::default(),
            ca_ttl: DEFAULT_CA_TTL,
            x509_svid_ttl: DEFAULT_X509_SVID_TTL,
            agent_ttl: None,
            jwt_svid_ttl: DEFAULT_JWT_SVID_TTL,
            jwt_issuer: None,
        }
    }
}

/// What a minted SVID shall hold; who makes one has checked the CSR's names (see spire-wire's MintX509SVID rules).
#[derive(Clone, Debug)]
pub struct MintIntent {
    pub id: SpiffeId,
    /// The first is also the common name.
    pub dns_names: Vec<String>,
    /// Zero: `default_x509_svid_ttl`.
    pub ttl: Duration,
}

/// The facts of a signing certificate that its children repeat, encoded once.
#[derive(Clone, Debug)]
pub struct Parent {
    /// Its subject, byte for byte.
    subject: Vec<u8>,
    /// The whole authority key identifier extension; empty when the parent has no key identifier.
    authority_key_id: Vec<u8>,
    /// AlgorithmIdentifier of its signatures.
    algorithm: Vec<u8>,
    /// The earliest end of all certificates from it up to the root, in unix seconds.
    ends: i64,
}

impl Parent {
    /// `algorithm` is the DER of the AlgorithmIdentifier of its key's signatures, `ends` the earliest end of the
    /// certificates above it (unix seconds).
    pub fn new(certificate: &AuthorityCertificate, algorithm: Vec<u8>, ends: i64) -> Parent {
        let authority_key_id = match certificate.subject_key_id() {
            None => Vec::new(),
            Some(id) => {
                extension(oid::AUTHORITY_KEY_IDENTIFIER, false, &tlv(der::SEQUENCE, &[&tlv(0x80, &[id])]))
            }
        };
        Parent {
            subject: certificate.subject_der().to_vec(),
            authority_key_id,
            algorithm,
            ends: ends.min(unix_seconds(certificate.not_after())),
        }
    }

    /// Unix seconds at which the first certificate of the chain above ends.
    pub fn ends(&self) -> i64 {
        self.ends
    }
}

/// A certificate as we mean it. Only this file makes one, so an ID that is foreign, reserved or without a path
/// never reaches a key.
#[derive(Clone, Debug)]
pub struct Intent {
    pub(super) serial: Serial,
    pub(super) algorithm: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    /// Unix seconds.
    pub(super) not_before: i64,
    /// Unix seconds.
    pub(super) not_after: i64,
    pub(super) subject: Vec<u8>,
    pub(super) public_key: Vec<u8>,
    /// The extensions one after another.
    pub(super) extensions: Vec<u8>,
    pub(super) uri: SpiffeId,
    pub(super) dns_names: Vec<String>,
}

impl Intent {
    /// DER of the TBSCertificate.
    pub(super) fn tbs(&self) -> Result<Vec<u8>, ProfileError> {
        let validity = [
            der::time(self.not_before).map_err(ProfileError::Lifetime)?,
            der::time(self.not_after).map_err(ProfileError::Lifetime)?,
        ];
        Ok(tlv(
            der::SEQUENCE,
            &[
                &[0xa0, 3, der::INTEGER, 1, 2],
                &tlv(der::INTEGER, &[&self.serial.integer()]),
                &self.algorithm,
                &self.issuer,
                &tlv(der::SEQUENCE, &[&validity[0], &validity[1]]),
                &self.subject,
                &self.public_key,
                &tlv(0xa3, &[&tlv(der::SEQUENCE, &[&self.extensions])]),
            ],
        ))
    }
}

/// What a CSR to an upstream authority asks for.
#[derive(Clone, Debug)]
pub struct CsrIntent {
    /// DER of the Name.
    pub subject: Vec<u8>,
    /// The trust domain's ID.
    pub uri: SpiffeId,
}

/// The profiles of one trust domain.
#[derive(Clone, Debug)]
pub struct Profiles {
    settings: ProfileSettings,
    trust_domain_id: SpiffeId,
    server_id: SpiffeId,
    throwaway_id: SpiffeId,
    leaf_subject: Vec<u8>,
}

impl Profiles {
    pub fn new(settings: ProfileSettings) -> Self {
        let server_id = settings.trust_domain.server_id();
        Profiles {
            trust_domain_id: settings.trust_domain.id(),
            // A trust domain whose name leaves no room for this path has none for any workload either.
            throwaway_id: SpiffeId::from_parts(&settings.trust_domain, "/spire/throwaway")
                .unwrap_or_else(|_| server_id.clone()),
            server_id,
            leaf_subject: name::default_leaf(),
            settings,
        }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    pub fn ca_ttl(&self) -> Duration {
        self.settings.ca_ttl
    }

    /// A workload's SVID: ID, DNS names and lifetime from the entry, only the key from the CSR.
    pub fn workload(
        &self,
        entry: &Entry,
        csr: &VerifiedCsr,
        parent: &Parent,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        entry.spiffe_id.workload_in(&self.settings.trust_domain)?;
        let subject = match entry.dns_names.first() {
            None => self.leaf_subject.clone(),
            Some(first) => name::default_leaf_named(first),
        };
        let ttl = positive_seconds(entry.x509_svid_ttl).unwrap_or(self.settings.x509_svid_ttl);
        self.leaf(&entry.spiffe_id, &entry.dns_names, subject, csr.public_key_der(), ttl, parent, at)
    }

    /// An agent's SVID. The ID comes from attestation, which alone may give out IDs below `/spire/agent/`.
    pub fn agent(
        &self,
        id: &SpiffeId,
        csr: &VerifiedCsr,
        parent: &Parent,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        id.agent_in(&self.settings.trust_domain)?;
        let ttl = self.settings.agent_ttl.unwrap_or(self.settings.x509_svid_ttl);
        self.leaf(id, &[], self.leaf_subject.clone(), csr.public_key_der(), ttl, parent, at)
    }

    /// The server's own SVID: no DNS names, lifetime as workloads have it, not as agents.
    pub fn server(&self, public_key: &[u8], parent: &Parent, at: Occasion) -> Result<Intent, ProfileError> {
        let ttl = self.settings.x509_svid_ttl;
        self.leaf(&self.server_id, &[], self.leaf_subject.clone(), public_key, ttl, parent, at)
    }

    /// An SVID that an administrator asked for: the subject is the CSR's, if it has one.
    pub fn minted(
        &self,
        mint: &MintIntent,
        csr: &VerifiedCsr,
        parent: &Parent,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        mint.id.workload_in(&self.settings.trust_domain)?;
        let first = mint.dns_names.first().map(String::as_str);
        let subject = name::leaf_from_csr(csr.subject_der(), first);
        let ttl = if mint.ttl.is_zero() { self.settings.x509_svid_ttl } else { mint.ttl };
        self.leaf(&mint.id, &mint.dns_names, subject, csr.public_key_der(), ttl, parent, at)
    }

    /// A leaf that shows what a CA can do; its ID is reserved, so that it is nobody's.
    pub fn throwaway(
        &self,
        public_key: &[u8],
        parent: &Parent,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        let ttl = self.settings.x509_svid_ttl;
        self.leaf(&self.throwaway_id, &[], self.leaf_subject.clone(), public_key, ttl, parent, at)
    }

    /// A CA that signs itself with `algorithm` (DER). It names no authority key, as Go's do not.
    pub fn self_signed(
        &self,
        public_key: &[u8],
        algorithm: Vec<u8>,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        let subject = name::authority(&self.settings.ca_subject, at.serial);
        let parent =
            Parent { subject: subject.clone(), authority_key_id: Vec::new(), algorithm, ends: i64::MAX };
        self.authority(subject, public_key, self.settings.ca_ttl, &parent, at)
    }

    /// What we ask of an upstream authority.
    pub fn upstream_csr(&self, serial: Serial) -> CsrIntent {
        CsrIntent {
            subject: name::authority(&self.settings.ca_subject, serial),
            uri: self.trust_domain_id.clone(),
        }
    }

    /// A CA for a nested server: our CA's name with the organizational unit `DOWNSTREAM-<length of our chain>`.
    /// A `ttl` of zero is `ca_ttl`.
    pub fn downstream(
        &self,
        csr: &VerifiedCsr,
        chain_length: usize,
        ttl: Duration,
        parent: &Parent,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        let unit = format!("DOWNSTREAM-{chain_length}");
        let subject =
            name::with_organizational_unit(&parent.subject, &unit).map_err(ProfileError::Subject)?;
        let ttl = if ttl.is_zero() { self.settings.ca_ttl } else { ttl };
        self.authority(subject, csr.public_key_der(), ttl, parent, at)
    }

    fn authority(
        &self,
        subject: Vec<u8>,
        public_key: &[u8],
        ttl: Duration,
        parent: &Parent,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        authority_intent(&self.trust_domain_id, subject, public_key, ttl, parent, at)
    }

    #[allow(clippy::too_many_arguments)] // each is one field of the certificate
    fn leaf(
        &self,
        id: &SpiffeId,
        dns_names: &[String],
        subject: Vec<u8>,
        public_key: &[u8],
        ttl: Duration,
        parent: &Parent,
        at: Occasion,
    ) -> Result<Intent, ProfileError> {
        let extensions = [
            LEAF_EXTENSIONS,
            &subject_key_id(public_key)?,
            &parent.authority_key_id,
            &subject_alt_name(id, dns_names),
        ]
        .concat();
        intent(id, dns_names, subject, public_key, extensions, ttl, parent, at)
    }
}

/// The CA certificate that an enterprise authority gives for our CSR: subject and URI as the CSR asks, which has to
/// be the trust domain's ID and nothing else.
pub fn upstream_signed(
    trust_domain: &TrustDomain,
    csr: &VerifiedCsr,
    ttl: Duration,
    parent: &Parent,
    at: Occasion,
) -> Result<Intent, ProfileError> {
    let id = trust_domain.id();
    if csr.uris() != [id.as_str()] {
        return Err(ProfileError::AuthorityUri(csr.uris().to_vec(), id.to_string()));
    }
    authority_intent(&id, csr.subject_der().to_vec(), csr.public_key_der(), ttl, parent, at)
}

/// SHA-1 of the bits of a public key (SubjectPublicKeyInfo DER): RFC 5280 4.2.1.2, method 1.
pub fn key_id(public_key: &[u8]) -> Result<[u8; 20], DerFault> {
    let (_, bits) = der::public_key_parts(public_key)?;
    let mut id = [0; 20];
    id.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, bits).as_ref());
    Ok(id)
}

/// [`key_id`] in lowercase hex: how operators and tables name an X.509 authority.
pub fn authority_id(public_key: &[u8]) -> Result<String, DerFault> {
    key_id(public_key).map(hex::encode)
}

fn authority_intent(
    uri: &SpiffeId,
    subject: Vec<u8>,
    public_key: &[u8],
    ttl: Duration,
    parent: &Parent,
    at: Occasion,
) -> Result<Intent, ProfileError> {
    let extensions = [
        AUTHORITY_EXTENSIONS,
        &subject_key_id(public_key)?,
        &parent.authority_key_id,
        &subject_alt_name(uri, &[]),
    ]
    .concat();
    intent(uri, &[], subject, public_key, extensions, ttl, parent, at)
}

#[allow(clippy::too_many_arguments)] // each is one field of the certificate
fn intent(
    uri: &SpiffeId,
    dns_names: &[String],
    subject: Vec<u8>,
    public_key: &[u8],
    extensions: Vec<u8>,
    ttl: Duration,
    parent: &Parent,
    at: Occasion,
) -> Result<Intent, ProfileError> {
    let now = unix_seconds(at.now);
    if parent.ends <= now {
        return Err(ProfileError::ParentExpired(parent.ends));
    }
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    Ok(Intent {
        serial: at.serial,
        algorithm: parent.algorithm.clone(),
        issuer: parent.subject.clone(),
        not_before: now - BACKDATE.as_secs() as i64,
        not_after: now.saturating_add(ttl).min(parent.ends),
        subject,
        public_key: public_key.to_vec(),
        extensions,
        uri: uri.clone(),
        dns_names: dns_names.to_vec(),
    })
}

fn subject_key_id(public_key: &[u8]) -> Result<Vec<u8>, ProfileError> {
    let id = key_id(public_key).map_err(ProfileError::PublicKey)?;
    Ok(extension(oid::SUBJECT_KEY_IDENTIFIER, false, &tlv(der::OCTET_STRING, &[&id])))
}

/// DNS names before the URI, as Go writes them. Not critical, since no subject of ours is empty.
fn subject_alt_name(uri: &SpiffeId, dns_names: &[String]) -> Vec<u8> {
    let mut names: Vec<u8> = Vec::new();
    for name in dns_names {
        names.extend(tlv(0x82, &[name.as_bytes()]));
    }
    names.extend(tlv(0x86, &[uri.as_str().as_bytes()]));
    extension(oid::SUBJECT_ALT_NAME, false, &tlv(der::SEQUENCE, &[&names]))
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[der::BOOLEAN, 1, 0xff] } else { &[] };
    tlv(der::SEQUENCE, &[&tlv(der::OID, &[oid]), critical, &tlv(der::OCTET_STRING, &[value])])
}

fn positive_seconds(seconds: i32) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}
