//! One connection, to either engine.

use std::future::Future;
use std::time::Duration;

use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::{Connection, MySqlConnection, PgConnection};
use tokio::runtime::Handle;

use super::super::change::Change;
use super::super::{mysql, postgres};
use crate::store::dialect::{Dialect, Row, Value};
use crate::store::{DatabaseSettings, DatabaseType, StoreError};

/// How long connecting may take, unless the connection string says otherwise.
const CONNECT: Duration = Duration::from_secs(10);
/// How long one statement may take. A connection that is silent for longer is given up: its server may be gone.
const STATEMENT: Duration = Duration::from_secs(30);
/// A migration may have to rewrite a table.
const MIGRATION: Duration = Duration::from_secs(3600);
/// Rows in one INSERT, so that the number of its values stays below 65,535.
const ROWS_AT_ONCE: usize = 500;

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Access {
    Read,
    Write,
    /// Writes, and makes other servers that migrate wait.
    Migrate,
}

/// Where a database is, and as whom to go there.
pub(in crate::store) enum Target {
    Postgres(postgres::options::Options),
    MySql(Box<mysql::options::Options>),
}

impl Target {
    pub(in crate::store) fn primary(settings: &DatabaseSettings) -> Result<Target, StoreError> {
        Target::parse(settings, "connection_string", &settings.connection_string)
    }

    pub(in crate::store) fn replica(settings: &DatabaseSettings) -> Result<Option<Target>, StoreError> {
        let text = settings.ro_connection_string.as_deref().filter(|text| !text.is_empty());
        text.map(|text| Target::parse(settings, "ro_connection_string", text)).transpose()
    }

    fn parse(settings: &DatabaseSettings, key: &'static str, text: &str) -> Result<Target, StoreError> {
        let target = match settings.database_type {
            DatabaseType::Postgres => postgres::options::parse(text).map(Target::Postgres),
            DatabaseType::MySql => {
                mysql::options::parse(text, &settings.tls).map(|options| Target::MySql(Box::new(options)))
            }
            DatabaseType::Sqlite => Err("sqlite3 has no such connections".to_owned()),
        };
        // The text is left out: it may hold a password.
        target.map_err(|cause| StoreError::ConnectionSetting { key, cause })
    }

    pub(in crate::store) fn dialect(&self) -> Dialect {
        match self {
            Target::Postgres(_) => Dialect::Postgres,
            Target::MySql(_) => Dialect::MySql,
        }
    }

    pub(super) fn connect(&self, runtime: &Handle) -> Result<Link, StoreError> {
        match self {
            Target::Postgres(options) => {
                let limit = options.connect_timeout.unwrap_or(CONNECT);
                let connection = wait(runtime, limit, postgres::connect(options))?;
                Ok(Link::Postgres(Box::new(connection)))
            }
            Target::MySql(options) => {
                let limit = options.connect_timeout.unwrap_or(CONNECT);
                let connection = wait(runtime, limit, mysql::connect(options))?;
                Ok(Link::MySql(Box::new(connection)))
            }
        }
    }
}

/// An open connection.
pub(in crate::store) enum Link {
    Postgres(Box<PgConnection>),
    MySql(Box<MySqlConnection>),
}

impl Link {
    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Link::Postgres(_) => Dialect::Postgres,
            Link::MySql(_) => Dialect::MySql,
        }
    }

    pub(super) fn version_query(&self) -> &'static str {
        match self {
            Link::Postgres(_) => "SHOW server_version",
            Link::MySql(_) => "SELECT VERSION()",
        }
    }

    pub(super) fn begin(&mut self, runtime: &Handle, access: Access) -> Result<(), StoreError> {
        let limit = if access == Access::Migrate { MIGRATION } else { STATEMENT };
        match self {
            Link::Postgres(link) => wait(runtime, limit, postgres::script(link, postgres::begin(access))),
            Link::MySql(link) => {
                wait(runtime, limit, mysql::script(link, mysql::begin(access).to_owned()))?;
                match access {
                    Access::Migrate => wait(runtime, limit, mysql::lock_migration(link)),
                    _ => Ok(()),
                }
            }
        }
    }

    pub(super) fn commit(
        &mut self,
        runtime: &Handle,
        access: Access,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        match self {
            Link::Postgres(link) => {
                wait(runtime, STATEMENT, postgres::script(link, postgres::commit(changes)))
            }
            Link::MySql(link) => wait(runtime, STATEMENT, mysql::script(link, mysql::end("COMMIT", access))),
        }
    }

    pub(super) fn roll_back(&mut self, runtime: &Handle, access: Access) -> Result<(), StoreError> {
        match self {
            Link::Postgres(link) => wait(runtime, STATEMENT, postgres::script(link, "ROLLBACK".to_owned())),
            Link::MySql(link) => {
                wait(runtime, STATEMENT, mysql::script(link, mysql::end("ROLLBACK", access)))
            }
        }
    }

    pub(super) fn run(
        &mut self,
        runtime: &Handle,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<usize, StoreError> {
        let changed = match self {
            Link::Postgres(link) => wait(runtime, STATEMENT, postgres::run(link, sql, values))?,
            Link::MySql(link) => wait(runtime, STATEMENT, mysql::run(link, sql, values))?,
        };
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    pub(super) fn insert(
        &mut self,
        runtime: &Handle,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<i64, StoreError> {
        match self {
            Link::Postgres(link) => wait(runtime, STATEMENT, postgres::insert(link, sql, values)),
            Link::MySql(link) => wait(runtime, STATEMENT, mysql::insert(link, sql, values)),
        }
    }

    pub(super) fn script(&mut self, runtime: &Handle, sql: &str) -> Result<(), StoreError> {
        match self {
            Link::Postgres(link) => wait(runtime, MIGRATION, postgres::script(link, sql.to_owned())),
            Link::MySql(link) => wait(runtime, MIGRATION, mysql::script(link, sql.to_owned())),
        }
    }

    pub(super) fn rows(
        &mut self,
        runtime: &Handle,
        sql: &str,
        values: &[Value<'_>],
        access: Access,
    ) -> Result<Found, StoreError> {
        Ok(match self {
            Link::Postgres(link) => {
                Found::Postgres(wait(runtime, STATEMENT, postgres::rows(link, sql, values))?)
            }
            Link::MySql(link) => {
                let locking = access == Access::Write;
                Found::MySql(wait(runtime, STATEMENT, mysql::rows(link, sql, values, locking))?)
            }
        })
    }

    /// Takes leave of the server. It would notice by itself, and complain in its log.
    pub(super) fn close(self, runtime: &Handle) {
        const MANNERS: Duration = Duration::from_secs(1);
        // Whether it hears of it is its own affair.
        let _ = runtime.block_on(tokio::time::timeout(MANNERS, async {
            match self {
                Link::Postgres(link) => link.close().await,
                Link::MySql(link) => link.close().await,
            }
        }));
    }
}

/// The most rows that one INSERT should have.
pub(in crate::store) fn rows_at_once() -> usize {
    ROWS_AT_ONCE
}

/// The rows of a query.
pub(super) enum Found {
    Postgres(Vec<PgRow>),
    MySql(Vec<MySqlRow>),
}

impl Found {
    pub(super) fn each(
        &self,
        read: &mut dyn FnMut(&Row<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match self {
            Found::Postgres(rows) => rows.iter().try_for_each(|row| read(&Row::Postgres(row))),
            Found::MySql(rows) => rows.iter().try_for_each(|row| read(&Row::MySql(row))),
        }
    }
}

/// Waits on this thread, which is one for blocking work.
fn wait<T>(
    runtime: &Handle,
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match runtime.block_on(async { tokio::time::timeout(limit, work).await }) {
        Ok(done) => done,
        Err(_) => Err(StoreError::Unavailable(format!(
            "the database server did not answer for {} s",
            limit.as_secs()
        ))),
    }
}
