//! `spire.api.agent.logger.v1.Logger`: the log level, while the agent runs.

use finial_daemon::telemetry::{LogHandle, LogLevel};
use finial_proto::spire::api::agent::logger::v1 as wire;
use finial_proto::spire::api::agent::logger::v1::logger_server::Logger;
use finial_proto::spire::api::types;
use tonic::{Request, Response, Status};

/// The service.
pub(super) struct Loggers {
    pub(super) log: LogHandle,
}

#[tonic::async_trait]
impl Logger for Loggers {
    async fn get_logger(
        &self,
        _: Request<wire::GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        tracing::info!("GetLogger Called");
        Ok(self.state())
    }

    async fn set_log_level(
        &self,
        request: Request<wire::SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let level = match types::LogLevel::try_from(request.into_inner().new_level) {
            Ok(types::LogLevel::Unspecified) => {
                return Err(refused("newLevel value cannot be LogLevel_UNSPECIFIED"));
            }
            Ok(types::LogLevel::Panic) => LogLevel::Panic,
            Ok(types::LogLevel::Fatal) => LogLevel::Fatal,
            Ok(types::LogLevel::Error) => LogLevel::Error,
            Ok(types::LogLevel::Warn) => LogLevel::Warn,
            Ok(types::LogLevel::Info) => LogLevel::Info,
            Ok(types::LogLevel::Debug) => LogLevel::Debug,
            Ok(types::LogLevel::Trace) => LogLevel::Trace,
            Err(_) => return Err(refused("unsupported log level")),
        };
        tracing::info!(new_log_level = %level, "SetLogLevel Called");
        self.log.set_level(level);
        Ok(self.state())
    }

    async fn reset_log_level(
        &self,
        _: Request<wire::ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        tracing::info!(launch_log_level = %self.log.launch_level(), "ResetLogLevel Called");
        self.log.reset_level();
        Ok(self.state())
    }
}

impl Loggers {
    fn state(&self) -> Response<types::Logger> {
        Response::new(types::Logger {
            current_level: level(self.log.level()) as i32,
            launch_level: level(self.log.launch_level()) as i32,
        })
    }
}

fn refused(text: &'static str) -> Status {
    tracing::error!("Invalid argument: {text}");
    Status::invalid_argument(text)
}

fn level(level: LogLevel) -> types::LogLevel {
    match level {
        LogLevel::Panic => types::LogLevel::Panic,
        LogLevel::Fatal => types::LogLevel::Fatal,
        LogLevel::Error => types::LogLevel::Error,
        LogLevel::Warn => types::LogLevel::Warn,
        LogLevel::Info => types::LogLevel::Info,
        LogLevel::Debug => types::LogLevel::Debug,
        LogLevel::Trace => types::LogLevel::Trace,
    }
}
