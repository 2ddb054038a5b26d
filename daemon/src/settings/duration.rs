//! Go's durations: what configuration files and command lines are written with.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration that reads (`1h30m`, `1.5h`, `100ms`, `5µs`) and prints (`1h30m0s`) as Go's `time.Duration`.
/// Never negative; at most about 292 years, as in Go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(pub Duration);

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("{0:?} is not a duration; write a number and a unit, such as \"90s\", \"1h30m\" or \"100ms\"")]
    Malformed(String),
    #[error("the duration {0:?} needs a unit, such as \"{0}s\" for seconds")]
    MissingUnit(String),
    #[error("unknown unit {unit:?} in the duration {text:?}; the units are ns, us, ms, s, m and h")]
    UnknownUnit { text: String, unit: String },
    #[error("the duration {0:?} is negative")]
    Negative(String),
    #[error("the duration {0:?} is longer than 292 years")]
    TooLong(String),
}

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<GoDuration, DurationError> {
        let malformed = || DurationError::Malformed(text.to_string());
        let too_long = || DurationError::TooLong(text.to_string());
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        if unsigned == "0" {
            return Ok(GoDuration::default());
        }
        if unsigned.is_empty() {
            return Err(malformed());
        }
        let mut total = 0_u64;
        let mut rest = unsigned;
        while !rest.is_empty() {
            let (whole, after) = split_digits(rest);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => split_digits(after),
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(malformed());
            }
            let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            if unit.is_empty() {
                return Err(DurationError::MissingUnit(text.to_string()));
            }
            let Some((_, nanos)) = UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(DurationError::UnknownUnit { text: text.to_string(), unit: unit.to_string() });
            };
            let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| too_long())? };
            let part = whole
                .checked_mul(*nanos)
                .and_then(|part| part.checked_add(fraction_of(fraction, *nanos)))
                .ok_or_else(too_long)?;
            total =
                total.checked_add(part).filter(|total| i64::try_from(*total).is_ok()).ok_or_else(too_long)?;
            rest = after;
        }
        if text.starts_with('-') && total > 0 {
            return Err(DurationError::Negative(text.to_string()));
        }
        Ok(GoDuration(Duration::from_nanos(total)))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let text = match nanos {
            0 => "0s".to_string(),
            1..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => format!("{}\u{b5}s", decimal(nanos, 3)),
            1_000_000..1_000_000_000 => format!("{}ms", decimal(nanos, 6)),
            _ => {
                let minutes = nanos / 60_000_000_000;
                let seconds = decimal(nanos % 60_000_000_000, 9);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => format!("{seconds}s"),
                    (0, minutes) => format!("{minutes}m{seconds}s"),
                    (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
                }
            }
        };
        out.pad(&text)
    }
}

impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> GoDuration {
        GoDuration(duration)
    }
}

impl From<GoDuration> for Duration {
    fn from(duration: GoDuration) -> Duration {
        duration.0
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The digits after a point, times the unit; digits beyond what the unit can show are dropped.
fn fraction_of(digits: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0_u128, 1_u128);
    for digit in digits.chars().take(18).filter_map(|c| c.to_digit(10)) {
        value = value * 10 + u128::from(digit);
        scale *= 10;
    }
    u64::try_from(value * u128::from(unit) / scale).unwrap_or(0)
}

/// `value` divided by ten to the `places`, without trailing zeros.
fn decimal(value: u128, places: u32) -> String {
    let scale = 10_u128.pow(places);
    let width = usize::try_from(places).unwrap_or(0);
    let fraction = format!("{:0width$}", value % scale);
    let fraction = fraction.trim_end_matches('0');
    let whole = value / scale;
    if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_like_go() {
        for (text, nanos, printed) in [
            ("0", 0, "0s"),
            ("5s", 5_000_000_000, "5s"),
            ("1478s", 1_478_000_000_000, "24m38s"),
            ("+5s", 5_000_000_000, "5s"),
            ("-0", 0, "0s"),
            ("-0s", 0, "0s"),
            (".5s", 500_000_000, "500ms"),
            ("5.s", 5_000_000_000, "5s"),
            ("1.004s", 1_004_000_000, "1.004s"),
            ("100.00100s", 100_001_000_000, "1m40.001s"),
            ("10ns", 10, "10ns"),
            ("11us", 11_000, "11\u{b5}s"),
            ("12\u{b5}s", 12_000, "12\u{b5}s"),
            ("12\u{3bc}s10ns", 12_010, "12.01\u{b5}s"),
            ("13ms", 13_000_000, "13ms"),
            ("15m", 900_000_000_000, "15m0s"),
            ("16h", 57_600_000_000_000, "16h0m0s"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("10.5s4m", 250_500_000_000, "4m10.5s"),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006, "1h2m3.004005006s"),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1, "19m59.999999999s"),
            ("0.100000000000000000000h", 360_000_000_000, "6m0s"),
            ("9223372036854775807ns", 9_223_372_036_854_775_807, "2562047h47m16.854775807s"),
        ] {
            let duration: GoDuration = text.parse().expect(text);
            assert_eq!(duration.0, Duration::from_nanos(nanos), "{text}");
            assert_eq!(duration.to_string(), printed, "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in
            ["", "3", "-", "s", ".", "-.", ".s", "+.s", "1d", "1s ", " 1s", "1 s", "\u{85}\u{85}", "1h-3s"]
        {
            text.parse::<GoDuration>().expect_err(text);
        }
        for text in ["9223372036854775808ns", "9223372036854775.808us", "3000000h", "99999999999999999999s"] {
            assert_eq!(text.parse::<GoDuration>(), Err(DurationError::TooLong(text.to_string())));
        }
        assert_eq!("-1s".parse::<GoDuration>(), Err(DurationError::Negative("-1s".to_string())));
        assert_eq!(
            "30".parse::<GoDuration>().unwrap_err().to_string(),
            "the duration \"30\" needs a unit, such as \"30s\" for seconds"
        );
    }
}
