//! The directory that a program keeps its files in: one program at a time, and closed to others.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};

/// Files are at most readable for the group.
const UMASK: u32 = 0o027;

/// Holds a data directory for this process, until dropped or until the process ends in whatever way.
#[derive(Debug)]
pub struct DataDir {
    _held: Flock<File>,
}

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("cannot use data_dir {}: {source}; create it, or give the user of {program} the right to write there",
        path.display())]
    Unusable { path: PathBuf, program: &'static str, source: io::Error },
    #[error("data_dir {} is in use by another {program} ({holder}); stop it, or give this one a data_dir of its own",
        path.display())]
    InUse { path: PathBuf, program: &'static str, holder: String },
}

impl DataDir {
    /// Makes the directory if it is missing, and locks `<program>.lock` in it. Blocking.
    pub fn take(path: &Path, program: &'static str) -> Result<DataDir, DataDirError> {
        let failed = |source| DataDirError::Unusable { path: path.to_owned(), program, source };
        DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let file = options.open(path.join(format!("{program}.lock"))).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                let me = std::process::id();
                held.set_len(0).and_then(|()| writeln!(held, "process {me}")).map_err(failed)?;
                Ok(DataDir { _held: held })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // Who it is only helps the reader.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "process unknown".to_owned(),
                    holder => holder.to_owned(),
                };
                Err(DataDirError::InUse { path: path.to_owned(), program, holder })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

/// Keeps the umask that the operator set, and takes away from others at least what SPIRE does.
pub fn restrict_umask() {
    let minimum = Mode::from_bits_truncate(UMASK);
    let before = umask(minimum);
    if !before.contains(minimum) {
        let after = (before | minimum).bits();
        tracing::warn!("Current umask {:04o} is too permissive; setting umask {after:04o}", before.bits());
    }
    umask(before | minimum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_dir_has_one_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let held = DataDir::take(&path, "finial-x").unwrap();
        let refused = DataDir::take(&path, "finial-x").unwrap_err().to_string();
        let me = format!("in use by another finial-x (process {}); stop it", std::process::id());
        assert!(refused.contains(&me), "{refused}");
        // Server and agent may share one.
        DataDir::take(&path, "finial-y").unwrap();
        drop(held);
        DataDir::take(&path, "finial-x").unwrap();
    }

    #[test]
    fn a_data_dir_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = DataDir::take(&dir.path().join("file/x"), "finial-x").unwrap_err().to_string();
        assert!(error.contains("/file/x: ") && error.contains("; create it, or"), "{error}");
    }
}
