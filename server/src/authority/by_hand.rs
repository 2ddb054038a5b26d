//! Rotation by hand: what an operator may order of authorities in which standing, and the way to their drivers.
//!
//! The rules and their texts are SPIRE's.

use std::fmt;

use finial_identity::bundle::Bundle;
use tokio::sync::{mpsc, oneshot};

use super::drive::DriveError;
use super::rotate::Standing;

/// An authority as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// X.509: lowercase hex of the subject key identifier; JWT: the key ID.
    pub authority_id: String,
    /// Unix seconds.
    pub expires_at: i64,
    /// Lowercase hex of the key identifier of whoever signed it; empty when nobody did.
    pub upstream_authority_id: String,
}

/// Which authorities of a kind there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    pub active: Option<State>,
    /// The one in the other slot.
    pub next: Option<(Standing, State)>,
}

/// Why an authority may not be treated so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    #[error("server is initializing")]
    Initializing,
    #[error("no authority ID provided")]
    NoId,
    #[error("unexpected authority ID")]
    UnexpectedId,
    #[error("only Prepared authorities can be activated: {0}")]
    ActivateOther(Unsupported),
    #[error("unable to taint current local authority")]
    TaintActive,
    #[error("only Old local authorities can be tainted: {0}")]
    TaintOther(Unsupported),
    #[error("unable to use current authority")]
    RevokeActive,
    #[error("only Old local authority can be revoked")]
    RevokeOther,
    #[error("unable to use a prepared key")]
    RevokePreparedKey,
    #[error("no JWT authority found with provided authority ID")]
    NoSuchKey,
    #[error("no subject key ID provided")]
    NoSubjectKeyId,
    #[error("unable to use upstream authority singing current authority")]
    UpstreamOfActive,
    #[error("upstream authority didn't sign the old local authority")]
    NotUpstreamOfOld,
    #[error("only upstream authorities signing an old authority can be used")]
    UpstreamOfPrepared,
}

/// The standing that an authority should not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported(Standing);

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Rule(#[from] Rule),
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error("the server is stopping")]
    Stopping,
}

/// The drivers of all kinds, as operators reach them. Cheap to clone.
#[derive(Clone)]
pub struct ByHand {
    pub x509: Orders,
    /// `None` when JWT-SVIDs are switched off.
    pub jwt: Option<Orders>,
    /// Whether an upstream authority signs our CA.
    pub has_upstream: bool,
}

/// The way to the driver of one kind. Cheap to clone.
#[derive(Clone)]
pub struct Orders {
    pub(super) driver: mpsc::Sender<Order>,
}

/// What the driver shall do between two of its steps, and who waits for it.
pub(super) struct Order {
    pub(super) wish: Wish,
    pub(super) answer: oneshot::Sender<Result<Standings, OrderError>>,
}

pub(super) enum Wish {
    Show,
    Prepare,
    Activate(String),
}

impl Orders {
    /// What there is.
    pub async fn show(&self) -> Result<Standings, OrderError> {
        self.send(Wish::Show).await
    }

    /// Makes an authority and puts it into the bundle, in the place of the one that was prepared or old.
    pub async fn prepare(&self) -> Result<Standings, OrderError> {
        self.send(Wish::Prepare).await
    }

    /// Lets the prepared authority sign; its ID must be this.
    pub async fn activate(&self, authority_id: &str) -> Result<Standings, OrderError> {
        self.send(Wish::Activate(authority_id.to_owned())).await
    }

    async fn send(&self, wish: Wish) -> Result<Standings, OrderError> {
        let (answer, answered) = oneshot::channel();
        self.driver.send(Order { wish, answer }).await.map_err(|_| OrderError::Stopping)?;
        answered.await.map_err(|_| OrderError::Stopping)?
    }
}

impl Standings {
    pub fn prepared(&self) -> Option<&State> {
        self.next_as(Standing::Prepared)
    }

    pub fn old(&self) -> Option<&State> {
        self.next_as(Standing::Old)
    }

    /// Only the prepared authority may begin to sign.
    pub fn may_activate(&self, authority_id: &str) -> Result<(), Rule> {
        match self.named(authority_id)? {
            Standing::Prepared => Ok(()),
            other => Err(Rule::ActivateOther(Unsupported(other))),
        }
    }

    /// Only the old authority may be tainted.
    pub fn may_taint(&self, authority_id: &str) -> Result<(), Rule> {
        if !authority_id.is_empty() && self.is_active(authority_id) {
            return Err(Rule::TaintActive);
        }
        match self.named(authority_id)? {
            Standing::Old => Ok(()),
            other => Err(Rule::TaintOther(Unsupported(other))),
        }
    }

    /// Of X.509 authorities only the old one may be revoked.
    pub fn may_revoke_x509(&self, authority_id: &str) -> Result<(), Rule> {
        if !authority_id.is_empty() && self.is_active(authority_id) {
            return Err(Rule::RevokeActive);
        }
        match self.named(authority_id) {
            Ok(Standing::Old) => Ok(()),
            Err(Rule::NoId) => Err(Rule::NoId),
            _ => Err(Rule::RevokeOther),
        }
    }

    /// Of JWT keys any in the bundle may be revoked, other servers' too, except those that this server needs.
    pub fn may_revoke_jwt(&self, authority_id: &str, bundle: &Bundle) -> Result<(), Rule> {
        match self.named(authority_id) {
            Ok(Standing::Prepared) => Err(Rule::RevokePreparedKey),
            Ok(_) => Ok(()),
            Err(Rule::NoId) => Err(Rule::NoId),
            Err(_) if self.is_active(authority_id) => Err(Rule::RevokeActive),
            Err(_) if bundle.jwt_authority(authority_id).is_some() => Ok(()),
            Err(_) => Err(Rule::NoSuchKey),
        }
    }

    /// Only an upstream authority that signed the old CA, and not the one in use, may be tainted or revoked. Lowercase
    /// hex.
    pub fn may_drop_upstream(&self, subject_key_id: &str) -> Result<(), Rule> {
        let signed = |state: &State| state.upstream_authority_id == subject_key_id;
        if subject_key_id.is_empty() {
            return Err(Rule::NoSubjectKeyId);
        }
        if self.active.as_ref().is_some_and(signed) {
            return Err(Rule::UpstreamOfActive);
        }
        match &self.next {
            Some((standing, state)) if signed(state) => match standing {
                Standing::Prepared => Err(Rule::UpstreamOfPrepared),
                _ => Ok(()),
            },
            _ => Err(Rule::NotUpstreamOfOld),
        }
    }

    /// The standing of the authority in the other slot, which must have this ID.
    fn named(&self, authority_id: &str) -> Result<Standing, Rule> {
        match &self.next {
            _ if authority_id.is_empty() => Err(Rule::NoId),
            Some((standing, state)) if state.authority_id == authority_id => Ok(*standing),
            _ => Err(Rule::UnexpectedId),
        }
    }

    fn is_active(&self, authority_id: &str) -> bool {
        self.active.as_ref().is_some_and(|state| state.authority_id == authority_id)
    }

    fn next_as(&self, wanted: Standing) -> Option<&State> {
        self.next.as_ref().filter(|(standing, _)| *standing == wanted).map(|(_, state)| state)
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            Standing::Prepared => "PREPARED",
            Standing::Active => "ACTIVE",
            Standing::Old => "OLD",
        };
        write!(f, "unsupported local authority status: {name}")
    }
}
