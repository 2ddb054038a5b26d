//! Removal of what has served its time: expired entries, join tokens, old events and, if the operator says so, nodes.

use std::time::Duration;

use finial_daemon::clock::Clock;

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

    let entries = every(&clock, ENTRIES_EVERY, "registration entries", async || {
        if !store.entries().prune_expired(clock.unix()).await?.is_empty() {
            feed.poke();
        }
        Ok(())
    });
    let tokens = every(&clock, TOKENS_EVERY, "join tokens", async || {
        store.tokens().prune(clock.unix()).await?;
        Ok(())
    });
    let events = every(&clock, events_every, "events", async || {
        store.events().prune(ago(settings.events_older_than)).await?;
        Ok(())
    });
    let nodes = async {
        let Some(pruning) = settings.nodes else { return };
        every(&clock, nodes_every, "expired nodes", async || {
            let before = ago(pruning.expired_for);
            if !store.agents().prune(before, pruning.include_tofu, pruning.batch).await?.is_empty() {
                feed.poke();
            }
            Ok(())
        })
        .await;
    };
    tokio::join!(entries, tokens, events, nodes);
}

async fn every(
    clock: &Clock,
    interval: Duration,
    what: &'static str,
    work: impl AsyncFn() -> Result<(), StoreError>,
) {
    loop {
        clock.sleep(interval).await;
        if let Err(error) = work().await {
            tracing::error!(%error, "Failed pruning {what}");
        }
    }
}
