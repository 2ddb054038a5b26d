//! PostgreSQL.

pub(in crate::store) mod listen;
pub(in crate::store) mod options;
pub(in crate::store) mod values;

use sqlx::postgres::{PgDatabaseError, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

use super::change::Change;
use super::network::Access;
use crate::store::StoreError;
use crate::store::dialect::Value;
use options::{Options, Session};

/// The key of the advisory lock under which Finial servers migrate: any number that others are unlikely to use.
const MIGRATION_LOCK: i64 = 0x0046_696e_6961_6c01;
/// What servers listen to.
const CHANNEL: &str = "finial_changes";
/// Longer statements are seldom the same twice.
const CACHED_LENGTH: usize = 2048;

/// The first of the hosts that is there and is what `target_session_attrs` asks for.
pub(super) async fn connect(options: &Options) -> Result<PgConnection, StoreError> {
    let mut failure = StoreError::Unavailable("connection_string names no host".to_owned());
    for host in &options.hosts {
        match connect_to(host, options.session).await {
            Ok(connection) => return Ok(connection),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn connect_to(
    host: &sqlx::postgres::PgConnectOptions,
    session: Session,
) -> Result<PgConnection, StoreError> {
    let place = options::place(host);
    let at_place = |error: sqlx::Error| match fault(error) {
        StoreError::Unavailable(cause) => StoreError::Unavailable(format!("{place}: {cause}")),
        other => other,
    };
    let mut connection = PgConnection::connect_with(host).await.map_err(at_place)?;
    let Some(wanted) = session.read_only() else { return Ok(connection) };
    let query = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool";
    let row = connection.fetch_one(query).await.map_err(at_place)?;
    match row.try_get::<bool, _>(0).map_err(at_place)? == wanted {
        true => Ok(connection),
        false => Err(StoreError::Unavailable(format!("{place}: session is not {}", session.name()))),
    }
}

pub(super) fn begin(access: Access) -> String {
    match access {
        Access::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned(),
        Access::Write => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE".to_owned(),
        // Each statement sees what the server that migrated before has done.
        Access::Migrate => format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
        ),
    }
}

/// Commits, and tells the other servers in the same transaction.
pub(super) fn commit(changes: &[Change]) -> String {
    let mut script = String::new();
    for change in changes {
        script.push_str(&format!("NOTIFY {CHANNEL}, '{}';", change.name()));
    }
    script + "COMMIT"
}

pub(super) async fn script(connection: &mut PgConnection, sql: String) -> Result<(), StoreError> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop).map_err(fault)
}

pub(super) async fn run(
    connection: &mut PgConnection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<u64, StoreError> {
    let query = sqlx::query_with(AssertSqlSafe(numbered(sql, "")), values::arguments(values)?);
    let done = query.persistent(sql.len() < CACHED_LENGTH).execute(connection).await.map_err(fault)?;
    Ok(done.rows_affected())
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<i64, StoreError> {
    let query = sqlx::query_with(AssertSqlSafe(numbered(sql, " RETURNING id")), values::arguments(values)?);
    let row = query.fetch_one(connection).await.map_err(fault)?;
    values::int(&row, 0)?.ok_or_else(|| StoreError::Sql("the new row has no id".to_owned()))
}

pub(super) async fn rows(
    connection: &mut PgConnection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<Vec<PgRow>, StoreError> {
    let query = sqlx::query_with(AssertSqlSafe(numbered(sql, "")), values::arguments(values)?);
    query.persistent(sql.len() < CACHED_LENGTH).fetch_all(connection).await.map_err(fault)
}

/// The statement with `$1`, `$2` … for each `?` outside of quotes.
fn numbered(sql: &str, end: &str) -> String {
    let mut text = String::with_capacity(sql.len() + 32);
    let (mut count, mut quoted) = (0, false);
    for character in sql.chars() {
        match character {
            '?' if !quoted => {
                count += 1;
                text.push('$');
                text.push_str(&count.to_string());
            }
            other => {
                quoted ^= other == '\'';
                text.push(other);
            }
        }
    }
    text + end
}

/// What an error of the driver means. The texts are those of SPIRE's driver.
pub(super) fn fault(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(reported) = error else { return super::driver_fault(&error) };
    let Some(reported) = reported.try_downcast_ref::<PgDatabaseError>() else {
        return StoreError::Sql(reported.to_string());
    };
    let text = format!("pq: {} ({})", reported.message(), reported.code());
    match reported.code() {
        "23505" => StoreError::AlreadyExists(text),
        "40001" | "40P01" | "55P03" => StoreError::Contended(text),
        // No room, out of memory, too many connections, and a limit that the operator set.
        "53100" => StoreError::Full(text),
        // A server that is going, coming, or has become a standby.
        "25006" | "53300" => StoreError::Unavailable(text),
        code => match code.get(..2) {
            Some("23") => StoreError::Constraint(text),
            Some("08" | "28" | "3D" | "57") => StoreError::Unavailable(text),
            Some("XX") => StoreError::Corrupt(text),
            _ => StoreError::Sql(text),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_outside_of_quotes() {
        assert_eq!(numbered("a = ? AND b <> '?' AND c IN (?,?)", ""), "a = $1 AND b <> '?' AND c IN ($2,$3)");
        assert_eq!(numbered("INSERT x VALUES (?)", " RETURNING id"), "INSERT x VALUES ($1) RETURNING id");
    }

    #[test]
    fn other_servers_are_told_in_the_transaction() {
        assert_eq!(commit(&[]), "COMMIT");
        assert_eq!(
            commit(&[Change::Rows, Change::Bundles]),
            "NOTIFY finial_changes, 'rows';NOTIFY finial_changes, 'bundles';COMMIT"
        );
    }
}
