//! Quantiles of the last ten seconds, in little memory.
//!
//! As Prometheus' own Go client computes them: five sketches overlap in time, each begun two seconds after the one before;
//! the oldest answers, and then begins anew. A sketch keeps targeted quantiles (Cormode, Korn, Muthukrishnan and Srivastava,
//! "Effective Computation of Biased Quantiles over Data Streams", ICDE 2005).

use std::time::Duration;

/// The quantiles that SPIRE shows, with the error in rank that each may have.
pub(super) const QUANTILES: [(f64, f64); 3] = [(0.5, 0.05), (0.9, 0.01), (0.99, 0.001)];

const SKETCHES: usize = 5;
const TURN: Duration = Duration::from_secs(2);
/// How many values wait before they are merged.
const BATCH: usize = 500;

/// A distribution of values over time.
pub(super) struct Summary {
    sketches: [Sketch; SKETCHES],
    oldest: usize,
    /// When the oldest begins anew.
    turns: Duration,
    /// Of all values ever.
    pub(super) count: u64,
    pub(super) sum: f64,
}

#[derive(Default)]
struct Sketch {
    waiting: Vec<f64>,
    held: Vec<Held>,
    /// Values in `held`.
    count: f64,
}

/// A value that stands for `width` values; its rank is known to within `slack`.
#[derive(Clone, Copy)]
struct Held {
    value: f64,
    width: f64,
    slack: f64,
}

impl Summary {
    /// `now` is running time, as in the other calls.
    pub(super) fn new(now: Duration) -> Summary {
        Summary { sketches: Default::default(), oldest: 0, turns: now + TURN, count: 0, sum: 0.0 }
    }

    pub(super) fn observe(&mut self, value: f64, now: Duration) {
        self.turn(now);
        self.count += 1;
        self.sum += value;
        for sketch in &mut self.sketches {
            sketch.insert(value);
        }
    }

    /// The quantiles in the order of [`QUANTILES`]; NaN when nothing was observed lately.
    pub(super) fn quantiles(&mut self, now: Duration) -> [f64; QUANTILES.len()] {
        self.turn(now);
        let sketch = &mut self.sketches[self.oldest];
        QUANTILES.map(|(quantile, _)| sketch.quantile(quantile))
    }

    fn turn(&mut self, now: Duration) {
        let mut turned = 0;
        while now >= self.turns && turned < SKETCHES {
            self.sketches[self.oldest] = Sketch::default();
            self.oldest = (self.oldest + 1) % SKETCHES;
            self.turns += TURN;
            turned += 1;
        }
        if now >= self.turns {
            self.turns = now + TURN;
        }
    }
}

impl Sketch {
    fn insert(&mut self, value: f64) {
        self.waiting.push(value);
        if self.waiting.len() >= BATCH {
            self.merge();
        }
    }

    fn quantile(&mut self, quantile: f64) -> f64 {
        if self.held.is_empty() {
            return self.exact_quantile(quantile);
        }
        self.merge();
        let rank = (quantile * self.count).ceil();
        let rank = rank + (self.slack_at(rank) / 2.0).ceil();
        let mut before = 0.0;
        let mut answer = f64::NAN;
        for held in &self.held {
            if !answer.is_nan() && before + held.width + held.slack > rank {
                return answer;
            }
            before += held.width;
            answer = held.value;
        }
        answer
    }

    /// Of values that are all still there.
    fn exact_quantile(&mut self, quantile: f64) -> f64 {
        self.waiting.sort_by(f64::total_cmp);
        let rank = (self.waiting.len() as f64 * quantile).ceil() as usize;
        self.waiting.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn merge(&mut self) {
        self.waiting.sort_by(f64::total_cmp);
        let old = std::mem::take(&mut self.held);
        let mut old = old.into_iter().peekable();
        let mut rank = 0.0;
        for value in std::mem::take(&mut self.waiting) {
            while let Some(held) = old.next_if(|held| held.value <= value) {
                rank += held.width;
                self.held.push(held);
            }
            // The largest of all is known exactly.
            let slack = if old.peek().is_some() { (self.slack_at(rank).floor() - 1.0).max(0.0) } else { 0.0 };
            self.held.push(Held { value, width: 1.0, slack });
            self.count += 1.0;
            rank += 1.0;
        }
        self.held.extend(old);
        self.compress();
    }

    fn compress(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        let Some(mut last) = held.pop() else { return };
        let mut rank = self.count - 1.0 - last.width;
        let mut kept = Vec::with_capacity(held.len() + 1);
        while let Some(before) = held.pop() {
            if before.width + last.width + last.slack <= self.slack_at(rank) {
                last.width += before.width;
            } else {
                kept.push(std::mem::replace(&mut last, before));
            }
            rank -= before.width;
        }
        kept.push(last);
        kept.reverse();
        self.held = kept;
    }

    /// How wrong a rank near `rank` may be, given what is asked of the sketch.
    fn slack_at(&self, rank: f64) -> f64 {
        let allowed = QUANTILES.iter().map(|(quantile, error)| {
            if quantile * self.count <= rank {
                2.0 * error * rank / quantile
            } else {
                2.0 * error * (self.count - rank) / (1.0 - quantile)
            }
        });
        allowed.fold(f64::INFINITY, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::ZERO;

    #[test]
    fn few_values_are_answered_exactly() {
        let mut summary = Summary::new(START);
        assert!(summary.quantiles(START).iter().all(|answer| answer.is_nan()));
        for value in 1..=100 {
            summary.observe(f64::from(value), START);
        }
        assert_eq!(summary.quantiles(START), [50.0, 90.0, 99.0]);
        assert_eq!((summary.count, summary.sum), (100, 5050.0));
    }

    #[test]
    fn many_values_are_answered_within_their_errors_in_little_memory() {
        let mut summary = Summary::new(START);
        let count = 200_000_u64;
        // Each value once, in an order that is none.
        for step in 0..count {
            summary.observe(((step * 7919) % count) as f64, START);
        }
        for (answer, (quantile, error)) in summary.quantiles(START).into_iter().zip(QUANTILES) {
            let rank = answer / count as f64;
            assert!((rank - quantile).abs() <= error, "{quantile}: rank {rank}");
        }
        assert!(summary.sketches.iter().all(|sketch| sketch.held.len() < 2000));
    }

    #[test]
    fn what_is_older_than_ten_seconds_is_forgotten_but_counted() {
        let mut summary = Summary::new(START);
        summary.observe(1000.0, START);
        for second in 1..=10 {
            summary.observe(1.0, Duration::from_secs(second));
            if second == 7 {
                assert_eq!(summary.quantiles(Duration::from_secs(second))[2], 1000.0);
            }
        }
        assert_eq!(summary.quantiles(Duration::from_secs(10))[2], 1.0);
        assert!(summary.quantiles(Duration::from_secs(3600))[0].is_nan());
        assert_eq!((summary.count, summary.sum), (11, 1010.0));
        summary.observe(5.0, Duration::from_secs(7200));
        assert_eq!(summary.quantiles(Duration::from_secs(7201))[0], 5.0);
    }
}
