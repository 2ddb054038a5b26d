//! Nodes attest, renew, restart, and are shut out.

use finial_proto::spire::api::server::agent::v1::{BanAgentRequest, DeleteAgentRequest};
use finial_tests::world::{World, my_uid};

#[tokio::test(start_paused = true)]
async fn a_join_token_serves_one_node_once() {
    let world = World::new().await;
    let token = world.token("node").await;
    let node = world.start_node("node", Some(&token)).await.unwrap();
    node.synced().await;
    let thief = world.start_node("thief", Some(&token)).await.unwrap();
    let end = thief.end().await;
    assert!(end.contains("join token does not exist or has already been used"), "{end}");
    assert_eq!(world.attested().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_worth_nothing() {
    let world = World::new().await;
    let token = world.token("node").await;
    world.clock.sleep(std::time::Duration::from_secs(601)).await;
    let node = world.start_node("node", Some(&token)).await.unwrap();
    let end = node.end().await;
    assert!(end.contains("join token"), "{end}");
    assert_eq!(world.attested().await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_agent_starts_again_without_a_token() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    node.me().fetch(&world.clock).await;
    let before = world.attested().await;

    let node = world.restart(node).await;
    node.synced().await;
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
    let after = world.attested().await;
    assert_eq!(before, after, "the node was not attested anew");
}

#[tokio::test(start_paused = true)]
async fn a_node_stays_attested_for_as_long_as_it_renews() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let first = world.attested().await.remove(0);
    let end = world.clock.unix() + 24 * 3600;
    while world.clock.unix() < end {
        updates.next(&world.clock).await;
    }
    let last = world.attested().await.remove(0);
    assert_ne!(first.x509svid_serial_number, last.x509svid_serial_number);
    assert_eq!(first.id, last.id);
    assert!(last.x509svid_expires_at > world.clock.unix());
}

#[tokio::test(start_paused = true)]
async fn an_evicted_node_is_cut_off_and_needs_a_new_token() {
    let world = World::new().await;
    let node = world.node("node").await;
    let id = world.attested().await[0].id.clone();
    world.agents().delete_agent(DeleteAgentRequest { id }).await.unwrap();
    let end = node.end().await;
    assert!(end.contains("new join token"), "{end}");
    // What it had is deleted: it does not come back by itself.
    let again = world.start_node("node", None).await.unwrap();
    let end = again.end().await;
    assert!(end.contains("no join token was given"), "{end}");
}

#[tokio::test(start_paused = true)]
async fn a_banned_node_ends_and_can_not_come_back() {
    let world = World::new().await;
    let node = world.node("node").await;
    let id = world.attested().await[0].id.clone();
    world.agents().ban_agent(BanAgentRequest { id }).await.unwrap();
    let end = node.end().await;
    assert!(end.contains("banned"), "{end}");
    assert!(world.attested().await[0].banned);
}

#[tokio::test(start_paused = true)]
async fn two_nodes_see_only_their_own_entries() {
    let world = World::new().await;
    let (one, two) = (world.node("one").await, world.node("two").await);
    world.register("one", "web", &[my_uid()]).await;
    world.register("two", "db", &[my_uid()]).await;
    let mut updates = one.me().open().await;
    assert_eq!(updates.next(&world.clock).await.names(), ["web"]);
    assert_eq!(two.me().fetch(&world.clock).await.names(), ["db"]);
}

#[tokio::test(start_paused = true)]
async fn thousands_of_entries_reach_a_node() {
    use finial_proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
    use finial_proto::spire::api::types;
    use finial_tests::world::id;
    let world = World::new().await;
    let entries: Vec<types::Entry> = (0..1203)
        .map(|n| types::Entry {
            spiffe_id: Some(id(&format!("w{n}"))),
            parent_id: Some(id("node")),
            selectors: vec![types::Selector {
                r#type: "unix".to_owned(),
                value: format!("uid:{}", 100_000 + n),
            }],
            ..types::Entry::default()
        })
        .collect();
    for chunk in entries.chunks(400) {
        let request = BatchCreateEntryRequest { entries: chunk.to_vec(), output_mask: None };
        let answer = world.entries().batch_create_entry(request).await.unwrap().into_inner();
        assert!(answer.results.iter().all(|result| result.status.as_ref().unwrap().code == 0));
    }
    let node = world.node("node").await;
    // And the one that the join token made for the node itself.
    assert_eq!(node.handles.cache.stats().entries, 1204);
    world.register("node", "web", &[my_uid()]).await;
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
}
