//! What agents hold for workloads, and what they tell of themselves.

use finial_tests::stage::{Proof, ServerShape, Stage, until};

const CACHE: u64 = 8;

/// A workload gets all its identities, also when they are more than the cache is to hold; once it is gone, the cache is
/// back at its size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_x509_svids_than_the_cache_holds() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, &format!("x509_svid_cache_max_size = {CACHE}")).await;
    for person in ["alice", "bob"] {
        for number in 0..10 {
            stage.register(&format!("{person}-{number}"), &id, person, &[]).await;
        }
        stage.x509_until(person, "node", |all| all.len() == 10).await;
        cache_shrinks(&stage, "cached_x509_svids_count").await;
    }
    stage.x509_until("alice", "node", |all| all.len() == 10).await;
    cache_shrinks(&stage, "cached_x509_svids_count").await;
}

/// The same with JWT-SVIDs, whose cache never holds more. With JWT-SVIDs disabled, nobody gets any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_jwt_svids_than_the_cache_holds() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, &format!("jwt_svid_cache_max_size = {CACHE}")).await;
    for person in ["alice", "bob"] {
        for number in 0..10 {
            stage.register(&format!("{person}-{number}"), &id, person, &[]).await;
        }
        until("all tokens are there", async || {
            stage.jwts(person, "node", "somebody").await.ok().filter(|(tokens, _)| tokens.len() == 10)
        })
        .await;
        assert_eq!(cached(&stage, "node", "cached_jwt_svids_count").await, CACHE);
    }
    assert_eq!(stage.jwts("alice", "node", "somebody").await.unwrap().0.len(), 10);

    stage.restart_server("disable_jwt_svids = true").await;
    let id = "spiffe://example.org/minted";
    let minted = stage.server(&["jwt", "mint", "-spiffeID", id, "-audience", "somebody"]).await;
    assert!(!minted.status.success());
    assert!(minted.stderr.contains("JWT functionality is disabled"), "{}", minted.stderr);
    // Another audience, for which nothing is cached.
    let args = ["api", "fetch", "jwt", "-audience", "somebody-else"];
    until("the agent says that JWT-SVIDs are disabled", async || {
        let fetched = stage.as_person("bob", "node", &args).await;
        (!fetched.status.success() && fetched.stderr.contains("JWT functionality is disabled")).then_some(())
    })
    .await;
}

/// The number of cached SVIDs goes down to the cache's size.
async fn cache_shrinks(stage: &Stage, count: &str) {
    until("the cache has its size", async || (cached(stage, "node", count).await == CACHE).then_some(()))
        .await;
}

/// One of the numbers that an agent tells on its admin socket.
pub(super) async fn cached(stage: &Stage, agent: &str, count: &str) -> u64 {
    let info = stage.agent_admin(agent, &["debug", "getinfo", "-output", "json"]).await.json();
    info[count].as_u64().or_else(|| info[count].as_str()?.parse().ok()).unwrap_or_else(|| panic!("{info}"))
}

/// Server and agent tell of themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_programs_tell_of_themselves() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, "").await;
    stage.register("workload", &id, "alice", &[]).await;
    stage.x509_until("alice", "node", |all| all.len() == 1).await;

    let info = stage.agent_admin("node", &["debug", "getinfo", "-output", "json"]).await.json();
    assert_eq!(info["svid_chain"][0]["id"]["path"], id.strip_prefix("spiffe://example.org").unwrap());
    until("the server has counted", async || {
        let info = stage.server(&["debug", "getinfo", "-output", "json"]).await.json();
        (info["agents_count"] == 1 && info["entries_count"] == 1 && info["federated_bundles_count"] == 1)
            .then_some(())
    })
    .await;

    stage.agent_admin("node", &["logger", "set", "-level", "warn"]).await.ok();
    let level = stage.agent_admin("node", &["logger", "get", "-output", "json"]).await.json();
    assert_eq!(level["current_level"], "WARN");
    stage.agent_admin("node", &["logger", "reset"]).await.ok();
    let level = stage.agent_admin("node", &["logger", "get", "-output", "json"]).await.json();
    assert_eq!((&level["current_level"], &level["launch_level"]), (&"DEBUG".into(), &"DEBUG".into()));
}
