//! What an agent's SVID is worth right now.
//!
//! The server remembers the serial number of the SVID that each agent uses, and of the one it was given last when it
//! renewed. The second becomes the first when it is first used, and from then on the older one is worthless, on open
//! connections too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use finial_daemon::clock::Clock;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509_svid::X509Svid;

use crate::entries::feed::Feed;
use crate::store::agents::AttestedNode;
use crate::store::{Store, StoreError};

/// The outcome of [`Standings::of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Active,
    /// The SVID shown has expired.
    Expired,
    /// No such node: never attested, evicted or pruned.
    NotAttested,
    /// Another SVID is in use.
    NotActive {
        expected: String,
    },
    Banned,
}

/// What [`assess`] found: a standing, or the need to write first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assessment {
    Settled(Standing),
    /// The SVID that was handed out at the last renewal is used for the first time. Once the store says so, the agent is
    /// active.
    Promote,
}

/// How long what was last read of an agent stands in for the database while that is away. No longer than an SVID of the
/// default lifetime: whoever is banned meanwhile is cut off by then.
pub const OUTAGE_LIMIT: Duration = Duration::from_secs(3600);

/// The standing of agents. Clones share what they remember.
#[derive(Clone)]
pub struct Standings {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    /// What was read last of the agents that call, for as long as the database is away.
    known: Mutex<HashMap<SpiffeId, Known>>,
}

struct Known {
    /// Without its selectors.
    node: AttestedNode,
    /// When it was read (running time).
    at: Duration,
}

impl Standings {
    pub fn new(store: Store, clock: Clock) -> Standings {
        Standings { inner: Arc::new(Inner { store, clock, known: Mutex::default() }) }
    }

    /// The standing of the agent that shows this SVID. A promotion is written before the answer.
    ///
    /// While the database is away, an agent that was active when it was last looked at stays so for [`OUTAGE_LIMIT`], with
    /// the SVID that it was given last too.
    ///
    /// # Errors
    ///
    /// When the store cannot be read, and nothing that is recent enough is known.
    pub async fn of(&self, svid: &X509Svid) -> Result<Standing, StoreError> {
        let now = self.inner.clock.now();
        match self.read(svid, now).await {
            Err(error) if error.is_outage() => self.remembered(svid, now).ok_or(error),
            standing => standing,
        }
    }

    /// Forgets agents as they change, and what has become too old. Never ends.
    pub async fn follow(self, feed: Feed) {
        let mut snapshots = feed.subscribe();
        let mut seen = snapshots.borrow_and_update().version();
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = self.inner.clock.sleep(OUTAGE_LIMIT) => {}
            }
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let now = self.inner.clock.monotonic();
            let mut known = self.known();
            match snapshot.changes_since(seen) {
                Some(changes) => {
                    changes.flat_map(|change| change.agents()).for_each(|agent| _ = known.remove(agent));
                }
                None => known.clear(),
            }
            known.retain(|_, known| now.saturating_sub(known.at) < OUTAGE_LIMIT);
            seen = snapshot.version();
        }
    }

    async fn read(&self, svid: &X509Svid, now: SystemTime) -> Result<Standing, StoreError> {
        let store = &self.inner.store;
        let serial = svid.serial_decimal();
        // An expired SVID is worth nothing whatever the store says.
        let mut node = if now > svid.not_after() { None } else { store.agents().get(svid.id()).await? };
        let mut assessment = assess(node.as_ref(), &serial, svid.not_after(), now);
        if assessment == Assessment::Promote {
            let promoted = store.agents().promote(svid.id(), &serial).await.inspect_err(|error| {
                tracing::warn!(
                    agent_id = %svid.id(),
                    svid_serial_num = serial,
                    %error,
                    "Unable to activate the new agent SVID"
                );
            })?;
            node = match promoted {
                Some(node) => Some(node),
                // Another call was faster: it promoted the same SVID, or replaced or banned it.
                None => store.agents().get(svid.id()).await?,
            };
            assessment = assess(node.as_ref(), &serial, svid.not_after(), now);
        }
        self.remember(svid.id(), node.as_ref());
        let standing = match assessment {
            Assessment::Settled(standing) => standing,
            Assessment::Promote => {
                Standing::NotActive { expected: node.map(|n| n.serial_number).unwrap_or_default() }
            }
        };
        log(svid.id(), &serial, &standing);
        Ok(standing)
    }

    fn remember(&self, id: &SpiffeId, node: Option<&AttestedNode>) {
        let mut known = self.known();
        match node {
            Some(node) => {
                let node = AttestedNode { selectors: Vec::new(), ..node.clone() };
                known.insert(id.clone(), Known { node, at: self.inner.clock.monotonic() });
            }
            None => _ = known.remove(id),
        }
    }

    /// The standing by what was read last. What it does not clearly allow is left to the database to decide.
    fn remembered(&self, svid: &X509Svid, now: SystemTime) -> Option<Standing> {
        let known = self.known();
        let known = known.get(svid.id())?;
        if self.inner.clock.monotonic().saturating_sub(known.at) >= OUTAGE_LIMIT {
            return None;
        }
        match assess(Some(&known.node), &svid.serial_decimal(), svid.not_after(), now) {
            Assessment::Settled(Standing::Active) | Assessment::Promote => Some(Standing::Active),
            Assessment::Settled(Standing::Expired) => Some(Standing::Expired),
            Assessment::Settled(_) => None,
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SpiffeId, Known>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The plain decision. `serial` is that of the SVID shown, in decimal, and `not_after` its end.
pub fn assess(
    node: Option<&AttestedNode>,
    serial: &str,
    not_after: SystemTime,
    now: SystemTime,
) -> Assessment {
    let standing = match node {
        _ if now > not_after => Standing::Expired,
        None => Standing::NotAttested,
        Some(node) if node.serial_number.is_empty() => Standing::Banned,
        Some(node) if node.serial_number == serial => Standing::Active,
        Some(node) if !serial.is_empty() && node.new_serial_number == serial => return Assessment::Promote,
        Some(node) => Standing::NotActive { expected: node.serial_number.clone() },
    };
    Assessment::Settled(standing)
}

fn log(id: &SpiffeId, serial: &str, standing: &Standing) {
    match standing {
        Standing::Active => {}
        Standing::Expired => tracing::error!(agent_id = %id, "Agent SVID is expired"),
        Standing::NotAttested => tracing::error!(agent_id = %id, "Agent is not attested"),
        Standing::Banned => tracing::error!(agent_id = %id, "Agent is banned"),
        Standing::NotActive { expected } => tracing::error!(
            agent_id = %id,
            svid_serial_num = serial,
            serial_num = expected,
            "Agent SVID is not active"
        ),
    }
}

#[cfg(test)]
mod tests {
    use finial_daemon::clock::unix_seconds;

    use super::*;
    use crate::access::fixture::{Authority, noon};
    use crate::store::OpenSettings;

    fn node(id: &SpiffeId, serial: &str, new_serial: &str) -> AttestedNode {
        AttestedNode {
            spiffe_id: id.clone(),
            attestation_type: "join_token".into(),
            serial_number: serial.into(),
            expires_at: 100,
            new_serial_number: new_serial.into(),
            new_expires_at: 200,
            can_reattest: false,
            agent_version: "1.15".into(),
            selectors: Vec::new(),
        }
    }

    #[test]
    fn the_table() {
        let id = SpiffeId::parse("spiffe://example.org/spire/agent/join_token/a").unwrap();
        let not_active =
            |expected: &str| Assessment::Settled(Standing::NotActive { expected: expected.into() });
        let settled = Assessment::Settled;
        // Current and new serial in the store, serial shown, seconds until it ends.
        let cases = [
            (Some(("7", "")), "7", 1, settled(Standing::Active)),
            (Some(("7", "")), "7", 0, settled(Standing::Active)),
            (Some(("7", "")), "7", -1, settled(Standing::Expired)),
            (Some(("7", "8")), "7", 1, settled(Standing::Active)),
            (Some(("7", "8")), "8", 1, Assessment::Promote),
            (Some(("7", "8")), "8", -1, settled(Standing::Expired)),
            (Some(("7", "8")), "9", 1, not_active("7")),
            (Some(("7", "")), "8", 1, not_active("7")),
            (Some(("7", "")), "", 1, not_active("7")),
            (Some(("", "")), "7", 1, settled(Standing::Banned)),
            (Some(("", "")), "", 1, settled(Standing::Banned)),
            (Some(("", "8")), "8", 1, settled(Standing::Banned)),
            (None, "7", 1, settled(Standing::NotAttested)),
            (None, "7", -1, settled(Standing::Expired)),
        ];
        for (number, (stored, serial, left, expected)) in cases.into_iter().enumerate() {
            let node = stored.map(|(current, new)| node(&id, current, new));
            let now = noon();
            let not_after =
                if left < 0 { now - Duration::from_secs(1) } else { now + Duration::from_secs(left as u64) };
            assert_eq!(assess(node.as_ref(), serial, not_after, now), expected, "case {number}");
        }
    }

    #[tokio::test]
    async fn the_first_use_of_a_renewed_svid_ends_the_old_one() {
        let authority = Authority::new("example.org");
        let clock = Clock::paused(noon());
        let store =
            Store::open(OpenSettings::new(":memory:", authority.td.clone(), clock.clone())).await.unwrap();
        let standings = Standings::new(store.clone(), clock.clone());
        let path = "/spire/agent/join_token/a";
        let (old, new) = (authority.svid(path, 7).caller(), authority.svid(path, 8).caller());
        let (old, new) = (old.svid().unwrap(), new.svid().unwrap());
        assert_eq!(standings.of(old).await.unwrap(), Standing::NotAttested);
        store.agents().create(node(old.id(), "7", "")).await.unwrap();
        store.agents().set_pending(old.id(), "8", unix_seconds(new.not_after())).await.unwrap();

        assert_eq!(standings.of(old).await.unwrap(), Standing::Active, "until the new one is used");
        let both = tokio::join!(standings.of(new), standings.of(new), standings.of(new));
        assert_eq!(
            (both.0.unwrap(), both.1.unwrap(), both.2.unwrap()),
            (Standing::Active, Standing::Active, Standing::Active)
        );
        let stored = store.agents().get(old.id()).await.unwrap().unwrap();
        assert_eq!((stored.serial_number.as_str(), stored.new_serial_number.as_str()), ("8", ""));
        assert_eq!(stored.expires_at, unix_seconds(new.not_after()));
        assert_eq!(standings.of(old).await.unwrap(), Standing::NotActive { expected: "8".into() });

        store.agents().ban(old.id()).await.unwrap();
        assert_eq!(standings.of(new).await.unwrap(), Standing::Banned);
        store.agents().delete(old.id()).await.unwrap();
        assert_eq!(standings.of(new).await.unwrap(), Standing::NotAttested);
        clock.jump(3601);
        assert_eq!(standings.of(new).await.unwrap(), Standing::Expired);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_active_stays_so_for_an_hour_without_the_database() {
        use crate::store::tests::engines::{Database, Fresh};

        let Some(fresh) = Fresh::postgres() else { return };
        let authority = Authority::new("example.org");
        let clock = Clock::paused(noon());
        let (mut relay, mut settings) = Database::new(fresh).await.behind_relay().await;
        settings.clock = clock.clone();
        let store = Store::open(settings).await.unwrap();
        let standings = Standings::new(store.clone(), clock.clone());
        let callers = [("a", 7), ("a", 8), ("banned", 7), ("unseen", 7)].map(|(name, serial)| {
            authority.svid(&format!("/spire/agent/join_token/{name}"), serial).caller()
        });
        let [current, pending, banned, unseen] = callers.each_ref().map(|caller| caller.svid().unwrap());
        for svid in [current, banned, unseen] {
            store.agents().create(node(svid.id(), "7", "")).await.unwrap();
        }
        store.agents().set_pending(current.id(), "8", unix_seconds(pending.not_after())).await.unwrap();
        store.agents().ban(banned.id()).await.unwrap();
        assert_eq!(standings.of(current).await.unwrap(), Standing::Active);
        assert_eq!(standings.of(banned).await.unwrap(), Standing::Banned);

        relay.cut().await;
        assert_eq!(standings.of(current).await.unwrap(), Standing::Active);
        assert_eq!(
            standings.of(pending).await.unwrap(),
            Standing::Active,
            "ours, though it cannot be promoted"
        );
        for svid in [banned, unseen] {
            assert!(standings.of(svid).await.unwrap_err().is_outage());
        }
        tokio::time::advance(OUTAGE_LIMIT - Duration::from_secs(1)).await;
        assert_eq!(standings.of(current).await.unwrap(), Standing::Active);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(standings.of(pending).await.unwrap_err().is_outage());

        relay.restore();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(store.agents().get(unseen.id()).await.unwrap().is_some());
    }
}
