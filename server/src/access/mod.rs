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

#[cfg(test)]
pub(crate) mod fixture;

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

#[cfg(test)]
mod tests {
    use finial_identity::entry::Entry;

    use super::*;
    use crate::access::fixture::{Authority, anonymous, local, noon};
    use crate::access::limit::Switches;
    use crate::access::permit::{Reason, Role};
    use crate::entries::fixture::{entry, id, td};
    use crate::entries::snapshot::Rows;
    use crate::store::OpenSettings;
    use crate::store::agents::AttestedNode;

    const LIST: &str = "/spire.api.server.entry.v1.Entry/ListEntries";
    const SYNC: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";
    const DOWNSTREAM: &str = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA";

    struct Bench {
        access: Access,
        store: Store,
        snapshots: watch::Sender<Arc<Snapshot>>,
        authority: Authority,
    }

    impl Bench {
        async fn new() -> Bench {
            let clock = Clock::paused(noon());
            let store = Store::open(OpenSettings::new(":memory:", td(), clock.clone())).await.unwrap();
            let (snapshots, current) = watch::channel(Arc::new(Snapshot::empty(td())));
            let limits = Limits::new(clock.clone(), Switches::default());
            let access = Access::new([id("/configured")].into(), current, store.clone(), limits, clock);
            Bench { access, store, snapshots, authority: Authority::new("example.org") }
        }

        async fn role(&self, method: &str, caller: &Caller) -> Result<Role, Option<Reason>> {
            match self.access.permit(method, caller).await {
                Ok(granted) => Ok(granted.role()),
                Err(AccessError::Refused(refusal)) => Err(refusal.reason),
                Err(AccessError::Unknown(error)) => panic!("{error}"),
            }
        }

        fn caller(&self, path: &str, serial: u64) -> Caller {
            self.authority.svid(path, serial).caller()
        }
    }

    #[tokio::test]
    async fn facts_come_from_settings_snapshot_and_store() {
        let bench = Bench::new().await;
        let agent = bench.caller("/spire/agent/join_token/a", 7);
        assert_eq!(bench.role(LIST, &local()).await, Ok(Role::Local));
        assert_eq!(bench.role(LIST, &anonymous()).await, Err(None));
        assert_eq!(bench.role(LIST, &bench.caller("/configured", 3)).await, Ok(Role::ConfiguredAdmin));
        assert_eq!(bench.role(SYNC, &agent).await, Err(Some(Reason::AgentNotAttested)));
        assert_eq!(bench.role(SYNC, &local()).await, Err(None));
        assert_eq!(bench.role("/spire.api.server.entry.v1.Entry/Missing", &local()).await, Err(None));

        let node = AttestedNode {
            spiffe_id: agent.spiffe_id().unwrap().clone(),
            attestation_type: "join_token".into(),
            serial_number: "6".into(),
            expires_at: 0,
            new_serial_number: "7".into(),
            new_expires_at: 0,
            can_reattest: false,
            agent_version: String::new(),
            selectors: Vec::new(),
        };
        bench.store.agents().create(node).await.unwrap();
        assert_eq!(bench.role(SYNC, &agent).await, Ok(Role::Agent));
        let previous = bench.caller("/spire/agent/join_token/a", 6);
        assert_eq!(
            bench.role(SYNC, &previous).await,
            Err(Some(Reason::AgentNotActive)),
            "promoted by the call above"
        );

        let admin = bench.caller("/admin", 9);
        assert_eq!(bench.role(LIST, &admin).await, Err(None));
        let row = Entry { admin: true, downstream: true, ..entry("a", "/p", "/admin", &["a:1"]) };
        let rows = Rows { entries: vec![("a".into(), Some(row))], ..Rows::default() };
        let next = bench.snapshots.borrow().with(rows, 0).unwrap();
        bench.snapshots.send_replace(Arc::new(next));
        assert_eq!(bench.role(LIST, &admin).await, Ok(Role::Admin));
        assert_eq!(bench.role(DOWNSTREAM, &admin).await, Ok(Role::Downstream));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_taken_by_the_row_and_the_address() {
        let bench = Bench::new().await;
        let attest = "/spire.api.server.agent.v1.Agent/AttestAgent";
        let granted = bench.access.permit(attest, &anonymous()).await.unwrap();
        for _ in 0..3 {
            bench.access.take(&granted, 1, None).await.unwrap();
        }
        assert!(bench.access.clock.monotonic() >= Duration::from_millis(1990));
        bench.access.take(&granted, 1, Some(Duration::from_millis(1))).await.unwrap_err();
        let free = bench.access.permit(attest, &local()).await.unwrap();
        bench.access.take(&free, 1000, Some(Duration::ZERO)).await.unwrap();
    }
}
