//! `spire.api.server.logger.v1.Logger`: the log level, while the server runs.

use finial_daemon::telemetry::{LogHandle, LogLevel};
use finial_proto::spire::api::server::logger::v1 as wire;
use finial_proto::spire::api::server::logger::v1::logger_server::Logger;
use finial_proto::spire::api::types;
use tonic::{Request, Response, Status};

use crate::access::audit::Subject;
use crate::api::gate::Call;
use crate::api::status::Refusal;

/// The service.
pub struct Loggers {
    pub log: LogHandle,
}

#[tonic::async_trait]
impl Logger for Loggers {
    async fn get_logger(
        &self,
        request: Request<wire::GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        tracing::info!("GetLogger Called");
        call.answer(Subject::default, async { Ok(self.state()) }).await
    }

    async fn set_log_level(
        &self,
        request: Request<wire::SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        let number = request.into_inner().new_level;
        let wanted = types::LogLevel::try_from(number);
        let mut subject = Subject::default();
        subject.others.add("new_log_level", wanted.map_or("", |level| level.as_str_name()));
        let work = async {
            let level = match wanted {
                Ok(types::LogLevel::Unspecified) => {
                    return Err(Refusal::invalid("newLevel value cannot be LogLevel_UNSPECIFIED"));
                }
                Ok(types::LogLevel::Panic) => LogLevel::Panic,
                Ok(types::LogLevel::Fatal) => LogLevel::Fatal,
                Ok(types::LogLevel::Error) => LogLevel::Error,
                Ok(types::LogLevel::Warn) => LogLevel::Warn,
                Ok(types::LogLevel::Info) => LogLevel::Info,
                Ok(types::LogLevel::Debug) => LogLevel::Debug,
                Ok(types::LogLevel::Trace) => LogLevel::Trace,
                Err(_) => return Err(Refusal::invalid("unsupported log level")),
            };
            tracing::info!(new_log_level = %level, "SetLogLevel Called");
            self.log.set_level(level);
            Ok(self.state())
        };
        call.answer(|| subject, work).await
    }

    async fn reset_log_level(
        &self,
        request: Request<wire::ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        tracing::info!(launch_log_level = %self.log.launch_level(), "ResetLogLevel Called");
        self.log.reset_level();
        call.answer(Subject::default, async { Ok(self.state()) }).await
    }
}

impl Loggers {
    fn state(&self) -> types::Logger {
        types::Logger {
            current_level: level(self.log.level()) as i32,
            launch_level: level(self.log.launch_level()) as i32,
        }
    }
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
