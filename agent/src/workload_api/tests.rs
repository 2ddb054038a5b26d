mod jwt;
mod sds;

use std::{
    collections::BTreeMap,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use finial_daemon::{
    keys::exportable::WorkloadKey,
    listen::{Io, MemoryDialer, SocketMode, peer::LocalPeer},
    metrics::Metrics,
    ready::Hold,
};
use finial_identity::{entry::Entry, selector::Selector, x509_svid::X509Svid};
use finial_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest, X509svidResponse,
    spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use super::*;
use crate::{
    cache::{
        CacheSettings, EntryUpdate,
        fixture::{Authority, TRUST_DOMAIN, clock, entry},
    },
    plugins::workload_attestor::{AttestorFault, Unix, WorkloadAttestor},
};

type Client = SpiffeWorkloadApiClient<Channel>;

/// Says of everybody that he is `test:me`, unless told to fail.
#[derive(Default)]
struct Me {
    fails: AtomicBool,
}

#[async_trait]
impl WorkloadAttestor for Me {
    async fn attest(&self, _: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestorFault> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(AttestorFault::Malformed { what: "the test" });
        }
        Ok(vec![Selector::parse("test:me").unwrap()])
    }
}

/// Ends the process that calls, when told to.
struct Kills {
    child: Mutex<std::process::Child>,
    now: AtomicBool,
}

#[async_trait]
impl WorkloadAttestor for Kills {
    async fn attest(&self, _: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestorFault> {
        if self.now.load(Ordering::Relaxed) {
            let mut child = self.child.lock().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        }
        Ok(vec![Selector::parse("test:me").unwrap()])
    }
}

/// A Workload API on a wire in memory, whose caller is this process.
struct Running {
    cache: Cache,
    authority: Authority,
    attestor: Arc<Me>,
    not_ready: Option<Hold>,
    dialer: MemoryDialer,
    shutdown: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    fn start() -> Running {
        Running::start_with(false)
    }

    fn start_with(allow_unauthenticated_verifiers: bool) -> Running {
        let (dialer, incoming) = listen::memory();
        let attestor = Arc::new(Me::default());
        let ready = Gate::new();
        let not_ready = Some(ready.hold("the test"));
        let cache = Cache::new(CacheSettings::default(), clock(), Metrics::none(clock()));
        let shutdown = CancellationToken::new();
        let attestation = WorkloadAttestation::new(
            vec![("test".to_owned(), attestor.clone() as _)],
            Metrics::none(clock()),
        );
        let api = WorkloadApi {
            metrics: Metrics::none(clock()),
            cache: cache.clone(),
            attestation,
            allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: Arc::new(["role".to_owned()].into()),
            rules: Rules::default(),
            ready,
            clock: clock(),
        };
        let served = tokio::spawn(serve(incoming, api, shutdown.clone()));
        let authority = Authority::new(TRUST_DOMAIN, "first");
        let running = Running { cache, authority, attestor, not_ready, dialer, shutdown, served };
        running.cache.set_bundles(running.authority.bundle(), BTreeMap::new());
        running.cache.apply(EntryUpdate { full: true, ..EntryUpdate::default() });
        running
    }

    async fn channel(&self) -> Channel {
        channel_over(self.dialer.dial_as(me()).unwrap()).await
    }

    async fn client(&self) -> Client {
        SpiffeWorkloadApiClient::new(self.channel().await)
    }

    /// Adds an entry for this process, and its SVID.
    fn register(&self, id: &str) -> Entry {
        let new = entry(id, &format!("/{id}"), &["test:me".to_owned()]);
        self.cache.apply(EntryUpdate { upserted: vec![Arc::new(new.clone())], ..EntryUpdate::default() });
        let (svid, key) = self.authority.sign(&new, 3600);
        assert!(self.cache.install(id, 0, svid, key));
        new
    }

    fn delete(&self, id: &str) {
        self.cache.apply(EntryUpdate { deleted: vec![id.to_owned()], ..EntryUpdate::default() });
    }
}

fn me() -> Arc<LocalPeer> {
    Arc::new(LocalPeer::of_process(std::process::id()).unwrap())
}

/// A channel over one connection that is there already.
async fn channel_over(io: impl Io) -> Channel {
    channel_with(Endpoint::from_static("http://localhost"), io).await
}

async fn channel_with(endpoint: Endpoint, io: impl Io) -> Channel {
    let io = Mutex::new(Some(io));
    let once = move |_| {
        let io = io.lock().unwrap().take().map(TokioIo::new);
        std::future::ready(io.ok_or_else(|| std::io::Error::other("the one connection was used")))
    };
    endpoint.connect_with_connector(tower::service_fn(once)).await.unwrap()
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn open(client: &mut Client) -> Streaming<X509svidResponse> {
    client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner()
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    stream.message().await.unwrap().expect("the stream must go on")
}

/// How a stream ends.
async fn end<T: std::fmt::Debug>(result: Result<tonic::Response<Streaming<T>>, Status>) -> Status {
    match result {
        Ok(stream) => stream.into_inner().message().await.expect_err("must end with an error"),
        Err(status) => status,
    }
}

fn ids(message: &X509svidResponse) -> Vec<&str> {
    message.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect()
}

/// Waits until the condition holds; whoever brings it about runs in this test's runtime.
async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("must come to hold");
}

/// The outcome of each of the seven calls, with the metadata that `dress` adds.
async fn all_calls(
    client: &mut Client,
    dress: impl Fn(&mut tonic::metadata::MetadataMap),
) -> Vec<Result<(), Status>> {
    fn dressed<T>(message: T, dress: impl Fn(&mut tonic::metadata::MetadataMap)) -> Request<T> {
        let mut request = Request::new(message);
        dress(request.metadata_mut());
        request
    }
    async fn first<T>(result: Result<tonic::Response<Streaming<T>>, Status>) -> Result<(), Status> {
        result?.into_inner().message().await.map(|message| assert!(message.is_some()))
    }
    let d = &dress;
    vec![
        first(client.fetch_x509svid(dressed(X509svidRequest {}, d)).await).await,
        first(client.fetch_x509_bundles(dressed(X509BundlesRequest {}, d)).await).await,
        client.fetch_jwtsvid(dressed(JwtsvidRequest::default(), d)).await.map(drop),
        first(client.fetch_jwt_bundles(dressed(JwtBundlesRequest {}, d)).await).await,
        client.validate_jwtsvid(dressed(ValidateJwtsvidRequest::default(), d)).await.map(drop),
        first(client.fetch_witsvid(dressed(WitsvidRequest::default(), d)).await).await,
        first(client.fetch_wit_bundles(dressed(WitBundlesRequest {}, d)).await).await,
    ]
}

#[tokio::test]
async fn every_call_needs_exactly_one_security_header_that_says_true() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let wrong: [&[(&str, &str)]; 8] = [
        &[],
        &[("workload.spiffe.io", "True")],
        &[("workload.spiffe.io", "false")],
        &[("workload.spiffe.io", "")],
        &[("workload.spiffe.io", " true")],
        &[("workload.spiffe.io", "true,true")],
        &[("workload.spiffe.io", "true"), ("workload.spiffe.io", "true")],
        &[("broker.spiffe.io", "true")],
    ];
    for headers in wrong {
        let outcomes = all_calls(&mut client, |metadata| {
            for (key, value) in headers {
                metadata.append(*key, value.parse().unwrap());
            }
        })
        .await;
        for status in outcomes.into_iter().map(Result::unwrap_err) {
            assert_eq!(status.code(), Code::InvalidArgument, "{headers:?}");
            assert_eq!(status.message(), "security header missing from request");
        }
    }
}

#[tokio::test]
async fn wit_svids_are_not_built_and_say_so() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let outcomes = all_calls(&mut client, |metadata| {
        metadata.insert("workload.spiffe.io", "true".parse().unwrap());
    })
    .await;
    let codes: Vec<Code> =
        outcomes.iter().map(|outcome| outcome.as_ref().map_or_else(Status::code, |()| Code::Ok)).collect();
    // The JWT calls were made without an audience and without a token.
    use Code::{InvalidArgument, Ok, Unimplemented};
    assert_eq!(codes, [Ok, Ok, InvalidArgument, Ok, InvalidArgument, Unimplemented, Unimplemented]);
    for (outcome, text) in outcomes[5..].iter().zip(["WIT-SVIDs", "WIT bundles"]) {
        let status = outcome.as_ref().unwrap_err();
        assert_eq!(status.message(), format!("fetching {text} is not implemented"));
    }
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_unimplemented() {
    let running = Running::start();
    let mut grpc = tonic::client::Grpc::new(running.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchNothing");
    let status = grpc.unary(with_header(X509svidRequest {}), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn health_tells_readiness_without_a_header() {
    let mut running = Running::start();
    let mut health = HealthClient::new(running.channel().await);
    let overall = HealthCheckRequest::default;
    let status = health.check(overall()).await.unwrap().into_inner().status();
    assert_eq!(status.as_str_name(), "NOT_SERVING");
    running.not_ready.take();
    let status = health.check(overall()).await.unwrap().into_inner().status();
    assert_eq!(status.as_str_name(), "SERVING");
    let status = health.check(HealthCheckRequest { service: "x".to_owned() }).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "per-service health is not supported")
    );
}

#[tokio::test]
async fn reflection_shows_exactly_the_public_services_without_a_header() {
    let running = Running::start();
    let expected = [
        "SpiffeWorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    let ours = |mut names: Vec<String>| -> Vec<String> {
        names.sort();
        names
    };

    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let list = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(running.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::iter([list])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(services)) = next(&mut answers).await.message_response
    else {
        panic!("must list services");
    };
    assert_eq!(ours(services.service.into_iter().map(|service| service.name).collect()), expected);

    let list = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(running.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::iter([list])).await.unwrap().into_inner();
    let response = next(&mut answers).await.message_response;
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(services)) = response
    else {
        panic!("must list services");
    };
    assert_eq!(ours(services.service.into_iter().map(|service| service.name).collect()), expected);
}

#[tokio::test]
async fn a_caller_without_an_identity_is_denied() {
    let running = Running::start();
    let mut client = running.client().await;
    let svids = end(client.fetch_x509svid(with_header(X509svidRequest {})).await).await;
    let bundles = end(client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await).await;
    for status in [svids, bundles] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    }
}

#[tokio::test]
async fn unauthenticated_verifiers_get_the_own_bundle_if_allowed() {
    let running = Running::start_with(true);
    let other = Authority::new("other.test", "other");
    let federated = BTreeMap::from([(other.trust_domain.clone(), other.bundle())]);
    running.cache.set_bundles(running.authority.bundle(), federated);
    let mut client = running.client().await;
    let status = end(client.fetch_x509svid(with_header(X509svidRequest {})).await).await;
    assert_eq!(status.code(), Code::PermissionDenied);

    let stream = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap();
    let mut stream = stream.into_inner();
    let own = ("spiffe://example.org".to_owned(), running.authority.der().into());
    assert_eq!(next(&mut stream).await.bundles, BTreeMap::from([own.clone()]));

    // The stream goes on when the caller gets an identity.
    let mut new = entry("a", "/a", &["test:me".to_owned()]);
    new.federates_with = vec![other.trust_domain.clone()];
    running.cache.apply(EntryUpdate { upserted: vec![Arc::new(new)], ..EntryUpdate::default() });
    let foreign = ("spiffe://other.test".to_owned(), other.der().into());
    assert_eq!(next(&mut stream).await.bundles, BTreeMap::from([own, foreign]));
}

#[tokio::test]
async fn before_the_first_sync_the_api_is_unavailable() {
    let running = Running::start();
    let api = Cache::new(CacheSettings::default(), clock(), Metrics::none(clock()));
    let (dialer, incoming) = listen::memory();
    let attestation = WorkloadAttestation::new(
        vec![("test".to_owned(), running.attestor.clone() as _)],
        Metrics::none(clock()),
    );
    let api = WorkloadApi {
        metrics: Metrics::none(clock()),
        cache: api,
        attestation,
        allow_unauthenticated_verifiers: true,
        allowed_foreign_jwt_claims: Arc::default(),
        rules: Rules::default(),
        ready: Gate::new(),
        clock: clock(),
    };
    tokio::spawn(serve(incoming, api, CancellationToken::new()));
    let mut client = SpiffeWorkloadApiClient::new(channel_over(dialer.dial_as(me()).unwrap()).await);
    let svids = end(client.fetch_x509svid(with_header(X509svidRequest {})).await).await;
    let bundles = end(client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await).await;
    assert_eq!((svids.code(), bundles.code()), (Code::Unavailable, Code::Unavailable));
}

#[tokio::test]
async fn each_message_is_the_full_state_with_all_mandatory_fields() {
    let running = Running::start();
    let other = Authority::new("other.test", "other");
    let federated = BTreeMap::from([(other.trust_domain.clone(), other.bundle())]);
    running.cache.set_bundles(running.authority.bundle(), federated);
    running.register("b");
    running.register("a");
    let mut client = running.client().await;
    let mut stream = open(&mut client).await;
    let first = next(&mut stream).await;
    assert_eq!(ids(&first), ["spiffe://example.org/a", "spiffe://example.org/b"]);
    assert!(first.federated_bundles.is_empty() && first.crl.is_empty());
    for svid in &first.svids {
        let chain = X509Svid::parse_concatenated(&svid.x509_svid).unwrap();
        assert_eq!(chain.id().as_str(), svid.spiffe_id);
        let key = WorkloadKey::from_pkcs8(&svid.x509_svid_key).unwrap();
        assert_eq!(key.public_key_der(), chain.public_key_der());
        assert_eq!(svid.bundle, running.authority.der());
    }

    running.register("c");
    let second = next(&mut stream).await;
    assert_eq!(
        ids(&second),
        ["spiffe://example.org/a", "spiffe://example.org/b", "spiffe://example.org/c"],
        "an entry is shown together with its SVID, in one message"
    );

    let mut c = entry("c", "/c", &["test:me".to_owned()]);
    c.federates_with = vec![other.trust_domain.clone()];
    c.hint = "web".to_owned();
    running.cache.apply(EntryUpdate { upserted: vec![Arc::new(c)], ..EntryUpdate::default() });
    let third = next(&mut stream).await;
    let foreign = ("spiffe://other.test".to_owned(), other.der().into());
    assert_eq!(third.federated_bundles, BTreeMap::from([foreign]));
    assert_eq!(third.svids[2].hint, "web");

    let second_authority = Authority::new(TRUST_DOMAIN, "second");
    let mut both = (*running.authority.bundle()).clone();
    both.x509_authorities.extend(second_authority.bundle().x509_authorities.clone());
    running.cache.set_bundles(Arc::new(both), BTreeMap::new());
    let fourth = next(&mut stream).await;
    assert!(fourth.federated_bundles.is_empty());
    assert_eq!(fourth.svids[0].bundle, [running.authority.der(), second_authority.der()].concat());
}

#[tokio::test]
async fn a_new_stream_waits_for_all_svids_and_an_old_one_does_not() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let mut old = open(&mut client).await;
    assert_eq!(next(&mut old).await.svids.len(), 1);

    let b = entry("b", "/b", &["test:me".to_owned()]);
    running.cache.apply(EntryUpdate { upserted: vec![Arc::new(b.clone())], ..EntryUpdate::default() });
    let mut new = open(&mut client).await;
    let a = entry("a", "/a", &["test:me".to_owned()]);
    let (svid, key) = running.authority.sign(&a, 3600);
    running.cache.install("a", 0, svid, key);
    assert_eq!(next(&mut old).await.svids.len(), 1, "a renewed SVID is not held back");
    let (svid, key) = running.authority.sign(&b, 3600);
    running.cache.install("b", 0, svid, key);
    assert_eq!(next(&mut old).await.svids.len(), 2);
    assert_eq!(next(&mut new).await.svids.len(), 2);
}

#[tokio::test]
async fn losing_the_last_identity_ends_the_streams() {
    let running = Running::start();
    running.register("a");
    running.register("b");
    let mut client = running.client().await;
    let mut svids = open(&mut client).await;
    let bundles = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap();
    let mut bundles = bundles.into_inner();
    assert_eq!(next(&mut svids).await.svids.len(), 2);
    next(&mut bundles).await;
    running.delete("a");
    assert_eq!(ids(&next(&mut svids).await), ["spiffe://example.org/b"]);
    running.delete("b");
    for status in [svids.message().await.unwrap_err(), bundles.message().await.unwrap_err()] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    }
    until(|| running.cache.stats().subscribers == 0).await;
}

#[tokio::test]
async fn bundle_streams_send_nothing_twice() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let stream = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap();
    let mut stream = stream.into_inner();
    let first = next(&mut stream).await;
    running.register("b");
    let mut newer = (*running.authority.bundle()).clone();
    newer.sequence_number += 1;
    running.cache.set_bundles(Arc::new(newer.clone()), BTreeMap::new());
    // Lets the server look at the two changes above, each of which it must pass over.
    let mut other = open(&mut client).await;
    next(&mut other).await;
    newer.x509_authorities.extend(Authority::new(TRUST_DOMAIN, "second").bundle().x509_authorities.clone());
    running.cache.set_bundles(Arc::new(newer), BTreeMap::new());
    let second = next(&mut stream).await;
    assert_ne!(first, second);
    assert_eq!(second.bundles.len(), 1);
}

#[tokio::test]
async fn a_failed_attestation_is_told_and_other_streams_go_on() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let mut before = open(&mut client).await;
    next(&mut before).await;
    running.attestor.fails.store(true, Ordering::Relaxed);
    let status = end(client.fetch_x509svid(with_header(X509svidRequest {})).await).await;
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
    running.register("b");
    assert_eq!(next(&mut before).await.svids.len(), 2);
    running.attestor.fails.store(false, Ordering::Relaxed);
    next(&mut open(&mut client).await).await;
}

/// Takes its time with everybody, on a task that nobody can stop.
struct Slow {
    running: tokio::sync::watch::Sender<usize>,
    done: Arc<tokio::sync::Semaphore>,
}

#[async_trait]
impl WorkloadAttestor for Slow {
    async fn attest(&self, _: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestorFault> {
        self.running.send_modify(|running| *running += 1);
        let (running, done) = (self.running.clone(), self.done.clone());
        let work = tokio::spawn(async move {
            done.acquire().await.unwrap().forget();
            running.send_modify(|running| *running -= 1);
        });
        work.await.map_err(|_| AttestorFault::CutOff)?;
        Ok(vec![Selector::parse("test:me").unwrap()])
    }
}

/// Hanging up is no way to have more attested at a time than one's share.
#[tokio::test]
async fn who_hangs_up_gives_his_turn_back_when_the_work_is_done() {
    let running = Running::start();
    running.register("a");
    let (count, mut seen) = tokio::sync::watch::channel(0);
    let done = Arc::new(tokio::sync::Semaphore::new(0));
    let slow = Arc::new(Slow { running: count, done: done.clone() });
    let (dialer, incoming) = listen::memory();
    let api = WorkloadApi {
        metrics: Metrics::none(clock()),
        cache: running.cache.clone(),
        attestation: WorkloadAttestation::new(vec![("test".to_owned(), slow as _)], Metrics::none(clock())),
        allow_unauthenticated_verifiers: false,
        allowed_foreign_jwt_claims: Arc::default(),
        rules: Rules::default(),
        ready: Gate::new(),
        clock: clock(),
    };
    tokio::spawn(serve(incoming, api, CancellationToken::new()));
    let channel = channel_over(dialer.dial_as(me()).unwrap()).await;
    let call = || {
        let mut client = SpiffeWorkloadApiClient::new(channel.clone());
        tokio::spawn(async move { client.fetch_x509svid(with_header(X509svidRequest {})).await.map(drop) })
    };
    // The server has seen what was sent before on this connection once it answers this.
    let round_trip = || async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
            HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
        }
    };
    for _ in 0..3 {
        let calls: Vec<_> = (0..MAX_ATTESTATIONS_PER_USER).map(|_| call()).collect();
        seen.wait_for(|running| *running >= MAX_ATTESTATIONS_PER_USER).await.unwrap();
        round_trip().await;
        for call in calls {
            call.abort();
            call.await.unwrap_err();
        }
        round_trip().await;
        assert_eq!(*seen.borrow(), MAX_ATTESTATIONS_PER_USER);
    }
    let last = call();
    done.add_permits(MAX_ATTESTATIONS_PER_USER + 1);
    last.await.unwrap().unwrap();
}

/// Whoever may connect could have the agent hold this much for each of his calls.
#[tokio::test]
async fn long_requests_are_refused_before_they_are_read() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let request = ValidateJwtsvidRequest { audience: "a".repeat(MAX_REQUEST), svid: String::new() };
    let status = client.validate_jwtsvid(with_header(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let mut health = HealthClient::new(running.channel().await);
    let request = HealthCheckRequest { service: "a".repeat(MAX_REQUEST) };
    assert_eq!(health.check(request).await.unwrap_err().code(), Code::OutOfRange);
    next(&mut open(&mut client).await).await;
}

#[tokio::test]
async fn a_caller_that_ends_while_it_is_attested_is_refused_and_its_connection_closed() {
    let running = Running::start();
    running.register("a");
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let peer = Arc::new(LocalPeer::of_process(child.id()).unwrap());
    let (dialer, incoming) = listen::memory();
    let kills = Arc::new(Kills { child: Mutex::new(child), now: AtomicBool::new(false) });
    let api = WorkloadApi {
        metrics: Metrics::none(clock()),
        cache: running.cache.clone(),
        attestation: WorkloadAttestation::new(
            vec![("test".to_owned(), kills.clone() as _)],
            Metrics::none(clock()),
        ),
        allow_unauthenticated_verifiers: false,
        allowed_foreign_jwt_claims: Arc::default(),
        rules: Rules::default(),
        ready: Gate::new(),
        clock: clock(),
    };
    tokio::spawn(serve(incoming, api, CancellationToken::new()));
    let mut client = SpiffeWorkloadApiClient::new(channel_over(dialer.dial_as(peer).unwrap()).await);
    let mut before = open(&mut client).await;
    next(&mut before).await;
    kills.now.store(true, Ordering::Relaxed);
    end(client.fetch_x509svid(with_header(X509svidRequest {})).await).await;
    assert!(before.message().await.is_err(), "the connection is closed with all that is on it");
    until(|| running.cache.stats().subscribers == 0).await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_leaves_nothing_behind() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    for _ in 0..100 {
        next(&mut open(&mut client).await).await;
    }
    until(|| running.cache.stats().subscribers == 0).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        let mut stream = open(&mut client).await;
        next(&mut stream).await;
        streams.push(stream);
    }
    assert_eq!((running.cache.stats().subscribers, running.cache.stats().selector_sets), (200, 1));
    drop((streams, client));
    until(|| running.cache.stats().selector_sets == 0).await;
}

#[tokio::test]
async fn a_connection_without_a_process_is_not_served() {
    let running = Running::start();
    running.register("a");
    let mut client = SpiffeWorkloadApiClient::new(channel_over(running.dialer.dial().unwrap()).await);
    let status = end(client.fetch_x509svid(with_header(X509svidRequest {})).await).await;
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
}

#[tokio::test]
async fn a_reader_that_stops_holds_up_nobody_and_gets_the_newest_state_later() {
    let running = Running::start();
    running.register("a");
    let tiny = Endpoint::from_static("http://localhost").initial_stream_window_size(16);
    let slow = channel_with(tiny, running.dialer.dial_as(me()).unwrap()).await;
    let mut slow = open(&mut SpiffeWorkloadApiClient::new(slow)).await;
    let mut client = running.client().await;
    let mut quick = open(&mut client).await;
    next(&mut quick).await;
    for i in 0..50 {
        running.register(&format!("b{i}"));
        assert_eq!(next(&mut quick).await.svids.len(), i + 2);
    }
    let mut read = 0;
    loop {
        read += 1;
        if next(&mut slow).await.svids.len() == 51 {
            break;
        }
    }
    assert!(read < 10, "{read} messages had been kept for the slow reader");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_open_in_time_is_hung_up_on() {
    let running = Running::start();
    let mut silent = running.dialer.dial_as(me()).unwrap();
    let mut trickling = running.dialer.dial_as(me()).unwrap();
    trickling.write_all(b"PRI * HTTP/2.0").await.unwrap();
    let mut client = running.client().await;
    running.register("a");
    let mut opened = open(&mut client).await;
    next(&mut opened).await;

    let mut nothing = Vec::new();
    silent.read_to_end(&mut nothing).await.unwrap();
    trickling.read_to_end(&mut nothing).await.unwrap();
    running.register("b");
    assert_eq!(next(&mut opened).await.svids.len(), 2);
}

#[tokio::test]
async fn stopping_ends_the_streams_and_the_server() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let mut stream = open(&mut client).await;
    next(&mut stream).await;
    let mut idle = running.dialer.dial_as(me()).unwrap();
    running.shutdown.cancel();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    running.served.await.unwrap().unwrap();
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    assert_eq!(running.cache.stats().subscribers, 0);
}

/// The parent runs this test again in a child process, which connects, passes the connection to the parent, and is
/// killed. The parent still holds the connection, but what it says is the child's.
#[test]
fn a_stream_ends_with_the_process_that_connected() {
    const ROLE: &str = "FINIAL_TEST_CONNECT_TO";
    const NAME: &str = "workload_api::tests::a_stream_ends_with_the_process_that_connected";
    if let Ok(path) = std::env::var(ROLE) {
        let to_parent = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        let connection = UnixStream::connect(path).unwrap();
        send_descriptor(&to_parent, &connection);
        // Until the parent kills this process.
        let _ = std::io::Read::read(&mut &to_parent, &mut [0]);
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let running = Running::start();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let incoming = listen::unix(&path, SocketMode { socket: 0o777, dir: 0o755 }).unwrap();
        let api = WorkloadApi {
            metrics: Metrics::none(clock()),
            cache: running.cache.clone(),
            attestation: WorkloadAttestation::new(
                vec![("unix".to_owned(), Arc::new(Unix::default()) as _)],
                Metrics::none(clock()),
            ),
            allow_unauthenticated_verifiers: false,
            allowed_foreign_jwt_claims: Arc::default(),
            rules: Rules::default(),
            ready: Gate::new(),
            clock: Clock::wall(),
        };
        tokio::spawn(serve(incoming, api, CancellationToken::new()));
        let user = format!("unix:uid:{}", nix::unistd::geteuid());
        let new = entry("a", "/a", &[user]);
        running.cache.apply(EntryUpdate { upserted: vec![Arc::new(new.clone())], ..EntryUpdate::default() });
        let (svid, key) = running.authority.sign(&new, 3600);
        assert!(running.cache.install("a", 0, svid, key));

        let (near, far) = UnixStream::pair().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(ROLE, &path)
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The child ends when this end of the pair is dropped.
        let to_child = near.try_clone().unwrap();
        let received = tokio::task::spawn_blocking(move || receive_descriptor(&near));
        let connection = UnixStream::from(received.await.unwrap());
        connection.set_nonblocking(true).unwrap();
        let io = tokio::net::UnixStream::from_std(connection).unwrap();
        let mut client = SpiffeWorkloadApiClient::new(channel_over(io).await);
        let mut stream = open(&mut client).await;
        assert_eq!(ids(&next(&mut stream).await), ["spiffe://example.org/a"]);
        assert_eq!(running.cache.stats().subscribers, 1);

        child.kill().unwrap();
        child.wait().unwrap();
        drop(to_child);
        let ended = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
        assert!(ended.expect("must end by itself").is_err());
        until(|| running.cache.stats().subscribers == 0).await;
        assert!(client.fetch_x509svid(with_header(X509svidRequest {})).await.is_err());
    });
}

fn send_descriptor(over: &UnixStream, what: &UnixStream) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let descriptors = [what.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(over.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None).unwrap();
}

fn receive_descriptor(over: &UnixStream) -> OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let received =
        recvmsg::<()>(over.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            #[allow(unsafe_code, reason = "a descriptor that was just received belongs to nobody else")]
            return unsafe { OwnedFd::from_raw_fd(descriptors[0]) };
        }
    }
    panic!("the child sent no descriptor");
}
