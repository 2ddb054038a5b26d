//! `api watch`

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_identity::TrustDomain;
use finial_identity::x509_svid::X509Svid;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{X509svidRequest, X509svidResponse};
use tonic::Code;

use super::request;
use super::show::{Certificate, Shown, certificates, received};
use crate::cli::output::print;
use crate::cli::socket::{Connection, Socket};

/// The wait after a lost stream grows by this much each time …
const WAIT_STEP: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

const HELP: &str = "\
Prints the SVIDs of processes like this one, and prints them again at each rotation and each change of an entry, until
it is interrupted. When the agent is away it is asked again, at first after one second.

Examples:
    finial-agent api watch
    finial-agent api watch -socketPath /run/spire/agent.sock";

#[derive(Debug, clap::Args)]
#[command(display_name = "watch", after_help = HELP)]
pub struct Watch {
    #[command(flatten)]
    socket: Socket,
}

/// Why the stream ended.
struct Ended {
    text: String,
    /// Asking again cannot help.
    for_good: bool,
}

impl Watch {
    pub async fn run(self) -> ExitCode {
        let connection = match self.socket.connect() {
            Ok(connection) => connection,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        watch(&connection, &Clock::wall()).await;
        ExitCode::FAILURE
    }
}

/// Ends when it is interrupted or refused for good, which is told.
async fn watch(connection: &Connection, clock: &Clock) {
    let mut failures = 0;
    let mut last_update = clock.monotonic();
    loop {
        let stream = follow(connection, |response| {
            failures = 0;
            match shown(&response) {
                Ok(svids) => {
                    print(&received(&svids, clock.monotonic().saturating_sub(last_update)));
                    last_update = clock.monotonic();
                }
                Err(error) => eprintln!("{error}"),
            }
        });
        let ended = tokio::select! {
            ended = stream => ended,
            _ = tokio::signal::ctrl_c() => {
                let text = "rpc error: code = Canceled desc = context canceled".to_owned();
                Ended { text, for_good: true }
            }
        };
        eprintln!("{}", ended.text);
        if ended.for_good {
            // Once as news, once as the reason for the end.
            eprintln!("{}", ended.text);
            return;
        }
        failures += 1;
        let wait = WAIT_STEP.saturating_mul(failures).min(LONGEST_WAIT);
        tokio::select! {
            () = clock.sleep(wait) => {}
            _ = tokio::signal::ctrl_c() => {
                eprintln!("context canceled");
                return;
            }
        }
    }
}

async fn follow(connection: &Connection, mut update: impl FnMut(X509svidResponse)) -> Ended {
    let mut client = SpiffeWorkloadApiClient::new(connection.channel.clone());
    let status = match client.fetch_x509svid(request(X509svidRequest {})).await {
        Err(status) => status,
        Ok(stream) => {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(response)) => update(response),
                    Ok(None) => return Ended { text: "EOF".to_owned(), for_good: false },
                    Err(status) => break status,
                }
            }
        }
    };
    let for_good = matches!(status.code(), Code::Cancelled | Code::InvalidArgument);
    Ended { text: connection.text(&status), for_good }
}

/// All SVIDs, each with the bundles of every other trust domain that came along. Of several with one hint the first.
fn shown(response: &X509svidResponse) -> Result<Vec<Shown>, String> {
    if response.svids.is_empty() {
        return Err("no SVIDs in response".to_owned());
    }
    let mut bundles: BTreeMap<TrustDomain, Vec<Certificate>> = BTreeMap::new();
    let mut svids = Vec::new();
    let mut hints = Vec::new();
    for svid in &response.svids {
        let read = X509Svid::parse_concatenated(&svid.x509_svid).map_err(|error| error.to_string())?;
        bundles.insert(read.id().trust_domain(), certificates(&svid.bundle)?);
        if !svid.hint.is_empty() && hints.contains(&&svid.hint) {
            continue;
        }
        hints.push(&svid.hint);
        svids.push((read, certificates(&svid.x509_svid)?));
    }
    for (name, der) in &response.federated_bundles {
        let trust_domain = TrustDomain::parse(name).map_err(|error| error.to_string())?;
        bundles.insert(trust_domain, certificates(der)?);
    }
    let shown = |(svid, chain): (X509Svid, Vec<Certificate>)| {
        let own = svid.id().trust_domain();
        let others = bundles.iter().filter(|(trust_domain, _)| **trust_domain != own);
        Shown {
            spiffe_id: svid.id().to_string(),
            hint: String::new(),
            chain,
            bundle: bundles.get(&own).cloned().unwrap_or_default(),
            federated: others.map(|(name, bundle)| (name.to_string(), bundle.clone())).collect(),
        }
    };
    Ok(svids.into_iter().map(shown).collect())
}

#[cfg(test)]
mod tests;
