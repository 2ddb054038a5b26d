//! Counting gRPC calls: `rpc.<service>.<method>` with SPIRE's short names.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response};
use hyper::body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Call, Metrics, UNKNOWN};
use crate::argv::text::code_name;

/// The words for a method's path, such as `/spire.api.server.agent.v1.Agent/AttestAgent`: `agent`, `v1`, `agent`,
/// `attest_agent`.
pub fn words(path: &str) -> Vec<Cow<'static, str>> {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let method = if method == "SubscribeToX509SVIDs" { "SubscribeToX509Svids" } else { method };
    short(service).split('.').chain([method]).map(|word| Cow::Owned(snake(word))).collect()
}

/// The names by which a method is logged: `/SpiffeWorkloadAPI/FetchX509SVID` is method `FetchX509SVID` of `WorkloadAPI`.
pub fn names(path: &str) -> (&str, &str) {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    (short(service), method)
}

impl Metrics {
    /// Begins to count a call of a method, if anybody listens.
    pub fn rpc(&self, path: &str) -> Option<Call> {
        self.inner.as_ref()?;
        Some(self.call_named(std::iter::once("rpc".into()).chain(words(path)).collect()))
    }
}

impl Call {
    /// Is done when the response is, with the status in its trailers. `held` is dropped with it.
    pub fn until_answered(self, response: Response<Body>, held: impl Send + 'static) -> Response<Body> {
        if let Some(code) = code(response.headers()) {
            self.done(code);
            return response;
        }
        response.map(|body| Body::new(Counted { body, call: Some(self), _held: held }))
    }
}

fn code(headers: &HeaderMap) -> Option<&'static str> {
    headers.get(Status::GRPC_STATUS).map(|code| code_name(Code::from_bytes(code.as_bytes())))
}

/// A response that is being sent.
struct Counted<H> {
    body: Body,
    call: Option<Call>,
    _held: H,
}

// Nothing in it is pinned but the body, which can be moved.
impl<H> Unpin for Counted<H> {}

impl<H: Send + 'static> hyper::body::Body for Counted<H> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let outcome = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().and_then(code),
            Some(Err(status)) => Some(code_name(status.code())),
            None => Some(UNKNOWN),
        };
        if let Some(code) = outcome
            && let Some(call) = self.call.take()
        {
            call.done(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The names that SPIRE gives services in metrics.
fn short(service: &str) -> &str {
    let service = service.strip_prefix("spire.api.server.").unwrap_or(service);
    match service {
        "SpiffeWorkloadAPI" => "WorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService" => "SDS.v3",
        "grpc.health.v1.Health" => "Health",
        "logger.v1.Logger" | "spire.api.agent.logger.v1.Logger" => "Logger",
        "spire.agent.debug.v1.Debug" => "Debug",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity" => "DelegatedIdentity",
        other => other,
    }
}

/// `AttestAgent` becomes `attest_agent`, `BatchNewX509SVID` `batch_new_x509svid`: a capital begins a word if the letter
/// before or after it is a small one.
fn snake(word: &str) -> String {
    let letters: Vec<char> = word.chars().collect();
    let is_small = |index: Option<usize>| {
        index.and_then(|index| letters.get(index)).is_some_and(|letter| letter.is_lowercase())
    };
    let mut snake = String::with_capacity(word.len() + 4);
    for (index, &letter) in letters.iter().enumerate() {
        if !letter.is_alphanumeric() {
            snake.push('_');
            continue;
        }
        let begins_word = letter.is_uppercase()
            && index > 0
            && index + 1 < letters.len()
            && (is_small(Some(index + 1)) || is_small(index.checked_sub(1)))
            && !snake.ends_with('_');
        if begins_word {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    #[test]
    fn methods_have_spires_names() {
        for (path, words) in [
            ("/spire.api.server.agent.v1.Agent/AttestAgent", "agent_v1_agent_attest_agent"),
            ("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", "svid_v1_svid_batch_new_x509svid"),
            ("/spire.api.server.svid.v1.SVID/NewJWTSVID", "svid_v1_svid_new_jwtsvid"),
            ("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", "svid_v1_svid_new_downstream_x509ca"),
            (
                "/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle",
                "trustdomain_v1_trust_domain_refresh_bundle",
            ),
            (
                "/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState",
                "localauthority_v1_local_authority_get_jwt_authority_state",
            ),
            ("/spire.api.server.logger.v1.Logger/SetLogLevel", "logger_set_log_level"),
            ("/spire.api.server.debug.v1.Debug/GetInfo", "debug_v1_debug_get_info"),
            ("/grpc.health.v1.Health/Check", "health_check"),
            ("/SpiffeWorkloadAPI/FetchX509SVID", "workload_api_fetch_x509svid"),
            ("/SpiffeWorkloadAPI/FetchJWTBundles", "workload_api_fetch_jwt_bundles"),
            ("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", "sds_v3_stream_secrets"),
            (
                "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs",
                "delegated_identity_subscribe_to_x509_svids",
            ),
        ] {
            assert_eq!(super::words(path).join("_"), words, "{path}");
        }
    }
}
