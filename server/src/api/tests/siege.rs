//! Callers who mean harm: they hold on, flood, hurry past a verdict, or ask by odd names.

use finial_proto::finial::watch::v1 as watch_wire;
use finial_proto::finial::watch::v1::watch_client::WatchClient;
use finial_proto::spire::api::server::agent::v1 as wire;
use finial_proto::spire::api::server::entry::v1 as entry_wire;
use finial_proto::spire::api::server::svid::v1 as svid_wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use types::permission_denied_details::Reason;

use super::callers::Bytes;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

type Raw = TlsStream<tokio::io::DuplexStream>;
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A TLS connection on which nothing speaks HTTP/2 but the test.
async fn raw(server: &Server, identity: Option<Identity>) -> Raw {
    let name = ServerName::try_from("server").unwrap();
    TlsConnector::from(Server::tls_config(identity))
        .connect(name, server.network.dial().unwrap())
        .await
        .unwrap()
}

/// How long the server keeps a connection on which it is told nothing more; two hours stand for ever.
async fn kept(server: &Server, mut connection: Raw) -> Duration {
    let begin = server.clock.monotonic();
    heard(&mut connection, 2 * HOUR).await;
    server.clock.monotonic() - begin
}

/// What the server says within `time`.
async fn heard(connection: &mut Raw, time: Duration) -> Vec<u8> {
    let mut all = Vec::new();
    let read = async {
        while let Ok(length @ 1..) = connection.read_buf(&mut all).await {
            assert!(length < 1024 * 1024);
        }
    };
    // What came before the time was up counts too.
    let _ = tokio::time::timeout(time, read).await;
    all
}

/// Headers of a call, that are never followed by a message.
fn open_call(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87];
    for (name, value) in
        [(":path", path), (":authority", "server"), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, 4, 0, 0, 0, 1];
    frame.extend(block);
    frame
}

async fn call(channel: &Channel, path: &str, body: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::try_from(path).unwrap();
    Ok(grpc.unary(tonic::Request::new(body), path, Bytes).await?.into_inner())
}

/// Mints an SVID and makes a connection's identity of it.
async fn minted(server: &Server, path: &str, ttl: i32) -> Identity {
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    let csr = key.csr(&spire_subject(), &[&format!("spiffe://example.org{path}")]).unwrap();
    let request = svid_wire::MintX509svidRequest { csr, ttl };
    let answer = server.svids().mint_x509svid(request).await.unwrap().into_inner();
    identity(&answer.svid.unwrap().cert_chain, &key)
}

#[tokio::test(start_paused = true)]
async fn strangers_cannot_hold_connections() {
    let server = Server::start().await;
    let silent = raw(&server, None).await;
    assert!(kept(&server, silent).await < Duration::from_secs(60), "a client that never speaks HTTP/2");

    let mut idle = raw(&server, None).await;
    idle.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    assert!(kept(&server, idle).await < Duration::from_secs(60), "a client that never calls");

    for path in
        ["/spire.api.server.agent.v1.Agent/AttestAgent", "/spire.api.server.bundle.v1.Bundle/GetBundle"]
    {
        let mut half = raw(&server, None).await;
        half.write_all(&[PREFACE, SETTINGS, &open_call(path)].concat()).await.unwrap();
        let kept = kept(&server, half).await;
        assert!(kept < HOUR / 6, "a call without a message, no acknowledgement of anything: {kept:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_does_not_outlive_its_svid() {
    let server = Server::start().await;
    let mut half = raw(&server, Some(minted(&server, "/admin", 1800).await)).await;
    half.write_all(&[PREFACE, SETTINGS, &open_call("/spire.api.server.bundle.v1.Bundle/GetBundle")].concat())
        .await
        .unwrap();
    let kept = kept(&server, half).await;
    assert!((HOUR / 2..HOUR / 2 + HOUR / 6).contains(&kept), "{kept:?}");
}

/// The server asks with a PING whether its GOAWAY was seen; who does not answer must gain nothing by that.
#[tokio::test(start_paused = true)]
async fn an_old_connection_takes_no_calls() {
    let server = Server::configured("admin_ids = [\"spiffe://example.org/admin\"]").await;
    let mut connection = raw(&server, Some(minted(&server, "/admin", 3600).await)).await;
    let create = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
    let whole_call = |stream: u8| {
        let entries = vec![entry("/spire/agent/x", &format!("/by-stream-{stream}"), &["s:1"])];
        let message = entry_wire::BatchCreateEntryRequest { entries, output_mask: None }.encode_to_vec();
        let length = u8::try_from(message.len()).unwrap();
        let mut bytes = open_call(create);
        bytes[8] = stream;
        // A DATA frame with END_STREAM, and in it gRPC's own head.
        bytes.extend_from_slice(&[0, 0, length + 5, 0, 1, 0, 0, 0, stream, 0, 0, 0, 0, length]);
        bytes.extend(message);
        bytes
    };
    // A call that stays open keeps the connection from closing.
    let mut opening = [PREFACE, SETTINGS, &whole_call(1), &open_call(create)].concat();
    let held = opening.len() - open_call(create).len() + 8;
    opening[held] = 3;
    connection.write_all(&opening).await.unwrap();
    heard(&mut connection, HOUR / 6).await;
    // The other side may have hung up, which is as good.
    let _ = connection.write_all(&whole_call(5)).await;
    heard(&mut connection, Duration::from_secs(5)).await;
    let listed = server.entries().list_entries(entry_wire::ListEntriesRequest::default()).await.unwrap();
    let names: Vec<_> = listed.into_inner().entries.into_iter().map(|e| e.spiffe_id.unwrap().path).collect();
    assert_eq!(names, ["/by-stream-1"]);
}

#[tokio::test(start_paused = true)]
async fn strangers_cannot_make_the_server_hold_much() {
    let server = Server::start().await;
    let channel = server.anonymous();
    // Field 15, which nobody knows, 200 kB of it: a request that is skipped but has to be held as a whole.
    let mut body = vec![0x7a, 0xc0, 0x9a, 0x0c];
    body.resize(body.len() + 200_000, 0);
    let refused =
        call(&channel, "/spire.api.server.bundle.v1.Bundle/GetBundle", body.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(call(&channel, "/spire.api.server.bundle.v1.Bundle/GetBundle", Vec::new()).await.is_ok());
    // Whoever is known may say as much as ever.
    let admin = server.tls(Some(minted(&server, "/somebody", 0).await));
    assert!(call(&admin, "/spire.api.server.bundle.v1.Bundle/GetBundle", body).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_left_the_queue_of_attestations_is_not_waited_for() {
    let server = Server::start().await.coming_from("192.0.2.7:4000");
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let mut one = raw(&server, None).await;
        let call = open_call("/spire.api.server.agent.v1.Agent/AttestAgent");
        one.write_all(&[PREFACE, SETTINGS, &call].concat()).await.unwrap();
        // The head of the answer comes before the wait.
        heard(&mut one, Duration::from_millis(1)).await;
        crowd.push(one);
    }
    drop(crowd);
    let begin = server.clock.monotonic();
    let token = server.token().await;
    server.attest(&token, csr_for(&[])).await.unwrap();
    let waited = server.clock.monotonic() - begin;
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_banned_while_waiting_gets_nothing_signed() {
    let server = Server::start().await.coming_from("192.0.2.8:4000");
    let agent = server.agent().await;
    let path = agent.id.strip_prefix("spiffe://example.org").unwrap().to_owned();
    let entry = server.create(vec![entry(&path, "/w", &["s:1"])]).await.remove(0);
    let csr = csr_for(&[]);
    let one = svid_wire::NewX509svidParams { entry_id: entry.id, csr };
    let batch = || {
        let mut client = SvidClient::new(agent.channel.clone());
        let params = vec![one.clone(); 400];
        async move { client.batch_new_x509svid(svid_wire::BatchNewX509svidRequest { params }).await }
    };
    batch().await.unwrap();
    let waiting = tokio::spawn(batch());
    server.clock.sleep(Duration::from_millis(100)).await;
    let renewal = {
        let mut client = AgentClient::new(agent.channel.clone());
        let params = Some(wire::AgentX509svidParams { csr: csr_for(&[]) });
        tokio::spawn(async move { client.renew_agent(wire::RenewAgentRequest { params }).await })
    };
    server.clock.sleep(Duration::from_millis(100)).await;
    let ban = wire::BanAgentRequest { id: wire_id(&agent.id) };
    server.agents().ban_agent(ban).await.unwrap();
    assert!(!waiting.is_finished());
    for refused in [waiting.await.unwrap().map(drop), renewal.await.unwrap().map(drop)] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, Some(Reason::AgentBanned)));
    }
}

/// Who may call is decided by the path that the router goes by, so no other spelling leads past the decision.
#[tokio::test(start_paused = true)]
async fn methods_have_one_name() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let mut names: Vec<String> = [
        "/spire.api.server.entry.v1.Entry/CountEntries/",
        "//spire.api.server.entry.v1.Entry/CountEntries",
        "/spire.api.server.entry.v1.Entry//CountEntries",
        "/spire.api.server.entry.v1.Entry/countEntries",
        "/spire.api.server.entry.v1.entry/CountEntries",
        "/spire.api.server.entry.v1.Entry/CountEntrie%73",
        "/spire.api.server.entry.v1.Entry%2FCountEntries",
        "/spire.api.server.entry.v1.Entry/./CountEntries",
        "/spire.api.server.bundle.v1.Bundle/GetBundle/../../spire.api.server.entry.v1.Entry/CountEntries",
        "/spire.api.server.entry.v1.Entry/CountEntries;x",
        "/spire.api.server.entry.v1.Entry/CountEntries%00",
        "/spire.api.server.entry.v1.Entry",
        "/",
    ]
    .map(str::to_owned)
    .to_vec();
    let only_local = permit::table().iter().filter(|row| row.who == permit::Who::Local);
    names.extend(only_local.map(|row| row.method.to_owned()));
    let admin = {
        let entry = types::Entry { admin: true, ..entry("/spire/agent/x", "/admin", &["s:1"]) };
        server.create(vec![entry]).await;
        server.tls(Some(minted(&server, "/admin", 0).await))
    };
    for channel in [server.anonymous(), agent.channel.clone(), admin.clone()] {
        for name in &names {
            let refused = call(&channel, name, Vec::new()).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unimplemented, "{name}: {refused}");
        }
    }
    let asked =
        "/spire.api.server.entry.v1.Entry/CountEntries?x=/spire.api.server.bundle.v1.Bundle/GetBundle";
    for channel in [server.anonymous(), agent.channel] {
        assert_eq!(call(&channel, asked, Vec::new()).await.unwrap_err().code(), Code::PermissionDenied);
    }
    assert!(call(&admin, asked, Vec::new()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn rights_end_with_the_entry_that_gave_them() {
    let server = Server::start().await;
    let ends = server.clock.unix() + 60;
    let privileged = types::Entry {
        admin: true,
        downstream: true,
        expires_at: ends,
        ..entry("/spire/agent/x", "/admin", &["s:1"])
    };
    server.create(vec![privileged]).await;
    let channel = server.tls(Some(minted(&server, "/admin", 0).await));
    let count = || {
        let mut client = EntryClient::new(channel.clone());
        async move { client.count_entries(entry_wire::CountEntriesRequest::default()).await }
    };
    let downstream = || {
        let mut client = SvidClient::new(channel.clone());
        let request = svid_wire::NewDownstreamX509caRequest {
            csr: csr_for(&["spiffe://example.org"]),
            preferred_ttl: 0,
        };
        async move { client.new_downstream_x509ca(request).await }
    };
    count().await.unwrap();
    downstream().await.unwrap();
    server.clock.sleep(Duration::from_secs(61)).await;
    assert_eq!(count().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(downstream().await.unwrap_err().code(), Code::PermissionDenied);
}

/// A workload whose name looks like an agent's, or that has an agent's place in a tree, is no agent.
#[tokio::test(start_paused = true)]
async fn only_an_attested_node_is_an_agent() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let path = agent.id.strip_prefix("spiffe://example.org").unwrap().to_owned();
    for reserved in [path.as_str(), "/spire", "/spire/agent", "/spire/server", "/spire/agent/join_token/x"] {
        let request = entry_wire::BatchCreateEntryRequest {
            entries: vec![entry(&path, reserved, &["s:1"])],
            output_mask: None,
        };
        let results = server.entries().batch_create_entry(request).await.unwrap().into_inner().results;
        assert_eq!(results[0].status.as_ref().unwrap().code, Code::InvalidArgument as i32, "{reserved}");
        let csr = csr_for(&[&format!("spiffe://example.org{reserved}")]);
        let minted = server.svids().mint_x509svid(svid_wire::MintX509svidRequest { csr, ttl: 0 }).await;
        assert_eq!(minted.unwrap_err().code(), Code::InvalidArgument, "{reserved}");
    }
    // Entries below a workload are served by the agent above it, never by the workload itself.
    server.create(vec![entry(&path, "/w", &["s:1"]), entry("/w", "/below", &["s:2"])]).await;
    let channel = server.tls(Some(minted(&server, "/w", 0).await));
    let request = entry_wire::GetAuthorizedEntriesRequest::default();
    let refused = EntryClient::new(channel.clone()).get_authorized_entries(request).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, Some(Reason::AgentNotAttested)));
    let held = futures::stream::iter([watch_wire::Held { version: 0 }]);
    assert_eq!(WatchClient::new(channel).authorized(held).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn of_many_who_create_the_same_entry_one_does() {
    let server = Server::start().await;
    let create = |_| {
        let mut client = server.entries();
        let entries = vec![entry("/spire/agent/x", "/w", &["s:1", "s:2"])];
        async move {
            client
                .batch_create_entry(entry_wire::BatchCreateEntryRequest { entries, output_mask: None })
                .await
        }
    };
    let mut ids = Vec::new();
    let mut codes = Vec::new();
    for answer in futures::future::join_all((0..32).map(create)).await {
        let result = answer.unwrap().into_inner().results.remove(0);
        codes.push(result.status.unwrap().code);
        ids.push(result.entry.unwrap().id);
    }
    codes.sort_unstable();
    ids.dedup();
    assert_eq!((codes[0], &codes[1..], ids.len()), (0, &[Code::AlreadyExists as i32; 31][..], 1));
}

/// What a caller says is a value and never part of a statement, a pattern, a path or a C string.
#[tokio::test(start_paused = true)]
async fn odd_texts_are_kept_as_they_are_or_refused() {
    let server = Server::start().await;
    let odd = [
        "'; DROP TABLE registered_entries; --",
        "\" OR 1=1",
        "%_\\%",
        "a\0b",
        "a\nlevel=info msg=\"forged\"",
        "\u{202e}\u{feff}e\u{301}\u{10ffff}",
        "${HOME}{{.}}",
    ];
    for (number, text) in odd.into_iter().enumerate() {
        let sent = types::Entry {
            hint: text.to_owned(),
            selectors: vec![types::Selector { r#type: "s".into(), value: text.to_owned() }],
            ..entry("/spire/agent/x", &format!("/w{number}"), &[])
        };
        let created = server.create(vec![sent]).await.remove(0);
        let request = entry_wire::GetEntryRequest { id: created.id.clone(), output_mask: None };
        let read = server.entries().get_entry(request).await.unwrap().into_inner();
        assert_eq!((read.hint.as_str(), read.selectors[0].value.as_str()), (text, text));
        let filters = [
            entry_wire::list_entries_request::Filter { by_hint: Some(text.into()), ..Default::default() },
            entry_wire::list_entries_request::Filter {
                by_selectors: Some(types::SelectorMatch { selectors: read.selectors, r#match: 0 }),
                ..Default::default()
            },
        ];
        for filter in filters {
            let request = entry_wire::ListEntriesRequest { filter: Some(filter), ..Default::default() };
            let listed = server.entries().list_entries(request).await.unwrap().into_inner().entries;
            assert_eq!(listed.iter().map(|entry| &entry.id).collect::<Vec<_>>(), [&created.id], "{text:?}");
        }
        for refused in [
            types::Entry { id: text.into(), ..entry("/spire/agent/x", "/odd", &["s:1"]) },
            entry("/spire/agent/x", &format!("/{text}"), &["s:1"]),
            entry(&format!("/{text}"), "/odd", &["s:1"]),
            types::Entry { dns_names: vec![text.into()], ..entry("/spire/agent/x", "/odd", &["s:1"]) },
            types::Entry { federates_with: vec![text.into()], ..entry("/spire/agent/x", "/odd", &["s:1"]) },
        ] {
            let request =
                entry_wire::BatchCreateEntryRequest { entries: vec![refused.clone()], output_mask: None };
            let results = server.entries().batch_create_entry(request).await.unwrap().into_inner().results;
            let status = results[0].status.clone().unwrap();
            assert_eq!(status.code, Code::InvalidArgument as i32, "{refused:?}: {}", status.message);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_at_their_ends_break_nothing() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let path = agent.id.strip_prefix("spiffe://example.org").unwrap().to_owned();
    let mut created = Vec::new();
    for (number, (ttl, expires_at)) in
        [(i32::MAX, i64::MAX), (0, i64::MIN), (1, -1), (i32::MAX, 253_402_300_800)].into_iter().enumerate()
    {
        let sent = types::Entry {
            x509_svid_ttl: ttl,
            jwt_svid_ttl: ttl,
            expires_at,
            revision_number: i64::MAX,
            created_at: i64::MIN,
            ..entry(&path, &format!("/w{number}"), &["s:1"])
        };
        created.push(server.create(vec![sent]).await.remove(0));
        let last = created.last().unwrap();
        assert_eq!((last.expires_at, last.x509_svid_ttl, last.revision_number), (expires_at, ttl, 0));
    }
    for (ttl, field) in [(i32::MIN, "X509SvidTtl"), (-1, "X509SvidTtl")] {
        let sent = types::Entry { x509_svid_ttl: ttl, ..entry(&path, "/n", &["s:1"]) };
        let request = entry_wire::BatchCreateEntryRequest { entries: vec![sent], output_mask: None };
        let results = server.entries().batch_create_entry(request).await.unwrap().into_inner().results;
        assert!(results[0].status.as_ref().unwrap().message.contains(field));
    }
    let params: Vec<_> = created
        .iter()
        .map(|entry| svid_wire::NewX509svidParams { entry_id: entry.id.clone(), csr: csr_for(&[]) })
        .collect();
    let request = svid_wire::BatchNewX509svidRequest { params };
    let results =
        SvidClient::new(agent.channel).batch_new_x509svid(request).await.unwrap().into_inner().results;
    let codes: Vec<_> = results.iter().map(|result| result.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, 5, 5, 0], "what expired in the past is not there");
    let day = server.clock.unix() + 24 * 3600;
    assert!(results.iter().flat_map(|result| &result.svid).all(|svid| svid.expires_at <= day));

    for ttl in [i32::MIN, -1, i32::MAX] {
        let csr = csr_for(&["spiffe://example.org/m"]);
        let minted = server.svids().mint_x509svid(svid_wire::MintX509svidRequest { csr, ttl }).await.unwrap();
        assert!(minted.into_inner().svid.unwrap().expires_at <= day);
    }
    for page_size in [i32::MIN, -1, 1, i32::MAX] {
        for page_token in ["", "-1", "9223372036854775807", "9223372036854775808", "x", "1; --"] {
            let request = entry_wire::ListEntriesRequest {
                page_size,
                page_token: page_token.into(),
                ..Default::default()
            };
            if let Err(refused) = server.entries().list_entries(request).await {
                let told = refused.message().contains("could not parse token");
                assert!(told, "{page_size} {page_token:?}: {refused}");
            }
        }
    }
    let token = wire::CreateJoinTokenRequest { ttl: i32::MAX, ..Default::default() };
    let token = server.agents().create_join_token(token).await.unwrap().into_inner();
    assert_eq!(token.expires_at, server.clock.unix() + i64::from(i32::MAX));
}

/// Keeps everything that is logged, at all levels.
#[derive(Clone, Default)]
struct Everything(Arc<std::sync::Mutex<String>>);

impl tracing::field::Visit for Everything {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push_str(&format!("{field}={value:?}\n"));
    }
}

impl tracing::Subscriber for Everything {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut self.clone());
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Whoever reads the log must not be able to join: a token is in it at most as part of the ID of the agent that used it.
#[tokio::test(start_paused = true)]
async fn a_token_that_can_be_used_is_not_in_the_log() {
    let log = Everything::default();
    let _logging = tracing::subscriber::set_default(log.clone());
    let server = Server::configured("audit_log_enabled = true").await;
    let create = |token: &str, path| wire::CreateJoinTokenRequest {
        ttl: 600,
        token: token.into(),
        agent_id: id(path),
    };
    let made = server.agents().create_join_token(create("", "/node")).await.unwrap().into_inner().value;
    server.agents().create_join_token(create("chosen-by-hand", "/node")).await.unwrap();
    server.agents().create_join_token(create("chosen-by-hand", "/node")).await.unwrap_err();
    server.agents().create_join_token(create("chosen-by-hand", "/spire/x")).await.unwrap_err();
    let incomplete = wire::attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: "join_token".into(), payload: made.clone().into() }),
        params: None,
    };
    server.attest_with(Some(incomplete)).await.unwrap_err();
    let told = log.0.lock().unwrap().clone();
    assert!(told.contains("CreateJoinToken") && told.contains("malformed param"), "nothing was logged");
    for token in [made.as_str(), "chosen-by-hand"] {
        let lines: Vec<_> = told.lines().filter(|line| line.contains(token)).collect();
        assert_eq!(lines, Vec::<&str>::new());
    }
    server.attest(&made, csr_for(&[])).await.unwrap();
}
