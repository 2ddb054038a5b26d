//! What can go wrong with the database, in the words of SPIRE's where clients read them, with the next step where
//! only an operator does.

use std::path::PathBuf;

use finial_daemon::metrics;

use rusqlite::ErrorCode;

/// A failed store operation. Nothing of the failed operation is left in the database.
///
/// The texts of [`NotFound`](StoreError::NotFound), [`AlreadyExists`](StoreError::AlreadyExists),
/// [`InvalidArgument`](StoreError::InvalidArgument), [`UnknownBundle`](StoreError::UnknownBundle) and
/// [`FailedPrecondition`](StoreError::FailedPrecondition) are SPIRE's inner texts, ready for an `outer: ` prefix.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row that was asked for does not exist.
    #[error("{0}")]
    NotFound(String),

    /// A unique value is taken.
    #[error("datastore-sql: {0}")]
    AlreadyExists(String),

    /// Another constraint of the schema refused the row.
    #[error("datastore-sql: {0}")]
    Constraint(String),

    /// The request makes no sense whatever the database holds.
    #[error("{0}")]
    InvalidArgument(String),

    /// The request makes no sense in the present state of the database.
    #[error("{0}")]
    FailedPrecondition(String),

    /// An entry federates with a trust domain whose bundle is not stored.
    #[error("unable to find federated bundle \"spiffe://{trust_domain}\"")]
    UnknownBundle { trust_domain: String },

    /// A row or blob that this program cannot read.
    #[error(
        "datastore-sql: row of table {table} is not readable ({key}): {cause}; correct or delete that row"
    )]
    BadRow { table: &'static str, key: String, cause: String },

    /// Another process held the database's lock for longer than the busy timeout.
    #[error(
        "datastore-sql: {0}: another process holds the lock of the database; end its transaction, or raise \
         _busy_timeout in connection_string, and retry"
    )]
    Locked(String),

    /// The volume (or a limit set on the database) is full.
    #[error("datastore-sql: {0}; free space on the volume that holds the database, then retry")]
    Full(String),

    /// Reading or writing the file failed.
    #[error(
        "datastore-sql: {0}; check the volume, and that the server's user may write the file and its directory"
    )]
    Io(String),

    /// The file is not a database, or is damaged.
    #[error(
        "datastore-sql: {0}; the database is damaged or is not an SQLite database: restore it from a backup"
    )]
    Corrupt(String),

    /// Another server process has this database open.
    #[error(
        "database {} is in use by another finial-server ({holder}); stop it, or give this server a database of its own",
        .path.display()
    )]
    InUse { path: PathBuf, holder: String },

    /// The database belongs to another trust domain.
    #[error(
        "the database belongs to trust domain '{found}', but the server is configured with trust domain \
         '{configured}'; configure trust_domain = \"{found}\", or connection_string for another database"
    )]
    WrongTrustDomain { found: String, configured: String },

    /// A later release wrote the schema.
    #[error(
        "the database has schema version {found} of {owner}, and this release knows versions up to {known}; use a \
         release that knows version {found} (the database was not changed)"
    )]
    NewerSchema { owner: &'static str, found: i64, known: i64 },

    /// The schema is older than what this release migrates.
    #[error(
        "migrating from schema version {found} requires a previous SPIRE release: start SPIRE 1.14 on this database \
         once, then this server (the database was not changed)"
    )]
    OlderSchema { found: i64 },

    /// The schema needs a migration, and migrations are turned off.
    #[error(
        "auto-migration must be enabled for current DB: it has schema version {found} and this release needs {needed}; \
         remove disable_migration (the database was not changed)"
    )]
    MigrationDisabled { found: i64, needed: i64 },

    /// The tables are not those of the version that the database claims.
    #[error(
        "the schema of the database is incomplete: {detail}; a migration was interrupted or the file is not SPIRE's: \
         restore it from a backup (the database was not changed)"
    )]
    HalfMigrated { detail: String },

    /// `connection_string` cannot be used.
    #[error("datastore-sql: connection_string {connection_string:?}: {cause}")]
    ConnectionString { connection_string: String, cause: String },

    /// `connection_string` or `ro_connection_string` cannot be used. Their values are not shown, for the passwords.
    #[error("datastore-sql: {key}: {cause}")]
    ConnectionSetting { key: &'static str, cause: String },

    /// The database server cannot be reached, or does not let us in.
    #[error("datastore-sql: the database cannot be reached: {0}; check that it runs, and connection_string")]
    Unavailable(String),

    /// Other servers changed the same rows, time and again.
    #[error("datastore-sql: {0}; other transactions were in the way, retry")]
    Contended(String),

    /// The log of what was issued does not verify.
    #[error("the log of issued credentials does not verify at number {seq}: {cause}")]
    ChainBroken { seq: i64, cause: String },

    /// The store, or a task of it, is stopping.
    #[error("the store is closed: the server is stopping")]
    Closed,

    /// Anything else that the database engine reports.
    #[error("datastore-sql: {0}")]
    Sql(String),
}

impl StoreError {
    /// The name of the gRPC code that SPIRE's datastore gives such an error, for metrics.
    pub(super) fn code_name(&self) -> &'static str {
        match self {
            StoreError::NotFound(_) => "NotFound",
            StoreError::AlreadyExists(_) => "AlreadyExists",
            StoreError::InvalidArgument(_) => "InvalidArgument",
            StoreError::FailedPrecondition(_) => "FailedPrecondition",
            _ => metrics::UNKNOWN,
        }
    }

    /// Whether the database is away. The store says so in the log, once; whoever tries again need not.
    pub fn is_outage(&self) -> bool {
        matches!(self, StoreError::Unavailable(_))
    }

    /// The text that SPIRE gives for a missing row.
    pub(super) fn not_found() -> StoreError {
        StoreError::NotFound("datastore-sql: record not found".to_owned())
    }

    pub(super) fn bad_row(table: &'static str, key: impl ToString, cause: impl ToString) -> StoreError {
        StoreError::BadRow { table, key: key.to_string(), cause: cause.to_string() }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        let rusqlite::Error::SqliteFailure(code, message) = error else {
            return match error {
                rusqlite::Error::QueryReturnedNoRows => StoreError::not_found(),
                other => StoreError::Sql(other.to_string()),
            };
        };
        let text = message.unwrap_or_else(|| code.to_string());
        match code.code {
            ErrorCode::ConstraintViolation => match code.extended_code {
                rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE
                | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                | rusqlite::ffi::SQLITE_CONSTRAINT_ROWID => StoreError::AlreadyExists(text),
                _ => StoreError::Constraint(text),
            },
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Locked(text),
            ErrorCode::DiskFull => StoreError::Full(text),
            ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied => StoreError::Io(text),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => StoreError::Corrupt(text),
            _ => StoreError::Sql(text),
        }
    }
}
