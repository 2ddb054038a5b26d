//! `agent.conf` and the flags of `run`, as typed settings.
//!
//! The keys are SPIRE's, each honoured or refused by name. A flag goes before the file and the file before the default; a
//! value that is empty, 0 or false counts as not given, as in SPIRE.

mod bootstrap;
mod experimental;
mod unbuilt;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::argv::text::{self, FlagError};
use finial_daemon::health::HealthSettings;
use finial_daemon::keys::KeyType;
use finial_daemon::metrics::MetricsSettings;
use finial_daemon::settings::plugins::{PluginStanza, plugin_stanzas};
use finial_daemon::settings::{Block, GoDuration, Notice, Section, SettingsError, load};
use finial_daemon::telemetry::{LogFormat, LogLevel, TelemetrySettings};
use finial_identity::{SpiffeId, TrustDomain, lifetime};

pub use bootstrap::{Bootstrap, BundleFormat, Endpoint};
pub use experimental::Experimental;

use crate::cache::CacheSettings;
use crate::own_svid::keep::{Rebootstrap, RebootstrapMode};
use crate::plugins::key_manager::{self, Choice};
use crate::plugins::node_attestor::{self, Given, JoinToken, NodeAttestor};
use crate::plugins::workload_attestor::{self, WorkloadAttestor};
use crate::workload_api::SdsNames;

/// Where the agent serves workloads unless told otherwise.
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-agent/public/api.sock";
/// Where the command line looks for the admin APIs. The agent serves them only where `admin_socket_path` says.
pub const DEFAULT_ADMIN_SOCKET_PATH: &str = "/tmp/spire-agent/private/admin.sock";
/// `rebootstrap_delay`
const DEFAULT_REBOOTSTRAP_DELAY: Duration = Duration::from_secs(600);
/// What `run` and `validate` read unless told otherwise.
pub const DEFAULT_CONFIG_PATH: &str = "conf/agent/agent.conf";

/// The flags of `run` and `validate`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// The configuration file, HCL or JSON
    #[arg(long = "config", default_value = DEFAULT_CONFIG_PATH)]
    pub config: String,
    /// Replace $NAME and ${NAME} in the file by environment variables before it is read
    #[arg(long = "expandEnv")]
    pub expand_env: bool,
    /// The directory for what the agent must keep: its SVID and the bundle
    #[arg(long = "dataDir")]
    pub data_dir: Option<String>,
    /// The token with which this node attests for the first time; see "finial-server token generate"
    #[arg(long = "joinToken")]
    pub join_token: Option<String>,
    /// A file that holds the join token
    #[arg(long = "joinTokenFile")]
    pub join_token_file: Option<String>,
    /// Where to write the log; standard output without it
    #[arg(long = "logFile")]
    pub log_file: Option<String>,
    /// The form of the log: text or json
    #[arg(long = "logFormat")]
    pub log_format: Option<String>,
    /// The least important lines to log: error, warn, info, debug or trace
    #[arg(long = "logLevel")]
    pub log_level: Option<String>,
    /// Add the place in the source to each log line
    #[arg(long = "logSourceLocation")]
    pub log_source_location: bool,
    /// The server's DNS name or address
    #[arg(long = "serverAddress")]
    pub server_address: Option<String>,
    /// The server's port
    #[arg(long = "serverPort", value_name = "int", value_parser = port)]
    pub server_port: Option<u16>,
    /// Where to serve the Workload API
    #[arg(long = "socketPath")]
    pub socket_path: Option<String>,
    /// The trust domain of this node, for example example.org
    #[arg(long = "trustDomain")]
    pub trust_domain: Option<String>,
    /// A file with the bundle by which the server is believed at the first start
    #[arg(long = "trustBundle")]
    pub trust_bundle: Option<String>,
    /// An https URL of that bundle
    #[arg(long = "trustBundleUrl")]
    pub trust_bundle_url: Option<String>,
    /// The form of that bundle: pem or spiffe
    #[arg(long = "trustBundleFormat")]
    pub trust_bundle_format: Option<String>,
    /// Believe whichever server answers at the first start. For trials only
    #[arg(long = "insecureBootstrap")]
    pub insecure_bootstrap: bool,
    /// Give bundles to processes without an identity too
    #[arg(long = "allowUnauthenticatedVerifiers")]
    pub allow_unauthenticated_verifiers: bool,
    /// What to do when the server is no longer believed: never, auto or always start anew
    #[arg(long = "rebootstrapMode")]
    pub rebootstrap_mode: Option<String>,
    /// How long the server must have been another one before that; 10m without it
    #[arg(long = "rebootstrapDelay")]
    pub rebootstrap_delay: Option<String>,
    /// Serve no Workload API
    #[arg(long = "disableWorkloadAPI")]
    pub disable_workload_api: bool,
    /// Serve no Envoy SDS API
    #[arg(long = "disableSDSAPI")]
    pub disable_sds_api: bool,
}

/// Everything that the agent is built from.
pub struct Settings {
    pub trust_domain: TrustDomain,
    /// DNS name or address.
    pub server_address: String,
    pub server_port: u16,
    pub data_dir: PathBuf,
    /// The public socket; None when both of its APIs are disabled.
    pub socket_path: Option<PathBuf>,
    pub disable_workload_api: bool,
    /// How Envoy's secret discovery is served; None when it is disabled.
    pub sds: Option<SdsNames>,
    /// Where the admin APIs are served, if they are.
    pub admin_socket_path: Option<PathBuf>,
    /// Who may use the Delegated Identity API.
    pub authorized_delegates: BTreeSet<SpiffeId>,
    pub bootstrap: Bootstrap,
    pub key_manager: Choice,
    pub node_attestor: Arc<dyn NodeAttestor>,
    pub workload_attestors: Vec<(String, Arc<dyn WorkloadAttestor>)>,
    pub cache: CacheSettings,
    pub workload_key_type: KeyType,
    pub allow_unauthenticated_verifiers: bool,
    /// Claims of tokens of other trust domains that the Workload API tells beside `sub`, `exp` and `aud`.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// Beginnings of selectors that may be logged.
    pub log_selectors: Vec<String>,
    pub rebootstrap: Rebootstrap,
    pub experimental: Experimental,
    pub telemetry: TelemetrySettings,
    pub metrics: MetricsSettings,
    pub health: HealthSettings,
    /// What the operator should know, for the log.
    pub warnings: Vec<Notice>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum RefusedSettings {
    #[error("could not find config file {}: please use the -config flag", .0.display())]
    NoFile(PathBuf),
    #[error(transparent)]
    File(#[from] SettingsError),
    #[error("the plugins section holds {found} {kind} plugins, and must hold {wanted}")]
    Count { kind: &'static str, found: usize, wanted: &'static str },
    #[error("trust_domain must be configured")]
    NoTrustDomain,
    #[error("join token file is empty: {}; check join_token_file", .0.display())]
    EmptyToken(PathBuf),
    #[error("cannot read the join token from {}: {source}; check join_token_file", path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
}

impl Settings {
    /// Reads the file that the flags name. Blocking.
    pub fn load(flags: &Flags) -> Result<Settings, RefusedSettings> {
        let path = match flags.config.as_str() {
            "" => Path::new(DEFAULT_CONFIG_PATH),
            path => Path::new(path),
        };
        if !path.exists() {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            return Err(RefusedSettings::NoFile(text::clean(&absolute)));
        }
        Settings::read(&load(path, flags.expand_env)?, flags)
    }

    /// Reads the file's top block and the command line. Blocking: token and plugin files are read.
    pub fn read(file: &Block, flags: &Flags) -> Result<Settings, RefusedSettings> {
        let top = Section::new(file);
        let mut warnings = Vec::new();
        let metrics = MetricsSettings::read(&top, &mut warnings);
        let health = HealthSettings::read(&top);
        // Read by plugin_stanzas; asking for it makes it known.
        let _ = top.block("plugins").map(|plugins| plugins.allow_unknown());
        let agent = top.require_block("agent");
        let read = read_agent(&agent, flags);
        top.finish()?;
        let stanzas = plugin_stanzas(file)?;
        let given = Given { join_token: read.join_token()? };
        let settings = read.with_plugins(&stanzas, &given)?;
        warnings.extend(settings.warnings);
        Ok(Settings { metrics, health, warnings, ..settings })
    }
}

/// The `agent` block, without plugins.
struct AgentBlock {
    /// None when a problem with it was noted.
    trust_domain: Option<TrustDomain>,
    server_address: String,
    server_port: u16,
    data_dir: PathBuf,
    socket_path: Option<PathBuf>,
    disable_workload_api: bool,
    sds: Option<SdsNames>,
    admin_socket_path: Option<PathBuf>,
    authorized_delegates: BTreeSet<SpiffeId>,
    bootstrap: Bootstrap,
    join_token: Option<String>,
    join_token_file: Option<PathBuf>,
    cache: CacheSettings,
    workload_key_type: KeyType,
    allow_unauthenticated_verifiers: bool,
    allowed_foreign_jwt_claims: Vec<String>,
    log_selectors: Vec<String>,
    rebootstrap: Rebootstrap,
    experimental: Experimental,
    telemetry: TelemetrySettings,
    warnings: Vec<Notice>,
}

impl AgentBlock {
    fn join_token(&self) -> Result<Option<String>, RefusedSettings> {
        let Some(path) = &self.join_token_file else { return Ok(self.join_token.clone()) };
        match std::fs::read_to_string(path) {
            Ok(token) if token.trim().is_empty() => Err(RefusedSettings::EmptyToken(path.clone())),
            Ok(token) => Ok(Some(token.trim().to_owned())),
            Err(source) => Err(RefusedSettings::TokenFile { path: path.clone(), source }),
        }
    }

    fn with_plugins(self, stanzas: &[PluginStanza], given: &Given) -> Result<Settings, RefusedSettings> {
        let enabled: Vec<&PluginStanza> = stanzas.iter().filter(|stanza| stanza.enabled).collect();
        for stanza in &enabled {
            let PluginStanza { kind, name, .. } = stanza;
            let text = match kind.as_str() {
                "KeyManager" | "NodeAttestor" | "WorkloadAttestor" => continue,
                "SVIDStore" => format!(
                    "{kind} {name:?}: {kind} plugins are not built into this agent yet; remove the block, or set enabled = \
                     false"
                ),
                _ => format!(
                    "plugin kind {kind:?} is unknown; an agent has KeyManager, NodeAttestor and WorkloadAttestor plugins"
                ),
            };
            return Err(SettingsError::at(&stanza.data.file, stanza.at, text).into());
        }
        let of_kind = |kind: &'static str| -> Vec<&PluginStanza> {
            enabled.iter().filter(|stanza| stanza.kind == kind).copied().collect()
        };
        let exactly_one = |kind: &'static str| match of_kind(kind)[..] {
            [one] => Ok(one),
            ref other => Err(RefusedSettings::Count { kind, found: other.len(), wanted: "exactly one" }),
        };
        let key_manager = key_manager::load(exactly_one("KeyManager")?)?;
        let mut node_attestor = node_attestor::load(exactly_one("NodeAttestor")?, given)?;
        if given.join_token.is_some() {
            // As in SPIRE: whoever has a token attests by it, whatever else is configured.
            node_attestor = Arc::new(JoinToken::new(given.join_token.clone()));
        }
        let mut workload_attestors = Vec::new();
        for stanza in of_kind("WorkloadAttestor") {
            workload_attestors.push((stanza.name.clone(), workload_attestor::load(stanza)?));
        }
        if workload_attestors.is_empty() {
            return Err(RefusedSettings::Count {
                kind: "WorkloadAttestor",
                found: 0,
                wanted: "at least one",
            });
        }
        Ok(Settings {
            trust_domain: self.trust_domain.ok_or(RefusedSettings::NoTrustDomain)?,
            server_address: self.server_address,
            server_port: self.server_port,
            data_dir: self.data_dir,
            socket_path: self.socket_path,
            disable_workload_api: self.disable_workload_api,
            sds: self.sds,
            admin_socket_path: self.admin_socket_path,
            authorized_delegates: self.authorized_delegates,
            bootstrap: self.bootstrap,
            key_manager,
            node_attestor,
            workload_attestors,
            cache: self.cache,
            workload_key_type: self.workload_key_type,
            allow_unauthenticated_verifiers: self.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: self.allowed_foreign_jwt_claims,
            log_selectors: self.log_selectors,
            rebootstrap: self.rebootstrap,
            experimental: self.experimental,
            telemetry: self.telemetry,
            metrics: MetricsSettings::default(),
            health: HealthSettings::default(),
            warnings: self.warnings,
        })
    }
}

fn read_agent(agent: &Section, flags: &Flags) -> AgentBlock {
    unbuilt::agent(agent);
    let mut warnings = Vec::new();
    let experimental = experimental::read(agent, &mut warnings);

    // The key is read even when the flag counts: what nobody reads is refused as unknown.
    let text = |flag: &Option<String>, key: &str| {
        let key = agent.string(key);
        flag.clone().filter(|flag| !flag.is_empty()).or(key).filter(|text| !text.is_empty())
    };
    let required = |flag: &Option<String>, key: &str| {
        text(flag, key).unwrap_or_else(|| {
            agent.problem(key, format_args!("{key} must be configured"));
            String::new()
        })
    };
    let trust_domain = required(&flags.trust_domain, "trust_domain");
    let trust_domain = match TrustDomain::parse(&trust_domain) {
        Ok(trust_domain) => Some(trust_domain),
        Err(error) => {
            if !trust_domain.is_empty() {
                agent.problem(
                    "trust_domain",
                    format_args!("trust_domain {trust_domain:?} is not usable: {error}"),
                );
            }
            None
        }
    };
    let server_address = required(&flags.server_address, "server_address");
    let server_port = agent.number("server_port");
    let server_port = flags.server_port.filter(|port| *port != 0).or(server_port);
    let server_port = server_port.filter(|port| *port != 0).unwrap_or_else(|| {
        agent.problem("server_port", "server_port must be configured");
        0
    });
    let data_dir = PathBuf::from(text(&flags.data_dir, "data_dir").unwrap_or_else(|| ".".to_owned()));
    let switch = |flag: bool, key: &str| agent.bool(key).unwrap_or(false) || flag;
    let disable_workload_api = switch(flags.disable_workload_api, "disable_workload_api");
    let disable_sds_api = switch(flags.disable_sds_api, "disable_sds_api");
    let sds = read_sds(agent, &mut warnings);
    let sds = (!disable_sds_api).then_some(sds);
    let socket_path = text(&flags.socket_path, "socket_path");
    let socket_path = PathBuf::from(socket_path.unwrap_or_else(|| DEFAULT_SOCKET_PATH.to_owned()));
    let socket_path = (!disable_workload_api || !disable_sds_api).then_some(socket_path);

    let admin_socket_path = read_admin_socket_path(agent, socket_path.as_deref());
    let authorized_delegates = read_delegates(agent, trust_domain.as_ref());
    let bootstrap = bootstrap::read(agent, flags, &text);
    let join_token = text(&flags.join_token, "join_token");
    let join_token_file = text(&flags.join_token_file, "join_token_file").map(PathBuf::from);
    if join_token.is_some() && join_token_file.is_some() {
        agent.problem(
            "join_token_file",
            "only one of join_token and join_token_file can be specified, not both",
        );
    }

    let telemetry = TelemetrySettings {
        level: text(&flags.log_level, "log_level").map_or(LogLevel::default(), |level| {
            level.parse().unwrap_or_else(|error| {
                agent.problem("log_level", error);
                LogLevel::default()
            })
        }),
        format: text(&flags.log_format, "log_format").map_or(LogFormat::default(), |format| {
            format.parse().unwrap_or_else(|error| {
                agent.problem("log_format", error);
                LogFormat::default()
            })
        }),
        file: text(&flags.log_file, "log_file").map(PathBuf::from),
        source_location: agent.bool("log_source_location").unwrap_or(false) || flags.log_source_location,
    };

    let max_svids = agent.number::<usize>("x509_svid_cache_max_size").unwrap_or(0);
    let max_jwt_svids = agent.number::<usize>("jwt_svid_cache_max_size").unwrap_or(0);
    let availability_target = agent.duration("availability_target").filter(|target| !target.is_zero());
    if availability_target.is_some_and(|target| target < lifetime::MIN_AVAILABILITY_TARGET) {
        agent.problem("availability_target", "availability_target must be at least 24h0m0s");
    }
    let workload_key_type = agent.parsed::<KeyType>("workload_x509_svid_key_type").unwrap_or(KeyType::EcP256);
    if workload_key_type == KeyType::Rsa4096 {
        agent.problem(
            "workload_x509_svid_key_type",
            "workload_x509_svid_key_type must be one of [rsa-2048, ec-p256, ec-p384]",
        );
    }
    let allow_unauthenticated_verifiers =
        switch(flags.allow_unauthenticated_verifiers, "allow_unauthenticated_verifiers");
    let log_selectors = agent.list("log_selectors").unwrap_or_default();
    let rebootstrap = read_rebootstrap(agent, &text, flags, &bootstrap);

    AgentBlock {
        trust_domain,
        server_address,
        server_port,
        data_dir,
        socket_path,
        disable_workload_api,
        sds,
        admin_socket_path,
        authorized_delegates,
        bootstrap,
        join_token,
        join_token_file,
        cache: CacheSettings {
            max_svids,
            availability_target,
            max_jwt_svids,
            jwt_hit_timeout: experimental.jwt_svid_cache_hit_timeout,
        },
        workload_key_type,
        allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims: agent.list("allowed_foreign_jwt_claims").unwrap_or_default(),
        log_selectors,
        rebootstrap,
        experimental,
        telemetry,
        warnings,
    }
}

fn read_sds(agent: &Section, warnings: &mut Vec<Notice>) -> SdsNames {
    let default = SdsNames::default();
    let Some(section) = agent.block("sds") else { return default };
    let name =
        |key: &str, default: String| section.string(key).filter(|name| !name.is_empty()).unwrap_or(default);
    let names = SdsNames {
        default_svid: name("default_svid_name", default.default_svid),
        default_bundle: name("default_bundle_name", default.default_bundle),
        default_all_bundles: name("default_all_bundles_name", default.default_all_bundles),
        disable_spiffe_cert_validation: section.bool("disable_spiffe_cert_validation").unwrap_or(false),
    };
    if names.default_bundle == names.default_all_bundles {
        warnings.push(Notice::Warning(
            "The \"default_bundle_name\" and \"default_all_bundles_name\" configurables have the same value. \
             \"default_all_bundles_name\" will be ignored. Please configure distinct values or use the defaults. This \
             will be a configuration error in a future release."
                .to_owned(),
        ));
    }
    names
}

/// The admin socket must not be where every process of the node may go.
fn read_admin_socket_path(agent: &Section, public: Option<&Path>) -> Option<PathBuf> {
    let path = PathBuf::from(agent.string("admin_socket_path").filter(|path| !path.is_empty())?);
    let absolute = |path: &Path| text::clean(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let dir = public.and_then(|public| absolute(public).parent().map(Path::to_owned));
    if dir.is_some_and(|dir| absolute(&path).starts_with(dir)) {
        agent.problem(
            "admin_socket_path",
            "admin socket cannot be in the same directory or a subdirectory as that containing the Workload API socket",
        );
    }
    Some(path)
}

fn read_rebootstrap(
    agent: &Section,
    text: &dyn Fn(&Option<String>, &str) -> Option<String>,
    flags: &Flags,
    bootstrap: &Bootstrap,
) -> Rebootstrap {
    let mode = match text(&flags.rebootstrap_mode, "rebootstrap_mode").as_deref() {
        None | Some("never") => RebootstrapMode::Never,
        Some("auto") => RebootstrapMode::Auto,
        Some("always") => RebootstrapMode::Always,
        Some(other) => {
            agent.problem("rebootstrap_mode", format_args!("unknown rebootstrap mode specified: {other}"));
            RebootstrapMode::Never
        }
    };
    if mode != RebootstrapMode::Never && *bootstrap == Bootstrap::FirstMet {
        agent.problem_here("insecure_bootstrap option can not be used with rebootstrapping");
    }
    let delay =
        match text(&flags.rebootstrap_delay, "rebootstrap_delay").map(|text| text.parse::<GoDuration>()) {
            None => DEFAULT_REBOOTSTRAP_DELAY,
            Some(Ok(delay)) => delay.0,
            Some(Err(error)) => {
                agent.problem(
                    "rebootstrap_delay",
                    format_args!("error parsing rebootstrap delay duration: {error}"),
                );
                DEFAULT_REBOOTSTRAP_DELAY
            }
        };
    Rebootstrap { mode, delay }
}

fn read_delegates(agent: &Section, trust_domain: Option<&TrustDomain>) -> BTreeSet<SpiffeId> {
    let mut delegates = BTreeSet::new();
    for text in agent.list("authorized_delegates").unwrap_or_default() {
        let Some(trust_domain) = trust_domain else { continue };
        match SpiffeId::parse(&text).map_err(|error| error.to_string()).and_then(|id| {
            id.member_of(trust_domain).map_err(|error| error.to_string())?;
            Ok(id)
        }) {
            Ok(id) => {
                delegates.insert(id);
            }
            Err(error) => agent.problem(
                "authorized_delegates",
                format_args!("error validating authorized delegate {text:?}: {error}"),
            ),
        }
    }
    delegates
}

fn port(given: &str) -> Result<u16, FlagError> {
    u16::try_from(text::integer(given)?).map_err(|_| FlagError::OutOfRange)
}

#[cfg(test)]
mod tests;
