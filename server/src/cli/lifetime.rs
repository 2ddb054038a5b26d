//! The `-ttl` of what is minted by hand.

use std::time::Duration;

use finial_daemon::argv::text;
use finial_daemon::clock::{Clock, from_unix_seconds};
use finial_daemon::settings::GoDuration;

use super::output::{Failure, fail};

/// Rounded up; less than nothing asks for the default.
pub fn seconds(nanos: i64) -> Result<i32, Failure> {
    const SECOND: i64 = 1_000_000_000;
    let seconds = nanos.saturating_add(SECOND - 1) / SECOND;
    i32::try_from(seconds).map_err(|_| {
        // SPIRE prints the number of seconds as if it were nanoseconds.
        let shown = GoDuration(Duration::from_nanos(seconds.unsigned_abs()));
        let sign = if seconds < 0 { "-" } else { "" };
        fail(format!("invalid value for TTL: overflow converting time.Duration({sign}{shown}) to int32"))
    })
}

/// The line about a credential that ends (`expires_at`: unix seconds) before it was to, if it does.
pub fn capped(what: &str, asked_nanos: i64, expires_at: i64, clock: &Clock) -> String {
    match u64::try_from(asked_nanos).map(Duration::from_nanos) {
        Ok(asked) if clock.now() + asked > from_unix_seconds(expires_at) => {
            let expires = text::rfc3339(expires_at);
            format!("{what} lifetime was capped shorter than specified ttl; expires \"{expires}\"\n")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lifetime_that_was_cut_is_told_of() {
        let clock = Clock::paused(from_unix_seconds(1_795_300_490));
        let capped =
            |asked_seconds: i64| capped("X509-SVID", asked_seconds * 1_000_000_000, 1_795_300_497, &clock);
        assert_eq!(capped(7), "");
        assert_eq!(capped(-8), "");
        assert_eq!(
            capped(8),
            "X509-SVID lifetime was capped shorter than specified ttl; expires \"2026-11-21T22:34:57Z\"\n"
        );
    }

    #[test]
    fn lifetimes_are_rounded_up() {
        for (nanos, expected) in
            [(0, 0), (1, 1), (1_000_000_000, 1), (1_000_000_001, 2), (-5_000_000_000, -4)]
        {
            assert_eq!(seconds(nanos), Ok(expected), "{nanos}");
        }
        assert_eq!(
            seconds(3_600_000_000_000_000_000).unwrap_err(),
            fail("invalid value for TTL: overflow converting time.Duration(3.6s) to int32")
        );
    }
}
