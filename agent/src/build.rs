//! Puts an agent together. Everything is built before anything runs.

use std::sync::Arc;

use finial_daemon::clock::Clock;
use finial_daemon::dial::Dialer;
use finial_daemon::keys::counted::{Words, counted};
use finial_daemon::keys::{KeyError, KeyManager};
use finial_daemon::listen::Incoming;
use finial_daemon::metrics::Metrics;
use finial_daemon::ready::Gate;
use finial_daemon::run::{Failure, Tasks};
use finial_daemon::telemetry::LogHandle;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admin_api::{self, AdminApi};
use crate::attest::workload::WorkloadAttestation;
use crate::bootstrap::FirstTrust;
use crate::cache::Cache;
use crate::own_svid::Identity;
use crate::own_svid::keep::{KeepError, Keeper};
use crate::settings::Settings;
use crate::storage::{Storage, StorageError};
use crate::sync::LastSync;
use crate::sync::client::Client;
use crate::sync::entries::{Entries, Known};
use crate::sync::jwt_svids::JwtSvids;
use crate::sync::svids::Svids;
use crate::workload_api::{self, Rules, WorkloadApi};

/// The KeyManager's calls.
const KEY_WORDS: Words = Words {
    generate: &["agent_key_manager", "generate_key"],
    get: &["agent_key_manager", "get_key"],
    list: &["agent_key_manager", "get_keys"],
};

/// What an agent gets from whoever starts it.
pub struct Surroundings {
    pub clock: Clock,
    /// Reaches the server.
    pub server: Dialer,
    /// Brings workloads, where there is a public socket.
    pub workloads: Option<Incoming>,
    /// Brings callers of the admin APIs, where there is an admin socket.
    pub admins: Option<Incoming>,
    /// What the Logger API changes.
    pub log: LogHandle,
    /// Keeps the agent's own keys.
    pub keys: Arc<dyn KeyManager>,
    pub metrics: Metrics,
    /// Ends the agent when it is cancelled.
    pub stop: CancellationToken,
}

/// An agent that is put together and does nothing yet.
pub struct Built {
    pub handles: Handles,
    /// Ready when the first entries and bundles have come.
    pub ready: Gate,
    /// Runs the agent until it is stopped.
    pub task: BoxFuture<'static, Result<(), RunError>>,
}

/// What an agent can be asked while it runs.
#[derive(Clone)]
pub struct Handles {
    pub cache: Cache,
    pub identity: Identity,
}

/// Why an agent can't be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Why an agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Task(#[from] Failure),
}

/// Builds an agent from its settings.
pub async fn build(settings: Settings, around: Surroundings) -> Result<Built, BuildError> {
    let data_dir = settings.data_dir.clone();
    let storage = tokio::task::spawn_blocking(move || Storage::open(&data_dir))
        .await
        .map_err(|_| StorageError::CutOff)??;

    let (clock, metrics) = (around.clock, around.metrics);
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("trust_domain_id", settings.trust_domain.name())];
    metrics.gauge_with(&["started"], 1.0, &labels);
    let first_trust = FirstTrust::new(&settings, storage.clone(), clock.clone());
    let identity = Identity::new(settings.trust_domain.clone(), clock.clone())
        .require_pq_kem(settings.experimental.require_pq_kem);
    let client = Client::new(around.server, identity.clone(), clock.clone());
    let cache = Cache::new(settings.cache.clone(), clock.clone(), metrics.clone());
    let ready = Gate::new();
    let first_sync = ready.hold("the first entries and bundles from the server");
    let (tell, news) = mpsc::channel(1);
    let last_sync = LastSync::new(clock.clone());
    let attestation = WorkloadAttestation::new(settings.workload_attestors, metrics.clone());

    let keeper = Keeper {
        identity: identity.clone(),
        client: client.clone(),
        storage: storage.clone(),
        keys: counted(around.keys, metrics.clone(), KEY_WORDS),
        metrics: metrics.clone(),
        attestor: settings.node_attestor,
        clock: clock.clone(),
        first_trust: first_trust.clone(),
        rebootstrap: settings.rebootstrap,
        last_sync: last_sync.clone(),
        news,
    };
    let entries = Entries {
        client: client.clone(),
        cache: cache.clone(),
        identity: identity.clone(),
        storage,
        clock: clock.clone(),
        interval: settings.experimental.sync_interval,
        whole_polls: !settings.experimental.use_sync_authorized_entries,
        first_trust,
        news: tell.clone(),
        known: Known::default(),
        last_sync: last_sync.clone(),
        metrics: metrics.clone(),
    };
    let svids = Svids {
        client: client.clone(),
        cache: cache.clone(),
        clock: clock.clone(),
        key_type: settings.workload_key_type,
        metrics: metrics.clone(),
        news: tell.clone(),
    };
    let jwt_svids = JwtSvids { client: client.clone(), cache: cache.clone(), news: tell };
    let api = WorkloadApi {
        cache: cache.clone(),
        attestation: attestation.clone(),
        allow_unauthenticated_verifiers: settings.allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims: Arc::new(settings.allowed_foreign_jwt_claims.into_iter().collect()),
        rules: Rules {
            serves_workloads: !settings.disable_workload_api,
            sds: settings.sds,
            rate_limits: settings.experimental.rate_limits,
            log_selectors: settings.log_selectors,
        },
        ready: ready.clone(),
        metrics: metrics.clone(),
        clock: clock.clone(),
    };
    let admin = AdminApi {
        cache: cache.clone(),
        attestation,
        authorized_delegates: settings.authorized_delegates,
        identity: identity.clone(),
        last_sync,
        log: around.log,
        metrics,
        clock,
    };

    let sockets = Sockets {
        workloads: around.workloads.map(|workloads| (workloads, api)),
        admins: around.admins.map(|admins| (admins, admin)),
    };
    let sync = Synchronised { entries, svids, jwt_svids };
    let handles = Handles { cache, identity };
    let task = run(keeper, sync, sockets, client, first_sync, around.stop);
    Ok(Built { handles, ready, task: Box::pin(task) })
}

/// What goes to and comes from the server.
struct Synchronised {
    entries: Entries,
    svids: Svids,
    jwt_svids: JwtSvids,
}

/// What the agent serves, and to whom.
struct Sockets {
    workloads: Option<(Incoming, WorkloadApi)>,
    admins: Option<(Incoming, AdminApi)>,
}

/// The sockets are served from the start: callers are told to come back until the first sync.
async fn run(
    mut keeper: Keeper,
    sync: Synchronised,
    sockets: Sockets,
    client: Client,
    first_sync: finial_daemon::ready::Hold,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let tasks = Tasks::new();
    let stopping = tasks.stop_token();
    if let Some((workloads, api)) = sockets.workloads {
        tasks.spawn_critical("workload_api", workload_api::serve(workloads, api, stopping.clone()));
    }
    if let Some((admins, api)) = sockets.admins {
        tasks.spawn_critical("admin_api", admin_api::serve(admins, api, stopping.clone()));
    }
    tokio::select! {
        () = stop.cancelled() => return Ok(tasks.shutdown().await?),
        () = stopping.cancelled() => return Ok(tasks.shutdown().await?),
        started = keeper.start() => if let Err(error) = started {
            tasks.shutdown().await?;
            return Err(error.into());
        },
    }
    tasks.spawn("entries", sync.entries.run(first_sync, stopping.clone()));
    tasks.spawn("svids", sync.svids.run(stopping.clone()));
    tasks.spawn("jwt_svids", sync.jwt_svids.run(stopping.clone()));
    tasks.spawn("status", async move {
        if let Err(error) = client.post_status(concat!("finial-agent ", env!("CARGO_PKG_VERSION"))).await {
            tracing::debug!(%error, "The server did not take the agent's version");
        }
    });
    tasks.spawn_critical("own_svid", keeper.run(stopping));
    tasks.run_until(stop.cancelled()).await?;
    Ok(())
}
