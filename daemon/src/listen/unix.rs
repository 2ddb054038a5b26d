//! Connections over Unix sockets: making the socket, pinning those who connect.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::Mode;
use tokio::net::{UnixListener, UnixStream};

use super::peer::{LocalPeer, PeerError};
use super::{Accepted, Incoming, Origin, after_accept_error};

/// The longest path that clients can name in a socket's address.
const LONGEST_PATH: usize = 107;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Who may connect: the permission bits of the socket, and those of its directory when that has to be
/// made. The process's umask does not lessen them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode {
    /// Bits of the socket file, for example `0o777`.
    pub socket: u32,
    /// Bits of a directory made for it, for example `0o755`.
    pub dir: u32,
}

/// Listens at `path` for processes of this machine, each pinned when it connects: every connection's origin
/// is [`Origin::Local`]. A process that cannot be pinned (it lives in an outer PID namespace, it died
/// already) is refused.
///
/// The directory is made when it is missing. A socket that a dead process left behind is replaced; one that
/// another process serves, or a file that is no socket, is an error. The socket appears under its name only
/// when it is ready, and disappears when the stream is dropped. Must be called within a tokio runtime.
pub fn unix(path: &Path, mode: SocketMode) -> io::Result<Incoming> {
    Ok(accept(make(path, mode)?, pinned))
}

/// Like [`unix`] for a socket whose file permissions alone decide who may connect: a process that cannot be
/// pinned, as when it sits in another container that shares the socket's directory, is served as
/// [`Origin::LocalUnknown`].
pub fn unix_by_permission(path: &Path, mode: SocketMode) -> io::Result<Incoming> {
    Ok(accept(make(path, mode)?, |socket| Ok(pinned(socket).unwrap_or(Origin::LocalUnknown))))
}

struct Listening {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's name in the file system, removed on drop when it still is this socket's.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

fn accept(listening: Listening, origin: fn(&UnixStream) -> Result<Origin, PeerError>) -> Incoming {
    stream::unfold(listening, move |listening| async move {
        let mut failures = 0;
        loop {
            match listening.listener.accept().await {
                Ok((socket, _)) => match origin(&socket) {
                    Ok(origin) => return Some((Ok(Accepted::new(socket, origin)), listening)),
                    Err(error @ PeerError::Gone(_)) => {
                        tracing::debug!(path = %listening.file.path.display(), %error, "Connection refused");
                    }
                    Err(error) => {
                        tracing::warn!(path = %listening.file.path.display(), %error, "Connection refused");
                    }
                },
                Err(error) => {
                    after_accept_error(&listening.file.path.to_string_lossy(), &error, failures).await;
                    failures += 1;
                }
            }
        }
    })
    .boxed()
}

fn pinned(socket: &UnixStream) -> Result<Origin, PeerError> {
    Ok(Origin::Local(Arc::new(LocalPeer::from_socket(socket)?)))
}

fn make(path: &Path, mode: SocketMode) -> io::Result<Listening> {
    let said = |what: &'static str| {
        move |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot {what} the socket {}: {error}", path.display()))
        }
    };
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no socket file", path.display()))
    })?;
    if path.as_os_str().len() > LONGEST_PATH {
        let text = format!(
            "the socket path {} is longer than the {LONGEST_PATH} bytes the system allows; choose a shorter socket_path",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    make_dir(dir, mode.dir).map_err(said("make the directory of"))?;
    check_replaceable(path)?;

    let socket = new_socket().map_err(said("make"))?;
    let (temporary, address) = temporary_name(dir, name).map_err(said("bind"))?;
    remove_if_there(&temporary).map_err(said("bind"))?;
    bind(socket.as_raw_fd(), &address).map_err(io::Error::from).map_err(said("bind"))?;
    let file = SocketFile::of(temporary.clone()).map_err(said("bind"))?;
    set_mode(&temporary, mode.socket).map_err(said("set the mode of"))?;
    let backlog = Backlog::new(BACKLOG).map_err(io::Error::from).map_err(said("listen on"))?;
    listen(&socket, backlog).map_err(io::Error::from).map_err(said("listen on"))?;
    let listener = UnixListener::from_std(StdUnixListener::from(socket)).map_err(said("listen on"))?;
    let file = file.rename(path).map_err(said("put in place"))?;
    Ok(Listening { listener, file })
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    // The umask took away some of the bits.
    fs::set_permissions(dir, Permissions::from_mode(mode))
}

/// Fails unless `path` is free or holds a socket that nobody serves.
fn check_replaceable(path: &Path) -> io::Result<()> {
    let refuse = |kind, text: String| Err(io::Error::new(kind, text));
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return refuse(error.kind(), format!("cannot look at the socket {shown}: {error}")),
        Ok(found) if !found.file_type().is_socket() => {
            let text = format!("{shown} exists and is not a socket; remove it or choose another socket_path");
            return refuse(io::ErrorKind::AlreadyExists, text);
        }
        Ok(_) => {}
    }
    let prober = new_socket()?;
    let address = UnixAddr::new(path)?;
    match connect(prober.as_raw_fd(), &address) {
        // The second: it is served, and its queue is full.
        Ok(()) | Err(Errno::EAGAIN) => refuse(
            io::ErrorKind::AddrInUse,
            format!("another process serves this socket: {shown}; stop it or choose another socket_path"),
        ),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        Err(errno) => {
            let text = format!("cannot tell whether another process serves the socket {shown}: {errno}");
            refuse(io::Error::from(errno).kind(), text)
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// A name beside the final one. It shows in listings of open sockets, so it says what it is where the
/// length of a socket's address allows.
fn temporary_name(dir: &Path, name: &OsStr) -> io::Result<(PathBuf, UnixAddr)> {
    let mut telling = OsString::from(".");
    telling.push(name);
    telling.push(format!(".{}", std::process::id()));
    let short = format!(".{:x}", std::process::id());
    let telling = dir.join(telling);
    match UnixAddr::new(&telling) {
        Ok(address) => Ok((telling, address)),
        Err(Errno::ENAMETOOLONG) => {
            let short = dir.join(short);
            let address = UnixAddr::new(&short)?;
            Ok((short, address))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// The mode of a socket, and of nothing that a link in its place leads to: the directory may be one that others write to,
/// and this process one that may change any file.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let handle = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let handle = fs::File::from(handle);
    if !handle.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("something else took the place of the socket that was made"));
    }
    fs::set_permissions(format!("/proc/self/fd/{}", handle.as_raw_fd()), Permissions::from_mode(mode))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl SocketFile {
    fn of(path: PathBuf) -> io::Result<SocketFile> {
        let found = fs::symlink_metadata(&path)?;
        Ok(SocketFile { path, device: found.dev(), inode: found.ino() })
    }

    fn rename(mut self, to: &Path) -> io::Result<SocketFile> {
        fs::rename(&self.path, to)?;
        self.path = to.to_owned();
        Ok(self)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "Cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests;
