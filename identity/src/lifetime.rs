//! When credentials are renewed and authorities change over. Plain arithmetic: the caller brings the time and the
//! chance.
//!
//! The rules are those of SPIRE, so that mixed fleets behave alike.

use std::time::{Duration, SystemTime};

/// How far behind the clock of the issuer the validity of an SVID starts, for verifiers whose clocks are late.
pub const BACKDATE: Duration = Duration::from_secs(10);

/// An availability target below this is refused in configuration.
pub const MIN_AVAILABILITY_TARGET: Duration = Duration::from_secs(24 * 3600);

/// The most that chance adds to an availability target.
pub const MAX_TARGET_JITTER: Duration = Duration::from_secs(10 * 60);

/// An availability target counts only if it leaves more than this of the lifetime.
const TARGET_GRACE: Duration = Duration::from_secs(12 * 3600);

const DAY: Duration = Duration::from_secs(24 * 3600);
const PREPARE_CAP: Duration = DAY.saturating_mul(30);
/// No authority is kept back for longer than this before its end, whatever its lifetime.
pub const ACTIVATE_CAP: Duration = DAY.saturating_mul(7);
const PREPARE_DIVISOR: u32 = 2;
/// The part of its life that an authority has left when its successor takes over: one in this many.
pub const ACTIVATE_DIVISOR: u32 = 6;

/// When an SVID or a token is due for renewal: when half its life is left, moved by `jitter` times that half
/// (-0.1 to 0.1, clamped; above zero is earlier), so that a fleet does not renew at once.
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let jitter = if jitter.is_finite() { jitter.clamp(-0.1, 0.1) } else { 0.0 };
    let half = lifetime(not_before, not_after) / 2;
    before(not_after, half.mul_f64(1.0 + jitter), not_before)
}

/// When an X509-SVID is due if the operator wants `target` to be left at any time: when `target` plus `target_jitter`
/// (0 to [`MAX_TARGET_JITTER`], clamped) is left, or by [`renew_at`], whichever comes first. A target that the lifetime
/// cannot meet ([`target_fits`]) is ignored.
pub fn renew_at_with_target(
    not_before: SystemTime,
    not_after: SystemTime,
    jitter: f64,
    target: Duration,
    target_jitter: Duration,
) -> SystemTime {
    let by_half = renew_at(not_before, not_after, jitter);
    if !target_fits(lifetime(not_before, not_after), target) {
        return by_half;
    }
    let remaining = target.saturating_add(target_jitter.min(MAX_TARGET_JITTER));
    before(not_after, remaining, not_before).min(by_half)
}

/// Whether a lifetime is long enough for an availability target: more than 12 hours must lie before it. A target of
/// zero stands for none.
pub fn target_fits(lifetime: Duration, target: Duration) -> bool {
    !target.is_zero() && lifetime.saturating_sub(target) > TARGET_GRACE
}

/// After this instant the successor of an authority is prepared: when half its life is left, but at most 30 days.
pub fn prepare_at(issued_at: SystemTime, not_after: SystemTime) -> SystemTime {
    before(not_after, (lifetime(issued_at, not_after) / PREPARE_DIVISOR).min(PREPARE_CAP), issued_at)
}

/// After this instant the successor of an authority takes over: when a sixth of its life is left, but at most 7 days.
pub fn activate_at(issued_at: SystemTime, not_after: SystemTime) -> SystemTime {
    before(not_after, (lifetime(issued_at, not_after) / ACTIVATE_DIVISOR).min(ACTIVATE_CAP), issued_at)
}

/// The longest SVID lifetime that an authority of this lifetime never cuts short.
pub fn longest_svid_ttl(authority_ttl: Duration) -> Duration {
    (authority_ttl / ACTIVATE_DIVISOR).min(ACTIVATE_CAP)
}

fn lifetime(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or(Duration::ZERO)
}

fn before(instant: SystemTime, by: Duration, otherwise: SystemTime) -> SystemTime {
    instant.checked_sub(by).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn from() -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000
    }

    #[test]
    fn half_of_a_life_is_left_at_renewal_give_or_take_a_tenth() {
        assert_eq!(renew_at(from(), from() + HOUR, 0.0), from() + HOUR / 2);
        assert_eq!(renew_at(from(), from() + HOUR, 0.1), from() + Duration::from_secs(27 * 60));
        assert_eq!(renew_at(from(), from() + HOUR, -0.1), from() + Duration::from_secs(33 * 60));
        assert_eq!(renew_at(from(), from() + HOUR, 9.0), renew_at(from(), from() + HOUR, 0.1));
        assert_eq!(renew_at(from(), from() + HOUR, f64::NAN), from() + HOUR / 2);
        assert_eq!(renew_at(from(), from() - HOUR, 0.0), from() - HOUR, "no life at all is over at once");
    }

    #[test]
    fn an_availability_target_moves_renewal_forward_if_the_life_is_long_enough() {
        let due = |life, target, extra| renew_at_with_target(from(), from() + life, 0.0, target, extra);
        let (zero, minute) = (Duration::ZERO, Duration::from_secs(60));
        assert_eq!(due(DAY * 2, HOUR * 30, zero), from() + HOUR * 18);
        assert_eq!(due(DAY * 2, HOUR * 30, minute), from() + HOUR * 18 - minute);
        assert_eq!(due(DAY * 2, HOUR * 30, HOUR), from() + HOUR * 18 - minute * 10);
        assert_eq!(due(DAY * 10, DAY, zero), from() + DAY * 5, "half a life comes first");
        assert_eq!(due(DAY + HOUR * 12, DAY, zero), from() + HOUR * 18, "too short: by half");
        assert_eq!(due(HOUR, DAY, zero), from() + HOUR / 2);
        assert_eq!(due(DAY * 2, zero, zero), from() + DAY);
        assert!(target_fits(DAY + HOUR * 12 + minute, DAY) && !target_fits(DAY + HOUR * 12, DAY));
    }

    #[test]
    fn authorities_change_over_at_a_half_and_a_sixth_within_caps() {
        let end = |life| from() + life;
        assert_eq!(prepare_at(from(), end(DAY)), from() + HOUR * 12);
        assert_eq!(activate_at(from(), end(DAY)), from() + HOUR * 20);
        assert_eq!(prepare_at(from(), end(DAY * 365)), from() + DAY * 335);
        assert_eq!(activate_at(from(), end(DAY * 365)), from() + DAY * 358);
        assert_eq!(prepare_at(from(), end(DAY * 60)), from() + DAY * 30);
        assert_eq!(activate_at(from(), end(DAY * 42)), from() + DAY * 35);
        assert_eq!(longest_svid_ttl(DAY), HOUR * 4);
        assert_eq!(longest_svid_ttl(DAY * 365), DAY * 7);
    }
}
