//! Bundles: the authorities by which a trust domain's SVIDs are judged.

pub mod document;
pub(crate) mod jwk;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::trust_domain::TrustDomain;
use crate::x509_svid::{AuthorityCertificate, Malformed, split_concatenated};

/// The bundle of one trust domain.
///
/// Edits keep the order of what stays, and raise the sequence number by one if they change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    pub trust_domain: TrustDomain,
    pub x509_authorities: Vec<X509Authority>,
    pub jwt_authorities: Vec<JwtAuthority>,
    pub wit_authorities: Vec<WitAuthority>,
    /// Seconds after which a consumer should fetch again; 0 means none is given.
    pub refresh_hint: i64,
    /// Grows with each change.
    pub sequence_number: u64,
}

/// A certificate that signs X509-SVIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Authority {
    /// One DER certificate.
    pub der: Vec<u8>,
    /// What it signed must be replaced.
    pub tainted: bool,
}

/// A key that signs JWT-SVIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuthority {
    /// The `kid` in tokens. Never empty.
    pub key_id: String,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// Unix seconds; 0 means never.
    pub expires_at: i64,
    /// What it signed must be replaced.
    pub tainted: bool,
}

/// A key that signs WIT-SVIDs.
pub type WitAuthority = JwtAuthority;

/// Why an authority cannot be tainted or revoked. The texts are SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityEditError {
    #[error("no ca found with provided subject key ID")]
    NoCaToTaint,
    #[error("no root CA found with provided subject key ID")]
    NoCaToRevoke,
    #[error("root CA is already tainted")]
    CaAlreadyTainted,
    #[error("it is not possible to revoke an untainted root CA")]
    CaNotTainted,
    #[error("no {0} Key found with provided key ID")]
    NoKey(&'static str),
    #[error("key is already tainted")]
    KeyAlreadyTainted,
    #[error("it is not possible to revoke an untainted key")]
    KeyNotTainted,
}

/// Why expired authorities stay. The texts of the first three are SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PruneError {
    #[error("would prune all certificates")]
    NoCertificateLeft,
    #[error("would prune all JWT signing keys")]
    NoJwtKeyLeft,
    #[error("would prune all WIT signing keys")]
    NoWitKeyLeft,
    #[error("cannot parse certificates: {0}")]
    Malformed(#[from] Malformed),
}

impl Bundle {
    /// A bundle without authorities: nobody of that trust domain is believed.
    pub fn new(trust_domain: TrustDomain) -> Bundle {
        Bundle {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 0,
        }
    }

    /// Adds the other's authorities that are not here yet; says whether there were any. Certificates are compared by
    /// their bytes and keys by their key ID: what is here keeps its expiry and its taint.
    pub fn append(&mut self, other: &Bundle) -> bool {
        let before = self.authority_count();
        for authority in &other.x509_authorities {
            if !self.x509_authorities.iter().any(|present| present.der == authority.der) {
                self.x509_authorities.push(authority.clone());
            }
        }
        append_keys(&mut self.jwt_authorities, &other.jwt_authorities);
        append_keys(&mut self.wit_authorities, &other.wit_authorities);
        let changed = self.authority_count() > before;
        self.count_change(changed)
    }

    /// Removes authorities that expired at or before this instant; says whether there were any. Refuses, and changes
    /// nothing, if no authority of a kind that the bundle has would be left.
    pub fn prune(&mut self, expired_by: SystemTime) -> Result<bool, PruneError> {
        let mut x509_authorities = Vec::new();
        for authority in &self.x509_authorities {
            let mut is_live = true;
            for der in split_concatenated(&authority.der)? {
                is_live &= AuthorityCertificate::read(&der)?.not_after() > expired_by;
            }
            if is_live {
                x509_authorities.push(authority.clone());
            }
        }
        let limit = unix_seconds(expired_by);
        let live_keys = |keys: &[JwtAuthority]| -> Vec<JwtAuthority> {
            keys.iter().filter(|key| key.expires_at == 0 || key.expires_at > limit).cloned().collect()
        };
        let jwt_authorities = live_keys(&self.jwt_authorities);
        let wit_authorities = live_keys(&self.wit_authorities);

        if x509_authorities.is_empty() {
            return Err(PruneError::NoCertificateLeft);
        }
        if jwt_authorities.is_empty() && !self.jwt_authorities.is_empty() {
            return Err(PruneError::NoJwtKeyLeft);
        }
        if wit_authorities.is_empty() && !self.wit_authorities.is_empty() {
            return Err(PruneError::NoWitKeyLeft);
        }
        let before = self.authority_count();
        self.x509_authorities = x509_authorities;
        self.jwt_authorities = jwt_authorities;
        self.wit_authorities = wit_authorities;
        let changed = self.authority_count() < before;
        Ok(self.count_change(changed))
    }

    /// Marks the X.509 authorities with this subject key ID (lowercase hex) as tainted.
    pub fn taint_x509(&mut self, subject_key_id: &str) -> Result<(), AuthorityEditError> {
        let named = self.x509_with(subject_key_id);
        if named.is_empty() {
            return Err(AuthorityEditError::NoCaToTaint);
        }
        if named.iter().any(|index| self.x509_authorities[*index].tainted) {
            return Err(AuthorityEditError::CaAlreadyTainted);
        }
        for index in named {
            self.x509_authorities[index].tainted = true;
        }
        self.count_change(true);
        Ok(())
    }

    /// Removes the X.509 authorities with this subject key ID (lowercase hex), which must be tainted.
    pub fn revoke_x509(&mut self, subject_key_id: &str) -> Result<(), AuthorityEditError> {
        let named = self.x509_with(subject_key_id);
        if named.is_empty() {
            return Err(AuthorityEditError::NoCaToRevoke);
        }
        if named.iter().any(|index| !self.x509_authorities[*index].tainted) {
            return Err(AuthorityEditError::CaNotTainted);
        }
        for index in named.into_iter().rev() {
            self.x509_authorities.remove(index);
        }
        self.count_change(true);
        Ok(())
    }

    /// Marks a JWT key as tainted and returns it.
    pub fn taint_jwt(&mut self, key_id: &str) -> Result<JwtAuthority, AuthorityEditError> {
        let key = taint_key(&mut self.jwt_authorities, key_id, "JWT")?;
        self.count_change(true);
        Ok(key)
    }

    /// Removes a JWT key, which must be tainted, and returns it.
    pub fn revoke_jwt(&mut self, key_id: &str) -> Result<JwtAuthority, AuthorityEditError> {
        let key = revoke_key(&mut self.jwt_authorities, key_id, "JWT")?;
        self.count_change(true);
        Ok(key)
    }

    /// Marks a WIT key as tainted and returns it.
    pub fn taint_wit(&mut self, key_id: &str) -> Result<WitAuthority, AuthorityEditError> {
        let key = taint_key(&mut self.wit_authorities, key_id, "WIT")?;
        self.count_change(true);
        Ok(key)
    }

    /// Removes a WIT key, which must be tainted, and returns it.
    pub fn revoke_wit(&mut self, key_id: &str) -> Result<WitAuthority, AuthorityEditError> {
        let key = revoke_key(&mut self.wit_authorities, key_id, "WIT")?;
        self.count_change(true);
        Ok(key)
    }

    /// The JWT key of this ID.
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|key| key.key_id == key_id)
    }

    /// How long a consumer may go on with this bundle before it fetches again: the refresh hint, or a tenth of the
    /// shortest life of an X.509 authority if there is none, and at least a minute.
    pub fn refresh_interval(&self) -> Duration {
        const SHORTEST: Duration = Duration::from_secs(60);
        if let Ok(hint @ 1..) = u64::try_from(self.refresh_hint) {
            return Duration::from_secs(hint).max(SHORTEST);
        }
        self.x509_authorities
            .iter()
            .filter_map(|authority| AuthorityCertificate::read(&authority.der).ok())
            .filter_map(|authority| authority.not_after().duration_since(authority.not_before()).ok())
            .min()
            .map_or(SHORTEST, |lifetime| (lifetime / 10).max(SHORTEST))
    }

    fn authority_count(&self) -> usize {
        self.x509_authorities.len() + self.jwt_authorities.len() + self.wit_authorities.len()
    }

    fn count_change(&mut self, changed: bool) -> bool {
        self.sequence_number = self.sequence_number.saturating_add(u64::from(changed));
        changed
    }

    fn x509_with(&self, subject_key_id: &str) -> Vec<usize> {
        let is_named = |authority: &X509Authority| {
            AuthorityCertificate::read(&authority.der)
                .is_ok_and(|certificate| certificate.authority_id() == subject_key_id)
        };
        (0..self.x509_authorities.len()).filter(|index| is_named(&self.x509_authorities[*index])).collect()
    }
}

impl AsRef<[u8]> for X509Authority {
    fn as_ref(&self) -> &[u8] {
        &self.der
    }
}

fn append_keys(keys: &mut Vec<JwtAuthority>, others: &[JwtAuthority]) {
    for other in others {
        if !keys.iter().any(|present| present.key_id == other.key_id) {
            keys.push(other.clone());
        }
    }
}

fn taint_key(
    keys: &mut [JwtAuthority],
    key_id: &str,
    kind: &'static str,
) -> Result<JwtAuthority, AuthorityEditError> {
    let key = keys.iter_mut().find(|key| key.key_id == key_id).ok_or(AuthorityEditError::NoKey(kind))?;
    if key.tainted {
        return Err(AuthorityEditError::KeyAlreadyTainted);
    }
    key.tainted = true;
    Ok(key.clone())
}

fn revoke_key(
    keys: &mut Vec<JwtAuthority>,
    key_id: &str,
    kind: &'static str,
) -> Result<JwtAuthority, AuthorityEditError> {
    let index = keys.iter().position(|key| key.key_id == key_id).ok_or(AuthorityEditError::NoKey(kind))?;
    if !keys[index].tainted {
        return Err(AuthorityEditError::KeyNotTainted);
    }
    Ok(keys.remove(index))
}

fn unix_seconds(instant: SystemTime) -> i64 {
    instant
        .duration_since(UNIX_EPOCH)
        .map_or(i64::MIN, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
