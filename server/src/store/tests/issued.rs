use super::*;
use crate::store::issued::{Batching, IssuedKind, IssuedLog, IssuedRecord, ListIssued};
use crate::store::tests::engines::{Fresh, on_every_engine};

on_every_engine!(
    everything_recorded_is_listed_in_order_and_verifies,
    rows_are_written_without_a_flush_after_the_wait,
    the_task_writes_everything_before_it_ends,
    any_change_to_the_log_is_noticed_and_placed,
    pruning_keeps_the_chain_and_rows_behind_a_live_one,
    lists_restrict_by_end_serial_identity_and_kind,
);

fn record(number: i64) -> IssuedRecord {
    IssuedRecord {
        kind: IssuedKind::Agent,
        serial: format!("{number}"),
        spiffe_id: "spiffe://example.org/w".to_owned(),
        entry_id: "e".to_owned(),
        entry_revision: number,
        agent_id: "spiffe://example.org/spire/agent/a".to_owned(),
        authority_id: "aa".to_owned(),
        not_before: NOW,
        not_after: NOW + number,
        key_fingerprint: crate::store::issued::key_fingerprint(b"key"),
    }
}

/// A log of rows 1 to `rows`, and what goes on writing it.
async fn log_of(store: &Store, rows: i64) -> IssuedLog {
    let (log, task) = IssuedLog::start(store.clone(), Batching { rows: 10, ..Default::default() });
    tokio::spawn(task);
    (1..=rows).for_each(|number| log.record(record(number)));
    log.flush().await.unwrap();
    log
}

async fn change(store: &Store, sql: &'static str) {
    store.write(move |engine| engine.script(sql)).await.unwrap();
}

async fn everything_recorded_is_listed_in_order_and_verifies(fresh: Fresh) {
    let store = fresh.store().await;
    let empty = store.issued().verify().await.unwrap();
    assert_eq!((empty.rows, empty.last_seq), (0, 0));
    log_of(&store, 25).await;
    let rows = store.issued().list(&ListIssued::default()).await.unwrap().items;
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), (1..=25).collect::<Vec<_>>());
    assert_eq!(
        rows.iter().map(|row| row.record.clone()).collect::<Vec<_>>(),
        (1..=25).map(record).collect::<Vec<_>>()
    );
    let verified = store.issued().verify().await.unwrap();
    assert_eq!((verified.rows, verified.last_seq), (25, 25));
    assert_eq!(verified.last_hash, rows[24].hash);
}

async fn rows_are_written_without_a_flush_after_the_wait(fresh: Fresh) {
    let store = fresh.store().await;
    let (log, task) = IssuedLog::start(store.clone(), Batching::default());
    tokio::spawn(task);
    log.record(record(1));
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(store.issued().count(&ListIssued::default()).await.unwrap(), 0);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(store.issued().count(&ListIssued::default()).await.unwrap(), 1);
}

async fn the_task_writes_everything_before_it_ends(fresh: Fresh) {
    let store = fresh.store().await;
    let (log, task) = IssuedLog::start(store.clone(), Batching::default());
    let task = tokio::spawn(task);
    log.record(record(1));
    drop(log);
    task.await.unwrap();
    assert_eq!(store.issued().verify().await.unwrap().rows, 1);
}

#[tokio::test(start_paused = true)]
async fn the_chain_goes_on_after_a_restart() {
    let disk = Disk::new();
    for _ in 0..2 {
        let store = disk.open().await.unwrap();
        let (log, task) = IssuedLog::start(store.clone(), Batching::default());
        let task = tokio::spawn(task);
        log.record(record(1));
        drop(log);
        task.await.unwrap();
    }
    let verified = disk.open().await.unwrap().issued().verify().await.unwrap();
    assert_eq!((verified.rows, verified.last_seq), (2, 2));
}

async fn any_change_to_the_log_is_noticed_and_placed(fresh: Fresh) {
    for (sql, seq) in [
        ("UPDATE finial_issued SET serial = '77' WHERE seq = 3", 3),
        ("UPDATE finial_issued SET not_after = not_after + 1 WHERE seq = 3", 3),
        ("UPDATE finial_issued SET kind = 'x509-server' WHERE seq = 3", 3),
        ("UPDATE finial_issued SET entry_id = 'es', agent_id = substr(agent_id, 2) WHERE seq = 3", 3),
        ("UPDATE finial_issued SET hash = 'aa' WHERE seq = 3", 3),
        ("DELETE FROM finial_issued WHERE seq = 3", 3),
        ("DELETE FROM finial_issued WHERE seq = 5", 5),
        ("DELETE FROM finial_issued WHERE seq <= 2", 1),
        ("DELETE FROM finial_issued", 1),
        (
            "UPDATE finial_issued SET seq = 9 WHERE seq = 2; UPDATE finial_issued SET seq = 2 WHERE seq = 3; \
             UPDATE finial_issued SET seq = 3 WHERE seq = 9",
            2,
        ),
        (
            "INSERT INTO finial_issued SELECT 6, serial, spiffe_id, entry_id, entry_revision, agent_id, authority_id, \
          not_before, not_after, key_fingerprint, kind, hash FROM finial_issued WHERE seq = 5",
            6,
        ),
        (
            "INSERT INTO finial_issued SELECT 0, serial, spiffe_id, entry_id, entry_revision, agent_id, authority_id, \
          not_before, not_after, key_fingerprint, kind, hash FROM finial_issued WHERE seq = 5",
            1,
        ),
    ] {
        let store = fresh.store().await;
        log_of(&store, 5).await;
        change(&store, sql).await;
        let error = store.issued().verify().await.unwrap_err();
        assert!(matches!(error, StoreError::ChainBroken { seq: at, .. } if at == seq), "{sql}: {error}");
    }
}

async fn pruning_keeps_the_chain_and_rows_behind_a_live_one(fresh: Fresh) {
    let store = fresh.store().await;
    let log = log_of(&store, 6).await;
    log.record(record(1));
    log.flush().await.unwrap();
    assert_eq!(store.issued().prune(NOW + 1, 100).await.unwrap(), 0);
    assert_eq!(store.issued().prune(NOW + 5, 2).await.unwrap(), 2);
    assert_eq!(store.issued().prune(NOW + 5, 100).await.unwrap(), 2);
    let verified = store.issued().verify().await.unwrap();
    assert_eq!((verified.rows, verified.last_seq), (3, 7));
    assert_eq!(store.issued().prune(NOW + 100, 100).await.unwrap(), 3);
    assert_eq!(store.issued().verify().await.unwrap().rows, 0);
    log.record(record(8));
    log.flush().await.unwrap();
    let verified = store.issued().verify().await.unwrap();
    assert_eq!((verified.rows, verified.last_seq), (1, 8));
    change(&store, "UPDATE finial_issued SET serial = '9'").await;
    assert!(store.issued().verify().await.is_err());
}

async fn lists_restrict_by_end_serial_identity_and_kind(fresh: Fresh) {
    let store = fresh.store().await;
    let log = log_of(&store, 5).await;
    log.record(IssuedRecord {
        kind: IssuedKind::Ca,
        spiffe_id: "spiffe://example.org".to_owned(),
        ..record(9)
    });
    log.flush().await.unwrap();
    let all = ListIssued::default();
    for (list, expected) in [
        (ListIssued { not_after_from: Some(NOW + 4), ..all.clone() }, &[4, 5, 6][..]),
        (ListIssued { not_after_before: Some(NOW + 3), ..all.clone() }, &[1, 2]),
        (ListIssued { serial: Some("9".to_owned()), ..all.clone() }, &[6]),
        (ListIssued { spiffe_id: Some("spiffe://example.org".to_owned()), ..all.clone() }, &[6]),
        (ListIssued { kind: Some(IssuedKind::Ca), ..all.clone() }, &[6]),
        (ListIssued { page: Some(PageRequest { token: "2".to_owned(), size: 2 }), ..all }, &[3, 4]),
    ] {
        let page = store.issued().list(&list).await.unwrap();
        assert_eq!(page.items.iter().map(|row| row.seq).collect::<Vec<_>>(), expected, "{list:?}");
        if list.page.is_none() {
            assert_eq!(store.issued().count(&list).await.unwrap(), expected.len() as u64);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rows_wait_in_memory_while_the_database_cannot_be_written() {
    let disk = Disk::new();
    let uri = format!("{}?_busy_timeout=1", disk.connection_string());
    let store = Store::open(settings(&uri)).await.unwrap();
    let (log, task) = IssuedLog::start(store.clone(), Batching::default());
    tokio::spawn(task);
    let other = disk.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    log.record(record(1));
    assert!(matches!(log.flush().await, Err(StoreError::Locked(_))));
    log.record(record(2));
    other.execute_batch("ROLLBACK").unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(store.issued().verify().await.unwrap().rows, 2);
}

#[tokio::test(start_paused = true)]
async fn no_more_rows_wait_than_there_is_room_for() {
    let disk = Disk::new();
    let uri = format!("{}?_busy_timeout=1", disk.connection_string());
    let store = Store::open(settings(&uri)).await.unwrap();
    let (log, task) = IssuedLog::start(store.clone(), Batching { rows: 3, kept: 3, ..Batching::default() });
    tokio::spawn(task);
    let other = disk.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    (1..=9).for_each(|number| log.record(record(number)));
    assert!(log.flush().await.is_err());
    (10..=19).for_each(|number| log.record(record(number)));
    other.execute_batch("ROLLBACK").unwrap();
    log.flush().await.unwrap();
    assert_eq!(store.issued().verify().await.unwrap().rows, 3);
    log.record(record(20));
    log.flush().await.unwrap();
    assert_eq!(store.issued().verify().await.unwrap().rows, 4);
}

#[test]
fn kinds_have_names_that_are_read_back() {
    for kind in [
        IssuedKind::Workload,
        IssuedKind::Agent,
        IssuedKind::Server,
        IssuedKind::Minted,
        IssuedKind::Ca,
        IssuedKind::DownstreamCa,
        IssuedKind::Jwt,
        IssuedKind::MintedJwt,
        IssuedKind::Wit,
        IssuedKind::Other("ssh-user".to_owned()),
    ] {
        assert_eq!(IssuedKind::from_name(kind.as_str()), kind);
    }
}
