//! `logger get`, `logger set` and `logger reset`

use finial_daemon::argv::text;
use finial_daemon::telemetry::LogLevel;
use finial_proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use finial_proto::spire::api::types::{LogLevel as WireLevel, Logger};

use super::client::Server;
use super::matching::given;
use super::output::{Failure, Output, Report, fail};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Shows the level of the log
    #[command(
        after_help = "Examples:\n    finial-server logger get\n    finial-server logger get -output json"
    )]
    Get(Get),
    /// Sets the level of the log until the server restarts
    #[command(after_help = "Examples:\n    finial-server logger set -level debug")]
    Set(Set),
    /// Goes back to the level of the configuration
    #[command(after_help = "Examples:\n    finial-server logger reset")]
    Reset(Get),
}

#[derive(Debug, clap::Args)]
pub struct Get {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub struct Set {
    #[command(flatten)]
    to: Get,
    /// The level: panic, fatal, error, warn, info, debug or trace
    #[arg(long = "level")]
    level: Option<String>,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        match self {
            Verb::Get(flags) => {
                flags.output.format()?;
                let client = flags.server.connect()?;
                let answer = client.logger().get_logger(ask()).await;
                let logger = answer.map_err(|status| client.refused_to("error fetching logger", &status))?;
                flags.output.print(logger.get_ref(), pretty)
            }
            Verb::Set(Set { to, level }) => {
                to.output.format()?;
                let client = to.server.connect()?;
                let new_level = wire_level(given(&level))?.into();
                let answer = client.logger().set_log_level(SetLogLevelRequest { new_level }).await;
                let logger =
                    answer.map_err(|status| client.refused_to("failed to set log level", &status))?;
                to.output.print(logger.get_ref(), pretty)
            }
            Verb::Reset(flags) => {
                flags.output.format()?;
                let client = flags.server.connect()?;
                let answer = client.logger().reset_log_level(ResetLogLevelRequest {}).await;
                let logger = answer.map_err(|status| client.refused_to("failed to reset logger", &status))?;
                flags.output.print(logger.get_ref(), pretty)
            }
        }
    }
}

pub(super) fn ask() -> GetLoggerRequest {
    GetLoggerRequest {}
}

fn wire_level(level: Option<&str>) -> Result<WireLevel, Failure> {
    let level = level.ok_or_else(|| fail("a value (-level) must be set"))?;
    let known: LogLevel = level
        .parse()
        .map_err(|_| fail(format!("the value {} is not a valid setting", text::quote(level))))?;
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

fn pretty(logger: &Logger) -> Result<Report, Failure> {
    let current = level_name(logger.current_level, "current")?;
    let launch = level_name(logger.launch_level, "launch")?;
    Ok(Report::said(format!("Logger Level : {current}\nLaunch Level : {launch}\n\n")))
}

fn level_name(level: i32, which: &str) -> Result<LogLevel, Failure> {
    match WireLevel::try_from(level) {
        Ok(WireLevel::Panic) => Ok(LogLevel::Panic),
        Ok(WireLevel::Fatal) => Ok(LogLevel::Fatal),
        Ok(WireLevel::Error) => Ok(LogLevel::Error),
        Ok(WireLevel::Warn) => Ok(LogLevel::Warn),
        Ok(WireLevel::Info) => Ok(LogLevel::Info),
        Ok(WireLevel::Debug) => Ok(LogLevel::Debug),
        Ok(WireLevel::Trace) => Ok(LogLevel::Trace),
        Ok(WireLevel::Unspecified) | Err(_) => Err(fail(format!(
            "internal error: returned {which} log level is undefined; please report this as a bug"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_spires_names() {
        for (current, launch, text) in [
            (WireLevel::Info, WireLevel::Info, "Logger Level : info\nLaunch Level : info\n\n"),
            (WireLevel::Warn, WireLevel::Debug, "Logger Level : warning\nLaunch Level : debug\n\n"),
            (WireLevel::Fatal, WireLevel::Panic, "Logger Level : fatal\nLaunch Level : panic\n\n"),
            (WireLevel::Trace, WireLevel::Error, "Logger Level : trace\nLaunch Level : error\n\n"),
        ] {
            let logger = Logger { current_level: current.into(), launch_level: launch.into() };
            assert_eq!(pretty(&logger).unwrap().out, text);
        }
        assert_eq!(
            pretty(&Logger::default()).unwrap_err().to_string(),
            "Error: internal error: returned current log level is undefined; please report this as a bug"
        );
    }

    #[test]
    fn a_level_to_set_is_checked() {
        assert_eq!(wire_level(Some("WARN")), Ok(WireLevel::Warn));
        assert_eq!(wire_level(Some("warning")), Ok(WireLevel::Warn));
        assert_eq!(wire_level(None).unwrap_err().to_string(), "Error: a value (-level) must be set");
        assert_eq!(
            wire_level(Some("Foo")).unwrap_err().to_string(),
            "Error: the value \"Foo\" is not a valid setting"
        );
    }
}
