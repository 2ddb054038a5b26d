//! The Workload API's socket, treated badly: TLS where none is spoken, silence, clients that never read, and thousands of
//! connections that come and go.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_proto::workload::X509svidRequest;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_tests::real::Programs;
use finial_tests::world::Workload;
use hyper_util::rt::TokioIo;
use rustls::ClientConnection;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::Endpoint;

const PATIENCE: Duration = Duration::from_secs(60);

/// U53: what is not HTTP/2 in the clear is hung up on, and nobody else notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http2_is_hung_up_on() {
    let programs = Programs::started().await;
    programs.register("web", |_| {}).await;
    let mut updates = programs.workload().open().await;
    updates.next(&Clock::wall()).await;
    let path = programs.path("public/agent.sock");
    for opening in [
        client_hello(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        vec![0; 4096],
    ] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&opening).await.unwrap();
        let mut said = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
        // The end may come as a reset.
        let _ = ended.expect("the connection is closed");
        assert!(!said.starts_with(&[0x16]), "TLS was answered with TLS");
    }
    programs.register("second", |_| {}).await;
    updates.until(&Clock::wall(), |context| context.names() == ["second", "web"]).await;
}

/// The first bytes of a TLS client.
fn client_hello() -> Vec<u8> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    let mut client = ClientConnection::new(config.into(), "localhost".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    assert_eq!(bytes[0], 0x16, "a handshake record");
    bytes
}

/// U55: after thousands of connections, silent ones and ones that are never read from among them, the agent has no
/// more descriptors open than before, and hardly more memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_come_and_go_leave_nothing() {
    let programs = Programs::started().await;
    let web = programs.register("web", |_| {}).await;
    programs.workload().open().await;
    let path = programs.path("public/agent.sock");
    cycles(&path, 8, 25).await;
    let process = Process(programs.agent_pid());
    let idle = process.settled(usize::MAX).await;
    let memory = process.resident_kib();

    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    let mut unread = Vec::new();
    for _ in 0..50 {
        unread.push(never_reads(&path).await);
    }
    cycles(&path, 8, 250).await;
    assert!(process.descriptors() > idle, "the silent connections are there");
    // Others are served meanwhile.
    let mut updates = programs.workload().open().await;
    assert_eq!(updates.next(&Clock::wall()).await.svid("web").id().path(), "/web");

    drop((silent, unread, updates));
    let after = process.settled(idle).await;
    assert!(after <= idle, "{idle} descriptors before, {after} after");
    let grown = process.resident_kib().saturating_sub(memory);
    assert!(grown < 32 * 1024, "the agent has grown by {grown} KiB over {memory} KiB");
    assert_eq!(programs.workload().fetch(&Clock::wall()).await.names().len(), 1, "{}", web.id);
}

/// `many` clients that each connect, take one message, and hang up, `times` over. Every other one lets the agent see
/// the stream end first.
async fn cycles(path: &Path, many: usize, times: usize) {
    let clients = (0..many).map(|client| {
        let path = path.to_owned();
        tokio::spawn(async move {
            for _ in 0..times {
                let channel = dial::connect(Dialer::Unix(path.clone()), None, "localhost").await.unwrap();
                let mut updates = Workload::over(channel.clone()).try_open().await.unwrap();
                let context = updates.next(&Clock::wall()).await;
                assert_eq!(context.names(), ["web"]);
                if client % 2 == 0 {
                    drop(updates);
                } else {
                    drop(channel);
                }
            }
        })
    });
    for client in futures::future::join_all(clients).await {
        client.unwrap();
    }
}

/// An open stream whose client takes nothing: its windows are too small for one message.
async fn never_reads(path: &Path) -> impl Sized + use<> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let tiny = Endpoint::from_static("http://localhost").initial_stream_window_size(16);
    let channel = tiny.connect_with_connector(connector).await.unwrap();
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let stream = client.fetch_x509svid(request).await.unwrap();
    (client, stream)
}

/// A process as /proc shows it.
struct Process(u32);

impl Process {
    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap().count()
    }

    /// How many descriptors there are once no more than `wanted` are left, or once their number has stood still.
    async fn settled(&self, wanted: usize) -> usize {
        let clock = Clock::wall();
        let end = clock.monotonic() + Duration::from_secs(30);
        let (mut last, mut same) = (self.descriptors(), 0);
        while clock.monotonic() < end && same < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = self.descriptors();
            same = if now == last && now <= wanted { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    fn resident_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}
