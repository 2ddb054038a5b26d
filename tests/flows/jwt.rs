//! JWT-SVIDs, from the key in the server to the workload that shows one and the workload that judges it.

use std::collections::BTreeSet;
use std::time::Duration;

use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::spire::api::server::localauthority::v1::{
    ActivateJwtAuthorityRequest, PrepareJwtAuthorityRequest, RevokeJwtAuthorityRequest,
    TaintJwtAuthorityRequest,
};
use finial_proto::spire::api::types;
use finial_tests::tokens::{self, Stranger, fetch, fetch_one, judge, parts, validate};
use finial_tests::world::{Node, Shape, World, id, my_uid};
use serde_json::json;
use tonic::Code;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;

/// A world with a node on which this process is `web`.
async fn web(shape: Shape) -> (World, Node, types::Entry) {
    let world = World::of(shape).await;
    let node = world.node("node").await;
    let entry = world.register("node", "web", &[my_uid()]).await;
    node.me().fetch(&world.clock).await;
    (world, node, entry)
}

/// Waits until the agent has what the server pushes.
async fn settle(world: &World) {
    world.clock.sleep(Duration::from_secs(10)).await;
}

/// The token holds; it is the same until half of its life is over, and another one then.
#[tokio::test(start_paused = true)]
async fn a_token_is_shared_until_half_of_its_life() {
    let (world, node, _) = web(Shape::default()).await;
    let workload = node.me();
    let first = fetch_one(&workload, "reports").await;
    let svid = judge(&world, &first, "reports").unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://example.org/web");
    assert_eq!(svid.expires_at(), svid.issued_at().unwrap() + 5 * MINUTE);
    let (header, claims) = parts(&first);
    assert_eq!(header.as_object().unwrap().keys().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!((&header["typ"], &claims["aud"]), (&json!("JWT"), &json!(["reports"])));
    assert_ne!(fetch_one(&workload, "billing").await, first, "another audience, another token");

    // Half of five minutes, give or take a tenth.
    world.clock.sleep(2 * MINUTE).await;
    assert_eq!(fetch_one(&workload, "reports").await, first);
    world.clock.sleep(MINUTE).await;
    let second = fetch_one(&workload, "reports").await;
    assert_ne!(second, first);
    assert!(judge(&world, &second, "reports").unwrap().expires_at() > svid.expires_at());
    assert_eq!(node.handles.cache.stats().jwt_svids, 2);
    // The server ends connections after some minutes, also those that a watch keeps open. Nobody is to notice.
    for audience in ["a", "b", "c", "d"] {
        world.clock.sleep(4 * MINUTE).await;
        fetch_one(&workload, audience).await;
    }
}

/// Without its server the agent serves tokens until they end, and new ones when the server is back.
#[tokio::test(start_paused = true)]
async fn tokens_outlive_a_server_that_is_away() {
    let (mut world, node, _) = web(Shape::default()).await;
    let workload = node.me();
    let first = fetch_one(&workload, "reports").await;
    world.stop_server().await;
    for _ in 0..4 {
        world.clock.sleep(MINUTE).await;
        assert_eq!(fetch_one(&workload, "reports").await, first, "at {:?}", world.clock.now());
    }
    let refused = fetch(&workload, &["billing"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("could not fetch JWT-SVID: "), "{refused}");
    world.clock.sleep(MINUTE).await;
    assert_eq!(fetch(&workload, &["reports"], "").await.unwrap_err().code(), Code::Unavailable);

    world.start_server().await;
    let second = fetch_one(&workload, "reports").await;
    judge(&world, &second, "reports").unwrap();
}

/// For four days of CA and JWT keys that live for a day, a workload asks three times an hour. Each token holds when it comes and
/// until it ends, by the keys that another workload follows, which knew the key before the first token came from it.
#[tokio::test(start_paused = true)]
async fn four_days_of_jwt_keys() {
    let server = r#"ca_ttl = "24h"
                    default_jwt_svid_ttl = "1h"
                    experimental { cache_reload_interval = "1h" }"#;
    let (world, node, _) = web(Shape { server: server.to_owned(), ..Shape::default() }).await;
    let workload = node.me();
    let mut key_ids = BTreeSet::new();
    let mut before: Option<String> = None;
    let end = world.clock.unix() + 4 * 24 * HOUR;
    while world.clock.unix() < end {
        let known = tokens::key_ids(&workload).await.unwrap().remove("spiffe://example.org").unwrap();
        let token = fetch_one(&workload, "reports").await;
        let svid = judge(&world, &token, "reports").unwrap();
        assert!(known.iter().any(|key_id| key_id == svid.key_id()), "a token came before its key");
        assert!(known.len() <= 4, "keys pile up: {}", known.len());
        assert!(svid.expires_at() > world.clock.now());
        if let Some(before) = &before {
            validate(&workload, "reports", before).await.expect("the one before has not ended yet");
        }
        key_ids.insert(svid.key_id().to_owned());
        before = Some(token);
        world.clock.sleep(20 * MINUTE).await;
    }
    // A key is prepared at half of the life of the one before, and its own life begins then: every 12 h.
    assert!((7..=9).contains(&key_ids.len()), "{} keys in four days", key_ids.len());
}

/// A key that is not to be trusted any more: its tokens leave the agent at once, and with the key their worth.
#[tokio::test(start_paused = true)]
async fn tokens_of_a_tainted_key_are_replaced_and_of_a_revoked_one_refused() {
    let (world, node, _) = web(Shape::default()).await;
    let workload = node.me();
    let mut bundles = tokens::follow_bundles(&workload).await.unwrap();
    bundles.message().await.unwrap();
    let first = fetch_one(&workload, "reports").await;
    let old = judge(&world, &first, "reports").unwrap().key_id().to_owned();

    let mut by_hand = LocalAuthorityClient::new(world.admin());
    let prepared = by_hand.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await.unwrap().into_inner();
    let new = prepared.prepared_authority.unwrap().authority_id;
    let told = tokens::key_ids_of(&bundles.message().await.unwrap().expect("the new key is told"));
    assert_eq!(told["spiffe://example.org"], [old.clone(), new.clone()]);
    let authority_id = new.clone();
    by_hand.activate_jwt_authority(ActivateJwtAuthorityRequest { authority_id }).await.unwrap();
    settle(&world).await;
    assert_eq!(fetch_one(&workload, "reports").await, first, "an old key is as good as the new one");

    let authority_id = old.clone();
    by_hand.taint_jwt_authority(TaintJwtAuthorityRequest { authority_id }).await.unwrap();
    settle(&world).await;
    let second = fetch_one(&workload, "reports").await;
    assert_eq!(judge(&world, &second, "reports").unwrap().key_id(), new);
    validate(&workload, "reports", &first).await.expect("tainted keys still verify");

    let authority_id = old.clone();
    by_hand.revoke_jwt_authority(RevokeJwtAuthorityRequest { authority_id }).await.unwrap();
    let told = tokens::key_ids_of(&bundles.message().await.unwrap().expect("the loss is told"));
    assert_eq!(told["spiffe://example.org"], [new]);
    let refused = validate(&workload, "reports", &first).await.unwrap_err();
    let text = format!("public key \"{old}\" not found in trust domain \"example.org\"");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text.as_str()));
}

/// Tokens with an ID of their own are new each time; a change of the entry takes effect at once, and its end too.
#[tokio::test(start_paused = true)]
async fn tokens_follow_their_entry() {
    let (world, node, entry) = web(Shape::default()).await;
    let workload = node.me();
    let first = fetch_one(&workload, "reports").await;
    assert!(parts(&first).1.get("jti").is_none());

    let unique = types::entry::AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() };
    let entry =
        world.update(types::Entry { additional_attributes: Some(unique), jwt_svid_ttl: 600, ..entry }).await;
    settle(&world).await;
    let mut ids = BTreeSet::new();
    for _ in 0..5 {
        let (_, claims) = parts(&fetch_one(&workload, "reports").await);
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
        ids.insert(claims["jti"].as_str().expect("an ID").to_owned());
    }
    assert_eq!((ids.len(), node.handles.cache.stats().jwt_svids), (5, 0));

    let entry = world.update(types::Entry { additional_attributes: None, jwt_svid_ttl: 0, ..entry }).await;
    settle(&world).await;
    let shared = fetch_one(&workload, "reports").await;
    assert_eq!(fetch_one(&workload, "reports").await, shared);
    world.delete(&entry.id).await;
    settle(&world).await;
    let refused = fetch(&workload, &["reports"], "").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "no identity issued"));
    assert_eq!(node.handles.cache.stats().jwt_svids, 0);
    validate(&workload, "reports", &shared).await.expect("judging needs no identity");
}

/// Tokens of another trust domain are judged where an entry federates with it, and only then.
#[tokio::test(start_paused = true)]
async fn foreign_tokens_are_judged_by_federated_bundles() {
    let agent = "allowed_foreign_jwt_claims = [\"role\"]".to_owned();
    let (world, node, entry) = web(Shape { agent, ..Shape::default() }).await;
    let mut stranger = Stranger::federated(&world, "other.test").await;
    let more = [("role", json!("admin")), ("secret", json!(true))];
    let token = stranger.sign("/x", &["reports"], world.clock.now(), &more);
    let workload = node.me();
    let refused = validate(&workload, "reports", &token).await.unwrap_err();
    assert_eq!(refused.message(), "no keys found for trust domain \"other.test\"");

    world.update(types::Entry { federates_with: vec!["other.test".to_owned()], ..entry }).await;
    settle(&world).await;
    let keys = tokens::key_ids(&workload).await.unwrap();
    assert_eq!(keys["spiffe://other.test"], [Stranger::KEY_ID]);
    let valid = validate(&workload, "reports", &token).await.unwrap();
    assert_eq!(valid.spiffe_id, "spiffe://other.test/x");
    let claims = valid.claims.unwrap().fields;
    assert_eq!(claims.keys().collect::<Vec<_>>(), ["aud", "exp", "role", "sub"]);
    // The other trust domain's key says nothing about this one.
    stranger.trust_domain = "example.org".to_owned();
    let token = stranger.sign("/web", &["reports"], world.clock.now(), &[]);
    let refused = validate(&workload, "reports", &token).await.unwrap_err();
    assert_eq!(refused.message(), "public key \"strange\" not found in trust domain \"example.org\"");
}

/// What a crowd asks for at once costs the server one signature for each identity.
#[tokio::test(start_paused = true)]
async fn a_crowd_costs_one_signature() {
    let (world, node, _) = web(Shape::default()).await;
    world
        .register_as(types::Entry {
            spiffe_id: Some(id("second")),
            parent_id: Some(id("node")),
            selectors: vec![types::Selector {
                r#type: "unix".into(),
                value: my_uid().trim_start_matches("unix:").into(),
            }],
            ..types::Entry::default()
        })
        .await;
    settle(&world).await;
    let workload = node.me();
    let all = futures::future::join_all((0..50).map(|_| fetch(&workload, &["reports"], ""))).await;
    let different: BTreeSet<String> =
        all.into_iter().flat_map(|svids| svids.unwrap()).map(|svid| svid.svid).collect();
    assert_eq!(different.len(), 2, "one token for each of two identities");
}
