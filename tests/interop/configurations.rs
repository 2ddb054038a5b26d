//! Configurations that are refused: by file, line and key, with the nearest key that there is.

use finial_tests::real::Programs;

/// One change to a configuration that is fine, and what must be said of it.
struct Fault {
    /// What is replaced, and by what.
    change: (&'static str, &'static str),
    /// The line whose text is this one is named.
    line: Option<&'static str>,
    said: &'static [&'static str],
}

const fn fault(
    change: (&'static str, &'static str),
    line: Option<&'static str>,
    said: &'static [&'static str],
) -> Fault {
    Fault { change, line, said }
}

const OF_SERVER: [Fault; 16] = [
    fault(
        ("bind_address =", "bind_adress ="),
        Some("bind_adress"),
        &["unknown key \"bind_adress\" in server block", "did you mean \"bind_address\"?"],
    ),
    fault(("log_level =", "colour ="), Some("colour"), &["unknown key \"colour\" in server block"]),
    fault(
        ("log_level = \"DEBUG\"", "log_level = \"DEBUG\"\n    # twice\n    log_level = \"INFO\""),
        Some("\"INFO\""),
        &["log_level", "twice"],
    ),
    fault(("bind_port =", "bind_port = \"a lot\" #"), Some("a lot"), &["bind_port"]),
    fault(("bind_port =", "bind_port = 65536 #"), Some("65536"), &["bind_port", "65536"]),
    fault(("bind_port =", "bind_port = [8081] #"), Some("[8081]"), &["bind_port"]),
    fault(("log_level =", "ca_ttl = \"soon\"\n    log_level ="), Some("soon"), &["ca_ttl"]),
    fault(("log_level = \"DEBUG\"", "log_level = \"LOUD\""), None, &["log_level", "LOUD"]),
    fault(
        ("log_level =", "ca_key_type = \"ec-p255\"\n    log_level ="),
        Some("ec-p255"),
        &["ca_key_type", "ec-p255", "ec-p256"],
    ),
    fault(
        ("trust_domain = \"example.org\"", "trust_domain = \"Example.org\""),
        None,
        &["trust_domain", "lowercase"],
    ),
    fault(("trust_domain =", "# trust_domain ="), None, &["trust_domain must be configured"]),
    fault(
        ("log_level =", "federation { bundle_endpoint { port = 8443 } }\n    log_level ="),
        Some("8443"),
        &["bundle_endpoint", "not built yet"],
    ),
    fault(("keys_path =", "key_path ="), Some("key_path"), &["key_path", "did you mean \"keys_path\"?"]),
    fault(("KeyManager \"disk\"", "KeyManager \"disc\""), None, &["KeyManager", "\"disc\""]),
    fault(("database_type = \"sqlite3\"", "database_type = \"sqlite\""), None, &["database_type", "sqlite3"]),
    fault(("plugins {", "plugins {{"), Some("plugins {{"), &[]),
];

const OF_AGENT: [Fault; 9] = [
    fault(
        ("server_address =", "server_adress ="),
        Some("server_adress"),
        &["unknown key \"server_adress\"", "did you mean \"server_address\"?"],
    ),
    fault(("server_port =", "server_port = \"a lot\" #"), Some("a lot"), &["server_port"]),
    fault(
        ("log_level = \"DEBUG\"", "log_level = \"DEBUG\"\n    log_level = \"INFO\""),
        Some("\"INFO\""),
        &["log_level", "twice"],
    ),
    fault(
        ("insecure_bootstrap = true", ""),
        None,
        &["insecure_bootstrap", "trust_bundle_path", "trust_bundle_url"],
    ),
    fault(
        ("insecure_bootstrap = true", "insecure_bootstrap = true\n    trust_bundle_path = \"/x\""),
        None,
        &["insecure_bootstrap", "trust_bundle_path"],
    ),
    fault(
        ("log_level =", "availability_target = \"1h\"\n    log_level ="),
        Some("availability_target"),
        &["availability_target must be at least 24h0m0s"],
    ),
    fault(("directory =", "directry ="), Some("directry"), &["directry", "did you mean \"directory\"?"]),
    fault(
        ("discover_workload_path", "discover_workload_pth"),
        Some("discover_workload_pth"),
        &["did you mean \"discover_workload_path\"?"],
    ),
    fault(
        ("WorkloadAttestor \"unix\"", "WorkloadAttestor \"windows\""),
        None,
        &["WorkloadAttestor", "\"windows\""],
    ),
];

#[tokio::test]
async fn a_servers_faults_are_named() {
    let programs = Programs::new(|_| String::new());
    check(&programs, "finial-server", "server.conf", &programs.server_configuration(), &OF_SERVER).await;
    assert!(!programs.path("datastore.sqlite3").exists(), "validate touches nothing");
}

#[tokio::test]
async fn an_agents_faults_are_named() {
    let programs = Programs::new(|_| String::new());
    check(&programs, "finial-agent", "agent.conf", &programs.agent_configuration(), &OF_AGENT).await;
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let programs = Programs::new(|_| String::new());
    let missing = programs.path("missing.conf");
    for program in ["finial-server", "finial-agent"] {
        let ended = programs.run(program, &["validate", "-config", missing.to_str().unwrap()]).await;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("missing.conf") && said.contains("-config"), "{said}");
    }
}

async fn check(programs: &Programs, program: &str, name: &str, good: &str, faults: &[Fault]) {
    let file = programs.path(name);
    let path = file.to_str().unwrap();
    let noun = program.strip_prefix("finial-").unwrap();
    std::fs::write(&file, good).unwrap();
    let ended = programs.run(program, &["validate", "-config", path]).await;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(said.trim(), format!("SPIRE {noun} configuration file is valid."));

    for Fault { change: (from, to), line, said: expected } in faults {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from:?} is not in the configuration");
        std::fs::write(&file, &text).unwrap();
        for verb in ["validate", "run"] {
            let ended = programs.run(program, &[verb, "-config", path]).await;
            let said = [ended.stderr, ended.stdout].concat();
            // The log writes quotes as \".
            let said = String::from_utf8_lossy(&said).replace("\\\"", "\"");
            assert_eq!(ended.status.code(), Some(1), "{verb} with {to:?}: {said}");
            for expected in *expected {
                assert!(said.contains(expected), "{verb} with {to:?}: {expected:?} is not in: {said}");
            }
            if let Some(line) = line {
                let number = text.lines().position(|text| text.contains(line)).unwrap() + 1;
                let place = format!("{path}:{number}:");
                assert!(said.contains(&place), "{verb} with {to:?}: {place} is not in: {said}");
            }
            if verb == "validate" {
                let start = format!("SPIRE {noun} configuration file is invalid: ");
                assert!(said.starts_with(&start), "{said}");
            }
        }
    }
}
