//! `run` and `validate`: the program around the server.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;

use finial_daemon::clock::Clock;
use finial_daemon::listen::{self, SocketMode};
use finial_daemon::run::signals;
use finial_daemon::settings::SettingsError;
use finial_daemon::telemetry::{self, LogHandle, TelemetryError};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use crate::build::{BuildError, Built, RunError, Surroundings, build};
use crate::plugins::key_manager::{self, KeyManagerError};
use crate::plugins::node_attestor::{Host, NodeAttestors};
use crate::plugins::upstream_authority;
use crate::settings::{Flags, Settings};
use crate::store::{OpenSettings, Store, StoreError};

/// The admin socket: for its owner and group.
const ADMIN_SOCKET: SocketMode = SocketMode { socket: 0o770, dir: 0o750 };
/// Files that the server makes are at most readable for the group.
const UMASK: u32 = 0o027;
const LOCK_FILE: &str = "finial-server.lock";

/// Why the program ended with an error. Each says what to do.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("{0}")]
    Telemetry(#[from] TelemetryError),
    #[error("cannot use data_dir {}: {source}; create it, or give the server's user the right to write there",
        path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error(
        "data_dir {} is in use by another finial-server ({holder}); stop it, or give this server a data_dir of its own",
        path.display()
    )]
    InUse { path: PathBuf, holder: String },
    #[error("could not resolve bind address \"{address}:{port}\": {source}")]
    Resolve { address: String, port: u16, source: io::Error },
    /// The listeners' errors name the address and the next step.
    #[error("{0}")]
    Listen(io::Error),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
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
    set_umask();
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
    match runtime.block_on(check_plugins(&settings)) {
        Ok(()) => {
            println!("SPIRE server configuration file is valid.");
            ExitCode::SUCCESS
        }
        Err(fault) => invalid(&fault),
    }
}

async fn serve(settings: Settings, clock: Clock, log: LogHandle) -> Result<(), ProgramError> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let asked_to_stop = signals().map_err(ProgramError::Signals)?;
    let mut asked_to_stop = pin!(asked_to_stop);
    let log_signals = tokio::spawn(log_signals(log.clone()).map_err(ProgramError::Signals)?);
    let _end_with_this = AbortOnDropHandle::new(log_signals);

    let _lock = DataDirLock::take(&settings.data_dir)?;
    let mut built = tokio::select! {
        built = start(settings, clock, log) => built?,
        _ = &mut asked_to_stop => return Ok(()),
    };
    tokio::select! {
        ended = &mut built.task => return Ok(ended?),
        _ = asked_to_stop => built.handles.stop.cancel(),
    }
    Ok(built.task.await?)
}

/// Opens the listeners and builds the server.
async fn start(settings: Settings, clock: Clock, log: LogHandle) -> Result<Built, ProgramError> {
    tracing::info!(
        data_dir = %settings.data_dir.display(),
        trust_domain_id = %settings.trust_domain.id(),
        version = env!("CARGO_PKG_VERSION"),
        "Configured"
    );
    let address = resolve(&settings.bind_address, settings.bind_port).await?;
    let listener = listen::bind_tcp(address).await.map_err(ProgramError::Listen)?;
    let socket_path = settings.socket_path.clone();
    let admin = listen::unix_by_permission(&socket_path, ADMIN_SOCKET).map_err(ProgramError::Listen)?;
    let around = Surroundings { clock, api: listen::tcp(listener), admin, log };
    let built = build(settings, around).await?;
    let subsystem_name = "endpoints";
    tracing::info!(%address, network = "tcp", subsystem_name, "Starting Server APIs");
    let address = socket_path.display();
    tracing::info!(%address, network = "unix", subsystem_name, "Starting Server APIs");
    Ok(built)
}

async fn resolve(address: &str, port: u16) -> Result<SocketAddr, ProgramError> {
    let failed = |source| ProgramError::Resolve { address: address.to_owned(), port, source };
    let host = address.trim_matches(['[', ']']);
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(failed)?;
    found.next().ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))
}

/// SIGUSR2 opens the log file anew. SIGUSR1, which would end a program that does not expect it, is only noted.
fn log_signals(log: LogHandle) -> io::Result<impl Future<Output = ()>> {
    let mut reopen = signal(SignalKind::user_defined2())?;
    let mut reconfigure = signal(SignalKind::user_defined1())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = reopen.recv() => match log.reopen() {
                    Ok(()) => tracing::info!("Reopened log file"),
                    Err(error) => tracing::error!(%error, "Failed to reopen log file"),
                },
                _ = reconfigure.recv() => {
                    tracing::warn!("SIGUSR1: reconfiguring plugins is not built yet; restart the server instead");
                }
            }
        }
    })
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

/// Keeps what the operator set, and takes away from others at least what SPIRE does.
fn set_umask() {
    let minimum = Mode::from_bits_truncate(UMASK);
    let before = umask(minimum);
    if !before.contains(minimum) {
        tracing::warn!(
            current_umask = format!("{before:#05o}"),
            new_umask = format!("{:#05o}", before | minimum),
            "Current umask is too permissive; setting umask"
        );
    }
    umask(before | minimum);
}

/// Holds a data_dir for this process, until dropped.
struct DataDirLock {
    _held: Flock<File>,
}

impl DataDirLock {
    /// Makes the directory if it is missing.
    fn take(data_dir: &Path) -> Result<DataDirLock, ProgramError> {
        let failed = |source| ProgramError::DataDir { path: data_dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o750).create(data_dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let file = options.open(data_dir.join(LOCK_FILE)).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                held.set_len(0)
                    .and_then(|()| writeln!(held, "process {}", std::process::id()))
                    .map_err(failed)?;
                Ok(DataDirLock { _held: held })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // Who it is only helps the reader.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "process unknown".to_owned(),
                    holder => holder.to_owned(),
                };
                Err(ProgramError::InUse { path: data_dir.to_owned(), holder })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_dir_has_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let held = DataDirLock::take(&path).unwrap();
        let refused = DataDirLock::take(&path).err().unwrap().to_string();
        let me = format!("in use by another finial-server (process {}); stop it", std::process::id());
        assert!(refused.contains(&me), "{refused}");
        drop(held);
        DataDirLock::take(&path).unwrap();
    }

    #[test]
    fn a_data_dir_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = DataDirLock::take(&dir.path().join("file/x")).err().unwrap().to_string();
        assert!(error.contains("/file/x: ") && error.contains("; create it, or"), "{error}");
    }

    #[tokio::test]
    async fn addresses_may_be_names_or_bracketed() {
        assert_eq!(resolve("[::1]", 8081).await.unwrap().to_string(), "[::1]:8081");
        assert!(resolve("localhost", 1).await.unwrap().ip().is_loopback());
    }
}
