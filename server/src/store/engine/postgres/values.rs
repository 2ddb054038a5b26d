//! How values are bound and columns are read on PostgreSQL.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgRow, PgTypeInfo};
use sqlx::{Arguments, Encode, Postgres, Row, Type, ValueRef};
use time::OffsetDateTime;

use crate::store::StoreError;
use crate::store::dialect::Value;

/// `timestamp with time zone`.
const TIMESTAMPTZ: Oid = Oid(1184);
/// Let the server say which type the value is to have.
const UNSPECIFIED: Oid = Oid(0);
/// 2000-01-01 in unix seconds, where instants are counted from.
const EPOCH: i64 = 946_684_800;
const MICROSECONDS: i64 = 1_000_000;

pub(super) fn arguments(values: &[Value<'_>]) -> Result<PgArguments, StoreError> {
    let mut arguments = PgArguments::default();
    for value in values {
        let added = match value {
            Value::Null => arguments.add(Null),
            Value::Int(value) => arguments.add(*value),
            Value::Bool(value) => arguments.add(*value),
            Value::Text(value) => arguments.add(value.as_ref()),
            Value::Blob(value) => arguments.add(value.as_ref()),
            Value::Time(value) => arguments.add(Instant(*value)),
        };
        added.map_err(|error| StoreError::Sql(format!("a value cannot be bound: {error}")))?;
    }
    Ok(arguments)
}

/// A whole number of any width, or a truth value as 0 or 1.
pub(in crate::store) fn int(row: &PgRow, column: usize) -> Result<Option<i64>, StoreError> {
    let Some(bytes) = bytes_or_null(row, column)? else { return Ok(None) };
    let value = match bytes {
        [one] => i64::from(*one),
        [a, b] => i16::from_be_bytes([*a, *b]).into(),
        [a, b, c, d] => i32::from_be_bytes([*a, *b, *c, *d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
        other => {
            let text = format!("column {column} holds {} bytes and not a number", other.len());
            return Err(StoreError::Sql(text));
        }
    };
    Ok(Some(value))
}

pub(in crate::store) fn bytes(row: &PgRow, column: usize) -> Result<&[u8], StoreError> {
    Ok(bytes_or_null(row, column)?.unwrap_or_default())
}

pub(in crate::store) fn instant(row: &PgRow, column: usize) -> Result<Option<OffsetDateTime>, StoreError> {
    let Some(since) = int(row, column)? else { return Ok(None) };
    let nanoseconds = (i128::from(EPOCH) * i128::from(MICROSECONDS) + i128::from(since)) * 1000;
    // Infinity is no instant.
    Ok(OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok())
}

fn bytes_or_null(row: &PgRow, column: usize) -> Result<Option<&[u8]>, StoreError> {
    let value = row.try_get_raw(column).map_err(super::fault)?;
    if value.is_null() {
        return Ok(None);
    }
    value.as_bytes().map(Some).map_err(|error| StoreError::Sql(error.to_string()))
}

/// NULL, for a column of any type but a number's: its width is not known.
struct Null;

impl Type<Postgres> for Null {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(UNSPECIFIED)
    }
}

impl Encode<'_, Postgres> for Null {
    fn encode_by_ref(&self, _buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(IsNull::Yes)
    }
}

struct Instant(SystemTime);

impl Type<Postgres> for Instant {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ)
    }
}

impl Encode<'_, Postgres> for Instant {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let unix = match self.0.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros())?,
            Err(before) => -i64::try_from(before.duration().as_micros())?,
        };
        buffer.extend_from_slice(&(unix - EPOCH * MICROSECONDS).to_be_bytes());
        Ok(IsNull::No)
    }
}
