//! How values are bound and columns are read on MySQL.

use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::{Arguments, Row, TypeInfo, ValueRef};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

use crate::store::StoreError;
use crate::store::dialect::Value;

pub(super) fn arguments(values: &[Value<'_>]) -> Result<MySqlArguments, StoreError> {
    let mut arguments = MySqlArguments::default();
    for value in values {
        let added = match value {
            Value::Null => arguments.add(None::<&str>),
            Value::Int(value) => arguments.add(*value),
            Value::Bool(value) => arguments.add(*value),
            Value::Text(value) => arguments.add(value.as_ref()),
            Value::Blob(value) => arguments.add(value.as_ref()),
            // Columns have no zone; SPIRE's driver writes UTC.
            Value::Time(value) => arguments.add(time_text((*value).into())),
        };
        added.map_err(|error| StoreError::Sql(format!("a value cannot be bound: {error}")))?;
    }
    Ok(arguments)
}

/// A whole number of any width, or a truth value as 0 or 1.
pub(in crate::store) fn int(row: &MySqlRow, column: usize) -> Result<Option<i64>, StoreError> {
    let Some(bytes) = bytes_or_null(row, column)? else { return Ok(None) };
    let value = match bytes {
        [one] => i64::from(*one),
        [a, b] => i16::from_le_bytes([*a, *b]).into(),
        [a, b, c, d] if is_unsigned(row, column)? => u32::from_le_bytes([*a, *b, *c, *d]).into(),
        [a, b, c, d] => i32::from_le_bytes([*a, *b, *c, *d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
        other => {
            let text = format!("column {column} holds {} bytes and not a number", other.len());
            return Err(StoreError::Sql(text));
        }
    };
    Ok(Some(value))
}

pub(in crate::store) fn bytes(row: &MySqlRow, column: usize) -> Result<&[u8], StoreError> {
    Ok(bytes_or_null(row, column)?.unwrap_or_default())
}

pub(in crate::store) fn instant(row: &MySqlRow, column: usize) -> Result<Option<OffsetDateTime>, StoreError> {
    Ok(bytes_or_null(row, column)?.and_then(parse_instant))
}

fn is_unsigned(row: &MySqlRow, column: usize) -> Result<bool, StoreError> {
    let value = row.try_get_raw(column).map_err(super::fault)?;
    Ok(value.type_info().name().ends_with("UNSIGNED"))
}

fn bytes_or_null(row: &MySqlRow, column: usize) -> Result<Option<&[u8]>, StoreError> {
    if row.try_get_raw(column).map_err(super::fault)?.is_null() {
        return Ok(None);
    }
    row.try_get_unchecked::<&[u8], _>(column).map(Some).map_err(super::fault)
}

/// An instant as the binary protocol has it: a length, then date, time and microseconds as far as they are not zero.
fn parse_instant(bytes: &[u8]) -> Option<OffsetDateTime> {
    let (date, clock) = match bytes {
        [_, year_low, year_high, month, day, clock @ ..] => {
            let year = u16::from_le_bytes([*year_low, *year_high]);
            (Date::from_calendar_date(year.into(), Month::try_from(*month).ok()?, *day).ok()?, clock)
        }
        // Zeros, which are no date.
        _ => return None,
    };
    let time = match clock {
        [] => Time::MIDNIGHT,
        [hour, minute, second] => Time::from_hms(*hour, *minute, *second).ok()?,
        [hour, minute, second, a, b, c, d] => {
            Time::from_hms_micro(*hour, *minute, *second, u32::from_le_bytes([*a, *b, *c, *d])).ok()?
        }
        _ => return None,
    };
    Some(PrimitiveDateTime::new(date, time).assume_utc())
}

fn time_text(t: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.microsecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_long_as_they_come() {
        let unix = |bytes: &[u8]| parse_instant(bytes).map(|t| (t.unix_timestamp(), t.microsecond()));
        assert_eq!(unix(&[4, 0xea, 0x07, 11, 21]), Some((1_795_219_200, 0)));
        assert_eq!(unix(&[7, 0xea, 0x07, 11, 21, 21, 3, 35]), Some((1_795_295_015, 0)));
        assert_eq!(unix(&[11, 0xea, 0x07, 11, 21, 21, 3, 35, 1, 0, 0, 0]), Some((1_795_295_015, 1)));
        assert_eq!(unix(&[0]), None);
        assert_eq!(unix(&[4, 0, 0, 0, 0]), None);
    }

    #[test]
    fn instants_are_written_in_utc() {
        let instant =
            OffsetDateTime::from_unix_timestamp(1_795_295_015).unwrap() + time::Duration::microseconds(7);
        assert_eq!(time_text(instant), "2026-11-21 21:03:35.000007");
    }
}
