//! `run` and `validate`: the program around the server.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use finial_daemon::clock::Clock;
use finial_daemon::data_dir::{DataDir, DataDirError, restrict_umask};
use finial_daemon::health;
use finial_daemon::listen::{self, SocketMode};
use finial_daemon::memory::share_heaps;
use finial_daemon::metrics::{Metrics, MetricsError, Program, SpiffeTls};
use finial_daemon::run::{raise_open_files, signals};
use finial_daemon::settings::{Notice, SettingsError, plugins};
use finial_daemon::telemetry::{self, LogHandle, TelemetryError};
use tokio_util::task::AbortOnDropHandle;

use crate::build::checks::checks;
use crate::build::{BuildError, Built, Handles, RunError, Surroundings, build};
use crate::plugins::key_manager::{self, KeyManagerError};
use crate::plugins::node_attestor::{Host, NodeAttestors};
use crate::plugins::upstream_authority;
use crate::settings::{Flags, Settings};
use crate::store::{OpenSettings, Store, StoreError};

/// The admin socket: for its owner and group.
const ADMIN_SOCKET: SocketMode = SocketMode { socket: 0o770, dir: 0o750 };
const PROGRAM: &str = "finial-server";
/// What names of metrics begin with, unless `MetricPrefix` says otherwise.
const METRICS_PREFIX: &str = "spire_server";

/// Why the program ended with an error. Each says what to do.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("cannot start the runtime: {0}; look for limits on threads and open files")]
    Runtime(io::Error),
    #[error("{0}")]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("could not resolve bind address \"{address}:{port}\": {source}; check bind_address")]
    Resolve { address: String, port: u16, source: io::Error },
    /// The listeners' errors name the address and the next step.
    #[error("{0}")]
    Listen(io::Error),
    #[error("cannot wait for signals: {0}; look for limits on open files")]
    Signals(io::Error),
    #[error("{0}")]
    Metrics(#[from] MetricsError),
    #[error("{0}")]
    Build(#[from] BuildError),
    #[error("{0}")]
    Run(#[from] RunError),
}

/// Why `validate` finds a configuration wrong.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Settings(#[from] SettingsError),
    #[error("{0}")]
    KeyManager(#[from] KeyManagerError),
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Runs the server until a signal ends it. Exit code 0 after SIGINT or SIGTERM, 1 after anything else.
pub fn run(flags: &Flags) -> ExitCode {
    let settings = match Settings::load(flags) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let clock = Clock::wall();
    let log = match telemetry::start(settings.log.clone(), &clock) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("could not start logger: {error}");
            return ExitCode::FAILURE;
        }
    };
    restrict_umask();
    share_heaps();
    raise_open_files();
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ProgramError::Runtime)
        .and_then(|runtime| runtime.block_on(serve(settings, clock, log)));
    match served {
        Ok(()) => {
            tracing::info!("Server stopped gracefully");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "Server crashed");
            ExitCode::FAILURE
        }
    }
}

/// Says whether `run` would accept the configuration. Starts nothing and changes no file.
pub fn validate(flags: &Flags) -> ExitCode {
    let invalid = |error: &dyn std::fmt::Display| {
        eprintln!("SPIRE server configuration file is invalid: {error}");
        ExitCode::FAILURE
    };
    let settings = match Settings::load(flags) {
        Ok(settings) => settings,
        Err(error) => return invalid(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return invalid(&ProgramError::Runtime(error)),
    };
    if let Err(error) = runtime.block_on(resolve(&settings.bind_address, settings.bind_port)) {
        return invalid(&error);
    }
    match runtime.block_on(check_plugins(&settings)) {
        Ok(()) => {
            println!("SPIRE server configuration file is valid.");
            ExitCode::SUCCESS
        }
        Err(fault) => invalid(&fault),
    }
}

async fn serve(settings: Settings, clock: Clock, log: LogHandle) -> Result<(), ProgramError> {
    settings.warnings.iter().for_each(Notice::log);
    let asked_to_stop = signals().map_err(ProgramError::Signals)?;
    let mut asked_to_stop = pin!(asked_to_stop);
    let counted = Program { prefix: METRICS_PREFIX, trust_domain: settings.trust_domain.name().to_owned() };
    let (metrics, sinks) = Metrics::new(&settings.metrics, &counted, clock.clone());
    let signals = telemetry::follow_signals(log.clone(), sinks.recent.clone());
    let _end_with_this = AbortOnDropHandle::new(tokio::spawn(signals.map_err(ProgramError::Signals)?));

    let _held = DataDir::take(&settings.data_dir, PROGRAM)?;
    let (health, socket) = (settings.health.clone(), settings.socket_path.clone());
    let require_pq_kem = settings.require_pq_kem;
    let mut built = tokio::select! {
        built = start(settings, clock.clone(), log, metrics) => built?,
        _ = &mut asked_to_stop => return Ok(()),
    };
    let stop = built.handles.stop.clone();
    let tell = sinks.open(own_tls(&built.handles), require_pq_kem, stop.clone()).await?;
    let look = health::run(health, checks(&built.handles, &socket, &clock), clock, stop);
    let _end_with_this = AbortOnDropHandle::new(tokio::spawn(async move { tokio::join!(tell, look) }));
    tokio::select! {
        ended = &mut built.task => return Ok(ended?),
        _ = asked_to_stop => built.handles.stop.cancel(),
    }
    Ok(built.task.await?)
}

/// Opens the listeners and builds the server.
async fn start(
    settings: Settings,
    clock: Clock,
    log: LogHandle,
    metrics: Metrics,
) -> Result<Built, ProgramError> {
    tracing::info!(
        data_dir = %settings.data_dir.display(),
        trust_domain_id = %settings.trust_domain.id(),
        admin_ids = ?settings.admin_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        launch_log_level = %settings.log.level,
        version = env!("CARGO_PKG_VERSION"),
        "Configured"
    );
    let address = resolve(&settings.bind_address, settings.bind_port).await?;
    let listener = listen::bind_tcp(address).await.map_err(ProgramError::Listen)?;
    let socket_path = settings.socket_path.clone();
    let admin = listen::unix_by_permission(&socket_path, ADMIN_SOCKET).map_err(ProgramError::Listen)?;
    let api = match settings.proxies.clone() {
        trusted if trusted.is_empty() => listen::tcp(listener),
        trusted => {
            let trusted_cidrs: Vec<String> = trusted.iter().map(ToString::to_string).collect();
            tracing::info!(trusted_cidrs = trusted_cidrs.join(","), "PROXY protocol enabled on TCP listener");
            listen::proxied(listen::tcp(listener), trusted, clock.clone())
        }
    };
    let around = Surroundings { clock, api, admin, log, metrics };
    let stanzas: Vec<_> = settings.plugins.stanzas.clone();
    let built = build(settings, around).await?;
    plugins::log_loaded(&stanzas);
    let subsystem_name = "endpoints";
    tracing::info!(%address, network = "tcp", subsystem_name, "Starting Server APIs");
    let address = socket_path.display();
    tracing::info!(%address, network = "unix", subsystem_name, "Starting Server APIs");
    Ok(built)
}

/// Prometheus over TLS: the server's SVID, and whom it believes.
fn own_tls(handles: &Handles) -> SpiffeTls {
    let server_svid = handles.server_svid.clone();
    let (own, federated) = (handles.own_bundle.clone(), handles.federated.subscribe());
    SpiffeTls {
        svid: Arc::new(move || Some(Arc::clone(&server_svid.borrow().certified))),
        authorities: Arc::new(move |trust_domain| {
            let own = own.current();
            let bundle = if own.trust_domain == *trust_domain {
                Some(own)
            } else {
                federated.borrow().get(trust_domain).cloned()
            };
            let authorities = bundle.iter().flat_map(|bundle| &bundle.x509_authorities);
            authorities.map(|authority| authority.der.clone()).collect()
        }),
    }
}

async fn resolve(address: &str, port: u16) -> Result<SocketAddr, ProgramError> {
    let failed = |source| ProgramError::Resolve { address: address.to_owned(), port, source };
    let host = address.trim_matches(['[', ']']);
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(failed)?;
    found.next().ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))
}

async fn check_plugins(settings: &Settings) -> Result<(), Fault> {
    let stanzas = &settings.plugins.stanzas;
    let trust_domain = settings.trust_domain.clone();
    let clock = Clock::wall();
    key_manager::choose(stanzas)?;
    let core = upstream_authority::Core { trust_domain: trust_domain.clone(), clock: clock.clone() };
    upstream_authority::build(stanzas, core)?;
    // Attestors are made with a store; an empty one will do.
    let store = Store::open(OpenSettings::new(":memory:", trust_domain.clone(), clock.clone())).await?;
    NodeAttestors::configure(stanzas, &Host { trust_domain, store, clock })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_may_be_names_or_bracketed() {
        assert_eq!(resolve("[::1]", 8081).await.unwrap().to_string(), "[::1]:8081");
        assert!(resolve("localhost", 1).await.unwrap().ip().is_loopback());
    }
}
