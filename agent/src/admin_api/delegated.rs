//! `spire.api.agent.delegatedidentity.v1.DelegatedIdentity`: identities of workloads for a process that speaks for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use finial_daemon::clock::{Clock, unix_seconds};
use finial_identity::SpiffeId;
use finial_identity::entry::Entry;
use finial_identity::selector::{Selector, sorted};
use finial_identity::x509_svid::split_concatenated;
use finial_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_server::DelegatedIdentity;
use finial_proto::spire::api::agent::delegatedidentity::v1::{
    FetchJwtsviDsRequest, FetchJwtsviDsResponse, SubscribeToJwtBundlesRequest, SubscribeToJwtBundlesResponse,
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, X509svidWithKey,
};
use finial_proto::spire::api::types;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::AdminApi;
use crate::attest::workload::WorkloadAttestation;
use crate::cache::{Cache, Subscription, TrustBundle, View};
use crate::workload_api::caller::Caller;
use crate::workload_api::jwt;
use crate::workload_api::workload::{no_identity, not_ready};

type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// Answers calls.
pub(super) struct Calls {
    cache: Cache,
    attestation: WorkloadAttestation,
    authorized: Arc<BTreeSet<SpiffeId>>,
    clock: Clock,
    shutdown: CancellationToken,
}

/// A caller that may speak for others, as long as its own entries say so.
struct Delegate {
    caller: Caller,
    selectors: Vec<Selector>,
    cache: Cache,
    authorized: Arc<BTreeSet<SpiffeId>>,
    /// Shows when the caller's own entries change.
    own: Subscription,
    shutdown: CancellationToken,
}

/// What a stream follows.
trait Source: Send {
    type Message: Clone + PartialEq + Send + Sync;

    /// Waits for a change.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// What there is to say now, if there is something.
    fn message(&mut self, is_first: bool) -> Result<Option<Self::Message>, Status>;

    /// Logs what is being sent.
    fn log(&self, _message: &Self::Message) {}
}

/// The SVIDs of a set of selectors.
struct Svids {
    target: Subscription,
    clock: Clock,
}

/// All bundles that the agent knows, in one form.
struct Bundles<T> {
    all: watch::Receiver<Arc<[Arc<TrustBundle>]>>,
    encode: fn(&[Arc<TrustBundle>]) -> T,
}

impl Calls {
    pub(super) fn new(api: &AdminApi, shutdown: CancellationToken) -> Calls {
        Calls {
            cache: api.cache.clone(),
            attestation: api.attestation.clone(),
            authorized: Arc::new(api.authorized_delegates.clone()),
            clock: api.clock.clone(),
            shutdown,
        }
    }

    /// Attests the caller and looks whether it may speak for others.
    async fn delegate<T>(&self, request: &Request<T>) -> Result<Delegate, Status> {
        let caller = Caller::of(request)?;
        let selectors = sorted(caller.attest(&self.attestation).await?);
        let delegate = Delegate {
            caller,
            own: self.cache.subscribe(selectors.clone()),
            selectors,
            cache: self.cache.clone(),
            authorized: self.authorized.clone(),
            shutdown: self.shutdown.clone(),
        };
        delegate.check()?;
        Ok(delegate)
    }

    /// The selectors of those whom the caller speaks for: as given, or those of a process.
    async fn target(
        &self,
        delegate: &Delegate,
        pid: i32,
        selectors: Vec<types::Selector>,
    ) -> Result<Vec<Selector>, Status> {
        if selectors.is_empty() == (pid == 0) {
            tracing::error!("Invalid argument; must provide either selectors or non-zero PID, but not both");
            return Err(Status::invalid_argument(
                "must provide either selectors or non-zero PID, but not both",
            ));
        }
        if pid != 0 {
            // No process has a negative number; of_process says so of 0.
            let pid = u32::try_from(pid).unwrap_or(0);
            return Ok(sorted(delegate.caller.attest_other(&self.attestation, pid).await?));
        }
        let read: Result<Vec<Selector>, _> =
            selectors.into_iter().map(|selector| Selector::new(selector.r#type, selector.value)).collect();
        read.map(sorted).map_err(|error| {
            tracing::error!(%error, "Invalid argument; could not parse provided selectors");
            Status::invalid_argument("could not parse provided selectors")
        })
    }
}

impl Delegate {
    /// Whether the caller may speak for others by the entries of this moment.
    fn check(&self) -> Result<(), Status> {
        let pid = self.caller.pid();
        let Some(entries) = self.cache.entries_of(&self.selectors) else {
            return Err(not_ready());
        };
        let Some(default) = entries.first() else {
            tracing::error!(pid, "No identity issued");
            return Err(no_identity());
        };
        match entries.iter().find(|entry| self.authorized.contains(&entry.spiffe_id)) {
            Some(entry) => {
                tracing::debug!(pid, delegate_id = %entry.spiffe_id, "Caller authorized as delegate");
                Ok(())
            }
            None => {
                tracing::error!(
                    pid,
                    num_registered_entries = entries.len(),
                    default_id = %default.spiffe_id,
                    "Permission denied; caller not configured as an authorized delegate."
                );
                Err(Status::permission_denied("caller not configured as an authorized delegate"))
            }
        }
    }

    /// Sends what the source has to say, now and at each change, while the caller may hear it.
    fn follow<S: Source + 'static>(self, source: S) -> Response<Messages<S::Message>> {
        let state = Some((self, source, None));
        let messages = stream::unfold(state, |state| async move {
            let (mut delegate, mut source, mut seen) = state?;
            match delegate.next(&mut source, seen.as_ref()).await {
                Ok(message) => {
                    seen = Some(message.clone());
                    Some((Ok(message), Some((delegate, source, seen))))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        Response::new(messages.boxed())
    }

    async fn next<S: Source>(
        &mut self,
        source: &mut S,
        seen: Option<&S::Message>,
    ) -> Result<S::Message, Status> {
        let mut has_looked = seen.is_some();
        loop {
            if has_looked {
                tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return Err(Status::unavailable("the agent is stopping")),
                    () = self.caller.gone() => return Err(self.caller.refuse()),
                    () = self.own.changed() => { self.own.view(); }
                    () = source.changed() => {}
                }
            }
            has_looked = true;
            self.check()?;
            if let Some(message) = source.message(seen.is_none())?.filter(|message| seen != Some(message)) {
                self.caller.check_alive()?;
                source.log(&message);
                return Ok(message);
            }
        }
    }
}

impl Source for Svids {
    type Message = SubscribeToX509sviDsResponse;

    async fn changed(&mut self) {
        self.target.changed().await;
    }

    /// Starts when all SVIDs are there; goes on with those that there are.
    fn message(&mut self, is_first: bool) -> Result<Option<Self::Message>, Status> {
        let view = self.target.view();
        if is_first && view.waiting > 0 {
            return Ok(None);
        }
        x509_svids(&view).map(Some)
    }

    fn log(&self, message: &Self::Message) {
        for identity in &message.x509_svids {
            if let Some(svid) = &identity.x509_svid {
                let id = svid.id.as_ref().map(|id| format!("spiffe://{}{}", id.trust_domain, id.path));
                let ttl = svid.expires_at - self.clock.unix();
                tracing::debug!(spiffe_id = id, ttl, "Fetched X.509 SVID for delegated identity");
            }
        }
    }
}

impl<T: Clone + PartialEq + Send + Sync> Source for Bundles<T> {
    type Message = T;

    async fn changed(&mut self) {
        if self.all.changed().await.is_err() {
            // The cache lives as long as whoever serves it.
            std::future::pending().await
        }
    }

    fn message(&mut self, _: bool) -> Result<Option<T>, Status> {
        Ok(Some((self.encode)(&self.all.borrow_and_update())))
    }
}

#[tonic::async_trait]
impl DelegatedIdentity for Calls {
    type SubscribeToX509SVIDsStream = Messages<SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Messages<SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Messages<SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let delegate = self.delegate(&request).await?;
        let SubscribeToX509sviDsRequest { selectors, pid } = request.into_inner();
        let selectors = self.target(&delegate, pid, selectors).await?;
        let target = self.cache.subscribe(selectors);
        Ok(delegate.follow(Svids { target, clock: self.clock.clone() }))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let delegate = self.delegate(&request).await?;
        let encode = |all: &[Arc<TrustBundle>]| SubscribeToX509BundlesResponse {
            ca_certificates: all.iter().map(|bundle| (bundle.id.clone(), bundle.x509.clone())).collect(),
        };
        Ok(delegate.follow(Bundles { all: self.cache.bundles(), encode }))
    }

    async fn fetch_jwtsvi_ds(
        &self,
        request: Request<FetchJwtsviDsRequest>,
    ) -> Result<Response<FetchJwtsviDsResponse>, Status> {
        if request.get_ref().audience.is_empty() {
            tracing::error!("Missing required audience parameter");
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let delegate = self.delegate(&request).await?;
        let FetchJwtsviDsRequest { audience, selectors, pid } = request.into_inner();
        let selectors = self.target(&delegate, pid, selectors).await?;
        let entries = self.cache.entries_of(&selectors).ok_or_else(not_ready)?;
        let mut svids = Vec::new();
        for entry in entries.into_iter().filter(|entry| may_be_delegated(entry)) {
            let identity = self.cache.jwt_identity(entry, &audience);
            let svid = tokio::select! {
                biased;
                svid = jwt::fetch(&self.cache, &self.clock, &identity, &audience) => svid?,
                () = self.shutdown.cancelled() => return Err(Status::unavailable("the agent is stopping")),
            };
            svids.push(types::Jwtsvid {
                token: svid.token.clone(),
                id: Some(wire_id(&svid.spiffe_id)),
                expires_at: unix_seconds(svid.expires_at),
                issued_at: unix_seconds(svid.issued_at),
                hint: identity.entry.hint.clone(),
            });
        }
        if svids.is_empty() {
            tracing::error!(pid = delegate.caller.pid(), "No identity issued");
            return Err(no_identity());
        }
        delegate.check()?;
        delegate.caller.check_alive()?;
        Ok(Response::new(FetchJwtsviDsResponse { svids }))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let delegate = self.delegate(&request).await?;
        let encode = |all: &[Arc<TrustBundle>]| SubscribeToJwtBundlesResponse {
            bundles: all.iter().map(|bundle| (bundle.id.clone(), bundle.jwks.clone())).collect(),
        };
        Ok(delegate.follow(Bundles { all: self.cache.bundles(), encode }))
    }
}

fn x509_svids(view: &View) -> Result<SubscribeToX509sviDsResponse, Status> {
    let mut x509_svids = Vec::new();
    for identity in view.identities.iter().filter(|identity| may_be_delegated(&identity.entry)) {
        let chain = split_concatenated(&identity.svid.chain).map_err(|error| {
            tracing::error!(%error, "Could not serialize X.509 SVID response");
            Status::internal("could not serialize response")
        })?;
        x509_svids.push(X509svidWithKey {
            x509_svid: Some(types::X509svid {
                cert_chain: chain.into_iter().map(|der| der.to_vec()).collect(),
                id: Some(wire_id(&identity.svid.spiffe_id)),
                expires_at: unix_seconds(identity.svid.not_after),
                hint: identity.entry.hint.clone(),
            }),
            x509_svid_key: identity.svid.key.clone(),
        });
    }
    let federates_with = view.federated.iter().map(|bundle| bundle.id.clone()).collect();
    Ok(SubscribeToX509sviDsResponse { x509_svids, federates_with })
}

/// Identities of administrators and of downstream servers are for their owners alone.
fn may_be_delegated(entry: &Entry) -> bool {
    !entry.admin && !entry.downstream
}

fn wire_id(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}
