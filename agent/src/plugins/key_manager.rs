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
            section.allow_unknown();
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
