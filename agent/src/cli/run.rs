//! `run` and `validate`: the program around the agent.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;

use finial_daemon::argv::text::{self, FlagError};
use finial_daemon::clock::Clock;
use finial_daemon::data_dir::{DataDir, DataDirError, restrict_umask};
use finial_daemon::dial::Dialer;
use finial_daemon::keys::KeyError;
use finial_daemon::listen::{self, SocketMode};
use finial_daemon::memory::share_heaps;
use finial_daemon::run::{raise_open_files, signals};
use finial_daemon::settings::{SettingsError, load};
use finial_daemon::telemetry::{self, LogHandle, TelemetryError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::print;
use crate::build::{BuildError, Built, RunError, Surroundings, build};
use crate::settings::{DEFAULT_CONFIG_PATH, Overrides, RefusedSettings, Settings};

/// The Workload API is for every process of the node.
const PUBLIC_SOCKET: SocketMode = SocketMode { socket: 0o777, dir: 0o755 };
const PROGRAM: &str = "finial-agent";

const HELP: &str = "\
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

/// The flags of `run` and `validate`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = HELP)]
pub struct Flags {
    /// The configuration file, HCL or JSON
    #[arg(long = "config", default_value = DEFAULT_CONFIG_PATH)]
    config: String,
    /// Replace $NAME and ${NAME} in the file by environment variables before it is read
    #[arg(long = "expandEnv")]
    expand_env: bool,
    /// The directory for what the agent must keep: its SVID and the bundle
    #[arg(long = "dataDir")]
    data_dir: Option<String>,
    /// The token with which this node attests for the first time; see "finial-server token generate"
    #[arg(long = "joinToken")]
    join_token: Option<String>,
    /// A file that holds the join token
    #[arg(long = "joinTokenFile")]
    join_token_file: Option<String>,
    /// Where to write the log; standard output without it
    #[arg(long = "logFile")]
    log_file: Option<String>,
    /// The form of the log: text or json
    #[arg(long = "logFormat")]
    log_format: Option<String>,
    /// The least important lines to log: error, warn, info, debug or trace
    #[arg(long = "logLevel")]
    log_level: Option<String>,
    /// Add the place in the source to each log line
    #[arg(long = "logSourceLocation")]
    log_source_location: bool,
    /// The server's DNS name or address
    #[arg(long = "serverAddress")]
    server_address: Option<String>,
    /// The server's port
    #[arg(long = "serverPort", value_name = "int", value_parser = port)]
    server_port: Option<u16>,
    /// Where to serve the Workload API
    #[arg(long = "socketPath")]
    socket_path: Option<String>,
    /// The trust domain of this node, for example example.org
    #[arg(long = "trustDomain")]
    trust_domain: Option<String>,
    /// A file with the bundle by which the server is believed at the first start
    #[arg(long = "trustBundle")]
    trust_bundle: Option<String>,
    /// An https URL of that bundle
    #[arg(long = "trustBundleUrl")]
    trust_bundle_url: Option<String>,
    /// The form of that bundle: pem or spiffe
    #[arg(long = "trustBundleFormat")]
    trust_bundle_format: Option<String>,
    /// Believe whichever server answers at the first start. For trials only
    #[arg(long = "insecureBootstrap")]
    insecure_bootstrap: bool,
    /// Give bundles to processes without an identity too
    #[arg(long = "allowUnauthenticatedVerifiers")]
    allow_unauthenticated_verifiers: bool,
    /// What to do when the server is no longer believed. Only "never" is built
    #[arg(long = "rebootstrapMode")]
    rebootstrap_mode: Option<String>,
    /// How long to wait before that. Not built
    #[arg(long = "rebootstrapDelay")]
    rebootstrap_delay: Option<String>,
    /// Serve no Workload API. Not built: there is nothing else to serve yet
    #[arg(long = "disableWorkloadAPI")]
    disable_workload_api: bool,
    /// Serve no Envoy SDS API. It is not served anyway
    #[arg(long = "disableSDSAPI")]
    disable_sds_api: bool,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("could not find config file {}: please use the -config flag", .0.display())]
    NoFile(PathBuf),
    #[error("the flag -{0} is refused: {1}")]
    FlagNotBuilt(&'static str, &'static str),
    #[error(transparent)]
    File(#[from] SettingsError),
    #[error(transparent)]
    Settings(#[from] RefusedSettings),
}

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
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs the agent until a signal ends it. Exit code 0 after SIGINT or SIGTERM, 1 after anything else.
pub fn run(flags: &Flags) -> ExitCode {
    let settings = match flags.load() {
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
    match flags.load() {
        Ok(_) => {
            print("SPIRE agent configuration file is valid.\n");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("SPIRE agent configuration file is invalid: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Flags {
    fn load(&self) -> Result<Settings, LoadError> {
        self.refuse_unbuilt()?;
        let path = match self.config.as_str() {
            "" => Path::new(DEFAULT_CONFIG_PATH),
            path => Path::new(path),
        };
        if !path.exists() {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            return Err(LoadError::NoFile(text::clean(&absolute)));
        }
        Ok(Settings::read(&load(path, self.expand_env)?, &self.overrides())?)
    }

    fn refuse_unbuilt(&self) -> Result<(), LoadError> {
        let rebootstraps = self.rebootstrap_mode.as_deref().is_some_and(|mode| !matches!(mode, "" | "never"));
        let delays = self.rebootstrap_delay.as_deref().is_some_and(|delay| !delay.is_empty());
        let not_rebootstrapped = "rebootstrapping is not built yet; leave it out";
        for (flag, given, reason) in [
            ("rebootstrapMode", rebootstraps, not_rebootstrapped),
            ("rebootstrapDelay", delays, not_rebootstrapped),
            (
                "disableWorkloadAPI",
                self.disable_workload_api,
                "an agent without the Workload API has nothing to serve until the broker is built",
            ),
        ] {
            if given {
                return Err(LoadError::FlagNotBuilt(flag, reason));
            }
        }
        Ok(())
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            data_dir: self.data_dir.clone(),
            join_token: self.join_token.clone(),
            join_token_file: self.join_token_file.clone(),
            log_file: self.log_file.clone(),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
            log_source_location: self.log_source_location,
            server_address: self.server_address.clone(),
            server_port: self.server_port,
            trust_domain: self.trust_domain.clone(),
            trust_bundle: self.trust_bundle.clone(),
            trust_bundle_url: self.trust_bundle_url.clone(),
            trust_bundle_format: self.trust_bundle_format.clone(),
            allow_unauthenticated_verifiers: self.allow_unauthenticated_verifiers,
            insecure_bootstrap: self.insecure_bootstrap,
            socket_path: self.socket_path.clone(),
        }
    }
}

async fn serve(settings: Settings, clock: Clock, log: LogHandle) -> Result<(), ProgramError> {
    let asked_to_stop = signals().map_err(ProgramError::Signals)?;
    let mut asked_to_stop = pin!(asked_to_stop);
    let log_signals = tokio::spawn(telemetry::follow_signals(log).map_err(ProgramError::Signals)?);
    let _end_with_this = AbortOnDropHandle::new(log_signals);

    let _held = DataDir::take(&settings.data_dir, PROGRAM)?;
    let stop = CancellationToken::new();
    let mut built = tokio::select! {
        built = start(settings, clock, stop.clone()) => built?,
        _ = &mut asked_to_stop => return Ok(()),
    };
    tokio::select! {
        ended = &mut built.task => return Ok(ended?),
        _ = asked_to_stop => stop.cancel(),
    }
    Ok(built.task.await?)
}

/// Opens the keys and the socket, and builds the agent.
async fn start(settings: Settings, clock: Clock, stop: CancellationToken) -> Result<Built, ProgramError> {
    tracing::info!(
        data_dir = %settings.data_dir.display(),
        trust_domain_id = %settings.trust_domain.id(),
        version = env!("CARGO_PKG_VERSION"),
        "Starting agent"
    );
    let keys = settings.key_manager.open().await?;
    let path = settings.socket_path.clone();
    let workloads = listen::unix(&path, PUBLIC_SOCKET);
    let workloads = workloads.map_err(|source| ProgramError::Listen { path: path.clone(), source })?;
    let server = Dialer::tcp(settings.server_address.clone(), settings.server_port);
    let built = build(settings, Surroundings { clock, server, workloads, keys, stop }).await?;
    let address = path.display();
    tracing::info!(%address, network = "unix", subsystem_name = "endpoints", "Starting agent APIs");
    Ok(built)
}

fn port(given: &str) -> Result<u16, FlagError> {
    u16::try_from(text::integer(given)?).map_err(|_| FlagError::OutOfRange)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        agent {
            trust_domain = "example.org"
            server_address = "file.example"
            server_port = 8081
            data_dir = "DIR"
            insecure_bootstrap = true
        }
        plugins {
            NodeAttestor "join_token" { plugin_data {} }
            KeyManager "memory" { plugin_data {} }
            WorkloadAttestor "unix" { plugin_data {} }
        }"#;

    fn flags_for(dir: &Path) -> Flags {
        let config = dir.join("agent.conf");
        std::fs::write(&config, FILE.replace("DIR", &dir.display().to_string())).unwrap();
        Flags { config: config.display().to_string(), ..Flags::default() }
    }

    #[test]
    fn flags_go_before_the_file() {
        // Keys that a flag overrides are in the file too, and must not be unknown there for that.
        let dir = tempfile::tempdir().unwrap();
        let settings = flags_for(dir.path()).load().unwrap();
        assert_eq!((settings.server_address.as_str(), settings.server_port), ("file.example", 8081));

        let flags = Flags {
            server_address: Some("flag.example".into()),
            server_port: Some(9000),
            socket_path: Some("/run/x.sock".into()),
            trust_domain: Some("flag.org".into()),
            data_dir: Some(String::new()),
            insecure_bootstrap: true,
            disable_sds_api: true,
            rebootstrap_mode: Some("never".into()),
            ..flags_for(dir.path())
        };
        let settings = flags.load().unwrap();
        assert_eq!((settings.server_address.as_str(), settings.server_port), ("flag.example", 9000));
        assert_eq!(settings.socket_path, Path::new("/run/x.sock"));
        assert_eq!(settings.trust_domain.name(), "flag.org");
        assert_eq!(settings.data_dir, dir.path(), "an empty flag counts as not given");
    }

    #[test]
    fn the_environment_is_expanded_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut flags = flags_for(dir.path());
        let text = FILE.replace("file.example", "a${FINIAL_NOT_SET}b").replace("DIR", "/d");
        std::fs::write(&flags.config, text).unwrap();
        assert_eq!(flags.load().unwrap().server_address, "a${FINIAL_NOT_SET}b");
        flags.expand_env = true;
        assert_eq!(flags.load().unwrap().server_address, "ab");
    }

    #[test]
    fn a_missing_file_is_told_in_spires_words() {
        let flags = Flags { config: "/nonexist/../nonexist".into(), ..Flags::default() };
        assert_eq!(
            flags.load().err().unwrap().to_string(),
            "could not find config file /nonexist: please use the -config flag"
        );
    }

    #[test]
    fn flags_that_are_not_built_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let given = || flags_for(dir.path());
        for (flags, name) in [
            (Flags { rebootstrap_mode: Some("auto".into()), ..given() }, "-rebootstrapMode"),
            (Flags { rebootstrap_delay: Some("10m".into()), ..given() }, "-rebootstrapDelay"),
            (Flags { disable_workload_api: true, ..given() }, "-disableWorkloadAPI"),
        ] {
            let error = flags.load().err().unwrap().to_string();
            assert!(error.starts_with(&format!("the flag {name} is refused: ")), "{error}");
        }
    }

    #[test]
    fn ports_are_ports() {
        assert_eq!(port("8081"), Ok(8081));
        assert_eq!(port("foo"), Err(FlagError::Malformed));
        assert_eq!(port("65536"), Err(FlagError::OutOfRange));
    }
}
