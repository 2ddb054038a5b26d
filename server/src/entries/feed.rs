//! Keeps the snapshot in step with the database.
//!
//! One task owns the snapshot. It reads everything once, and then only what the event tables name: at once after a write
//! of this server ([`Feed::changed`]), and each reload interval for what other servers wrote. Nothing else reads whole
//! tables, no request ever does; once a day the task compares the snapshot with the tables, in pages, in case somebody
//! changed rows without an event. Entries are dropped by timer at the second in which they expire.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use finial_daemon::clock::{Clock, from_unix_seconds};
use finial_daemon::metrics;
use finial_identity::spiffe_id::SpiffeId;
use tokio::sync::{Notify, watch};

use super::gaps::{LostPlace, Place};
use super::snapshot::{Rows, Snapshot};
use crate::store::events::{EventsFound, EventsWanted};
use crate::store::{Store, StoreError};

/// How far back before the newest event the first reading looks for transactions under way.
const LOOK_BACK: i64 = 1000;

/// How often, and how much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedSettings {
    /// `cache_reload_interval`: how long a change by another server may go unseen.
    pub reload: Duration,
    /// `full_cache_reload_interval`.
    pub full_reload: Duration,
    /// `event_timeout`: how long a transaction may take.
    pub event_timeout: Duration,
    /// Rows read at once.
    pub page: u32,
}

/// Access to the current snapshot. Clones share it.
#[derive(Clone)]
pub struct Feed {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    rounds: watch::Receiver<u64>,
    asked: Arc<Asked>,
}

/// The task. Nothing is followed unless [`run`](FeedTask::run) runs.
pub struct FeedTask {
    store: Store,
    clock: Clock,
    settings: FeedSettings,
    snapshots: watch::Sender<Arc<Snapshot>>,
    rounds: watch::Sender<u64>,
    asked: Arc<Asked>,
    entry_place: Place,
    node_place: Place,
    /// Named by events and not read yet.
    pending: Pending,
    /// When entries of the snapshot expire (unix seconds), some perhaps changed since.
    expiries: BTreeSet<(i64, String)>,
    full_reload_due: Duration,
}

#[derive(Default)]
struct Asked {
    /// Rounds asked for so far.
    count: AtomicU64,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    entries: BTreeSet<String>,
    agents: BTreeSet<SpiffeId>,
}

impl Default for FeedSettings {
    fn default() -> FeedSettings {
        FeedSettings {
            reload: Duration::from_secs(5),
            full_reload: Duration::from_secs(24 * 3600),
            event_timeout: Duration::from_secs(15 * 60),
            page: 10_000,
        }
    }
}

impl Feed {
    /// Reads everything once.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn open(
        store: Store,
        clock: Clock,
        settings: FeedSettings,
    ) -> Result<(Feed, FeedTask), StoreError> {
        let asked = Arc::new(Asked::default());
        let (snapshots, current) = watch::channel(Arc::new(Snapshot::empty(store.trust_domain().clone())));
        let (rounds, done) = watch::channel(0);
        let mut task = FeedTask {
            store,
            clock,
            settings,
            snapshots,
            rounds,
            asked: Arc::clone(&asked),
            entry_place: Place::default(),
            node_place: Place::default(),
            pending: Pending::default(),
            expiries: BTreeSet::new(),
            full_reload_due: Duration::ZERO,
        };
        task.read_all().await?;
        Ok((Feed { snapshots: current, rounds: done, asked }, task))
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Told of each new snapshot.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Asks for a look at the event tables now, without waiting for it.
    pub fn poke(&self) {
        self.asked.count.fetch_add(1, Ordering::AcqRel);
        self.asked.wake.notify_one();
    }

    /// Returns when the snapshot shows everything that was committed before this call. Call it after each write, so that
    /// the next request sees it. If the store cannot be read, or the task is stopping, it returns without that: the write
    /// is safe, and shows later.
    pub async fn changed(&self) {
        let round = self.asked.count.fetch_add(1, Ordering::AcqRel) + 1;
        self.asked.wake.notify_one();
        // An error means that the task has ended.
        let _ = self.rounds.clone().wait_for(|done| *done >= round).await;
    }
}

impl FeedTask {
    /// Follows the event tables until dropped. Failures of the store are logged and tried again.
    pub async fn run(mut self) {
        let mut asked = true;
        loop {
            let round = self.asked.count.load(Ordering::Acquire);
            let call = self.store.metrics().call(&["entry", "cache", "reload"]);
            let outcome = if self.clock.monotonic() >= self.full_reload_due {
                self.read_all().await
            } else {
                // Whoever asks has written to the primary; a look by timer may as well be at the replica.
                let source = if asked { self.store.clone() } else { self.store.tolerating_stale() };
                self.follow(&source).await
            };
            call.done(if outcome.is_ok() { metrics::OK } else { metrics::UNKNOWN });
            if let Err(error) = outcome
                && !error.is_outage()
            {
                tracing::error!(%error, "Failed to update entry cache");
            }
            self.show_sizes();
            self.rounds.send_replace(round);
            asked = self.wait().await;
        }
    }

    fn show_sizes(&self) {
        if !self.store.metrics().is_heard() {
            return;
        }
        let snapshot = self.snapshots.borrow();
        let (alias_entries, alias_selectors) = snapshot.alias_counts();
        for (of, what, size) in [
            ("entry", "entries_by_entryid_cache", snapshot.entry_count()),
            ("entry", "nodealiases_by_entryid_cache", alias_entries),
            ("entry", "nodealiases_by_selector_cache", alias_selectors),
            ("entry", "skipped_entry_event_ids", self.entry_place.missing_count()),
            ("node", "agents_by_id_cache", snapshot.agent_count()),
            ("node", "skipped_node_event_ids", self.node_place.missing_count()),
        ] {
            self.store.metrics().gauge(&[of, what, "count"], size as f64);
        }
    }

    /// Until somebody asks (true) or the interval is over. Meanwhile entries expire.
    async fn wait(&mut self) -> bool {
        let until = self.clock.monotonic() + self.settings.reload;
        loop {
            self.expire();
            let left = until.saturating_sub(self.clock.monotonic());
            let next_expiry = self.expiries.first().map(|(at, _)| from_unix_seconds(*at));
            let expiry = async {
                match next_expiry {
                    Some(at) => self.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.asked.wake.notified() => return true,
                () = self.clock.sleep(left) => return false,
                () = expiry => {}
            }
        }
    }

    /// Reads events from `source`, and the rows that they name where they are never stale.
    async fn follow(&mut self, source: &Store) -> Result<(), StoreError> {
        let wanted = EventsWanted {
            entries_after: self.entry_place.last(),
            entry_ids: self.entry_place.missing(),
            nodes_after: self.node_place.last(),
            node_ids: self.node_place.missing(),
        };
        let found = source.events().read(wanted).await?;
        if self.note(found).is_err() {
            tracing::warn!("Event IDs leapt; reading all entries and agents again");
            return self.read_all().await;
        }
        self.read_pending().await
    }

    fn note(&mut self, found: EventsFound) -> Result<(), LostPlace> {
        let (now, timeout) = (self.clock.monotonic(), self.settings.event_timeout);
        let entry_ids: Vec<i64> = found.entries.iter().map(|event| event.id).collect();
        let node_ids: Vec<i64> = found.nodes.iter().map(|event| event.id).collect();
        self.entry_place.saw(&entry_ids, now, timeout)?;
        self.node_place.saw(&node_ids, now, timeout)?;
        self.entry_place.give_up(now);
        self.node_place.give_up(now);
        self.pending.entries.extend(found.entries.into_iter().map(|event| event.entry_id));
        for event in found.nodes {
            match SpiffeId::parse(&event.spiffe_id) {
                Ok(id) => _ = self.pending.agents.insert(id),
                Err(error) => {
                    tracing::warn!(spiffe_id = event.spiffe_id, %error, "Ignored an event of a malformed agent ID");
                }
            }
        }
        Ok(())
    }

    /// What is pending stays so until it has been read.
    async fn read_pending(&mut self) -> Result<(), StoreError> {
        while !self.pending.entries.is_empty() || !self.pending.agents.is_empty() {
            let ids =
                self.pending.entries.iter().take(self.settings.page as usize).cloned().collect::<Vec<_>>();
            let agents =
                self.pending.agents.iter().take(self.settings.page as usize).cloned().collect::<Vec<_>>();
            let mut found = HashSet::new();
            let mut rows = Rows::default();
            for entry in self.store.entries().by_ids(ids.clone()).await? {
                found.insert(entry.id.clone());
                rows.entries.push((entry.id.clone(), Some(entry)));
            }
            let missing = ids.iter().filter(|id| !found.contains(*id));
            rows.entries.extend(missing.map(|id| (id.clone(), None)));
            for node in self.store.agents().by_ids(agents.clone()).await? {
                if node.is_banned() {
                    rows.gone.push(node.spiffe_id.clone());
                }
                rows.agents.push((node.spiffe_id, Some(node.selectors)));
            }
            let known: HashSet<SpiffeId> = rows.agents.iter().map(|(id, _)| id.clone()).collect();
            let deleted = agents.iter().filter(|id| !known.contains(*id));
            rows.gone.extend(deleted.clone().cloned());
            rows.agents.extend(deleted.map(|id| (id.clone(), None)));
            self.publish(rows);
            ids.iter().for_each(|id| _ = self.pending.entries.remove(id));
            agents.iter().for_each(|id| _ = self.pending.agents.remove(id));
        }
        Ok(())
    }

    /// Reads both tables page by page and drops what they do not hold any more. Events from before the reading are known
    /// by it; those from then on are left for the next look.
    async fn read_all(&mut self) -> Result<(), StoreError> {
        let (entry_place, node_place) = self.places_now().await?;
        let mut seen = HashSet::new();
        let mut after = Some(0);
        while let Some(row) = after {
            let page = self.store.entries().scan(row, self.settings.page).await?;
            after = page.next;
            seen.extend(page.items.iter().map(|entry| entry.id.clone()));
            let entries = page.items.into_iter().map(|entry| (entry.id.clone(), Some(entry))).collect();
            self.publish(Rows { entries, ..Rows::default() });
        }
        let gone = |snapshot: &Snapshot| -> Vec<_> {
            let unseen = snapshot.entries().filter(|entry| !seen.contains(&entry.id));
            unseen.map(|entry| (entry.id.clone(), None)).collect()
        };
        let entries = gone(&self.snapshots.borrow());
        self.publish(Rows { entries, ..Rows::default() });

        let mut seen = HashSet::new();
        let mut after = Some(0);
        while let Some(row) = after {
            let page = self.store.agents().scan(row, self.settings.page).await?;
            after = page.next;
            seen.extend(page.items.iter().map(|node| node.spiffe_id.clone()));
            let agents = page.items.into_iter().map(|node| (node.spiffe_id, Some(node.selectors))).collect();
            self.publish(Rows { agents, ..Rows::default() });
        }
        let gone = |snapshot: &Snapshot| -> Vec<_> {
            snapshot.agents().filter(|id| !seen.contains(*id)).map(|id| (id.clone(), None)).collect()
        };
        let agents = gone(&self.snapshots.borrow());
        self.publish(Rows { agents, ..Rows::default() });

        self.entry_place = entry_place;
        self.node_place = node_place;
        self.pending = Pending::default();
        self.full_reload_due = self.clock.monotonic() + self.settings.full_reload;
        Ok(())
    }

    async fn places_now(&self) -> Result<(Place, Place), StoreError> {
        let latest = self.store.events().latest().await?;
        let wanted = EventsWanted {
            entries_after: (latest.entry_event - LOOK_BACK).max(0),
            nodes_after: (latest.node_event - LOOK_BACK).max(0),
            ..EventsWanted::default()
        };
        let recent = self.store.events().read(wanted).await?;
        let (now, timeout) = (self.clock.monotonic(), self.settings.event_timeout);
        let up_to =
            |ids: &mut dyn Iterator<Item = i64>, last: i64| ids.filter(|id| *id <= last).collect::<Vec<_>>();
        let entries = up_to(&mut recent.entries.iter().map(|event| event.id), latest.entry_event);
        let nodes = up_to(&mut recent.nodes.iter().map(|event| event.id), latest.node_event);
        Ok((
            Place::after(latest.entry_event, &entries, now, timeout),
            Place::after(latest.node_event, &nodes, now, timeout),
        ))
    }

    fn publish(&mut self, rows: Rows) {
        for (id, entry) in &rows.entries {
            if let Some(at) = entry.as_ref().map(|entry| entry.expires_at).filter(|at| *at != 0) {
                self.expiries.insert((at, id.clone()));
            }
        }
        let next = self.snapshots.borrow().with(rows, self.clock.unix());
        if let Some(next) = next {
            self.snapshots.send_replace(Arc::new(next));
        }
    }

    fn expire(&mut self) {
        let now = self.clock.unix();
        let mut rows = Rows::default();
        while let Some((at, id)) = self.expiries.pop_first() {
            if at > now {
                self.expiries.insert((at, id));
                break;
            }
            // The entry may have been given more time since.
            let expired = self.snapshots.borrow().entry(&id).is_some_and(|entry| entry.expires_at == at);
            if expired {
                tracing::info!(entry_id = id, "Entry has expired and is no longer served");
                rows.entries.push((id, None));
            }
        }
        self.publish(rows);
    }
}

#[cfg(test)]
mod tests;
