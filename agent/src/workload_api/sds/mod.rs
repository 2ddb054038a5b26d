//! Envoy's secret discovery (SDS v3): identities and bundles as Envoy's TLS wants them.
//!
//! A stream gets all secrets that it asked for, again at each change of what its process may see. Versions count those
//! changes. A request that does not answer the last response is passed over.

mod secrets;

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::selector::Selector;
use finial_proto::envoy::config::core::v3::Node;
use finial_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use finial_proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use super::WorkloadApi;
use super::caller::Caller;
use super::limit::{Limits, Method};
use super::workload::not_ready;
use crate::cache::{Subscription, View};

pub use secrets::Names;

type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Answers calls.
pub(super) struct Calls {
    api: WorkloadApi,
    names: Arc<Names>,
    limits: Limits,
    shutdown: CancellationToken,
}

/// An open stream.
struct Stream {
    caller: Caller,
    requests: Streaming<DiscoveryRequest>,
    subscription: Subscription,
    names: Arc<Names>,
    shutdown: CancellationToken,
    talk: Talk,
}

/// What was said on a stream.
#[derive(Default)]
struct Talk {
    /// Counts the views.
    version: u64,
    /// The newest view; None until one is complete.
    view: Option<Arc<View>>,
    /// The last request that was not passed over.
    request: Option<DiscoveryRequest>,
    /// Of the last response.
    nonce: String,
    /// Whoever has said once what he is need not say it again.
    node: Option<Node>,
}

impl Calls {
    pub(super) fn new(api: WorkloadApi, names: Names, limits: Limits, shutdown: CancellationToken) -> Calls {
        Calls { api, names: Arc::new(names), limits, shutdown }
    }

    async fn admit<T>(
        &self,
        request: &Request<T>,
        method: Method,
    ) -> Result<(Caller, Vec<Selector>), Status> {
        let caller = Caller::of(request)?;
        let selectors = caller.attest(&self.api.attestation).await?;
        self.limits.take(method, caller.pid(), &selectors)?;
        Ok((caller, selectors))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Calls {
    type DeltaSecretsStream = Messages<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Messages<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("Method is not implemented"))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (caller, selectors) = self.admit(&request, Method::StreamSecrets).await?;
        let stream = Stream {
            caller,
            requests: request.into_inner(),
            subscription: self.api.cache.subscribe(selectors),
            names: self.names.clone(),
            shutdown: self.shutdown.clone(),
            talk: Talk::default(),
        };
        let messages = stream::unfold(Some(stream), |stream| async move {
            let mut stream = stream?;
            match stream.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(stream))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let (caller, selectors) = self.admit(&request, Method::FetchSecrets).await?;
        let request = request.into_inner();
        let mut subscription = self.api.cache.subscribe(selectors);
        let view = loop {
            let view = subscription.view();
            if !view.synced {
                return Err(not_ready());
            }
            if view.waiting == 0 {
                break view;
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Status::unavailable("the agent is stopping")),
                () = subscription.changed() => {}
            }
        };
        let response = secrets::response(&self.names, &request, &view).inspect_err(|status| {
            let resource_names = request.resource_names.join(",");
            tracing::error!(
                resource_names,
                error = status.message(),
                "Error building fetch secrets response"
            );
        })?;
        caller.check_alive()?;
        tracing::debug!(count = response.resources.len(), "Sending FetchSecrets response");
        Ok(Response::new(response))
    }
}

impl Stream {
    /// The next response; None when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            let has_news = if self.talk.view.is_none() {
                // The first look, and those until all SVIDs are there.
                self.look()?
            } else {
                false
            };
            let is_due = match has_news {
                true => self.talk.request.is_some(),
                false => tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return Err(Status::unavailable("the agent is stopping")),
                    () = self.caller.gone() => return Err(self.caller.refuse()),
                    request = self.requests.message() => match request {
                        Ok(Some(request)) => self.talk.hear(request, self.caller.pid()),
                        Ok(None) => return Ok(None),
                        Err(status) if status.code() == Code::Cancelled => return Ok(None),
                        Err(status) => return Err(status),
                    },
                    () = self.subscription.changed() => self.look()? && self.talk.request.is_some(),
                },
            };
            if is_due && let Some(response) = self.respond()? {
                self.caller.check_alive()?;
                return Ok(Some(response));
            }
        }
    }

    /// Takes over the newest view, if a stream may hear of it.
    fn look(&mut self) -> Result<bool, Status> {
        let view = self.subscription.view();
        if !view.synced {
            return Err(not_ready());
        }
        if self.talk.view.is_none() && view.waiting > 0 {
            return Ok(false);
        }
        let is_news = self.talk.view.as_ref().is_none_or(|seen| !has_same_secrets(seen, &view));
        self.talk.view = Some(view);
        self.talk.version += u64::from(is_news);
        Ok(is_news)
    }

    fn respond(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        let talk = &mut self.talk;
        let (Some(request), Some(view)) = (&talk.request, &talk.view) else { return Ok(None) };
        let mut response = match secrets::response(&self.names, request, view) {
            Ok(response) => response,
            // What is missing may be what is being signed.
            Err(status) if view.waiting > 0 && status.code() == Code::InvalidArgument => return Ok(None),
            Err(status) => {
                let pid = self.caller.pid();
                tracing::error!(pid, error = status.message(), "Error building stream secrets response");
                return Err(status);
            }
        };
        response.version_info = talk.version.to_string();
        response.nonce = hex::encode(rand::random::<[u8; 4]>());
        tracing::debug!(
            version_info = response.version_info,
            nonce = response.nonce,
            count = response.resources.len(),
            "Sending StreamSecrets response"
        );
        talk.nonce = response.nonce.clone();
        if request.node.is_some() {
            talk.node = request.node.clone();
        }
        Ok(Some(response))
    }
}

impl Talk {
    /// Takes a request in and says whether it wants an answer of its own.
    fn hear(&mut self, mut request: DiscoveryRequest, pid: u32) -> bool {
        tracing::debug!(
            pid,
            resource_names = request.resource_names.join(","),
            version_info = request.version_info,
            nonce = request.response_nonce,
            "Received StreamSecrets request"
        );
        if let Some(error) = &request.error_detail {
            let resource_names = request.resource_names.join(",");
            tracing::error!(
                pid,
                resource_names,
                error = error.message,
                "Envoy reported errors applying secrets"
            );
        }
        if !self.nonce.is_empty() {
            if self.nonce != request.response_nonce {
                let (nonce, expect) = (&request.response_nonce, &self.nonce);
                tracing::warn!(pid, nonce, expect, "Received unexpected nonce; ignoring request");
                return false;
            }
            let expect = self.version.to_string();
            if request.version_info != expect {
                let version_info = &request.version_info;
                tracing::error!(
                    pid,
                    version_info,
                    expect,
                    "Client rejected expected version and rolled back"
                );
            }
            if request.node.is_none() {
                request.node = self.node.clone();
            }
        }
        let before = self.request.replace(request);
        let after = self.request.as_ref().map_or(&[][..], |request| &request.resource_names);
        before.is_none_or(|before| is_other_list(&before.resource_names, after)) && self.view.is_some()
    }
}

/// Whether Envoy would get the same from both: of an entry only its SVID counts.
fn has_same_secrets(a: &View, b: &View) -> bool {
    let svids = |view: &View| view.identities.iter().map(|one| Arc::as_ptr(&one.svid)).collect::<Vec<_>>();
    let bundles = |view: &View| {
        view.bundle
            .iter()
            .chain(&view.federated)
            .map(|one| (one.id.clone(), one.x509.clone()))
            .collect::<Vec<_>>()
    };
    a.waiting == b.waiting && svids(a) == svids(b) && bundles(a) == bundles(b)
}

/// Whether other names are asked for than before. Their order does not matter.
fn is_other_list(before: &[String], after: &[String]) -> bool {
    let known: HashSet<&String> = before.iter().collect();
    before.len() != after.len() || after.iter().any(|name| !known.contains(name))
}
