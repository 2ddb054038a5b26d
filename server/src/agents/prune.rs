//! Removal of what has served its time: expired entries, join tokens, old events and, if the operator says so, nodes.

use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::metrics::UNKNOWN;

use crate::entries::feed::Feed;
use crate::store::{Store, StoreError};

const ENTRIES_EVERY: Duration = Duration::from_secs(5 * 60);
const TOKENS_EVERY: Duration = Duration::from_secs(5 * 60);
const NODES_EVERY: Duration = Duration::from_secs(3600);
/// Servers on one database should not all prune nodes at the same moment.
const NODES_JITTER: Duration = Duration::from_secs(15 * 60);

/// What is pruned, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneSettings {
    /// `prune_events_older_than`.
    pub events_older_than: Duration,
    /// `prune_attested_nodes_expired_for` and what belongs to it; `None`: nodes are kept.
    pub nodes: Option<NodePruning>,
}

/// Which nodes are forgotten. Banned ones never are: that would lift the ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePruning {
    pub expired_for: Duration,
    /// `prune_attested_nodes_batch_size`.
    pub batch: u32,
    /// `prune_tofu_nodes`: also those that could not attest again otherwise.
    pub include_tofu: bool,
}

impl Default for PruneSettings {
    fn default() -> PruneSettings {
        PruneSettings { events_older_than: Duration::from_secs(12 * 3600), nodes: None }
    }
}

/// Prunes until dropped. A failure is logged, and tried again when its time comes round.
pub async fn run(store: Store, feed: Feed, clock: Clock, settings: PruneSettings) {
    let events_every = (settings.events_older_than / 2).max(Duration::from_secs(60));
    let nodes_every = NODES_EVERY - NODES_JITTER + rand::random_range(Duration::ZERO..2 * NODES_JITTER);
    let ago = |age: Duration| clock.unix() - i64::try_from(age.as_secs()).unwrap_or(i64::MAX);

    let entries = async {
        loop {
            clock.sleep(ENTRIES_EVERY).await;
            let entries = store.entries();
            let prune = entries.prune_expired(clock.unix());
            let pruned = counted(&store, &["registration_entry", "manager", "prune"], prune).await;
            after("registration entries", &feed, pruned.map(|pruned| !pruned.is_empty()));
        }
    };
    let tokens = async {
        loop {
            clock.sleep(TOKENS_EVERY).await;
            after("join tokens", &feed, store.tokens().prune(clock.unix()).await.map(|_| false));
        }
    };
    let events = async {
        loop {
            clock.sleep(events_every).await;
            after(
                "events",
                &feed,
                store.events().prune(ago(settings.events_older_than)).await.map(|_| false),
            );
        }
    };
    let nodes = async {
        let Some(pruning) = settings.nodes else { return };
        loop {
            clock.sleep(nodes_every).await;
            let before = ago(pruning.expired_for);
            let agents = store.agents();
            let prune = agents.prune(before, pruning.include_tofu, pruning.batch);
            let pruned = counted(&store, &["node", "manager", "prune"], prune).await;
            after("expired nodes", &feed, pruned.map(|pruned| !pruned.is_empty()));
        }
    };
    tokio::join!(entries, tokens, events, nodes);
}

async fn counted<T>(
    store: &Store,
    words: &[&'static str],
    prune: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    store.metrics().timed(words, |_| UNKNOWN, prune).await
}

/// Has the snapshot follow where something that it shows is gone.
fn after(what: &'static str, feed: &Feed, pruned: Result<bool, StoreError>) {
    match pruned {
        Ok(true) => feed.poke(),
        Ok(false) => {}
        Err(error) if error.is_outage() => {}
        Err(error) => tracing::error!(%error, "Failed pruning {what}"),
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::entry::Entry;

    use super::*;
    use crate::access::fixture::noon;
    use crate::entries::feed::FeedSettings;
    use crate::entries::fixture::{entry, id, td};
    use crate::store::OpenSettings;
    use crate::store::agents::AttestedNode;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    async fn open() -> (Store, Feed, Clock) {
        let clock = Clock::paused(noon());
        let store = Store::open(OpenSettings::new(":memory:", td(), clock.clone())).await.unwrap();
        let settings = FeedSettings { reload: 365 * DAY, full_reload: 365 * DAY, ..FeedSettings::default() };
        let (feed, task) = Feed::open(store.clone(), clock.clone(), settings).await.unwrap();
        tokio::spawn(task.run());
        (store, feed, clock)
    }

    async fn agent(store: &Store, name: &str, serial: &str, can_reattest: bool, expires_at: i64) {
        let node = AttestedNode {
            spiffe_id: id(&format!("/spire/agent/join_token/{name}")),
            attestation_type: "join_token".into(),
            serial_number: serial.into(),
            expires_at,
            new_serial_number: String::new(),
            new_expires_at: 0,
            can_reattest,
            agent_version: String::new(),
            selectors: Vec::new(),
        };
        store.agents().create(node).await.unwrap();
    }

    async fn agents(store: &Store) -> Vec<String> {
        let nodes = store.agents().list(&Default::default()).await.unwrap().items;
        nodes.iter().filter_map(|node| node.spiffe_id.path().rsplit('/').next().map(str::to_owned)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn expired_entries_tokens_and_old_events_go() {
        let (store, feed, clock) = open().await;
        let now = clock.unix();
        let lasting =
            |name: &str, expires_at| Entry { expires_at, ..entry(name, "/p", "/w", &[&format!("a:{name}")]) };
        for (name, expires_at) in [("never", 0), ("soon", now + 10), ("later", now + 1000)] {
            store.entries().create(lasting(name, expires_at)).await.unwrap();
            if expires_at != 0 {
                store.tokens().create(name, expires_at, None).await.unwrap();
            }
        }
        feed.changed().await;
        tokio::spawn(run(store.clone(), feed.clone(), clock.clone(), PruneSettings::default()));

        clock.sleep(Duration::from_secs(299)).await;
        assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 3, "expired, not pruned yet");
        clock.sleep(Duration::from_secs(2)).await;
        assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 2);
        assert_eq!(store.tokens().expiry("soon").await.unwrap(), None);
        assert!(store.tokens().expiry("later").await.unwrap().is_some());
        clock.sleep(Duration::from_secs(1000)).await;
        assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 1);
        feed.changed().await;
        assert_eq!(feed.snapshot().entry_count(), 1);

        assert!(!store.events().entries_after(0).await.unwrap().is_empty());
        clock.sleep(DAY).await;
        assert!(store.events().entries_after(0).await.unwrap().is_empty(), "older than twelve hours");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_go_only_as_told() {
        for (nodes, left) in [
            (None, vec!["fresh", "reattests", "tofu", "banned"]),
            (
                Some(NodePruning { expired_for: DAY, batch: 1000, include_tofu: false }),
                vec!["fresh", "tofu", "banned"],
            ),
            (
                Some(NodePruning { expired_for: DAY, batch: 1000, include_tofu: true }),
                vec!["fresh", "banned"],
            ),
        ] {
            let (store, feed, clock) = open().await;
            let now = clock.unix();
            agent(&store, "fresh", "1", true, now).await;
            agent(&store, "reattests", "2", true, now - 2 * 86_400).await;
            agent(&store, "tofu", "3", false, now - 2 * 86_400).await;
            agent(&store, "banned", "", true, now - 2 * 86_400).await;
            let settings = PruneSettings { nodes, ..PruneSettings::default() };
            let pruning = tokio::spawn(run(store.clone(), feed, clock.clone(), settings));
            clock.sleep(NODES_EVERY - NODES_JITTER - Duration::from_secs(1)).await;
            assert_eq!(agents(&store).await.len(), 4, "too early");
            clock.sleep(2 * NODES_JITTER + Duration::from_secs(2)).await;
            assert_eq!(agents(&store).await, left);
            pruning.abort();
        }
    }
}
