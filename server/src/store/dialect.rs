//! The seam between our statements and the database engines.
//!
//! Statements elsewhere in this room are plain SQL with `?` for each value, in the part of the language that SQLite,
//! PostgreSQL and MySQL share. What differs is behind [`Sql`] and [`Dialect`]: how values are bound and read, the number
//! of an inserted row, which error means that a unique value is taken, how instants compare, how a set of pairs is written.

use std::borrow::Cow;
use std::time::SystemTime;

use finial_daemon::clock::from_unix_seconds;
use time::OffsetDateTime;

use super::StoreError;
use super::engine::change::Change;
use super::engine::mysql::values as mysql;
use super::engine::network::{self, rows_at_once};
use super::engine::postgres::values as postgres;
use super::engine::sqlite::values as sqlite;

/// Which language a database speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    MySql,
}

impl Dialect {
    /// A condition `column is earlier than ?`, for a column with an instant. Takes the values of [`Dialect::earlier`].
    ///
    /// On SQLite SPIRE stores instants as text with the offset of the zone that its server ran in, so text order is the
    /// order of time only within one zone. The first, rough comparison is there for the index.
    pub(super) fn earlier_than(self, column: &str) -> String {
        match self {
            Dialect::Sqlite => format!("{column} < ? AND unixepoch({column}) < ?"),
            Dialect::Postgres | Dialect::MySql => format!("{column} < ?"),
        }
    }

    /// The values of [`Dialect::earlier_than`].
    pub(super) fn earlier(self, unix: i64) -> Vec<Value<'static>> {
        const MORE_THAN_ANY_OFFSET: i64 = 48 * 3600;
        match self {
            Dialect::Sqlite => {
                vec![Value::unix_time(unix.saturating_add(MORE_THAN_ANY_OFFSET)), Value::Int(unix)]
            }
            Dialect::Postgres | Dialect::MySql => vec![Value::unix_time(unix)],
        }
    }

    /// A set of `count` pairs, to compare `(a, b)` with by `IN`.
    pub(super) fn pairs(self, count: usize) -> String {
        match self {
            Dialect::Sqlite | Dialect::Postgres => format!("(VALUES {})", repeated("(?,?)", count)),
            Dialect::MySql => format!("({})", repeated("(?,?)", count)),
        }
    }
}

/// One open transaction.
pub(super) struct Sql<'c> {
    connection: Connection<'c>,
    now: SystemTime,
    log: bool,
}

/// What a transaction is open on.
pub(super) enum Connection<'c> {
    Sqlite(&'c rusqlite::Connection),
    Network(&'c network::Transaction<'c>),
}

impl<'c> Sql<'c> {
    /// With `log`, statements go to the log, without their values: those may be join tokens.
    pub(super) fn new(connection: Connection<'c>, now: SystemTime, log: bool) -> Sql<'c> {
        Sql { connection, now, log }
    }

    pub(super) fn dialect(&self) -> Dialect {
        match &self.connection {
            Connection::Sqlite(_) => Dialect::Sqlite,
            Connection::Network(transaction) => transaction.dialect(),
        }
    }

    /// The time for `created_at` and `updated_at`, one for the whole transaction.
    pub(super) fn now(&self) -> Value<'static> {
        Value::Time(self.now)
    }

    /// Runs a statement; the number of rows that it changed.
    pub(super) fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<usize, StoreError> {
        self.log(sql);
        match &self.connection {
            Connection::Sqlite(connection) => sqlite::run(connection, sql, values),
            Connection::Network(transaction) => transaction.run(sql, values),
        }
    }

    /// Runs an INSERT into a table with a counted `id`; the id of the new row.
    pub(super) fn insert(&self, sql: &str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        self.log(sql);
        match &self.connection {
            Connection::Sqlite(connection) => {
                sqlite::run(connection, sql, values)?;
                Ok(connection.last_insert_rowid())
            }
            Connection::Network(transaction) => transaction.insert(sql, values),
        }
    }

    /// Runs an INSERT, given up to its `VALUES`, for rows of as many values each.
    pub(super) fn insert_rows(&self, sql: &str, rows: &[Vec<Value<'_>>]) -> Result<(), StoreError> {
        let Some(width) = rows.first().map(Vec::len) else { return Ok(()) };
        self.log(sql);
        match &self.connection {
            Connection::Sqlite(connection) => {
                let sql = format!("{sql} VALUES {}", Sql::set(width));
                for row in rows {
                    sqlite::run(connection, &sql, row)?;
                }
            }
            Connection::Network(transaction) => {
                for rows in rows.chunks(rows_at_once()) {
                    let sql = format!("{sql} VALUES {}", repeated(&Sql::set(width), rows.len()));
                    transaction.run(&sql, &rows.concat())?;
                }
            }
        }
        Ok(())
    }

    /// Every row that a query gives.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.log(sql);
        let mut found = Vec::new();
        match &self.connection {
            Connection::Sqlite(connection) => sqlite::rows(connection, sql, values, |row| {
                found.push(read(&Row::Sqlite(row))?);
                Ok(())
            })?,
            Connection::Network(transaction) => transaction.rows(sql, values, |row| {
                found.push(read(row)?);
                Ok(())
            })?,
        }
        Ok(found)
    }

    /// The first row that a query gives.
    pub(super) fn row<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.rows(sql, values, read)?.into_iter().next())
    }

    /// The one number that a query gives (0 for NULL).
    pub(super) fn number(&self, sql: &str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        let number = self.row(sql, values, |row| Ok(row.opt_int(0)?.unwrap_or(0)))?;
        Ok(number.unwrap_or(0))
    }

    /// Runs several statements that take no values.
    pub(super) fn script(&self, sql: &str) -> Result<(), StoreError> {
        self.log(sql);
        match &self.connection {
            Connection::Sqlite(connection) => Ok(connection.execute_batch(sql)?),
            Connection::Network(transaction) => transaction.script(sql),
        }
    }

    /// Notes what other servers are told of when the transaction is committed, where the engine can tell them.
    pub(super) fn note(&self, change: Change) {
        if let Connection::Network(transaction) = &self.connection {
            transaction.note(change);
        }
    }

    fn log(&self, sql: &str) {
        if self.log {
            tracing::debug!(subsystem_name = "sql", sql, "Running a statement");
        }
    }

    /// `(?,?,?)`: a set of `count` values.
    pub(super) fn set(count: usize) -> String {
        format!("({})", repeated("?", count))
    }

    /// A condition that `column` is one of `ids` (sorted), or not far off: with ids that lie close together it is a
    /// range, one cached statement for pages of any size. Rows of other ids have to be passed over by the reader.
    pub(super) fn near(column: &str, ids: &[i64]) -> (String, Vec<Value<'static>>) {
        let (Some(first), Some(last)) = (ids.first().copied(), ids.last().copied()) else {
            return ("0 = 1".to_owned(), Vec::new());
        };
        let span = last.abs_diff(first).saturating_add(1);
        if span <= (ids.len() as u64).saturating_mul(4) {
            return (format!("{column} BETWEEN ? AND ?"), vec![Value::Int(first), Value::Int(last)]);
        }
        // Numbers need no quoting, and there may be more of them than a statement takes values.
        let list = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        (format!("{column} IN ({list})"), Vec::new())
    }
}

/// A value to bind. NULL is for columns of any type but a number's.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Int(i64),
    Bool(bool),
    Text(Cow<'a, str>),
    Blob(Cow<'a, [u8]>),
    Time(SystemTime),
}

impl<'a> Value<'a> {
    pub(super) fn unix_time(unix: i64) -> Value<'a> {
        Value::Time(from_unix_seconds(unix))
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<i32> for Value<'_> {
    fn from(value: i32) -> Self {
        Value::Int(value.into())
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Value::Text(Cow::Borrowed(value))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Value::Text(Cow::Borrowed(value))
    }
}

impl From<String> for Value<'_> {
    fn from(value: String) -> Self {
        Value::Text(Cow::Owned(value))
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Value::Blob(Cow::Borrowed(value))
    }
}

impl<'a> From<Vec<u8>> for Value<'a> {
    fn from(value: Vec<u8>) -> Self {
        Value::Blob(Cow::Owned(value))
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// `values![a, b]`: a slice of values to bind.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        &[$($crate::store::dialect::Value::from($value)),*]
    };
}
pub(super) use values;

/// A row, read by the position of the column in the query.
pub(super) enum Row<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    Postgres(&'r sqlx::postgres::PgRow),
    MySql(&'r sqlx::mysql::MySqlRow),
}

impl Row<'_> {
    pub(super) fn int(&self, column: usize) -> Result<i64, StoreError> {
        Ok(self.opt_int(column)?.unwrap_or(0))
    }

    /// A number that the schema keeps in 32 bits.
    pub(super) fn int32(&self, column: usize) -> Result<i32, StoreError> {
        let value = self.int(column)?;
        i32::try_from(value).map_err(|_| StoreError::Sql(format!("{value} does not fit into 32 bits")))
    }

    pub(super) fn opt_int(&self, column: usize) -> Result<Option<i64>, StoreError> {
        match self {
            Row::Sqlite(row) => sqlite::int(row, column),
            Row::Postgres(row) => postgres::int(row, column),
            Row::MySql(row) => mysql::int(row, column),
        }
    }

    /// A truth value; NULL is false.
    pub(super) fn bool(&self, column: usize) -> Result<bool, StoreError> {
        Ok(self.int(column)? != 0)
    }

    /// A text; NULL is empty.
    pub(super) fn text(&self, column: usize) -> Result<String, StoreError> {
        Ok(self.str(column)?.to_owned())
    }

    /// A text, borrowed from the row; NULL is empty.
    pub(super) fn str(&self, column: usize) -> Result<&str, StoreError> {
        std::str::from_utf8(self.blob(column)?)
            .map_err(|_| StoreError::Sql(format!("column {column} is not valid UTF-8")))
    }

    /// Bytes; NULL is empty.
    pub(super) fn blob(&self, column: usize) -> Result<&[u8], StoreError> {
        match self {
            Row::Sqlite(row) => sqlite::bytes(row, column),
            Row::Postgres(row) => postgres::bytes(row, column),
            Row::MySql(row) => mysql::bytes(row, column),
        }
    }

    /// An instant in unix seconds, rounded down; 0 for NULL and for what is not an instant.
    pub(super) fn unix(&self, column: usize) -> Result<i64, StoreError> {
        Ok(self.instant(column)?.map_or(0, OffsetDateTime::unix_timestamp))
    }

    /// An instant in unix seconds, rounded to the nearest one, as SPIRE shows `created_at`.
    pub(super) fn unix_rounded(&self, column: usize) -> Result<i64, StoreError> {
        let instant = self.instant(column)?;
        Ok(instant.map_or(0, |t| t.unix_timestamp() + i64::from(t.nanosecond() >= 500_000_000)))
    }

    fn instant(&self, column: usize) -> Result<Option<OffsetDateTime>, StoreError> {
        match self {
            Row::Sqlite(row) => sqlite::instant(row, column),
            Row::Postgres(row) => postgres::instant(row, column),
            Row::MySql(row) => mysql::instant(row, column),
        }
    }
}

/// `count` copies of `item` with commas between.
fn repeated(item: &str, count: usize) -> String {
    let mut text = String::with_capacity(count * (item.len() + 1));
    for i in 0..count {
        if i > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_ids_become_a_range_and_scattered_ones_a_list() {
        assert_eq!(Sql::near("id", &[3, 5, 6]).0, "id BETWEEN ? AND ?");
        assert_eq!(Sql::near("id", &[3, 50]).0, "id IN (3,50)");
        assert_eq!(Sql::near("id", &[]).0, "0 = 1");
        assert_eq!(Sql::near("id", &[i64::MIN, i64::MAX]).1.len(), 0);
    }
}
