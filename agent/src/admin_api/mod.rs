//! The APIs on the agent's admin socket: delegated identity, debug and logger.
//!
//! # Invariants
//!
//! - The socket's permissions decide who may ask for debug information and change the log level.
//! - Identities of others go only to a process that is attested itself and owns an ID among `authorized_delegates`;
//!   this is asked again before each answer.
//! - Identities of entries with the flags admin or downstream never go through another process's hands.

mod debug;
mod delegated;
mod logger;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use finial_daemon::clock::Clock;
use finial_daemon::listen::Incoming;
use finial_daemon::metrics::Metrics;
use finial_daemon::telemetry::LogHandle;
use finial_identity::SpiffeId;
use finial_proto::spire::agent::debug::v1::debug_server::DebugServer;
use finial_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_server::DelegatedIdentityServer;
use finial_proto::spire::api::agent::logger::v1::logger_server::LoggerServer;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

use crate::attest::workload::WorkloadAttestation;
use crate::cache::Cache;
use crate::own_svid::Identity;
use crate::sync::LastSync;
use crate::workload_api::{self, MAX_REQUEST};

/// What the admin APIs need.
pub struct AdminApi {
    pub cache: Cache,
    /// Finds out what the callers and those they speak for are.
    pub attestation: WorkloadAttestation,
    /// Who may ask for identities of others.
    pub authorized_delegates: BTreeSet<SpiffeId>,
    /// The agent's own SVID and bundle.
    pub identity: Identity,
    pub last_sync: LastSync,
    pub log: LogHandle,
    pub metrics: Metrics,
    pub clock: Clock,
}

/// Serves until `shutdown` is cancelled; see [`workload_api::serve`].
pub async fn serve(
    incoming: Incoming,
    api: AdminApi,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (clock, metrics) = (api.clock.clone(), api.metrics.clone());
    let delegated = delegated::Calls::new(&api, shutdown.clone());
    let debug = debug::Debugger::new(&api);
    let logger = logger::Loggers { log: api.log };
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(DelegatedIdentityServer::new(delegated).max_decoding_message_size(MAX_REQUEST))
        .add_service(DebugServer::new(debug).max_decoding_message_size(MAX_REQUEST))
        .add_service(LoggerServer::new(logger).max_decoding_message_size(MAX_REQUEST));
    workload_api::serve_routes(incoming, routes.routes(), metrics, clock, shutdown).await
}
