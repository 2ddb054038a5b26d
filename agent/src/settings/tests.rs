//! Flags, files, and every key.

use std::time::Duration;

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
    let settings = Settings::load(&flags_for(dir.path())).unwrap();
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
    let settings = Settings::load(&flags).unwrap();
    assert_eq!((settings.server_address.as_str(), settings.server_port), ("flag.example", 9000));
    assert_eq!(settings.socket_path.as_deref(), Some(Path::new("/run/x.sock")));
    assert_eq!(settings.trust_domain.name(), "flag.org");
    assert_eq!(settings.data_dir, dir.path(), "an empty flag counts as not given");
}

#[test]
fn the_environment_is_expanded_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut flags = flags_for(dir.path());
    let text = FILE.replace("file.example", "a${FINIAL_NOT_SET}b").replace("DIR", "/d");
    std::fs::write(&flags.config, text).unwrap();
    assert_eq!(Settings::load(&flags).unwrap().server_address, "a${FINIAL_NOT_SET}b");
    flags.expand_env = true;
    assert_eq!(Settings::load(&flags).unwrap().server_address, "ab");
}

#[test]
fn a_missing_file_is_told_in_spires_words() {
    let flags = Flags { config: "/nonexist/../nonexist".into(), ..Flags::default() };
    assert_eq!(
        Settings::load(&flags).err().unwrap().to_string(),
        "could not find config file /nonexist: please use the -config flag"
    );
}

#[test]
fn ports_are_ports() {
    assert_eq!(port("8081"), Ok(8081));
    assert_eq!(port("foo"), Err(FlagError::Malformed));
    assert_eq!(port("65536"), Err(FlagError::OutOfRange));
}

/// The settings of [`FILE`] with these lines in `agent`.
fn with_lines(lines: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let flags = flags_for(dir.path());
    let text = FILE.replace("DIR", &dir.path().display().to_string()).replacen(
        "agent {",
        &format!("agent {{ {lines}"),
        1,
    );
    std::fs::write(&flags.config, text).unwrap();
    Settings::load(&flags).map_err(|error| error.to_string())
}

#[test]
fn the_keys_about_jwt_svids_are_honoured() {
    let settings = with_lines("").unwrap();
    assert_eq!(settings.cache.jwt_hit_timeout, Duration::from_secs(30));
    assert_eq!((settings.cache.max_jwt_svids, settings.allowed_foreign_jwt_claims), (0, vec![]));
    let settings = with_lines(
        r#"jwt_svid_cache_max_size = 7
           allowed_foreign_jwt_claims = ["role", "team"]
           experimental { jwt_svid_cache_hit_timeout = "5s" }"#,
    )
    .unwrap();
    assert_eq!(settings.cache.jwt_hit_timeout, Duration::from_secs(5));
    assert_eq!(settings.cache.max_jwt_svids, 7);
    assert_eq!(settings.allowed_foreign_jwt_claims, ["role", "team"]);

    for (timeout, text) in [
        ("4999ms", "jwt_svid_cache_hit_timeout (4.999s) must be greater than 5s"),
        ("30s", "jwt_svid_cache_hit_timeout (30s) must be less than 30s"),
    ] {
        let refused = with_lines(&format!("experimental {{ jwt_svid_cache_hit_timeout = {timeout:?} }}"))
            .err()
            .unwrap();
        assert!(refused.contains(text), "{refused}");
    }
    let refused = with_lines("jwt_svid_cache_max_size = -1").err().unwrap();
    assert!(refused.contains("jwt_svid_cache_max_size"), "{refused}");
}

/// What becomes of a line in `agent`.
enum Fate {
    /// It shows in the settings.
    Honoured(fn(&Settings) -> bool),
    /// The file is refused, with this in the text.
    Refused(&'static str),
}

use Fate::{Honoured, Refused};

/// Every key of SPIRE 1.15.3's `agent` block, with an example. `FILE` is one that exists.
const KEYS: &[(&str, &str, Fate)] = &[
    (
        "admin_socket_path",
        r#"admin_socket_path = "/run/adm/a.sock""#,
        Honoured(|s| s.admin_socket_path.as_deref() == Some(Path::new("/run/adm/a.sock"))),
    ),
    (
        "allow_unauthenticated_verifiers",
        "allow_unauthenticated_verifiers = true",
        Honoured(|s| s.allow_unauthenticated_verifiers),
    ),
    (
        "allowed_foreign_jwt_claims",
        r#"allowed_foreign_jwt_claims = ["role"]"#,
        Honoured(|s| s.allowed_foreign_jwt_claims == ["role"]),
    ),
    ("jwt_svid_cache_max_size", "jwt_svid_cache_max_size = 7", Honoured(|s| s.cache.max_jwt_svids == 7)),
    (
        "jwt_svid_cache_hit_timeout",
        r#"experimental { jwt_svid_cache_hit_timeout = "6s" }"#,
        Honoured(|s| s.cache.jwt_hit_timeout == Duration::from_secs(6)),
    ),
    (
        "authorized_delegates",
        r#"authorized_delegates = ["spiffe://example.org/d"]"#,
        Honoured(|s| s.authorized_delegates.iter().map(SpiffeId::as_str).eq(["spiffe://example.org/d"])),
    ),
    (
        "availability_target",
        r#"availability_target = "25h""#,
        Honoured(|s| s.cache.availability_target == Some(Duration::from_secs(25 * 3600))),
    ),
    ("data_dir", r#"data_dir = "/d""#, Honoured(|s| s.data_dir == Path::new("/d"))),
    ("disable_sds_api", "disable_sds_api = true", Honoured(|s| s.sds.is_none() && s.socket_path.is_some())),
    (
        "sds",
        r#"sds { default_svid_name = "a" default_bundle_name = "b" default_all_bundles_name = "c"
            disable_spiffe_cert_validation = true }"#,
        Honoured(|s| {
            s.sds
                == Some(SdsNames {
                    default_svid: "a".into(),
                    default_bundle: "b".into(),
                    default_all_bundles: "c".into(),
                    disable_spiffe_cert_validation: true,
                })
        }),
    ),
    (
        "disable_workload_api",
        "disable_workload_api = true",
        Honoured(|s| s.disable_workload_api && s.socket_path.is_some()),
    ),
    ("insecure_bootstrap", "insecure_bootstrap = true", Honoured(|s| s.bootstrap == Bootstrap::FirstMet)),
    ("join_token", r#"join_token = "t""#, Honoured(|_| true)),
    ("join_token_file", r#"join_token_file = "FILE""#, Honoured(|_| true)),
    ("log_file", r#"log_file = "/l""#, Honoured(|s| s.telemetry.file.as_deref() == Some(Path::new("/l")))),
    ("log_format", r#"log_format = "JSON""#, Honoured(|s| s.telemetry.format == LogFormat::Json)),
    ("log_level", r#"log_level = "WARN""#, Honoured(|s| s.telemetry.level == LogLevel::Warn)),
    ("log_selectors", r#"log_selectors = ["k8s:ns"]"#, Honoured(|s| s.log_selectors == ["k8s:ns"])),
    ("log_source_location", "log_source_location = true", Honoured(|s| s.telemetry.source_location)),
    (
        "rebootstrap_delay",
        r#"rebootstrap_delay = "3m""#,
        Honoured(|s| s.rebootstrap.delay == Duration::from_secs(180)),
    ),
    (
        "rebootstrap_mode",
        "rebootstrap_mode = \"auto\"\ntrust_bundle_path = \"/b\"",
        Honoured(|s| {
            s.rebootstrap == Rebootstrap { mode: RebootstrapMode::Auto, delay: Duration::from_secs(600) }
        }),
    ),
    ("server_address", r#"server_address = "x.example""#, Honoured(|s| s.server_address == "x.example")),
    ("server_port", r#"server_port = "8443""#, Honoured(|s| s.server_port == 8443)),
    (
        "socket_path",
        r#"socket_path = "/x.sock""#,
        Honoured(|s| s.socket_path.as_deref() == Some(Path::new("/x.sock"))),
    ),
    (
        "trust_bundle_format",
        "trust_bundle_format = \"spiffe\"\ntrust_bundle_path = \"/b\"",
        Honoured(|s| s.bootstrap == Bootstrap::File { path: "/b".into(), format: BundleFormat::Spiffe }),
    ),
    (
        "trust_bundle_path",
        r#"trust_bundle_path = "/b""#,
        Honoured(|s| s.bootstrap == Bootstrap::File { path: "/b".into(), format: BundleFormat::Pem }),
    ),
    (
        "trust_bundle_spiffe_workload_api",
        r#"trust_bundle_spiffe_workload_api = "unix:///a.sock""#,
        Honoured(|s| {
            let endpoint = Endpoint::Unix("/a.sock".into());
            s.bootstrap == Bootstrap::WorkloadApi { address: "unix:///a.sock".into(), endpoint }
        }),
    ),
    (
        "trust_bundle_unix_socket",
        "trust_bundle_unix_socket = \"/u.sock\"\ntrust_bundle_url = \"http://x/b\"",
        Honoured(|s| {
            let unix_socket = Some("/u.sock".into());
            s.bootstrap == Bootstrap::Url { url: "http://x/b".into(), unix_socket, format: BundleFormat::Pem }
        }),
    ),
    (
        "trust_bundle_url",
        r#"trust_bundle_url = "https://x/b""#,
        Honoured(|s| {
            s.bootstrap
                == Bootstrap::Url { url: "https://x/b".into(), unix_socket: None, format: BundleFormat::Pem }
        }),
    ),
    ("trust_domain", r#"trust_domain = "x.org""#, Honoured(|s| s.trust_domain.name() == "x.org")),
    (
        "workload_x509_svid_key_type",
        r#"workload_x509_svid_key_type = "rsa-2048""#,
        Honoured(|s| s.workload_key_type == KeyType::Rsa2048),
    ),
    ("x509_svid_cache_max_size", "x509_svid_cache_max_size = 7", Honoured(|s| s.cache.max_svids == 7)),
    (
        "admin_named_pipe_name",
        r#"experimental { admin_named_pipe_name = "p" }"#,
        Refused("not supported in this platform"),
    ),
    ("broker", "experimental { broker { socket_path = \"/b.sock\" } }", Refused("broker is refused: ")),
    (
        "feature_flags",
        r#"experimental { feature_flags = ["wit-svid"] }"#,
        Honoured(|s| s.warnings.iter().any(|notice| notice.text().contains("wit-svid"))),
    ),
    (
        "named_pipe_name",
        r#"experimental { named_pipe_name = "p" }"#,
        Refused("not supported in this platform"),
    ),
    (
        "ratelimit",
        "experimental { ratelimit { fetch_x509_svid = 1 fetch_jwt_svid = 2 fetch_x509_bundles = 3 \
        fetch_jwt_bundles = 4 stream_secrets = 5 fetch_secrets = 6 } }",
        Honoured(|s| {
            let all = &s.experimental.rate_limits;
            [all.fetch_x509_svid, all.fetch_jwt_svid, all.fetch_x509_bundles, all.fetch_jwt_bundles]
                == [1, 2, 3, 4]
                && [all.stream_secrets, all.fetch_secrets] == [5, 6]
        }),
    ),
    ("require_pq_kem", "experimental { require_pq_kem = true }", Honoured(|s| s.experimental.require_pq_kem)),
    (
        "sync_interval",
        r#"experimental { sync_interval = "7s" }"#,
        Honoured(|s| s.experimental.sync_interval == Duration::from_secs(7)),
    ),
    (
        "use_sync_authorized_entries",
        "experimental { use_sync_authorized_entries = false }",
        Honoured(|s| !s.experimental.use_sync_authorized_entries),
    ),
];

/// The file with one more line, and without those that the line replaces.
fn read_with(line: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "t").unwrap();
    let key = line.split_whitespace().next().unwrap_or_default();
    let source = ["trust_bundle_", "rebootstrap_mode"].iter().any(|own| key.starts_with(own));
    let usual: String = FILE
        .lines()
        .filter(|line| !line.trim_start().starts_with(&format!("{key} =")))
        .filter(|line| !source || !line.contains("insecure_bootstrap"))
        .map(|line| format!("{line}\n"))
        .collect();
    let text = usual
        .replacen("agent {", &format!("agent {{\n{line}"), 1)
        .replace("FILE", &path.display().to_string());
    let file = finial_daemon::settings::parse(&text, "agent.conf").unwrap();
    Settings::read(&file, &Flags::default()).map_err(|error| error.to_string())
}

#[test]
fn every_key_is_honoured_or_refused_by_name() {
    for (key, line, fate) in KEYS {
        assert!(line.contains(key));
        match (read_with(line), fate) {
            (Ok(settings), Honoured(shows)) => assert!(shows(&settings), "{key} does not show"),
            (Err(text), Refused(reason)) => {
                assert!(text.contains(key) && text.contains(reason), "{key}: {text}");
            }
            (Ok(_), Refused(_)) => panic!("{key} is accepted"),
            (Err(text), Honoured(_)) => panic!("{key}: {text}"),
        }
    }
    let text = read_with("no_such_key = 1").err().unwrap();
    assert!(text.contains("no_such_key"), "{text}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (line, reason) in [
        (
            "rebootstrap_mode = \"sometimes\"\ntrust_bundle_path = \"/b\"",
            "unknown rebootstrap mode specified: sometimes",
        ),
        ("rebootstrap_delay = \"soon\"", "error parsing rebootstrap delay duration"),
        ("join_token_file = \"/dev/null\"", "join token file is empty"),
        ("join_token = \"a\"\njoin_token_file = \"FILE\"", "only one of join_token"),
        ("availability_target = \"23h\"", "at least 24h"),
        ("authorized_delegates = [\"spiffe://other.org/d\"]", "error validating authorized delegate"),
        ("authorized_delegates = [\"web\"]", "error validating authorized delegate"),
        ("x509_svid_cache_max_size = -1", "out of range"),
        ("experimental { feature_flags = [\"z\", \"y\"] }", "unknown feature flag(s): [y z]"),
        (
            "experimental { ratelimit { fetch_secrets = -1 } }",
            "experimental.ratelimit.fetch_secrets must not be negative",
        ),
        ("experimental { ratelimit { fetch_secret = 1 } }", "did you mean"),
        (
            "trust_bundle_path = \"/b\"\ntrust_bundle_url = \"https://x\"",
            "only one of trust_bundle_url and trust_bundle_path",
        ),
        ("trust_bundle_url = \"http://x\"", "must start with https://"),
        ("trust_bundle_url = \"http://x?spire-a=1\"\ntrust_bundle_unix_socket = \"/s\"", "spire-"),
        ("trust_bundle_unix_socket = \"/s\"\ntrust_bundle_path = \"/b\"", "so must be trust_bundle_url"),
        (
            "trust_bundle_spiffe_workload_api = \"/a.sock\"",
            "is not a valid SPIFFE Workload API endpoint address",
        ),
        ("trust_bundle_spiffe_workload_api = \"tcp://localhost:1\"", "tcp://IP:PORT"),
    ] {
        let text = read_with(line).err().unwrap_or_default();
        assert!(text.contains(reason), "{line}: {text}");
    }
    let text = read_with("rebootstrap_mode = \"always\"\ninsecure_bootstrap = true").err().unwrap();
    assert!(text.contains("insecure_bootstrap option can not be used with rebootstrapping"), "{text}");
}

#[test]
fn the_admin_socket_is_not_where_everybody_may_go() {
    let refusal = "admin socket cannot be in the same directory or a subdirectory as that containing the Workload API socket";
    for (admin, fine) in [
        ("/run/pub/adm.sock", false),
        ("/run/pub/below/adm.sock", false),
        ("/run/other/../pub/adm.sock", false),
        ("/run/adm.sock", true),
        ("/run/public/adm.sock", true),
    ] {
        let read = read_with(&format!("admin_socket_path = {admin:?}\nsocket_path = \"/run/pub/a.sock\""));
        assert_eq!(read.is_ok(), fine, "{admin}");
        assert!(read.err().is_none_or(|text| text.contains(refusal)));
    }
    let none = "admin_socket_path = \"/run/pub/adm.sock\"\nsocket_path = \"/run/pub/a.sock\"\n\
                disable_workload_api = true\ndisable_sds_api = true";
    let settings = read_with(none).unwrap();
    assert_eq!(settings.socket_path, None, "nothing is left to serve on it");
}

#[test]
fn flags_do_what_keys_do() {
    let folder = tempfile::tempdir().unwrap();
    let flags = Flags {
        trust_bundle: Some("/b".into()),
        rebootstrap_mode: Some("always".into()),
        rebootstrap_delay: Some("1s".into()),
        disable_workload_api: true,
        disable_sds_api: true,
        allow_unauthenticated_verifiers: true,
        ..flags_for(folder.path())
    };
    let text = std::fs::read_to_string(&flags.config).unwrap().replace("insecure_bootstrap = true", "");
    std::fs::write(&flags.config, text).unwrap();
    let settings = Settings::load(&flags).unwrap();
    let rebootstrap = Rebootstrap { mode: RebootstrapMode::Always, delay: Duration::from_secs(1) };
    assert_eq!(settings.rebootstrap, rebootstrap);
    assert!(settings.socket_path.is_none() && settings.allow_unauthenticated_verifiers);
}
