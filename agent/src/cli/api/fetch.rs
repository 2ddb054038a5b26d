//! `api fetch x509`

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use finial_daemon::argv::{OutputFormat, text};
use finial_daemon::clock::Clock;
use finial_daemon::keys::exportable::WorkloadKey;
use finial_daemon::private_file;
use finial_daemon::settings::{DurationError, GoDuration};
use finial_identity::bundle::document::certificate_pem;
use finial_identity::{SpiffeId, peer};
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{X509svid, X509svidRequest, X509svidResponse};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::request;
use super::show::{Certificate, Shown, certificates, received};
use crate::cli::output::{Output, json_line, print};
use crate::cli::refused_flag;
use crate::cli::socket::{Connection, Socket};

const HELP: &str = "\
Fetches what the agent gives to processes like this one: the agent looks at the caller's user, group and program.
The chain is verified against the bundle that came with it. With -write the keys are readable by this user alone.
With -output json the answer is printed as it came, private keys included, and nothing is verified or written.

Examples:
    finial-agent api fetch
    finial-agent api fetch x509 -write /tmp/svids -silent
        writes svid.0.pem (the chain), svid.0.key, bundle.0.pem and federated_bundle.0.N.pem, and so on for 1, 2, …
    sudo -u web finial-agent api fetch -timeout 30s";

#[derive(Debug, clap::Args)]
#[command(display_name = "fetch x509", after_help = HELP)]
pub struct FetchX509 {
    #[command(flatten)]
    socket: Socket,
    /// Print no SVIDs. Files and errors are still told
    #[arg(long = "silent")]
    silent: bool,
    /// An existing directory to write the SVIDs, their keys and the bundles to, as PEM
    #[arg(long = "write")]
    write: Option<String>,
    /// How long to wait for the answer; 0 waits for ever
    #[arg(long = "timeout", value_name = "value", default_value = "5s", value_parser = timeout)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

/// What could not be done, as it is printed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(pub(super) String);

/// An answer, taken apart.
struct Received {
    shown: Vec<Shown>,
    keys: Vec<WorkloadKey>,
}

impl FetchX509 {
    pub async fn run(self) -> ExitCode {
        let format = match self.output.format() {
            Ok(format) => format,
            Err(text) => return refused_flag(&text),
        };
        match self.fetch(format, &Clock::wall()).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                eprintln!("{fault}");
                ExitCode::FAILURE
            }
        }
    }

    async fn fetch(&self, format: OutputFormat, clock: &Clock) -> Result<(), Fault> {
        let connection = self.socket.connect().map_err(|error| Fault(error.to_string()))?;
        let start = clock.monotonic();
        let response = self.ask(&connection, clock).await?;
        let took = clock.monotonic().saturating_sub(start);

        if format == OutputFormat::Json {
            print(&json_line(&response).map_err(Fault)?);
            return Ok(());
        }
        let received_svids = take_apart(&response)?;
        verify(&received_svids.shown, clock)?;
        if !self.silent {
            print(&received(&received_svids.shown, took));
        }
        if let Some(dir) = self.write.as_deref().filter(|dir| !dir.is_empty()) {
            write_all(Path::new(dir), &received_svids, &mut |line| print(line))?;
        }
        Ok(())
    }

    /// The first message of the stream.
    async fn ask(&self, connection: &Connection, clock: &Clock) -> Result<X509svidResponse, Fault> {
        let answer = async {
            let mut client = SpiffeWorkloadApiClient::new(connection.channel.clone());
            client.fetch_x509svid(request(X509svidRequest {})).await?.into_inner().message().await
        };
        let answer = if self.timeout.is_zero() {
            answer.await
        } else {
            let too_late = "rpc error: code = DeadlineExceeded desc = context deadline exceeded";
            clock.timeout(self.timeout, answer).await.map_err(|_| Fault(too_late.to_owned()))?
        };
        match answer {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(Fault("EOF".to_owned())),
            Err(status) => Err(Fault(connection.text(&status))),
        }
    }
}

fn take_apart(response: &X509svidResponse) -> Result<Received, Fault> {
    if response.svids.is_empty() {
        return Err(Fault("workload response contains no svids".to_owned()));
    }
    let mut federated = Vec::new();
    for (name, der) in &response.federated_bundles {
        let bundle = certificates(der).map_err(|error| {
            Fault(format!("failed to parse bundle for federated domain {}: {error}", text::quote(name)))
        })?;
        if bundle.is_empty() {
            let name = text::quote(name);
            return Err(Fault(format!("no certificates in bundle for federated domain {name}")));
        }
        federated.push((name.clone(), bundle));
    }
    let (mut shown, mut keys) = (Vec::new(), Vec::new());
    for (index, svid) in response.svids.iter().enumerate() {
        let (one, key) = take_one(svid, &federated).map_err(|error| {
            let id = text::quote(&svid.spiffe_id);
            Fault(format!("failed to parse svid entry {index} for spiffe id {id}: {error}"))
        })?;
        shown.push(one);
        keys.push(key);
    }
    Ok(Received { shown, keys })
}

fn take_one(
    svid: &X509svid,
    federated: &[(String, Vec<Certificate>)],
) -> Result<(Shown, WorkloadKey), String> {
    let chain = certificates(&svid.x509_svid)?;
    if chain.is_empty() {
        return Err("no certificates found".to_owned());
    }
    let key = WorkloadKey::from_pkcs8(&svid.x509_svid_key)
        .map_err(|error| format!("failed to parse private key: {error}"))?;
    let bundle =
        certificates(&svid.bundle).map_err(|error| format!("failed to parse trust bundle: {error}"))?;
    if bundle.is_empty() {
        return Err("no certificates in trust bundle".to_owned());
    }
    let shown = Shown {
        spiffe_id: svid.spiffe_id.clone(),
        hint: svid.hint.clone(),
        chain,
        bundle,
        federated: federated.to_vec(),
    };
    Ok((shown, key))
}

fn verify(svids: &[Shown], clock: &Clock) -> Result<(), Fault> {
    for svid in svids {
        SpiffeId::parse(&svid.spiffe_id).map_err(|error| Fault(error.to_string()))?;
        let chain: Vec<_> =
            svid.chain.iter().map(|certificate| CertificateDer::from(certificate.der.as_slice())).collect();
        let authorities: Vec<_> = svid.bundle.iter().map(|certificate| certificate.der.as_slice()).collect();
        peer::verify(&chain, &authorities, clock.now()).map_err(|error| {
            let id = text::quote(&svid.spiffe_id);
            Fault(format!("{id} SVID failed verification against bundle: {error}"))
        })?;
    }
    Ok(())
}

/// Writes everything, telling each file before it is written.
fn write_all(dir: &Path, received: &Received, tell: &mut dyn FnMut(&str)) -> Result<(), Fault> {
    let file = |name: String| text::clean(&dir.join(name));
    for (index, (svid, key)) in received.shown.iter().zip(&received.keys).enumerate() {
        let path = file(format!("svid.{index}.pem"));
        tell(&format!("Writing SVID #{index} to file {}.\n", path.display()));
        write_public(&path, &pem(&svid.chain))?;

        let path = file(format!("svid.{index}.key"));
        tell(&format!("Writing key #{index} to file {}.\n", path.display()));
        write_private(&path, &key_pem(key))?;

        let path = file(format!("bundle.{index}.pem"));
        tell(&format!("Writing bundle #{index} to file {}.\n", path.display()));
        write_public(&path, &pem(&svid.bundle))?;

        for (number, (trust_domain, bundle)) in svid.federated.iter().enumerate() {
            let path = file(format!("federated_bundle.{index}.{number}.pem"));
            let name = path.display();
            tell(&format!(
                "Writing federated bundle #{number} for trust domain {trust_domain} to file {name}.\n"
            ));
            write_public(&path, &pem(bundle))?;
        }
    }
    Ok(())
}

fn pem(certificates: &[Certificate]) -> String {
    certificates.iter().map(|certificate| certificate_pem(&certificate.der)).collect()
}

fn key_pem(key: &WorkloadKey) -> Zeroizing<String> {
    let certificate = Zeroizing::new(certificate_pem(key.pkcs8()));
    Zeroizing::new(certificate.replace("CERTIFICATE", "PRIVATE KEY"))
}

fn write_public(path: &Path, text: &str) -> Result<(), Fault> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o644).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| not_written(path, &error))
}

fn write_private(path: &Path, text: &str) -> Result<(), Fault> {
    private_file::replace(path, text.as_bytes()).map_err(|error| not_written(path, &error))
}

fn not_written(path: &Path, error: &io::Error) -> Fault {
    Fault(text::file_error("open", path, error))
}

/// `-timeout`: nothing and less mean that there is no limit.
pub(super) fn timeout(given: &str) -> Result<Duration, Fault> {
    if given.starts_with('-') && text::duration(given).is_ok() {
        return Ok(Duration::ZERO);
    }
    let quoted = text::quote(given);
    given.parse::<GoDuration>().map(|timeout| timeout.0).map_err(|error| {
        Fault(match error {
            DurationError::MissingUnit(_) => format!("time: missing unit in duration {quoted}"),
            DurationError::UnknownUnit { unit, .. } => {
                format!("time: unknown unit {} in duration {quoted}", text::quote(&unit))
            }
            _ => format!("time: invalid duration {quoted}"),
        })
    })
}

#[cfg(test)]
mod tests;
