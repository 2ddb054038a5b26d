//! `server.conf` and the flags of `run`, as typed settings.
//!
//! The keys are SPIRE's. Each of them either has its effect here or is refused by name: a server that ignores what its
//! operator wrote is worse than one that does not start. A flag goes before the file and the file before the default;
//! a value that is empty, 0 or false counts as not given, as in SPIRE.

mod datastore;
mod plugins;
mod ttl;
mod unbuilt;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use finial_daemon::argv::text::{self, FlagError};
use finial_daemon::health::HealthSettings;
use finial_daemon::keys::KeyType;
use finial_daemon::listen::Network;
use finial_daemon::metrics::MetricsSettings;
use finial_daemon::settings::{Block, Notice, Section, SettingsError, load};
use finial_daemon::telemetry::TelemetrySettings;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;

pub use plugins::Plugins;

use crate::access::limit::Switches;
use crate::agents::prune::{NodePruning, PruneSettings};
use crate::authority::profile::{DEFAULT_JWT_SVID_TTL, SubjectSettings};
use crate::entries::feed::FeedSettings;

/// What is said of a block `experimental` that is not empty.
const EXPERIMENTAL: &str = "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and \
    compatibility considerations for experimental features.";

/// Where `run` looks without `-config`.
pub const DEFAULT_CONFIG: &str = "conf/server/server.conf";
/// The admin socket's place where nothing else is said.
pub const DEFAULT_SOCKET: &str = "/tmp/spire-server/private/api.sock";

/// The flags of `run` and `validate`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// The configuration file, HCL or JSON; default: conf/server/server.conf
    #[arg(long = "config", value_name = "STRING")]
    pub config: Option<PathBuf>,
    /// Replace $NAME and ${NAME} in the file by environment variables before it is read
    #[arg(long = "expandEnv")]
    pub expand_env: bool,
    /// The address on which agents reach the server
    #[arg(long = "bindAddress", value_name = "STRING")]
    pub bind_address: Option<String>,
    /// The port on which agents reach the server
    #[arg(long = "serverPort", value_name = "INT", value_parser = port_flag)]
    pub bind_port: Option<u16>,
    /// Where to serve the admin socket
    #[arg(long = "socketPath", value_name = "STRING")]
    pub socket_path: Option<PathBuf>,
    /// The directory for what the server must keep
    #[arg(long = "dataDir", value_name = "STRING")]
    pub data_dir: Option<PathBuf>,
    /// The trust domain that the server is the authority of, for example example.org
    #[arg(long = "trustDomain", value_name = "STRING")]
    pub trust_domain: Option<String>,
    /// The least important lines to log: error, warn, info, debug or trace
    #[arg(long = "logLevel", value_name = "STRING")]
    pub log_level: Option<String>,
    /// The form of the log: text or json
    #[arg(long = "logFormat", value_name = "STRING")]
    pub log_format: Option<String>,
    /// Where to write the log; standard output without it
    #[arg(long = "logFile", value_name = "STRING")]
    pub log_file: Option<PathBuf>,
    /// Add the place in the source to each log line
    #[arg(long = "logSourceLocation")]
    pub log_source_location: bool,
}

/// Everything that the server is built from.
#[derive(Clone, Debug)]
pub struct Settings {
    pub trust_domain: TrustDomain,
    /// An IP address or a host name.
    pub bind_address: String,
    pub bind_port: u16,
    /// The admin socket.
    pub socket_path: PathBuf,
    pub data_dir: PathBuf,
    pub log: TelemetrySettings,
    pub metrics: MetricsSettings,
    pub health: HealthSettings,

    pub ca_ttl: Duration,
    pub ca_key_type: KeyType,
    pub jwt_key_type: KeyType,
    /// The claim `iss` of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    pub disable_jwt_svids: bool,
    pub ca_subject: SubjectSettings,
    /// Of an entry that says 0, and of the server's own SVID.
    pub default_x509_svid_ttl: Duration,
    /// Of an entry that says 0.
    pub default_jwt_svid_ttl: Duration,
    pub agent_ttl: Duration,

    pub admin_ids: Vec<SpiffeId>,
    /// `proxy_protocol_trusted_cidrs`: load balancers that say where a connection comes from.
    pub proxies: Vec<Network>,
    pub audit_log_enabled: bool,
    pub rate_limits: Switches,
    pub require_pq_kem: bool,

    pub agent_spiffe_id_as_selector: bool,
    pub feed: FeedSettings,
    pub prune_events_older_than: Duration,
    /// Absent when nothing is pruned.
    pub prune_nodes: Option<NodePruning>,

    pub plugins: Plugins,

    /// What the operator should know, for the log.
    pub warnings: Vec<Notice>,
}

/// Why there are no settings. Says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("could not find config file {}: please use the -config flag", .0.display())]
    NoFile(PathBuf),
    #[error("{0}")]
    Settings(#[from] SettingsError),
}

impl Settings {
    /// Reads the configuration file that the flags name. All that is wrong with it is reported together.
    pub fn load(flags: &Flags) -> Result<Settings, LoadError> {
        let path = flags.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
        if !path.exists() {
            return Err(LoadError::NoFile(std::path::absolute(path).unwrap_or_else(|_| path.to_owned())));
        }
        Ok(Settings::read(&load(path, flags.expand_env)?, flags)?)
    }

    /// The settings in a parsed file.
    pub fn read(file: &Block, flags: &Flags) -> Result<Settings, SettingsError> {
        let top = Section::new(file);
        // Read below.
        top.is_block("plugins");
        let server = top.require_block("server");
        unbuilt::server(&server);
        let experimental = server.block("experimental");
        let experimental = experimental.as_ref();
        if let Some(experimental) = experimental {
            unbuilt::experimental(experimental);
        }
        let experimental_bool = |key| experimental.and_then(|e| e.bool(key)).unwrap_or(false);
        let rate_limit = server.block("ratelimit");
        let limited = |key| rate_limit.as_ref().and_then(|r| r.bool(key)).unwrap_or(true);
        let mut warnings = Vec::new();
        let metrics = MetricsSettings::read(&top, &mut warnings);
        let health = HealthSettings::read(&top);

        let trust_domain = trust_domain(&server, flags);
        let data_dir = path(&flags.data_dir, server.string("data_dir"));
        if data_dir.is_none() {
            server.problem_here("data_dir must be configured");
        }
        let ca_subject = ca_subject(&server, &mut warnings);
        let lifetimes = Lifetimes::read(&server, &mut warnings);
        let bind_address = given(flags.bind_address.clone(), server.string("bind_address"));
        let bind_port = flags.bind_port.filter(|port| *port != 0).or(port(&server));
        let socket_path = path(&flags.socket_path, server.string("socket_path"));
        let log = log(&server, flags);
        let ca_key_type = server.parsed("ca_key_type").unwrap_or(KeyType::EcP256);
        let jwt_key_type = server.parsed("jwt_key_type").unwrap_or(ca_key_type);
        let jwt_issuer = given(None, server.string("jwt_issuer"));
        let disable_jwt_svids = server.bool("disable_jwt_svids").unwrap_or(false);
        if disable_jwt_svids {
            warnings.push(Notice::Info("JWT-SVID profile is disabled".to_owned()));
        }
        let admin_ids = admin_ids(&server);
        let proxies = proxies(&server);
        let audit_log_enabled = server.bool("audit_log_enabled").unwrap_or(false);
        let feed = feed(experimental, &mut warnings);
        let prune_events_older_than = experimental.and_then(|e| time(e, "prune_events_older_than"));
        let prune_nodes = prune_nodes(&server);
        // An agent's row is read at each of its calls, so what is known of it is never stale.
        server.duration("max_attested_node_info_staleness");
        let rate_limits = Switches { attestation: limited("attestation"), signing: limited("signing") };
        let require_pq_kem = experimental_bool("require_pq_kem");
        let agent_spiffe_id_as_selector = experimental_bool("agent_spiffe_id_as_selector");
        // Entries always follow the events.
        experimental_bool("events_based_cache");
        if experimental.is_some_and(|e| !e.source().items.is_empty()) {
            warnings.push(Notice::Warning(EXPERIMENTAL.to_owned()));
        }
        if let Some(experimental) = experimental {
            experimental.warn_of_unknown(&mut warnings);
        }
        top.finish()?;

        let (Some(trust_domain), Some(data_dir)) = (trust_domain, data_dir) else {
            // `finish` has reported both already.
            return Err(SettingsError::whole_file(&file.file, "trust_domain must be configured".to_owned()));
        };
        Ok(Settings {
            trust_domain,
            bind_address: bind_address.unwrap_or_else(|| "0.0.0.0".to_owned()),
            bind_port: bind_port.unwrap_or(8081),
            socket_path: socket_path.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            data_dir,
            log,
            metrics,
            health,
            ca_ttl: lifetimes.ca,
            ca_key_type,
            jwt_key_type,
            jwt_issuer,
            disable_jwt_svids,
            ca_subject,
            default_x509_svid_ttl: lifetimes.x509_svid,
            default_jwt_svid_ttl: lifetimes.jwt_svid,
            agent_ttl: lifetimes.agent,
            admin_ids,
            proxies,
            audit_log_enabled,
            rate_limits,
            require_pq_kem,
            agent_spiffe_id_as_selector,
            feed,
            prune_events_older_than: prune_events_older_than
                .unwrap_or(PruneSettings::default().events_older_than),
            prune_nodes,
            plugins: Plugins::read(file)?,
            warnings,
        })
    }
}

struct Lifetimes {
    ca: Duration,
    x509_svid: Duration,
    jwt_svid: Duration,
    agent: Duration,
}

impl Lifetimes {
    fn read(server: &Section, warnings: &mut Vec<Notice>) -> Lifetimes {
        const HOUR: Duration = Duration::from_secs(3600);
        let ca = time(server, "ca_ttl").unwrap_or(24 * HOUR);
        let x509_svid = time(server, "default_x509_svid_ttl").unwrap_or(HOUR);
        let agent = time(server, "agent_ttl");
        let jwt_svid = time(server, "default_jwt_svid_ttl").unwrap_or(DEFAULT_JWT_SVID_TTL);
        let all = [
            ("default_x509_svid_ttl", Some(x509_svid)),
            ("default_jwt_svid_ttl", Some(jwt_svid)),
            ("agent_ttl", agent),
        ];
        warnings.extend(
            all.into_iter().filter_map(|(key, ttl)| ttl::warning(key, ttl?, ca).map(Notice::Warning)),
        );
        Lifetimes { ca, x509_svid, jwt_svid, agent: agent.unwrap_or(x509_svid) }
    }
}

fn trust_domain(server: &Section, flags: &Flags) -> Option<TrustDomain> {
    let Some(text) = given(flags.trust_domain.clone(), server.string("trust_domain")) else {
        server.problem_here("trust_domain must be configured");
        return None;
    };
    match TrustDomain::parse(&text) {
        Ok(trust_domain) => Some(trust_domain),
        Err(error) => {
            server.problem("trust_domain", format!("could not parse trust_domain {text:?}: {error}"));
            None
        }
    }
}

fn admin_ids(server: &Section) -> Vec<SpiffeId> {
    let mut ids = Vec::new();
    for text in server.list("admin_ids").unwrap_or_default() {
        match SpiffeId::parse(&text) {
            Ok(id) => ids.push(id),
            Err(error) => server.problem("admin_ids", format!("could not parse admin ID {text:?}: {error}")),
        }
    }
    ids
}

fn proxies(server: &Section) -> Vec<Network> {
    let mut networks = Vec::new();
    for text in server.list("proxy_protocol_trusted_cidrs").unwrap_or_default() {
        match text.parse() {
            Ok(network) => networks.push(network),
            Err(error) => server.problem(
                "proxy_protocol_trusted_cidrs",
                format!("invalid proxy_protocol_trusted_cidrs value {text:?}: {error}"),
            ),
        }
    }
    networks
}

fn ca_subject(server: &Section, warnings: &mut Vec<Notice>) -> SubjectSettings {
    let Some(section) = server.block("ca_subject") else { return SubjectSettings::default() };
    let subject = SubjectSettings {
        country: section.list("country").unwrap_or_default(),
        organization: section.list("organization").unwrap_or_default(),
        common_name: section.string("common_name").unwrap_or_default(),
    };
    if subject == SubjectSettings::default() {
        let text = "ca_subject configurable is set but empty; the default will be used";
        warnings.push(Notice::Warning(text.to_owned()));
    }
    subject
}

fn feed(experimental: Option<&Section>, warnings: &mut Vec<Notice>) -> FeedSettings {
    let default = FeedSettings::default();
    let Some(section) = experimental else { return default };
    let reload = time(section, "cache_reload_interval").unwrap_or(default.reload);
    let full_reload = time(section, "full_cache_reload_interval").unwrap_or(default.full_reload);
    if full_reload <= reload {
        section.problem("full_cache_reload_interval", "must be greater than cache_reload_interval");
    }
    let old_name = time(section, "sql_transaction_timeout");
    let event_timeout = time(section, "event_timeout");
    if old_name.is_some() {
        let text =
            "experimental.sql_transaction_timeout is deprecated, use experimental.event_timeout instead";
        warnings.push(Notice::Deprecated(text.to_owned()));
        if event_timeout.is_some() {
            section.problem(
                "sql_transaction_timeout",
                "both experimental sql_transaction_timeout and event_timeout set, only set event_timeout",
            );
        }
    }
    let event_timeout = event_timeout.or(old_name).unwrap_or(default.event_timeout);
    FeedSettings { reload, full_reload, event_timeout, ..default }
}

fn prune_nodes(server: &Section) -> Option<NodePruning> {
    let expired_for = time(server, "prune_attested_nodes_expired_for");
    let batch = server.number("prune_attested_nodes_batch_size").filter(|size: &u32| *size != 0);
    let include_tofu = server.bool("prune_tofu_nodes").unwrap_or(false);
    Some(NodePruning { expired_for: expired_for?, batch: batch.unwrap_or(1000), include_tofu })
}

fn log(server: &Section, flags: &Flags) -> TelemetrySettings {
    let source_location = server.bool("log_source_location").unwrap_or(false);
    TelemetrySettings {
        level: name(server, "log_level", &flags.log_level).unwrap_or_default(),
        format: name(server, "log_format", &flags.log_format).unwrap_or_default(),
        file: path(&flags.log_file, server.string("log_file")),
        source_location: flags.log_source_location || source_location,
    }
}

/// What a flag or else a key names.
fn name<T>(server: &Section, key: &str, flag: &Option<String>) -> Option<T>
where
    T: FromStr,
    T::Err: Display,
{
    let text = given(flag.clone(), server.string(key))?;
    text.parse().map_err(|error| server.problem(key, error)).ok()
}

fn port(server: &Section) -> Option<u16> {
    server.number("bind_port").filter(|port| *port != 0)
}

fn port_flag(given: &str) -> Result<u16, FlagError> {
    u16::try_from(text::integer(given)?).map_err(|_| FlagError::OutOfRange)
}

fn given(flag: Option<String>, key: Option<String>) -> Option<String> {
    flag.filter(|text| !text.is_empty()).or(key.filter(|text| !text.is_empty()))
}

fn path(flag: &Option<PathBuf>, key: Option<String>) -> Option<PathBuf> {
    let flag = flag.clone().filter(|path| !path.as_os_str().is_empty());
    flag.or(key.filter(|text| !text.is_empty()).map(PathBuf::from))
}

/// A time span; "0s" counts as not given.
fn time(section: &Section, key: &str) -> Option<Duration> {
    section.duration(key).filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests;
