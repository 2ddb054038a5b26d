//! How values are bound and columns are read, with SQLite's five types.

use std::time::SystemTime;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

use crate::store::StoreError;
use crate::store::dialect::Value;

/// Statements longer than this stop being worth a place in the cache.
const CACHED_LENGTH: usize = 2048;

/// Runs a statement; the number of rows that it changed.
pub(in crate::store) fn run(
    connection: &Connection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<usize, StoreError> {
    let values = rusqlite::params_from_iter(values);
    Ok(match sql.len() {
        ..CACHED_LENGTH => connection.prepare_cached(sql)?.execute(values)?,
        _ => connection.prepare(sql)?.execute(values)?,
    })
}

/// Gives every row of a query to `read`.
pub(in crate::store) fn rows(
    connection: &Connection,
    sql: &str,
    values: &[Value<'_>],
    mut read: impl FnMut(&Row<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut each = |mut rows: rusqlite::Rows<'_>| {
        while let Some(row) = rows.next()? {
            read(row)?;
        }
        Ok::<_, StoreError>(())
    };
    let values = rusqlite::params_from_iter(values);
    match sql.len() {
        ..CACHED_LENGTH => each(connection.prepare_cached(sql)?.query(values)?),
        _ => each(connection.prepare(sql)?.query(values)?),
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

pub(in crate::store) fn int(row: &Row<'_>, column: usize) -> Result<Option<i64>, StoreError> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(value) => Ok(Some(value)),
        ValueRef::Text(text) => Ok(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok())),
        other => Err(wrong_type(column, &other)),
    }
}

pub(in crate::store) fn bytes<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r [u8], StoreError> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(&[]),
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Ok(bytes),
        other => Err(wrong_type(column, &other)),
    }
}

pub(in crate::store) fn instant(row: &Row<'_>, column: usize) -> Result<Option<OffsetDateTime>, StoreError> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(text) => Ok(std::str::from_utf8(text).ok().and_then(parse_time)),
        ValueRef::Integer(unix) => Ok(OffsetDateTime::from_unix_timestamp(unix).ok()),
        other => Err(wrong_type(column, &other)),
    }
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

    use finial_daemon::clock::from_unix_seconds;

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
}
