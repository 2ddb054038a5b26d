use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Command;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const MODE: SocketMode = SocketMode { socket: 0o770, dir: 0o750 };
/// Tells [`child_that_connects`] where to.
const CONNECT_TO: &str = "FINIAL_TEST_CONNECT_TO";

fn room() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    (dir, path)
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Not a test of its own: the body of the child process that [`connect_and_die`] runs.
#[test]
fn child_that_connects() {
    if let Some(path) = std::env::var_os(CONNECT_TO) {
        StdUnixStream::connect(path).unwrap();
    }
}

/// Another process connects to `path` and is dead and reaped when this returns.
fn connect_and_die(path: &Path) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "listen::unix::tests::child_that_connects"])
        .env(CONNECT_TO, path)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn serves_pinned_processes() {
    let (_dir, path) = room();
    let mut incoming = unix(&path, MODE).unwrap();
    let mut client = UnixStream::connect(&path).await.unwrap();
    let mut accepted = incoming.next().await.unwrap().unwrap();
    let Origin::Local(peer) = &accepted.origin else { panic!("{:?}", accepted.origin) };
    assert_eq!(peer.pid(), std::process::id());
    client.write_all(b"hi").await.unwrap();
    let mut two = [0; 2];
    accepted.io.read_exact(&mut two).await.unwrap();
    assert_eq!(&two, b"hi");
}

#[tokio::test]
async fn refuses_a_process_that_died_before_it_was_accepted() {
    let (_dir, path) = room();
    let mut incoming = unix(&path, MODE).unwrap();
    connect_and_die(&path);
    let _client = UnixStream::connect(&path).await.unwrap();
    let accepted = incoming.next().await.unwrap().unwrap();
    let Origin::Local(peer) = &accepted.origin else { panic!("{:?}", accepted.origin) };
    assert_eq!(peer.pid(), std::process::id(), "the dead one was passed over");
}

#[tokio::test]
async fn by_permission_serves_whom_it_cannot_pin() {
    let (_dir, path) = room();
    let mut incoming = unix_by_permission(&path, MODE).unwrap();
    connect_and_die(&path);
    let accepted = incoming.next().await.unwrap().unwrap();
    assert!(matches!(accepted.origin, Origin::LocalUnknown));
    let _client = UnixStream::connect(&path).await.unwrap();
    let accepted = incoming.next().await.unwrap().unwrap();
    assert!(matches!(accepted.origin, Origin::Local(peer) if peer.pid() == std::process::id()));
}

#[tokio::test]
async fn makes_directory_and_socket_with_their_modes() {
    let (dir, _) = room();
    let path = dir.path().join("outer/inner/api.sock");
    let _incoming = unix(&path, SocketMode { socket: 0o777, dir: 0o755 }).unwrap();
    assert_eq!(mode_of(&path), 0o777);
    assert_eq!(mode_of(path.parent().unwrap()), 0o755);
    assert_eq!(names(path.parent().unwrap()), ["api.sock"], "no other name is left");
}

#[tokio::test]
async fn leaves_a_directory_that_exists_as_it_is() {
    let (dir, path) = room();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let _incoming = unix(&path, MODE).unwrap();
    assert_eq!(mode_of(dir.path()), 0o711);
    assert_eq!(mode_of(&path), 0o770);
}

#[tokio::test]
async fn replaces_a_socket_that_a_dead_process_left() {
    let (_dir, path) = room();
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut incoming = unix(&path, MODE).unwrap();
    let _client = UnixStream::connect(&path).await.unwrap();
    incoming.next().await.unwrap().unwrap();
}

#[tokio::test]
async fn leaves_a_socket_alone_that_another_process_serves() {
    let (dir, path) = room();
    let mut first = unix(&path, MODE).unwrap();
    let Err(error) = unix(&path, MODE) else { panic!("two listeners on one name") };
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let text = error.to_string();
    assert!(text.starts_with("another process serves this socket: "), "{text}");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert_eq!(names(dir.path()), ["api.sock"]);
    // The probe came first, and is gone.
    first.next().await.unwrap().unwrap();
    let _client = UnixStream::connect(&path).await.unwrap();
    first.next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_listener_that_is_too_busy_to_accept_is_still_served() {
    let (_dir, path) = room();
    let socket = new_socket().unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&socket, Backlog::new(0).unwrap()).unwrap();
    let _queued = StdUnixStream::connect(&path).unwrap();
    let Err(error) = unix(&path, MODE) else { panic!("the socket was taken over") };
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn leaves_a_file_alone_that_is_no_socket() {
    let (_dir, path) = room();
    fs::write(&path, "precious").unwrap();
    let Err(error) = unix(&path, MODE) else { panic!("the file was replaced") };
    assert!(error.to_string().contains("is not a socket; remove it"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn the_name_goes_with_the_listener_but_not_a_successors() {
    let (dir, path) = room();
    let first = unix(&path, MODE).unwrap();
    drop(first);
    assert!(names(dir.path()).is_empty());

    let first = unix(&path, MODE).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = unix(&path, MODE).unwrap();
    drop(first);
    assert_eq!(names(dir.path()), ["api.sock"]);
}

#[tokio::test]
async fn names_as_long_as_the_system_allows_work_and_longer_ones_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let with_length = |length: usize| {
        let name = "x".repeat(length - dir.path().as_os_str().len() - 1);
        dir.path().join(name)
    };
    let path = with_length(107);
    let mut incoming = unix(&path, MODE).unwrap();
    let _client = UnixStream::connect(&path).await.unwrap();
    incoming.next().await.unwrap().unwrap();
    let Err(error) = unix(&with_length(108), MODE) else { panic!("nobody could connect to that") };
    assert!(error.to_string().contains("choose a shorter socket_path"), "{error}");
    assert_eq!(names(dir.path()).len(), 1);
}

#[tokio::test]
async fn errors_name_the_path() {
    for path in ["/proc/finial/api.sock", "/"] {
        let Err(error) = unix(Path::new(path), MODE) else { panic!("{path}") };
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[test]
fn the_mode_of_a_file_behind_a_link_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link, socket) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("socket"));
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&link, &file] {
        set_mode(path, 0o777).unwrap_err();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let _listener = StdUnixListener::bind(&socket).unwrap();
    set_mode(&socket, 0o642).unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o642);
}
