//! Which nodes are let in, and for how long.

use finial_tests::stage::{Proof, ServerShape, Stage, until};

/// A token admits one agent, which is then also known by the name that the token was made for; a second agent with the
/// same token is turned away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_admits_one_agent() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let token = stage.token("/node").await;
    stage.start_agent("first", Proof::Token(token.clone()), "").await;
    stage.register("workload", "spiffe://example.org/node", "alice", &[]).await;
    let fetched = stage.x509_until("alice", "first", |all| all.contains_key("workload")).await;
    assert_eq!(fetched.len(), 1);

    stage.launch_agent("second", &Proof::Token(token), "");
    let refused = "join token does not exist or has already been used";
    until("the second agent is refused", async || stage.log("second").contains(refused).then_some(())).await;
    assert_eq!(agents(&stage).await.len(), 1);
}

/// A banned agent shuts down and is not let in again, whatever it proves. Evicted, it may attest anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_agent_stays_out_until_it_is_evicted() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, "").await;
    assert_eq!(agents(&stage).await, std::slice::from_ref(&id));

    stage.server(&["agent", "ban", "-spiffeID", &id]).await.ok();
    stage.ended("node").await;
    assert!(stage.log("node").contains("Agent is banned: removing SVID and shutting down"));

    stage.launch_agent("node", &Proof::Certificate, "");
    assert!(!stage.ended("node").await.success());

    stage.server(&["agent", "evict", "-spiffeID", &id]).await.ok();
    assert!(agents(&stage).await.is_empty());
    stage.start_agent("node", Proof::Certificate, "").await;
    assert_eq!(agents(&stage).await, [id]);
}

/// Evicted agents attest again in place where their attestor lets them; one with a spent token ends. A restart changes
/// nothing about that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_agent_attests_again_if_it_may() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let certified = stage.certify("certified", &[]);
    let token = stage.token("/node").await;
    stage.start_agent("certified", Proof::Certificate, "").await;
    stage.start_agent("tokened", Proof::Token(token.clone()), "").await;
    let tokened = format!("spiffe://example.org/spire/agent/join_token/{token}");
    let all = agents(&stage).await;
    assert!(all.contains(&certified) && all.contains(&tokened), "{all:?}");

    for id in [&certified, &tokened] {
        stage.server(&["agent", "evict", "-spiffeID", id]).await.ok();
    }
    stage.ended("tokened").await;
    until("the agent has attested again", async || {
        (agents(&stage).await == [certified.clone()]).then_some(())
    })
    .await;
    stage.register("workload", &certified, "alice", &[]).await;
    stage.x509_until("alice", "certified", |all| all.contains_key("workload")).await;

    stage.stop_agent("certified").await;
    stage.start_agent("certified", Proof::Certificate, "").await;
    stage.launch_agent("tokened", &Proof::Token(token), "");
    assert!(!stage.ended("tokened").await.success());
    assert_eq!(agents(&stage).await, [certified]);
}

async fn agents(stage: &Stage) -> Vec<String> {
    let list = stage.server(&["agent", "list", "-output", "json"]).await.json();
    let ids = list["agents"].as_array().unwrap().iter().map(|agent| &agent["id"]);
    ids.map(|id| format!("spiffe://{}{}", id["trust_domain"].as_str().unwrap(), id["path"].as_str().unwrap()))
        .collect()
}
