//! `healthcheck`

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::client::Server;
use super::output::{Failure, Report, fail, print};

const HELP: &str = "\
Exit code 0 and \"Server is healthy.\" when the server can sign and reaches its datastore; else 1.

Examples:
    finial-server healthcheck
    finial-server healthcheck -verbose -socketPath /run/spire/server.sock";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Healthcheck {
    #[command(flatten)]
    server: Server,
    /// Accepted for SPIRE's sake; it changes nothing
    #[arg(long = "shallow")]
    shallow: bool,
    /// Say what is being asked, and what went wrong
    #[arg(long = "verbose")]
    verbose: bool,
}

impl Healthcheck {
    pub async fn run(self) -> Result<Report, Failure> {
        let client = self.server.connect()?;
        if self.verbose {
            print("Checking server health...\n");
        }
        let cause = match client.health().check(HealthCheckRequest::default()).await {
            Ok(answer) => judge(answer.get_ref().status),
            Err(status) => {
                if self.verbose {
                    eprintln!("Failed to check health: {}", client.text(&status));
                }
                Err("unable to determine health".to_owned())
            }
        };
        cause.map_err(|cause| fail(format!("server is unhealthy: {cause}")))?;
        Ok(Report::said("Server is healthy.\n"))
    }
}

fn judge(status: i32) -> Result<(), String> {
    match ServingStatus::try_from(status) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(status) => Err(format!("server returned status {:?}", status.as_str_name())),
        Err(_) => Err(format!("server returned status \"{status}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_is_healthy() {
        assert_eq!(judge(1), Ok(()));
        assert_eq!(judge(2).unwrap_err(), "server returned status \"NOT_SERVING\"");
        assert_eq!(judge(9).unwrap_err(), "server returned status \"9\"");
    }
}
