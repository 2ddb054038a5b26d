//! What a store is opened with.

use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::metrics::Metrics;
use finial_identity::trust_domain::TrustDomain;

/// SPIRE's `database_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DatabaseType {
    #[default]
    Sqlite,
    Postgres,
    MySql,
}

impl DatabaseType {
    /// The value of `database_type`.
    pub fn name(self) -> &'static str {
        match self {
            DatabaseType::Sqlite => "sqlite3",
            DatabaseType::Postgres => "postgres",
            DatabaseType::MySql => "mysql",
        }
    }

    /// The type of a value of `database_type`.
    pub fn from_name(name: &str) -> Option<DatabaseType> {
        [DatabaseType::Sqlite, DatabaseType::Postgres, DatabaseType::MySql]
            .into_iter()
            .find(|t| t.name() == name)
    }
}

/// PEM files for TLS to MySQL. For PostgreSQL they are named in `connection_string`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    pub root_ca_path: Option<String>,
    pub client_cert_path: Option<String>,
    pub client_key_path: Option<String>,
}

/// SPIRE's `DataStore "sql"`. Printing it does not show the passwords that it may hold.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DatabaseSettings {
    pub database_type: DatabaseType,
    /// For `sqlite3` a path, or a `file:` URI with parameters; `:memory:` and `mode=memory` give a database that lives as
    /// long as the store. For `postgres` pairs as libpq reads them, or a URL; for `mysql` a data source name as Go's driver
    /// reads it.
    pub connection_string: String,
    /// A replica for reads that may be some seconds old; not for `sqlite3`.
    pub ro_connection_string: Option<String>,
    pub tls: TlsFiles,
    /// Open connections to each server, 100 unless set; 0 and less for no limit. Not for `sqlite3`.
    pub max_open_conns: Option<i64>,
    /// Idle ones among them, 100 unless set. Not for `sqlite3`.
    pub max_idle_conns: Option<i64>,
    /// How long a connection is used at most. Not for `sqlite3`.
    pub conn_max_lifetime: Option<Duration>,
    /// An older schema is refused. A new database is created all the same.
    pub disable_migration: bool,
    /// Statements go to the log (level debug), without their values.
    pub log_sql: bool,
}

/// What [`Store::open`](super::Store::open) needs.
#[derive(Clone)]
pub struct OpenSettings {
    pub database: DatabaseSettings,
    /// The database must belong to this trust domain; a new one will.
    pub trust_domain: TrustDomain,
    pub clock: Clock,
    /// Where operations are counted, by the store and by whoever works with it.
    pub metrics: Metrics,
}

impl OpenSettings {
    /// Settings for SQLite, with migrations allowed.
    pub fn new(
        connection_string: impl Into<String>,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> OpenSettings {
        let connection_string = connection_string.into();
        let database = DatabaseSettings { connection_string, ..DatabaseSettings::default() };
        let metrics = Metrics::none(clock.clone());
        OpenSettings { database, trust_domain, clock, metrics }
    }
}

impl std::fmt::Debug for DatabaseSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseSettings").field("database_type", &self.database_type).finish_non_exhaustive()
    }
}
