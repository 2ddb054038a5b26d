use std::time::SystemTime;

use finial_identity::entry::Entry;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::super::authorized::{for_agent, one_for_agent};
use super::super::fixture::{entry, id, selectors, td};
use super::*;
use crate::store::OpenSettings;
use crate::store::agents::AttestedNode;
use crate::store::entries::EntryUpdate;

const AGENT: &str = "/spire/agent/join_token/a";
const NOW: i64 = 1_790_000_000;

/// A server's database, and its feed at work.
struct Bench {
    dir: TempDir,
    store: Store,
    clock: Clock,
    feed: Feed,
    running: JoinHandle<()>,
}

impl Bench {
    async fn new(settings: FeedSettings, before: impl AsyncFnOnce(&Store)) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::paused(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs()));
        let path = dir.path().join("datastore.sqlite3");
        let store =
            Store::open(OpenSettings::new(path.to_str().unwrap(), td(), clock.clone())).await.unwrap();
        before(&store).await;
        let (feed, task) = Feed::open(store.clone(), clock.clone(), settings).await.unwrap();
        let running = tokio::spawn(task.run());
        Bench { dir, store, clock, feed, running }
    }

    /// With nothing stored, and the first round of the task over.
    async fn empty() -> Bench {
        let bench = Bench::new(FeedSettings::default(), async |_| {}).await;
        bench.feed.changed().await;
        bench
    }

    /// Another program on the same database.
    fn raw(&self, statements: &str) {
        let connection = Connection::open(self.dir.path().join("datastore.sqlite3")).unwrap();
        connection.busy_timeout(Duration::from_secs(30)).unwrap();
        connection.execute_batch(statements).unwrap();
    }

    async fn create(&self, entry: Entry) {
        assert!(!self.store.entries().create(entry).await.unwrap().existing);
    }

    fn served(&self) -> Vec<String> {
        for_agent(&self.feed.snapshot(), &id(AGENT)).entries().iter().map(|entry| entry.id.clone()).collect()
    }

    /// The running time that passes until the agent may serve exactly these entries.
    async fn until_served(&self, expected: &[&str]) -> Duration {
        let start = self.clock.monotonic();
        let mut snapshots = self.feed.subscribe();
        let arrives = snapshots.wait_for(|snapshot| {
            for_agent(snapshot, &id(AGENT))
                .entries()
                .iter()
                .map(|e| e.id.as_str())
                .eq(expected.iter().copied())
        });
        let arrived = self.clock.timeout(Duration::from_secs(7 * 24 * 3600), arrives).await;
        assert!(arrived.is_ok(), "{expected:?} never came; there is {:?}", self.served());
        self.clock.monotonic() - start
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn node(path: &str, known: &[&str]) -> AttestedNode {
    AttestedNode {
        spiffe_id: id(path),
        attestation_type: "join_token".into(),
        serial_number: "1".into(),
        expires_at: NOW + 3600,
        new_serial_number: String::new(),
        new_expires_at: 0,
        can_reattest: false,
        agent_version: String::new(),
        selectors: selectors(known),
    }
}

fn own(entry_id: &str) -> Entry {
    entry(entry_id, AGENT, &format!("/{entry_id}"), &["unix:uid:1"])
}

#[tokio::test(start_paused = true)]
async fn the_first_snapshot_holds_everything_whatever_the_page() {
    for page in [1, 3, 10_000] {
        let bench = Bench::new(FeedSettings { page, ..FeedSettings::default() }, async |store| {
            for number in 0..7 {
                store.entries().create(own(&format!("e{number}"))).await.unwrap();
            }
            let alias = entry("alias", "/spire/server", "/cluster", &["k8s:cluster:eu"]);
            store.entries().create(alias).await.unwrap();
            store.entries().create(entry("by-alias", "/cluster", "/log", &["unix:uid:1"])).await.unwrap();
            store.agents().create(node(AGENT, &["k8s:cluster:eu", "k8s:node:1"])).await.unwrap();
            store.agents().create(node("/spire/agent/join_token/b", &["k8s:cluster:us"])).await.unwrap();
        })
        .await;
        assert_eq!(bench.served(), ["by-alias", "e0", "e1", "e2", "e3", "e4", "e5", "e6"]);
        assert_eq!(bench.feed.snapshot().entry_count(), 9);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_seen_by_whoever_asks_next() {
    let bench = Bench::empty().await;
    let start = bench.clock.monotonic();
    for number in 0..3 {
        bench.create(own(&format!("e{number}"))).await;
        bench.feed.changed().await;
        assert!(one_for_agent(&bench.feed.snapshot(), &id(AGENT), &format!("e{number}")).is_some());
    }
    let update = EntryUpdate { parent_id: Some(id("/elsewhere")), ..EntryUpdate::default() };
    let moved = bench.store.entries().update("e1", update).await.unwrap();
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["e0", "e2"]);
    assert_eq!(**bench.feed.snapshot().entry("e1").unwrap(), moved);
    bench.store.entries().delete("e0").await.unwrap();
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["e2"]);

    bench.create(entry("alias", "/spire/server", "/cluster", &["k8s:cluster:eu"])).await;
    bench.create(entry("by-alias", "/cluster", "/log", &["unix:uid:1"])).await;
    bench.store.agents().create(node(AGENT, &["k8s:cluster:eu"])).await.unwrap();
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["by-alias", "e2"]);
    bench.store.agents().set_selectors(&id(AGENT), selectors(&["k8s:cluster:us"])).await.unwrap();
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["e2"]);
    assert_eq!(bench.clock.monotonic(), start, "none of this waits for a poll");
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_are_all_answered() {
    let bench = Bench::empty().await;
    let writers: Vec<_> = (0..40)
        .map(|number| {
            let (store, feed) = (bench.store.clone(), bench.feed.clone());
            tokio::spawn(async move {
                let name = format!("e{number}");
                store.entries().create(own(&name)).await.unwrap();
                feed.changed().await;
                assert!(feed.snapshot().entry(&name).is_some(), "{name} is not there after changed()");
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_write_is_seen_at_the_next_poll() {
    let bench = Bench::empty().await;
    bench.create(own("e1")).await;
    assert_eq!(bench.served(), Vec::<String>::new());
    let waited = bench.until_served(&["e1"]).await;
    assert!(waited > Duration::from_secs(4) && waited < Duration::from_millis(5100), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_dropped_in_the_second_it_expires() {
    let bench = Bench::empty().await;
    bench.create(Entry { expires_at: NOW + 102, ..own("soon") }).await;
    bench.create(Entry { expires_at: NOW + 7000, ..own("later") }).await;
    bench.create(Entry { expires_at: NOW - 1, ..own("past") }).await;
    bench.create(own("never")).await;
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["later", "never", "soon"]);

    let waited = bench.until_served(&["later", "never"]).await;
    assert!(waited > Duration::from_millis(101_900) && waited < Duration::from_millis(102_100), "{waited:?}");
    assert!(bench.store.entries().get("soon").await.unwrap().is_some(), "it is still stored");

    let more_time = EntryUpdate { expires_at: Some(NOW + 9000), ..EntryUpdate::default() };
    bench.store.entries().update("later", more_time).await.unwrap();
    let again = EntryUpdate { expires_at: Some(0), ..EntryUpdate::default() };
    bench.store.entries().update("soon", again).await.unwrap();
    bench.feed.changed().await;
    bench.clock.jump(7500);
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["later", "never", "soon"], "the earlier times do not count any more");
    let before = bench.clock.monotonic();
    bench.clock.jump(2000);
    bench.until_served(&["never", "soon"]).await;
    assert!(
        bench.clock.monotonic() - before < Duration::from_secs(1),
        "a jump of the clock is noticed at once"
    );
}

#[tokio::test(start_paused = true)]
async fn late_transactions_are_found_within_the_event_timeout() {
    let bench = Bench::empty().await;
    bench.create(own("e1")).await;
    bench.feed.changed().await;
    // Rows without their events, as if the transactions that wrote the events were still under way.
    bench.create(own("e2")).await;
    bench.create(own("e3")).await;
    bench.raw("DELETE FROM registered_entries_events WHERE entry_id IN ('e2', 'e3');");
    bench.create(own("e4")).await;
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["e1", "e4"]);

    let event = |id: i64, entry: &str| {
        format!(
            "INSERT INTO registered_entries_events (id, created_at, updated_at, entry_id) VALUES ({id}, '2026-09-21 00:00:00+00:00', '2026-09-21 00:00:00+00:00', '{entry}');"
        )
    };
    bench.clock.sleep(Duration::from_secs(14 * 60)).await;
    bench.raw(&event(2, "e2"));
    let waited = bench.until_served(&["e1", "e2", "e4"]).await;
    assert!(waited < Duration::from_millis(5100), "{waited:?}");
    bench.clock.sleep(Duration::from_secs(2 * 60)).await;
    bench.raw(&event(3, "e3"));
    bench.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.served(), ["e1", "e2", "e4"], "after 15 minutes nobody looks any more");
    bench.until_served(&["e1", "e2", "e3", "e4"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_leap_of_event_ids_leads_to_a_new_reading() {
    let bench = Bench::empty().await;
    bench.create(own("e1")).await;
    bench.raw(
        "DELETE FROM registered_entries_events; \
         UPDATE sqlite_sequence SET seq = 500000 WHERE name = 'registered_entries_events';",
    );
    bench.create(own("e2")).await;
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["e1", "e2"]);
    bench.create(own("e3")).await;
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["e1", "e2", "e3"], "and events are followed again");
}

#[tokio::test(start_paused = true)]
async fn once_a_day_everything_is_compared() {
    let bench = Bench::empty().await;
    for name in ["e1", "e2", "e3"] {
        bench.create(own(name)).await;
    }
    bench.store.agents().create(node(AGENT, &["k8s:cluster:eu"])).await.unwrap();
    bench.create(entry("alias", "/spire/server", "/cluster", &["k8s:cluster:eu"])).await;
    bench.create(entry("by-alias", "/cluster", "/log", &["unix:uid:1"])).await;
    bench.feed.changed().await;
    assert_eq!(bench.served(), ["by-alias", "e1", "e2", "e3"]);
    bench.raw(
        "DELETE FROM registered_entries WHERE entry_id = 'e1'; \
         UPDATE registered_entries SET parent_id = 'spiffe://example.org/x' WHERE entry_id = 'e2'; \
         DELETE FROM attested_node_entries;",
    );
    bench.clock.sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.served(), ["by-alias", "e1", "e2", "e3"], "no event, no look");
    let waited = bench.until_served(&["e3"]).await;
    assert!(waited < Duration::from_secs(24 * 3600), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_store_loses_nothing() {
    let bench = Bench::empty().await;
    bench.create(own("e1")).await;
    bench.raw("ALTER TABLE selectors RENAME TO hidden;");
    bench.feed.changed().await;
    assert_eq!(bench.served(), Vec::<String>::new(), "events were read, but not the entry");
    bench.raw("ALTER TABLE hidden RENAME TO selectors;");
    let waited = bench.until_served(&["e1"]).await;
    assert!(waited < Duration::from_millis(5100), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn asking_a_feed_that_has_stopped_does_not_wait_for_ever() {
    let bench = Bench::empty().await;
    bench.running.abort();
    bench.feed.changed().await;
    bench.feed.poke();
}
