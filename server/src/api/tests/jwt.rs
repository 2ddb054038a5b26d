use finial_daemon::clock::unix_seconds;
use finial_identity::bundle::JwtAuthority;
use finial_identity::jwt_svid::{self, JwtSvid};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::svid::v1 as wire;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;

use super::*;

const DISABLED: &str = "JWT functionality is disabled";
const NO_AUDIENCE: &str = "at least one audience is required";

fn mint(path: &str, audience: &[&str], ttl: i32) -> wire::MintJwtsvidRequest {
    wire::MintJwtsvidRequest { id: id(path), audience: texts(audience), ttl }
}

fn new(entry_id: &str, audience: &[&str]) -> wire::NewJwtsvidRequest {
    wire::NewJwtsvidRequest { entry_id: entry_id.to_owned(), audience: texts(audience) }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

impl Server {
    /// Reads a token as whoever has the bundle of the trust domain does.
    async fn read(&self, svid: &types::Jwtsvid, audience: &str) -> JwtSvid {
        let bundle = self.bundles().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
        let keys: Vec<JwtAuthority> = bundle
            .jwt_authorities
            .into_iter()
            .map(|key| JwtAuthority {
                key_id: key.key_id,
                public_key: key.public_key,
                expires_at: key.expires_at,
                tainted: key.tainted,
            })
            .collect();
        let read = jwt_svid::verify(&svid.token, |_| Some(&keys), &[audience], self.clock.now()).unwrap();
        assert_eq!(uri(svid.id.as_ref().unwrap()), read.id().as_str());
        assert_eq!(unix_seconds(read.expires_at()), svid.expires_at);
        assert_eq!(read.issued_at().map(unix_seconds), Some(svid.issued_at));
        read
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_mints_for_any_workload() {
    let server = Server::configured("jwt_issuer = \"https://issuer.example\"").await;
    let minted = server.svids().mint_jwtsvid(mint("/ci", &["a", "", "b"], 60)).await.unwrap();
    let svid = minted.into_inner().svid.unwrap();
    let read = server.read(&svid, "b").await;
    assert_eq!((read.id().path(), read.audience()), ("/ci", &texts(&["a", "b"])[..]));
    assert_eq!(svid.expires_at, server.clock.unix() + 60);
    assert_eq!(read.claims()["iss"], "https://issuer.example");
    assert!(!read.claims().contains_key("jti"));
    let minted = server.svids().mint_jwtsvid(mint("/ci", &["a"], -1)).await.unwrap();
    assert_eq!(minted.into_inner().svid.unwrap().expires_at, server.clock.unix() + 300);
}

#[tokio::test(start_paused = true)]
async fn an_agent_gets_tokens_for_its_entries_alone() {
    let server = Server::configured("default_jwt_svid_ttl = \"2m\"").await;
    let agent = server.agent().await;
    let agent_path = wire_id(&agent.id).unwrap().path;
    let attributes = types::entry::AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() };
    let entries = server
        .create(vec![
            types::Entry { jwt_svid_ttl: 30, ..entry(&agent_path, "/short", &["s:1"]) },
            types::Entry {
                additional_attributes: Some(attributes),
                ..entry(&agent_path, "/counted", &["s:1"])
            },
            entry("/spire/agent/other", "/foreign", &["s:1"]),
        ])
        .await;
    server.handles.feed.changed().await;
    let mut client = SvidClient::new(agent.channel.clone());

    let svid = client.new_jwtsvid(new(&entries[0].id, &["a"])).await.unwrap().into_inner().svid.unwrap();
    assert_eq!(server.read(&svid, "a").await.id().path(), "/short");
    assert_eq!((svid.issued_at, svid.expires_at), (server.clock.unix(), server.clock.unix() + 30));

    let counted = client.new_jwtsvid(new(&entries[1].id, &["a"])).await.unwrap().into_inner().svid.unwrap();
    assert_eq!(counted.expires_at, server.clock.unix() + 120);
    let jti = server.read(&counted, "a").await.claims()["jti"].as_str().unwrap().to_owned();
    let again = client.new_jwtsvid(new(&entries[1].id, &["a"])).await.unwrap().into_inner().svid.unwrap();
    assert_ne!(server.read(&again, "a").await.claims()["jti"], jti.as_str());

    for unknown in [entries[2].id.as_str(), "nothing", ""] {
        let refused = client.new_jwtsvid(new(unknown, &["a"])).await;
        assert_refused(refused, Code::NotFound, "entry not found or not authorized");
    }
    for audience in [&[][..], &["", ""]] {
        let refused = client.new_jwtsvid(new(&entries[0].id, audience)).await;
        assert_refused(refused, Code::InvalidArgument, NO_AUDIENCE);
    }
}

#[tokio::test(start_paused = true)]
async fn minting_refuses_what_an_operator_may_not_have() {
    let server = Server::start().await;
    let not_a_workload = |path: &str, why: &str| {
        format!(
            "invalid SPIFFE ID: \"spiffe://example.org{path}\" is not a workload in trust domain \"example.org\"; {why}"
        )
    };
    for (request, text) in [
        (
            wire::MintJwtsvidRequest { id: None, ..mint("", &["a"], 0) },
            "invalid SPIFFE ID: request must specify SPIFFE ID".to_owned(),
        ),
        (mint("", &["a"], 0), not_a_workload("", "path is empty")),
        (
            mint("/spire/agent/x", &["a"], 0),
            not_a_workload("/spire/agent/x", "path is in the reserved namespace"),
        ),
        (mint("x", &["a"], 0), "invalid SPIFFE ID: path must have a leading slash".to_owned()),
        (mint("/x", &[], 0), NO_AUDIENCE.to_owned()),
        (mint("/x", &[""], 0), NO_AUDIENCE.to_owned()),
        (
            mint("/x", &[&"a".repeat(64 * 1024)], 0),
            "a token for this audience would be longer than 65536 bytes, which nobody reads".to_owned(),
        ),
    ] {
        assert_refused(server.svids().mint_jwtsvid(request).await, Code::InvalidArgument, &text);
    }
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
