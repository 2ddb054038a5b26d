//! The engines that a database may run on, and how a transaction runs on each.

pub(super) mod change;
pub(super) mod mysql;
pub(super) mod network;
pub(super) mod postgres;
pub(super) mod sqlite;

use std::path::Path;
use std::time::SystemTime;

use super::dialect::{Dialect, Sql};
use super::settings::DatabaseType;
use super::{DatabaseSettings, OpenSettings, StoreError};

/// An open database.
pub(super) enum Engine {
    Sqlite(sqlite::Database),
    Network(network::Database),
}

impl Engine {
    /// Opens the database and brings its schema up.
    pub(super) fn open(settings: &OpenSettings) -> Result<Engine, StoreError> {
        match settings.database.database_type {
            DatabaseType::Sqlite => {
                if settings.database.ro_connection_string.is_some() {
                    tracing::warn!(
                        "Read-only connection is not applicable for sqlite3. Falling back to primary connection"
                    );
                }
                Ok(Engine::Sqlite(sqlite::open(settings)?))
            }
            DatabaseType::Postgres | DatabaseType::MySql => {
                Ok(Engine::Network(network::Database::open(settings)?))
            }
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Engine::Sqlite(_) => Dialect::Sqlite,
            Engine::Network(database) => database.dialect(),
        }
    }

    /// Runs `work` in one read transaction; with `stale`, where there is a replica, on that.
    pub(super) async fn read<T, F>(&self, now: SystemTime, stale: bool, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        match self {
            Engine::Sqlite(database) => database.read(now, work).await,
            Engine::Network(database) => database.read(now, stale, work).await,
        }
    }

    /// Runs `work` in one write transaction, which is committed when `work` succeeds.
    pub(super) async fn write<T, F>(&self, now: SystemTime, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        match self {
            Engine::Sqlite(database) => database.write(now, work).await,
            Engine::Network(database) => database.write(now, work).await,
        }
    }
}

/// Reads the connection strings, without connecting.
///
/// # Errors
///
/// [`StoreError::ConnectionSetting`] or [`StoreError::ConnectionString`].
pub(super) fn check(settings: &DatabaseSettings) -> Result<(), StoreError> {
    match settings.database_type {
        DatabaseType::Sqlite => sqlite::check(settings),
        DatabaseType::Postgres | DatabaseType::MySql => {
            network::Target::primary(settings)?;
            network::Target::replica(settings).map(drop)
        }
    }
}

/// What an error means that the driver found and not the server: that there is no talking to the server.
fn driver_fault(error: &sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Io(error) => StoreError::Unavailable(error.to_string()),
        sqlx::Error::Tls(error) => StoreError::Unavailable(format!("TLS: {error}")),
        sqlx::Error::Protocol(text) => StoreError::Unavailable(format!("protocol: {text}")),
        sqlx::Error::Configuration(error) => StoreError::Unavailable(format!("configuration: {error}")),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            StoreError::Unavailable(error.to_string())
        }
        sqlx::Error::RowNotFound => StoreError::not_found(),
        other => StoreError::Sql(other.to_string()),
    }
}

/// The file of the system's certificate authorities, looked for where Go looks.
fn system_roots() -> Option<String> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let usual = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/tls/cacert.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    named.into_iter().chain(usual.map(str::to_owned)).find(|path| Path::new(path).is_file())
}

/// `%xx` decoded, and `+` too where it means a space. `None` if that is not text.
fn percent_decoded(text: &str, plus_is_space: bool) -> Option<String> {
    let text = if plus_is_space { text.replace('+', " ") } else { text.to_owned() };
    String::from_utf8(sqlite::percent_decoded(&text)).ok()
}
