//! `unix`: users, groups and the program of a process.

use std::{
    env,
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use aws_lc_rs::digest::{Context, SHA256};
use finial_daemon::{
    listen::peer::LocalPeer,
    settings::{Section, SettingsError},
};
use finial_identity::selector::Selector;
use nix::{
    fcntl::{OFlag, open, openat, readlinkat},
    sys::stat::Mode,
    unistd::{Gid, Group, Uid, User},
};

use super::{AttestorFault, WorkloadAttestor};

/// Bytes of a program that are read before the next look whether its process still lives: a program may be a sparse
/// file of any size, and who started it may not wait for the end.
const LOOK_EACH: usize = 16 * 1024 * 1024;

/// The attestor `unix`.
#[derive(Debug, Clone, Default)]
pub struct Unix {
    /// Whether to look at the program (`path`, `sha256`). The agent then needs the right to read /proc/PID/exe.
    pub discover_workload_path: bool,
    /// Bytes. 0: no limit. Below 0: no `sha256`. Above: a larger program makes the attestor fail.
    pub workload_size_limit: i64,
    /// HOST_PROC: where the host's /proc is, when it is not /proc.
    pub host_proc: Option<PathBuf>,
}

#[async_trait]
impl WorkloadAttestor for Unix {
    async fn attest(&self, caller: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestorFault> {
        let (settings, caller) = (self.clone(), caller.clone());
        // User names may come from a directory service, and the program has to be read: both can block.
        tokio::task::spawn_blocking(move || settings.look_at(&caller))
            .await
            .unwrap_or(Err(AttestorFault::CutOff))
    }
}

pub(super) fn configure(section: Section) -> Result<Arc<dyn WorkloadAttestor>, SettingsError> {
    let unix = Unix {
        discover_workload_path: section.bool("discover_workload_path").unwrap_or_default(),
        workload_size_limit: section.int("workload_size_limit").unwrap_or_default(),
        host_proc: env::var_os("HOST_PROC").filter(|path| !path.is_empty()).map(PathBuf::from),
    };
    section.finish()?;
    Ok(Arc::new(unix))
}

impl Unix {
    fn look_at(&self, caller: &LocalPeer) -> Result<Vec<Selector>, AttestorFault> {
        let process = Process::of(caller, self.host_proc.as_ref())?;
        let status = process.status()?;
        let mut found = Found::default();

        found.add("uid", status.uid)?;
        if let Ok(Some(user)) = User::from_uid(Uid::from_raw(status.uid)) {
            found.add("user", user.name)?;
        }
        found.add("gid", status.gid)?;
        if let Ok(Some(group)) = Group::from_gid(Gid::from_raw(status.gid)) {
            found.add("group", group.name)?;
        }
        for gid in status.groups {
            found.add("supplementary_gid", gid)?;
            if let Ok(Some(group)) = Group::from_gid(Gid::from_raw(gid)) {
                found.add("supplementary_group", group.name)?;
            }
        }
        if self.discover_workload_path {
            let path = process.program_path()?;
            if self.workload_size_limit >= 0 {
                found.add("sha256", self.digest(caller, &process, &path)?)?;
            }
            found.add("path", path)?;
        }
        Ok(found.selectors)
    }

    /// The program as the process sees it, whatever its path means to this agent: lowercase hex.
    fn digest(&self, caller: &LocalPeer, process: &Process<'_>, path: &str) -> Result<String, AttestorFault> {
        let unreadable = |source| AttestorFault::Unreadable { what: "exe", source };
        let mut program = process.open("exe").map_err(unreadable)?;
        if let Ok(limit) = u64::try_from(self.workload_size_limit)
            && limit > 0
        {
            let size = program.metadata().map_err(unreadable)?.len();
            if size > limit {
                return Err(AttestorFault::TooLarge { path: path.to_owned(), size, limit });
            }
        }
        let mut digest = Context::new(&SHA256);
        let mut buffer = vec![0; 64 * 1024];
        let mut until_look = LOOK_EACH;
        loop {
            match program.read(&mut buffer) {
                Ok(0) => return Ok(hex::encode(digest.finish())),
                Ok(length) => {
                    digest.update(&buffer[..length]);
                    until_look = until_look.saturating_sub(length);
                    if until_look == 0 {
                        caller.is_alive()?;
                        until_look = LOOK_EACH;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
    }
}

/// A process by its directory in /proc.
enum Process<'a> {
    /// Through the directory that was opened when it connected.
    Pinned(&'a LocalPeer),
    /// Through HOST_PROC. Whether the number still belonged to the caller shows when it is checked for life.
    Host(OwnedFd),
}

impl<'a> Process<'a> {
    fn of(caller: &'a LocalPeer, host_proc: Option<&PathBuf>) -> Result<Process<'a>, AttestorFault> {
        let Some(host_proc) = host_proc else { return Ok(Process::Pinned(caller)) };
        let path = host_proc.join(caller.pid().to_string());
        open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map(Process::Host)
            .map_err(|errno| AttestorFault::Unreadable {
                what: "the directory under HOST_PROC",
                source: errno.into(),
            })
    }

    fn open(&self, name: &str) -> io::Result<File> {
        match self {
            Process::Pinned(peer) => peer.open(name),
            Process::Host(dir) => {
                Ok(openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
            }
        }
    }

    fn status(&self) -> Result<Status, AttestorFault> {
        let unreadable = |source| AttestorFault::Unreadable { what: "status", source };
        let mut status = Vec::new();
        self.open("status").and_then(|mut file| file.read_to_end(&mut status)).map_err(unreadable)?;
        // The name of the process comes first and can be any bytes.
        Status::read(&String::from_utf8_lossy(&status)).ok_or(AttestorFault::Malformed { what: "status" })
    }

    fn program_path(&self) -> Result<String, AttestorFault> {
        let path = match self {
            Process::Pinned(peer) => peer.read_link("exe"),
            Process::Host(dir) => readlinkat(dir, "exe").map(PathBuf::from).map_err(io::Error::from),
        };
        path.map_err(|source| AttestorFault::Unreadable { what: "exe", source })?
            .into_os_string()
            .into_string()
            .map_err(|_| AttestorFault::Malformed { what: "exe (the path is not UTF-8)" })
    }
}

/// What proc_pid_status(5) says of users and groups.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    /// Effective.
    uid: u32,
    /// Effective.
    gid: u32,
    groups: Vec<u32>,
}

impl Status {
    fn read(text: &str) -> Option<Status> {
        let numbers = |key: &str| -> Option<Vec<u32>> {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
        };
        // Real, effective, saved, file system.
        let effective = |key: &str| numbers(key)?.get(1).copied();
        Some(Status { uid: effective("Uid")?, gid: effective("Gid")?, groups: numbers("Groups")? })
    }
}

#[derive(Default)]
struct Found {
    selectors: Vec<Selector>,
}

impl Found {
    fn add(&mut self, key: &str, value: impl std::fmt::Display) -> Result<(), AttestorFault> {
        let value = format!("{key}:{value}");
        let selector = Selector::new("unix", value.as_str())
            .map_err(|source| AttestorFault::NoSelector { what: value, source })?;
        self.selectors.push(selector);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
