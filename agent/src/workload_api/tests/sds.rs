//! StreamSecrets and FetchSecrets, as an Envoy calls them.

use finial_proto::envoy::config::core::v3::data_source::Specifier;
use finial_proto::envoy::config::core::v3::node::UserAgentVersionType;
use finial_proto::envoy::config::core::v3::{BuildVersion, DataSource, Node};
use finial_proto::envoy::extensions::transport_sockets::tls::v3::{
    Secret, SpiffeCertValidatorConfig, secret,
};
use finial_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
};
use finial_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use finial_proto::envoy::r#type::v3::SemanticVersion;
use finial_proto::google::rpc;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

type Sds = SecretDiscoveryServiceClient<Channel>;

/// An open stream, with what the last response said.
struct Talk {
    ask: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
    version: String,
    nonce: String,
}

impl Talk {
    async fn open(client: &mut Sds) -> Talk {
        let (ask, asked) = mpsc::channel(8);
        let answers = client.stream_secrets(ReceiverStream::new(asked)).await.unwrap().into_inner();
        Talk { ask, answers, version: String::new(), nonce: String::new() }
    }

    /// Asks, acknowledging the last response.
    async fn ask(&self, names: &[&str]) {
        let known = DiscoveryRequest {
            version_info: self.version.clone(),
            response_nonce: self.nonce.clone(),
            ..request(names)
        };
        self.ask.send(known).await.unwrap();
    }

    async fn next(&mut self) -> Vec<(String, Content)> {
        let response = next(&mut self.answers).await;
        assert_eq!((response.type_url.as_str(), response.nonce.len()), (SECRET, 8));
        (self.version, self.nonce) = (response.version_info.clone(), response.nonce.clone());
        read(response)
    }

    async fn end(&mut self) -> Status {
        self.answers.message().await.expect_err("must end with an error")
    }
}

/// What a secret holds.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    /// PEM of chain and key.
    Certificate(String, String),
    /// PEM of the authorities by trust domain.
    Spiffe(Vec<(String, String)>),
    /// PEM of the authorities.
    Authorities(String),
}

fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn read(response: DiscoveryResponse) -> Vec<(String, Content)> {
    let text = |source: Option<DataSource>| match source.unwrap().specifier.unwrap() {
        Specifier::InlineBytes(bytes) => String::from_utf8(bytes).unwrap(),
    };
    let one = |any: prost_types::Any| {
        assert_eq!(any.type_url, SECRET);
        let secret = Secret::decode(any.value.as_slice()).unwrap();
        let content = match secret.r#type.unwrap() {
            secret::Type::TlsCertificate(tls) => {
                Content::Certificate(text(tls.certificate_chain), text(tls.private_key))
            }
            secret::Type::ValidationContext(context) => match context.custom_validator_config {
                Some(custom) => {
                    assert_eq!(custom.name, "envoy.tls.cert_validator.spiffe");
                    let config = custom.typed_config.unwrap();
                    assert!(config.type_url.ends_with("v3.SPIFFECertValidatorConfig"), "{}", config.type_url);
                    let config = SpiffeCertValidatorConfig::decode(config.value.as_slice()).unwrap();
                    let domains = config.trust_domains.into_iter();
                    Content::Spiffe(domains.map(|domain| (domain.name, text(domain.trust_bundle))).collect())
                }
                None => Content::Authorities(text(context.trusted_ca)),
            },
        };
        (secret.name, content)
    };
    response.resources.into_iter().map(one).collect()
}

fn names(secrets: &[(String, Content)]) -> Vec<&str> {
    secrets.iter().map(|(name, _)| name.as_str()).collect()
}

impl Running {
    async fn sds(&self) -> Sds {
        SecretDiscoveryServiceClient::new(self.channel().await)
    }

    /// Two identities with the same hint, and a foreign bundle.
    fn furnish(&self) -> Authority {
        let other = Authority::new("other.org", "other");
        let federated = BTreeMap::from([(other.trust_domain.clone(), other.bundle())]);
        self.cache.set_bundles(self.authority.bundle(), federated);
        for id in ["a", "b"] {
            let mut new = entry(id, &format!("/{id}"), &["test:me".to_owned()]);
            new.federates_with = vec![other.trust_domain.clone()];
            new.hint = "same".to_owned();
            self.cache.apply(EntryUpdate { upserted: vec![Arc::new(new.clone())], ..EntryUpdate::default() });
            let (svid, key) = self.authority.sign(&new, 3600);
            assert!(self.cache.install(id, 0, svid, key));
        }
        other
    }
}

fn pem(authority: &Authority) -> String {
    finial_identity::bundle::document::to_pem(&authority.bundle())
}

async fn fetch(client: &mut Sds, names: &[&str]) -> Result<Vec<(String, Content)>, Status> {
    let response = client.fetch_secrets(request(names)).await?.into_inner();
    assert_eq!((response.version_info.as_str(), response.nonce.as_str()), ("", ""));
    Ok(read(response))
}

#[tokio::test]
async fn secrets_are_found_by_their_names() {
    let running = Running::start();
    let other = running.furnish();
    let mut client = running.sds().await;
    let (a, b) = ("spiffe://example.org/a", "spiffe://example.org/b");
    let (own, foreign) = ("spiffe://example.org", "spiffe://other.org");
    for (asked, answered) in [
        (&[][..], &[own, foreign, a, b][..]),
        (&[""][..], &[own, foreign, a, b][..]),
        (&[a][..], &[a][..]),
        (&[b, a][..], &[a, b][..]),
        (&["default"][..], &["default"][..]),
        (&["default", b][..], &["default", b][..]),
        (&[own][..], &[own][..]),
        (&["ROOTCA", foreign][..], &["ROOTCA", foreign][..]),
        (&["ALL"][..], &["ALL"][..]),
    ] {
        let secrets = fetch(&mut client, asked).await.unwrap();
        assert_eq!(names(&secrets), answered, "{asked:?}");
    }
    let unknown = "workload is not authorized for the requested identities";
    for (asked, refused) in [
        (&["z", "x", a][..], r#"["x" "z"]"#),
        (&["file-root:system"][..], r#"["file-root:system"]"#),
        // As SPIRE has it: one of these at a time.
        (&["ROOTCA", "ALL"][..], r#"["ALL"]"#),
        (&["default", a][..], r#"["default"]"#),
    ] {
        let status = fetch(&mut client, asked).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), format!("{unknown} {refused}"));
    }

    let secrets = fetch(&mut client, &["default"]).await.unwrap();
    let Content::Certificate(chain, key) = &secrets[0].1 else { panic!("{secrets:?}") };
    let chain = finial_identity::bundle::document::certificates_from_pem(chain.as_bytes()).unwrap();
    let svid = X509Svid::read(chain).unwrap();
    assert_eq!(svid.id().as_str(), a);
    let body: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
    assert_eq!(WorkloadKey::from_pkcs8(&der).unwrap().public_key_der(), svid.public_key_der());
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n") && key.ends_with("-----END PRIVATE KEY-----\n"));

    let all = Content::Spiffe(vec![
        ("example.org".to_owned(), pem(&running.authority)),
        ("other.org".to_owned(), pem(&other)),
    ]);
    assert_eq!(fetch(&mut client, &["ALL"]).await.unwrap(), [("ALL".to_owned(), all)]);
}

#[tokio::test]
async fn envoys_without_the_spiffe_validator_get_plain_authorities() {
    let running = Running::start();
    running.furnish();
    let mut client = running.sds().await;
    let node = |said: Option<Kind>, version: Option<(u32, u32)>| Node {
        metadata: said.map(|kind| Struct {
            fields: [("disable_spiffe_cert_validation".to_owned(), Value { kind: Some(kind) })].into(),
        }),
        user_agent_version_type: version.map(|(major_number, minor_number)| {
            let version = SemanticVersion { major_number, minor_number, patch: 0 };
            UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version: Some(version) })
        }),
        ..Node::default()
    };
    let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
    for (node, plain) in [
        (node(None, None), false),
        (node(Some(Kind::BoolValue(true)), None), true),
        (node(Some(Kind::BoolValue(false)), None), false),
        (node(text("TRUE"), None), true),
        (node(text("yes"), None), false),
        (node(Some(Kind::NumberValue(1.0)), None), false),
        (node(None, Some((1, 17))), true),
        (node(None, Some((1, 18))), false),
        (node(None, Some((2, 0))), false),
        (node(None, Some((0, 99))), true),
    ] {
        let ask = |name: &str| DiscoveryRequest { node: Some(node.clone()), ..request(&[name]) };
        let secrets = read(client.fetch_secrets(ask("ROOTCA")).await.unwrap().into_inner());
        assert_eq!(matches!(secrets[0].1, Content::Authorities(_)), plain, "{node:?}");
        let all = client.fetch_secrets(ask("ALL")).await;
        if plain {
            assert_eq!(secrets[0].1, Content::Authorities(pem(&running.authority)));
            assert_eq!(all.unwrap_err().code(), Code::Internal);
        } else {
            assert_eq!(names(&read(all.unwrap().into_inner())), ["ALL"]);
        }
    }
}

#[tokio::test]
async fn a_stream_tells_each_change_and_listens_to_the_last_answer_only() {
    let running = Running::start();
    running.furnish();
    let mut client = running.sds().await;
    let mut talk = Talk::open(&mut client).await;
    talk.ask(&["default"]).await;
    let first = talk.next().await;
    assert_eq!((names(&first), talk.version.as_str()), (vec!["default"], "1"));
    // An acknowledgement, and a request for something else by who has not heard the last answer: no answer to either.
    talk.ask(&["default"]).await;
    let stale = DiscoveryRequest { response_nonce: "stale".to_owned(), ..request(&["spiffe://example.org"]) };
    talk.ask.send(stale).await.unwrap();
    // A rejection that asks for more.
    let rejected = DiscoveryRequest {
        response_nonce: talk.nonce.clone(),
        error_detail: Some(rpc::Status { code: 3, message: "no".to_owned(), details: Vec::new() }),
        ..request(&["default", "ROOTCA"])
    };
    talk.ask.send(rejected).await.unwrap();
    let both = talk.next().await;
    assert_eq!((names(&both), talk.version.as_str()), (vec!["ROOTCA", "default"], "1"));

    let new = entry("a", "/a", &["test:me".to_owned()]);
    let (svid, key) = running.authority.sign(&new, 7200);
    assert!(running.cache.install("a", 0, svid, key));
    let renewed = talk.next().await;
    assert_eq!((names(&renewed), talk.version.as_str()), (vec!["ROOTCA", "default"], "2"));
    assert_eq!(renewed[0], both[0]);
    assert_ne!(renewed[1], both[1], "the certificate was renewed");

    for id in ["a", "b"] {
        running.delete(id);
    }
    // The first identity is another one first, then there is none.
    let status = loop {
        match talk.answers.message().await {
            Ok(response) => assert!(response.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn who_speaks_first_waits_for_what_is_being_signed() {
    let running = Running::start();
    let new = entry("a", "/a", &["test:me".to_owned()]);
    running.cache.apply(EntryUpdate { upserted: vec![Arc::new(new.clone())], ..EntryUpdate::default() });
    let mut client = running.sds().await;
    let mut talk = Talk::open(&mut client).await;
    talk.ask(&["default"]).await;
    let (svid, key) = running.authority.sign(&new, 3600);
    until(|| running.cache.stats().subscribers > 0).await;
    assert!(running.cache.install("a", 0, svid, key));
    assert_eq!(names(&talk.next().await), ["default"]);
    // One that is not signed yet holds up nobody.
    let later = entry("b", "/b", &["test:me".to_owned()]);
    running.cache.apply(EntryUpdate { upserted: vec![Arc::new(later.clone())], ..EntryUpdate::default() });
    assert_eq!(names(&talk.next().await), ["default"]);
    talk.ask(&["spiffe://example.org/b"]).await;
    let (svid, key) = running.authority.sign(&later, 3600);
    assert!(running.cache.install("b", 0, svid, key));
    // The SVID may have come before the request was heard: then that one is stale, and asked again.
    while names(&talk.next().await) != ["spiffe://example.org/b"] {
        talk.ask(&["spiffe://example.org/b"]).await;
    }
}

#[tokio::test]
async fn what_a_process_has_no_right_to_ends_its_stream() {
    let running = Running::start();
    let mut client = running.sds().await;
    // Bundles are for everybody.
    assert_eq!(names(&fetch(&mut client, &["ROOTCA"]).await.unwrap()), ["ROOTCA"]);
    let mut talk = Talk::open(&mut client).await;
    talk.ask(&["default"]).await;
    let status = talk.end().await;
    let text = r#"workload is not authorized for the requested identities ["default"]"#;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));

    let (_ask, asked) = mpsc::channel::<DeltaDiscoveryRequest>(1);
    let status = client.delta_secrets(ReceiverStream::new(asked)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "Method is not implemented"));

    running.attestor.fails.store(true, Ordering::Relaxed);
    let status = fetch(&mut client, &[]).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
}
