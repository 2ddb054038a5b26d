//! What stands before every method: who is calling, and may they.
//!
//! A call whose path has no row in the permission table does not reach any service, so a method that somebody forgot
//! to put into the table cannot be called at all.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use finial_daemon::argv::text::code_name;
use finial_daemon::clock::Clock;
use finial_daemon::listen::ConnInfo;
use finial_daemon::metrics::{Metrics, rpc};
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::spire::api::types;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};
use tracing::Instrument;

use crate::access::audit::{self, Outcome, Record, Subject};
use crate::access::caller::{Caller, CallerError};
use crate::access::limit::Limits;
use crate::access::permit::{self, Facts, Granted, Limit, Row, Who};
use crate::agents::standing::Standings;
use crate::api::status::{self, Refusal};
use crate::entries::feed::Feed;
use crate::entries::snapshot::EntryFlags;

/// By which listener a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// TLS over TCP.
    Network,
    /// The admin socket.
    Admin,
}

/// What the decision about a caller needs to know of the server.
pub struct Access {
    pub standings: Standings,
    pub feed: Feed,
    pub admin_ids: Vec<SpiffeId>,
    pub limits: Limits,
    /// The setting `audit_log_enabled`.
    pub audit: bool,
    pub metrics: Metrics,
    pub clock: Clock,
}

/// How long a call may wait before it is asked again whether the caller may still call.
const FRESH: Duration = Duration::from_millis(100);

/// The services of one listener, behind the permission table.
#[derive(Clone)]
pub struct Gate {
    routes: Routes,
    /// What callers without an identity may call; their messages have narrower limits.
    for_strangers: Routes,
    door: Door,
    access: Arc<Access>,
}

/// One call that was let in. The gate leaves it in the request's extensions.
#[derive(Clone)]
pub struct Call {
    pub granted: Granted,
    access: Arc<Access>,
    /// A UUID that all log lines of the call share.
    request_id: Arc<str>,
    /// How long the caller will wait for the answer.
    patience: Option<Duration>,
}

impl Door {
    /// The caller on a connection; the same for all its calls.
    pub fn caller(self, connection: &ConnInfo) -> Result<Caller, CallerError> {
        match self {
            Door::Network => Caller::from_network(connection),
            Door::Admin => Ok(Caller::from_socket(connection)),
        }
    }
}

impl Gate {
    pub fn new(routes: Routes, for_strangers: Routes, door: Door, access: Arc<Access>) -> Gate {
        Gate { routes: routes.prepare(), for_strangers: for_strangers.prepare(), door, access }
    }

    pub fn door(&self) -> Door {
        self.door
    }
}

impl Call {
    /// The call that the gate let in with this request.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Call, Status> {
        // Absent only if a service is served without a gate.
        let call = request.extensions().get::<Call>().cloned();
        call.ok_or_else(|| Refusal::with_code(Code::Internal, "caller missing from request context").into())
    }

    /// The ID of the calling agent, in methods that only agents may call.
    pub fn agent_id(&self) -> Result<SpiffeId, Refusal> {
        let id = self.granted.caller().spiffe_id().cloned();
        id.ok_or_else(|| Refusal::with_code(Code::Internal, "caller ID missing from request context"))
    }

    /// Waits until the limit of this method has `count` tokens for the caller. `what` is said of a refusal. A caller who
    /// had to wait must still be one who may call: the queue is no place to sit out a ban.
    pub async fn limit(&self, count: usize, what: &str) -> Result<(), Refusal> {
        let (limit, caller) = (self.granted.row().limit, self.granted.caller());
        let clock = &self.access.clock;
        let came = clock.monotonic();
        let call = (limit != Limit::None).then(|| self.limit_call());
        let taken = self.access.limits.take(limit, caller.ip(), count, self.patience).await;
        if let Some(call) = call {
            call.done(code_name(if taken.is_ok() { Code::Ok } else { Code::ResourceExhausted }));
        }
        taken.map_err(|fault| Refusal::shown(Code::ResourceExhausted, what, &fault))?;
        if clock.monotonic().saturating_sub(came) < FRESH {
            return Ok(());
        }
        decide(&self.access, self.granted.row(), caller).await?.map_err(Refusal::from)?;
        Ok(())
    }

    fn limit_call(&self) -> finial_daemon::metrics::Call {
        let words = rpc::words(self.granted.row().method);
        self.access.metrics.call_named(std::iter::once("rateLimit".into()).chain(words).collect())
    }

    /// Does the work of a call that has one line in the audit log.
    pub async fn answer<T>(
        &self,
        subject: impl FnOnce() -> Subject,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<tonic::Response<T>, Status> {
        match work.await {
            Ok(answer) => {
                if self.access.audit {
                    self.write(subject(), Outcome::Success);
                }
                Ok(tonic::Response::new(answer))
            }
            Err(refusal) => {
                let subject = subject();
                let refusal = refusal.about(&subject);
                if self.access.audit {
                    self.write(subject, failed(refusal.code(), refusal.message()));
                }
                Err(refusal.into())
            }
        }
    }

    /// One element of a batch for the audit log.
    pub fn audit_item(&self, status: &types::Status, subject: impl FnOnce() -> Subject) {
        if self.access.audit {
            let outcome = match Code::from(status.code) {
                Code::Ok => Outcome::Success,
                code => failed(code, &status.message),
            };
            self.write(subject(), outcome);
        }
    }

    /// A stream for the audit log.
    pub fn audit_stream(&self, ended: &Result<(), Refusal>, subject: impl FnOnce() -> Subject) {
        if self.access.audit {
            match ended {
                Ok(()) => self.write(subject(), Outcome::Success),
                Err(refusal) => self.write(subject(), failed(refusal.code(), refusal.message())),
            }
        }
    }

    fn write(&self, subject: Subject, outcome: Outcome<'_>) {
        audit::write(&Record { subject, outcome, ..Record::of(&self.granted, &self.request_id) });
    }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let is_served = |row: &Row| row.who != Who::Local || self.door == Door::Admin;
        let Some(row) = permit::row(path).filter(|row| is_served(row)) else {
            let refused = status::unknown_method(path, |service| {
                permit::table().iter().any(|row| is_served(row) && row.service() == service)
            });
            return Box::pin(std::future::ready(Ok(refused.into_http())));
        };
        // Put there by the accept loop.
        let Some(caller) = request.extensions().get::<Result<Caller, CallerError>>().cloned() else {
            let refused = Refusal::with_code(Code::Internal, "caller missing from request context");
            return Box::pin(std::future::ready(Ok(Status::from(refused).into_http())));
        };
        let counted = self.access.metrics.rpc(path);
        let is_stranger = caller.as_ref().is_ok_and(Caller::is_anonymous);
        let routes = if is_stranger { &self.for_strangers } else { &self.routes }.clone();
        let access = Arc::clone(&self.access);
        let request_id: Arc<str> = uuid::Uuid::new_v4().to_string().into();
        let span = span(row, caller.as_ref().ok(), &request_id);
        let answer = async move {
            let granted = match admit(&access, row, caller).await {
                Ok(granted) => granted,
                Err(refused) => return Ok(refused.into_http()),
            };
            tracing::Span::current()
                .record("authorized_as", granted.role().authorized_as())
                .record("authorized_via", granted.role().authorized_via());
            let patience = patience(request.headers());
            request.extensions_mut().insert(Call { granted, access, request_id, patience });
            Ok(name_oversized(routes.oneshot(request).await?))
        };
        let answer = async move {
            let response: Result<Response<Body>, Infallible> = answer.await;
            let response = response?;
            Ok(match counted {
                Some(call) => call.until_answered(response, ()),
                None => response,
            })
        };
        Box::pin(answer.instrument(span))
    }
}

async fn admit(
    access: &Access,
    row: &'static Row,
    caller: Result<Caller, CallerError>,
) -> Result<Granted, Status> {
    let caller = caller.map_err(|fault| {
        Refusal::shown(Code::Unauthenticated, "client certificate is not acceptable", &fault)
    })?;
    decide(access, row, &caller).await?.map_err(|refused| {
        tracing::error!(reason = refused.reason.map(tracing::field::debug), "Failed to authenticate caller");
        status::denied(&refused)
    })
}

/// Gathers the facts of this moment and decides.
async fn decide(
    access: &Access,
    row: &'static Row,
    caller: &Caller,
) -> Result<Result<Granted, permit::Refusal>, Refusal> {
    let flags = match caller.spiffe_id() {
        Some(id) => access.feed.snapshot().flags(id),
        None => EntryFlags::default(),
    };
    let now = access.clock.now();
    let mut facts = Facts { caller, admin_ids: &access.admin_ids, flags, standing: None, now };
    if permit::asks_standing(row, &facts)
        && let Some(svid) = caller.svid()
    {
        let standing = access.standings.of(svid).await;
        let standing = standing.map_err(|e| Refusal::internal("unable to look up agent information", &e))?;
        facts.standing = Some(standing);
    }
    Ok(permit::decide(row, &facts))
}

/// SPIRE's log fields of a call.
fn span(row: &Row, caller: Option<&Caller>, request_id: &str) -> tracing::Span {
    let (service, method) = audit::service_and_method(row.method);
    tracing::error_span!(
        "call",
        subsystem_name = "api",
        service,
        method,
        request_id,
        caller_addr = caller.and_then(Caller::address).map(tracing::field::display),
        caller_id = caller.and_then(Caller::spiffe_id).map(tracing::field::display),
        authorized_as = tracing::field::Empty,
        authorized_via = tracing::field::Empty,
    )
}

/// The header `grpc-timeout`: at most eight digits and a unit.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// tonic answers a message beyond its limit with OUT_OF_RANGE; the code of gRPC for this is RESOURCE_EXHAUSTED, and
/// SPIRE's agents halve their batches when they see it.
fn name_oversized(mut response: Response<Body>) -> Response<Body> {
    const OUT_OF_RANGE: &str = "11";
    const RESOURCE_EXHAUSTED: http::HeaderValue = http::HeaderValue::from_static("8");
    if let Some(code) = response.headers_mut().get_mut("grpc-status")
        && code.as_bytes() == OUT_OF_RANGE.as_bytes()
    {
        *code = RESOURCE_EXHAUSTED;
    }
    response
}

fn failed(code: Code, message: &str) -> Outcome<'_> {
    Outcome::Error { code: code_name(code), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_callers_deadline() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            patience(&headers)
        };
        assert_eq!(read("30S"), Some(Duration::from_secs(30)));
        assert_eq!(read("29999999u"), Some(Duration::from_micros(29_999_999)));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        for bad in ["", "S", "123456789S", "-1S", "1x", "é"] {
            assert_eq!(http::HeaderValue::from_str(bad).ok().and_then(|_| read(bad)), None, "{bad}");
        }
    }

    #[test]
    fn oversized_messages_have_grpcs_code() {
        let code = |code: Code| {
            let response = name_oversized(Status::new(code, "x").into_http());
            response.headers()["grpc-status"].to_str().unwrap().to_owned()
        };
        assert_eq!(code(Code::OutOfRange), "8");
        assert_eq!(code(Code::NotFound), "5");
    }
}
