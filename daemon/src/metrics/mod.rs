//! What a program counts and measures, for the monitoring systems its operators have.
//!
//! Names, labels and types are go-metrics', which SPIRE's dashboards are written for: a key is a list of words behind the
//! program's prefix, joined by `_` for Prometheus and by `.` elsewhere; a timing is a sample in milliseconds whose key ends
//! in `elapsed_time`, beside a counter of the same name.
//!
//! Nothing here waits: who counts is never held up by who listens, and what a sink cannot take is dropped.

mod filter;
mod inmem;
mod process;
mod prometheus;
pub mod rpc;
mod serve;
mod settings;
mod statsd;
mod summary;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use serve::SpiffeTls;
pub use settings::{Addressed, MetricsSettings, PrometheusSettings, PrometheusTls};

use crate::clock::Clock;
use filter::Filter;
use inmem::Recent;
use prometheus::Registry;
use statsd::{Push, Pusher};

/// How often `uptime_in_ms` is told.
const UPTIME_INTERVAL: Duration = Duration::from_secs(10);

/// Where the program says what it counts. Cheap to clone; without a listener every call is a comparison.
#[derive(Clone)]
pub struct Metrics {
    inner: Option<Arc<Inner>>,
    /// Time is told by whoever counts, also when nobody listens.
    clock: Clock,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Metrics").field("is_heard", &self.is_heard()).finish()
    }
}

/// Who is counting.
#[derive(Clone, Debug)]
pub struct Program {
    /// What names begin with where `MetricPrefix` is not set: `spire_server`, `spire_agent`.
    pub prefix: &'static str,
    /// The trust domain's name.
    pub trust_domain: String,
}

/// What hands the numbers on. Nothing goes anywhere before [`Sinks::open`].
pub struct Sinks {
    pages: Option<(PrometheusSettings, Arc<Registry>)>,
    pushers: Vec<Pusher>,
    /// Where a dump of recent numbers is asked for, when `InMem` is set.
    pub recent: Option<Dump>,
    metrics: Metrics,
}

/// The numbers of the last hour, for the log.
#[derive(Clone)]
pub struct Dump {
    recent: Arc<Recent>,
    clock: Clock,
}

/// Why the sinks cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot push metrics to {address:?}: {source}; check the address in the telemetry section")]
    Address { address: String, source: io::Error },
    #[error("failed to create TLS config for Prometheus: {0}")]
    Tls(#[from] serve::TlsError),
}

impl Metrics {
    /// Counts for nobody.
    pub fn none(clock: Clock) -> Metrics {
        Metrics { inner: None, clock }
    }

    /// Counts for the sinks of the configuration.
    pub fn new(settings: &MetricsSettings, program: &Program, clock: Clock) -> (Metrics, Sinks) {
        let mut sinks = Vec::new();
        let mut pushers = Vec::new();
        let mut push = |(push, pusher): (Push, Pusher)| {
            pushers.push(pusher);
            push
        };
        sinks.extend(settings.dog_statsd.iter().map(|to| Sink::DogStatsd(push(Push::dog(&to.address)))));
        sinks.extend(settings.statsd.iter().map(|to| Sink::Statsd(push(Push::plain(&to.address)))));
        let recent = settings.in_mem.then(|| Arc::new(Recent::default()));
        sinks.extend(recent.clone().map(Sink::Recent));
        let pages = settings.prometheus.clone().map(|prometheus| (prometheus, Arc::<Registry>::default()));
        sinks.extend(pages.iter().map(|(_, registry)| Sink::Prometheus(Arc::clone(registry))));
        let metrics = Metrics::with(settings, program, sinks, clock.clone());
        let recent = recent.map(|recent| Dump { recent, clock });
        (metrics.clone(), Sinks { pages, pushers, recent, metrics })
    }

    fn with(settings: &MetricsSettings, program: &Program, sinks: Vec<Sink>, clock: Clock) -> Metrics {
        if sinks.is_empty() {
            return Metrics::none(clock);
        }
        let prefix = settings.prefix.clone().unwrap_or_else(|| program.prefix.to_owned());
        let host = settings.hostname_label.unwrap_or(true).then(host_name).flatten();
        let trust_domain = settings.trust_domain_label.then(|| program.trust_domain.clone());
        let inner = Inner { prefix, host, trust_domain, filter: Filter::new(settings), sinks };
        Metrics { inner: Some(Arc::new(inner)), clock }
    }

    /// Whether anybody listens: for what is dear to find out.
    pub fn is_heard(&self) -> bool {
        self.inner.is_some()
    }

    /// A value that goes up and down.
    pub fn gauge(&self, key: &[&str], value: f64) {
        self.gauge_with(key, value, &[]);
    }

    pub fn gauge_with(&self, key: &[&str], value: f64, labels: &[(&str, &str)]) {
        self.emit(key, Value::Gauge(value), labels);
    }

    /// All values of a gauge that has one for each of several things: what is not given any more is not shown any more.
    pub fn gauges(&self, key: &[&str], values: &[(Vec<(&str, &str)>, f64)]) {
        let Some(inner) = &self.inner else { return };
        for (labels, value) in values {
            inner.emit(key, Value::Gauge(*value), labels, &self.clock);
        }
        inner.forget_others(key, values.iter().map(|(labels, _)| labels.as_slice()));
    }

    /// Something happened `by` times more.
    pub fn count(&self, key: &[&str], by: u64) {
        self.count_with(key, by, &[]);
    }

    pub fn count_with(&self, key: &[&str], by: u64, labels: &[(&str, &str)]) {
        self.emit(key, Value::Count(by), labels);
    }

    /// One of many values of which the distribution matters.
    pub fn sample(&self, key: &[&str], value: f64) {
        self.emit(key, Value::Sample(value), &[]);
    }

    /// Begins a call: it will be counted and timed with its outcome.
    pub fn call(&self, key: &[&'static str]) -> Call {
        self.call_named(key.iter().copied().map(Cow::Borrowed).collect())
    }

    /// The same with a name that is made while the program runs.
    pub fn call_named(&self, key: Vec<Cow<'static, str>>) -> Call {
        Call { metrics: self.clone(), key, labels: Vec::new(), began: self.clock.monotonic(), done: false }
    }

    /// Counts and times `work`, `code` being the gRPC name of an error's code.
    pub async fn timed<T, E>(
        &self,
        key: &[&'static str],
        code: impl FnOnce(&E) -> &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if self.inner.is_none() {
            return work.await;
        }
        let call = self.call(key);
        let result = work.await;
        call.done(result.as_ref().err().map_or(OK, code));
        result
    }

    fn emit(&self, key: &[&str], value: Value, labels: &[(&str, &str)]) {
        if let Some(inner) = &self.inner {
            inner.emit(key, value, labels, &self.clock);
        }
    }
}

/// The outcome of a call that went well.
pub const OK: &str = "OK";
/// The outcome of a call that nobody waited for to the end.
const CANCELED: &str = "Canceled";
/// The outcome of a call that failed in a way that has no gRPC code.
pub const UNKNOWN: &str = "Unknown";

/// A call under way. Dropped without an outcome, it was cancelled.
#[must_use = "a call is counted when it is done"]
pub struct Call {
    metrics: Metrics,
    key: Vec<Cow<'static, str>>,
    labels: Vec<(&'static str, Cow<'static, str>)>,
    began: Duration,
    done: bool,
}

impl Sinks {
    /// Opens the way to the receivers. The task is to be run as long as the program runs; it ends by itself when there is
    /// nothing to do. `own` is for Prometheus over TLS with the program's own SVID. Must be called within a tokio runtime.
    pub async fn open(
        self,
        own: SpiffeTls,
        require_pq_kem: bool,
        stop: CancellationToken,
    ) -> Result<BoxFuture<'static, ()>, MetricsError> {
        let clock = self.metrics.clock.clone();
        let mut tasks: Vec<BoxFuture<'static, ()>> = Vec::new();
        if let Some((settings, registry)) = self.pages {
            let page = serve::Pages { settings, registry, own, require_pq_kem, clock: clock.clone() };
            tasks.push(page.open(stop.clone())?);
        }
        for pusher in self.pushers {
            pusher.check().await?;
            tasks.push(Box::pin(pusher.run(clock.clone(), stop.clone())));
        }
        if self.metrics.inner.is_some() {
            tasks.push(Box::pin(tell_uptime(self.metrics, stop)));
        }
        Ok(Box::pin(async move {
            futures::future::join_all(tasks).await;
        }))
    }
}

impl Call {
    pub fn label(&mut self, name: &'static str, value: impl Into<Cow<'static, str>>) {
        self.labels.push((name, value.into()));
    }

    /// The call never was.
    pub fn discard(mut self) {
        self.done = true;
    }

    /// Counts the call. `code` is the name of a gRPC code.
    pub fn done(mut self, code: &'static str) {
        self.count(code);
    }

    fn count(&mut self, code: &'static str) {
        self.done = true;
        if self.metrics.inner.is_none() {
            return;
        }
        let took = self.metrics.clock.monotonic().saturating_sub(self.began);
        let labels: Vec<(&str, &str)> = self
            .labels
            .iter()
            .map(|(name, value)| (*name, value.as_ref()))
            .chain([("status", code)])
            .collect();
        let mut key: Vec<&str> = self.key.iter().map(AsRef::as_ref).collect();
        self.metrics.emit(&key, Value::Count(1), &labels);
        key.push("elapsed_time");
        self.metrics.emit(&key, Value::Sample(milliseconds(took)), &labels);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            self.count(CANCELED);
        }
    }
}

impl Dump {
    /// Writes the numbers of the last hour to the log, a line each, as go-metrics does.
    pub fn write(&self) {
        for line in self.recent.lines(self.clock.now()) {
            tracing::info!("{line}");
        }
    }
}

struct Inner {
    prefix: String,
    host: Option<String>,
    trust_domain: Option<String>,
    filter: Filter,
    sinks: Vec<Sink>,
}

enum Sink {
    Prometheus(Arc<Registry>),
    Statsd(Push),
    DogStatsd(Push),
    Recent(Arc<Recent>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Gauge(f64),
    Count(u64),
    Sample(f64),
}

/// One number on its way to the sinks.
struct Point<'a> {
    /// With the prefix.
    key: &'a [&'a str],
    labels: &'a [(String, String)],
    value: Value,
}

impl Inner {
    fn emit(&self, key: &[&str], value: Value, labels: &[(&str, &str)], clock: &Clock) {
        let key = self.key(key);
        if !self.filter.admits(&key) {
            return;
        }
        let labels = self.labels(labels);
        let point = Point { key: &key, labels: &labels, value };
        for sink in &self.sinks {
            match sink {
                Sink::Prometheus(registry) => registry.take(&point, clock.monotonic()),
                Sink::Statsd(push) => push.send(statsd::line(&point)),
                Sink::DogStatsd(push) => push.send(statsd::dog_line(&point)),
                Sink::Recent(recent) => recent.take(&point, clock.now()),
            }
        }
    }

    /// Only Prometheus' page remembers what it was once told.
    fn forget_others<'a>(&self, key: &[&str], kept: impl Iterator<Item = &'a [(&'a str, &'a str)]>) {
        let kept: Vec<_> = kept.map(|labels| self.labels(labels)).collect();
        for sink in &self.sinks {
            if let Sink::Prometheus(registry) = sink {
                registry.keep_only(&self.key(key), &kept);
            }
        }
    }

    fn key<'a>(&'a self, key: &[&'a str]) -> Vec<&'a str> {
        std::iter::once(self.prefix.as_str()).chain(key.iter().copied()).collect()
    }

    fn labels(&self, labels: &[(&str, &str)]) -> Vec<(String, String)> {
        let own =
            labels.iter().copied().chain(self.trust_domain.as_deref().map(|name| ("trust_domain", name)));
        let own = own.map(|(name, value)| (filter::clean(name), filter::clean(value)));
        // The host's name is added later than the others and goes as it is.
        let host = self.host.iter().map(|host| ("host".to_owned(), host.clone()));
        own.chain(host).filter(|(name, _)| self.filter.admits_label(name)).collect()
    }
}

/// The program's running time. SPIRE tells it at once and then every ten seconds.
async fn tell_uptime(metrics: Metrics, stop: CancellationToken) {
    let began = metrics.clock.monotonic();
    loop {
        let up = metrics.clock.monotonic().saturating_sub(began);
        metrics.gauge(&["uptime_in_ms"], milliseconds(up).trunc());
        tokio::select! {
            () = stop.cancelled() => return,
            () = metrics.clock.sleep(UPTIME_INTERVAL) => {}
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
