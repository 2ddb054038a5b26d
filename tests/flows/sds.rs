//! An Envoy's stream of secrets, through rotations and losses.

use finial_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use finial_proto::envoy::service::discovery::v3::DiscoveryRequest;
use finial_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use finial_tests::world::{World, my_uid};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

#[tokio::test(start_paused = true)]
async fn an_envoy_follows_rotations_until_it_loses_its_identity() {
    let world = World::new().await;
    let node = world.node("node").await;
    let entry = world.register("node", "web", &[my_uid()]).await;
    node.me().fetch(&world.clock).await;

    let (ask, asked) = mpsc::channel(1);
    let me = node.me();
    let mut client = SecretDiscoveryServiceClient::new(me.channel().clone());
    let first =
        DiscoveryRequest { resource_names: vec!["default".to_owned()], ..DiscoveryRequest::default() };
    ask.send(first.clone()).await.unwrap();
    let mut answers = client.stream_secrets(ReceiverStream::new(asked)).await.unwrap().into_inner();
    let begun = world.clock.unix();
    let mut secrets: Vec<Secret> = Vec::new();
    while secrets.len() < 4 {
        let answer = answers.message().await.unwrap().expect("the stream goes on");
        assert_eq!(answer.version_info, (secrets.len() + 1).to_string(), "each rotation is one version");
        let secret = Secret::decode(answer.resources[0].value.as_slice()).unwrap();
        assert_eq!(secret.name, "default");
        assert!(!secrets.contains(&secret), "an answer that says nothing new");
        secrets.push(secret);
        let known = DiscoveryRequest {
            version_info: answer.version_info,
            response_nonce: answer.nonce,
            ..first.clone()
        };
        ask.send(known).await.unwrap();
    }
    // Three times half of an hour, give or take a tenth.
    let took = world.clock.unix() - begun;
    assert!((4800..6100).contains(&took), "{took}");

    world.delete(&entry.id).await;
    let end = answers.message().await.unwrap_err();
    assert_eq!(end.code(), Code::InvalidArgument);
    assert!(end.message().contains("[\"default\"]"), "{end}");
}
