//! Workload attestors: what a process of this machine is, in selectors.

mod unix;

use std::{io, sync::Arc};

use async_trait::async_trait;
use finial_daemon::{
    listen::peer::{LocalPeer, PeerGone},
    settings::{PluginStanza, Section, SettingsError, built_in},
};
use finial_identity::selector::{Selector, SelectorError};

pub use unix::Unix;

/// Finds facts about a process that called.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync {
    /// The selectors of this process; their type is the attestor's name. Whoever asks checks afterwards that the
    /// process still lives.
    async fn attest(&self, caller: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestorFault>;
}

/// Why an attestor came to no result.
#[derive(Debug, thiserror::Error)]
pub enum AttestorFault {
    /// Something about the process cannot be read.
    #[error(
        "cannot read {what} of the process: {source}; the agent needs to see the process in /proc (hostPID: true in a container) and, for its path, CAP_SYS_PTRACE"
    )]
    Unreadable {
        /// Under /proc/PID.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel wrote something that is not in the form that proc(5) describes.
    #[error("cannot make sense of {what} of the process")]
    Malformed {
        /// Under /proc/PID.
        what: &'static str,
    },
    /// The program is larger than `workload_size_limit`.
    #[error(
        "SHA256 digest: workload {path} exceeds size limit ({size} > {limit}); raise workload_size_limit, or set it to -1 to go without the digest"
    )]
    TooLarge {
        /// The program.
        path: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        limit: u64,
    },
    /// The process ended while it was looked at.
    #[error(transparent)]
    Gone(#[from] PeerGone),
    /// A value cannot be a selector.
    #[error("cannot make a selector of {what}: {source}")]
    NoSelector {
        /// The value.
        what: String,
        /// Why.
        source: SelectorError,
    },
    /// The attestor was cut off: the agent is stopping, or there is a defect in it.
    #[error("the attestor was cut off")]
    CutOff,
}

/// Makes an attestor from its part of the configuration.
pub type Configure = fn(Section) -> Result<Arc<dyn WorkloadAttestor>, SettingsError>;

/// All attestors that are part of the agent, by the type of their selectors.
pub const BUILT_IN: &[(&str, Configure)] = &[("unix", unix::configure)];

/// SPIRE's other attestors, which this program refuses by name.
const NOT_BUILT: &[&str] = &["docker", "k8s", "slurm", "systemd", "windows"];

/// Makes the attestor that a block of the configuration names. Blocking when its settings are in a file.
pub fn load(stanza: &PluginStanza) -> Result<Arc<dyn WorkloadAttestor>, SettingsError> {
    let configure = built_in(stanza, BUILT_IN, NOT_BUILT)?;
    configure(Section::named(&*stanza.configuration()?, &stanza.data_name()))
}

#[cfg(test)]
mod tests {
    use finial_daemon::settings::{parse, plugin_stanzas};

    use super::*;

    fn load_text(stanza: &str) -> Result<Arc<dyn WorkloadAttestor>, SettingsError> {
        let file = parse(&format!("plugins {{ {stanza} }}"), "agent.conf").unwrap();
        load(&plugin_stanzas(&file).unwrap()[0])
    }

    fn refusal(stanza: &str) -> String {
        load_text(stanza).err().expect("must be refused").to_string()
    }

    #[test]
    fn what_is_not_built_in_is_refused_by_name() {
        for name in ["docker", "k8s", "systemd", "slurm", "windows"] {
            let text = refusal(&format!("\nWorkloadAttestor \"{name}\" {{}}"));
            assert_eq!(
                text,
                format!(
                    "agent.conf:2: plugins: WorkloadAttestor {name:?} of SPIRE is not built into this release of Finial; \
                     built in: unix"
                )
            );
        }
        let text = refusal(r#"WorkloadAttestor "unixx" {}"#);
        assert!(text.contains(r#""unixx" is not known; built in: unix"#), "{text}");
        let text = refusal(r#"WorkloadAttestor "own" { plugin_cmd = "/bin/own" }"#);
        assert!(text.contains("external plugins of this kind are not supported yet"), "{text}");
    }

    #[test]
    fn the_settings_of_unix_are_read_strictly() {
        assert!(load_text(r#"WorkloadAttestor "unix" {}"#).is_ok());
        let all = r#"WorkloadAttestor "unix" { plugin_data { discover_workload_path = true workload_size_limit = -1 } }"#;
        assert!(load_text(all).is_ok());
        let text = refusal(r#"WorkloadAttestor "unix" { plugin_data { discover_workload_pth = true } }"#);
        assert!(text.contains("agent.conf:1") && text.contains("discover_workload_path"), "{text}");
        let text = refusal(r#"WorkloadAttestor "unix" { plugin_data { workload_size_limit = "big" } }"#);
        assert!(text.contains("workload_size_limit"), "{text}");
    }
}
