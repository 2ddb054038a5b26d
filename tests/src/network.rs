//! Callers from the network: nobody in particular, bearers of SVIDs, and agents that are only a key and a certificate.

use std::sync::{Arc, Mutex};

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_identity::peer;
use finial_proto::spire::api::server::agent::v1 as agent_wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::svid::v1::MintX509svidRequest;
use finial_proto::spire::api::types;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tonic::transport::Channel;

use crate::world::{TRUST_DOMAIN, World, trust_domain};

/// What a client shows in a TLS handshake.
pub struct Identity {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    pub key: WorkloadKey,
}

impl World {
    /// A connection that shows no certificate.
    pub fn anonymous(&self) -> Channel {
        self.connected(None).0
    }

    /// A connection that shows this identity. Like all here it believes only the server of this world.
    pub fn showing(&self, identity: &Identity) -> Channel {
        self.connected(Some(identity)).0
    }

    /// The certificates that the server shows, leaf first.
    pub async fn server_chain(&self) -> Vec<Vec<u8>> {
        let (channel, server) = self.connected(None);
        BundleClient::new(channel).get_bundle(GetBundleRequest::default()).await.unwrap();
        server.shown.lock().unwrap().clone()
    }

    /// An SVID for `spiffe://example.org/<name>`, made by hand.
    pub async fn minted(&self, name: &str) -> Identity {
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let uri = format!("spiffe://{TRUST_DOMAIN}/{name}");
        let csr = key.csr(&spire_subject(), &[&uri]).unwrap();
        let minted = self.svids().mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await.unwrap();
        Identity { chain: minted.into_inner().svid.unwrap().cert_chain, key }
    }

    /// Attests an agent that no program runs.
    pub async fn bare_agent(&self, name: &str) -> (types::Spiffeid, Identity) {
        let payload = self.token(name).await.into_bytes();
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let csr = key.csr(&spire_subject(), &[]).unwrap();
        let params = agent_wire::attest_agent_request::Params {
            data: Some(types::AttestationData { r#type: "join_token".to_owned(), payload }),
            params: Some(agent_wire::AgentX509svidParams { csr }),
        };
        let step = Some(agent_wire::attest_agent_request::Step::Params(params));
        let requests = futures::stream::iter([agent_wire::AttestAgentRequest { step }]);
        let answers = AgentClient::new(self.anonymous()).attest_agent(requests).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        match answer.step.unwrap() {
            agent_wire::attest_agent_response::Step::Result(result) => {
                let svid = result.svid.unwrap();
                (svid.id.unwrap(), Identity { chain: svid.cert_chain, key })
            }
            agent_wire::attest_agent_response::Step::Challenge(_) => panic!("a challenge for a join token"),
        }
    }

    fn connected(&self, identity: Option<&Identity>) -> (Channel, Arc<OurServer>) {
        let bundle = self.server().own_bundle.current();
        let authorities = bundle.x509_authorities.iter().map(|authority| authority.der.to_vec()).collect();
        connected(self.network(), authorities, self.clock.clone(), identity)
    }
}

/// A connection to the server whose chain leads to one of `authorities` (DER).
pub fn connect(
    dialer: Dialer,
    authorities: Vec<Vec<u8>>,
    clock: Clock,
    identity: Option<&Identity>,
) -> Channel {
    connected(dialer, authorities, clock, identity).0
}

fn connected(
    dialer: Dialer,
    authorities: Vec<Vec<u8>>,
    clock: Clock,
    identity: Option<&Identity>,
) -> (Channel, Arc<OurServer>) {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server =
        Arc::new(OurServer { authorities, clock, provider: provider.clone(), shown: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server.clone());
    let mut config = match identity {
        Some(Identity { chain, key }) => {
            let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
            let key = PrivateKeyDer::try_from(key.pkcs8().to_vec()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    (dial::channel(dialer, Some(dial::fixed(Arc::new(config))), "server"), server)
}

/// Believes the server's SVID, by the bundle of the world.
#[derive(Debug)]
struct OurServer {
    authorities: Vec<Vec<u8>>,
    clock: Clock,
    provider: Arc<CryptoProvider>,
    shown: Mutex<Vec<Vec<u8>>>,
}

impl ServerCertVerifier for OurServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(above).cloned().collect();
        *self.shown.lock().unwrap() = chain.iter().map(|der| der.to_vec()).collect();
        let svid = peer::verify(&chain, &self.authorities, self.clock.now())
            .map_err(|error| Error::General(error.to_string()))?;
        assert_eq!(*svid.id(), trust_domain().server_id());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
