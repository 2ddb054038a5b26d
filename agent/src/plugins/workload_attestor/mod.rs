//! Workload attestors: what a process of this machine is, in selectors.

mod unix;

use std::{io, sync::Arc};

use async_trait::async_trait;
use finial_daemon::{
    listen::peer::{LocalPeer, PeerGone},
    settings::{PluginStanza, Section, SettingsError},
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

/// Why a `WorkloadAttestor` block of the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginRefused {
    /// The reference has it, this agent does not.
    #[error(
        "WorkloadAttestor {name:?} is not built into this agent yet; built in: {}. Remove its block, or set enabled = false",
        built_in_names()
    )]
    NotBuilt {
        /// The plugin.
        name: String,
    },
    /// Nobody knows it.
    #[error("WorkloadAttestor {name:?} is unknown; built in: {}", built_in_names())]
    Unknown {
        /// The plugin.
        name: String,
    },
    /// It is to be run as a program of its own.
    #[error(
        "WorkloadAttestor {name:?} has a plugin_cmd: external plugins are not built into this agent yet; built in: {}",
        built_in_names()
    )]
    External {
        /// The plugin.
        name: String,
    },
    /// Its own settings are wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// One attestor that is part of the agent.
pub struct BuiltIn {
    /// Its name in the configuration, and the type of its selectors.
    pub name: &'static str,
    /// Makes it from its own settings.
    pub configure: fn(Section) -> Result<Arc<dyn WorkloadAttestor>, SettingsError>,
}

/// All attestors that are part of the agent.
pub const BUILT_IN: &[BuiltIn] = &[BuiltIn { name: "unix", configure: unix::configure }];

/// What the reference has beyond [`BUILT_IN`].
const NOT_BUILT: &[&str] = &["docker", "k8s", "slurm", "systemd", "windows"];

/// Makes the attestor that a block of the configuration names. Blocking when its settings are in a file.
pub fn load(stanza: &PluginStanza) -> Result<Arc<dyn WorkloadAttestor>, PluginRefused> {
    let name = stanza.name.clone();
    if stanza.cmd.as_ref().is_some_and(|cmd| !cmd.is_empty()) {
        return Err(PluginRefused::External { name });
    }
    match BUILT_IN.iter().find(|built_in| built_in.name == name) {
        Some(built_in) => {
            let data = stanza.configuration()?;
            Ok((built_in.configure)(Section::named(&data, &stanza.data_name()))?)
        }
        None if NOT_BUILT.contains(&name.as_str()) => Err(PluginRefused::NotBuilt { name }),
        None => Err(PluginRefused::Unknown { name }),
    }
}

fn built_in_names() -> String {
    BUILT_IN.iter().map(|built_in| built_in.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use finial_daemon::settings::{parse, plugin_stanzas};

    use super::*;

    fn load_text(stanza: &str) -> Result<Arc<dyn WorkloadAttestor>, PluginRefused> {
        let file = parse(&format!("plugins {{ {stanza} }}"), "agent.conf").unwrap();
        load(&plugin_stanzas(&file).unwrap()[0])
    }

    fn refusal(stanza: &str) -> String {
        load_text(stanza).err().expect("must be refused").to_string()
    }

    #[test]
    fn what_is_not_built_in_is_refused_by_name() {
        for name in ["docker", "k8s", "systemd", "slurm", "windows"] {
            let text = refusal(&format!("WorkloadAttestor \"{name}\" {{}}"));
            assert!(
                text.contains(&format!("{name:?} is not built into this agent yet; built in: unix")),
                "{text}"
            );
        }
        let text = refusal(r#"WorkloadAttestor "unixx" {}"#);
        assert!(text.contains(r#""unixx" is unknown; built in: unix"#), "{text}");
        let text = refusal(r#"WorkloadAttestor "own" { plugin_cmd = "/bin/own" }"#);
        assert!(text.contains("external plugins are not built"), "{text}");
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
