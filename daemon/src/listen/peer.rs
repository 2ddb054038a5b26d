//! The process at the other end of a Unix socket, pinned so that another one that later gets the same
//! process ID is never taken for it.
//!
//! A pidfd says whether the very process that connected still lives. /proc/PID is opened once and only
//! read through that handle: when the process is gone the handle is dead, whoever has its number now.
//! Where the kernel is too old for pidfds of peers, the process's start time must do.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, fstat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that connected to a Unix socket.
#[derive(Debug)]
pub struct LocalPeer {
    pid: u32,
    uid: u32,
    gid: u32,
    /// Field 22 of /proc/PID/stat, in clock ticks since boot; compared, never computed with.
    start_time: String,
    proc_dir: OwnedFd,
    pidfd: Option<OwnedFd>,
}

/// Why a process that connected cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel does not say who connected.
    #[error("cannot ask the kernel who connected: {0}")]
    Credentials(io::Error),
    /// Process ID 0: the kernel has no number for the caller in this PID namespace.
    #[error(
        "could not resolve caller information: the caller lives outside this PID namespace; \
         run the agent in the host's PID namespace (hostPID: true)"
    )]
    OuterNamespace,
    /// /proc/PID cannot be opened or read.
    #[error("cannot read /proc/{pid} of the caller: {source}")]
    Proc {
        /// The caller.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// /proc/PID/stat is not in the form that proc(5) describes.
    #[error("cannot find the start time in /proc/{pid}/stat of the caller")]
    BadStat {
        /// The caller.
        pid: u32,
    },
    /// The caller did not live long enough to be known.
    #[error(transparent)]
    Gone(#[from] PeerGone),
}

/// Why a process is no longer the one that connected.
#[derive(Debug, thiserror::Error)]
pub enum PeerGone {
    /// It has exited.
    #[error("the caller (pid {pid}) has exited")]
    Exited {
        /// The caller.
        pid: u32,
    },
    /// Its /proc directory can no longer be read, which is what happens when it exits.
    #[error("the caller (pid {pid}) has exited or cannot be seen any more: {source}")]
    Unseen {
        /// The caller.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The process with this number started at another time.
    #[error(
        "new process detected: process starttime {found} does not match original caller {expected} (pid {pid})"
    )]
    Restarted {
        /// The caller.
        pid: u32,
        /// The caller's start time.
        expected: String,
        /// The start time seen now.
        found: String,
    },
    /// The process runs as somebody else than the one that connected: it changed its user, or it is not
    /// dumpable (setuid programs), or it is another process.
    #[error(
        "new process detected: process owner {found_uid}:{found_gid} does not match original caller {uid}:{gid} \
         (pid {pid})"
    )]
    OwnerChanged {
        /// The caller.
        pid: u32,
        /// The user that connected.
        uid: u32,
        /// The group that connected.
        gid: u32,
        /// The user seen now.
        found_uid: u32,
        /// The group seen now.
        found_gid: u32,
    },
}

impl LocalPeer {
    /// The process that connected to the other end of `socket`, a connected Unix stream socket. It must be
    /// alive. The process is the one that called connect(2), whoever holds the socket now.
    pub fn from_socket(socket: &impl AsFd) -> Result<LocalPeer, PeerError> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)
            .map_err(|errno| PeerError::Credentials(errno.into()))?;
        let pid = match u32::try_from(credentials.pid()) {
            Ok(pid) if pid != 0 => pid,
            _ => return Err(PeerError::OuterNamespace),
        };
        let pidfd = match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(pidfd) => Some(pidfd),
            // The process was reaped already.
            Err(Errno::ESRCH | Errno::EINVAL) => return Err(PeerGone::Exited { pid }.into()),
            // Before Linux 6.5.
            Err(_) => pidfd_of(pid)?,
        };
        LocalPeer::pin(pid, pidfd, Some((credentials.uid(), credentials.gid())))
    }

    /// The process that has the number `pid` now, with the owner it has now.
    pub fn of_process(pid: u32) -> Result<LocalPeer, PeerError> {
        if pid == 0 {
            return Err(PeerError::OuterNamespace);
        }
        LocalPeer::pin(pid, pidfd_of(pid)?, None)
    }

    /// Fails when the process is no longer the one that connected: it has exited, the number belongs to
    /// another one, or it runs as another user or group.
    pub fn is_alive(&self) -> Result<(), PeerGone> {
        let pid = self.pid;
        let unseen = |source| PeerGone::Unseen { pid, source };
        if let Some(pidfd) = &self.pidfd
            && has_exited(pidfd.as_fd()).map_err(unseen)?
        {
            return Err(PeerGone::Exited { pid });
        }
        let stat = self.read("stat").map_err(unseen)?;
        let found = start_time(&stat).ok_or_else(|| {
            unseen(io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is malformed"))
        })?;
        if found != self.start_time {
            let expected = self.start_time.clone();
            return Err(PeerGone::Restarted { pid, expected, found: found.to_owned() });
        }
        let owner = fstat(&self.proc_dir).map_err(|errno| unseen(errno.into()))?;
        if (owner.st_uid, owner.st_gid) != (self.uid, self.gid) {
            let (uid, gid) = (self.uid, self.gid);
            return Err(PeerGone::OwnerChanged {
                pid,
                uid,
                gid,
                found_uid: owner.st_uid,
                found_gid: owner.st_gid,
            });
        }
        Ok(())
    }

    /// The process ID in this PID namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The effective user ID when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The effective group ID when it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The directory /proc/PID of the process. Names looked up in it fail once the process is gone.
    pub fn proc_dir(&self) -> BorrowedFd<'_> {
        self.proc_dir.as_fd()
    }

    /// Opens /proc/PID/`name` for reading.
    pub fn open(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.proc_dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    /// The whole of /proc/PID/`name`.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open(name)?.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Where the link /proc/PID/`name` points to.
    pub fn read_link(&self, name: &str) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.proc_dir, name)?.into())
    }

    fn pin(pid: u32, pidfd: Option<OwnedFd>, owner: Option<(u32, u32)>) -> Result<LocalPeer, PeerError> {
        let failed = |source: io::Error| PeerError::Proc { pid, source };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc_dir =
            open(format!("/proc/{pid}").as_str(), flags, Mode::empty()).map_err(|errno| match errno {
                Errno::ENOENT => PeerGone::Exited { pid }.into(),
                errno => failed(errno.into()),
            })?;
        let (uid, gid) = match owner {
            Some(owner) => owner,
            None => {
                let owner = fstat(&proc_dir).map_err(|errno| failed(errno.into()))?;
                (owner.st_uid, owner.st_gid)
            }
        };
        let mut peer = LocalPeer { pid, uid, gid, start_time: String::new(), proc_dir, pidfd };
        let stat = peer.read("stat").map_err(failed)?;
        peer.start_time = start_time(&stat).ok_or(PeerError::BadStat { pid })?.to_owned();
        // The pidfd is of the process that connected; while that lives nobody else has its number, so the
        // directory just opened is its own.
        peer.is_alive()?;
        Ok(peer)
    }
}

/// A pidfd by number; none on kernels before 5.3.
fn pidfd_of(pid: u32) -> Result<Option<OwnedFd>, PeerError> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(PeerGone::Exited { pid })?;
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Err(PeerGone::Exited { pid }.into()),
        Err(_) => Ok(None),
    }
}

/// A pidfd becomes readable when its process exits.
fn has_exited(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut watched = [PollFd::new(pidfd, PollFlags::POLLIN)];
    loop {
        match poll(&mut watched, PollTimeout::ZERO) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Field 22 of /proc/PID/stat. The command name is between the first `(` and the last `)`, and may itself
/// hold blanks and parentheses.
fn start_time(stat: &[u8]) -> Option<&str> {
    let opening = stat.iter().position(|byte| *byte == b'(')?;
    let closing = stat.iter().rposition(|byte| *byte == b')')?;
    if closing < opening {
        return None;
    }
    let rest = std::str::from_utf8(&stat[closing + 1..]).ok()?;
    // The first field after the name is the third.
    let field = rest.split_ascii_whitespace().nth(22 - 3)?;
    field.bytes().all(|byte| byte.is_ascii_digit()).then_some(field)
}

#[cfg(test)]
mod tests;
