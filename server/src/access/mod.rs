//! Who is calling, and what that lets them do.
//!
//! - [`handshake`]: TLS of the network listener; [`caller`]: who a connection belongs to.
//! - [`permit`]: one row for each method, and the decision as a plain function. [`Access::permit`] collects the facts for it.
//! - [`limit`]: rate limits; [`audit`]: the audit log.

pub mod audit;
pub mod caller;
pub mod handshake;
pub mod limit;
pub mod permit;

use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_identity::spiffe_id::SpiffeId;
use tokio::sync::watch;

use crate::agents::standing;
use crate::entries::snapshot::Snapshot;
use crate::store::{Store, StoreError};

use caller::Caller;
use limit::{LimitFault, Limits};
use permit::{Facts, Granted, Refusal};

/// Decides about calls. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    admin_ids: Arc<[SpiffeId]>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    store: Store,
    limits: Limits,
    clock: Clock,
}

/// Why a call does not go ahead.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// `PERMISSION_DENIED`, with [`Refusal::reason`] in the details.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// `INTERNAL`: whether the agent may call is not known.
    #[error("unable to look up agent information: {0}")]
    Unknown(#[from] StoreError),
}

impl Access {
    pub fn new(
        admin_ids: Arc<[SpiffeId]>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        store: Store,
        limits: Limits,
        clock: Clock,
    ) -> Access {
        Access { admin_ids, snapshots, store, limits, clock }
    }

    /// Whether `caller` may call `method` (`/package.Service/Method`). The database is read only to learn the standing of
    /// an agent, and written only when an agent uses a renewed SVID for the first time.
    pub async fn permit(&self, method: &str, caller: &Caller) -> Result<Granted, AccessError> {
        let Some(row) = permit::row(method) else {
            return Err(Refusal { method: method.to_owned(), reason: None }.into());
        };
        let flags = caller.spiffe_id().map(|id| self.snapshots.borrow().flags(id)).unwrap_or_default();
        let mut facts =
            Facts { caller, admin_ids: &self.admin_ids, flags, standing: None, now: self.clock.now() };
        if let Some(svid) = caller.svid().filter(|_| permit::asks_standing(row, &facts)) {
            facts.standing = Some(standing::of(&self.store, svid, facts.now).await?);
        }
        permit::decide(row, &facts).inspect_err(log_refusal(caller)).map_err(AccessError::from)
    }

    /// Takes `count` tokens for a call that was let in, or waits for them; see [`limit`]. `patience` is the call's
    /// remaining deadline.
    pub async fn take(
        &self,
        granted: &Granted,
        count: usize,
        patience: Option<Duration>,
    ) -> Result<(), LimitFault> {
        self.limits.take(granted.row().limit, granted.caller().ip(), count, patience).await
    }
}

fn log_refusal(caller: &Caller) -> impl Fn(&Refusal) + '_ {
    |refusal| {
        tracing::error!(
            caller_addr = caller.address().map(tracing::field::display),
            caller_id = caller.spiffe_id().map(tracing::field::display),
            reason = refusal.reason.map(tracing::field::debug),
            error = %refusal,
            "Failed to authenticate caller"
        );
    }
}
