use super::*;
use crate::store::entries::EntryUpdate;
use crate::store::tests::engines::{Fresh, on_every_engine};

on_every_engine!(
    a_change_whose_event_cannot_be_written_does_not_happen,
    rows_that_are_not_readable_are_passed_over_in_lists_and_can_be_deleted,
);

#[tokio::test(start_paused = true)]
async fn a_locked_database_is_reported_after_the_busy_timeout_and_works_again() {
    let disk = Disk::new();
    let uri = format!("{}?_busy_timeout=30", disk.connection_string());
    let store = Store::open(settings(&uri)).await.unwrap();
    let other = disk.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.entries().create(entry("/w", &["a:1"])).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error:?}");
    assert!(error.to_string().contains("another process holds the lock"), "{error}");
    // Readers are not in the way of each other.
    assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 0);
    other.execute_batch("ROLLBACK").unwrap();
    store.entries().create(entry("/w", &["a:1"])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_reported_and_leaves_the_state_whole() {
    let disk = Disk::new();
    let store = disk.open().await.unwrap();
    let first = store.entries().create(entry("/first", &["a:1"])).await.unwrap().entry;
    store
        .write(|sql| {
            let pages = sql.number("PRAGMA page_count", &[])?;
            sql.number(&format!("PRAGMA max_page_count = {}", pages + 1), &[])
        })
        .await
        .unwrap();
    let mut created = 1;
    let error = loop {
        match store.entries().create(entry(&format!("/{created}"), &["a:1", "a:2"])).await {
            Ok(_) => created += 1,
            Err(error) => break error,
        }
        assert!(created < 10_000);
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert!(error.to_string().contains("free space"), "{error}");
    assert_eq!(store.entries().count(&Default::default()).await.unwrap(), created);
    assert_eq!(store.events().latest().await.unwrap().entry_event, i64::try_from(created).unwrap());
    assert_eq!(store.entries().get(&first.id).await.unwrap(), Some(first));

    store.write(|sql| sql.number("PRAGMA max_page_count = 1000000", &[])).await.unwrap();
    store.entries().create(entry("/later", &["a:1"])).await.unwrap();
}

async fn a_change_whose_event_cannot_be_written_does_not_happen(fresh: Fresh) {
    let store = fresh.with_bundles(&["peer.test"]).await;
    let kept = store.entries().create(entry("/kept", &["a:1"])).await.unwrap().entry;
    let agent = super::agents::node("/spire/agent/x");
    store.agents().create(agent.clone()).await.unwrap();
    store
        .write(|sql| {
            sql.script("DROP TABLE registered_entries_events; DROP TABLE attested_node_entries_events")
        })
        .await
        .unwrap();

    let mut update = entry("/changed", &["b:1"]);
    update.federates_with = vec![td("peer.test")];
    assert!(store.entries().create(update.clone()).await.is_err());
    assert!(store.entries().update(&kept.id, EntryUpdate::all(update)).await.is_err());
    assert!(store.entries().delete(&kept.id).await.is_err());
    assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 1);
    assert_eq!(store.entries().get(&kept.id).await.unwrap(), Some(kept));

    assert!(store.agents().ban(&agent.spiffe_id).await.is_err());
    assert!(store.agents().delete(&agent.spiffe_id).await.is_err());
    assert!(store.agents().set_selectors(&agent.spiffe_id, Vec::new()).await.is_err());
    assert_eq!(store.agents().get(&agent.spiffe_id).await.unwrap(), Some(agent));
}

async fn rows_that_are_not_readable_are_passed_over_in_lists_and_can_be_deleted(fresh: Fresh) {
    let store = fresh.store().await;
    let good = store.entries().create(entry("/good", &["a:1"])).await.unwrap().entry;
    let bad = store.entries().create(entry("/bad", &["a:1"])).await.unwrap().entry;
    store
        .write({
            let id = bad.id.clone();
            move |sql| {
                sql.run(
                    "UPDATE registered_entries SET spiffe_id = 'nonsense' WHERE entry_id = ?",
                    dialect::values![&id],
                )
            }
        })
        .await
        .unwrap();
    assert_eq!(store.entries().list(&Default::default()).await.unwrap().items, std::slice::from_ref(&good));
    assert_eq!(store.entries().scan(0, 10).await.unwrap().items, [good]);
    let error = store.entries().get(&bad.id).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::BadRow { table: "registered_entries", key, .. } if *key == bad.id),
        "{error}"
    );
    store.entries().delete(&bad.id).await.unwrap();
    assert_eq!(store.entries().get(&bad.id).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn many_readers_and_writers_at_once_all_get_their_turn() {
    let disk = Disk::new();
    let store = disk.open().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..40 {
        let store = store.clone();
        tasks.spawn(async move {
            let created = store.entries().create(entry(&format!("/w{i}"), &["a:1"])).await.unwrap().entry;
            assert_eq!(store.entries().get(&created.id).await.unwrap(), Some(created));
            store.entries().list(&Default::default()).await.unwrap().items.len()
        });
    }
    let seen = tasks.join_all().await;
    assert_eq!(seen.into_iter().max(), Some(40));
    let events = store.events().entries_after(0).await.unwrap();
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
}
