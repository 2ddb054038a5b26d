//! Counts the calls on the agent's sockets, and those that are open.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use finial_daemon::metrics::{Call, Metrics, rpc};
use http::{Request, Response};
use hyper::body::{Frame, SizeHint};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument;

use super::caller::{Caller, is_this_agent};

/// SPIRE counts an open call of these services as a connection of the API.
const APIS: [(&str, &str); 5] = [
    ("/SpiffeWorkloadAPI/", "workload_api"),
    ("/envoy.service.secret.v3.SecretDiscoveryService/", "sds_api"),
    ("/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/", "delegated_identity_api"),
    ("/spire.agent.debug.v1.Debug/", "debug_api"),
    ("/spire.api.agent.logger.v1.Logger/", "logger_api"),
];

/// The methods that are counted: those that there are. Each has numbers of its own, which are kept for ever, so a name that a
/// caller made up gets none.
static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    const OTHERS: [&str; 8] = [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
    ];
    let ours = finial_proto::methods().into_iter().map(|(service, method)| format!("/{service}/{method}"));
    ours.chain(OTHERS.map(str::to_owned)).collect()
});

/// Counts what passes through it. The agent's own calls are not counted: it asks itself whether it is well.
#[derive(Clone)]
pub(crate) struct CountCalls {
    metrics: Metrics,
    open: Arc<Mutex<HashMap<&'static str, u32>>>,
}

impl CountCalls {
    pub(crate) fn new(metrics: Metrics) -> CountCalls {
        CountCalls { metrics, open: Arc::default() }
    }

    /// Begins to count a call, if it is of a method that there is and anybody listens.
    fn begin(&self, path: &str) -> Option<Call> {
        METHODS.contains(path).then(|| self.metrics.rpc(path)).flatten()
    }

    fn opened(&self, path: &str) -> Option<Open> {
        let (_, api) = APIS.iter().find(|(service, _)| path.starts_with(service))?;
        self.metrics.count(&[api, "connection"], 1);
        self.show(api, |open| open + 1);
        Some(Open { calls: self.clone(), api })
    }

    fn show(&self, api: &'static str, change: impl FnOnce(u32) -> u32) {
        // Under the lock, so that the last value shown is the true one.
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.entry(api).or_default();
        *open = change(*open);
        self.metrics.gauge(&[api, "connections"], f64::from(*open));
    }
}

/// A call that has not ended.
struct Open {
    calls: CountCalls,
    api: &'static str,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.calls.show(self.api, |open| open.saturating_sub(1));
    }
}

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, service: S) -> Counted<S> {
        Counted { service, calls: self.clone() }
    }
}

/// An answer that is made while it is sent: a stream's lines are about its call too.
struct InSpan {
    body: Body,
    span: tracing::Span,
}

impl hyper::body::Body for InSpan {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let InSpan { body, span } = &mut *self;
        let _entered = span.enter();
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Clone)]
pub(crate) struct Counted<S> {
    service: S,
    calls: CountCalls,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S::Error> {
        let caller = request.extensions().get::<Caller>();
        let is_ourselves = caller.is_some_and(|caller| is_this_agent(caller.pid()));
        let path = request.uri().path();
        let counted = match self.calls.begin(path) {
            Some(call) if is_ourselves => {
                call.discard();
                None
            }
            call => call.map(|call| (call, self.calls.opened(path))),
        };
        // What SPIRE's agent says of the call in each line about it.
        let (service, method) = rpc::names(path);
        let pid = caller.map(Caller::pid);
        let span = tracing::error_span!("call", subsystem_name = "endpoints", service, method, pid);
        let answer = self.service.call(request).instrument(span.clone());
        Box::pin(async move {
            let response = answer.await?.map(|body| Body::new(InSpan { body, span }));
            Ok(match counted {
                Some((call, open)) => call.until_answered(response, open),
                None => response,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use finial_daemon::clock::Clock;
    use finial_daemon::metrics::{MetricsSettings, Program};

    use super::*;

    #[test]
    fn names_that_callers_make_up_are_not_counted() {
        let settings = MetricsSettings { in_mem: true, ..MetricsSettings::default() };
        let program = Program { prefix: "spire_agent", trust_domain: "example.org".to_owned() };
        let (metrics, _sinks) = Metrics::new(&settings, &program, Clock::paused(UNIX_EPOCH));
        let calls = CountCalls::new(metrics);
        for served in [
            "/SpiffeWorkloadAPI/FetchX509SVID",
            "/SpiffeWorkloadAPI/ValidateJWTSVID",
            "/grpc.health.v1.Health/Check",
            "/spire.agent.debug.v1.Debug/GetInfo",
            "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/FetchJWTSVIDs",
        ] {
            assert!(calls.begin(served).is_some(), "{served}");
        }
        for made_up in ["", "/", "/a/b", "/SpiffeWorkloadAPI/FetchX509SVID1", "/SpiffeWorkloadAPI/", "//x"] {
            assert!(calls.begin(made_up).is_none(), "{made_up}");
        }
    }
}
