use std::process::{Command, Stdio};

use super::*;

fn me() -> Arc<LocalPeer> {
    Arc::new(LocalPeer::of_process(std::process::id()).unwrap())
}

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The values found under a key.
fn values<'a>(found: &'a [Selector], key: &str) -> Vec<&'a str> {
    let value = |selector: &'a Selector| {
        assert_eq!(selector.kind, "unix");
        selector.value.strip_prefix(key)?.strip_prefix(':')
    };
    found.iter().filter_map(value).collect()
}

fn with_path(limit: i64) -> Unix {
    Unix { discover_workload_path: true, workload_size_limit: limit, host_proc: None }
}

#[tokio::test]
async fn users_and_groups_are_those_that_id_tells() {
    let found = Unix::default().attest(&me()).await.unwrap();
    let id = |option: &str| said_by("id", &[option]);
    assert_eq!(values(&found, "uid"), [id("-u").trim()]);
    assert_eq!(values(&found, "user"), [id("-un").trim()]);
    assert_eq!(values(&found, "gid"), [id("-g").trim()]);
    assert_eq!(values(&found, "group"), [id("-gn").trim()]);

    // `id -G` adds the effective group, which need not be among the supplementary ones.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    assert_eq!(values(&found, "supplementary_gid"), groups.split_whitespace().collect::<Vec<_>>());
    let all_ids = id("-G");
    let all_names = id("-Gn");
    for gid in values(&found, "supplementary_gid") {
        assert!(all_ids.split_whitespace().any(|other| other == gid), "{gid} is not in {all_ids}");
    }
    for name in values(&found, "supplementary_group") {
        assert!(all_names.split_whitespace().any(|other| other == name), "{name} is not in {all_names}");
    }
    assert!(values(&found, "path").is_empty());
    assert!(values(&found, "sha256").is_empty());
}

#[tokio::test]
async fn the_program_is_found_and_hashed_on_request() {
    let found = with_path(0).attest(&me()).await.unwrap();
    let exe = std::env::current_exe().unwrap().canonicalize().unwrap();
    let exe = exe.to_str().unwrap();
    assert_eq!(values(&found, "path"), [exe]);
    let sum = said_by("sha256sum", &[exe]);
    assert_eq!(values(&found, "sha256"), [sum.split_whitespace().next().unwrap()]);
}

#[tokio::test]
async fn the_size_limit_spares_refuses_or_admits() {
    let exe = std::env::current_exe().unwrap();
    let size = i64::try_from(exe.metadata().unwrap().len()).unwrap();

    let found = with_path(-1).attest(&me()).await.unwrap();
    assert_eq!(values(&found, "path").len(), 1);
    assert!(values(&found, "sha256").is_empty());

    let fault = with_path(size - 1).attest(&me()).await.unwrap_err();
    assert!(fault.to_string().contains(&format!("exceeds size limit ({size} > {})", size - 1)), "{fault}");

    let found = with_path(size).attest(&me()).await.unwrap();
    assert_eq!(values(&found, "sha256").len(), 1);
}

#[tokio::test]
async fn host_proc_is_looked_into() {
    let through = |path: &str| Unix { host_proc: Some(path.into()), ..with_path(-1) };
    let direct = with_path(-1).attest(&me()).await.unwrap();
    assert_eq!(through("/proc").attest(&me()).await.unwrap(), direct);

    let elsewhere = tempfile::tempdir().unwrap();
    let fault = through(elsewhere.path().to_str().unwrap()).attest(&me()).await.unwrap_err();
    assert!(matches!(fault, AttestorFault::Unreadable { .. }), "{fault}");

    // A directory made by hand shows that it is this one that is read.
    let dir = elsewhere.path().join(std::process::id().to_string());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("status"), "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t4294967294\n")
        .unwrap();
    let unix = Unix { discover_workload_path: false, ..through(elsewhere.path().to_str().unwrap()) };
    let found = unix.attest(&me()).await.unwrap();
    assert_eq!(values(&found, "uid"), ["2"]);
    assert_eq!(values(&found, "gid"), ["6"]);
    assert_eq!(values(&found, "supplementary_gid"), ["4294967294"]);
    assert!(values(&found, "supplementary_group").is_empty(), "a group without a name has only a number");
}

#[tokio::test]
async fn a_process_that_is_gone_is_not_attested() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let peer = Arc::new(LocalPeer::of_process(child.id()).unwrap());
    assert!(with_path(-1).attest(&peer).await.is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    let fault = with_path(-1).attest(&peer).await.unwrap_err();
    assert!(matches!(fault, AttestorFault::Unreadable { what: "status", .. }), "{fault}");
}

#[test]
fn status_is_read_whatever_the_process_calls_itself() {
    let text = "Name:\tUid:\t0\nUmask:\t0022\nUid:\t10\t11\t12\t13\nGid:\t20\t21\t22\t23\nGroups:\t \n";
    assert_eq!(Status::read(text), Some(Status { uid: 11, gid: 21, groups: vec![] }));
    for broken in [
        "",
        "Uid:\t1\t2\t3\t4\nGid:\t1\t2\t3\t4\n",
        "Uid:\t1\nGid:\t1\t2\nGroups:\n",
        "Uid:\t1\tx\nGid:\t1\t2\nGroups:\n",
        "Uid:\t1\t2\nGid:\t1\t2\nGroups:\t5 99999999999\n",
    ] {
        assert_eq!(Status::read(broken), None, "{broken:?}");
    }
}
