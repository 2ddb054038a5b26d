//! Keys that sign JWT-SVIDs, as the driver turns them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::clock::{from_unix_seconds, unix_seconds};
use finial_daemon::keys::{Key, KeyType};
use finial_identity::bundle::{Bundle, JwtAuthority};

use super::drive::{DriveError, Facts, Kind, Made, Unusable, Words};
use super::issue::{ActiveJwtKey, IssueError};
use super::rotate::Held;
use crate::bundles::own::Authorities;
use crate::store::journal::entries::{Content, List, Record};

/// How JWT keys are made.
pub(super) struct JwtKeys {
    /// `jwt_key_type`.
    pub(super) key_type: KeyType,
    /// `ca_ttl`: a key lives as long as a CA.
    pub(super) ttl: Duration,
}

impl Kind for JwtKeys {
    type Signer = ActiveJwtKey;

    const NAME: &'static str = "JWT key";
    const LIST: List = List::JwtKeys;
    const KEYS: &'static str = "JWT-Signer";
    const WORDS: Words = Words {
        prepare: &["ca", "manager", "jwt_key", "prepare"],
        activate: &["manager", "jwt_key", "activate"],
        // SPIRE has these two for its X.509 CA alone.
        expiration: &["finial", "jwt_key", "rotate", "expiration"],
        ttl: &["finial", "jwt_key", "rotate", "ttl"],
    };

    fn key_type(&self) -> KeyType {
        self.key_type
    }

    fn authority_id(&self, _: &Key) -> Result<String, DriveError> {
        Ok(new_key_id()?)
    }

    async fn make(
        &self,
        key: Arc<Key>,
        authority_id: &str,
        _: Option<&Held>,
        now: SystemTime,
    ) -> Result<Made<ActiveJwtKey>, DriveError> {
        let expires_at = unix_seconds(now + self.ttl);
        let authority = JwtAuthority {
            key_id: authority_id.to_owned(),
            public_key: key.public_key_der().to_vec(),
            expires_at,
            tainted: false,
        };
        let signer =
            ActiveJwtKey { key, key_id: authority_id.to_owned(), not_after: from_unix_seconds(expires_at) };
        let addition = Authorities { x509: Vec::new(), jwt: vec![authority] };
        Ok(Made { signer: Arc::new(signer), addition, issued_at: now })
    }

    async fn revive(
        &self,
        key: Arc<Key>,
        record: &Record,
        bundle: &Bundle,
        now: SystemTime,
    ) -> Result<ActiveJwtKey, Unusable> {
        let Content::JwtKey { public_key } = &record.content else {
            return Err(Unusable("it is not a JWT key".to_owned()));
        };
        if key.public_key_der() != public_key {
            return Err(Unusable::other_key());
        }
        let not_after = from_unix_seconds(record.not_after);
        if not_after <= now {
            return Err(Unusable("slot expired".to_owned()));
        }
        match bundle.jwt_authority(&record.authority_id) {
            Some(authority) if authority.public_key == *public_key => {
                Ok(ActiveJwtKey { key, key_id: record.authority_id.clone(), not_after })
            }
            _ => Err(Unusable("it is not in the trust bundle".to_owned())),
        }
    }

    fn facts(key: &ActiveJwtKey) -> Facts {
        Facts {
            authority_id: key.key_id.clone(),
            not_after: key.not_after,
            ends: key.not_after,
            upstream_authority_id: String::new(),
        }
    }

    fn content(signer: &ActiveJwtKey) -> Content {
        Content::JwtKey { public_key: signer.key.public_key_der().to_vec() }
    }
}

/// 32 random letters and digits, as SPIRE makes key IDs.
fn new_key_id() -> Result<String, IssueError> {
    const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    /// The multiple of 62 below 256: bytes from here on would favour the first letters.
    const FAIR: u8 = 248;
    let mut id = String::with_capacity(32);
    while id.len() < 32 {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueError::Random)?;
        let fair = bytes.into_iter().filter(|byte| *byte < FAIR);
        id.extend(fair.take(32 - id.len()).map(|byte| char::from(ALPHABET[usize::from(byte) % 62])));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ids_are_as_spire_makes_them() {
        let ids: std::collections::HashSet<_> = (0..100).map(|_| new_key_id().unwrap()).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())));
    }
}
