//! The doors for JWT-SVIDs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_daemon::clock::{from_unix_seconds, unix_seconds};
use finial_daemon::keys::Key;
use finial_identity::bundle::JwtAuthority;
use finial_identity::jwt_svid::{JwtSvidError, UnverifiedJwtSvid};
use finial_identity::spiffe_id::SpiffeId;
use tokio::sync::watch;

use super::{IssueError, Issuer, permits};
use crate::access::permit::Granted;
use crate::authority::profile::{JwtIntent, JwtParent, MintJwtIntent};
use crate::entries::authorized::Authorized;
use crate::store::issued::{IssuedKind, IssuedRecord};

/// The call whose permit opens the door of [`Issuer::minted_jwt`].
const MINT: &str = "/spire.api.server.svid.v1.SVID/MintJWTSVID";

/// A key that signs JWT-SVIDs, published in the bundle before it does.
#[derive(Clone, Debug)]
pub struct ActiveJwtKey {
    pub key: Arc<Key>,
    /// The header `kid` of what it signs.
    pub key_id: String,
    /// Nothing that it signs lasts longer.
    pub not_after: SystemTime,
}

/// A JWT-SVID as it goes to its owner. Whoever holds the token is believed to be the ID: it has no `Debug`.
pub struct IssuedJwt {
    /// Compact serialisation.
    pub token: String,
    pub id: SpiffeId,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
}

/// How a token differs from what was meant. It is given to nobody.
#[derive(Debug, thiserror::Error)]
pub enum JwtReadBackFault {
    #[error("it is no JWT-SVID: {0}")]
    NotAnSvid(#[from] JwtSvidError),
    #[error("its {0} is not what was meant")]
    Claim(&'static str),
}

/// The key that signs, and the ID of the last one whose first token was verified.
#[derive(Clone)]
pub(super) struct JwtSigner {
    active: watch::Receiver<Option<Arc<ActiveJwtKey>>>,
    proved: Arc<Mutex<String>>,
}

impl Issuer {
    /// The key that signs JWT-SVIDs now.
    pub fn active_jwt(&self) -> Option<Arc<ActiveJwtKey>> {
        self.jwt.active.borrow().clone()
    }

    /// A token for a workload behind an agent.
    pub async fn workload_jwt(
        &self,
        who: &Authorized,
        audience: Vec<String>,
    ) -> Result<IssuedJwt, IssueError> {
        let key = self.active_jwt().ok_or(IssueError::NoJwtKey)?;
        let entry = who.entry();
        let intent = self.profiles.workload_jwt(entry, audience, key.parent(), self.clock.now())?;
        let issued = self.jwt.issue(&key, &intent).await?;
        self.log.record(IssuedRecord {
            entry_id: entry.id.clone(),
            entry_revision: entry.revision_number,
            agent_id: who.agent_id().to_string(),
            ..record(IssuedKind::Jwt, &intent)
        });
        Ok(issued)
    }

    /// A token that an administrator asked for.
    pub async fn minted_jwt(&self, granted: &Granted, mint: MintJwtIntent) -> Result<IssuedJwt, IssueError> {
        permits(granted, MINT)?;
        let key = self.active_jwt().ok_or(IssueError::NoJwtKey)?;
        let intent = self.profiles.minted_jwt(mint, key.parent(), self.clock.now())?;
        let issued = self.jwt.issue(&key, &intent).await?;
        self.log.record(record(IssuedKind::MintedJwt, &intent));
        Ok(issued)
    }
}

impl ActiveJwtKey {
    fn parent(&self) -> JwtParent<'_> {
        JwtParent { key_type: self.key.key_type(), key_id: &self.key_id, not_after: self.not_after }
    }
}

impl JwtSigner {
    pub(super) fn new(active: watch::Receiver<Option<Arc<ActiveJwtKey>>>) -> JwtSigner {
        JwtSigner { active, proved: Arc::default() }
    }

    async fn issue(&self, key: &ActiveJwtKey, intent: &JwtIntent) -> Result<IssuedJwt, IssueError> {
        let mut token = intent.signing_input()?;
        let signature = key.key.sign_jose(token.as_bytes()).await?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        self.read_back(&token, key, intent)?;
        Ok(IssuedJwt {
            token,
            id: intent.id.clone(),
            issued_at: intent.issued_at,
            expires_at: intent.expires_at,
        })
    }

    /// As a stranger reads it. The signature is verified for the first token of each key; see [`super::read_back`] for
    /// why not for each.
    fn read_back(&self, token: &str, key: &ActiveJwtKey, intent: &JwtIntent) -> Result<(), JwtReadBackFault> {
        let read = UnverifiedJwtSvid::read(token)?;
        let compared = [
            ("key ID", read.key_id() == intent.key_id),
            ("subject", read.id() == &intent.id),
            ("time of issue", read.issued_at().map(unix_seconds) == Some(intent.issued_at)),
            ("end", unix_seconds(read.expires_at()) == intent.expires_at),
        ];
        if let Some((claim, _)) = compared.iter().find(|(_, same)| !same) {
            return Err(JwtReadBackFault::Claim(claim));
        }
        if *self.proved.lock().unwrap_or_else(PoisonError::into_inner) == key.key_id {
            return Ok(());
        }
        let authority = JwtAuthority {
            key_id: key.key_id.clone(),
            public_key: key.key.public_key_der().to_vec(),
            expires_at: unix_seconds(key.not_after),
            tainted: false,
        };
        let svid = read.verify(&[authority], &intent.audience, from_unix_seconds(intent.issued_at))?;
        if svid.audience() != intent.audience || svid.algorithm().name() != intent.algorithm {
            return Err(JwtReadBackFault::Claim("audience or algorithm"));
        }
        *self.proved.lock().unwrap_or_else(PoisonError::into_inner) = key.key_id.clone();
        Ok(())
    }
}

fn record(kind: IssuedKind, intent: &JwtIntent) -> IssuedRecord {
    IssuedRecord {
        kind,
        serial: intent.jti.clone().unwrap_or_default(),
        spiffe_id: intent.id.to_string(),
        authority_id: intent.key_id.clone(),
        not_before: intent.issued_at,
        not_after: intent.expires_at,
        ..IssuedRecord::default()
    }
}
