use std::io::Read as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use super::*;

/// A process that lives until its standard input is closed or it is killed.
fn child() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_peer_of_a_socket_is_the_process_that_connected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    let peer = LocalPeer::from_socket(&server).unwrap();
    assert_eq!(peer.pid(), std::process::id());
    assert_eq!(peer.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(peer.gid(), nix::unistd::getegid().as_raw());
    peer.is_alive().unwrap();
    peer.is_alive().unwrap();
}

#[test]
fn proc_is_read_through_the_kept_directory() {
    let peer = LocalPeer::of_process(std::process::id()).unwrap();
    assert_eq!(peer.read_link("exe").unwrap(), std::env::current_exe().unwrap());
    let mut comm = String::new();
    peer.open("comm").unwrap().read_to_string(&mut comm).unwrap();
    assert_eq!(comm.as_bytes(), peer.read("comm").unwrap());
    assert!(peer.read("no such file").is_err());
    let status = openat(peer.proc_dir(), "status", OFlag::O_RDONLY, Mode::empty());
    assert!(status.is_ok());
}

#[test]
fn a_killed_process_is_gone_before_and_after_it_is_reaped() {
    let mut child = child();
    let peer = LocalPeer::of_process(child.id()).unwrap();
    assert!(peer.pidfd.is_some(), "this kernel has pidfds");
    peer.is_alive().unwrap();
    child.kill().unwrap();
    // Waits until the process has exited, and leaves it a zombie.
    let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(child.id() as i32));
    nix::sys::wait::waitid(id, nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT)
        .unwrap();
    assert!(matches!(peer.is_alive(), Err(PeerGone::Exited { pid }) if pid == child.id()));
    assert!(matches!(LocalPeer::of_process(child.id()), Err(PeerError::Gone(PeerGone::Exited { .. }))));
    child.wait().unwrap();
    assert!(matches!(peer.is_alive(), Err(PeerGone::Exited { .. })));
    assert!(matches!(LocalPeer::of_process(peer.pid()), Err(PeerError::Gone(PeerGone::Exited { .. }))));
}

#[test]
fn without_a_pidfd_the_dead_directory_tells() {
    let child = child();
    let mut peer = LocalPeer::of_process(child.id()).unwrap();
    peer.pidfd = None;
    peer.is_alive().unwrap();
    end(child);
    assert!(matches!(peer.is_alive(), Err(PeerGone::Unseen { .. })));
    assert!(peer.read("status").is_err());
}

#[test]
fn another_start_time_or_owner_is_another_process() {
    let child = child();
    let mut peer = LocalPeer::of_process(child.id()).unwrap();
    let honest = std::mem::replace(&mut peer.start_time, "1".to_owned());
    let error = peer.is_alive().unwrap_err();
    assert!(
        matches!(&error, PeerGone::Restarted { expected, found, .. } if expected == "1" && *found == honest)
    );
    assert!(error.to_string().contains("does not match original caller 1"), "{error}");
    peer.start_time = honest;
    peer.is_alive().unwrap();
    peer.uid += 1;
    assert!(matches!(peer.is_alive(), Err(PeerGone::OwnerChanged { .. })));
    peer.uid -= 1;
    peer.gid += 1;
    assert!(matches!(peer.is_alive(), Err(PeerGone::OwnerChanged { .. })));
    end(child);
}

#[test]
fn who_has_the_number_later_is_not_taken_for_the_caller() {
    let Some((peer, mut successor)) = recycled() else {
        eprintln!("SKIPPED: may not choose process IDs here (/proc/sys/kernel/ns_last_pid)");
        return;
    };
    assert_eq!(peer.pid(), successor.id());
    assert!(matches!(peer.is_alive(), Err(PeerGone::Exited { .. })));
    assert!(peer.read("stat").is_err(), "the directory handle does not lead to the successor");
    let without_pidfd = LocalPeer { pidfd: None, ..peer };
    assert!(without_pidfd.is_alive().is_err());
    LocalPeer::of_process(successor.id()).unwrap().is_alive().unwrap();
    successor.kill().unwrap();
    successor.wait().unwrap();
}

/// A peer that is dead and the process that has its number now.
fn recycled() -> Option<(LocalPeer, Child)> {
    for _ in 0..200 {
        let first = child();
        let peer = LocalPeer::of_process(first.id()).unwrap();
        end(first);
        std::fs::write("/proc/sys/kernel/ns_last_pid", (peer.pid() - 1).to_string()).ok()?;
        let second = child();
        if second.id() == peer.pid() {
            return Some((peer, second));
        }
        end(second);
    }
    None
}

#[test]
fn process_zero_is_an_outer_namespace() {
    let error = LocalPeer::of_process(0).unwrap_err();
    assert!(matches!(error, PeerError::OuterNamespace));
    assert!(error.to_string().contains("hostPID"), "{error}");
}

#[test]
fn only_sockets_have_peers() {
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(LocalPeer::from_socket(&file), Err(PeerError::Credentials(_))));
}

#[test]
fn finds_the_start_time_behind_any_command_name() {
    let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24";
    for name in ["cat", "a b", "(x)", ") S 1 2 (", ""] {
        let stat = format!("4711 ({name}) {}", fields.replace(" 19 ", " 987654 "));
        assert_eq!(start_time(stat.as_bytes()), Some("987654"), "{name}");
    }
    assert_eq!(start_time(b"4711 (\xff\xfe) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 42"), Some("42"));
    for bad in ["", "4711", "4711 (cat", "4711 )cat(", "4711 (cat) S 1 2 3", "4711 (cat)"] {
        assert_eq!(start_time(bad.as_bytes()), None, "{bad}");
    }
    let negative = format!("4711 (cat) {}", fields.replace(" 19 ", " -5 "));
    assert_eq!(start_time(negative.as_bytes()), None);
}
