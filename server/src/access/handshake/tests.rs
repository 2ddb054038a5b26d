use finial_daemon::listen::{ConnInfo, Origin};
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, SupportedProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::access::caller::Caller;
use crate::access::fixture::{Authority, Bearer, Wish, noon};
use crate::store::OpenSettings;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::version;

/// A server of `example.org` whose settings can be changed.
struct Server {
    own: Authority,
    foreign: Authority,
    svid: watch::Sender<Option<Arc<CertifiedKey>>>,
    bundle: watch::Sender<Arc<Bundle>>,
    trust: Trust,
    config: Arc<ServerConfig>,
}

/// What both sides know after a handshake.
struct Met {
    connection: ConnInfo,
    protocol: Option<Vec<u8>>,
    version: Option<ProtocolVersion>,
    group: String,
    kind: Option<HandshakeKind>,
    server_leaf: CertificateDer<'static>,
}

impl Server {
    fn new(require_pq_kem: bool) -> Server {
        let (own, foreign) = (Authority::new("example.org"), Authority::new("other.org"));
        let (svid, current) = watch::channel(None);
        let (bundle, bundles) = watch::channel(Arc::new(own.bundle()));
        let admins = ["spiffe://other.org/admin", "spiffe://third.org/admin", "spiffe://example.org/admin"];
        let admin_ids: Arc<[SpiffeId]> = admins.map(|id| SpiffeId::parse(id).unwrap()).into();
        let trust = Trust {
            own: bundles,
            foreign: ForeignBundles::new(&admin_ids, &own.td),
            admin_ids,
            clock: Clock::paused(noon()),
        };
        let config = server_config(current, trust.clone(), require_pq_kem).unwrap();
        let server = Server { own, foreign, svid, bundle, trust, config };
        server.rotate();
        server
    }

    /// A new server SVID.
    fn rotate(&self) {
        let Bearer { chain, key } = self.own.svid("/spire/server", 2);
        let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).unwrap();
        self.svid.send_replace(Some(Arc::new(CertifiedKey::new(chain, key))));
    }

    async fn meet(&self, client: &Arc<ClientConfig>) -> Result<Met, String> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = TlsAcceptor::from(Arc::clone(&self.config)).accept(near);
        let name = ServerName::try_from("server.test").unwrap();
        let client = TlsConnector::from(Arc::clone(client)).connect(name, far);
        let (accepted, connected) = tokio::join!(server, client);
        let mut accepted = accepted.map_err(|error| error.to_string())?;
        let mut connected = connected.map_err(|error| error.to_string())?;
        accepted.write_all(b"x").await.unwrap();
        accepted.flush().await.unwrap();
        // Whatever the server sends after the handshake (it sends no tickets) has been read with the answer.
        connected.read_u8().await.map_err(|error| error.to_string())?;
        let (_, server) = accepted.get_ref();
        let (_, client) = connected.get_ref();
        Ok(Met {
            connection: ConnInfo::new(
                Origin::Memory,
                server.peer_certificates().map(|chain| chain.to_vec().into()),
            ),
            protocol: client.alpn_protocol().map(<[u8]>::to_vec),
            version: client.protocol_version(),
            group: format!("{:?}", client.negotiated_key_exchange_group().unwrap().name()),
            kind: client.handshake_kind(),
            server_leaf: client.peer_certificates().unwrap()[0].clone().into_owned(),
        })
    }

    async fn refuses(&self, bearer: &Bearer) -> String {
        match self.meet(&client(Some(bearer), &version::TLS13)).await {
            Ok(_) => panic!("the certificate was accepted"),
            Err(error) => error,
        }
    }
}

/// Believes every server; which one it is plays no part here.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client(bearer: Option<&Bearer>, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    client_of(aws_lc_rs::default_provider(), bearer, version)
}

fn client_of(
    provider: CryptoProvider,
    bearer: Option<&Bearer>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match bearer {
        Some(bearer) => builder.with_client_auth_cert(bearer.chain.clone(), bearer.key.clone_key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec(), ALPN.to_vec()];
    Arc::new(config)
}

fn classic() -> CryptoProvider {
    let default = aws_lc_rs::default_provider();
    let kx_groups = vec![aws_lc_rs::kx_group::X25519];
    CryptoProvider { kx_groups, ..default }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_let_in_as_nobody() {
    let server = Server::new(false);
    let met = server.meet(&client(None, &version::TLS13)).await.unwrap();
    assert_eq!(met.protocol.as_deref(), Some(ALPN));
    assert_eq!(met.version, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(met.group, "X25519MLKEM768");
    let caller = Caller::from_network(&met.connection).unwrap();
    assert!(caller.is_anonymous() && !caller.is_local());
    assert_eq!(caller.spiffe_id(), None);
}

#[tokio::test]
async fn a_member_of_the_trust_domain_is_known_by_its_svid() {
    let server = Server::new(false);
    let agent = server.own.svid("/spire/agent/join_token/a", 0x1_0000_0000_0000);
    for version in [&version::TLS13, &version::TLS12] {
        let met = server.meet(&client(Some(&agent), version)).await.unwrap();
        let caller = Caller::from_network(&met.connection).unwrap();
        assert_eq!(caller.spiffe_id().unwrap().as_str(), "spiffe://example.org/spire/agent/join_token/a");
        assert_eq!(caller.serial(), Some("281474976710656"));
        assert!(!caller.is_anonymous() && !caller.is_local());
        assert!(!caller.is_expired(noon() + Duration::from_secs(3600)));
        assert!(caller.is_expired(noon() + Duration::from_secs(3601)));
    }
}

#[tokio::test]
async fn every_connection_proves_itself_anew() {
    let server = Server::new(false);
    for version in [&version::TLS13, &version::TLS12] {
        let client = client(None, version);
        for _ in 0..3 {
            let met = server.meet(&client).await.unwrap();
            assert!(matches!(met.kind, Some(HandshakeKind::Full)), "{:?}", met.kind);
        }
    }
}

#[tokio::test]
async fn certificates_that_prove_nothing_end_the_handshake() {
    let server = Server::new(false);
    let good = server.own.uri("/web");
    let own = &server.own;
    let impostor = Authority::new("example.org");
    let cases = [
        ("another authority", impostor.svid("/web", 3), "signed by unknown authority"),
        ("foreign authority", server.foreign.svid(&good, 3), "signed by unknown authority"),
        ("expired", own.issue(&Wish { lifetime: -1, ..Wish::id(&good, 3) }), "expired"),
        ("no URI", own.issue(&Wish { uris: vec![], ..Wish::id(&good, 3) }), "no URI SAN"),
        (
            "two URIs",
            own.issue(&Wish { uris: vec![good.clone(), own.uri("/db")], ..Wish::id(&good, 3) }),
            "more than one URI SAN",
        ),
        ("a CA", own.issue(&Wish { is_ca: true, ..Wish::id(&good, 3) }), "CA flag"),
        ("no path", own.svid("", 3), "without a path"),
        ("no SPIFFE ID", own.issue(&Wish::id("https://example.org/web", 3)), "invalid SPIFFE ID"),
        ("foreign domain", server.foreign.svid("/web", 3), "unexpected trust domain"),
    ];
    for (case, bearer, cause) in &cases {
        let error = server.refuses(bearer).await;
        assert!(error.contains("certificate"), "{case}: {error}");
        let chain: Vec<_> = bearer.chain.clone();
        let verdict = server.trust.check(&chain).unwrap_err().to_string();
        assert!(verdict.contains(cause), "{case}: {verdict}");
    }
    assert!(server.trust.check(&[]).is_err());
}

#[tokio::test]
async fn time_and_the_bundle_are_those_of_the_handshake() {
    let server = Server::new(false);
    let agent = client(Some(&server.own.svid("/web", 3)), &version::TLS13);
    server.meet(&agent).await.unwrap();
    server.trust.clock.jump(3700);
    assert!(server.meet(&agent).await.is_err(), "expired meanwhile");
    server.trust.clock.jump(-3700);
    server.meet(&agent).await.unwrap();
    server.bundle.send_replace(Arc::new(Authority::new("example.org").bundle()));
    assert!(server.meet(&agent).await.is_err(), "its authority is gone");
}

#[tokio::test]
async fn foreign_administrators_need_their_bundle() {
    let server = Server::new(false);
    let clock = server.trust.clock.clone();
    let store = Store::open(OpenSettings::new(":memory:", server.own.td.clone(), clock)).await.unwrap();
    let admin = server.foreign.svid("/admin", 3);
    let stranger = server.foreign.svid("/stranger", 3);
    assert!(server.trust.foreign.is_needed());

    server.trust.foreign.refresh(&store).await.unwrap();
    let verdict = server.trust.check(&admin.chain).unwrap_err().to_string();
    assert_eq!(verdict, "no bundle found for trust domain \"other.org\"");

    store.bundles().set(server.foreign.bundle()).await.unwrap();
    server.trust.foreign.refresh(&store).await.unwrap();
    let met = server.meet(&client(Some(&admin), &version::TLS13)).await.unwrap();
    let caller = Caller::from_network(&met.connection).unwrap();
    assert_eq!(caller.spiffe_id().unwrap().as_str(), "spiffe://other.org/admin");
    server.refuses(&stranger).await;

    store.bundles().set(Authority::new("other.org").bundle()).await.unwrap();
    server.trust.foreign.refresh(&store).await.unwrap();
    server.refuses(&admin).await;
}

#[tokio::test(start_paused = true)]
async fn foreign_bundles_are_followed_within_a_second() {
    let server = Server::new(false);
    let clock = server.trust.clock.clone();
    let store =
        Store::open(OpenSettings::new(":memory:", server.own.td.clone(), clock.clone())).await.unwrap();
    let following = tokio::spawn(server.trust.foreign.clone().follow(store.clone(), clock.clone()));
    store.bundles().set(server.foreign.bundle()).await.unwrap();
    let admin = server.foreign.svid("/admin", 3);
    while server.trust.check(&admin.chain).is_err() {
        assert!(clock.monotonic() < Duration::from_secs(2));
        clock.sleep(Duration::from_millis(100)).await;
    }
    following.abort();

    let nobody =
        ForeignBundles::new(&[SpiffeId::parse("spiffe://example.org/admin").unwrap()], &server.own.td);
    assert!(!nobody.is_needed());
    nobody.follow(store, clock).await;
}

#[tokio::test]
async fn a_new_server_svid_is_used_from_the_next_handshake_on() {
    let server = Server::new(false);
    let client = client(None, &version::TLS13);
    let before = server.meet(&client).await.unwrap().server_leaf;
    assert_eq!(server.meet(&client).await.unwrap().server_leaf, before);
    server.rotate();
    assert_ne!(server.meet(&client).await.unwrap().server_leaf, before);
    server.svid.send_replace(None);
    assert!(server.meet(&client).await.is_err(), "no SVID, no handshake");
}

#[tokio::test]
async fn post_quantum_key_exchange_can_be_required() {
    let (plain, strict) = (Server::new(false), Server::new(true));
    let old = client_of(classic(), None, &version::TLS13);
    let older = client_of(classic(), None, &version::TLS12);
    for client in [&old, &older] {
        assert_eq!(plain.meet(client).await.unwrap().group, "X25519");
        assert!(strict.meet(client).await.is_err());
    }
    assert!(strict.meet(&client(None, &version::TLS12)).await.is_err());
    assert_eq!(strict.meet(&client(None, &version::TLS13)).await.unwrap().group, "X25519MLKEM768");
}
