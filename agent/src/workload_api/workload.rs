//! The calls of the Workload API.

use std::sync::Arc;

use finial_identity::selector::Selector;
use finial_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::SpiffeWorkloadApi,
};
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::caller::is_this_agent;
use super::{
    WorkloadApi,
    caller::Caller,
    encode, jwt,
    limit::{Limits, Method},
};
use crate::cache::{Subscription, View};

type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Answers calls.
pub(super) struct Calls {
    api: WorkloadApi,
    limits: Limits,
    shutdown: CancellationToken,
}

/// What a view means to a stream.
#[derive(Debug)]
enum Answer<T> {
    Send(T),
    /// Nothing to say now.
    Wait,
    End(Status),
}

/// A stream that sends what the cache shows.
struct Pushes<F> {
    caller: Caller,
    subscription: Subscription,
    shutdown: CancellationToken,
    /// Until the first look there is nothing to wait for.
    has_looked: bool,
    answer: F,
}

impl Calls {
    pub(super) fn new(api: WorkloadApi, limits: Limits, shutdown: CancellationToken) -> Calls {
        Calls { api, limits, shutdown }
    }

    async fn push<Q, T: Send + 'static>(
        &self,
        request: &Request<Q>,
        method: Method,
        answer: impl FnMut(&Arc<View>) -> Answer<T> + Send + 'static,
    ) -> Result<Response<Messages<T>>, Status> {
        let caller = Caller::of(request)?;
        let selectors = caller.attest(&self.api.attestation).await?;
        let pid = caller.pid();
        self.limits.take(method, pid, &selectors)?;
        let told = loggable(&selectors, &self.api.rules.log_selectors);
        let shutdown = self.shutdown.clone();
        let pushes = Pushes {
            caller,
            subscription: self.api.cache.subscribe(selectors),
            shutdown,
            has_looked: false,
            answer,
        };
        let messages = stream::unfold(Some((pushes, told)), move |pushes| async move {
            let (mut pushes, told) = pushes?;
            match pushes.next().await {
                Ok(message) => Some((Ok(message), Some((pushes, told)))),
                Err(status) => {
                    if status.code() == tonic::Code::PermissionDenied && !is_this_agent(pid) {
                        tracing::error!(pid, registered = false, selectors = told, "No identity issued");
                    }
                    Some((Err(status), None))
                }
            }
        });
        Ok(Response::new(messages.boxed()))
    }
}

impl<T, F: FnMut(&Arc<View>) -> Answer<T>> Pushes<F> {
    async fn next(&mut self) -> Result<T, Status> {
        loop {
            if self.has_looked {
                tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return Err(Status::unavailable("the agent is stopping")),
                    () = self.caller.gone() => return Err(self.caller.refuse()),
                    () = self.subscription.changed() => {}
                }
            }
            self.has_looked = true;
            match (self.answer)(&self.subscription.view()) {
                Answer::Wait => {}
                Answer::Send(message) => {
                    self.caller.check_alive()?;
                    return Ok(message);
                }
                Answer::End(status) => {
                    self.caller.check_alive()?;
                    return Err(status);
                }
            }
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Calls {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;
    type FetchWITSVIDStream = Messages<WitsvidResponse>;
    type FetchWITBundlesStream = Messages<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let clock = self.api.clock.clone();
        let mut seen: Option<Arc<View>> = None;
        self.push(&request, Method::FetchX509Svid, move |view| {
            let answer = x509_svids(view, seen.as_deref());
            if matches!(answer, Answer::Send(_)) {
                seen = Some(view.clone());
                for identity in view.shown() {
                    let ttl = identity.svid.not_after.duration_since(clock.now()).unwrap_or_default();
                    tracing::debug!(spiffe_id = %identity.svid.spiffe_id, ttl = ttl.as_secs_f64(), "Fetched X.509 SVID");
                }
            }
            answer
        })
        .await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let to_anybody = self.api.allow_unauthenticated_verifiers;
        let mut seen: Option<X509BundlesResponse> = None;
        self.push(&request, Method::FetchX509Bundles, move |view| {
            let answer = bundles(view, seen.as_ref(), to_anybody, encode::x509_bundles);
            if let Answer::Send(message) = &answer {
                seen = Some(message.clone());
            }
            answer
        })
        .await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let wish = jwt::Wish::read(request.into_inner())?;
        let selectors = caller.attest(&self.api.attestation).await?;
        self.limits.take(Method::FetchJwtSvid, caller.pid(), &selectors)?;
        let answer = tokio::select! {
            biased;
            answer = wish.grant(&self.api, &selectors) => answer,
            () = self.shutdown.cancelled() => Err(Status::unavailable("the agent is stopping")),
        };
        caller.check_alive()?;
        let is_denied = |status: &Status| status.code() == tonic::Code::PermissionDenied;
        if answer.as_ref().is_err_and(is_denied) && !is_this_agent(caller.pid()) {
            let told = loggable(&selectors, &self.api.rules.log_selectors);
            tracing::error!(pid = caller.pid(), registered = false, selectors = told, "No identity issued");
        }
        answer.map(Response::new)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let to_anybody = self.api.allow_unauthenticated_verifiers;
        let mut seen: Option<JwtBundlesResponse> = None;
        self.push(&request, Method::FetchJwtBundles, move |view| {
            let answer = bundles(view, seen.as_ref(), to_anybody, jwt::bundles);
            if let Answer::Send(message) = &answer {
                seen = Some(message.clone());
            }
            answer
        })
        .await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let doubt = jwt::Doubt::read(request.into_inner())?;
        let selectors = caller.attest(&self.api.attestation).await?;
        let answer = doubt.judge(&self.api, &selectors, self.api.clock.now());
        caller.check_alive()?;
        answer.map(Response::new)
    }

    async fn fetch_witsvid(
        &self,
        _: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented("fetching WIT-SVIDs is not implemented"))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented("fetching WIT bundles is not implemented"))
    }
}

/// A new stream starts when all SVIDs are there; one that has begun goes on with those that there are.
fn x509_svids(view: &View, seen: Option<&View>) -> Answer<X509svidResponse> {
    if !is_ready(view) {
        return Answer::End(not_ready());
    }
    if !view.entitled {
        return Answer::End(no_identity());
    }
    let is_incomplete = seen.is_none() && view.waiting > 0;
    // An empty message would tell the workload that it has lost its identities.
    if is_incomplete || view.identities.is_empty() || seen.is_some_and(|seen| seen.same_svids(view)) {
        return Answer::Wait;
    }
    Answer::Send(encode::x509_svids(view))
}

/// Sends what `encode` makes of a view, unless it reads as what the workload has seen.
fn bundles<T: PartialEq>(
    view: &View,
    seen: Option<&T>,
    to_anybody: bool,
    encode: impl FnOnce(&View) -> T,
) -> Answer<T> {
    if !is_ready(view) {
        return Answer::End(not_ready());
    }
    if !view.entitled && !to_anybody {
        return Answer::End(no_identity());
    }
    let message = encode(view);
    if seen == Some(&message) { Answer::Wait } else { Answer::Send(message) }
}

/// Those of the selectors that may be logged, as text; None when there is none.
fn loggable(selectors: &[Selector], prefixes: &[String]) -> Option<String> {
    let may = |text: &String| {
        prefixes.iter().any(|prefix| {
            text.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
    };
    let mut told: Vec<String> = selectors.iter().map(Selector::to_string).filter(may).collect();
    told.sort_unstable();
    (!told.is_empty()).then(|| told.join(","))
}

/// Mandatory fields are never sent empty.
fn is_ready(view: &View) -> bool {
    view.synced && view.bundle.as_ref().is_some_and(|bundle| !bundle.x509.is_empty())
}

pub(crate) fn not_ready() -> Status {
    Status::unavailable("the agent has not received its entries and bundle from the server yet")
}

pub(crate) fn no_identity() -> Status {
    Status::permission_denied("no identity issued")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fixture::selectors;

    #[test]
    fn only_selectors_that_were_named_are_logged() {
        let found =
            selectors(&["k8s:ns:default", "k8s:nsx:1", "k8s:sa:web", "unix:uid:1000"].map(String::from));
        for (prefixes, told) in [
            (&[][..], None),
            (&["k8s:ns"][..], Some("k8s:ns:default")),
            (&["unix", "k8s:sa:web"][..], Some("k8s:sa:web,unix:uid:1000")),
            (&["k8s:sa:we", "uni", ""][..], None),
        ] {
            let prefixes: Vec<String> = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
            assert_eq!(loggable(&found, &prefixes).as_deref(), told, "{prefixes:?}");
        }
    }
}
