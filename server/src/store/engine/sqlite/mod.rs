//! SQLite: SPIRE's `connection_string`, the lock against a second server, one writer and several readers.

pub(in crate::store) mod values;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::store::dialect::{self, Sql};
use crate::store::{DatabaseSettings, OpenSettings, StoreError, blocking, migrations};

/// The busy timeout of SPIRE's driver.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// As SPIRE sets it: a crash of the program loses nothing, a loss of power may lose the last transactions.
const SYNCHRONOUS: &str = "NORMAL";
const READERS: usize = 8;
/// Pages that gather in the write-ahead log before they are copied back, 16 MiB: signing writes a row each.
const WAL_PAGES: u32 = 4000;
const STATEMENTS: usize = 256;

/// An open database.
pub(in crate::store) struct Database {
    /// None for a database in memory, which is one connection.
    readers: Option<Readers>,
    writer: Arc<tokio::sync::Mutex<Connection>>,
    log_sql: bool,
    // Last, so that the connections are closed before another server may open the file.
    _lock: Option<FileLock>,
}

pub(in crate::store) fn open(settings: &OpenSettings) -> Result<Database, StoreError> {
    let target = Target::parse(&settings.database.connection_string)?;
    let (mut writer, readers, lock) = match &target.place {
        Place::Memory => (target.prepare(Connection::open_in_memory()?)?, None, None),
        Place::File(path) => {
            let path = create_if_absent(path)?;
            let target = Target { place: Place::File(path.clone()), ..target };
            let lock = FileLock::take(&path)?;
            // Looked at without the right to write, so that a refused file stays as it is.
            target.inspect(settings)?;
            let writer = target.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            (writer, Some(Readers::new(target)), Some(lock))
        }
    };
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let now = settings.clock.now();
    let log_sql = settings.database.log_sql;
    let sql = Sql::new(dialect::Connection::Sqlite(&transaction), now, log_sql);
    migrations::bring_up(&sql, &settings.trust_domain, settings.database.disable_migration)?;
    transaction.commit()?;
    Ok(Database { readers, writer: Arc::new(tokio::sync::Mutex::new(writer)), log_sql, _lock: lock })
}

/// Reads the connection string.
pub(in crate::store) fn check(settings: &DatabaseSettings) -> Result<(), StoreError> {
    Target::parse(&settings.connection_string).map(drop)
}

impl Database {
    pub(in crate::store) async fn read<T, F>(&self, now: SystemTime, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let Some(readers) = &self.readers else {
            return self.write(now, work).await;
        };
        let (reader, log_sql) = (readers.take().await?, self.log_sql);
        blocking(move || {
            let mut reader = reader;
            let connection = reader.connection()?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            let value = work(&Sql::new(dialect::Connection::Sqlite(&transaction), now, log_sql))?;
            transaction.finish()?;
            reader.give_back();
            Ok(value)
        })
        .await
    }

    /// Runs `work` alone.
    pub(in crate::store) async fn write<T, F>(&self, now: SystemTime, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let (mut writer, log_sql) = (Arc::clone(&self.writer).lock_owned().await, self.log_sql);
        blocking(move || {
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&Sql::new(dialect::Connection::Sqlite(&transaction), now, log_sql))?;
            transaction.commit()?;
            Ok(value)
        })
        .await
    }
}

/// Read-only connections, opened as they are needed and kept.
struct Readers {
    target: Arc<Target>,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    fn new(target: Target) -> Readers {
        Readers { target: Arc::new(target), idle: Arc::default(), permits: Arc::new(Semaphore::new(READERS)) }
    }

    /// Waits until a connection may be used.
    async fn take(&self) -> Result<Reader, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_closed| StoreError::Closed)?;
        let connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Reader {
            connection,
            target: Arc::clone(&self.target),
            idle: Arc::clone(&self.idle),
            _permit: permit,
        })
    }
}

/// The right to use one read-only connection. Dropped without [`give_back`](Reader::give_back), the connection closes:
/// one that failed may be the cause.
struct Reader {
    connection: Option<Connection>,
    target: Arc<Target>,
    idle: Arc<Mutex<Vec<Connection>>>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.target.open(OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        Ok(self.connection.insert(connection))
    }

    fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

/// Holds a database file for this process, until dropped. The lock is advisory and on a file of its own, so tools that
/// read the database are not in its way.
struct FileLock {
    _held: Flock<File>,
}

impl FileLock {
    fn take(database: &Path) -> Result<FileLock, StoreError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".finial-lock");
        let path = PathBuf::from(path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(|error| cannot_open(&path, &error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                let named = held.set_len(0).and_then(|()| writeln!(held, "process {}", std::process::id()));
                named.map_err(|error| cannot_open(&path, &error))?;
                Ok(FileLock { _held: held })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // Who holds it is only for the message.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "process unknown".to_owned(),
                    holder => holder.to_owned(),
                };
                Err(StoreError::InUse { path: database.to_owned(), holder })
            }
            Err((_, errno)) => Err(cannot_open(&path, &io::Error::from(errno))),
        }
    }
}

/// What a `connection_string` says.
struct Target {
    place: Place,
    /// Parameters of SQLite itself, to hand on.
    parameters: Vec<(String, String)>,
    busy_timeout: Duration,
    synchronous: String,
}

enum Place {
    Memory,
    File(PathBuf),
}

impl Target {
    fn parse(text: &str) -> Result<Target, StoreError> {
        let refused = |cause: &str| StoreError::ConnectionString {
            connection_string: text.to_owned(),
            cause: cause.to_owned(),
        };
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, query.split('#').next().unwrap_or_default()),
            None => (text, ""),
        };
        let path = match path.split_once(':') {
            Some(("file", path)) => path,
            Some(("", _)) => path,
            Some((scheme, _)) if is_scheme(scheme) => {
                return Err(refused(&format!("unsupported scheme {scheme:?}; give a path or a file: URI")));
            }
            _ => path,
        };
        // `file://host/path`: only the local host makes sense.
        let path = match path.strip_prefix("//") {
            Some(rest) if text.starts_with("file:") => match rest.split_once('/') {
                Some(("" | "localhost", _)) => rest.get(rest.find('/').unwrap_or(0)..).unwrap_or_default(),
                _ => return Err(refused("a file: URI may not name a host; write file:///path")),
            },
            _ => path,
        };
        let path = percent_decoded(path);
        let mut memory = path == b":memory:";

        let mut parameters = Vec::new();
        let mut busy_timeout = BUSY_TIMEOUT;
        let mut synchronous = SYNCHRONOUS.to_owned();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = String::from_utf8_lossy(&percent_decoded(value)).into_owned();
            match name {
                "mode" => match value.as_str() {
                    "memory" => memory = true,
                    "ro" => return Err(refused("mode=ro: a server has to write; remove the parameter")),
                    _ => {}
                },
                "_busy_timeout" | "_timeout" => {
                    let milliseconds = value.parse().map_err(|_| {
                        refused(&format!("{name} is not a number of milliseconds: {value:?}"))
                    })?;
                    busy_timeout = Duration::from_millis(milliseconds);
                }
                "_synchronous" | "_sync" => match value.to_ascii_uppercase().as_str() {
                    level @ ("OFF" | "NORMAL" | "FULL" | "EXTRA" | "0" | "1" | "2" | "3") => {
                        level.clone_into(&mut synchronous);
                    }
                    _ => {
                        return Err(refused(&format!(
                            "{name} is none of OFF, NORMAL, FULL, EXTRA: {value:?}"
                        )));
                    }
                },
                "vfs" | "psow" | "nolock" | "immutable" => parameters.push((name.to_owned(), value)),
                // SPIRE overrides these two, and connections that share a cache would wait for each other.
                "_foreign_keys" | "_fk" | "_journal_mode" | "_journal" | "cache" => {}
                _ => tracing::debug!(parameter = name, "Ignoring a parameter of connection_string"),
            }
        }
        let place = match memory {
            true => Place::Memory,
            false if path.is_empty() => return Err(refused("the path is empty")),
            false => Place::File(PathBuf::from(OsString::from_vec(path))),
        };
        Ok(Target { place, parameters, busy_timeout, synchronous })
    }

    fn uri(&self, path: &Path) -> String {
        let mut uri = "file:".to_owned();
        percent_encode(path.as_os_str().as_bytes(), &mut uri);
        for (i, (name, value)) in self.parameters.iter().enumerate() {
            uri.push(if i == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            percent_encode(value.as_bytes(), &mut uri);
        }
        uri
    }

    fn open(&self, access: OpenFlags) -> Result<Connection, StoreError> {
        let Place::File(path) = &self.place else {
            return self.prepare(Connection::open_in_memory()?);
        };
        let flags = access | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(self.uri(path), flags)?;
        connection.busy_timeout(self.busy_timeout)?;
        match access {
            OpenFlags::SQLITE_OPEN_READ_ONLY => {
                connection.set_prepared_statement_cache_capacity(STATEMENTS);
                Ok(connection)
            }
            _ => self.prepare(connection),
        }
    }

    /// Settings of a connection that writes.
    fn prepare(&self, connection: Connection) -> Result<Connection, StoreError> {
        connection.busy_timeout(self.busy_timeout)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" && matches!(self.place, Place::File(_)) {
            tracing::warn!(journal_mode = mode, "The file system of the database does not allow WAL mode");
        }
        connection.execute_batch(&format!(
            "PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = {WAL_PAGES}; PRAGMA synchronous = {};",
            self.synchronous
        ))?;
        Ok(connection)
    }

    /// Whether this release can serve the database.
    fn inspect(&self, settings: &OpenSettings) -> Result<(), StoreError> {
        let mut connection = self.open(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
        let sql = Sql::new(
            dialect::Connection::Sqlite(&transaction),
            settings.clock.now(),
            settings.database.log_sql,
        );
        migrations::inspect(&sql, &settings.trust_domain, settings.database.disable_migration)?;
        Ok(())
    }
}

/// Makes the file, since SQLite would make it readable for all; gives its one true path, for the lock.
fn create_if_absent(path: &Path) -> Result<PathBuf, StoreError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
    match made {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(cannot_open(path, &error)),
    }
    path.canonicalize().map_err(|error| cannot_open(path, &error))
}

fn cannot_open(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(format!("unable to open {}: {error}", path.display()))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

pub(super) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if let (b'%', [high, low, after @ ..]) = (first, tail)
            && let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low))
        {
            decoded.push(high << 4 | low);
            rest = after;
        } else {
            decoded.push(*first);
            rest = tail;
        }
    }
    decoded
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn percent_encode(bytes: &[u8], to: &mut String) {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
                to.push((*byte).into());
            }
            _ => to.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Option<PathBuf> {
        match Target::parse(text).unwrap().place {
            Place::Memory => None,
            Place::File(path) => Some(path),
        }
    }

    #[test]
    fn connection_strings_of_spire_are_understood() {
        assert_eq!(place("./data/x.sqlite3"), Some("./data/x.sqlite3".into()));
        assert_eq!(place("/var/x.sqlite3?_busy_timeout=7"), Some("/var/x.sqlite3".into()));
        assert_eq!(place("file:x.db"), Some("x.db".into()));
        assert_eq!(place("file:/a/b%20c.db?mode=rwc"), Some("/a/b c.db".into()));
        assert_eq!(place("file:///a/b.db"), Some("/a/b.db".into()));
        assert_eq!(place("file://localhost/a/b.db"), Some("/a/b.db".into()));
        assert_eq!(place("/odd:name/x"), Some("/odd:name/x".into()));
        for memory in [":memory:", "file::memory:?cache=shared", "file:x?mode=memory&cache=shared"] {
            assert_eq!(place(memory), None, "{memory}");
        }
    }

    #[test]
    fn parameters_take_effect() {
        let target =
            Target::parse("file:x?_timeout=250&_sync=full&vfs=unix-dotfile&_journal_mode=OFF&_x=1").unwrap();
        assert_eq!(target.busy_timeout, Duration::from_millis(250));
        assert_eq!(target.synchronous, "FULL");
        assert_eq!(target.uri(Path::new("/a b?c")), "file:/a%20b%3Fc?vfs=unix-dotfile");
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "the path is empty"),
            ("postgres://host/db", "unsupported scheme \"postgres\""),
            ("file://elsewhere/x", "may not name a host"),
            ("file:x?mode=ro", "a server has to write"),
            ("x?_busy_timeout=soon", "not a number of milliseconds"),
            ("x?_sync=maybe", "none of OFF"),
        ] {
            let error = Target::parse(text).err().unwrap().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
