//! An operator rotates authorities by hand while a workload watches.

use std::collections::BTreeSet;
use std::time::Duration;

use finial_identity::jwt_svid::UnverifiedJwtSvid;
use finial_identity::x509_svid::AuthorityCertificate;
use finial_proto::spire::api::server::localauthority::v1 as wire;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::workload::{JwtBundlesRequest, JwtsvidRequest};
use finial_tests::world::{Context, Workload, World, my_uid};
use tonic::transport::Channel;
use tonic::{Request, Streaming};

/// Virtual time within which a change of the bundle has its effect on a node.
const SOON: Duration = Duration::from_secs(30);

fn authorities(world: &World) -> LocalAuthorityClient<Channel> {
    LocalAuthorityClient::new(world.admin())
}

fn issuer(context: &Context) -> String {
    context.svid("web").authority_key_id().unwrap()
}

fn roots(context: &Context) -> BTreeSet<String> {
    context.bundle.iter().map(|der| AuthorityCertificate::read(der).unwrap().authority_id()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_tainted_x509_authority_is_left_by_all_at_once() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let before = updates.next(&world.clock).await;
    let (first, agent_before) = (issuer(&before), world.attested().await.remove(0));
    let server_before = world.server().server_svid.borrow().authority_id.clone();
    assert_eq!(server_before, first);
    let mut operator = authorities(&world);

    let prepared = operator.prepare_x509_authority(wire::PrepareX509AuthorityRequest {}).await.unwrap();
    let second = prepared.into_inner().prepared_authority.unwrap().authority_id;
    let both = BTreeSet::from([first.clone(), second.clone()]);
    let context = updates.until(&world.clock, |context| roots(context) == both).await;
    assert_eq!(issuer(&context), first, "nothing is replaced because there is a new root");

    let request = wire::ActivateX509AuthorityRequest { authority_id: second.clone() };
    operator.activate_x509_authority(request).await.unwrap();
    world.register("node", "later", &[my_uid()]).await;
    let context = updates.until(&world.clock, |context| context.names().contains(&"later")).await;
    assert_eq!(context.svid("later").authority_key_id().unwrap(), second);
    assert_eq!(issuer(&context), first, "what was signed before stays");

    let tainted_at = world.clock.now();
    let request = wire::TaintX509AuthorityRequest { authority_id: first.clone() };
    operator.taint_x509_authority(request).await.unwrap();
    // Each message on the way verifies, so there is no gap.
    let context = updates.until(&world.clock, |context| issuer(context) == second).await;
    assert_eq!(context.svid("later").authority_key_id().unwrap(), second);
    let agent_is_new = async || {
        world.attested().await.remove(0).x509svid_serial_number != agent_before.x509svid_serial_number
    };
    while !agent_is_new().await || world.server().server_svid.borrow().authority_id != second {
        world.clock.sleep(Duration::from_secs(1)).await;
        let waited = world.clock.now().duration_since(tainted_at).unwrap();
        assert!(waited < SOON, "agent or server still stand on the tainted authority after {waited:?}");
    }

    let request = wire::RevokeX509AuthorityRequest { authority_id: first.clone() };
    operator.revoke_x509_authority(request).await.unwrap();
    updates.until(&world.clock, |context| roots(context) == BTreeSet::from([second.clone()])).await;
    let waited = world.clock.now().duration_since(tainted_at).unwrap();
    assert!(waited < SOON * 2, "{waited:?}");

    // The agent was not cut off.
    world.register("node", "last", &[my_uid()]).await;
    updates.until(&world.clock, |context| context.names().contains(&"last")).await;
    assert_eq!(world.attested().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_tainted_key_are_not_given_out_any_more() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let me = node.me();
    me.fetch(&world.clock).await;
    let mut bundles = jwt_bundles(&me).await;
    let first = token_key(&me).await;
    assert_eq!(next_keys(&mut bundles).await, BTreeSet::from([first.clone()]));
    let mut operator = authorities(&world);

    let prepared = operator.prepare_jwt_authority(wire::PrepareJwtAuthorityRequest {}).await.unwrap();
    let second = prepared.into_inner().prepared_authority.unwrap().authority_id;
    assert_eq!(next_keys(&mut bundles).await, BTreeSet::from([first.clone(), second.clone()]));
    let request = wire::ActivateJwtAuthorityRequest { authority_id: second.clone() };
    operator.activate_jwt_authority(request).await.unwrap();
    assert_eq!(token_key(&me).await, first, "the token that is there is still good");

    let tainted_at = world.clock.now();
    let request = wire::TaintJwtAuthorityRequest { authority_id: first.clone() };
    operator.taint_jwt_authority(request).await.unwrap();
    while token_key(&me).await != second {
        world.clock.sleep(Duration::from_secs(1)).await;
        let waited = world.clock.now().duration_since(tainted_at).unwrap();
        assert!(waited < SOON, "a token of the tainted key is given out after {waited:?}");
    }

    let request = wire::RevokeJwtAuthorityRequest { authority_id: first };
    operator.revoke_jwt_authority(request).await.unwrap();
    while next_keys(&mut bundles).await != BTreeSet::from([second.clone()]) {}
    assert_eq!(token_key(&me).await, second);
}

/// The key ID of a token for the workload.
async fn token_key(workload: &Workload) -> String {
    let request = JwtsvidRequest { audience: vec!["database".into()], ..Default::default() };
    let answer = workload.client().fetch_jwtsvid(with_header(request)).await.unwrap().into_inner();
    UnverifiedJwtSvid::read(&answer.svids[0].svid).unwrap().key_id().to_owned()
}

async fn jwt_bundles(workload: &Workload) -> Streaming<finial_proto::workload::JwtBundlesResponse> {
    workload.client().fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner()
}

/// The key IDs in the next message about the own trust domain.
async fn next_keys(bundles: &mut Streaming<finial_proto::workload::JwtBundlesResponse>) -> BTreeSet<String> {
    let message = bundles.message().await.unwrap().unwrap();
    let document: serde_json::Value =
        serde_json::from_slice(&message.bundles["spiffe://example.org"]).unwrap();
    let keys = document["keys"].as_array().unwrap().iter();
    keys.map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}
