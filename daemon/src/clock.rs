//! The only place that reads time.
//!
//! A [`Clock`] is handed to everything that asks what time it is or waits. A wall clock follows the
//! machine; a virtual one follows tokio's paused time plus explicit jumps, so that a test can live through
//! a year of rotations in seconds.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

/// How long a sleeper on the wall clock trusts its timer. The timer counts running time only, so a
/// machine that was suspended, or whose clock was set, is noticed at the next look.
const WALL_CLOCK_LOOK: Duration = Duration::from_secs(30);
/// The longest single sleep on a virtual clock; below what tokio's timer can hold.
const LONGEST_TIMER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Tells the time and waits. Cheap to clone; clones share one time.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Wall,
    Virtual(Arc<VirtualTime>),
}

#[derive(Debug)]
struct VirtualTime {
    base: SystemTime,
    origin: Instant,
    /// Seconds that jumps have added so far.
    jumped: watch::Sender<i64>,
}

/// The time limit given to [`Clock::timeout`] passed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("deadline exceeded")]
pub struct DeadlineExceeded;

impl Clock {
    /// The machine's clock.
    pub fn wall() -> Clock {
        // The origin of `monotonic` is the first wall clock made.
        process_origin();
        Clock { source: Source::Wall }
    }

    /// A clock that shows `base` now and advances with tokio's time, which a test pauses
    /// (`tokio::time::pause`, `start_paused`), and with [`Clock::jump`].
    pub fn paused(base: SystemTime) -> Clock {
        let time = VirtualTime { base, origin: tokio_now(), jumped: watch::Sender::new(0) };
        Clock { source: Source::Virtual(Arc::new(time)) }
    }

    /// The wall-clock time. It can go backwards when somebody sets the clock.
    pub fn now(&self) -> SystemTime {
        match &self.source {
            Source::Wall => system_now(),
            Source::Virtual(time) => time.now(),
        }
    }

    /// Whole seconds since 1970-01-01T00:00:00Z, rounded down; negative before that.
    pub fn unix(&self) -> i64 {
        unix_seconds(self.now())
    }

    /// Running time since a fixed point in this process's life. Never goes backwards; neither steps of the
    /// wall clock nor jumps show in it.
    pub fn monotonic(&self) -> Duration {
        match &self.source {
            Source::Wall => tokio_now().saturating_duration_since(process_origin()),
            Source::Virtual(time) => tokio_now().saturating_duration_since(time.origin),
        }
    }

    /// Waits until the wall clock shows `deadline`; at once when it has passed. Steps of the clock and
    /// time spent suspended are noticed within 30 s, jumps of a virtual clock immediately.
    pub async fn sleep_until(&self, deadline: SystemTime) {
        match &self.source {
            Source::Wall => {
                while let Some(left) = time_left(deadline, self.now()) {
                    tokio::time::sleep(left.min(WALL_CLOCK_LOOK)).await;
                }
            }
            Source::Virtual(time) => {
                let mut jumped = time.jumped.subscribe();
                while let Some(left) = time_left(deadline, self.now()) {
                    tokio::select! {
                        () = tokio::time::sleep(left.min(LONGEST_TIMER)) => {}
                        // The sender lives in `time`, so this only ends by a jump.
                        _ = jumped.changed() => {}
                    }
                }
            }
        }
    }

    /// Waits for `duration` of running time, whatever the wall clock does meanwhile.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Runs `work` for at most `limit` of running time; when that passes first, `work` is dropped.
    pub async fn timeout<F: Future>(&self, limit: Duration, work: F) -> Result<F::Output, DeadlineExceeded> {
        tokio::time::timeout(limit, work).await.map_err(|_| DeadlineExceeded)
    }

    /// Moves a virtual clock by `seconds` (negative: back) and wakes everything in [`Clock::sleep_until`].
    /// A wall clock cannot be moved: the call is refused with a log line.
    pub fn jump(&self, seconds: i64) {
        match &self.source {
            Source::Wall => tracing::error!(seconds, "A jump was asked of the wall clock and ignored"),
            Source::Virtual(time) => {
                time.jumped.send_modify(|jumped| *jumped = jumped.saturating_add(seconds))
            }
        }
    }
}

/// Whole seconds since 1970-01-01T00:00:00Z, rounded down; negative before that.
pub fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            if before.subsec_nanos() == 0 { -seconds } else { -seconds - 1 }
        }
    }
}

/// The time that lies `seconds` after 1970-01-01T00:00:00Z (negative: before). What the platform cannot
/// express becomes the epoch.
pub fn from_unix_seconds(seconds: i64) -> SystemTime {
    shift(UNIX_EPOCH, seconds).unwrap_or(UNIX_EPOCH)
}

impl VirtualTime {
    fn now(&self) -> SystemTime {
        let elapsed = tokio_now().saturating_duration_since(self.origin);
        let running = self.base.checked_add(elapsed).unwrap_or(self.base);
        shift(running, *self.jumped.borrow()).unwrap_or(running)
    }
}

fn time_left(deadline: SystemTime, now: SystemTime) -> Option<Duration> {
    deadline.duration_since(now).ok().filter(|left| !left.is_zero())
}

fn shift(time: SystemTime, seconds: i64) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time.checked_sub(distance) } else { time.checked_add(distance) }
}

fn process_origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(tokio_now)
}

#[allow(clippy::disallowed_methods, reason = "this module is the one that reads time")]
fn system_now() -> SystemTime {
    SystemTime::now()
}

#[allow(clippy::disallowed_methods, reason = "this module is the one that reads time")]
fn tokio_now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(n * 86_400)
    }

    #[tokio::test(start_paused = true)]
    async fn virtual_time_follows_tokio_and_jumps() {
        let clock = Clock::paused(day(20_000));
        assert_eq!(clock.now(), day(20_000));
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(clock.now(), day(20_000) + Duration::from_secs(90));
        clock.jump(3600);
        assert_eq!(clock.now(), day(20_000) + Duration::from_secs(3690));
        clock.jump(-7200);
        assert_eq!(clock.now(), day(20_000) + Duration::from_secs(90) - Duration::from_secs(3600));
        assert_eq!(clock.monotonic(), Duration::from_secs(90), "jumps are steps of the wall clock only");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_sleep_costs_nothing_and_ends_on_time() {
        let clock = Clock::paused(day(20_000));
        clock.sleep_until(day(20_000 + 5 * 365)).await;
        let late = clock.now().duration_since(day(20_000 + 5 * 365)).unwrap();
        assert!(late < Duration::from_millis(10), "woke {late:?} late");
        assert!(clock.monotonic() >= Duration::from_secs(5 * 365 * 86_400));
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_wakes_those_whose_time_has_come_and_no_others() {
        let clock = Clock::paused(day(20_000));
        let near = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(day(20_001)).await }
        });
        let far = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(day(20_010)).await }
        });
        tokio::task::yield_now().await;
        clock.jump(2 * 86_400);
        near.await.unwrap();
        assert_eq!(clock.monotonic(), Duration::ZERO, "no running time was needed");
        assert!(!far.is_finished());
        clock.jump(-86_400);
        far.await.unwrap();
        assert!(clock.now() >= day(20_010));
        assert!(clock.monotonic() >= Duration::from_secs(9 * 86_400 - 1), "the step back was made up for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_in_the_past_returns_at_once() {
        let clock = Clock::paused(day(20_000));
        clock.sleep_until(day(19_999)).await;
        clock.sleep_until(day(20_000)).await;
        assert_eq!(clock.monotonic(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_cuts_off_what_takes_too_long() {
        let clock = Clock::paused(day(20_000));
        let limit = Duration::from_secs(5);
        assert_eq!(clock.timeout(limit, std::future::ready(7)).await, Ok(7));
        assert_eq!(clock.timeout(limit, std::future::pending::<()>()).await, Err(DeadlineExceeded));
        assert!(clock.monotonic() >= limit);
    }

    #[tokio::test(start_paused = true)]
    async fn blocking_threads_see_virtual_time() {
        let clock = Clock::paused(day(20_000));
        tokio::time::advance(Duration::from_secs(1000)).await;
        let seen = tokio::task::spawn_blocking({
            let clock = clock.clone();
            move || clock.now()
        });
        assert_eq!(seen.await.unwrap(), day(20_000) + Duration::from_secs(1000));
    }

    #[tokio::test]
    async fn the_wall_clock_is_the_machines_and_cannot_be_moved() {
        let clock = Clock::wall();
        let before = system_now();
        clock.jump(-1_000_000);
        assert!(clock.now() >= before);
        assert!(clock.monotonic() <= clock.monotonic());
        clock.sleep_until(before).await;
        let soon = clock.now() + Duration::from_millis(5);
        clock.sleep_until(soon).await;
        assert!(clock.now() >= soon);
    }

    #[test]
    fn unix_seconds_round_down_on_both_sides_of_the_epoch() {
        for (time, seconds) in [
            (UNIX_EPOCH, 0),
            (UNIX_EPOCH + Duration::from_millis(1999), 1),
            (UNIX_EPOCH - Duration::from_millis(1), -1),
            (UNIX_EPOCH - Duration::from_secs(1), -1),
            (UNIX_EPOCH - Duration::from_millis(1001), -2),
        ] {
            assert_eq!(unix_seconds(time), seconds);
        }
        for seconds in [0, 1, -1, 1_800_000_000, -5_000_000_000] {
            assert_eq!(unix_seconds(from_unix_seconds(seconds)), seconds);
        }
        from_unix_seconds(i64::MAX);
        from_unix_seconds(i64::MIN);
    }
}
