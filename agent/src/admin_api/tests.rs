//! Real calls over a wire in memory, whose caller is this process.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::keys::{KeyManager, KeyType, memory::MemoryKeys};
use finial_daemon::listen::{self, MemoryDialer, peer::LocalPeer};
use finial_daemon::metrics::Metrics;
use finial_daemon::telemetry::LogLevel;
use finial_identity::entry::Entry;
use finial_identity::selector::Selector;
use finial_identity::x509_svid::X509Svid;
use finial_identity::{TrustDomain, peer};
use finial_proto::spire::agent::debug::v1::{GetInfoRequest, debug_client::DebugClient};
use finial_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use finial_proto::spire::api::agent::delegatedidentity::v1::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use finial_proto::spire::api::agent::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use finial_proto::spire::api::types;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::cache::fixture::{Authority, TRUST_DOMAIN, clock, entry};
use crate::cache::{CacheSettings, EntryUpdate, JwtSvid};
use crate::own_svid::Trust;
use crate::plugins::workload_attestor::{AttestorFault, WorkloadAttestor};

/// Tells this process from others.
struct Who;

#[async_trait]
impl WorkloadAttestor for Who {
    async fn attest(&self, peer: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestorFault> {
        let who = if peer.pid() == std::process::id() { "test:me" } else { "test:other" };
        Ok(vec![Selector::parse(who).unwrap()])
    }
}

struct Running {
    cache: Cache,
    authority: Authority,
    identity: Identity,
    last_sync: LastSync,
    dialer: MemoryDialer,
    _served: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Running {
    /// An agent in which `/delegate` may speak for others, and this process is nobody yet.
    fn start() -> Running {
        let (dialer, incoming) = listen::memory();
        let cache = Cache::new(CacheSettings::default(), clock(), Metrics::none(clock()));
        let authority = Authority::new(TRUST_DOMAIN, "first");
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
        let identity = Identity::new(trust_domain, clock());
        identity.set_trust(Trust::Bundle(authority.bundle()));
        let last_sync = LastSync::new(clock());
        let api = AdminApi {
            metrics: Metrics::none(clock()),
            cache: cache.clone(),
            attestation: WorkloadAttestation::new(
                vec![("test".to_owned(), Arc::new(Who) as _)],
                Metrics::none(clock()),
            ),
            authorized_delegates: [SpiffeId::parse("spiffe://example.org/delegate").unwrap()].into(),
            identity: identity.clone(),
            last_sync: last_sync.clone(),
            log: LogHandle::detached(LogLevel::Info),
            clock: clock(),
        };
        let served = tokio::spawn(serve(incoming, api, CancellationToken::new()));
        cache.set_bundles(authority.bundle(), BTreeMap::new());
        cache.apply(EntryUpdate { full: true, ..EntryUpdate::default() });
        Running { cache, authority, identity, last_sync, dialer, _served: served }
    }

    fn channel(&self) -> Channel {
        let me = Arc::new(LocalPeer::of_process(std::process::id()).unwrap());
        dial::channel(Dialer::Memory(self.dialer.clone().acting_as(me)), None, "localhost")
    }

    fn client(&self) -> DelegatedIdentityClient<Channel> {
        DelegatedIdentityClient::new(self.channel())
    }

    fn add(&self, entry: Entry) {
        self.cache.apply(EntryUpdate { upserted: vec![Arc::new(entry.clone())], ..EntryUpdate::default() });
        let (svid, key) = self.authority.sign(&entry, 3600);
        assert!(self.cache.install(&entry.id, 0, svid, key));
    }

    /// An entry `/<id>` for a selector.
    fn register(&self, id: &str, selector: &str) {
        self.add(entry(id, &format!("/{id}"), &[selector.to_owned()]));
    }

    fn remove(&self, id: &str) {
        self.cache.apply(EntryUpdate { deleted: vec![id.to_owned()], ..EntryUpdate::default() });
    }
}

fn selectors(texts: &[&str]) -> Vec<types::Selector> {
    texts
        .iter()
        .map(|text| {
            let (kind, value) = text.split_once(':').unwrap();
            types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
        })
        .collect()
}

fn by_selector(text: &str) -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest { selectors: selectors(&[text]), pid: 0 }
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    stream.message().await.unwrap().expect("the stream must go on")
}

async fn end<T: std::fmt::Debug>(result: Result<tonic::Response<Streaming<T>>, Status>) -> Status {
    match result {
        Ok(stream) => stream.into_inner().message().await.expect_err("must end with an error"),
        Err(status) => status,
    }
}

fn paths(message: &SubscribeToX509sviDsResponse) -> Vec<&str> {
    message
        .x509_svids
        .iter()
        .map(|one| one.x509_svid.as_ref().unwrap().id.as_ref().unwrap().path.as_str())
        .collect()
}

/// A process that lives until it is dropped.
struct Sleeper(Mutex<Child>);

impl Sleeper {
    fn start() -> Sleeper {
        Sleeper(Mutex::new(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()))
    }

    fn pid(&self) -> i32 {
        self.0.lock().unwrap().id().try_into().unwrap()
    }

    fn kill(&self) {
        let mut child = self.0.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test]
async fn only_delegates_are_heard() {
    let running = Running::start();
    let mut client = running.client();
    let status = end(client.subscribe_to_x509svi_ds(by_selector("test:x")).await).await;
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));

    running.register("someone", "test:me");
    for status in [
        end(client.subscribe_to_x509svi_ds(by_selector("test:x")).await).await,
        end(client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await).await,
    ] {
        let text = "caller not configured as an authorized delegate";
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, text));
    }
}

#[tokio::test]
async fn a_delegate_gets_the_identities_of_others_and_their_changes() {
    let running = Running::start();
    running.register("delegate", "test:me");
    let mut stream =
        running.client().subscribe_to_x509svi_ds(by_selector("test:x")).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await, SubscribeToX509sviDsResponse::default(), "nobody is known by it yet");

    running.register("web", "test:x");
    let message = next(&mut stream).await;
    let one = &message.x509_svids[0];
    let shown = one.x509_svid.as_ref().unwrap();
    let chain = shown.cert_chain.iter().map(|der| der.clone().into()).collect();
    let svid = X509Svid::read(chain).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://example.org/web");
    assert_eq!(paths(&message), ["/web"]);
    assert_eq!(shown.expires_at, finial_daemon::clock::unix_seconds(svid.not_after()));
    let key = finial_daemon::keys::WorkloadKey::from_pkcs8(&one.x509_svid_key).unwrap();
    assert_eq!(key.public_key_der(), svid.public_key_der());

    running.remove("web");
    assert_eq!(next(&mut stream).await, SubscribeToX509sviDsResponse::default(), "the stream goes on");
}

#[tokio::test]
async fn administrators_and_downstream_servers_are_never_delegated() {
    let running = Running::start();
    running.register("delegate", "test:me");
    let with = |id: &str, edit: fn(&mut Entry)| {
        let mut entry = entry(id, &format!("/{id}"), &["test:x".to_owned()]);
        edit(&mut entry);
        running.add(entry);
    };
    with("admin", |entry| entry.admin = true);
    with("below", |entry| entry.downstream = true);
    // Equal hints, which the Workload API would filter.
    with("web", |entry| entry.hint = "h".into());
    with("web2", |entry| entry.hint = "h".into());
    let mut stream =
        running.client().subscribe_to_x509svi_ds(by_selector("test:x")).await.unwrap().into_inner();
    assert_eq!(paths(&next(&mut stream).await), ["/web", "/web2"]);
}

#[tokio::test]
async fn who_loses_the_right_loses_the_stream() {
    let running = Running::start();
    running.register("delegate", "test:me");
    running.register("someone", "test:me");
    running.register("web", "test:x");
    let mut stream =
        running.client().subscribe_to_x509svi_ds(by_selector("test:x")).await.unwrap().into_inner();
    assert_eq!(paths(&next(&mut stream).await), ["/web"]);
    running.remove("delegate");
    let status = stream.message().await.unwrap_err();
    assert_eq!(status.message(), "caller not configured as an authorized delegate");
}

#[tokio::test]
async fn a_process_or_selectors_but_not_both() {
    let running = Running::start();
    running.register("delegate", "test:me");
    running.register("web", "test:other");
    let mut client = running.client();
    for (pid, selectors, text) in [
        (0, vec![], "must provide either selectors or non-zero PID, but not both"),
        (1, selectors(&["test:x"]), "must provide either selectors or non-zero PID, but not both"),
        (0, vec![types::Selector::default()], "could not parse provided selectors"),
        (
            0,
            vec![types::Selector { r#type: "a:b".into(), value: "c".into() }],
            "could not parse provided selectors",
        ),
    ] {
        let status =
            end(client.subscribe_to_x509svi_ds(SubscribeToX509sviDsRequest { selectors, pid }).await).await;
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }

    let process = Sleeper::start();
    let pid = process.pid();
    let request = SubscribeToX509sviDsRequest { selectors: vec![], pid };
    let mut stream = client.subscribe_to_x509svi_ds(request.clone()).await.unwrap().into_inner();
    assert_eq!(paths(&next(&mut stream).await), ["/web"]);
    process.kill();
    for pid in [pid, -1] {
        let request = SubscribeToX509sviDsRequest { pid, ..request.clone() };
        let status = end(client.subscribe_to_x509svi_ds(request).await).await;
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
    }
}

#[tokio::test]
async fn a_delegate_gets_all_bundles() {
    let running = Running::start();
    running.register("delegate", "test:me");
    let request = SubscribeToX509BundlesRequest {};
    let mut stream = running.client().subscribe_to_x509_bundles(request).await.unwrap().into_inner();
    let first = next(&mut stream).await.ca_certificates;
    assert_eq!(first.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    assert_eq!(first["spiffe://example.org"], running.authority.bundle().x509_authorities[0].der);

    let other = Authority::new("other.org", "first");
    let federated = BTreeMap::from([(other.trust_domain.clone(), other.bundle())]);
    running.cache.set_bundles(running.authority.bundle(), federated);
    let both = next(&mut stream).await.ca_certificates;
    assert_eq!(both.keys().collect::<Vec<_>>(), ["spiffe://example.org", "spiffe://other.org"]);
    running.cache.set_bundles(running.authority.bundle(), BTreeMap::new());
    assert_eq!(next(&mut stream).await.ca_certificates, first, "what is gone is not told any more");
}

#[tokio::test]
async fn jwt_svids_need_an_audience_before_all_else() {
    let running = Running::start();
    let status = running.client().fetch_jwtsvi_ds(FetchJwtsviDsRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "audience must be specified"));
}

#[tokio::test]
async fn a_delegate_gets_tokens_of_others() {
    let running = Running::start();
    running.register("delegate", "test:me");
    let with = |id: &str, edit: fn(&mut Entry)| {
        let mut entry = entry(id, &format!("/{id}"), &["test:x".to_owned()]);
        edit(&mut entry);
        running.add(entry);
    };
    with("admin", |entry| entry.admin = true);
    with("below", |entry| entry.downstream = true);
    with("web", |entry| entry.hint = "h".into());
    with("web2", |entry| entry.hint = "h".into());
    let request = |selector: &str| FetchJwtsviDsRequest {
        audience: vec!["shop".to_owned()],
        selectors: selectors(&[selector]),
        pid: 0,
    };
    let status = running.client().fetch_jwtsvi_ds(request("test:nobody")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));

    let now = clock().now();
    let server = async {
        for _ in 0..2 {
            let request = running.cache.next_jwt_request().await;
            let svid = JwtSvid {
                token: format!("token of {} for {}", request.entry.id, request.audience.join(",")),
                spiffe_id: request.entry.spiffe_id.clone(),
                key_id: "k".to_owned(),
                issued_at: now,
                expires_at: now + std::time::Duration::from_secs(300),
            };
            running.cache.answer_jwt(request, Ok(svid));
        }
    };
    let mut client = running.client();
    let (answer, ()) = tokio::join!(client.fetch_jwtsvi_ds(request("test:x")), server);
    let svids = answer.unwrap().into_inner().svids;
    let tokens: Vec<&str> = svids.iter().map(|svid| svid.token.as_str()).collect();
    assert_eq!(tokens, ["token of web for shop", "token of web2 for shop"]);
    assert_eq!((svids[0].expires_at - svids[0].issued_at, svids[0].hint.as_str()), (300, "h"));

    let stream = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await.unwrap();
    let bundles = next(&mut stream.into_inner()).await.bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
}

#[tokio::test]
async fn the_agent_tells_of_itself() {
    let running = Running::start();
    let mut client = DebugClient::new(running.channel());
    assert_eq!(client.get_info(GetInfoRequest {}).await.unwrap_err().code(), Code::Unavailable);

    let agent = entry("agent", "/spire/agent/x", &[]);
    let (svid, _) = running.authority.sign(&agent, 3600);
    let key = MemoryKeys::new().generate("agent", KeyType::EcP256).await.unwrap();
    running.identity.set_own(crate::own_svid::OwnSvid { svid: svid.clone(), key, reattestable: false });
    running.register("web", "test:x");
    running.last_sync.polled();
    let info = client.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.svid_chain.len(), 2, "leaf and root");
    assert_eq!(info.svid_chain[0].id.as_ref().unwrap().path, "/spire/agent/x");
    assert_eq!(info.cached_x509_svids_count, 1);
    assert_eq!(info.last_sync_success, clock().unix());
    peer::verify_svid(&svid, &[&running.authority.bundle().x509_authorities[0].der], clock().now()).unwrap();

    running.register("later", "test:x");
    let again = client.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(again, info, "answers are kept for five seconds");
}

#[tokio::test]
async fn the_log_level_can_be_changed() {
    let running = Running::start();
    let mut client = LoggerClient::new(running.channel());
    let state = |logger: types::Logger| (logger.current_level(), logger.launch_level());
    let set = |new_level: i32| SetLogLevelRequest { new_level };
    use types::LogLevel::{Debug, Info};
    assert_eq!(state(client.get_logger(GetLoggerRequest {}).await.unwrap().into_inner()), (Info, Info));
    assert_eq!(state(client.set_log_level(set(Debug.into())).await.unwrap().into_inner()), (Debug, Info));
    for (level, text) in [(0, "newLevel value cannot be LogLevel_UNSPECIFIED"), (99, "unsupported log level")]
    {
        let status = client.set_log_level(set(level)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    assert_eq!(
        state(client.reset_log_level(ResetLogLevelRequest {}).await.unwrap().into_inner()),
        (Info, Info)
    );
}
