//! Authorities change, by themselves and by hand, under workloads that notice nothing but new SVIDs.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_daemon::clock::Clock;
use finial_tests::enterprise::Enterprise;
use finial_tests::stage::{Fetched, Proof, ServerShape, Stage, until};
use serde_json::Value;

/// With lifetimes of seconds: every SVID that is handed out is valid and chains to its bundle, across a change of the CA.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn svids_stay_valid_while_everything_rotates() {
    let server = "ca_ttl = \"36s\"\ndefault_x509_svid_ttl = \"12s\"".to_owned();
    let mut stage = Stage::open(|_| ServerShape { server, ..ServerShape::default() }).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, "").await;
    stage.register("workload", &id, "alice", &[]).await;
    stage.x509_until("alice", "node", |all| all.len() == 1).await;
    let (mut leaves, mut issuers) = (BTreeSet::new(), BTreeSet::new());
    until("two CAs have signed", async || {
        let fetched = stage.x509("alice", "node").await;
        let svid = &fetched.get("workload").expect("there is an identity at any time").svid;
        leaves.insert(svid.serial_decimal());
        issuers.insert(issuer(svid.leaf_der()));
        (issuers.len() == 2).then_some(())
    })
    .await;
    assert!(leaves.len() >= 3);
}

/// Prepare, activate, taint, revoke, on a CA that signs itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_self_signed_authority_is_replaced_by_hand() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, "").await;
    stage.register("workload", &id, "alice", &[]).await;
    let before = stage.x509_until("alice", "node", |all| all.len() == 1).await;
    assert_eq!(authorities(&stage, "x509_authorities").await.len(), 1);

    let prepared = step(&stage, "x509", "prepare", None, "prepared_authority").await;
    assert_eq!(authorities(&stage, "x509_authorities").await.len(), 2);
    stage.x509_until("alice", "node", |all| bundle_size(all) == 2).await;

    let activated = step(&stage, "x509", "activate", Some(&prepared), "activated_authority").await;
    assert_eq!(activated, prepared);
    let old = shown(&stage, "x509", "old").await;

    step(&stage, "x509", "taint", Some(&old), "tainted_authority").await;
    let tainted = authorities(&stage, "x509_authorities").await;
    assert_eq!(tainted.iter().filter(|authority| authority["tainted"] == true).count(), 1);
    let after =
        stage.x509_until("alice", "node", |all| all.len() == 1 && issuers(all) != issuers(&before)).await;
    assert_eq!(bundle_size(&after), 2);

    step(&stage, "x509", "revoke", Some(&old), "revoked_authority").await;
    assert_eq!(authorities(&stage, "x509_authorities").await.len(), 1);
    stage.x509_until("alice", "node", |all| bundle_size(all) == 1).await;
}

/// The same below an enterprise's root that is replaced: the new root is there before the old one goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_root_is_replaced_by_hand() {
    let now = Clock::wall().now();
    let mut stage = Stage::open(|folder| {
        let files = Enterprise::new(now).give_root(folder);
        ServerShape { plugins: files.stanza(), ..ServerShape::default() }
    })
    .await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, "").await;
    stage.register("workload", &id, "alice", &[]).await;
    let before = stage.x509_until("alice", "node", |all| all.len() == 1).await;
    let old = shown_upstream(&stage, "active").await;

    // A new root takes the place of the old one; what is prepared from now on hangs below it.
    Enterprise::new(now).give_root(stage.folder.path());
    let prepared = step(&stage, "x509", "prepare", None, "prepared_authority").await;
    stage.x509_until("alice", "node", |all| bundle_size(all) == 2).await;
    step(&stage, "x509", "activate", Some(&prepared), "activated_authority").await;
    assert_ne!(shown_upstream(&stage, "active").await, old);

    let local = shown(&stage, "x509", "old").await;
    let refused = stage.server(&["localauthority", "x509", "taint", "-authorityID", &local]).await;
    assert!(!refused.status.success(), "with an upstream authority it is the root that is tainted");
    stage.server(&["upstreamauthority", "taint", "-subjectKeyID", &old]).await.ok();
    stage.x509_until("alice", "node", |all| all.len() == 1 && issuers(all) != issuers(&before)).await;
    stage.server(&["upstreamauthority", "revoke", "-subjectKeyID", &old]).await.ok();
    stage.x509_until("alice", "node", |all| bundle_size(all) == 1).await;
}

/// Prepare, activate, taint, revoke, for the key of JWT-SVIDs: a cached token of the tainted key is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_authority_is_replaced_by_hand() {
    let mut stage = Stage::open(|_| ServerShape::default()).await;
    let id = stage.certify("node", &[]);
    stage.start_agent("node", Proof::Certificate, "").await;
    stage.register("workload", &id, "alice", &[]).await;
    assert_eq!(authorities(&stage, "jwt_authorities").await.len(), 1);

    let prepared = step(&stage, "jwt", "prepare", None, "prepared_authority").await;
    let known = authorities(&stage, "jwt_authorities").await;
    assert_eq!(known.len(), 2);
    assert!(known.iter().any(|authority| authority["key_id"] == prepared.as_str()));
    let active = shown(&stage, "jwt", "active").await;
    let (token, _) =
        token_until(&stage, |token, keys| key_id(token) == active && keys.contains(&prepared)).await;

    step(&stage, "jwt", "activate", Some(&prepared), "activated_authority").await;
    let old = shown(&stage, "jwt", "old").await;
    assert_eq!(old, active);
    let (still, _) = token_until(&stage, |_, _| true).await;
    assert_eq!(still, token, "the old token is good and cached");

    step(&stage, "jwt", "taint", Some(&old), "tainted_authority").await;
    let known = authorities(&stage, "jwt_authorities").await;
    assert_eq!(known.iter().filter(|authority| authority["tainted"] == true).count(), 1);
    token_until(&stage, |token, _| key_id(token) == prepared).await;

    step(&stage, "jwt", "revoke", Some(&old), "revoked_authority").await;
    token_until(&stage, |_, keys| keys == [prepared.clone()]).await;
}

async fn token_until(stage: &Stage, wanted: impl Fn(&str, &[String]) -> bool) -> (String, Vec<String>) {
    until("there is the expected token", async || {
        let (mut tokens, keys) = stage.jwts("alice", "node", "somebody").await.ok()?;
        let token = tokens.remove("workload")?;
        wanted(&token, &keys).then_some((token, keys))
    })
    .await
}

fn key_id(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

/// One step of `localauthority`; the ID of the authority that it names.
async fn step(stage: &Stage, kind: &str, verb: &str, authority: Option<&str>, answer: &str) -> String {
    let mut args = vec!["localauthority", kind, verb, "-output", "json"];
    args.extend(authority.iter().flat_map(|id| ["-authorityID", id]));
    let done = stage.server(&args).await.json();
    done[answer]["authority_id"].as_str().unwrap_or_else(|| panic!("{done}")).to_owned()
}

async fn shown(stage: &Stage, kind: &str, standing: &str) -> String {
    let shown = stage.server(&["localauthority", kind, "show", "-output", "json"]).await.json();
    shown[standing]["authority_id"].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned()
}

async fn shown_upstream(stage: &Stage, standing: &str) -> String {
    let shown = stage.server(&["localauthority", "x509", "show", "-output", "json"]).await.json();
    let id = shown[standing]["upstream_authority_subject_key_id"].as_str();
    id.unwrap_or_else(|| panic!("{shown}")).to_owned()
}

/// The authorities of the own bundle.
async fn authorities(stage: &Stage, kind: &str) -> Vec<Value> {
    let bundle = stage.server(&["bundle", "show", "-output", "json"]).await.json();
    bundle[kind].as_array().unwrap().clone()
}

fn bundle_size(all: &BTreeMap<String, Fetched>) -> usize {
    all.get("workload").map_or(0, |fetched| fetched.bundle.len())
}

fn issuers(all: &BTreeMap<String, Fetched>) -> Vec<Vec<u8>> {
    all.values().map(|fetched| issuer(fetched.svid.leaf_der())).collect()
}

/// The key that signed a certificate, by its authority key identifier.
fn issuer(der: &[u8]) -> Vec<u8> {
    use der::Decode as _;
    use x509_cert::ext::pkix::AuthorityKeyIdentifier;

    let certificate = x509_cert::Certificate::from_der(der).unwrap();
    let found = certificate.tbs_certificate().get_extension::<AuthorityKeyIdentifier>().unwrap();
    let (_, identifier) = found.expect("it names its authority");
    identifier.key_identifier.unwrap().as_bytes().to_vec()
}
