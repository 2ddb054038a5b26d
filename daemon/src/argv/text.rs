//! What SPIRE's commands print and read beside their flags: Go's texts for strings, times, numbers, errors and gRPC
//! statuses. Scripts compare them.

use std::error::Error as StdError;
use std::io;
use std::path::{Component, Path, PathBuf};

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use tonic::{Code, Status};
use tz::TimeZone;

use crate::dial::DialError;
use crate::settings::GoDuration;

/// A flag's value that cannot be read, in the words of Go's `flag`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    #[error("parse error")]
    Malformed,
    #[error("value out of range")]
    OutOfRange,
}

/// An integer flag: decimal, or with the prefix `0x`, `0o`, `0` or `0b`; `_` may stand between digits.
pub fn integer(text: &str) -> Result<i64, FlagError> {
    let (negative, magnitude) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let lower = magnitude.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let prefixed = digits.len() != lower.len();
    let digits = if prefixed { digits.strip_prefix('_').unwrap_or(digits) } else { digits };
    let underscored = digits.contains('_');
    let well_placed = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    if digits.is_empty() || (underscored && !(prefixed && well_placed)) {
        return Err(FlagError::Malformed);
    }
    let digits = digits.replace('_', "");
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(FlagError::Malformed);
    }
    let value = i128::from_str_radix(&digits, radix).map_err(|_| FlagError::OutOfRange)?;
    i64::try_from(if negative { -value } else { value }).map_err(|_| FlagError::OutOfRange)
}

/// A duration flag in nanoseconds; it may be negative.
pub fn duration(text: &str) -> Result<i64, FlagError> {
    let (sign, magnitude) = match text.strip_prefix('-') {
        Some(rest) if !rest.starts_with(['+', '-']) => (-1, rest),
        Some(_) => return Err(FlagError::Malformed),
        None => (1, text),
    };
    let magnitude: GoDuration = magnitude.parse().map_err(|_| FlagError::Malformed)?;
    i64::try_from(magnitude.0.as_nanos()).map(|nanos| sign * nanos).map_err(|_| FlagError::OutOfRange)
}

/// The text in double quotes with Go's escapes (`%q`).
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if c < ' ' || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Unix seconds as `2006-01-02 15:04:05 +0000 UTC`.
pub fn utc_time(unix: i64) -> String {
    in_zone(unix, 0, "UTC")
}

/// Unix seconds as `2006-01-02 15:04:05 -0700 MST` in the zone of `TZ` or else of the machine.
pub fn local_time(unix: i64) -> String {
    local_time_in(unix, &zone(std::env::var("TZ").ok().as_deref()))
}

/// Unix seconds as `2006-01-02T15:04:05Z`.
pub fn rfc3339(unix: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| unix.to_string())
}

/// What an operating system's error is called in Go, for example `no such file or directory`.
pub fn system_error(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        // "No such file or directory (os error 2)"
        Some(_) => {
            let text = text.split(" (os error").next().unwrap_or(&text);
            let mut chars = text.chars();
            chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
        }
        // Refused by the standard library with an error of its own, where the system says EINVAL.
        None if error.kind() == io::ErrorKind::InvalidInput => "invalid argument".to_owned(),
        None => text,
    }
}

/// `open /the/path: no such file or directory`
pub fn file_error(operation: &str, path: &Path, error: &io::Error) -> String {
    format!("{operation} {}: {}", path.display(), system_error(error))
}

/// The shortest path of the same name: no `.`, no `//`, no `..` behind a name.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match cleaned.components().next_back() {
                Some(Component::Normal(_)) => {
                    cleaned.pop();
                }
                Some(Component::RootDir) => {}
                _ => cleaned.push(".."),
            },
            other => cleaned.push(other),
        }
    }
    if cleaned.as_os_str().is_empty() { PathBuf::from(".") } else { cleaned }
}

/// How a gRPC status reads in Go: `rpc error: code = NotFound desc = entry not found`. Where no connection was made
/// the text says so; `address` is then what stands behind `dial unix`.
pub fn rpc_error(status: &Status, address: &str) -> String {
    let description = match dial_error(status) {
        Some(_) if address.is_empty() => dial_failed("dial unix: missing address"),
        Some(cause) => dial_failed(&format!("dial unix {address}: connect: {}", system_error(cause))),
        None => status.message().to_owned(),
    };
    format!("rpc error: code = {} desc = {description}", code_name(status.code()))
}

/// Go's name for the code, for example `NotFound`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

fn dial_failed(cause: &str) -> String {
    format!("connection error: desc = \"transport: Error while dialing: {cause}\"")
}

/// Why no connection was made, if that is what the status is about.
fn dial_error(status: &Status) -> Option<&io::Error> {
    let mut cause = StdError::source(status);
    while let Some(error) = cause {
        if let Some(DialError::Connect { source, .. }) = error.downcast_ref() {
            return Some(source);
        }
        cause = error.source();
    }
    None
}

/// Go's reading of `TZ`: the name of a file of zones, empty for UTC; the machine's zone when it is not set. What cannot
/// be read is UTC.
fn zone(named: Option<&str>) -> TimeZone {
    let zone = match named {
        None => TimeZone::local(),
        Some("") => Ok(TimeZone::utc()),
        // The colon says that it is a file and no rule.
        Some(name) => TimeZone::from_posix_tz(&format!(":{}", name.trim_start_matches(':'))),
    };
    zone.unwrap_or_else(|_| TimeZone::utc())
}

fn local_time_in(unix: i64, zone: &TimeZone) -> String {
    match zone.find_local_time_type(unix) {
        Ok(local) if !local.time_zone_designation().is_empty() => {
            in_zone(unix, local.ut_offset(), local.time_zone_designation())
        }
        // The built-in UTC has no name.
        _ => utc_time(unix),
    }
}

fn in_zone(unix: i64, offset: i32, name: &str) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|time| time.checked_to_offset(UtcOffset::from_whole_seconds(offset).ok()?));
    // Beyond the year 9999 there is only the number.
    let Some(time) = time else { return unix.to_string() };
    let (hours, minutes, _) = time.offset().as_hms();
    let sign = if offset < 0 { '-' } else { '+' };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} {sign}{:02}{:02} {name}",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        hours.unsigned_abs(),
        minutes.unsigned_abs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_go() {
        for (text, value) in [
            ("0", 0),
            ("600", 600),
            ("-5", -5),
            ("+7", 7),
            ("0x10", 16),
            ("-0X1f", -31),
            ("010", 8),
            ("0o17", 15),
            ("0b11", 3),
            ("0x_1_0", 16),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
        for text in ["", "-", "abc", "1.5", "0x", "08", "1 ", " 1", "--1", "1_000", "0x1__0", "0x10_", "é"] {
            assert_eq!(integer(text), Err(FlagError::Malformed), "{text}");
        }
        for text in
            ["9223372036854775808", "99999999999999999999", "-99999999999999999999999999999999999999999"]
        {
            assert_eq!(integer(text), Err(FlagError::OutOfRange), "{text}");
        }
    }

    #[test]
    fn durations_may_be_negative() {
        assert_eq!(duration("1h"), Ok(3_600_000_000_000));
        assert_eq!(duration("-5s"), Ok(-5_000_000_000));
        assert_eq!(duration("0"), Ok(0));
        for text in ["", "5", "foo", "--5s", "-+5s", "-"] {
            assert_eq!(duration(text), Err(FlagError::Malformed), "{text}");
        }
    }

    #[test]
    fn quotes_like_go() {
        assert_eq!(
            quote("a \"b\" c\\ \n\t\u{1}\u{7f}é\u{85}\u{a0}'"),
            r#""a \"b\" c\\ \n\t\x01\x7fé\u0085\u00a0'""#
        );
    }

    #[test]
    fn times_have_their_zone() {
        assert_eq!(utc_time(4_000_000_000), "2096-10-02 07:06:40 +0000 UTC");
        assert_eq!(utc_time(0), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(rfc3339(1_795_300_381), "2026-11-21T22:33:01Z");
        let berlin = TimeZone::from_posix_tz("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        assert_eq!(local_time_in(1_795_300_384, &berlin), "2026-11-21 23:33:04 +0100 CET");
        assert_eq!(local_time_in(1_782_000_000, &berlin), "2026-06-21 02:00:00 +0200 CEST");
        let west = TimeZone::from_posix_tz("<-0330>3:30").unwrap();
        assert_eq!(local_time_in(1_795_300_384, &west), "2026-11-21 19:03:04 -0330 -0330");
        assert_eq!(utc_time(i64::MAX), i64::MAX.to_string());
        for nowhere in ["", "UTC", "no/such/zone", "CET-1CEST"] {
            assert_eq!(local_time_in(0, &zone(Some(nowhere))), "1970-01-01 00:00:00 +0000 UTC", "{nowhere}");
        }
    }

    #[test]
    fn errors_of_the_system_are_in_small_letters() {
        let error = std::fs::read("/nonexistent/file").unwrap_err();
        assert_eq!(
            file_error("open", Path::new("/nonexistent/file"), &error),
            "open /nonexistent/file: no such file or directory"
        );
        let too_long = std::os::unix::net::UnixStream::connect("/a".repeat(100)).unwrap_err();
        assert_eq!(system_error(&too_long), "invalid argument");
    }

    #[test]
    fn paths_become_short() {
        for (path, short) in [
            ("", "."),
            ("./a", "a"),
            ("a//b/./c/..", "a/b"),
            ("/../a", "/a"),
            ("../a/../..", "../.."),
            ("/", "/"),
            ("/tmp/x/", "/tmp/x"),
        ] {
            assert_eq!(clean(Path::new(path)), Path::new(short), "{path}");
        }
    }

    #[tokio::test]
    async fn statuses_read_as_in_go() {
        let status = Status::not_found("entry not found");
        assert_eq!(rpc_error(&status, "/x"), "rpc error: code = NotFound desc = entry not found");

        let channel =
            crate::dial::channel(crate::dial::Dialer::Unix("/nonexistent/s.sock".into()), None, "localhost");
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let status = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(
            rpc_error(&status, "///nonexistent/s.sock"),
            "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: \
             dial unix ///nonexistent/s.sock: connect: no such file or directory\""
        );
        assert!(rpc_error(&status, "").ends_with("dialing: dial unix: missing address\""));
    }
}
