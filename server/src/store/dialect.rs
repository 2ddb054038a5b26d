//! The seam between our statements and the database engine: SQLite today.
//!
//! Statements elsewhere in this room are plain SQL with `?` for each value. What differs between engines is behind
//! the methods of [`Sql`]: how values are bound and read, the number of an inserted row, which error means that a
//! unique value is taken (`error.rs`), how instants compare, and how a set of pairs is written.

use std::borrow::Cow;
use std::time::SystemTime;

use finial_daemon::clock::from_unix_seconds;
use rusqlite::Connection;
use rusqlite::types::{ToSqlOutput, ValueRef};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

use super::StoreError;

/// Lists longer than this stop being worth a cached statement.
const CACHED_LENGTH: usize = 2048;

/// One open transaction.
pub(super) struct Sql<'c> {
    connection: &'c Connection,
    now: SystemTime,
}

impl<'c> Sql<'c> {
    pub(super) fn new(connection: &'c Connection, now: SystemTime) -> Sql<'c> {
        Sql { connection, now }
    }

    /// The time for `created_at` and `updated_at`, one for the whole transaction.
    pub(super) fn now(&self) -> Value<'static> {
        Value::Time(self.now)
    }

    /// Runs a statement; the number of rows that it changed.
    pub(super) fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<usize, StoreError> {
        let changed = match sql.len() {
            ..CACHED_LENGTH => {
                self.connection.prepare_cached(sql)?.execute(rusqlite::params_from_iter(values))?
            }
            _ => self.connection.prepare(sql)?.execute(rusqlite::params_from_iter(values))?,
        };
        Ok(changed)
    }

    /// Runs an INSERT; the id of the new row.
    pub(super) fn insert(&self, sql: &str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        self.run(sql, values)?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Every row that a query gives.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut found = Vec::new();
        let mut collect = |mut rows: rusqlite::Rows<'_>| {
            while let Some(row) = rows.next()? {
                found.push(read(&Row(row))?);
            }
            Ok::<_, StoreError>(())
        };
        let values = rusqlite::params_from_iter(values);
        match sql.len() {
            ..CACHED_LENGTH => collect(self.connection.prepare_cached(sql)?.query(values)?)?,
            _ => collect(self.connection.prepare(sql)?.query(values)?)?,
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
        Ok(self.connection.execute_batch(sql)?)
    }

    /// A condition `column is earlier than ?`, for a column with an instant. Takes two values, see [`Sql::earlier`].
    ///
    /// SPIRE stores instants as text with the offset of the zone that its server ran in, so text order is the order of
    /// time only within one zone. The first, rough comparison is there for the index.
    pub(super) fn earlier_than(column: &str) -> String {
        format!("{column} < ? AND unixepoch({column}) < ?")
    }

    /// The two values of [`Sql::earlier_than`].
    pub(super) fn earlier(unix: i64) -> [Value<'static>; 2] {
        const MORE_THAN_ANY_OFFSET: i64 = 48 * 3600;
        [Value::unix_time(unix.saturating_add(MORE_THAN_ANY_OFFSET)), Value::Int(unix)]
    }

    /// `(?,?,?)`: a set of `count` values.
    pub(super) fn set(count: usize) -> String {
        format!("({})", repeated("?", count))
    }

    /// `(VALUES (?,?),(?,?))`: a set of `count` pairs.
    pub(super) fn pairs(count: usize) -> String {
        format!("(VALUES {})", repeated("(?,?)", count))
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

/// A value to bind.
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

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Value::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Value::Int(value) => ToSqlOutput::Borrowed(ValueRef::Integer(*value)),
            Value::Bool(value) => ToSqlOutput::Borrowed(ValueRef::Integer((*value).into())),
            Value::Text(value) => ToSqlOutput::Borrowed(ValueRef::Text(value.as_bytes())),
            Value::Blob(value) => ToSqlOutput::Borrowed(ValueRef::Blob(value)),
            Value::Time(value) => ToSqlOutput::Owned(time_text(*value).into()),
        })
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
pub(super) struct Row<'r>(&'r rusqlite::Row<'r>);

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
        match self.0.get_ref(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Integer(value) => Ok(Some(value)),
            ValueRef::Text(text) => Ok(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok())),
            other => Err(wrong_type(column, &other)),
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
        match self.0.get_ref(column)? {
            ValueRef::Null => Ok(""),
            ValueRef::Text(text) | ValueRef::Blob(text) => std::str::from_utf8(text)
                .map_err(|_| StoreError::Sql(format!("column {column} is not valid UTF-8"))),
            other => Err(wrong_type(column, &other)),
        }
    }

    /// Bytes; NULL is empty.
    pub(super) fn blob(&self, column: usize) -> Result<&[u8], StoreError> {
        match self.0.get_ref(column)? {
            ValueRef::Null => Ok(&[]),
            ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Ok(bytes),
            other => Err(wrong_type(column, &other)),
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
        match self.0.get_ref(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Text(text) => Ok(std::str::from_utf8(text).ok().and_then(parse_time)),
            ValueRef::Integer(unix) => Ok(OffsetDateTime::from_unix_timestamp(unix).ok()),
            other => Err(wrong_type(column, &other)),
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

fn wrong_type(column: usize, value: &ValueRef<'_>) -> StoreError {
    StoreError::Sql(format!("column {column} holds an unexpected {}", value.data_type()))
}

/// The text of an instant as SPIRE's driver writes it: `2026-11-21 21:03:29.570156199+00:00`, no trailing zeros.
fn time_text(instant: SystemTime) -> String {
    let t = OffsetDateTime::from(instant);
    let mut text = format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    );
    if t.nanosecond() != 0 {
        let fraction = format!("{:09}", t.nanosecond());
        text.push('.');
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push_str("+00:00");
    text
}

/// Reads what [`time_text`] and SPIRE's driver write: `T` or a space, an optional fraction, an optional offset (else UTC).
fn parse_time(text: &str) -> Option<OffsetDateTime> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, rest) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    let mut date = date.splitn(3, '-');
    let year = date.next()?.parse().ok()?;
    let month: u8 = date.next()?.parse().ok()?;
    let day = date.next()?.parse().ok()?;
    let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;

    let (clock, offset) = match rest.find(['+', '-']) {
        Some(at) => (rest.get(..at)?, parse_offset(rest.get(at..)?)?),
        None => (rest, UtcOffset::UTC),
    };
    let mut clock = clock.splitn(3, ':');
    let hour = clock.next()?.parse().ok()?;
    let minute = clock.next()?.parse().ok()?;
    let (second, nanosecond) = match clock.next() {
        None => (0, 0),
        Some(seconds) => match seconds.split_once('.') {
            None => (seconds.parse().ok()?, 0),
            Some((second, fraction)) => {
                let digits = fraction.get(..fraction.len().min(9))?;
                let scale = 10_u32.pow(u32::try_from(9 - digits.len()).ok()?);
                (second.parse().ok()?, digits.parse::<u32>().ok()? * scale)
            }
        },
    };
    let time = Time::from_hms_nano(hour, minute, second, nanosecond).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_offset(offset))
}

fn parse_offset(text: &str) -> Option<UtcOffset> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+')?),
    };
    let (hours, minutes) = digits.split_once(':')?;
    let (hours, minutes): (i8, i8) = (hours.parse().ok()?, minutes.parse().ok()?);
    UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn instants_are_written_as_spire_writes_them() {
        let base = UNIX_EPOCH + Duration::from_secs(1_795_295_015);
        assert_eq!(time_text(base), "2026-11-21 21:03:35+00:00");
        assert_eq!(time_text(base + Duration::from_nanos(568_110_500)), "2026-11-21 21:03:35.5681105+00:00");
    }

    #[test]
    fn instants_are_read_in_every_form_of_the_driver() {
        for (text, unix) in [
            ("2026-11-21 21:03:35.568110529+00:00", 1_795_295_015),
            ("2026-11-21T23:03:35+02:00", 1_795_295_015),
            ("2026-11-21 16:33:35-04:30", 1_795_295_015),
            ("2026-11-21 21:03:35", 1_795_295_015),
            ("2026-11-21 21:03:35.5Z", 1_795_295_015),
            ("2026-11-21 21:03", 1_795_294_980),
            ("2026-11-21", 1_795_219_200),
            ("1970-01-01 00:00:00+00:00", 0),
            ("0001-01-01 00:00:00+00:00", -62_135_596_800),
        ] {
            assert_eq!(parse_time(text).map(OffsetDateTime::unix_timestamp), Some(unix), "{text}");
        }
        for text in ["", "never", "2026-13-01", "2026-11-21 25:00:00", "2026-11-21 21:03:35+2", "é-1-1 ü:1"]
        {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn written_instants_are_read_back() {
        for unix in [-1, 0, 1, 1_795_295_015, 253_402_300_799] {
            let text = time_text(from_unix_seconds(unix));
            assert_eq!(parse_time(&text).map(OffsetDateTime::unix_timestamp), Some(unix), "{text}");
        }
    }

    #[test]
    fn close_ids_become_a_range_and_scattered_ones_a_list() {
        assert_eq!(Sql::near("id", &[3, 5, 6]).0, "id BETWEEN ? AND ?");
        assert_eq!(Sql::near("id", &[3, 50]).0, "id IN (3,50)");
        assert_eq!(Sql::near("id", &[]).0, "0 = 1");
        assert_eq!(Sql::near("id", &[i64::MIN, i64::MAX]).1.len(), 0);
    }
}
