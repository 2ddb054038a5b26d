use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::svid::v1 as wire;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;

use super::*;

const DISABLED: &str = "JWT functionality is disabled";

fn mint(path: &str, audience: &[&str], ttl: i32) -> wire::MintJwtsvidRequest {
    wire::MintJwtsvidRequest { id: id(path), audience: texts(audience), ttl }
}

fn new(entry_id: &str, audience: &[&str]) -> wire::NewJwtsvidRequest {
    wire::NewJwtsvidRequest { entry_id: entry_id.to_owned(), audience: texts(audience) }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn without_jwt_svids_nobody_gets_one() {
    let server = Server::configured("disable_jwt_svids = true").await;
    let agent = server.agent().await;
    assert_refused(server.svids().mint_jwtsvid(mint("/x", &[], 0)).await, Code::Unimplemented, DISABLED);
    let mut client = SvidClient::new(agent.channel.clone());
    assert_refused(client.new_jwtsvid(new("", &[])).await, Code::Unimplemented, DISABLED);
    let bundle = server.bundles().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(bundle.jwt_authorities, []);
}

#[tokio::test(start_paused = true)]
async fn tokens_have_a_limit_of_their_own() {
    let server = Server::start().await.coming_from("192.0.2.1:4711");
    let agent = server.agent().await;
    let mut client = SvidClient::new(agent.channel.clone());
    let csrs = wire::BatchNewX509svidRequest { params: vec![wire::NewX509svidParams::default(); 500] };
    client.batch_new_x509svid(csrs).await.unwrap();
    let before = server.clock.monotonic();
    for _ in 0..500 {
        assert_refused(
            client.new_jwtsvid(new("", &["a"])).await,
            Code::NotFound,
            "entry not found or not authorized",
        );
    }
    let waited = server.clock.monotonic() - before;
    assert!(waited < Duration::from_millis(100), "{waited:?}");
    for _ in 0..50 {
        client.new_jwtsvid(new("", &["a"])).await.unwrap_err();
    }
    let waited = server.clock.monotonic() - before;
    assert!(waited >= Duration::from_millis(90) && waited < Duration::from_millis(300), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn wit_svids_are_answered_as_by_a_server_that_has_the_feature_off() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let agent_path = wire_id(&agent.id).unwrap().path;
    let mine = server.create(vec![entry(&agent_path, "/mine", &["s:1"])]).await.remove(0).id;
    let minted = server.svids().mint_witsvid(wire::MintWitsvidRequest::default()).await;
    assert_refused(minted, Code::Unimplemented, "WIT functionality is disabled");
    let mut client = SvidClient::new(agent.channel.clone());
    let none = client.batch_new_witsvid(wire::BatchNewWitsvidRequest::default()).await;
    assert_refused(none, Code::InvalidArgument, "missing parameters");

    let key = WorkloadKey::generate(KeyType::EcP256).unwrap().public_key_der().to_vec();
    let params = |entry_id: &str, public_key: &[u8], algorithm: &str| wire::NewWitsvidParams {
        entry_id: entry_id.to_owned(),
        public_key: public_key.to_vec(),
        signing_algorithm: algorithm.to_owned(),
    };
    let rows = [
        (params("", &key, "ES256"), Code::InvalidArgument, "missing entry ID"),
        (params(&mine, b"", "ES256"), Code::InvalidArgument, "missing public key"),
        (params("x", &key, "ES256"), Code::NotFound, "entry not found or not authorized"),
        (params(&mine, b"x", "ES256"), Code::InvalidArgument, "malformed public key: "),
        (
            params(&mine, &key, "ES384"),
            Code::InvalidArgument,
            "invalid signing algorithm or key type: unsupported signing algorithm for ec-p256 key: ES384",
        ),
        (
            params(&mine, &key, "ES256"),
            Code::Internal,
            "failed to sign WIT-SVID: WIT key is not available for signing",
        ),
    ];
    let request = wire::BatchNewWitsvidRequest { params: rows.iter().map(|row| row.0.clone()).collect() };
    let results = client.batch_new_witsvid(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), rows.len());
    for (result, (_, code, text)) in results.iter().zip(rows) {
        let status = result.status.as_ref().unwrap();
        assert_eq!(Code::from(status.code), code, "{status:?}");
        assert!(status.message.starts_with(text), "{status:?}");
        assert_eq!(result.svid, None);
    }
}
