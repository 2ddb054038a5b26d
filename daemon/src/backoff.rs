//! Growing waits between attempts.

use std::time::Duration;

use rand::Rng as _;

const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.1;

/// Waits that grow by half each time, up to a limit, each scattered by up to a tenth either way so that
/// many agents do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    /// The first wait is `initial`, no wait is longer than `max` (both before scattering).
    pub fn new(initial: Duration, max: Duration) -> Backoff {
        let initial = initial.min(max);
        Backoff { initial, max, current: initial }
    }

    /// The wait before the next attempt.
    #[allow(clippy::should_implement_trait, reason = "a wait is asked for, nothing is iterated over")]
    pub fn next(&mut self) -> Duration {
        let wait = scatter(self.current, rand::rng().random_range(-JITTER..=JITTER));
        self.current = grown(self.current).min(self.max);
        wait
    }

    /// After a success: the next wait is the first one again.
    pub fn reset(&mut self) {
        self.current = self.initial;
    }
}

fn scatter(wait: Duration, by: f64) -> Duration {
    Duration::try_from_secs_f64(wait.as_secs_f64() * (1.0 + by)).unwrap_or(wait)
}

fn grown(wait: Duration) -> Duration {
    Duration::try_from_secs_f64(wait.as_secs_f64() * FACTOR).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(wait: Duration, expected: f64) {
        let ratio = wait.as_secs_f64() / expected;
        assert!((0.8999..=1.1001).contains(&ratio), "{wait:?} is not within a tenth of {expected} s");
    }

    #[test]
    fn grows_by_half_to_the_limit_and_starts_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(10));
        for expected in [2.0, 3.0, 4.5, 6.75, 10.0, 10.0] {
            assert_near(backoff.next(), expected);
        }
        backoff.reset();
        assert_near(backoff.next(), 2.0);
        assert_near(backoff.next(), 3.0);
    }

    #[test]
    fn scatters() {
        let mut waits: Vec<Duration> =
            (0..32).map(|_| Backoff::new(Duration::from_secs(5), Duration::from_secs(5)).next()).collect();
        waits.iter().for_each(|wait| assert_near(*wait, 5.0));
        waits.dedup();
        assert!(waits.len() > 1, "every wait was the same");
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        backoff.next();
        backoff.next();
        let mut backoff = Backoff::new(Duration::ZERO, Duration::from_secs(1));
        assert_eq!(backoff.next(), Duration::ZERO);
        let mut backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(1));
        assert_near(backoff.next(), 1.0);
    }
}
