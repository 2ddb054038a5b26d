use finial_daemon::settings::parse;
use finial_daemon::telemetry::{LogFormat, LogLevel};

use super::*;

const PLUGINS: &str = r#"
plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3"  connection_string = "x.sqlite3" } }
    KeyManager "memory" { plugin_data {} }
}
"#;

fn read(server: &str) -> Result<Settings, String> {
    read_file(&format!("server {{\n{server}\n}}\n{PLUGINS}"), &Flags::default())
}

fn read_file(text: &str, flags: &Flags) -> Result<Settings, String> {
    let file = parse(text, "server.conf").map_err(|error| error.to_string())?;
    Settings::read(&file, flags).map_err(|error| error.to_string())
}

fn minimal(more: &str) -> Result<Settings, String> {
    read(&format!("trust_domain = \"example.org\"\ndata_dir = \"/data\"\n{more}"))
}

#[test]
fn defaults_are_spires() {
    let settings = minimal("").unwrap();
    assert_eq!(settings.trust_domain.name(), "example.org");
    assert_eq!((settings.bind_address.as_str(), settings.bind_port), ("0.0.0.0", 8081));
    assert_eq!(settings.socket_path, Path::new(DEFAULT_SOCKET));
    assert_eq!(settings.ca_ttl, Duration::from_secs(24 * 3600));
    assert_eq!(settings.default_x509_svid_ttl, Duration::from_secs(3600));
    assert_eq!(settings.agent_ttl, Duration::from_secs(3600));
    assert_eq!(settings.ca_key_type, KeyType::EcP256);
    assert_eq!(settings.feed, FeedSettings::default());
    assert_eq!(settings.prune_events_older_than, Duration::from_secs(12 * 3600));
    assert_eq!(settings.log.level, LogLevel::Info);
    assert_eq!(settings.log.format, LogFormat::Plain);
    assert_eq!(settings.rate_limits, Switches { attestation: true, signing: true });
    assert_eq!(settings.prune_nodes, None);
    assert_eq!(settings.plugins.datastore.connection_string, "x.sqlite3");
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn every_key_has_its_effect() {
    let settings = minimal(
        r#"
        bind_address = "127.0.0.1"
        bind_port = "9000"
        socket_path = "/run/s.sock"
        log_level = "debug"
        log_format = "json"
        log_file = "/var/log/s"
        log_source_location = true
        ca_ttl = "72h"
        default_x509_svid_ttl = "30m"
        agent_ttl = "2h"
        ca_key_type = "rsa-2048"
        ca_subject { country = ["DE"]  organization = ["A", "B"]  common_name = "C" }
        admin_ids = ["spiffe://example.org/admin", "spiffe://other.org/admin"]
        audit_log_enabled = true
        max_attested_node_info_staleness = "1m"
        prune_attested_nodes_expired_for = "720h"
        prune_attested_nodes_batch_size = 50
        prune_tofu_nodes = true
        ratelimit { attestation = false  signing = true }
        default_jwt_svid_ttl = "4m"
        jwt_issuer = "https://issuer.example"
        jwt_key_type = "EC-P384"
        disable_jwt_svids = true
        experimental {
            agent_spiffe_id_as_selector = true
            cache_reload_interval = "1s"
            full_cache_reload_interval = "1h"
            event_timeout = "2m"
            prune_events_older_than = "3h"
            require_pq_kem = true
            events_based_cache = true
        }
        "#,
    )
    .unwrap();
    assert_eq!((settings.bind_address.as_str(), settings.bind_port), ("127.0.0.1", 9000));
    assert_eq!(settings.socket_path, Path::new("/run/s.sock"));
    assert_eq!((settings.log.level, settings.log.format), (LogLevel::Debug, LogFormat::Json));
    assert_eq!(settings.log.file.as_deref(), Some(Path::new("/var/log/s")));
    assert!(settings.log.source_location);
    assert_eq!(settings.ca_ttl, Duration::from_secs(72 * 3600));
    assert_eq!(settings.default_x509_svid_ttl, Duration::from_secs(1800));
    assert_eq!(settings.agent_ttl, Duration::from_secs(7200));
    assert_eq!(settings.ca_key_type, KeyType::Rsa2048);
    assert_eq!(settings.jwt_key_type, KeyType::EcP384);
    assert_eq!(settings.jwt_issuer.as_deref(), Some("https://issuer.example"));
    assert_eq!(settings.default_jwt_svid_ttl, Duration::from_secs(240));
    assert!(settings.disable_jwt_svids);
    assert!(
        settings.warnings.contains(&Notice::Info("JWT-SVID profile is disabled".to_owned())),
        "{:?}",
        settings.warnings
    );
    assert_eq!(settings.ca_subject.organization, ["A", "B"]);
    assert_eq!(settings.ca_subject.common_name, "C");
    assert_eq!(settings.admin_ids.len(), 2);
    assert!(settings.audit_log_enabled);
    assert_eq!(settings.rate_limits, Switches { attestation: false, signing: true });
    let pruning = NodePruning { expired_for: Duration::from_secs(720 * 3600), batch: 50, include_tofu: true };
    assert_eq!(settings.prune_nodes, Some(pruning));
    assert!(settings.agent_spiffe_id_as_selector && settings.require_pq_kem);
    assert_eq!(settings.feed.reload, Duration::from_secs(1));
    assert_eq!(settings.feed.full_reload, Duration::from_secs(3600));
    assert_eq!(settings.feed.event_timeout, Duration::from_secs(120));
    assert_eq!(settings.prune_events_older_than, Duration::from_secs(3 * 3600));
}

#[test]
fn a_flag_goes_before_the_file_and_zero_counts_as_not_given() {
    let flags = Flags {
        bind_port: Some(1234),
        trust_domain: Some("flag.org".to_owned()),
        data_dir: Some("/flag".into()),
        log_level: Some(String::new()),
        ..Flags::default()
    };
    let text =
        format!("server {{ trust_domain = \"file.org\" log_level = \"warn\" bind_port = 99 }} {PLUGINS}");
    let settings = read_file(&text, &flags).unwrap();
    assert_eq!(settings.trust_domain.name(), "flag.org");
    assert_eq!(settings.data_dir, Path::new("/flag"));
    assert_eq!(settings.bind_port, 1234);
    assert_eq!(settings.log.level, LogLevel::Warn);
    let settings = minimal("bind_port = 0\nca_ttl = \"0s\"\nlog_format = \"\"").unwrap();
    assert_eq!((settings.bind_port, settings.log.format), (8081, LogFormat::Plain));
    assert_eq!(settings.ca_ttl, Duration::from_secs(24 * 3600));
    let settings =
        minimal("jwt_issuer = \"\"\ndefault_jwt_svid_ttl = \"0s\"\nca_key_type = \"rsa-4096\"").unwrap();
    assert_eq!((settings.jwt_issuer, settings.jwt_key_type), (None, KeyType::Rsa4096));
    assert_eq!(settings.default_jwt_svid_ttl, Duration::from_secs(300));
    assert!(!settings.disable_jwt_svids);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (text, expected) in [
        (
            "bind_adress = \"x\"",
            "server.conf:4: unknown key \"bind_adress\" in server block; did you mean \"bind_address\"?",
        ),
        ("bind_port = 70000", "bind_port: 70000 is out of range"),
        ("bind_port = true", "bind_port must be a whole number"),
        ("jwt_key_type = \"ed25519\"", "server.conf:4: jwt_key_type: key type \"ed25519\" is unknown"),
        ("ca_ttl = \"soon\"", "server.conf:4: ca_ttl: "),
        ("log_level = \"loud\"", "log_level: unknown log level \"loud\""),
        ("log_format = \"xml\"", "log_format: unknown log format \"xml\""),
        ("ca_key_type = \"ec-p521\"", "ca_key_type: key type \"ec-p521\" is unknown"),
        ("admin_ids = [\"http://x\"]", "could not parse admin ID \"http://x\": scheme is missing or invalid"),
        ("ca_ttl = \"1h\"\nca_ttl = \"2h\"", "\"ca_ttl\" is set twice"),
        ("ca_subject { organisation = [\"x\"] }", "did you mean \"organization\"?"),
        ("ratelimit { atestation = true }", "did you mean \"attestation\"?"),
        (
            "experimental { full_cache_reload_interval = \"5s\" }",
            "must be greater than cache_reload_interval",
        ),
        (
            "experimental { event_timeout = \"5s\"\nsql_transaction_timeout = \"5s\" }",
            "both experimental sql_transaction_timeout and event_timeout set, only set event_timeout",
        ),
    ] {
        let error = minimal(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(read("data_dir = \"x\"").unwrap_err().contains("trust_domain must be configured"));
    assert!(read("trust_domain = \"x\"").unwrap_err().contains("data_dir must be configured"));
    assert!(
        read("trust_domain = \"UPPER\"\ndata_dir = \"x\"")
            .unwrap_err()
            .contains("could not parse trust_domain")
    );
    assert!(read_file(PLUGINS, &Flags::default()).unwrap_err().contains("the \"server\" block is missing"));
    let no_plugins = "server { trust_domain = \"x\" data_dir = \"x\" }";
    assert!(
        read_file(no_plugins, &Flags::default()).unwrap_err().contains("the \"plugins\" block is missing")
    );
}

#[test]
fn all_problems_are_reported_together() {
    let error = minimal("bind_port = 70000\nca_ttl = \"soon\"\nunknown_key = 1").unwrap_err();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for text in [
        "federation { bundle_endpoint { address = \"0.0.0.0\" port = 8443 } }",
        "federation { federates_with \"other.org\" { bundle_endpoint_url = \"https://x\" } }",
    ] {
        let error = minimal(text).unwrap_err();
        let key = text.trim_start_matches("federation { ").trim_start_matches("experimental { ");
        let key = key.split(' ').next().unwrap();
        assert!(
            error.starts_with("server.conf:4: ") && error.contains(&format!("{key}: not built yet")),
            "{text}: {error}"
        );
    }
    // Set to what a missing key means.
    let zeros = "profiling_enabled = false\nprofiling_port = 0\nprofiling_names = []\nfederation {}";
    minimal(zeros).unwrap();
    for (block, refused) in [
        ("telemetry { Prometheus { port = 9988 } }", None),
        ("telemetry { Statsd = [{ address = \"x\" }] }", None),
        ("telemetry { M3 = [{ address = \"x\" env = \"y\" }] }", Some("the M3 sink is not built")),
        ("telemetry { Prometheus { prot = 9988 } }", Some("did you mean \"port\"?")),
        // As in SPIRE; a warning says so.
        ("telemetry { Promethius {} }", None),
        ("telemetry {}", None),
        ("health_checks { listener_enabled = true }", None),
        ("health_checks { listener = true }", Some("unknown key \"listener\"")),
        ("health_checks { listener_enabled = false  bind_port = \"8080\" }", None),
        ("healthchecks {}", Some("did you mean \"health_checks\"?")),
    ] {
        let text = format!("server {{ trust_domain = \"x\" data_dir = \"x\" }}\n{PLUGINS}\n{block}");
        match (read_file(&text, &Flags::default()), refused) {
            (Ok(_), None) => {}
            (Err(error), Some(refused)) => assert!(error.contains(refused), "{block}: {error}"),
            (other, _) => panic!("{block}: {other:?}"),
        }
    }
}

#[test]
fn plugins_are_counted_and_named() {
    let sql = "DataStore \"sql\" { plugin_data { database_type = \"sqlite3\" connection_string = \"x\" } }";
    let memory = "KeyManager \"memory\" {}";
    for (plugins, expected) in [
        (format!("{sql}\n{memory}"), None),
        (format!("{sql}\n{memory}\nNotifier \"k8sbundle\" {{ enabled = false }}"), None),
        (format!("{sql}\n{memory}\nNodeAttestor \"join_token\" {{}}\nUpstreamAuthority \"disk\" {{}}"), None),
        (memory.to_owned(), Some("the plugins block has no DataStore")),
        (
            format!("{sql}\n{memory}\nDataStore \"mongo\" {{}}"),
            Some("only the built-in \"sql\" plugin is supported"),
        ),
        (
            format!("{sql}\n{memory}\nNotifier \"k8sbundle\" {{}}"),
            Some("Notifier \"k8sbundle\": plugins of the kind"),
        ),
        (format!("{sql}\n{memory}\nBundlePublisher \"aws_s3\" {{}}"), Some("not built yet")),
        (format!("{sql}\n{memory}\nKeyManger \"x\" {{}}"), Some("unsupported plugin type \"KeyManger\"")),
        (
            format!("{sql}\n{memory}\nNodeAttestor \"join_token\" {{ plugin_cmd = \"/bin/x\" }}"),
            Some("cannot be overridden by an external plugin"),
        ),
        (
            format!(
                "{memory}\nDataStore \"sql\" {{ plugin_data {{ database_type = \"postgres\" connection_string = \"x\" }} }}"
            ),
            Some(
                "connection_string: datastore-sql: connection_string: missing \"=\" in connection info string; put values with spaces into '…'",
            ),
        ),
        (
            format!(
                "{memory}\nDataStore \"sql\" {{ plugin_data {{ database_type = \"postgres\" connection_string = \
                 \"dbname=x host=db\" ro_connection_string = \"postgres://me:hush@replica/x\" max_open_conns = 20 \
                 conn_max_lifetime = \"1h\" log_sql = true }} }}"
            ),
            None,
        ),
        (
            format!(
                "{memory}\nDataStore \"sql\" {{ plugin_data {{ database_type = \"postgres\" connection_string = \
                 \"dbname=x\" root_ca_path = \"/x\" }} }}"
            ),
            Some("root_ca_path: only for mysql"),
        ),
        (
            format!(
                "{memory}\nDataStore \"sql\" {{ plugin_data {{ database_type = \"mysql\" connection_string = \
                 \"me:hush@tcp(db)/x\" }} }}"
            ),
            Some("missing parseTime=true param in connection_string"),
        ),
        (
            format!(
                "{memory}\nDataStore \"sql\" {{ plugin_data {{ database_type \"aws_mysql\" {{ region = \"x\" }} \
                 connection_string = \"x\" }} }}"
            ),
            Some("aws_postgres and aws_mysql are not built"),
        ),
        (
            format!(
                "{memory}\nDataStore \"sql\" {{ plugin_data {{ database_type = \"oracle\" connection_string = \
                 \"x\" }} }}"
            ),
            Some("unsupported database_type: \"oracle\""),
        ),
        (
            format!("{memory}\nDataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\" }} }}"),
            Some("connection_string"),
        ),
    ] {
        let text = format!("server {{ trust_domain = \"x\" data_dir = \"x\" }}\nplugins {{\n{plugins}\n}}");
        match (read_file(&text, &Flags::default()), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                assert!(error.contains(expected), "{plugins}: {error}");
                assert!(!error.contains("hush"), "{error}");
            }
            (other, _) => panic!("{plugins}: {other:?}"),
        }
    }
}

#[test]
fn lifetimes_that_a_rotation_would_cut_short_are_warned_of() {
    let settings = minimal("default_x509_svid_ttl = \"5h\"").unwrap();
    assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
    assert!(settings.warnings[0].text().contains("or the ca_ttl to 30h or more"));
    let settings = minimal("default_jwt_svid_ttl = \"5h\"").unwrap();
    assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
    assert!(settings.warnings[0].text().starts_with("default_jwt_svid_ttl is too high"));
}

#[test]
fn a_missing_file_is_named() {
    let flags = Flags { config: Some("/nowhere/server.conf".into()), ..Flags::default() };
    let error = Settings::load(&flags).unwrap_err().to_string();
    assert_eq!(error, "could not find config file /nowhere/server.conf: please use the -config flag");
}

enum Verdict {
    Honoured(fn(&Settings) -> bool),
    Refused(&'static str),
    /// It says how what this server always does is to be done, or has no effect in SPIRE either without another key.
    NoEffect,
}
use Verdict::{Honoured, NoEffect, Refused};

/// Every key of SPIRE 1.15.3's `server` block but those of `federation`, with what becomes of it.
#[rustfmt::skip]
const KEYS: &[(&str, &str, Verdict)] = &[
    ("admin_ids", "admin_ids = [\"spiffe://other.org/a\"]", Honoured(|s| s.admin_ids.len() == 1)),
    ("agent_ttl", "agent_ttl = \"2h\"", Honoured(|s| s.agent_ttl.as_secs() == 7200)),
    ("audit_log_enabled", "audit_log_enabled = true", Honoured(|s| s.audit_log_enabled)),
    ("bind_address", "bind_address = \"::1\"", Honoured(|s| s.bind_address == "::1")),
    ("bind_port", "bind_port = 1", Honoured(|s| s.bind_port == 1)),
    ("ca_key_type", "ca_key_type = \"ec-p384\"", Honoured(|s| s.ca_key_type == KeyType::EcP384 && s.jwt_key_type == KeyType::EcP384)),
    ("ca_subject", "ca_subject { country = [\"DE\"] }", Honoured(|s| s.ca_subject.country == ["DE"])),
    ("ca_ttl", "ca_ttl = \"48h\"", Honoured(|s| s.ca_ttl.as_secs() == 172_800)),
    ("data_dir", "", Honoured(|s| s.data_dir == Path::new("/data"))),
    ("default_jwt_svid_ttl", "default_jwt_svid_ttl = \"1m\"", Honoured(|s| s.default_jwt_svid_ttl.as_secs() == 60)),
    ("default_x509_svid_ttl", "default_x509_svid_ttl = \"1m\"", Honoured(|s| s.default_x509_svid_ttl.as_secs() == 60)),
    ("disable_jwt_svids", "disable_jwt_svids = true", Honoured(|s| s.disable_jwt_svids)),
    ("jwt_issuer", "jwt_issuer = \"https://i\"", Honoured(|s| s.jwt_issuer.as_deref() == Some("https://i"))),
    ("jwt_key_type", "jwt_key_type = \"rsa-2048\"", Honoured(|s| s.jwt_key_type == KeyType::Rsa2048)),
    ("log_file", "log_file = \"/l\"", Honoured(|s| s.log.file.as_deref() == Some(Path::new("/l")))),
    ("log_format", "log_format = \"JSON\"", Honoured(|s| s.log.format == LogFormat::Json)),
    ("log_level", "log_level = \"WARN\"", Honoured(|s| s.log.level == LogLevel::Warn)),
    ("log_source_location", "log_source_location = true", Honoured(|s| s.log.source_location)),
    // What is known of an agent may always be that old; it is never older than the last look at the database.
    ("max_attested_node_info_staleness", "max_attested_node_info_staleness = \"1m\"", NoEffect),
    ("profiling_enabled", "profiling_enabled = true", Refused("there is no Go runtime to profile")),
    ("profiling_freq", "profiling_freq = 5", NoEffect),
    ("profiling_names", "profiling_names = [\"heap\"]", NoEffect),
    ("profiling_port", "profiling_port = 6060", NoEffect),
    ("proxy_protocol_trusted_cidrs", "proxy_protocol_trusted_cidrs = [\"10.0.0.0/8\"]", Honoured(|s| s.proxies[0].to_string() == "10.0.0.0/8")),
    ("proxy_protocol_trusted_cidrs", "proxy_protocol_trusted_cidrs = [\"10.0.0.0\"]", Refused("invalid proxy_protocol_trusted_cidrs value \"10.0.0.0\": invalid CIDR address: 10.0.0.0")),
    ("prune_attested_nodes_batch_size", "prune_attested_nodes_expired_for = \"1h\" prune_attested_nodes_batch_size = 7", Honoured(|s| s.prune_nodes.unwrap().batch == 7)),
    ("prune_attested_nodes_expired_for", "prune_attested_nodes_expired_for = \"1h\"", Honoured(|s| s.prune_nodes.unwrap().expired_for.as_secs() == 3600)),
    ("prune_tofu_nodes", "prune_attested_nodes_expired_for = \"1h\" prune_tofu_nodes = true", Honoured(|s| s.prune_nodes.unwrap().include_tofu)),
    ("ratelimit", "ratelimit { attestation = false }", Honoured(|s| !s.rate_limits.attestation && s.rate_limits.signing)),
    ("ratelimit", "ratelimit { signing = false }", Honoured(|s| s.rate_limits.attestation && !s.rate_limits.signing)),
    ("socket_path", "socket_path = \"/s\"", Honoured(|s| s.socket_path == Path::new("/s"))),
    ("trust_domain", "", Honoured(|s| s.trust_domain.name() == "example.org")),
    ("experimental.agent_spiffe_id_as_selector", "agent_spiffe_id_as_selector = true", Honoured(|s| s.agent_spiffe_id_as_selector)),
    ("experimental.auth_opa_policy_engine", "auth_opa_policy_engine { local { rego_path = \"x\" } }", Refused("auth_opa_policy_engine: the permission table")),
    ("experimental.cache_reload_interval", "cache_reload_interval = \"1s\"", Honoured(|s| s.feed.reload.as_secs() == 1)),
    ("experimental.event_timeout", "event_timeout = \"1m\"", Honoured(|s| s.feed.event_timeout.as_secs() == 60)),
    ("experimental.events_based_cache", "events_based_cache = true", NoEffect),
    ("experimental.feature_flags", "feature_flags = [\"i_am_a_test_flag\"]", NoEffect),
    ("experimental.feature_flags", "feature_flags = [\"wit-svid\"]", Refused("WIT-SVIDs are not built")),
    ("experimental.feature_flags", "feature_flags = [\"y\", \"x\"]", Refused("error loading feature flags: unknown feature flag(s): [x y]")),
    ("experimental.full_cache_reload_interval", "full_cache_reload_interval = \"1h\"", Honoured(|s| s.feed.full_reload.as_secs() == 3600)),
    ("experimental.named_pipe_name", "named_pipe_name = \"x\"", Refused("named_pipe_name is not supported in this platform; please use socket_path instead")),
    ("experimental.prune_events_older_than", "prune_events_older_than = \"1h\"", Honoured(|s| s.prune_events_older_than.as_secs() == 3600)),
    ("experimental.require_pq_kem", "require_pq_kem = true", Honoured(|s| s.require_pq_kem)),
    ("experimental.sql_transaction_timeout", "sql_transaction_timeout = \"1m\"", Honoured(|s| s.feed.event_timeout.as_secs() == 60 && matches!(s.warnings[0], Notice::Deprecated(_)))),
    ("experimental.wit_issuer", "wit_issuer = \"x\"", NoEffect),
    ("experimental.wit_key_type", "wit_key_type = \"ec-p256\"", NoEffect),
    ("experimental.wit_key_type", "wit_key_type = \"x\"", Refused("key type \"x\" is unknown")),
];

#[test]
fn every_key_of_spire_is_honoured_or_refused_by_name() {
    for (key, text, verdict) in KEYS {
        let text = if key.starts_with("experimental.") {
            format!("experimental {{ {text} }}")
        } else {
            (*text).to_owned()
        };
        match (minimal(&text), verdict) {
            (Ok(settings), Honoured(shows)) => assert!(shows(&settings), "{text}: {settings:?}"),
            (Err(error), Refused(why)) => assert!(error.contains(why), "{text}: {error}"),
            (Ok(settings), NoEffect) => {
                let is_unknown = |notice: &Notice| notice.text().contains("unknown key");
                assert!(!settings.warnings.iter().any(is_unknown), "{text}: {:?}", settings.warnings);
            }
            (result, _) => panic!("{text}: {result:?}"),
        }
    }
}

/// Where SPIRE looks away.
#[test]
fn unknown_keys_are_fatal_where_they_are_in_spire() {
    for (text, is_fatal) in [
        ("no_such_key = 1", true),
        ("ca_subject { no_such_key = 1 }", true),
        ("ratelimit { no_such_key = 1 }", true),
        ("experimental { no_such_key = 1 }", false),
    ] {
        match minimal(text) {
            Ok(settings) => {
                assert!(!is_fatal, "{text}");
                let told = settings.warnings.iter().any(|notice| notice.text().contains("\"no_such_key\""));
                assert!(told, "{text}: {:?}", settings.warnings);
            }
            Err(error) => {
                assert!(is_fatal && error.contains("unknown key \"no_such_key\""), "{text}: {error}")
            }
        }
    }
    for (text, is_fatal) in [
        ("no_such_key = 1", true),
        ("telemetry { no_such_key = 1 }", false),
        ("telemetry { Prometheus { no_such_key = 1 } }", true),
        ("telemetry { InMem { no_such_key = 1 } }", true),
        ("telemetry { Statsd = [{ address = \"x\" no_such_key = 1 }] }", true),
        ("health_checks { no_such_key = 1 }", true),
    ] {
        let text = format!("server {{ trust_domain = \"x\" data_dir = \"x\" }}\n{PLUGINS}\n{text}");
        assert_eq!(read_file(&text, &Flags::default()).is_err(), is_fatal, "{text}");
    }
}
