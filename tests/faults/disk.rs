//! The disk is full, the database is locked, or the files belong to something else.

use finial_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, ListEntriesRequest};
use finial_proto::spire::api::types;
use finial_tests::world::{World, id, my_uid};
use tonic::Code;

fn entry(name: &str) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id(name)),
        parent_id: Some(id("node")),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        ..types::Entry::default()
    }
}

/// A write that finds the database locked fails with its cause; nothing is half done, and the next one works.
#[tokio::test(start_paused = true)]
async fn a_locked_database_fails_the_request_and_nothing_else() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;

    let other = rusqlite::Connection::open(world.folder.path().join("datastore.sqlite3")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let request = BatchCreateEntryRequest { entries: vec![entry("a")], output_mask: None };
    let answer = world.entries().batch_create_entry(request.clone()).await.unwrap().into_inner();
    let status = answer.results[0].status.clone().unwrap();
    assert_eq!(status.code, Code::Internal as i32, "{}", status.message);
    assert!(status.message.contains("lock"), "{}", status.message);
    // Reading and serving go on.
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
    other.execute_batch("ROLLBACK").unwrap();

    let answer = world.entries().batch_create_entry(request).await.unwrap().into_inner();
    assert_eq!(answer.results[0].status.as_ref().unwrap().code, 0);
    let listed = world.entries().list_entries(ListEntriesRequest::default()).await.unwrap().into_inner();
    let of_a = listed.entries.iter().filter(|entry| entry.spiffe_id == Some(id("a"))).count();
    assert_eq!(of_a, 1);
}

/// Files of another trust domain, or of a newer schema, are left as they are.
#[tokio::test(start_paused = true)]
async fn a_foreign_database_is_refused_untouched() {
    for (change, names) in [
        ("UPDATE migrations SET version = 999", "999"),
        (
            "UPDATE registered_entries SET spiffe_id = replace(spiffe_id, 'example.org', 'other.test')",
            "other.test",
        ),
    ] {
        let mut world = World::new().await;
        world.register("node", "web", &[my_uid()]).await;
        world.stop_server().await;
        let file = world.folder.path().join("datastore.sqlite3");
        let database = rusqlite::Connection::open(&file).unwrap();
        database.execute_batch(change).unwrap();
        database.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        drop(database);
        let before = std::fs::read(&file).unwrap();
        let refusal = world.try_start_server().await.expect_err("it must not start");
        assert!(refusal.contains(names), "{refusal}");
        assert_eq!(std::fs::read(&file).unwrap(), before, "the file was touched: {change}");
    }
}

/// Two servers on one database file would sign from two CAs and not know of each other.
#[tokio::test(start_paused = true)]
async fn a_second_server_on_the_same_files_is_refused() {
    let world = World::new().await;
    let folder = world.folder.path().to_owned();
    let mut second = World::idle_at(&folder);
    let refusal = second.try_start_server().await.expect_err("it must not start");
    assert!(refusal.contains(&std::process::id().to_string()) || refusal.contains("another"), "{refusal}");
    world.register("node", "still-works", &[my_uid()]).await;
}
