//! Where the first bundle comes from.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use finial_daemon::settings::Section;

use super::Flags;

/// How the agent comes to believe the server the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// `trust_bundle_path`.
    File { path: PathBuf, format: BundleFormat },
    /// `trust_bundle_url`, by web PKI, or over `trust_bundle_unix_socket`.
    Url { url: String, unix_socket: Option<PathBuf>, format: BundleFormat },
    /// `trust_bundle_spiffe_workload_api`: another agent, as in nested trust domains.
    WorkloadApi { address: String, endpoint: Endpoint },
    /// `insecure_bootstrap`.
    FirstMet,
}

/// Where a Workload API is, by its address (SPIFFE Workload Endpoint §4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// `trust_bundle_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleFormat {
    Pem,
    Spiffe,
}

pub(super) fn read(
    agent: &Section,
    flags: &Flags,
    text: &dyn Fn(&Option<String>, &str) -> Option<String>,
) -> Bootstrap {
    let format = match text(&flags.trust_bundle_format, "trust_bundle_format").as_deref() {
        None | Some("pem") => BundleFormat::Pem,
        Some("spiffe") => BundleFormat::Spiffe,
        Some(other) => {
            agent.problem(
                "trust_bundle_format",
                format_args!(
                    "invalid value {other:?} for \"trust_bundle_format\": it is \"pem\" or \"spiffe\""
                ),
            );
            BundleFormat::Pem
        }
    };
    let path = text(&flags.trust_bundle, "trust_bundle_path").map(PathBuf::from);
    let url = text(&flags.trust_bundle_url, "trust_bundle_url");
    let unix_socket =
        agent.string("trust_bundle_unix_socket").filter(|path| !path.is_empty()).map(PathBuf::from);
    let insecure = agent.bool("insecure_bootstrap").unwrap_or(false) || flags.insecure_bootstrap;

    let workload_api = text(&None, "trust_bundle_spiffe_workload_api");

    let sources = [
        ("insecure_bootstrap", insecure),
        ("trust_bundle_url", url.is_some()),
        ("trust_bundle_path", path.is_some()),
        ("trust_bundle_spiffe_workload_api", workload_api.is_some()),
    ];
    let given: Vec<&str> = sources.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
    if given.len() > 1 {
        agent.problem_here(format!("only one of {} can be specified", given.join(" and ")));
    }
    if unix_socket.is_some() && url.is_none() {
        agent.problem(
            "trust_bundle_unix_socket",
            if workload_api.is_some() {
                "trust_bundle_unix_socket can not be used with trust_bundle_spiffe_workload_api"
            } else {
                "if trust_bundle_unix_socket is specified, so must be trust_bundle_url"
            },
        );
    }
    match (path, url, workload_api) {
        (Some(path), ..) => Bootstrap::File { path, format },
        (None, Some(url), _) => {
            check_url(agent, &url, unix_socket.as_deref());
            Bootstrap::Url { url, unix_socket, format }
        }
        (None, None, Some(address)) => match endpoint(&address) {
            Ok(endpoint) => Bootstrap::WorkloadApi { address, endpoint },
            Err(problem) => {
                agent.problem(
                    "trust_bundle_spiffe_workload_api",
                    format_args!(
                        "{address:?} is not a valid SPIFFE Workload API endpoint address: {problem}"
                    ),
                );
                Bootstrap::FirstMet
            }
        },
        (None, None, None) => {
            if !insecure {
                agent.problem_here(
                    "trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set",
                );
            }
            Bootstrap::FirstMet
        }
    }
}

/// `unix:///path` or `tcp://ADDRESS:PORT`.
fn endpoint(address: &str) -> Result<Endpoint, &'static str> {
    if let Some(path) = address.strip_prefix("unix://") {
        return match path.strip_prefix('/') {
            Some(rest) if !rest.is_empty() && !path.contains(['?', '#']) => Ok(Endpoint::Unix(path.into())),
            _ => Err("a unix address is unix:// and an absolute path, and nothing behind it"),
        };
    }
    match address.strip_prefix("tcp://") {
        Some(socket) => socket.parse().map(Endpoint::Tcp).map_err(|_| "a tcp address is tcp://IP:PORT"),
        None => Err("it must begin with unix:// or tcp://"),
    }
}

fn check_url(agent: &Section, url: &str, unix_socket: Option<&Path>) {
    match unix_socket {
        Some(_) if !url.starts_with("http://") => {
            agent.problem(
                "trust_bundle_url",
                "trust_bundle_url must start with http:// when trust_bundle_unix_socket is set",
            );
        }
        Some(_) => {
            let query = url.split_once('?').map_or("", |(_, query)| query);
            if query.split('&').any(|one| one.starts_with("spire-") || one.starts_with("spiffe-")) {
                agent.problem("trust_bundle_url", "trust_bundle_url must not have parameters that start with spire- or spiffe-: the agent adds its own");
            }
        }
        None if !url.starts_with("https://") => {
            agent.problem("trust_bundle_url", "trust_bundle_url must start with https://");
        }
        None => {}
    }
}
