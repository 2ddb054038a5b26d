//! How entries come to agents and what of a change reaches workloads.

use finial_tests::stage::{Proof, ServerShape, Stage, until};
use serde_json::json;

const ALIAS: &str = "spiffe://example.org/cluster/test";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_follow_their_nodes() {
    entries_follow(ServerShape::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_follow_their_nodes_by_events() {
    let server = "experimental { events_based_cache = true }".to_owned();
    entries_follow(ServerShape { server, ..ServerShape::default() }).await;
}

/// An entry below an agent is that agent's alone; one below an alias comes to every agent with the alias's selectors, and
/// to one that the alias was given to by its token. Updates and deletions reach workloads.
async fn entries_follow(shape: ServerShape) {
    let mut stage = Stage::open(|_| shape).await;
    let mut ids = Vec::new();
    for agent in ["one", "two"] {
        ids.push(stage.certify(agent, &["x509pop://example.org/cluster/test"]));
        stage.start_agent(agent, Proof::Certificate, "").await;
    }
    let token = stage.token("/cluster/test").await;
    stage.start_agent("three", Proof::Token(token), "").await;
    let alias = ["entry", "create", "-node", "-spiffeID", ALIAS, "-selector", "x509pop:san:cluster:test"];
    stage.server(&alias).await.ok();
    for (agent, parent) in ["of-one", "of-two"].iter().zip(&ids) {
        stage.register(agent, parent, "alice", &[]).await;
    }
    stage.register("shared", ALIAS, "bob", &[]).await;
    stage.register("with-dns", ALIAS, "carol", &["-entryID", "with-dns", "-dns", "example.org"]).await;
    stage.register("on-demand", ALIAS, "dave", &["-disableX509SVIDPrefetch"]).await;

    stage.x509_until("alice", "one", |all| all.keys().eq(["of-one"])).await;
    stage.x509_until("alice", "two", |all| all.keys().eq(["of-two"])).await;
    for agent in ["one", "two", "three"] {
        stage.x509_until("bob", agent, |all| all.keys().eq(["shared"])).await;
        stage.x509_until("dave", agent, |all| all.keys().eq(["on-demand"])).await;
        let named = |name| {
            move |all: &std::collections::BTreeMap<String, finial_tests::stage::Fetched>| {
                all.get("with-dns").is_some_and(|fetched| fetched.svid.dns_names() == [name])
            }
        };
        stage.x509_until("carol", agent, named("example.org")).await;
    }
    assert!(stage.x509("alice", "three").await.is_empty());

    let (id, selector) = ("spiffe://example.org/with-dns", stage.selector("carol"));
    let update = ["entry", "update", "-entryID", "with-dns", "-parentID", ALIAS, "-spiffeID", id];
    stage.server(&[&update[..], &["-selector", &selector, "-dns", "example.com"]].concat()).await.ok();
    for agent in ["one", "two", "three"] {
        let renamed = |fetched: &finial_tests::stage::Fetched| fetched.svid.dns_names() == ["example.com"];
        stage.x509_until("carol", agent, |all| all.values().all(renamed) && all.len() == 1).await;
    }
    stage.server(&["entry", "delete", "-entryID", "with-dns"]).await.ok();
    for agent in ["one", "two", "three"] {
        stage.x509_until("carol", agent, |all| all.is_empty()).await;
    }
}

/// Only what an agent must know before a workload asks is fetched beforehand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_on_demand_are_not_fetched_beforehand() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, "").await;
    stage.register("at-once", &id, "alice", &[]).await;
    stage.register("later", &id, "bob", &["-disableX509SVIDPrefetch"]).await;
    stage.x509_until("alice", "node", |all| all.len() == 1).await;
    assert_eq!(super::fetching::cached(&stage, "node", "cached_x509_svids_count").await, 1);
    stage.x509_until("bob", "node", |all| all.keys().eq(["later"])).await;
}

/// More entries than fit one answer of the agent's incremental synchronisation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_entries_than_one_page_reach_the_agent() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let token = stage.token("/node").await;
    stage.start_agent("node", Proof::Token(token), "").await;
    let entries: Vec<_> = (1..512)
        .map(|number| {
            json!({
                "parent_id": "spiffe://example.org/node",
                "spiffe_id": format!("spiffe://example.org/workload{number}"),
                "selectors": [{"type": "unix", "value": format!("uid:1{number}")}],
            })
        })
        .collect();
    let input = json!({ "entries": entries }).to_string();
    stage.server_with_input(&["entry", "create", "-data", "-"], &input).await.ok();
    stage.register("the-workload", "spiffe://example.org/node", "alice", &[]).await;
    stage.x509_until("alice", "node", |all| all.keys().eq(["the-workload"])).await;
    let mut count = 0;
    // The name that the token gave to the agent is one of them.
    while count < 513 {
        count = until("more are there", async || {
            let now = super::fetching::cached(&stage, "node", "cached_x509_svids_count").await;
            (now > count).then_some(now)
        })
        .await;
    }
    assert_eq!(count, 513);
}
