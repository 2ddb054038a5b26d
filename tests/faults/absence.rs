//! The server is away.

use std::time::Duration;

use finial_tests::world::{World, my_uid};

/// The server is gone for half of an SVID's life: nobody notices, and the SVID is renewed before it ends.
#[tokio::test(start_paused = true)]
async fn half_a_life_without_a_server_goes_unnoticed() {
    let mut world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let first = updates.next(&world.clock).await;
    let serial = first.svid("web").serial_decimal();

    world.stop_server().await;
    for _ in 0..29 {
        world.clock.sleep(Duration::from_secs(60)).await;
        let cached = node.me().fetch(&world.clock).await;
        assert_eq!(cached.svid("web").serial_decimal(), serial, "cached SVIDs are served");
    }
    world.start_server().await;
    let renewed = loop {
        let context = updates.next(&world.clock).await;
        if context.svid("web").serial_decimal() != serial {
            break context;
        }
    };
    assert!(world.clock.now() < first.svid("web").not_after());
    assert_eq!(renewed.names(), ["web"]);
}

/// What changed while the server could not be reached arrives when it can.
#[tokio::test(start_paused = true)]
async fn what_changed_meanwhile_arrives() {
    let mut world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    updates.next(&world.clock).await;
    for name in ["a", "b", "c"] {
        world.stop_server().await;
        world.clock.sleep(Duration::from_secs(45)).await;
        world.start_server().await;
        world.register("node", name, &[my_uid()]).await;
        while !updates.next(&world.clock).await.names().contains(&name) {}
    }
}

/// An SVID that ran out is never served, and the identity comes back with the server.
#[tokio::test(start_paused = true)]
async fn an_svid_that_ran_out_is_not_served() {
    let mut world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    node.me().fetch(&world.clock).await;
    world.stop_server().await;
    world.clock.sleep(Duration::from_secs(3600)).await;
    // Nothing to give; the call waits or is refused, but it gets no expired SVID.
    let me = node.me();
    let asked = tokio::time::timeout(Duration::from_secs(5), me.try_open()).await;
    assert!(!matches!(asked, Ok(Ok(_))), "an expired SVID was served");
}

/// Agents that start before their server wait for it.
#[tokio::test(start_paused = true)]
async fn an_agent_waits_for_its_server() {
    let mut world = World::new().await;
    let token = world.token("node").await;
    world.stop_server().await;
    let node = world.start_node("node", Some(&token)).await.unwrap();
    world.clock.sleep(Duration::from_secs(300)).await;
    world.start_server().await;
    world.register("node", "web", &[my_uid()]).await;
    node.synced().await;
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
}
