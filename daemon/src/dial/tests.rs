use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use futures::StreamExt as _;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::clock::Clock;
use crate::listen::{self, ConnInfo, Connections, SocketMode};

/// Serves grpc.health.v1 and collects what is known of each connection.
fn serve(connections: Connections) -> Arc<Mutex<Vec<ConnInfo>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (_reporter, health) = tonic_health::server::health_reporter();
    let connections = connections.inspect({
        let seen = seen.clone();
        move |conn| seen.lock().unwrap().push(conn.as_ref().unwrap().info().clone())
    });
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming(connections)
            .await
            .unwrap();
    });
    seen
}

async fn check(channel: &Channel) -> Result<(), tonic::Status> {
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.map(drop)
}

/// TLS settings of a server named `server.test` and of a client that trusts it.
fn tls(issuer: &str) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["server.test".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, issuer);
    let certificate = params.self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let chain = vec![certificate.der().clone()];
    let mut server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    server.alpn_protocols = vec![H2.to_vec()];
    let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![H2.to_vec()];
    (Arc::new(server), Arc::new(client))
}

#[tokio::test]
async fn reaches_tcp_unix_and_memory() {
    let listener = listen::bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let by_tcp = serve(listen::plain(listen::tcp(listener)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let by_unix =
        serve(listen::plain(listen::unix(&path, SocketMode { socket: 0o700, dir: 0o700 }).unwrap()));
    let (dialer, incoming) = listen::memory();
    let by_memory = serve(listen::plain(incoming));
    for (dialer, seen) in [
        (Dialer::tcp("127.0.0.1", port), by_tcp.clone()),
        (Dialer::tcp("localhost", port), by_tcp),
        (Dialer::Unix(path), by_unix),
        (Dialer::Memory(dialer), by_memory),
    ] {
        let before = seen.lock().unwrap().len();
        check(&channel(dialer.clone(), None, "")).await.unwrap();
        check(&connect(dialer, None, "").await.unwrap()).await.unwrap();
        assert_eq!(seen.lock().unwrap().len(), before + 2);
    }
}

#[tokio::test(start_paused = true)]
async fn each_connection_asks_for_its_tls_settings() {
    let (server, client) = tls("ours");
    let (dialer, incoming) = listen::memory();
    let clock = Clock::paused(UNIX_EPOCH);
    let seen = serve(listen::tls::accept(incoming, server, Duration::from_secs(5), clock));
    let asked = Arc::new(AtomicUsize::new(0));
    let source: TlsSource = Arc::new({
        let asked = asked.clone();
        move || {
            asked.fetch_add(1, Ordering::Relaxed);
            client.clone()
        }
    });
    let channel = channel(Dialer::Memory(dialer), Some(source), "server.test");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nothing is dialled before the first call");
    check(&channel).await.unwrap();
    check(&channel).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    seen.lock().unwrap()[0].hang_up();
    // The call that meets the end of the connection may fail; the channel then dials again.
    while asked.load(Ordering::Relaxed) == 1 {
        let _ = check(&channel).await;
        tokio::task::yield_now().await;
    }
    check(&channel).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn failures_keep_the_text_of_their_cause() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (dialer, incoming) = listen::memory();
    drop(incoming);
    for (dialer, texts) in [
        (
            Dialer::tcp("127.0.0.1", free),
            [format!("cannot connect to 127.0.0.1:{free}"), "Connection refused".into()],
        ),
        (Dialer::Unix("/nowhere/api.sock".into()), ["/nowhere/api.sock".into(), "No such file".into()]),
        (Dialer::Memory(dialer), ["memory".into(), "nothing listens".into()]),
        (Dialer::tcp("host.invalid", 1), ["cannot resolve host.invalid".into(), String::new()]),
    ] {
        let status = check(&channel(dialer.clone(), None, "")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        let eager = connect(dialer.clone(), None, "").await.unwrap_err().to_string();
        let bare = dialer.dial().await.map(|_| ()).unwrap_err().to_string();
        for text in &texts {
            assert!(status.message().contains(text), "{status}");
            assert!(eager.contains(text), "{eager}");
            assert!(bare.contains(text), "{bare}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tls_failures_say_what_is_wrong() {
    let clock = Clock::paused(UNIX_EPOCH);
    let (server, client) = tls("ours");
    let (_, stranger) = tls("theirs");
    let (dialer, incoming) = listen::memory();
    serve(listen::tls::accept(incoming, server.clone(), Duration::from_secs(5), clock.clone()));
    let call = async |config: &Arc<ClientConfig>, name: &str| {
        let dialer = Dialer::Memory(dialer.clone());
        check(&channel(dialer, Some(fixed(config.clone())), name)).await
    };
    call(&client, "server.test").await.unwrap();
    for (config, name, text) in [
        (&stranger, "server.test", "UnknownIssuer"),
        (&client, "other.test", "not valid for name"),
        (&client, "not a name", "neither a DNS name nor an IP address"),
    ] {
        let status = call(config, name).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains(text), "{status}");
    }

    // A server without ALPN, and one that never answers.
    let (dialer, mut incoming) = listen::memory();
    let mut without = ServerConfig::clone(&server);
    without.alpn_protocols.clear();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(without));
    let served = tokio::spawn(async move {
        let first = incoming.next().await.unwrap().unwrap();
        // The client leaves as soon as it knows.
        let _first = acceptor.accept(first.io).await;
        let _second = incoming.next().await.unwrap().unwrap();
        std::future::pending::<()>().await;
    });
    for text in ["did not negotiate the protocol h2", "not finished within 10s"] {
        let dialer = Dialer::Memory(dialer.clone());
        let status = check(&channel(dialer, Some(fixed(client.clone())), "server.test")).await.unwrap_err();
        assert!(status.message().contains(text), "{status}");
    }
    assert!(clock.monotonic() >= HANDSHAKE_TIMEOUT);
    served.abort();
}

#[tokio::test]
async fn dials_take_the_addresses_in_turn_and_pass_over_dead_ones() {
    let addresses: Vec<SocketAddr> = ["10.0.0.2:1", "[::1]:1", "10.0.0.1:1", "10.0.0.2:1"]
        .map(|address| address.parse().unwrap())
        .to_vec();
    let firsts: Vec<String> =
        (0..5).map(|nth| in_turn(addresses.clone(), nth).first().unwrap().to_string()).collect();
    assert_eq!(firsts, ["10.0.0.1:1", "10.0.0.2:1", "[::1]:1", "10.0.0.1:1", "10.0.0.2:1"]);
    assert_eq!(in_turn(addresses, 1).len(), 3, "each is still tried");
    assert!(in_turn(Vec::new(), 7).is_empty());

    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = dial_first(&[dead, live.local_addr().unwrap()], "test").await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), live.local_addr().unwrap());
    assert!(stream.nodelay().unwrap());
    assert!(
        matches!(dial_first(&[dead], "test").await, Err(DialError::Connect { to, .. }) if to == dead.to_string())
    );
    assert!(matches!(dial_first(&[], "test").await, Err(DialError::NoAddress { host }) if host == "test"));
}

#[tokio::test(start_paused = true)]
async fn requests_name_the_host_they_go_to() {
    for (dialer, tls, expected) in [
        (Dialer::tcp("spire-server", 8081), true, "https://spire-server:8081/"),
        (Dialer::tcp("::1", 8081), false, "http://[::1]:8081/"),
        (Dialer::tcp("not a host", 1), false, "http://localhost/"),
        (Dialer::Unix("/tmp/x.sock".into()), false, "http://localhost/"),
    ] {
        let tls = tls.then(|| fixed(self::tls("ours").1));
        assert_eq!(Connector::new(dialer, tls, "x").origin().to_string(), expected);
    }
}
