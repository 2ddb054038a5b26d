use std::time::Duration;

use finial_proto::spire::api::server::debug::v1 as debug_wire;
use finial_proto::spire::api::server::debug::v1::debug_client::DebugClient;
use finial_proto::spire::api::server::entry::v1 as entry_wire;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::logger::v1 as logger_wire;
use finial_proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::server::svid::v1 as svid_wire;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;

const AUTHORIZED: &str =
    "authorization denied for method /spire.api.server.entry.v1.Entry/GetAuthorizedEntries";

#[tokio::test(start_paused = true)]
async fn a_local_caller_is_no_agent_and_a_stranger_is_nobody() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let request = entry_wire::GetAuthorizedEntriesRequest::default;
    for channel in [server.local.clone(), server.anonymous()] {
        let refused = EntryClient::new(channel).get_authorized_entries(request()).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, AUTHORIZED));
        assert!(refused.details().is_empty());
    }
    let count = entry_wire::CountEntriesRequest::default;
    let text = "authorization denied for method /spire.api.server.entry.v1.Entry/CountEntries";
    for channel in [agent.channel.clone(), server.anonymous()] {
        assert_refused(EntryClient::new(channel).count_entries(count()).await, Code::PermissionDenied, text);
    }
    assert!(EntryClient::new(server.local.clone()).count_entries(count()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn administrators_are_named_by_entry_or_by_configuration() {
    let server = Server::configured("admin_ids = [\"spiffe://example.org/configured\"]").await;
    let count = entry_wire::CountEntriesRequest::default;
    let mut channels = Vec::new();
    for name in ["configured", "by-entry", "nobody"] {
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let csr = key.csr(&spire_subject(), &[&format!("spiffe://example.org/{name}")]).unwrap();
        let minted =
            server.svids().mint_x509svid(svid_wire::MintX509svidRequest { csr, ttl: 0 }).await.unwrap();
        let chain = minted.into_inner().svid.unwrap().cert_chain;
        channels.push(EntryClient::new(server.tls(Some(identity(&chain, &key)))));
    }
    channels[0].count_entries(count()).await.unwrap();
    for client in &mut channels[1..] {
        let refused = client.count_entries(count()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    server.create(vec![types::Entry { admin: true, ..entry("/spire/agent/x", "/by-entry", &["s:1"]) }]).await;
    channels[1].count_entries(count()).await.unwrap();
    assert_eq!(channels[2].count_entries(count()).await.unwrap_err().code(), Code::PermissionDenied);
    // What only the socket serves, the network does not know.
    let refused = DebugClient::new(server.anonymous()).get_info(debug_wire::GetInfoRequest {}).await;
    assert_refused(refused, Code::Unimplemented, "unknown service spire.api.server.debug.v1.Debug");
}

#[tokio::test(start_paused = true)]
async fn health_debug_and_log_level() {
    let server = Server::start().await;
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    let mut health = HealthClient::new(server.local.clone());
    assert_eq!(health.check(check("")).await.unwrap().into_inner().status, 1);
    assert_refused(
        health.check(check("x")).await,
        Code::InvalidArgument,
        "per-service health is not supported",
    );
    assert_refused(
        health.watch(check("")).await,
        Code::Unimplemented,
        "grpc.health.v1.Health/Watch is not built yet",
    );

    let mut debug = DebugClient::new(server.local.clone());
    let info = debug.get_info(debug_wire::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.agents_count, info.entries_count, info.federated_bundles_count), (0, 0, 1));
    let subjects: Vec<_> =
        info.svid_chain.iter().map(|c| (uri(c.id.as_ref().unwrap()), c.subject.clone())).collect();
    assert_eq!(subjects[0], ("spiffe://example.org/spire/server".to_owned(), "O=SPIRE,C=US".to_owned()));
    assert_eq!(subjects[1].0, "spiffe://example.org");
    assert!(
        subjects[1].1.starts_with("SERIALNUMBER=") && subjects[1].1.ends_with(",O=SPIFFE,C=US"),
        "{subjects:?}"
    );
    server.agent().await;
    assert_eq!(
        debug.get_info(debug_wire::GetInfoRequest {}).await.unwrap().into_inner(),
        info,
        "as fresh as five seconds"
    );
    server.clock.sleep(Duration::from_secs(6)).await;
    let later = debug.get_info(debug_wire::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(later.agents_count, 1);
    assert!(later.uptime >= info.uptime + 6);

    let mut logger = LoggerClient::new(server.local.clone());
    let set = |new_level| logger_wire::SetLogLevelRequest { new_level };
    let state = |current, launch| types::Logger { current_level: current, launch_level: launch };
    assert_eq!(logger.get_logger(logger_wire::GetLoggerRequest {}).await.unwrap().into_inner(), state(5, 5));
    assert_eq!(logger.set_log_level(set(6)).await.unwrap().into_inner(), state(6, 5));
    assert_eq!(
        logger.reset_log_level(logger_wire::ResetLogLevelRequest {}).await.unwrap().into_inner(),
        state(5, 5)
    );
    assert_refused(
        logger.set_log_level(set(0)).await,
        Code::InvalidArgument,
        "newLevel value cannot be LogLevel_UNSPECIFIED",
    );
    assert_refused(logger.set_log_level(set(99)).await, Code::InvalidArgument, "unsupported log level");
}

#[tokio::test(start_paused = true)]
async fn oversized_and_broken_messages_are_refused() {
    let server = Server::start().await;
    let huge = types::Entry { hint: "h".repeat(5 << 20), ..entry("/spire/agent/x", "/w", &["s:1"]) };
    let request = entry_wire::BatchCreateEntryRequest { entries: vec![huge], output_mask: None };
    let refused = server.entries().batch_create_entry(request).await;
    assert_refused_with(refused, Code::ResourceExhausted, "Error, decoded message length too large: found ");

    // A length that promises more than there is, a wrong wire type, a field number of zero, and text that is none.
    for bytes in [&b"\x0a\xff\x01x"[..], b"\x0d", b"\x00\x00", b"\x0a\x02\xc3\x28"] {
        let mut grpc = tonic::client::Grpc::new(server.local.clone());
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/spire.api.server.entry.v1.Entry/GetEntry");
        let status = grpc.unary(tonic::Request::new(bytes.to_vec()), path, Bytes).await.unwrap_err();
        assert!(matches!(status.code(), Code::Internal | Code::InvalidArgument), "{status:?}");
    }
    assert!(server.entries().count_entries(entry_wire::CountEntriesRequest::default()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_server_with_streams_open() {
    let mut server = Server::start().await;
    let agent = server.agent().await;
    let (held, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    held.send(finial_proto::finial::watch::v1::Held { version: 0 }).await.unwrap();
    let mut watch = finial_proto::finial::watch::v1::watch_client::WatchClient::new(agent.channel.clone());
    let mut changes = watch.authorized(requests).await.unwrap().into_inner();
    changes.message().await.unwrap().unwrap();
    let before = server.clock.monotonic();
    server.handles.stop.cancel();
    (&mut server.task).await.unwrap().unwrap();
    assert!(server.clock.monotonic() - before < Duration::from_secs(10), "nothing had to be cut off");
    assert!(changes.message().await.unwrap().is_none());
}

/// Sends bytes as they are.
#[derive(Clone, Copy, Default)]
pub(super) struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use bytes::Buf;
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
