//! The server becomes another one, and the agent does not believe it.

use std::time::Duration;

use finial_tests::world::{Shape, World, my_uid};

use crate::possession::{NODE, Pki};

async fn world(agent: &str) -> World {
    let shape = Shape {
        agent: agent.to_owned(),
        bootstrap: "trust_bundle_path = \"BUNDLE\"".to_owned(),
        ..Shape::default()
    };
    let world = World::of(shape).await;
    world.write_bundle().await;
    world
}

/// Another server in the place of ours takes nothing from workloads before their SVIDs end.
#[tokio::test(start_paused = true)]
async fn an_agent_whose_server_became_another_one_serves_until_its_svid_ends() {
    for mode in ["never", "auto"] {
        // A join token can't be used again, so that "auto" is off.
        let mut world = world(&format!("rebootstrap_mode = {mode:?}")).await;
        let node = world.node("node").await;
        world.register("node", "web", &[my_uid()]).await;
        let before = node.me().fetch(&world.clock).await;
        world.replace_server().await;
        world.clock.sleep(Duration::from_secs(30 * 60)).await;
        let after = node.me().fetch(&world.clock).await;
        assert_eq!(after.svid("web").leaf_der(), before.svid("web").leaf_der());
        let replaced = world.clock.now();
        node.end().await;
        let waited = world.clock.now().duration_since(replaced).unwrap();
        assert!(
            waited >= Duration::from_secs(20 * 60) && waited < Duration::from_secs(60 * 60),
            "{waited:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn rebootstrapping_always_needs_an_attestor_that_can_attest_again() {
    let world = world("rebootstrap_mode = \"always\"").await;
    let token = world.token("node").await;
    for token in [Some(token.as_str()), None] {
        let node = world.start_node("node", token).await.unwrap();
        let end = node.end().await;
        assert!(end.contains("you have requested rebootstrap support"), "{end}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_gives_up_on_a_server_that_its_bundle_does_not_vouch_for() {
    let mut world = world("").await;
    world.replace_server().await;
    let token = world.token("node").await;
    let before = world.clock.now();
    let node = world.start_node("node", Some(&token)).await.unwrap();
    let end = node.end().await;
    assert!(end.contains("x509: certificate signed by unknown authority"), "{end}");
    let waited = world.clock.now().duration_since(before).unwrap();
    assert!(waited >= Duration::from_secs(60) && waited < Duration::from_secs(180), "{waited:?}");

    // A bundle that comes meanwhile is used.
    let node = world.start_node("node", Some(&token)).await.unwrap();
    world.clock.sleep(Duration::from_secs(20)).await;
    world.write_bundle().await;
    node.synced().await;
    world.register("node", "web", &[my_uid()]).await;
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_can_attest_again_starts_anew_after_the_delay() {
    for mode in ["auto", "always"] {
        let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
        pki.certify(folder.path(), 30);
        let shape = Shape {
            agent: format!("rebootstrap_mode = {mode:?}\nrebootstrap_delay = \"2m\""),
            bootstrap: "trust_bundle_path = \"BUNDLE\"".to_owned(),
            ..pki.shape(folder.path())
        };
        let mut world = World::in_folder(folder, shape).await;
        world.write_bundle().await;
        let node = world.start_node("node", None).await.unwrap();
        node.synced().await;
        world.register(NODE, "web", &[my_uid()]).await;
        assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);

        world.replace_server().await;
        let replaced = world.clock.now();
        world.clock.sleep(Duration::from_secs(100)).await;
        assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"], "workloads are served meanwhile");
        let end = node.end().await;
        assert!(end.contains("Agent needs to rebootstrap. shutting down"), "{end}");
        let waited = world.clock.now().duration_since(replaced).unwrap();
        assert!(waited >= Duration::from_secs(120) && waited < Duration::from_secs(150), "{waited:?}");

        world.write_bundle().await;
        let node = world.start_node("node", None).await.unwrap();
        node.synced().await;
        world.register(NODE, "db", &[my_uid()]).await;
        assert_eq!(node.me().fetch(&world.clock).await.names(), ["db"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_in_time_is_the_old_one() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    pki.certify(folder.path(), 30);
    let shape = Shape {
        agent: "rebootstrap_mode = \"always\"\nrebootstrap_delay = \"2m\"".to_owned(),
        bootstrap: "trust_bundle_path = \"BUNDLE\"".to_owned(),
        ..pki.shape(folder.path())
    };
    let mut world = World::in_folder(folder, shape).await;
    world.write_bundle().await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    let kept = tempfile::tempdir().unwrap();
    let move_all = |from: &std::path::Path, to: &std::path::Path| {
        for name in ["keys.json", "datastore.sqlite3", "datastore.sqlite3-wal", "datastore.sqlite3-shm"] {
            // What the other server left of this name would be taken for part of the database.
            let _ = std::fs::remove_file(to.join(name));
            if from.join(name).exists() {
                std::fs::copy(from.join(name), to.join(name)).unwrap();
                std::fs::remove_file(from.join(name)).unwrap();
            }
        }
    };
    for _ in 0..2 {
        world.stop_server().await;
        move_all(world.folder.path(), kept.path());
        world.start_server().await;
        world.clock.sleep(Duration::from_secs(100)).await;
        world.stop_server().await;
        move_all(kept.path(), world.folder.path());
        world.start_server().await;
        world.clock.sleep(Duration::from_secs(100)).await;
    }
    world.register(NODE, "web", &[my_uid()]).await;
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"], "each time the delay began anew");
}

#[tokio::test(start_paused = true)]
async fn entries_come_by_whole_polls_too() {
    let shape = Shape {
        agent: "experimental { use_sync_authorized_entries = false }".to_owned(),
        ..Shape::default()
    };
    let world = World::of(shape).await;
    let node = world.node("node").await;
    let entry = world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    assert_eq!(updates.next(&world.clock).await.names(), ["web"]);
    world.register("node", "db", &[my_uid()]).await;
    updates.until(&world.clock, |context| context.names() == ["db", "web"]).await;
    world.delete(&entry.id).await;
    updates.until(&world.clock, |context| context.names() == ["db"]).await;
}
