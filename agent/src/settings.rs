//! `agent.conf`: SPIRE's keys, each honoured or refused by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::keys::KeyType;
use finial_daemon::settings::plugins::{PluginStanza, plugin_stanzas};
use finial_daemon::settings::{Block, Section, SettingsError};
use finial_daemon::telemetry::{LogFormat, LogLevel, TelemetrySettings};
use finial_identity::{TrustDomain, lifetime};

use crate::cache::CacheSettings;
use crate::plugins::key_manager::{self, Choice};
use crate::plugins::node_attestor::{self, Given, NodeAttestor};
use crate::plugins::workload_attestor::{self, WorkloadAttestor};
use crate::sync::cadence::SYNC_INTERVAL;

/// Where the agent serves workloads unless told otherwise.
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-agent/public/api.sock";
/// What `run` and `validate` read unless told otherwise.
pub const DEFAULT_CONFIG_PATH: &str = "conf/agent/agent.conf";

/// Everything that the agent is built from.
pub struct Settings {
    pub trust_domain: TrustDomain,
    /// DNS name or address.
    pub server_address: String,
    pub server_port: u16,
    pub data_dir: PathBuf,
    pub socket_path: PathBuf,
    pub bootstrap: Bootstrap,
    pub key_manager: Choice,
    pub node_attestor: Arc<dyn NodeAttestor>,
    pub workload_attestors: Vec<(String, Arc<dyn WorkloadAttestor>)>,
    pub cache: CacheSettings,
    pub workload_key_type: KeyType,
    pub allow_unauthenticated_verifiers: bool,
    pub sync_interval: Duration,
    pub telemetry: TelemetrySettings,
}

/// How the agent comes to believe the server the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// `trust_bundle_path`.
    File { path: PathBuf, format: BundleFormat },
    /// `trust_bundle_url`, by web PKI, or over `trust_bundle_unix_socket`.
    Url { url: String, unix_socket: Option<PathBuf>, format: BundleFormat },
    /// `insecure_bootstrap`.
    FirstMet,
}

/// `trust_bundle_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleFormat {
    Pem,
    Spiffe,
}

/// What the command line says; it goes before the file. None: the flag was not given.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub data_dir: Option<String>,
    pub join_token: Option<String>,
    pub join_token_file: Option<String>,
    pub log_file: Option<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
    pub log_source_location: bool,
    pub server_address: Option<String>,
    pub server_port: Option<u16>,
    pub trust_domain: Option<String>,
    pub trust_bundle: Option<String>,
    pub trust_bundle_url: Option<String>,
    pub trust_bundle_format: Option<String>,
    pub allow_unauthenticated_verifiers: bool,
    pub insecure_bootstrap: bool,
    pub socket_path: Option<String>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum RefusedSettings {
    #[error(transparent)]
    File(#[from] SettingsError),
    #[error(transparent)]
    NodeAttestor(#[from] node_attestor::PluginRefused),
    #[error(transparent)]
    WorkloadAttestor(#[from] workload_attestor::PluginRefused),
    #[error(transparent)]
    KeyManager(#[from] key_manager::PluginRefused),
    #[error("the plugins section holds {found} {kind} plugins, and must hold {wanted}")]
    Count { kind: &'static str, found: usize, wanted: &'static str },
    #[error(
        "{kind} {name:?}: {kind} plugins are not built into this agent yet; remove the block, or set enabled = false"
    )]
    KindNotBuilt { kind: String, name: String },
    #[error(
        "plugin kind {0:?} is unknown; an agent has KeyManager, NodeAttestor and WorkloadAttestor plugins"
    )]
    UnknownKind(String),
    #[error("trust_domain must be configured")]
    NoTrustDomain,
    #[error("cannot read the join token from {}: {source}; check join_token_file", path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
}

/// Keys of `agent` that SPIRE has and this agent has not, with what to say of them.
const NOT_BUILT: &[(&str, &str)] = &[
    ("admin_socket_path", "the agent's admin API is not built yet"),
    ("allowed_foreign_jwt_claims", "JWT-SVIDs are not built yet"),
    ("authorized_delegates", "the Delegated Identity API is not built yet"),
    ("jwt_svid_cache_max_size", "JWT-SVIDs are not built yet"),
    ("log_selectors", "selectors are never logged by this agent"),
    ("profiling_enabled", "profiling is not built yet"),
    ("profiling_freq", "profiling is not built yet"),
    ("profiling_names", "profiling is not built yet"),
    ("profiling_port", "profiling is not built yet"),
    ("rebootstrap_delay", "rebootstrapping is not built yet"),
    ("sds", "the Envoy SDS API is not built yet"),
    ("trust_bundle_spiffe_workload_api", "bootstrapping from another Workload API is not built yet"),
];

/// Keys of `agent.experimental`, likewise.
const EXPERIMENTAL_NOT_BUILT: &[(&str, &str)] = &[
    ("admin_named_pipe_name", "it is for Windows"),
    ("broker", "the Broker API is not built yet"),
    ("feature_flags", "this agent has no feature flags"),
    ("jwt_svid_cache_hit_timeout", "JWT-SVIDs are not built yet"),
    ("named_pipe_name", "it is for Windows"),
    ("ratelimit", "the Workload API's rate limits are not built yet"),
    ("require_pq_kem", "it is not built yet; X25519MLKEM768 is offered first without it"),
];

impl Settings {
    /// Reads the file's top block and the command line. Blocking: token and plugin files are read.
    pub fn read(file: &Block, flags: &Overrides) -> Result<Settings, RefusedSettings> {
        let top = Section::new(file);
        for (block, what) in
            [("telemetry", "telemetry sinks"), ("health_checks", "the health_checks listener")]
        {
            if top.has(block) {
                refuse_unless_empty(&top, block, what);
            }
        }
        // Read by plugin_stanzas; asking for it makes it known.
        let _ = top.block("plugins").map(|plugins| plugins.allow_unknown());
        let agent = top.require_block("agent");
        let read = read_agent(&agent, flags);
        top.finish()?;
        let stanzas = plugin_stanzas(file)?;
        let given = Given { join_token: read.join_token()? };
        read.with_plugins(&stanzas, &given)
    }
}

/// The `agent` block, without plugins.
struct AgentBlock {
    /// None when a problem with it was noted.
    trust_domain: Option<TrustDomain>,
    server_address: String,
    server_port: u16,
    data_dir: PathBuf,
    socket_path: PathBuf,
    bootstrap: Bootstrap,
    join_token: Option<String>,
    join_token_file: Option<PathBuf>,
    cache: CacheSettings,
    workload_key_type: KeyType,
    allow_unauthenticated_verifiers: bool,
    sync_interval: Duration,
    telemetry: TelemetrySettings,
}

impl AgentBlock {
    fn join_token(&self) -> Result<Option<String>, RefusedSettings> {
        let Some(path) = &self.join_token_file else { return Ok(self.join_token.clone()) };
        match std::fs::read_to_string(path) {
            Ok(token) => Ok(Some(token.trim().to_owned())),
            Err(source) => Err(RefusedSettings::TokenFile { path: path.clone(), source }),
        }
    }

    fn with_plugins(self, stanzas: &[PluginStanza], given: &Given) -> Result<Settings, RefusedSettings> {
        let enabled: Vec<&PluginStanza> = stanzas.iter().filter(|stanza| stanza.enabled).collect();
        for stanza in &enabled {
            match stanza.kind.as_str() {
                "KeyManager" | "NodeAttestor" | "WorkloadAttestor" => {}
                "SVIDStore" => {
                    let (kind, name) = (stanza.kind.clone(), stanza.name.clone());
                    return Err(RefusedSettings::KindNotBuilt { kind, name });
                }
                _ => return Err(RefusedSettings::UnknownKind(stanza.kind.clone())),
            }
        }
        let of_kind = |kind: &'static str| -> Vec<&PluginStanza> {
            enabled.iter().filter(|stanza| stanza.kind == kind).copied().collect()
        };
        let exactly_one = |kind: &'static str| match of_kind(kind)[..] {
            [one] => Ok(one),
            ref other => Err(RefusedSettings::Count { kind, found: other.len(), wanted: "exactly one" }),
        };
        let key_manager = key_manager::load(exactly_one("KeyManager")?)?;
        let node_attestor = node_attestor::load(exactly_one("NodeAttestor")?, given)?;
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
            bootstrap: self.bootstrap,
            key_manager,
            node_attestor,
            workload_attestors,
            cache: self.cache,
            workload_key_type: self.workload_key_type,
            allow_unauthenticated_verifiers: self.allow_unauthenticated_verifiers,
            sync_interval: self.sync_interval,
            telemetry: self.telemetry,
        })
    }
}

fn read_agent(agent: &Section, flags: &Overrides) -> AgentBlock {
    for (key, reason) in NOT_BUILT {
        if agent.has(key) {
            agent.problem(key, format_args!("{key} is refused: {reason}"));
        }
    }
    let experimental = agent.block("experimental");
    let mut sync_interval = SYNC_INTERVAL;
    if let Some(experimental) = &experimental {
        for (key, reason) in EXPERIMENTAL_NOT_BUILT {
            if experimental.has(key) {
                experimental.problem(key, format_args!("{key} is refused: {reason}"));
            }
        }
        if let Some(interval) = experimental.duration("sync_interval").filter(|interval| !interval.is_zero())
        {
            sync_interval = interval;
        }
        if experimental.bool("use_sync_authorized_entries") == Some(false) {
            experimental.problem(
                "use_sync_authorized_entries",
                "the full poll alone is not built; leave the key out",
            );
        }
    }

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
    let socket_path = PathBuf::from(
        text(&flags.socket_path, "socket_path").unwrap_or_else(|| DEFAULT_SOCKET_PATH.to_owned()),
    );

    let bootstrap = read_bootstrap(agent, flags, &text);
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
    let allow_unauthenticated_verifiers = agent.bool("allow_unauthenticated_verifiers").unwrap_or(false)
        || flags.allow_unauthenticated_verifiers;
    if agent.bool("disable_workload_api") == Some(true) {
        agent.problem(
            "disable_workload_api",
            "an agent without the Workload API has nothing to serve until the broker is built",
        );
    }
    // Envoy's API is not served, so nothing is left to switch off.
    let _ = agent.bool("disable_sds_api");
    if let Some(mode) = agent.string("rebootstrap_mode").filter(|mode| !mode.is_empty() && mode != "never") {
        agent.problem(
            "rebootstrap_mode",
            format_args!(
                "rebootstrap_mode {mode:?} is refused: rebootstrapping is not built yet; \"never\" is"
            ),
        );
    }

    AgentBlock {
        trust_domain,
        server_address,
        server_port,
        data_dir,
        socket_path,
        bootstrap,
        join_token,
        join_token_file,
        cache: CacheSettings { max_svids, availability_target },
        workload_key_type,
        allow_unauthenticated_verifiers,
        sync_interval,
        telemetry,
    }
}

fn read_bootstrap(
    agent: &Section,
    flags: &Overrides,
    text: &dyn Fn(&Option<String>, &str) -> Option<String>,
) -> Bootstrap {
    let format = match text(&flags.trust_bundle_format, "trust_bundle_format").as_deref() {
        None | Some("pem") => BundleFormat::Pem,
        Some("spiffe") => BundleFormat::Spiffe,
        Some(other) => {
            agent.problem(
                "trust_bundle_format",
                format_args!(
                    "invalid value {other:?} for \"trust_bundle_format\": it is \"pem\" or \"spiffe\""
                ),
            );
            BundleFormat::Pem
        }
    };
    let path = text(&flags.trust_bundle, "trust_bundle_path").map(PathBuf::from);
    let url = text(&flags.trust_bundle_url, "trust_bundle_url");
    let unix_socket =
        agent.string("trust_bundle_unix_socket").filter(|path| !path.is_empty()).map(PathBuf::from);
    let insecure = agent.bool("insecure_bootstrap").unwrap_or(false) || flags.insecure_bootstrap;

    let sources = usize::from(path.is_some()) + usize::from(url.is_some()) + usize::from(insecure);
    if sources > 1 {
        agent.problem_here(
            "only one of insecure_bootstrap, trust_bundle_url and trust_bundle_path can be specified",
        );
    }
    match (path, url) {
        (Some(path), _) => Bootstrap::File { path, format },
        (None, Some(url)) => {
            check_url(agent, &url, unix_socket.as_deref());
            Bootstrap::Url { url, unix_socket, format }
        }
        (None, None) => {
            if sources == 0 {
                agent.problem_here("trust_bundle_path or trust_bundle_url must be configured unless insecure_bootstrap is set");
            }
            Bootstrap::FirstMet
        }
    }
}

fn check_url(agent: &Section, url: &str, unix_socket: Option<&Path>) {
    match unix_socket {
        Some(_) if !url.starts_with("http://") => {
            agent.problem(
                "trust_bundle_url",
                "trust_bundle_url must start with http:// when trust_bundle_unix_socket is set",
            );
        }
        Some(_) => {
            let query = url.split_once('?').map_or("", |(_, query)| query);
            if query.split('&').any(|one| one.starts_with("spire-") || one.starts_with("spiffe-")) {
                agent.problem("trust_bundle_url", "trust_bundle_url must not have parameters that start with spire- or spiffe-: the agent adds its own");
            }
        }
        None if !url.starts_with("https://") => {
            agent.problem("trust_bundle_url", "trust_bundle_url must start with https://");
        }
        None => {}
    }
}

fn refuse_unless_empty(top: &Section, block: &str, what: &str) {
    let empty = top.block(block).is_none_or(|block| block.source().items.is_empty());
    if !empty {
        top.problem(block, format_args!("the {block} block is refused: {what} are not built yet"));
    }
}
