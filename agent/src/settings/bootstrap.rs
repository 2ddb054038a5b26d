//! Where the first bundle comes from.

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
    /// `insecure_bootstrap`.
    FirstMet,
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

    let sources = usize::from(path.is_some()) + usize::from(url.is_some()) + usize::from(insecure);
    if sources > 1 {
        agent.problem_here(
            "only one of insecure_bootstrap, trust_bundle_url and trust_bundle_path can be specified",
        );
    }
    match (path, url) {
        (Some(path), _) => Bootstrap::File { path, format },
        (None, Some(url)) => {
            check_url(agent, &url, unix_socket.as_deref());
            Bootstrap::Url { url, unix_socket, format }
        }
        (None, None) => {
            if sources == 0 {
                agent.problem_here("trust_bundle_path or trust_bundle_url must be configured unless insecure_bootstrap is set");
            }
            Bootstrap::FirstMet
        }
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
