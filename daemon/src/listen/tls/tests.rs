use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::listen::{MemoryDialer, Origin, memory};

const LIMIT: Duration = Duration::from_secs(5);

/// An authority, and what it certified.
struct Pki {
    roots: Arc<RootCertStore>,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new(name: &str) -> Pki {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        Pki { roots: Arc::new(roots), ca }
    }

    fn certify(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.ca).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone(), self.ca.der().clone()], key)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let clients =
            WebPkiClientVerifier::builder(self.roots.clone()).allow_unauthenticated().build().unwrap();
        let (chain, key) = self.certify("server.test");
        let mut config =
            ServerConfig::builder().with_client_cert_verifier(clients).with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![H2.to_vec()];
        Arc::new(config)
    }

    fn client(&self, with_certificate: bool, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder().with_root_certificates(self.roots.clone());
        let mut config = if with_certificate {
            let (chain, key) = self.certify("client.test");
            builder.with_client_auth_cert(chain, key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }
}

fn serve(pki: &Pki) -> (MemoryDialer, Connections, Clock) {
    let (dialer, incoming) = memory();
    let clock = Clock::paused(std::time::UNIX_EPOCH);
    let connections = accept(incoming, pki.server(), LIMIT, clock.clone());
    (dialer, connections, clock)
}

async fn connect(
    dialer: &MemoryDialer,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<tokio::io::DuplexStream>> {
    let name = ServerName::try_from("server.test").unwrap();
    TlsConnector::from(config).connect(name, dialer.dial().unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn a_connection_tells_the_certificates_of_its_client() {
    let pki = Pki::new("ours");
    let (dialer, mut connections, _) = serve(&pki);
    let mut client = connect(&dialer, pki.client(true, &[H2])).await.unwrap();
    let mut conn = connections.next().await.unwrap().unwrap();
    let info = conn.info();
    assert!(matches!(info.origin, Origin::Memory));
    let chain = info.peer_chain.clone().unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(&chain[1], pki.ca.der());
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut five = [0; 5];
    conn.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"hello");
}

#[tokio::test(start_paused = true)]
async fn a_client_may_come_without_a_certificate() {
    let pki = Pki::new("ours");
    let (dialer, mut connections, _) = serve(&pki);
    let _client = connect(&dialer, pki.client(false, &[H2])).await.unwrap();
    assert!(connections.next().await.unwrap().unwrap().info().peer_chain.is_none());
}

#[tokio::test(start_paused = true)]
async fn slow_strange_and_unknown_clients_hold_nobody_up() {
    let pki = Pki::new("ours");
    let (dialer, mut connections, clock) = serve(&pki);
    let mut silent: Vec<_> = (0..50).map(|_| dialer.dial().unwrap()).collect();
    let mut strange = dialer.dial().unwrap();
    strange.write_all(b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n").await.unwrap();
    let stranger = Pki::new("theirs");
    let config = {
        let (chain, key) = stranger.certify("client.test");
        let mut config = ClientConfig::builder()
            .with_root_certificates(pki.roots.clone())
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![H2.to_vec()];
        Arc::new(config)
    };
    let mut unknown = connect(&dialer, config).await.unwrap();
    let refusal = unknown.read_u8().await.unwrap_err();
    assert!(refusal.to_string().contains("UnknownCA"), "{refusal}");

    let _client = connect(&dialer, pki.client(true, &[H2])).await.unwrap();
    connections.next().await.unwrap().unwrap();
    assert!(clock.monotonic() < LIMIT, "nobody waited for the silent ones");

    for client in &mut silent {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    }
    let ended = clock.monotonic();
    assert!((LIMIT..LIMIT + Duration::from_secs(1)).contains(&ended), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn any_number_of_silent_clients_holds_nobody_up() {
    let pki = Pki::new("ours");
    let (dialer, mut connections, clock) = serve(&pki);
    let mut silent: Vec<_> = (0..MAX_HANDSHAKES + 10).map(|_| dialer.dial().unwrap()).collect();
    let _client = connect(&dialer, pki.client(true, &[H2])).await.unwrap();
    connections.next().await.unwrap().unwrap();
    assert!(clock.monotonic() < LIMIT / 2, "{:?}", clock.monotonic());
    assert_eq!(silent[0].read(&mut [0; 8]).await.unwrap(), 0, "the oldest had to go");
    assert!(clock.monotonic() < LIMIT / 2);
}

#[tokio::test(start_paused = true)]
async fn only_h2_is_served() {
    let pki = Pki::new("ours");
    let (dialer, mut connections, _) = serve(&pki);
    assert!(connect(&dialer, pki.client(true, &[b"http/1.1"])).await.is_err());
    let mut without = connect(&dialer, pki.client(true, &[])).await.unwrap();
    let mut rest = Vec::new();
    // Cut off with or without a closing message.
    assert!(matches!(without.read_to_end(&mut rest).await, Ok(0) | Err(_)));
    let _client = connect(&dialer, pki.client(false, &[H2])).await.unwrap();
    assert!(connections.next().await.unwrap().unwrap().info().peer_chain.is_none(), "the first one served");
}

#[tokio::test(start_paused = true)]
async fn ends_with_its_listener_and_lets_go_when_nobody_serves() {
    let pki = Pki::new("ours");
    let (dialer, mut connections, _) = serve(&pki);
    let _client = connect(&dialer, pki.client(false, &[H2])).await.unwrap();
    drop(dialer);
    assert!(connections.next().await.is_some(), "what was dialled before is still served");
    assert!(connections.next().await.is_none());

    let (dialer, connections, _) = serve(&pki);
    let mut half = dialer.dial().unwrap();
    drop(connections);
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).await.unwrap();
    assert!(dialer.dial().is_err(), "the accept loop is gone");
}
