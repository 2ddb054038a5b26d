//! How often and how much: plain rules, no clock and no network.

use std::time::Duration;

use finial_daemon::backoff::Backoff;

/// `experimental.sync_interval` when it is not set.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// No wait between syncs is longer than this.
const LONGEST_SYNC_WAIT: Duration = Duration::from_secs(8 * 60);
/// Nor than this many intervals.
const LONGEST_SYNC_INTERVALS: u32 = 48;

/// While there are no entries yet, nobody is served: no wait is longer than this.
const LONGEST_WAIT_WITHOUT_ENTRIES: Duration = Duration::from_secs(20);

/// The waits after failed signing calls.
const FIRST_SIGNING_WAIT: Duration = Duration::from_millis(500);
const LONGEST_SIGNING_WAIT: Duration = Duration::from_secs(4 * 60);

/// The most CSRs in one call: the burst of the server's rate limit.
const MAX_BATCH: usize = 500;

/// Waits between failed syncs.
pub fn sync_backoff(interval: Duration) -> Backoff {
    Backoff::new(interval, LONGEST_SYNC_WAIT.min(interval * LONGEST_SYNC_INTERVALS))
}

/// The wait after a sync that went well: the interval, give or take a tenth so that agents do not come in step. An agent
/// that has no SVIDs looks again soon, however long the interval.
pub fn after_sync(backoff: &mut Backoff, has_svids: bool) -> Duration {
    backoff.reset();
    let wait = backoff.next();
    if has_svids { wait } else { wait.min(SYNC_INTERVAL) }
}

/// The wait after a sync that failed.
pub fn after_failed_sync(backoff: &mut Backoff, has_entries: bool) -> Duration {
    let wait = backoff.next();
    if has_entries { wait } else { wait.min(LONGEST_WAIT_WITHOUT_ENTRIES) }
}

/// Waits between failed signing calls.
pub fn signing_backoff() -> Backoff {
    Backoff::new(FIRST_SIGNING_WAIT, LONGEST_SIGNING_WAIT)
}

/// How many CSRs go into a call: half as many after a failure, twice as many after a success.
#[derive(Debug, Clone, Copy)]
pub struct Batch(usize);

impl Default for Batch {
    fn default() -> Batch {
        Batch(MAX_BATCH)
    }
}

impl Batch {
    pub fn size(self) -> usize {
        self.0
    }

    pub fn failed(&mut self) {
        self.0 = (self.0 / 2).max(1);
    }

    pub fn succeeded(&mut self) {
        self.0 = (self.0 * 2).min(MAX_BATCH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_shrinks_to_one_and_grows_back() {
        let mut batch = Batch::default();
        for _ in 0..20 {
            batch.failed();
        }
        assert_eq!(batch.size(), 1);
        for _ in 0..20 {
            batch.succeeded();
        }
        assert_eq!(batch.size(), 500);
    }

    #[test]
    fn short_intervals_bound_their_backoff() {
        let mut backoff = sync_backoff(Duration::from_secs(1));
        let longest = (0..100).map(|_| backoff.next()).max().unwrap();
        assert!(longest > Duration::from_secs(40) && longest < Duration::from_secs(53), "{longest:?}");
    }

    #[test]
    fn an_agent_with_nothing_to_serve_does_not_wait_long() {
        let minute = Duration::from_secs(60);
        let mut backoff = sync_backoff(minute);
        assert!(after_sync(&mut backoff, true) >= minute.mul_f64(0.9));
        assert_eq!(after_sync(&mut backoff, false), SYNC_INTERVAL);
        let waits: Vec<_> = (0..20).map(|_| after_failed_sync(&mut backoff, false)).collect();
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT_WITHOUT_ENTRIES), "{waits:?}");
        assert!(after_failed_sync(&mut backoff, true) > minute);
    }

    #[test]
    fn a_sync_that_went_well_ends_the_backoff() {
        let mut backoff = sync_backoff(SYNC_INTERVAL);
        let longest = (0..10).map(|_| after_failed_sync(&mut backoff, true)).max().unwrap();
        assert!(longest > SYNC_INTERVAL * 10, "{longest:?}");
        assert!(after_sync(&mut backoff, true) < SYNC_INTERVAL.mul_f64(1.11));
    }
}
