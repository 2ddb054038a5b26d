//! Tokens, journals, events.

use finial_proto::journal::{Entries, JwtKeyEntry, WitKeyEntry, X509caEntry};
use prost::Message;

use super::*;
use crate::store::events::{EventsWanted, LatestEvents};
use crate::store::journal::JournalRow;
use crate::store::tests::engines::{Fresh, on_every_engine};
use crate::store::tokens::Taken;

on_every_engine!(
    an_expired_token_is_used_up,
    a_token_and_its_entry_are_stored_together_or_not_at_all,
    tokens_are_pruned_after_their_expiry,
    each_server_finds_its_own_journal,
    a_journal_is_pruned_when_its_last_authority_has_expired,
    events_are_read_from_a_place_on_and_by_number,
    old_events_are_pruned_and_their_numbers_not_used_again,
);

#[tokio::test(start_paused = true)]
async fn of_many_who_take_a_token_one_gets_it() {
    let disk = Disk::new();
    let store = disk.open().await.unwrap();
    store.tokens().create("t", NOW, None).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = store.clone();
        tasks.spawn(async move { store.tokens().take("t", NOW).await.unwrap() });
    }
    let taken = tasks.join_all().await;
    assert_eq!(taken.iter().filter(|taken| **taken == Taken::Valid).count(), 1);
    assert_eq!(taken.iter().filter(|taken| **taken == Taken::Missing).count(), 49);
}

async fn an_expired_token_is_used_up(fresh: Fresh) {
    let store = fresh.store().await;
    store.tokens().create("t", NOW - 1, None).await.unwrap();
    assert_eq!(store.tokens().expiry("t").await.unwrap(), Some(NOW - 1));
    assert_eq!(store.tokens().take("t", NOW).await.unwrap(), Taken::Expired);
    assert_eq!(store.tokens().take("t", NOW).await.unwrap(), Taken::Missing);
    assert_eq!(store.tokens().expiry("t").await.unwrap(), None);
}

async fn a_token_and_its_entry_are_stored_together_or_not_at_all(fresh: Fresh) {
    let store = fresh.store().await;
    let created = store.tokens().create("t", NOW, Some(entry("/alias", &["a:1"]))).await.unwrap().unwrap();
    assert_eq!(store.entries().get(&created.entry.id).await.unwrap(), Some(created.entry));
    let again = store.tokens().create("t", NOW, Some(entry("/other", &["a:1"]))).await.unwrap_err();
    let taken =
        fresh.taken("join_tokens.token", "uix_join_tokens_token", "'t' for key 'uix_join_tokens_token'");
    assert_eq!(again.to_string(), taken);
    let wrong = Entry { federates_with: vec![td("x")], ..entry("/other", &["a:1"]) };
    assert!(store.tokens().create("u", NOW, Some(wrong)).await.is_err());
    assert_eq!(store.tokens().expiry("u").await.unwrap(), None);
    assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 1);
    for (token, expires_at) in [("", NOW), ("v", 0)] {
        let error = store.tokens().create(token, expires_at, None).await.unwrap_err();
        assert_eq!(error.to_string(), "token and expiry are required");
    }
}

async fn tokens_are_pruned_after_their_expiry(fresh: Fresh) {
    let store = fresh.store().await;
    store.tokens().create("old", NOW - 1, None).await.unwrap();
    store.tokens().create("live", NOW, None).await.unwrap();
    assert_eq!(store.tokens().prune(NOW).await.unwrap(), 1);
    assert_eq!(store.tokens().expiry("live").await.unwrap(), Some(NOW));
}

fn row(data: &[u8], active: &str) -> JournalRow {
    JournalRow { id: 0, data: data.to_vec(), active_x509_authority_id: active.to_owned() }
}

async fn each_server_finds_its_own_journal(fresh: Fresh) {
    let store = fresh.store().await;
    let first = store.journal().set(row(b"1", "aa")).await.unwrap();
    let second = store.journal().set(row(b"2", "bb")).await.unwrap();
    store.journal().set(row(b"3", "")).await.unwrap();
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let found = store.journal().fetch(&ids(&["zz", "bb"])).await.unwrap();
    assert_eq!(found, Some(JournalRow { id: second, ..row(b"2", "bb") }));
    assert_eq!(store.journal().fetch(&ids(&["zz", ""])).await.unwrap(), None);

    let changed = JournalRow { id: first, ..row(b"new", "cc") };
    assert_eq!(store.journal().set(changed.clone()).await.unwrap(), first);
    assert_eq!(store.journal().fetch(&ids(&["cc"])).await.unwrap(), Some(changed));
    assert_eq!(store.journal().fetch(&ids(&["aa"])).await.unwrap(), None);
    assert_eq!(store.journal().list().await.unwrap().len(), 3);
    let missing = store.journal().set(JournalRow { id: 99, ..row(b"", "") }).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
}

async fn a_journal_is_pruned_when_its_last_authority_has_expired(fresh: Fresh) {
    let store = fresh.store().await;
    let blob = |x509: i64, jwt: i64, wit: i64| {
        Entries {
            x509_c_as: vec![X509caEntry { not_after: x509, ..Default::default() }],
            jwt_keys: vec![JwtKeyEntry { not_after: jwt, ..Default::default() }],
            wit_keys: vec![WitKeyEntry { not_after: wit, ..Default::default() }],
        }
        .encode_to_vec()
    };
    for (name, data) in [
        ("gone", blob(NOW, NOW, NOW)),
        ("x509", blob(NOW + 1, NOW, NOW)),
        ("jwt", blob(NOW, NOW + 1, NOW)),
        ("wit", blob(NOW, NOW, NOW + 1)),
    ] {
        store.journal().set(row(&data, name)).await.unwrap();
    }
    assert_eq!(store.journal().prune(NOW).await.unwrap(), 1);
    let left = store.journal().list().await.unwrap();
    assert_eq!(
        left.iter().map(|row| row.active_x509_authority_id.as_str()).collect::<Vec<_>>(),
        ["x509", "jwt", "wit"]
    );

    store.journal().set(row(&[0xff], "broken")).await.unwrap();
    assert!(matches!(store.journal().prune(NOW + 9).await, Err(StoreError::BadRow { .. })));
    assert_eq!(store.journal().list().await.unwrap().len(), 4);
}

async fn events_are_read_from_a_place_on_and_by_number(fresh: Fresh) {
    let store = fresh.store().await;
    assert_eq!(store.events().latest().await.unwrap(), LatestEvents::default());
    for i in 0..6 {
        let new = Entry { id: format!("e{i}"), ..entry(&format!("/{i}"), &["a:1"]) };
        store.entries().create(new).await.unwrap();
    }
    store.agents().create(super::agents::node("/spire/agent/x")).await.unwrap();
    let latest = LatestEvents { entry_event: 6, node_event: 1 };
    assert_eq!(store.events().latest().await.unwrap(), latest);
    let wanted = EventsWanted { entries_after: 4, entry_ids: vec![2, 99, 1, 5, 2], ..Default::default() };
    let found = store.events().read(wanted).await.unwrap();
    assert_eq!(found.entries.iter().map(|event| event.id).collect::<Vec<_>>(), [1, 2, 5, 6]);
    assert_eq!(found.entries[0].entry_id, "e0");
    assert_eq!(found.nodes[0].spiffe_id, "spiffe://example.org/spire/agent/x");
}

async fn old_events_are_pruned_and_their_numbers_not_used_again(fresh: Fresh) {
    let store = fresh.store().await;
    let created = store.entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    tokio::time::advance(Duration::from_secs(10)).await;
    store.agents().create(super::agents::node("/spire/agent/x")).await.unwrap();
    assert_eq!(store.events().prune(NOW + 10).await.unwrap(), 1);
    assert!(store.events().entries_after(0).await.unwrap().is_empty());
    assert_eq!(store.events().nodes_after(0).await.unwrap().len(), 1);
    // The counters of network databases run ahead of what is committed.
    let last = if fresh.is_sqlite() { 1 } else { 0 };
    assert_eq!(store.events().latest().await.unwrap().entry_event, last);
    store.entries().delete(&created.id).await.unwrap();
    assert_eq!(store.events().entries_after(0).await.unwrap()[0].id, 2);
}
