//! `logger` and `debug`: verbs that talk to the admin socket.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use finial_daemon::argv::{OutputFormat, text};
use finial_daemon::dial::{self, Dialer};
use finial_daemon::settings::GoDuration;
use finial_daemon::telemetry::LogLevel;
use finial_proto::spire::agent::debug::v1::debug_client::DebugClient;
use finial_proto::spire::agent::debug::v1::{GetInfoRequest, GetInfoResponse};
use finial_proto::spire::api::agent::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use finial_proto::spire::api::types::{LogLevel as WireLevel, Logger};
use prost::{Message, Name};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::output::{Output, json_line, print};
use super::refused_flag;
use crate::settings::DEFAULT_ADMIN_SOCKET_PATH;

/// `logger`
#[derive(Debug, Subcommand)]
pub enum LoggerVerb {
    /// Shows the log level
    #[command(after_help = "Examples:\n    finial-agent logger get -socketPath /run/spire/admin.sock")]
    Get(Ask),
    /// Changes the log level until the agent restarts
    #[command(after_help = "Examples:\n    finial-agent logger set -level debug")]
    Set(Set),
    /// Goes back to the level of the configuration
    #[command(after_help = "Examples:\n    finial-agent logger reset")]
    Reset(Ask),
}

/// `debug`
#[derive(Debug, Subcommand)]
pub enum DebugVerb {
    /// Shows how long the agent runs, what it holds, and its own SVID
    #[command(
        after_help = "Examples:\n    finial-agent debug getinfo\n    finial-agent debug getinfo -output json"
    )]
    Getinfo(Ask),
}

#[derive(Debug, clap::Args)]
pub struct Ask {
    /// The agent's admin socket: admin_socket_path of its configuration
    #[arg(long = "socketPath", default_value = DEFAULT_ADMIN_SOCKET_PATH)]
    socket_path: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub struct Set {
    #[command(flatten)]
    ask: Ask,
    /// The level: panic, fatal, error, warn, info, debug or trace
    #[arg(long = "level")]
    level: Option<String>,
}

/// What could not be done, as it is printed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("Error: {0}")]
    Told(String),
    /// In the words of the flag parser, which says no more than this.
    #[error("{0}")]
    Flag(String),
}

impl LoggerVerb {
    pub async fn run(self) -> ExitCode {
        let answered = match self {
            LoggerVerb::Get(ask) => ask.logger_get().await,
            LoggerVerb::Set(set) => set.run().await,
            LoggerVerb::Reset(ask) => ask.logger_reset().await,
        };
        tell(answered)
    }
}

impl DebugVerb {
    pub async fn run(self) -> ExitCode {
        let DebugVerb::Getinfo(ask) = self;
        tell(ask.info().await)
    }
}

impl Ask {
    async fn logger_get(&self) -> Result<String, Fault> {
        let format = self.format()?;
        let answer = LoggerClient::new(self.channel()).get_logger(GetLoggerRequest {}).await;
        self.shown(format, answer, "error fetching logger: ", pretty_logger)
    }

    async fn logger_reset(&self) -> Result<String, Fault> {
        let format = self.format()?;
        let answer = LoggerClient::new(self.channel()).reset_log_level(ResetLogLevelRequest {}).await;
        self.shown(format, answer, "failed to reset logger: ", pretty_logger)
    }

    async fn info(&self) -> Result<String, Fault> {
        let format = self.format()?;
        let answer = DebugClient::new(self.channel()).get_info(GetInfoRequest {}).await;
        self.shown(format, answer, "", |info| Ok(pretty_info(info)))
    }

    fn format(&self) -> Result<OutputFormat, Fault> {
        self.output.format().map_err(Fault::Flag)
    }

    fn path(&self) -> &str {
        if self.socket_path.is_empty() { DEFAULT_ADMIN_SOCKET_PATH } else { &self.socket_path }
    }

    fn channel(&self) -> Channel {
        dial::channel(Dialer::Unix(PathBuf::from(self.path())), None, "localhost")
    }

    fn shown<M: Message + Name>(
        &self,
        format: OutputFormat,
        answer: Result<Response<M>, Status>,
        what: &str,
        pretty: impl FnOnce(&M) -> Result<String, Fault>,
    ) -> Result<String, Fault> {
        // SPIRE's dialer leaves two slashes of its target's form before an absolute path.
        let slashes = if self.path().starts_with('/') { "//" } else { "" };
        let path = format!("{slashes}{}", self.path());
        let answer = answer
            .map_err(|status| Fault::Told(format!("{what}{}", text::rpc_error(&status, &path))))?
            .into_inner();
        match format {
            OutputFormat::Pretty => pretty(&answer),
            OutputFormat::Json => json_line(&answer).map_err(Fault::Told),
        }
    }
}

impl Set {
    async fn run(self) -> Result<String, Fault> {
        let format = self.ask.format()?;
        let new_level = wire_level(self.level.as_deref().unwrap_or_default())?.into();
        let answer =
            LoggerClient::new(self.ask.channel()).set_log_level(SetLogLevelRequest { new_level }).await;
        self.ask.shown(format, answer, "failed to set log level: ", pretty_logger)
    }
}

fn tell(answered: Result<String, Fault>) -> ExitCode {
    match answered {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(Fault::Flag(text)) => refused_flag(&text),
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

fn wire_level(level: &str) -> Result<WireLevel, Fault> {
    if level.is_empty() {
        return Err(Fault::Told("a value (-level) must be set".to_owned()));
    }
    let known: LogLevel = level
        .parse()
        .map_err(|_| Fault::Told(format!("the value {} is not a valid setting", text::quote(level))))?;
    Ok(match known {
        LogLevel::Panic => WireLevel::Panic,
        LogLevel::Fatal => WireLevel::Fatal,
        LogLevel::Error => WireLevel::Error,
        LogLevel::Warn => WireLevel::Warn,
        LogLevel::Info => WireLevel::Info,
        LogLevel::Debug => WireLevel::Debug,
        LogLevel::Trace => WireLevel::Trace,
    })
}

fn pretty_logger(logger: &Logger) -> Result<String, Fault> {
    let current = level_name(logger.current_level, "current")?;
    let launch = level_name(logger.launch_level, "launch")?;
    Ok(format!("Logger Level : {current}\nLaunch Level : {launch}\n\n"))
}

fn level_name(level: i32, which: &str) -> Result<LogLevel, Fault> {
    match WireLevel::try_from(level) {
        Ok(WireLevel::Panic) => Ok(LogLevel::Panic),
        Ok(WireLevel::Fatal) => Ok(LogLevel::Fatal),
        Ok(WireLevel::Error) => Ok(LogLevel::Error),
        Ok(WireLevel::Warn) => Ok(LogLevel::Warn),
        Ok(WireLevel::Info) => Ok(LogLevel::Info),
        Ok(WireLevel::Debug) => Ok(LogLevel::Debug),
        Ok(WireLevel::Trace) => Ok(LogLevel::Trace),
        Ok(WireLevel::Unspecified) | Err(_) => Err(Fault::Told(format!(
            "internal error: returned {which} log level is undefined; please report this as a bug"
        ))),
    }
}

fn pretty_info(info: &GetInfoResponse) -> String {
    let uptime = GoDuration(Duration::from_secs(u64::try_from(info.uptime).unwrap_or(0)));
    let last_sync = match info.last_sync_success {
        0 => "(never)".to_owned(),
        at => text::rfc3339(at),
    };
    let mut out = format!(
        "Agent Debug Info:
  Uptime:                          {uptime}
  Last Sync Success:               {last_sync}
  Cached X.509 SVIDs:              {}
  Cached JWT SVIDs:                {}
  Cached SVID Store X.509 SVIDs:   {}
",
        info.cached_x509_svids_count, info.cached_jwt_svids_count, info.cached_svidstore_x509_svids_count
    );
    if !info.svid_chain.is_empty() {
        out.push_str("  SVID Chain:\n");
    }
    for (index, certificate) in info.svid_chain.iter().enumerate() {
        let id = match &certificate.id {
            None => "(none)".to_owned(),
            Some(id) => format!("spiffe://{}{}", id.trust_domain, id.path),
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "    [{index}] SPIFFE ID:  {id}");
        let _ = writeln!(out, "        Subject:    {}", certificate.subject);
        let _ = writeln!(out, "        Expires At: {}", text::rfc3339(certificate.expires_at));
    }
    out
}

#[cfg(test)]
mod tests {
    use finial_proto::spire::agent::debug::v1::get_info_response::Cert;
    use finial_proto::spire::api::types::Spiffeid;

    use super::*;

    #[test]
    fn levels_have_spires_names() {
        let logger = |current: WireLevel, launch: WireLevel| Logger {
            current_level: current.into(),
            launch_level: launch.into(),
        };
        for (current, launch, text) in [
            (WireLevel::Info, WireLevel::Info, "Logger Level : info\nLaunch Level : info\n\n"),
            (WireLevel::Warn, WireLevel::Debug, "Logger Level : warning\nLaunch Level : debug\n\n"),
            (WireLevel::Trace, WireLevel::Panic, "Logger Level : trace\nLaunch Level : panic\n\n"),
        ] {
            assert_eq!(pretty_logger(&logger(current, launch)).unwrap(), text);
        }
        assert!(pretty_logger(&Logger::default()).unwrap_err().to_string().contains("undefined"));
        assert_eq!(wire_level("WARN"), Ok(WireLevel::Warn));
        assert_eq!(wire_level("").unwrap_err().to_string(), "Error: a value (-level) must be set");
        assert_eq!(
            wire_level("Foo").unwrap_err().to_string(),
            "Error: the value \"Foo\" is not a valid setting"
        );
    }

    #[test]
    fn debug_information_reads_as_spires() {
        let id = Some(Spiffeid { trust_domain: "example.org".into(), path: "/spire/agent/x".into() });
        let info = GetInfoResponse {
            svid_chain: vec![
                Cert { id, expires_at: 1_795_300_381, subject: "O=SPIRE,C=US".into() },
                Cert::default(),
            ],
            uptime: 117,
            last_sync_success: 1_795_300_381,
            cached_x509_svids_count: 3,
            ..GetInfoResponse::default()
        };
        assert_eq!(
            pretty_info(&info),
            "Agent Debug Info:
  Uptime:                          1m57s
  Last Sync Success:               2026-11-21T22:33:01Z
  Cached X.509 SVIDs:              3
  Cached JWT SVIDs:                0
  Cached SVID Store X.509 SVIDs:   0
  SVID Chain:
    [0] SPIFFE ID:  spiffe://example.org/spire/agent/x
        Subject:    O=SPIRE,C=US
        Expires At: 2026-11-21T22:33:01Z
    [1] SPIFFE ID:  (none)
        Subject:    
        Expires At: 1970-01-01T00:00:00Z
"
        );
        assert!(
            pretty_info(&GetInfoResponse::default()).contains("Last Sync Success:               (never)\n")
        );
    }
}
