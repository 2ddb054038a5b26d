//! A reader's place in an event table.
//!
//! IDs of events come from a counter, and a transaction takes its number before it commits. So a number can be missing
//! for two reasons: its transaction is late, or it was rolled back. A missing number is looked for again at each poll
//! until the longest time that a transaction may take is over.

use std::collections::BTreeMap;
use std::time::Duration;

/// More missing numbers than this are no gap left by transactions: the table was emptied or replaced.
pub const GAP_LIMIT: i64 = 10_000;

/// Which events of one table are known.
#[derive(Clone, Debug, Default)]
pub struct Place {
    last: i64,
    /// Missing IDs below `last`, with the moment (running time) at which the search ends.
    missing: BTreeMap<i64, Duration>,
}

/// The numbers jumped by more than [`GAP_LIMIT`]; everything has to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostPlace;

impl Place {
    /// Everything up to `last` is known, except what is missing among `recent` (IDs up to `last`, ascending): that may
    /// belong to transactions that were under way when the reader started.
    pub fn after(last: i64, recent: &[i64], now: Duration, event_timeout: Duration) -> Place {
        let mut place =
            Place { last: recent.first().map_or(last, |first| first - 1), missing: BTreeMap::new() };
        for id in recent {
            place.skip_to(*id, now + event_timeout);
        }
        place.last = place.last.max(last);
        place
    }

    /// Events above this ID are new.
    pub fn last(&self) -> i64 {
        self.last
    }

    /// How many numbers are missing.
    pub fn missing_count(&self) -> usize {
        self.missing.len()
    }

    /// Numbers to look for again, ascending.
    pub fn missing(&self) -> Vec<i64> {
        self.missing.keys().copied().collect()
    }

    /// Takes note of events that were read: `ids` ascending, new ones and found ones alike.
    pub fn saw(&mut self, ids: &[i64], now: Duration, event_timeout: Duration) -> Result<(), LostPlace> {
        for id in ids {
            if *id <= self.last {
                self.missing.remove(id);
            } else if id - self.last > GAP_LIMIT {
                return Err(LostPlace);
            } else {
                self.skip_to(*id, now + event_timeout);
            }
        }
        Ok(())
    }

    /// Gives up numbers whose time is over. Call after the look at them, so that each is looked for at least once.
    pub fn give_up(&mut self, now: Duration) {
        self.missing.retain(|_, end| *end > now);
    }

    fn skip_to(&mut self, id: i64, end: Duration) {
        for skipped in self.last + 1..id {
            self.missing.insert(skipped, end);
        }
        self.last = self.last.max(id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(900);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn late_events_are_found_and_lost_ones_given_up() {
        let mut place = Place::after(10, &[], at(0), TIMEOUT);
        assert_eq!((place.last(), place.missing()), (10, vec![]));
        place.saw(&[11, 14], at(5), TIMEOUT).unwrap();
        assert_eq!((place.last(), place.missing()), (14, vec![12, 13]));
        place.saw(&[13, 15], at(10), TIMEOUT).unwrap();
        assert_eq!((place.last(), place.missing()), (15, vec![12]));
        place.give_up(at(904));
        assert_eq!(place.missing(), [12]);
        place.give_up(at(905));
        assert!(place.missing().is_empty());
    }

    #[test]
    fn transactions_under_way_at_the_start_are_waited_for() {
        let place = Place::after(20, &[15, 16, 19], at(0), TIMEOUT);
        assert_eq!((place.last(), place.missing()), (20, vec![17, 18]));
    }

    #[test]
    fn a_leap_is_no_gap() {
        let mut place = Place::after(1, &[], at(0), TIMEOUT);
        assert_eq!(place.saw(&[GAP_LIMIT + 2], at(0), TIMEOUT), Err(LostPlace));
        assert_eq!(place.saw(&[GAP_LIMIT + 1], at(0), TIMEOUT), Ok(()));
    }

    proptest! {
        /// Events become visible in any order, and polls come at any time: each event is seen exactly once.
        #[test]
        fn every_event_is_seen_once(order in Just((1..40_i64).collect::<Vec<_>>()).prop_shuffle(), chunk in 1..7_usize) {
            let mut place = Place::default();
            let mut visible = std::collections::BTreeSet::new();
            let mut seen = Vec::new();
            for commit in order.chunks(chunk) {
                visible.extend(commit);
                let missing = place.missing();
                let found: Vec<i64> = missing.into_iter().filter(|id| visible.contains(id)).collect();
                let new: Vec<i64> = visible.range(place.last() + 1..).copied().collect();
                place.saw(&found, at(1), TIMEOUT).unwrap();
                place.saw(&new, at(1), TIMEOUT).unwrap();
                place.give_up(at(1));
                seen.extend(found);
                seen.extend(new);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (1..40).collect::<Vec<_>>());
            prop_assert!(place.missing().is_empty());
        }
    }
}
