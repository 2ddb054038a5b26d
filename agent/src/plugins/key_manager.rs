//! Key managers: where the agent's own key lives. The kinds themselves are `finial_daemon::keys`.

use std::path::PathBuf;
use std::sync::Arc;

use finial_daemon::keys::{KeyError, KeyManager, disk, memory};
use finial_daemon::settings::{PluginStanza, Section, SettingsError};

/// The key manager that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// `memory`: a new key, and so a new attestation, at each start.
    Memory,
    /// `disk`: `<directory>/keys.json`, SPIRE's format.
    Disk {
        /// Must exist.
        directory: PathBuf,
    },
}

/// Why a `KeyManager` block of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginRefused {
    /// Nobody knows it.
    #[error("KeyManager {name:?} is unknown; built in: disk, memory")]
    Unknown {
        /// The plugin.
        name: String,
    },
    /// It is to be run as a program of its own.
    #[error(
        "KeyManager {name:?} has a plugin_cmd: external plugins are not built into this agent yet; built in: disk, memory"
    )]
    External {
        /// The plugin.
        name: String,
    },
    /// Its own settings are wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// Reads a `KeyManager` block. Blocking when its settings are in a file.
pub fn load(stanza: &PluginStanza) -> Result<Choice, PluginRefused> {
    let name = stanza.name.clone();
    if stanza.cmd.as_ref().is_some_and(|cmd| !cmd.is_empty()) {
        return Err(PluginRefused::External { name });
    }
    let data = stanza.configuration()?;
    let section = Section::named(&data, &stanza.data_name());
    match name.as_str() {
        "memory" => {
            section.finish()?;
            Ok(Choice::Memory)
        }
        "disk" => {
            let directory = PathBuf::from(section.require_string("directory"));
            section.finish()?;
            Ok(Choice::Disk { directory })
        }
        _ => Err(PluginRefused::Unknown { name }),
    }
}

impl Choice {
    /// Opens it.
    pub async fn open(&self) -> Result<Arc<dyn KeyManager>, KeyError> {
        match self {
            Choice::Memory => Ok(Arc::new(memory::MemoryKeys::new())),
            Choice::Disk { directory } => {
                Ok(Arc::new(disk::DiskKeys::open(directory.join("keys.json")).await?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use finial_daemon::settings::{parse, plugin_stanzas};

    use super::*;

    fn refusal(plugins: &str) -> String {
        let file = parse(&format!("plugins {{ {plugins} }}"), "agent.conf").unwrap();
        load(&plugin_stanzas(&file).unwrap()[0]).unwrap_err().to_string()
    }

    #[test]
    fn settings_that_would_do_nothing_are_refused() {
        let text = refusal(r#"KeyManager "memory" { plugin_data { directory = "/var/lib/finial" } }"#);
        assert!(text.contains("agent.conf:1") && text.contains("directory"), "{text}");
        assert!(refusal(r#"KeyManager "tpm" { plugin_data {} }"#).contains("built in: disk, memory"));
        assert!(refusal(r#"KeyManager "disk" { plugin_cmd = "x" plugin_data {} }"#).contains("plugin_cmd"));
    }
}
