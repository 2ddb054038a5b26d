//! The Workload API on the agent's public socket, with Envoy's secret discovery, health and reflection beside it.
//!
//! # Invariants
//!
//! - Who calls is decided by the kernel when the connection is accepted, and asked again before each answer.
//! - A caller's selectors are found once, when its call starts.
//! - Every message is the full state. Who reads slowly gets the newest one and none of those between.
//! - Nobody can keep others from being served: connections and attestations are counted by user.

pub(crate) mod caller;
pub mod check;
mod connection;
mod count;
mod encode;
pub(crate) mod foreign;
mod health;
pub(crate) mod jwt;
pub mod limit;
mod sds;
pub(crate) mod workload;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use finial_daemon::{
    clock::Clock,
    listen::{self, Incoming},
    metrics::Metrics,
    ready::Gate,
};
use finial_proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use finial_proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    service::{Routes, RoutesBuilder, interceptor::InterceptedService},
    transport::Server,
};
use tonic_health::pb::health_server::HealthServer;

pub use sds::Names as SdsNames;

use limit::{Limits, RateLimits};

use crate::{attest::workload::WorkloadAttestation, cache::Cache};

/// How many calls one connection may have open.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 256;

/// Bytes of a request: a JWT-SVID with a long list of audiences is the longest. What has come of one is held in memory
/// until the rest comes, for anybody who may connect.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Bytes of a request for Envoy's secrets: Envoy lists all its extensions in the first one.
pub const MAX_SDS_REQUEST: usize = 1024 * 1024;

/// How many connections the processes of one user may have open; each costs this agent [`FILES_PER_CONNECTION`] file
/// descriptors. Fewer where the limit on open files is low: see [`connection::seats_per_user`].
pub const MAX_CONNECTIONS_PER_USER: usize = 2048;

/// The socket, /proc/PID, and the pidfd for reading and for waiting.
const FILES_PER_CONNECTION: usize = 4;

/// How many calls of one user are attested at a time. Others wait; those of other users do not.
pub const MAX_ATTESTATIONS_PER_USER: usize = 16;

/// How long a client may take to say that it speaks HTTP/2.
pub const OPENING_LIMIT: Duration = Duration::from_secs(10);

/// How long clients may take to read their last answers when the agent stops.
pub const STOP_LIMIT: Duration = Duration::from_secs(1);

/// What the Workload API needs.
#[derive(Clone)]
pub struct WorkloadApi {
    /// What there is to serve.
    pub cache: Cache,
    /// Finds out what a caller is.
    pub attestation: WorkloadAttestation,
    /// Whether callers without an identity get the bundle of the agent's own trust domain.
    pub allow_unauthenticated_verifiers: bool,
    /// Claims of tokens of other trust domains that ValidateJWTSVID tells beside `sub`, `exp` and `aud`.
    pub allowed_foreign_jwt_claims: Arc<BTreeSet<String>>,
    /// What else was configured.
    pub rules: Rules,
    /// What health is told from.
    pub ready: Gate,
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
}

/// How the public socket is to behave.
#[derive(Clone)]
pub struct Rules {
    /// Whether the Workload API is served.
    pub serves_workloads: bool,
    /// How Envoy's secret discovery is served, if it is.
    pub sds: Option<SdsNames>,
    /// How often callers that look alike may call.
    pub rate_limits: RateLimits,
    /// Selectors that begin like one of these may be logged: `type`, `type:begin-of-value`.
    pub log_selectors: Vec<String>,
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server ended.
    #[error("cannot serve the Workload API: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A defect: reflection has no usable descriptors.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves until `shutdown` is cancelled or nobody can connect any more. Open streams then end as Unavailable, and
/// after [`STOP_LIMIT`] all connections are closed.
pub async fn serve(
    incoming: Incoming,
    api: WorkloadApi,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let (clock, metrics) = (api.clock.clone(), api.metrics.clone());
    let health =
        HealthServer::new(health::Health::new(api.ready.clone())).max_decoding_message_size(MAX_REQUEST);
    let (serves_workloads, sds) = (api.rules.serves_workloads, api.rules.sds.clone());
    let serves_sds = sds.is_some();
    let limits = Limits::new(api.rules.rate_limits, clock.clone());
    let reflection = || {
        // Each of its two versions shows both.
        let mut reflection = tonic_reflection::server::Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        if serves_workloads {
            let workloads = finial_proto::WORKLOAD_FILE_DESCRIPTOR_SET;
            reflection = reflection.register_encoded_file_descriptor_set(workloads);
        }
        if serves_sds {
            reflection =
                reflection.register_encoded_file_descriptor_set(finial_proto::SDS_FILE_DESCRIPTOR_SET);
        }
        reflection
    };
    let mut routes = RoutesBuilder::default();
    if serves_workloads {
        let workload = workload::Calls::new(api.clone(), limits.clone(), shutdown.clone());
        routes.add_service(InterceptedService::new(
            SpiffeWorkloadApiServer::new(workload).max_decoding_message_size(MAX_REQUEST),
            caller::check_security_header,
        ));
    }
    if let Some(names) = sds {
        let secrets = sds::Calls::new(api, names, limits, shutdown.clone());
        let secrets = SecretDiscoveryServiceServer::new(secrets);
        routes.add_service(secrets.max_decoding_message_size(MAX_SDS_REQUEST));
    }
    routes
        .add_service(health)
        .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_REQUEST))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_REQUEST));
    Ok(serve_routes(incoming, routes.routes(), metrics, clock, shutdown).await?)
}

/// Serves one socket whose callers are processes of this machine; see [`serve`]. Requests carry their
/// [`caller::Caller`].
pub(crate) async fn serve_routes(
    incoming: Incoming,
    mut routes: Routes,
    metrics: Metrics,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let router = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = router.fallback(unknown_service);
    let cut_off = CancellationToken::new();
    // Connections are tasks of their own: they end even if this future is dropped.
    let _connections_end_with_this = cut_off.clone().drop_guard();
    let connections = connection::watch(listen::plain(incoming), cut_off.clone(), clock.clone());
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .layer(count::CountCalls::new(metrics))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, shutdown.clone().cancelled_owned());
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => return result,
        () = async { shutdown.cancelled().await; clock.sleep(STOP_LIMIT).await } => cut_off.cancel(),
    }
    server.await
}

/// UNIMPLEMENTED, as Go's servers say it.
async fn unknown_service(path: http::Uri) -> http::Response<tonic::body::Body> {
    let service = path.path().trim_start_matches('/').rsplit_once('/').unwrap_or_default().0;
    Status::unimplemented(format!("unknown service {service}")).into_http()
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            serves_workloads: true,
            sds: Some(SdsNames::default()),
            rate_limits: RateLimits::default(),
            log_selectors: Vec::new(),
        }
    }
}
