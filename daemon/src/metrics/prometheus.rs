//! Numbers kept for Prometheus, which comes to read them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::summary::{QUANTILES, Summary};
use super::{Point, Value, process};

/// What the page holds. Nothing is ever dropped from it: a counter that vanished would look like a restart.
#[derive(Default)]
pub(super) struct Registry {
    families: Mutex<BTreeMap<String, Family>>,
}

struct Family {
    kind: Kind,
    /// By their labels in order of names.
    series: HashMap<Vec<(String, String)>, Series>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Summary,
}

enum Series {
    Number(f64),
    Summary(Box<Summary>),
}

impl Registry {
    /// `now` is running time.
    pub(super) fn take(&self, point: &Point<'_>, now: Duration) {
        let name = name(point.key);
        let labels = in_order(point.labels);
        let kind = match point.value {
            Value::Gauge(_) => Kind::Gauge,
            Value::Count(_) => Kind::Counter,
            Value::Sample(_) => Kind::Summary,
        };
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(name).or_insert_with(|| Family { kind, series: HashMap::new() });
        if family.kind != kind {
            // One name has one type on a page; tests see to it that no name is used for two.
            return;
        }
        let series = family.series.entry(labels).or_insert_with(|| match kind {
            Kind::Summary => Series::Summary(Box::new(Summary::new(now))),
            Kind::Gauge | Kind::Counter => Series::Number(0.0),
        });
        match (series, point.value) {
            (Series::Number(held), Value::Gauge(value)) => *held = value,
            (Series::Number(held), Value::Count(by)) => *held += by as f64,
            (Series::Summary(summary), Value::Sample(value)) => summary.observe(value, now),
            _ => {}
        }
    }

    /// Forgets all series of a family but those with these labels.
    pub(super) fn keep_only(&self, key: &[&str], kept: &[Vec<(String, String)>]) {
        let kept: Vec<_> = kept.iter().map(|labels| in_order(labels)).collect();
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = families.get_mut(&name(key)) {
            family.series.retain(|labels, _| kept.contains(labels));
        }
    }

    /// The page in Prometheus' text format 0.0.4, with figures of the process.
    pub(super) fn page(&self, now: Duration) -> String {
        let mut page = String::new();
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, kind, value) in process::figures() {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", number(value));
        }
        for (name, family) in families.iter_mut() {
            let _ = writeln!(page, "# HELP {name} {name}\n# TYPE {name} {}", family.kind.name());
            let mut series: Vec<_> = family.series.iter_mut().collect();
            series.sort_by(|one, other| one.0.cmp(other.0));
            for (labels, series) in series {
                match series {
                    Series::Number(value) => line(&mut page, name, "", labels, None, *value),
                    Series::Summary(summary) => {
                        let answers = summary.quantiles(now);
                        for ((quantile, _), value) in QUANTILES.iter().zip(answers) {
                            line(&mut page, name, "", labels, Some(*quantile), value);
                        }
                        line(&mut page, name, "_sum", labels, None, summary.sum);
                        line(&mut page, name, "_count", labels, None, summary.count as f64);
                    }
                }
            }
        }
        page
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Summary => "summary",
        }
    }
}

fn name(key: &[&str]) -> String {
    key.join("_").replace([' ', '.', '=', '-', '/'], "_")
}

/// By name; of two labels of one name the later counts, as in a map.
fn in_order(labels: &[(String, String)]) -> Vec<(String, String)> {
    let by_name: BTreeMap<String, String> = labels.iter().cloned().collect();
    by_name.into_iter().collect()
}

fn line(
    page: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(String, String)],
    quantile: Option<f64>,
    value: f64,
) {
    page.push_str(name);
    page.push_str(suffix);
    let quantile = quantile.map(|quantile| ("quantile".to_owned(), quantile.to_string()));
    let mut opened = false;
    for (name, value) in labels.iter().chain(&quantile) {
        page.push(if opened { ',' } else { '{' });
        opened = true;
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(page, "{name}=\"{value}\"");
    }
    if opened {
        page.push('}');
    }
    let _ = writeln!(page, " {}", number(value));
}

/// A number as Go's `%g` writes it: what Prometheus' own client libraries send.
fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if value != 0.0 && !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => value.to_string(),
    }
}
