//! `healthcheck`

use std::process::ExitCode;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::output::print;
use super::socket::Socket;

const HELP: &str = "\
Exit code 0 and \"Agent is healthy.\" when the agent holds its own SVID and has its first entries; else 1.

Examples:
    finial-agent healthcheck
    finial-agent healthcheck -verbose -socketPath /run/spire/agent.sock";

#[derive(Debug, clap::Args)]
#[command(display_name = "health", after_help = HELP)]
pub struct Healthcheck {
    #[command(flatten)]
    socket: Socket,
    /// Accepted for SPIRE's sake; it changes nothing
    #[arg(long = "shallow")]
    shallow: bool,
    /// Say what is being asked, and what went wrong
    #[arg(long = "verbose")]
    verbose: bool,
}

impl Healthcheck {
    pub async fn run(self) -> ExitCode {
        if self.verbose {
            print("Checking agent health...\n");
        }
        match self.check().await {
            Ok(()) => {
                print("Agent is healthy.\n");
                ExitCode::SUCCESS
            }
            Err(cause) => {
                eprintln!("Agent is unhealthy: {cause}");
                ExitCode::FAILURE
            }
        }
    }

    async fn check(&self) -> Result<(), String> {
        let connection = self.socket.connect().map_err(|error| error.to_string())?;
        let mut health = HealthClient::new(connection.channel.clone());
        match health.check(HealthCheckRequest::default()).await {
            Ok(answer) => judge(answer.get_ref().status),
            Err(status) => {
                if self.verbose {
                    eprintln!("Failed to check health: {}", connection.text(&status));
                }
                Err("unable to determine health".to_owned())
            }
        }
    }
}

fn judge(status: i32) -> Result<(), String> {
    match ServingStatus::try_from(status) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(status) => Err(format!("agent returned status {:?}", status.as_str_name())),
        Err(_) => Err(format!("agent returned status \"{status}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_is_healthy() {
        assert_eq!(judge(1), Ok(()));
        for (status, text) in [
            (0, "agent returned status \"UNKNOWN\""),
            (2, "agent returned status \"NOT_SERVING\""),
            (9, "agent returned status \"9\""),
        ] {
            assert_eq!(judge(status).unwrap_err(), text);
        }
    }
}
