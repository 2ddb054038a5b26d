//! Numbers of the last hour kept in memory, second by second, for SIGUSR1.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::macros::format_description;

use super::{Point, Value};
use crate::clock::unix_seconds;

/// Seconds kept.
const KEPT: usize = 3600;

/// What happened in each of the last seconds in which anything did.
#[derive(Default)]
pub(super) struct Recent {
    seconds: Mutex<VecDeque<Second>>,
}

#[derive(Default)]
struct Second {
    /// Since 1970.
    at: i64,
    gauges: BTreeMap<String, f64>,
    counters: BTreeMap<String, Gathered>,
    samples: BTreeMap<String, Gathered>,
}

#[derive(Clone, Copy, Default)]
struct Gathered {
    count: u64,
    sum: f64,
    squares: f64,
    least: f64,
    most: f64,
}

impl Recent {
    pub(super) fn take(&self, point: &Point<'_>, now: SystemTime) {
        let now = unix_seconds(now);
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        if seconds.back().is_none_or(|last| last.at != now) {
            seconds.push_back(Second { at: now, ..Second::default() });
            if seconds.len() > KEPT {
                seconds.pop_front();
            }
        }
        let Some(second) = seconds.back_mut() else { return };
        let name = name(point);
        match point.value {
            Value::Gauge(value) => {
                second.gauges.insert(name, value);
            }
            Value::Count(by) => second.counters.entry(name).or_default().add(by as f64),
            Value::Sample(value) => second.samples.entry(name).or_default().add(value),
        }
    }

    /// A line for each number, oldest first; of the second under way nothing yet.
    pub(super) fn lines(&self, now: SystemTime) -> Vec<String> {
        let now = unix_seconds(now);
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for second in seconds.iter().filter(|second| second.at != now) {
            let at = time_text(second.at);
            for (name, value) in &second.gauges {
                lines.push(format!("[{at}][G] '{name}': {value:.3}"));
            }
            for (name, gathered) in &second.counters {
                lines.push(format!("[{at}][C] '{name}': {}", gathered.text(&at)));
            }
            for (name, gathered) in &second.samples {
                lines.push(format!("[{at}][S] '{name}': {}", gathered.text(&at)));
            }
        }
        lines
    }
}

impl Gathered {
    fn add(&mut self, value: f64) {
        self.least = if self.count == 0 { value } else { self.least.min(value) };
        self.most = if self.count == 0 { value } else { self.most.max(value) };
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    fn text(&self, at: &str) -> String {
        let count = self.count as f64;
        let variance = (count * self.squares - self.sum * self.sum) / (count * (count - 1.0));
        let deviation = if self.count < 2 { 0.0 } else { variance.max(0.0).sqrt() };
        if deviation == 0.0 {
            return format!("Count: {} Sum: {:.3} LastUpdated: {at}", self.count, self.sum);
        }
        format!(
            "Count: {} Min: {:.3} Mean: {:.3} Max: {:.3} Stddev: {deviation:.3} Sum: {:.3} LastUpdated: {at}",
            self.count,
            self.least,
            self.sum / count,
            self.most,
            self.sum
        )
    }
}

fn name(point: &Point<'_>) -> String {
    let mut name = point.key.join(".").replace(' ', "_");
    for (_, value) in point.labels {
        name.push('.');
        name.push_str(&value.replace([' ', ':'], "_"));
    }
    name
}

fn time_text(at: i64) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");
    let at = OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(form).unwrap_or_default()
}
