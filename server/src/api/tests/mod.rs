//! The services as their callers see them: a whole server over in-memory wires, in virtual time.

mod agents;
mod bundles;
mod callers;
mod entries;
mod jwt;
mod localauthority;
mod siege;
mod svids;
mod trust_domains;
mod watching;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_daemon::listen::{self, MemoryDialer, Origin};
use finial_daemon::metrics::Metrics;
use finial_daemon::settings::parse;
use finial_daemon::telemetry::{LogHandle, LogLevel};
use finial_proto::spire::api::server::agent::v1 as agent_wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::types;
use prost::Message;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::access::permit;
use crate::build::{Handles, RunError, Surroundings, build};
use crate::settings::{Flags, Settings};

/// A server that runs until it is dropped.
struct Server {
    handles: Handles,
    clock: Clock,
    /// Over the admin socket.
    local: Channel,
    network: MemoryDialer,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
}

/// An attested agent.
struct Agent {
    id: String,
    channel: Channel,
}

impl Server {
    async fn start() -> Server {
        Server::configured("").await
    }

    /// With more keys in its `server` block.
    async fn configured(more: &str) -> Server {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        Server::with_plugin(more, "", start).await
    }

    /// With one more plugin, and from this moment on.
    async fn with_plugin(more: &str, plugin: &str, start: SystemTime) -> Server {
        let text = format!(
            "server {{ trust_domain = \"example.org\" data_dir = \"/nowhere\"\n{more}\n}}
            plugins {{
                DataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\" connection_string = \":memory:\" }} }}
                KeyManager \"memory\" {{ plugin_data {{}} }}
                NodeAttestor \"join_token\" {{ plugin_data {{}} }}
                {plugin}
            }}"
        );
        let settings = Settings::read(&parse(&text, "server.conf").unwrap(), &Flags::default()).unwrap();
        let clock = Clock::paused(start);
        let (network, api) = listen::memory();
        let (local, admin) = listen::memory();
        let log = LogHandle::detached(LogLevel::Info);
        let built = build(
            settings,
            Surroundings { clock: clock.clone(), api, admin, log, metrics: Metrics::none(clock.clone()) },
        )
        .await
        .unwrap();
        let task = tokio::spawn(built.task);
        built.ready.wait().await;
        let local = dial::channel(Dialer::Memory(local), None, "localhost");
        Server { handles: built.handles, clock, local, network, task }
    }

    /// With callers from the network at this address, who are limited then.
    fn coming_from(mut self, address: &str) -> Server {
        self.network = self.network.coming_from(Origin::Tcp(address.parse().unwrap()));
        self
    }

    fn entries(&self) -> EntryClient<Channel> {
        EntryClient::new(self.local.clone())
    }

    fn agents(&self) -> AgentClient<Channel> {
        AgentClient::new(self.local.clone())
    }

    fn svids(&self) -> SvidClient<Channel> {
        SvidClient::new(self.local.clone())
    }

    fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::new(self.local.clone())
    }

    /// A connection from the network without a certificate.
    fn anonymous(&self) -> Channel {
        self.tls(None)
    }

    fn tls(&self, identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> Channel {
        let config = Server::tls_config(identity);
        dial::channel(Dialer::Memory(self.network.clone()), Some(dial::fixed(config)), "server")
    }

    fn tls_config(
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelieveAll));
        let mut config = match identity {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    async fn token(&self) -> String {
        let request = agent_wire::CreateJoinTokenRequest { ttl: 600, ..Default::default() };
        self.agents().create_join_token(request).await.unwrap().into_inner().value
    }

    /// Attests a new agent.
    async fn agent(&self) -> Agent {
        let token = self.token().await;
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let csr = key.csr(&spire_subject(), &[]).unwrap();
        let svid = self.attest(&token, csr).await.unwrap();
        Agent {
            id: uri(svid.id.as_ref().unwrap()),
            channel: self.tls(Some(identity(&svid.cert_chain, &key))),
        }
    }

    async fn attest(&self, token: &str, csr: Vec<u8>) -> Result<types::X509svid, Status> {
        let data = types::AttestationData { r#type: "join_token".into(), payload: token.as_bytes().to_vec() };
        let params = agent_wire::attest_agent_request::Params {
            data: Some(data),
            params: Some(agent_wire::AgentX509svidParams { csr }),
        };
        self.attest_with(Some(params)).await
    }

    async fn attest_with(
        &self,
        params: Option<agent_wire::attest_agent_request::Params>,
    ) -> Result<types::X509svid, Status> {
        let step = params.map(agent_wire::attest_agent_request::Step::Params);
        let requests = futures::stream::iter([agent_wire::AttestAgentRequest { step }]);
        let mut answers = AgentClient::new(self.anonymous()).attest_agent(requests).await?.into_inner();
        let answer = answers.message().await?.unwrap();
        match answer.step.unwrap() {
            agent_wire::attest_agent_response::Step::Result(result) => Ok(result.svid.unwrap()),
            agent_wire::attest_agent_response::Step::Challenge(_) => panic!("a challenge"),
        }
    }

    /// Creates entries that are all expected to be fine.
    async fn create(&self, entries: Vec<types::Entry>) -> Vec<types::Entry> {
        let request = finial_proto::spire::api::server::entry::v1::BatchCreateEntryRequest {
            entries,
            output_mask: None,
        };
        let results = self.entries().batch_create_entry(request).await.unwrap().into_inner().results;
        results
            .into_iter()
            .map(|result| {
                assert_eq!(result.status.unwrap().message, "OK");
                result.entry.unwrap()
            })
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct BelieveAll;

impl ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn identity(chain: &[Vec<u8>], key: &WorkloadKey) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    (chain, PrivateKeyDer::try_from(key.pkcs8().to_vec()).unwrap())
}

fn csr_for(uris: &[&str]) -> Vec<u8> {
    WorkloadKey::generate(KeyType::EcP256).unwrap().csr(&spire_subject(), uris).unwrap()
}

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".into(), path: path.into() })
}

fn uri(id: &types::Spiffeid) -> String {
    format!("spiffe://{}{}", id.trust_domain, id.path)
}

/// The wire form of a whole ID.
fn wire_id(uri: &str) -> Option<types::Spiffeid> {
    id(uri.strip_prefix("spiffe://example.org").unwrap())
}

fn selector(text: &str) -> types::Selector {
    let (kind, value) = text.split_once(':').unwrap();
    types::Selector { r#type: kind.into(), value: value.into() }
}

fn entry(parent: &str, path: &str, selectors: &[&str]) -> types::Entry {
    types::Entry {
        parent_id: id(parent),
        spiffe_id: id(path),
        selectors: selectors.iter().map(|text| selector(text)).collect(),
        ..Default::default()
    }
}

/// The reason in the details of a refusal, found as Go finds it.
fn reason(status: &Status) -> Option<types::permission_denied_details::Reason> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    let details = RpcStatus::decode(status.details()).unwrap().details;
    let detail = details.first()?;
    assert_eq!(detail.type_url, "type.googleapis.com/spire.api.types.PermissionDeniedDetails");
    Some(types::PermissionDeniedDetails::decode(detail.value.as_slice()).unwrap().reason())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

/// Like [`assert_refused`], for texts that end with what another library says.
#[track_caller]
fn assert_refused_with<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, start: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().starts_with(start), "{}", status.message());
}
