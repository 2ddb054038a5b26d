//! MySQL and MariaDB.

pub(in crate::store) mod options;
pub(in crate::store) mod values;

use sqlx::mysql::{MySqlDatabaseError, MySqlRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, MySqlConnection};

use super::network::Access;
use crate::store::StoreError;
use crate::store::dialect::Value;
use options::Options;

/// How long a migration waits for another server's.
const MIGRATION_WAIT: &str = "3600";
/// The lock's name; locks of this kind are of the whole server.
const MIGRATION_LOCK: &str = "CONCAT('finial.', DATABASE())";
/// Longer statements are seldom the same twice.
const CACHED_LENGTH: usize = 2048;

pub(super) async fn connect(options: &Options) -> Result<MySqlConnection, StoreError> {
    let place = &options.place;
    let at_place = |error: sqlx::Error| match fault(error) {
        StoreError::Unavailable(cause) => StoreError::Unavailable(format!("{place}: {cause}")),
        other => other,
    };
    let mut connection = options.connect.connect().await.map_err(at_place)?;
    let session =
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; SET SESSION innodb_lock_wait_timeout = 10";
    let mut script = session.to_owned();
    for (name, value) in &options.variables {
        script.push_str(&format!("; SET SESSION {name} = {value}"));
    }
    // Whatever the server is set to: a text that is cut off to fit its column may be somebody else's ID.
    script.push_str("; SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(script))).await.map_err(at_place)?;
    Ok(connection)
}

pub(super) fn begin(access: Access) -> &'static str {
    match access {
        Access::Read => {
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
        }
        Access::Write => "START TRANSACTION READ WRITE",
        // A statement that changes a table ends the transaction, so there is no use in one.
        Access::Migrate => "DO 0",
    }
}

pub(super) fn end(how: &str, access: Access) -> String {
    match access {
        Access::Migrate => format!("{how}; DO RELEASE_LOCK({MIGRATION_LOCK})"),
        _ => how.to_owned(),
    }
}

pub(super) async fn lock_migration(connection: &mut MySqlConnection) -> Result<(), StoreError> {
    let query = format!("SELECT GET_LOCK({MIGRATION_LOCK}, {MIGRATION_WAIT})");
    let row = sqlx::query(AssertSqlSafe(query)).fetch_one(connection).await.map_err(fault)?;
    match values::int(&row, 0)? {
        Some(1) => Ok(()),
        _ => Err(StoreError::Contended("another server is migrating the database".to_owned())),
    }
}

pub(super) async fn script(connection: &mut MySqlConnection, sql: String) -> Result<(), StoreError> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop).map_err(fault)
}

pub(super) async fn run(
    connection: &mut MySqlConnection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<u64, StoreError> {
    let query = sqlx::query_with(AssertSqlSafe(sql.to_owned()), values::arguments(values)?);
    let done = query.persistent(sql.len() < CACHED_LENGTH).execute(connection).await.map_err(fault)?;
    Ok(done.rows_affected())
}

pub(super) async fn insert(
    connection: &mut MySqlConnection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<i64, StoreError> {
    let query = sqlx::query_with(AssertSqlSafe(sql.to_owned()), values::arguments(values)?);
    let done = query.execute(connection).await.map_err(fault)?;
    i64::try_from(done.last_insert_id())
        .map_err(|_| StoreError::Sql("the id of the new row is too large".to_owned()))
}

pub(super) async fn rows(
    connection: &mut MySqlConnection,
    sql: &str,
    values: &[Value<'_>],
    locking: bool,
) -> Result<Vec<MySqlRow>, StoreError> {
    let mut text = sql.to_owned();
    if locking && sql.starts_with("SELECT") {
        text.push_str(" FOR UPDATE");
    }
    let query = sqlx::query_with(AssertSqlSafe(text), values::arguments(values)?);
    query.persistent(sql.len() < CACHED_LENGTH).fetch_all(connection).await.map_err(fault)
}

/// What an error of the driver means. The texts are those of SPIRE's driver.
pub(super) fn fault(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(reported) = error else { return super::driver_fault(&error) };
    let Some(reported) = reported.try_downcast_ref::<MySqlDatabaseError>() else {
        return StoreError::Sql(reported.to_string());
    };
    let number = reported.number();
    let text = match reported.code() {
        Some(state) => format!("Error {number} ({state}): {}", reported.message()),
        None => format!("Error {number}: {}", reported.message()),
    };
    match number {
        1062 => StoreError::AlreadyExists(text),
        // Deadlock, lock wait timeout, a row changed under a snapshot (MariaDB).
        1213 | 1205 | 1020 => StoreError::Contended(text),
        1021 | 1114 | 1041 => StoreError::Full(text),
        // Going down, killed, too many connections, no access, no such database, read only.
        1053 | 1077 | 1079 | 1317 | 1927 | 1040 | 1203 | 1226 | 1044 | 1045 | 1049 | 1129 | 1130 | 1290
        | 1792 | 1836 | 1047 => StoreError::Unavailable(text),
        1034 | 1194 | 1712 | 1877 => StoreError::Corrupt(text),
        _ => match reported.code() {
            Some("23000") => StoreError::Constraint(text),
            Some(state) if state.starts_with("08") => StoreError::Unavailable(text),
            _ => StoreError::Sql(text),
        },
    }
}
