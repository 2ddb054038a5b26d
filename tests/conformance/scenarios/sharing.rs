//! Servers that share a database, and what happens when that is away.

use finial_tests::database::SharedDatabase;
use finial_tests::stage::{Proof, ServerShape, Stage, until};

const PARENT: &str = "spiffe://example.org/node";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_a_postgresql() {
    if let Some(database) = SharedDatabase::postgres() {
        servers_share(database).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_a_mariadb() {
    if let Some(database) = SharedDatabase::mariadb() {
        servers_share(database).await;
    }
}

/// What is changed through one server is seen by the other and by its agents; both trust what either signs. An agent
/// whose server is gone goes on with the other, without a new token.
async fn servers_share(database: SharedDatabase) {
    let mut stage = Stage::open(|_| shape(&database)).await;
    stage.start_other().await;
    for kind in ["x509_authorities", "jwt_authorities"] {
        until("both servers know the authorities of both", async || {
            let first = authorities(stage.server(SHOW).await.json(), kind);
            (first == authorities(stage.other(SHOW).await.json(), kind) && first.len() == 2).then_some(())
        })
        .await;
    }
    let token = stage.other(&["token", "generate", "-spiffeID", PARENT, "-output", "json"]).await.json();
    let token = token["value"].as_str().unwrap().to_owned();
    stage.start_agent("node", Proof::Token(token), "").await;
    until("the other server lists the agent", async || {
        let agents = stage.other(&["agent", "list", "-output", "json"]).await.json();
        (agents["agents"].as_array()?.len() == 1).then_some(())
    })
    .await;

    let selector = stage.selector("alice");
    let entry = ["-parentID", PARENT, "-spiffeID", "spiffe://example.org/workload", "-selector", &selector];
    let create = [&["entry", "create", "-entryID", "workload"][..], &entry].concat();
    stage.other(&create).await.ok();
    stage.x509_until("alice", "node", |all| all.contains_key("workload")).await;
    let update = [&["entry", "update", "-entryID", "workload", "-dns", "example.org"][..], &entry].concat();
    stage.other(&update).await.ok();
    stage
        .x509_until("alice", "node", |all| {
            all.get("workload").is_some_and(|fetched| fetched.svid.dns_names() == ["example.org"])
        })
        .await;

    stage.stop_other().await;
    stage.stop_server().await;
    stage.start_other().await;
    let second = ["-parentID", PARENT, "-spiffeID", "spiffe://example.org/second", "-selector", &selector];
    stage.other(&[&["entry", "create"][..], &second].concat()).await.ok();
    stage.x509_until("alice", "node", |all| all.contains_key("second")).await;
    stage.other(&["entry", "delete", "-entryID", "workload"]).await.ok();
    stage.x509_until("alice", "node", |all| all.keys().eq(["second"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_goes_away_and_comes_back() {
    if let Some(database) = SharedDatabase::postgres() {
        database_goes_away(database).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_goes_away_and_comes_back() {
    if let Some(database) = SharedDatabase::mariadb() {
        database_goes_away(database).await;
    }
}

/// Without its database the server signs for the entries that it knows, and says of everything else that it can't; then
/// it finds the database again by itself.
async fn database_goes_away(mut database: SharedDatabase) {
    let mut stage = Stage::open(|_| shape(&database)).await;
    let token = stage.token("/node").await;
    stage.start_agent("node", Proof::Token(token), "").await;
    stage.register("workload", PARENT, "alice", &[]).await;
    stage.x509_until("alice", "node", |all| all.contains_key("workload")).await;

    database.cut().await;
    // A new audience, so nothing of it is cached.
    let signed =
        until("a JWT-SVID is signed", async || stage.jwts("alice", "node", "during").await.ok()).await;
    assert!(signed.0.contains_key("workload"));
    assert_eq!(stage.x509("alice", "node").await.len(), 1);
    let refused = stage.server(&["entry", "count"]).await;
    assert!(!refused.status.success() && refused.stderr.contains("Unavailable"), "{}", refused.stderr);

    database.restore();
    until("the server answers again", async || {
        stage.server(&["entry", "count"]).await.status.success().then_some(())
    })
    .await;
    stage.register("second", PARENT, "alice", &[]).await;
    stage.x509_until("alice", "node", |all| all.len() == 2).await;
}

const SHOW: &[&str] = &["bundle", "show", "-output", "json"];

fn shape(database: &SharedDatabase) -> ServerShape {
    ServerShape { datastore: Some(database.settings()), ..ServerShape::default() }
}

fn authorities(bundle: serde_json::Value, kind: &str) -> Vec<serde_json::Value> {
    bundle[kind].as_array().cloned().unwrap_or_default()
}
