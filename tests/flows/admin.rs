//! A process that speaks for others, over the admin socket of an agent.

use finial_proto::spire::agent::debug::v1::{GetInfoRequest, debug_client::DebugClient};
use finial_proto::spire::api::agent::delegatedidentity::v1::SubscribeToX509sviDsRequest;
use finial_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use finial_proto::spire::api::types;
use finial_tests::world::{Shape, World, my_uid};

#[tokio::test(start_paused = true)]
async fn a_delegate_follows_an_identity_through_its_rotations() {
    let shape = Shape {
        agent: "authorized_delegates = [\"spiffe://example.org/delegate\"]".to_owned(),
        ..Shape::default()
    };
    let world = World::of(shape).await;
    let node = world.node("node").await;
    world.register("node", "delegate", &[my_uid()]).await;
    world.register("node", "pod", &["k8s:ns:shop".to_owned()]).await;
    node.me().fetch(&world.clock).await;

    let admin = node.admin(std::process::id());
    let selectors = vec![types::Selector { r#type: "k8s".to_owned(), value: "ns:shop".to_owned() }];
    let request = SubscribeToX509sviDsRequest { selectors, pid: 0 };
    let stream = DelegatedIdentityClient::new(admin.clone()).subscribe_to_x509svi_ds(request).await;
    let mut stream = stream.unwrap().into_inner();
    let mut ends = Vec::new();
    while ends.len() < 3 {
        let message = stream.message().await.unwrap().expect("the stream goes on");
        let Some(one) = message.x509_svids.first() else { continue };
        let svid = one.x509_svid.as_ref().unwrap();
        assert_eq!(svid.id.as_ref().unwrap().path, "/pod");
        assert!(svid.expires_at > world.clock.unix());
        ends.push(svid.expires_at);
    }
    assert!(ends[0] < ends[1] && ends[1] < ends[2], "{ends:?}");

    let info = DebugClient::new(admin).get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.last_sync_success, world.clock.unix(), "changes are pushed");
    assert_eq!(info.svid_chain.len(), 2);
    // Two rotations at half of an hour, give or take a tenth.
    assert!(info.uptime > 3200, "{}", info.uptime);
}
