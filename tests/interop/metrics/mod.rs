//! What Prometheus reads from both programs in a scenario, against what it reads from SPIRE's in the same one.
//!
//! `golden.txt` has a line for each family of SPIRE 1.15.3: program, type, name, labels. It was captured by `scenario.sh`, as
//! docs/operations.md says.

mod tls;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use finial_tests::real;

const GOLDEN: &str = include_str!("golden.txt");

/// Families of SPIRE that these programs have not, each with the reason. A name stands for all that begin with it.
const ABSENT: &[(&str, &str)] = &[
    ("spire_agent_runtime_", "there is no Go runtime; see process_*"),
    ("spire_server_runtime_", "there is no Go runtime; see process_*"),
    ("spire_agent_cache_manager_svid_store_", "SVIDStore plugins are not built"),
    ("spire_agent_cache_manager_expiring_svids_svid_store", "SVIDStore plugins are not built"),
    ("spire_agent_store_store_svid_updates", "SVIDStore plugins are not built"),
    ("spire_agent_agent_key_manager_get_keys", "an agent without an SVID has no reason to look for its key"),
    (
        "spire_server_rpc_entry_v1_entry_sync_authorized_entries",
        "Finial's agents are told of changes instead",
    ),
    ("spire_server_node_agents_by_expiresat_cache_count", "agents are not sorted by expiry"),
    ("spire_server_bundle_manager_fetch_federated_bundle", "bundle endpoints are not asked yet"),
];

/// Families that SPIRE has not, or has in other moments than those of the scenario.
const OURS: &[&str] = &["_finial_", "spire_server_datastore_ca_journal_fetch"];

#[tokio::test]
async fn the_same_families_as_spires() {
    for (command, probe) in [("bash", "--version"), ("python3", "--version"), ("curl", "--version")] {
        if !real::has_command(command, probe) {
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/metrics/scenario.sh");
    let mut command = tokio::process::Command::new(script);
    let ran = command
        .args([real::binary("finial-server"), real::binary("finial-agent"), out.clone()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let found = std::fs::read_to_string(out.join("families.txt")).unwrap();
    let found: BTreeSet<&str> = found.lines().map(str::trim_end).collect();
    let golden: BTreeSet<&str> = GOLDEN.lines().map(str::trim_end).collect();
    let name = |line: &&&str| line.split(' ').nth(2).unwrap_or_default().to_owned();
    let is_absent = |line: &&&str| ABSENT.iter().any(|(absent, _)| name(line).starts_with(absent));
    let is_ours = |line: &&&str| OURS.iter().any(|ours| name(line).contains(ours));
    let missing: Vec<_> = golden.difference(&found).filter(|line| !is_absent(line)).collect();
    let more: Vec<_> = found.difference(&golden).filter(|line| !is_ours(line)).collect();
    assert!(missing.is_empty() && more.is_empty(), "missing: {missing:#?}\nmore: {more:#?}");
    let superfluous: Vec<_> = found.intersection(&golden).filter(is_absent).collect();
    assert!(superfluous.is_empty(), "said to be absent: {superfluous:#?}");
    // The pages as they were, for a reader of Prometheus' own.
    if Command::new("promtool").arg("--version").output().is_ok_and(|output| output.status.success()) {
        for page in ["server.late.prom", "agent.late.prom"] {
            let page = std::fs::File::open(out.join(page)).unwrap();
            let checked = Command::new("promtool").args(["check", "metrics"]).stdin(page).output().unwrap();
            // 1: could not be read; 3: style only, and the style is SPIRE's.
            assert_ne!(checked.status.code(), Some(1), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
    for (file, expected) in [
        (
            "server.ready",
            "{\"catalog.datastore\":{},\"server\":{},\"server.ca\":{},\"server.ca.rotator\":{}}\n",
        ),
        ("agent.ready", "{\"agent\":{}}\n"),
    ] {
        assert_eq!(std::fs::read_to_string(out.join(file)).unwrap(), expected, "{file}");
    }
    for (file, program) in [("statsd.raw", "spire_server.rpc."), ("dogstatsd.raw", "spire_agent.rpc.")] {
        let pushed = std::fs::read_to_string(out.join(file)).unwrap();
        assert!(pushed.lines().any(|line| line.starts_with(program)), "{file}: nothing of {program}");
    }
}
