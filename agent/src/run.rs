//! `run` and `validate`: the program around the agent.

use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use finial_daemon::clock::Clock;
use finial_daemon::data_dir::{DataDir, DataDirError, restrict_umask};
use finial_daemon::dial::Dialer;
use finial_daemon::health;
use finial_daemon::keys::{KeyError, rustls_key};
use finial_daemon::listen::{self, SocketMode};
use finial_daemon::memory::share_heaps;
use finial_daemon::metrics::{Metrics, MetricsError, Program, SpiffeTls};
use finial_daemon::run::{raise_open_files, signals};
use finial_daemon::settings::Notice;
use finial_daemon::telemetry::{self, LogHandle, TelemetryError};
use finial_identity::bundle::Bundle;
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::build::{BuildError, Built, Handles, RunError, Surroundings, build};
use crate::own_svid::Trust;
use crate::settings::{Flags, Settings};
use crate::workload_api::check::check;

/// The Workload API is for every process of the node.
const PUBLIC_SOCKET: SocketMode = SocketMode { socket: 0o777, dir: 0o755 };
/// The admin APIs are for the agent's own user and group.
const ADMIN_SOCKET: SocketMode = SocketMode { socket: 0o770, dir: 0o755 };
const PROGRAM: &str = "finial-agent";
/// What names of metrics begin with, unless `MetricPrefix` says otherwise.
const METRICS_PREFIX: &str = "spire_agent";

/// The command line's help on `run` and `validate`.
pub const HELP: &str = "\
Flags go before what the file says. A flag that is empty, 0 or false counts as not given.
SIGTERM and SIGINT stop the agent (exit code 0); SIGUSR2 opens the log file anew.

Examples:
    finial-agent run -config /etc/finial/agent.conf
    finial-agent run -config agent.conf -joinToken \"$(cat token)\" -logLevel debug
    finial-agent validate -config agent.conf

A configuration that starts an agent on one node:
    agent {
        trust_domain   = \"example.org\"
        server_address = \"spire-server\"
        server_port    = 8081
        data_dir       = \"/var/lib/finial-agent\"
        trust_bundle_path = \"/etc/finial/bootstrap.pem\"
    }
    plugins {
        NodeAttestor \"join_token\" { plugin_data {} }
        KeyManager \"disk\" { plugin_data { directory = \"/var/lib/finial-agent\" } }
        WorkloadAttestor \"unix\" { plugin_data {} }
    }";

/// Why the program ended with an error. Each says what to do.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("cannot start the runtime: {0}; look for limits on threads and open files")]
    Runtime(io::Error),
    #[error("cannot wait for signals: {0}; look for limits on open files")]
    Signals(io::Error),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("cannot open the KeyManager: {0}")]
    Keys(#[from] KeyError),
    #[error("cannot listen on {}: {source}; check socket_path and whether another agent runs", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot listen on {}: {source}; check admin_socket_path and whether another agent runs", path.display())]
    ListenAdmin { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs the agent until a signal ends it. Exit code 0 after SIGINT or SIGTERM, 1 after anything else.
pub fn run(flags: &Flags) -> ExitCode {
    let settings = match Settings::load(flags) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let clock = Clock::wall();
    let logs_to_file = settings.telemetry.file.is_some();
    let log = match telemetry::start(settings.telemetry.clone(), &clock) {
        Ok(log) => log,
        Err(error @ TelemetryError::Open { .. }) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("error: could not start logger: {error}");
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
            tracing::info!("Agent stopped gracefully");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "Agent crashed");
            if logs_to_file {
                eprintln!("error: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Says whether `run` would accept the configuration. Starts nothing and changes no file.
pub fn validate(flags: &Flags) -> ExitCode {
    match Settings::load(flags) {
        Ok(_) => {
            // That nobody reads it is no fault.
            let _ = writeln!(io::stdout(), "SPIRE agent configuration file is valid.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("SPIRE agent configuration file is invalid: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Settings, clock: Clock, log: LogHandle) -> Result<(), ProgramError> {
    let asked_to_stop = signals().map_err(ProgramError::Signals)?;
    let mut asked_to_stop = pin!(asked_to_stop);
    let counted = Program { prefix: METRICS_PREFIX, trust_domain: settings.trust_domain.name().to_owned() };
    let (metrics, sinks) = Metrics::new(&settings.metrics, &counted, clock.clone());
    let signals = telemetry::follow_signals(log.clone(), sinks.recent.clone());
    let _end_with_this = AbortOnDropHandle::new(tokio::spawn(signals.map_err(ProgramError::Signals)?));

    let _held = DataDir::take(&settings.data_dir, PROGRAM)?;
    let stop = CancellationToken::new();
    let (health, socket) = (settings.health.clone(), settings.socket_path.clone());
    let require_pq_kem = settings.experimental.require_pq_kem;
    let mut built = tokio::select! {
        built = start(settings, clock.clone(), log, metrics, stop.clone()) => built?,
        _ = &mut asked_to_stop => return Ok(()),
    };
    let tell = sinks.open(own_tls(&built.handles), require_pq_kem, stop.clone()).await?;
    let look = health::run(health, vec![check(socket, &built.ready, &clock)], clock, stop.clone());
    let _end_with_this = AbortOnDropHandle::new(tokio::spawn(async move { tokio::join!(tell, look) }));
    tokio::select! {
        ended = &mut built.task => return Ok(ended?),
        _ = asked_to_stop => stop.cancel(),
    }
    Ok(built.task.await?)
}

/// Opens the keys and the socket, and builds the agent.
async fn start(
    settings: Settings,
    clock: Clock,
    log: LogHandle,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Built, ProgramError> {
    tracing::info!(
        data_dir = %settings.data_dir.display(),
        trust_domain_id = %settings.trust_domain.id(),
        version = env!("CARGO_PKG_VERSION"),
        "Starting agent"
    );
    let keys = settings.key_manager.open().await?;
    settings.warnings.iter().for_each(Notice::log);
    let socket_path = settings.socket_path.clone();
    let workloads = match &socket_path {
        Some(path) => {
            let workloads = listen::unix(path, PUBLIC_SOCKET);
            Some(workloads.map_err(|source| ProgramError::Listen { path: path.clone(), source })?)
        }
        None => None,
    };
    let admins = match &settings.admin_socket_path {
        Some(path) => {
            let admins = listen::unix(path, ADMIN_SOCKET);
            let admins = admins.map_err(|source| ProgramError::ListenAdmin { path: path.clone(), source })?;
            tracing::info!(address = %path.display(), network = "unix", "Starting Admin APIs");
            Some(admins)
        }
        None => None,
    };
    let server = Dialer::tcp(settings.server_address.clone(), settings.server_port);
    let apis = match (settings.disable_workload_api, settings.sds.is_some()) {
        (false, true) => "Workload and SDS APIs",
        (true, true) => "SDS API",
        (false, false) => "Workload API",
        (true, false) => "no APIs",
    };
    let built =
        build(settings, Surroundings { clock, server, workloads, admins, log, keys, metrics, stop }).await?;
    match socket_path {
        Some(path) => {
            let address = path.display();
            tracing::info!(%address, network = "unix", apis, subsystem_name = "endpoints", "Starting agent APIs");
        }
        None => tracing::info!(
            apis = "Workload and SDS APIs",
            "Skipping agent APIs because public endpoint is disabled"
        ),
    }
    Ok(built)
}

/// Prometheus over TLS: the agent's SVID, and whom its bundles let it believe.
fn own_tls(handles: &Handles) -> SpiffeTls {
    let (identity, shown) = (handles.identity.clone(), handles.identity.clone());
    let bundles = handles.cache.bundles();
    SpiffeTls {
        svid: Arc::new(move || {
            let own = shown.own()?;
            Some(Arc::new(CertifiedKey::new(own.svid.chain().to_vec(), rustls_key(&own.key))))
        }),
        authorities: Arc::new(move |trust_domain| {
            let of = |bundle: &Bundle| {
                bundle.x509_authorities.iter().map(|authority| authority.der.clone()).collect()
            };
            match identity.trust() {
                Trust::Bundle(own) if own.trust_domain == *trust_domain => return of(&own),
                _ => {}
            }
            let bundles = bundles.borrow();
            let foreign = bundles.iter().find(|bundle| bundle.source.trust_domain == *trust_domain);
            foreign.map(|bundle| of(&bundle.source)).unwrap_or_default()
        }),
    }
}
