//! Logs: `tracing` events written the way SPIRE writes its own, so that the same log rules match.
//!
//! The members of an event's field `fields`, a JSON object as text, become fields of their own: for names that are not
//! known before the event.
//!
//! Nothing here formats keys; what goes into an event's fields is the caller's to keep clean.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{SignalKind, signal};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;

use crate::clock::Clock;
use crate::metrics::Dump;

/// Starts logging for the whole process. Once only.
pub fn start(settings: TelemetrySettings, clock: &Clock) -> Result<LogHandle, TelemetryError> {
    let output = Output::open(settings.file.clone())?;
    let (subscriber, handle) = subscriber(&settings, clock.clone(), output);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::AlreadyStarted)?;
    Ok(handle)
}

/// A task for the signals that are about logs: SIGUSR2 opens the log file anew, SIGUSR1 writes the numbers of the last hour
/// to the log, where they are kept. Must be called within a tokio runtime.
pub fn follow_signals(log: LogHandle, recent: Option<Dump>) -> io::Result<impl Future<Output = ()>> {
    let mut reopen = signal(SignalKind::user_defined2())?;
    let mut reconfigure = signal(SignalKind::user_defined1())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = reopen.recv() => match log.reopen() {
                    Ok(()) => tracing::info!("Reopened log file"),
                    Err(error) => tracing::error!(%error, "Failed to reopen log file"),
                },
                _ = reconfigure.recv() => {
                    recent.iter().for_each(Dump::write);
                    tracing::warn!("SIGUSR1: reconfiguring plugins is not built yet; restart the program instead");
                }
            }
        }
    })
}

/// What to log, how and where: the `log_*` keys of the configuration.
#[derive(Clone, Debug, Default)]
pub struct TelemetrySettings {
    /// `log_level`
    pub level: LogLevel,
    /// `log_format`
    pub format: LogFormat,
    /// `log_file`; standard output without one.
    pub file: Option<PathBuf>,
    /// `log_source_location`: adds the fields `file` and `func`.
    pub source_location: bool,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot open the log file {}: {source}; check log_file and the permissions of its directory",
        path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("logging was started already in this process")]
    AlreadyStarted,
}

/// SPIRE's level names. `tracing` has nothing above error: at `panic` and `fatal` the log stays silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    Panic,
    Fatal,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub const ALL: [LogLevel; 7] = [
        LogLevel::Panic,
        LogLevel::Fatal,
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Info,
        LogLevel::Debug,
        LogLevel::Trace,
    ];

    /// `panic`, `fatal`, `error`, `warning`, `info`, `debug`, `trace`.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Panic => "panic",
            LogLevel::Fatal => "fatal",
            LogLevel::Error => "error",
            LogLevel::Warn => "warning",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }

    fn filter(self) -> Targets {
        let level = match self {
            LogLevel::Panic | LogLevel::Fatal => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        };
        // The libraries underneath say a great deal that no operator of this program asked for.
        Targets::new().with_target("finial", level).with_default(level.min(LevelFilter::WARN))
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

impl FromStr for LogLevel {
    type Err = UnknownLogSetting;

    /// Any case; `warn` beside `warning`.
    fn from_str(text: &str) -> Result<LogLevel, UnknownLogSetting> {
        let lower = text.to_lowercase();
        if lower == "warn" {
            return Ok(LogLevel::Warn);
        }
        LogLevel::ALL.into_iter().find(|level| level.name() == lower).ok_or_else(|| UnknownLogSetting {
            what: "log level",
            text: text.to_string(),
            known: LEVEL_NAMES,
        })
    }
}

/// The shape of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `time="..." level=info msg="..." key=value`, with the time in whole seconds: when the key is not set.
    #[default]
    Plain,
    /// The same with nanoseconds: `text`.
    Text,
    /// One JSON object per line: `json`.
    Json,
}

impl FromStr for LogFormat {
    type Err = UnknownLogSetting;

    fn from_str(text: &str) -> Result<LogFormat, UnknownLogSetting> {
        match text.to_lowercase().as_str() {
            "" => Ok(LogFormat::Plain),
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(UnknownLogSetting { what: "log format", text: text.to_string(), known: "text, json" }),
        }
    }
}

const LEVEL_NAMES: &str = "panic, fatal, error, warn, info, debug, trace";

/// A level or format that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {text:?}; must be one of {known}")]
pub struct UnknownLogSetting {
    what: &'static str,
    text: String,
    known: &'static str,
}

/// Changes the log while the program runs.
#[derive(Clone)]
pub struct LogHandle {
    inner: Arc<Inner>,
}

struct Inner {
    launch: LogLevel,
    current: Mutex<LogLevel>,
    filter: Option<reload::Handle<Targets, Registry>>,
    output: Option<Arc<Output>>,
}

impl LogHandle {
    /// A handle that keeps a level and has no log: for programs that set up `tracing` themselves.
    pub fn detached(level: LogLevel) -> LogHandle {
        LogHandle {
            inner: Arc::new(Inner { launch: level, current: Mutex::new(level), filter: None, output: None }),
        }
    }

    /// The level now.
    pub fn level(&self) -> LogLevel {
        *self.inner.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The level of the configuration.
    pub fn launch_level(&self) -> LogLevel {
        self.inner.launch
    }

    pub fn set_level(&self, level: LogLevel) {
        let mut current = self.inner.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = level;
        if let Some(filter) = &self.inner.filter {
            // Fails only when the subscriber is gone, and then there is no log to change.
            let _ = filter.reload(level.filter());
        }
    }

    /// Goes back to the level of the configuration.
    pub fn reset_level(&self) {
        self.set_level(self.inner.launch);
    }

    /// Opens `log_file` anew, for log rotation (SIGUSR2). When that fails the old file stays in use. Does
    /// nothing without a file.
    pub fn reopen(&self) -> Result<(), TelemetryError> {
        self.inner.output.as_ref().map_or(Ok(()), |output| output.reopen())
    }
}

fn subscriber(
    settings: &TelemetrySettings,
    clock: Clock,
    output: Output,
) -> (impl Subscriber + Send + Sync + use<>, LogHandle) {
    let output = Arc::new(output);
    let (filter, filter_handle) = reload::Layer::new(settings.level.filter());
    let lines = Lines {
        clock,
        format: settings.format,
        source_location: settings.source_location,
        output: Arc::clone(&output),
    };
    let inner = Inner {
        launch: settings.level,
        current: Mutex::new(settings.level),
        filter: Some(filter_handle),
        output: Some(output),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    (subscriber, LogHandle { inner: Arc::new(inner) })
}

/// Where lines go.
struct Output {
    path: Option<PathBuf>,
    sink: Mutex<Box<dyn Write + Send>>,
}

impl Output {
    fn open(path: Option<PathBuf>) -> Result<Output, TelemetryError> {
        let sink: Box<dyn Write + Send> = match &path {
            Some(path) => Box::new(open_log(path)?),
            None => Box::new(io::stdout()),
        };
        Ok(Output { path, sink: Mutex::new(sink) })
    }

    fn reopen(&self) -> Result<(), TelemetryError> {
        if let Some(path) = &self.path {
            let file = open_log(path)?;
            *self.sink.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(file);
        }
        Ok(())
    }

    fn write(&self, line: &[u8]) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written has nowhere to say so, and is no reason to stop serving.
        let _ = sink.write_all(line).and_then(|()| sink.flush());
    }
}

fn open_log(path: &PathBuf) -> Result<File, TelemetryError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map_err(|source| TelemetryError::Open { path: path.clone(), source })
}

/// The layer that turns events into lines.
struct Lines {
    clock: Clock,
    format: LogFormat,
    source_location: bool,
    output: Arc<Output>,
}

/// Field values by name; sorted, as logrus prints them.
#[derive(Clone, Default)]
struct Fields(BTreeMap<String, Value>);

impl<S> Layer<S> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        own.spread();
        let message = own.0.remove("message").map(|value| plain(&value)).unwrap_or_default();
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.0.extend(of_span.0.clone());
            }
        }
        fields.0.extend(own.0);
        let line = self.line(event.metadata(), &message, fields.0);
        self.output.write(line.as_bytes());
    }
}

impl Lines {
    fn line(&self, metadata: &Metadata<'_>, message: &str, mut fields: BTreeMap<String, Value>) -> String {
        for name in ["time", "level", "msg"] {
            if let Some(value) = fields.remove(name) {
                fields.insert(format!("fields.{name}"), value);
            }
        }
        if let Some(subsystem) = subsystem(metadata.target()) {
            fields.entry("subsystem_name".to_string()).or_insert_with(|| Value::from(subsystem));
        }
        if self.source_location {
            let file = metadata.file().and_then(|path| path.rsplit('/').next()).unwrap_or("");
            let line = metadata.line().unwrap_or(0);
            fields.insert("file".to_string(), Value::from(format!("{file}:{line}")));
            fields.insert("func".to_string(), Value::from(metadata.module_path().unwrap_or("")));
        }
        let level = level_name(*metadata.level());
        let time = timestamp(self.clock.now(), self.format);
        let mut line = String::with_capacity(128);
        if self.format == LogFormat::Json {
            fields.insert("level".to_string(), Value::from(level));
            fields.insert("msg".to_string(), Value::from(message));
            fields.insert("time".to_string(), Value::from(time));
            line.push_str(&serde_json::to_string(&fields).unwrap_or_default());
        } else {
            append(&mut line, "time", &time);
            append(&mut line, "level", level);
            if !message.is_empty() {
                append(&mut line, "msg", message);
            }
            for (name, value) in &fields {
                append(&mut line, name, &plain(value));
            }
        }
        line.push('\n');
        line
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, Value::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.insert(field, Value::from(value.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, Value::from(format!("{value:?}")));
    }
}

impl Fields {
    fn spread(&mut self) {
        let more =
            self.0.get("fields").and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
        let Some(Value::Object(more)) = more else { return };
        self.0.remove("fields");
        for (name, value) in more {
            self.0.entry(name).or_insert(value);
        }
    }

    fn insert(&mut self, field: &Field, value: Value) {
        let name = field.name();
        self.0.insert(name.strip_prefix("r#").unwrap_or(name).to_string(), value);
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The room of the house that speaks: `finial_server::authority::drive` is `authority`.
fn subsystem(target: &str) -> Option<&str> {
    target.strip_prefix("finial_")?.split("::").nth(1)
}

/// RFC 3339 in UTC; without a fraction in the plain format.
fn timestamp(now: SystemTime, format: LogFormat) -> String {
    let now = OffsetDateTime::from(now);
    let now = if format == LogFormat::Plain { now.replace_nanosecond(0).unwrap_or(now) } else { now };
    now.format(&Rfc3339).unwrap_or_default()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `name=value`, quoted as logrus does: whenever the value holds more than letters, digits and `-._/@^+`.
fn append(line: &mut String, name: &str, value: &str) {
    if !line.is_empty() {
        line.push(' ');
    }
    line.push_str(name);
    line.push('=');
    if value.chars().all(|c| c.is_ascii_alphanumeric() || "-._/@^+".contains(c)) {
        line.push_str(value);
    } else {
        quote(line, value);
    }
}

/// Go's `%q`.
fn quote(line: &mut String, value: &str) {
    line.push('"');
    for c in value.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '\u{7}' => line.push_str("\\a"),
            '\u{8}' => line.push_str("\\b"),
            '\u{b}' => line.push_str("\\v"),
            '\u{c}' => line.push_str("\\f"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => line.push_str(&format!("\\x{:02x}", u32::from(c))),
            // Line separators, direction marks and the like, which could forge what a terminal shows.
            c if c.is_control() || is_unprintable(c) => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line.push('"');
}

fn is_unprintable(c: char) -> bool {
    matches!(c, '\u{a0}' | '\u{ad}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}'
        | '\u{3000}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
