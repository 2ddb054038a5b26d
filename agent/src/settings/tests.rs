//! Flags, files, and every key.

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
fn flags_that_are_not_built_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let given = || flags_for(dir.path());
    for (flags, name) in [
        (Flags { rebootstrap_mode: Some("auto".into()), ..given() }, "-rebootstrapMode"),
        (Flags { rebootstrap_delay: Some("10m".into()), ..given() }, "-rebootstrapDelay"),
        (Flags { disable_workload_api: true, ..given() }, "-disableWorkloadAPI"),
    ] {
        let error = Settings::load(&flags).err().unwrap().to_string();
        assert!(error.starts_with(&format!("the flag {name} is refused: ")), "{error}");
    }
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
