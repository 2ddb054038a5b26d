//! The disk is full, or may not be written to.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use finial_proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use finial_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, ListEntriesRequest};
use finial_proto::spire::api::types;
use finial_tests::world::{Shape, World, id, my_uid};
use tonic::{Code, Status};

/// A small file system in memory.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// `None`, and a line that says so, where this user may not mount; in CI that is a failure.
    fn mounted(folder: &Path, options: &str) -> Option<Disk> {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Disk { folder: folder.to_owned() });
        }
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs: run the tests as root");
        eprintln!("SKIPPED: mounting a tmpfs needs root");
        None
    }

    /// Until nothing fits any more. What processes have mapped or may write over stays theirs.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.folder.join("ballast")).unwrap();
        for block in [64 * 1024, 4096, 1] {
            while ballast.write_all(&vec![1; block]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.folder.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.folder).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
        // The folder under it was in use when its owner wanted to remove it.
        let _ = fs::remove_dir(&self.folder);
    }
}

async fn create(world: &World, name: &str) -> types::Status {
    let entry = types::Entry {
        spiffe_id: Some(id(name)),
        parent_id: Some(id("node")),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        // Enough to need a page of its own.
        dns_names: (0..200).map(|number| format!("host-{number}.{name}.example.org")).collect(),
        ..types::Entry::default()
    };
    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let answer = world.entries().batch_create_entry(request).await.unwrap().into_inner();
    answer.results.into_iter().next().unwrap().status.unwrap()
}

async fn token(world: &World) -> Result<String, Status> {
    let request = CreateJoinTokenRequest { ttl: 100_000, agent_id: Some(id("late")), ..Default::default() };
    Ok(world.agents().create_join_token(request).await?.into_inner().value)
}

/// Requests fail and say why, what was there is served, and all goes on when there is room: nothing is half done.
#[tokio::test(start_paused = true)]
async fn a_full_disk_fails_requests_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mounted(folder.path(), "size=16m") else { return };
    let mut world = World::in_folder(folder, Shape::default()).await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let serial = updates.next(&world.clock).await.svid("web").serial_decimal();
    let unused = token(&world).await.unwrap();

    disk.fill();
    let mut written = Vec::new();
    let refused = loop {
        // Some fit into pages that SQLite has already.
        let name = format!("n{}", written.len());
        let status = create(&world, &name).await;
        if status.code != 0 {
            break status;
        }
        written.push(name);
        assert!(written.len() < 1000, "the disk is not full");
    };
    assert_eq!(refused.code, Code::Internal as i32, "{}", refused.message);
    assert!(refused.message.contains("full"), "{}", refused.message);
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"], "what is cached is served");
    let count = |entries: &[types::Entry]| {
        let of_test = |e: &&types::Entry| {
            e.spiffe_id.as_ref().is_some_and(|id| id.path.starts_with("/n") && id.path != "/node")
        };
        entries.iter().filter(of_test).count()
    };
    let listed =
        world.entries().list_entries(ListEntriesRequest::default()).await.unwrap().into_inner().entries;
    assert_eq!(count(&listed), written.len(), "reading goes on, and shows what was promised");

    // An agent cannot join, and its token is not used up by that.
    let early = world.start_node("late", Some(&unused)).await;
    assert!(early.is_err() || world.attested().await.len() == 1);
    if let Ok(early) = early {
        early.stop().await;
    }
    // Half of an SVID's life goes by: renewals fail and are tried again.
    world.clock.sleep(Duration::from_secs(35 * 60)).await;
    disk.empty();
    let renewed = updates.until(&world.clock, |context| context.svid("web").serial_decimal() != serial).await;
    assert!(renewed.svid("web").not_after() > world.clock.now());
    assert_eq!(create(&world, "again").await.code, 0);
    let late = world.start_node("late", Some(&unused)).await.expect("the token is still good");
    late.synced().await;
    assert_eq!(world.attested().await.len(), 2);

    world.stop_server().await;
    let database = rusqlite::Connection::open(world.folder.path().join("datastore.sqlite3")).unwrap();
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    drop(database);
    world.start_server().await;
    let listed =
        world.entries().list_entries(ListEntriesRequest::default()).await.unwrap().into_inner().entries;
    assert_eq!(count(&listed), written.len());
}

/// The CA that is in use stays in use while the next one cannot be written down, and the next one comes when it can.
#[tokio::test(start_paused = true)]
async fn a_ca_that_cannot_be_written_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mounted(folder.path(), "size=16m") else { return };
    let world = World::in_folder(folder, Shape::default()).await;
    let bundle = || world.server().own_bundle.current().x509_authorities.clone();
    let (keys, first) = (fs::read(world.folder.path().join("keys.json")).unwrap(), bundle());
    // Just before half of a CA's life (24 h), when the next one is made.
    world.clock.sleep(Duration::from_secs(11 * 3600)).await;
    disk.fill();
    world.clock.sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(bundle(), first, "nobody was told of a CA that is not there");
    assert_eq!(
        fs::read(world.folder.path().join("keys.json")).unwrap(),
        keys,
        "the file is the old one, whole"
    );
    disk.empty();
    world.clock.sleep(Duration::from_secs(3600)).await;
    assert_eq!(bundle().len(), 2);
    assert!(bundle().starts_with(&first));
    assert_ne!(fs::read(world.folder.path().join("keys.json")).unwrap(), keys);
}

/// A data directory that cannot be written to is named at the start.
#[tokio::test(start_paused = true)]
async fn a_read_only_disk_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_disk) = Disk::mounted(folder.path(), "ro") else { return };
    let path = folder.path().display().to_string();
    let mut world = World::idle(folder, Shape::default());
    let refusal = world.try_start_server().await.expect_err("it must not start");
    assert!(refusal.contains(&path) && refusal.to_lowercase().contains("read-only"), "{refusal}");
}
