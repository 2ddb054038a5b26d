//! Key managers: where the agent's own key lives. The kinds themselves are `finial_daemon::keys`.

use std::path::PathBuf;
use std::sync::Arc;

use finial_daemon::keys::disk::DiskKeys;
use finial_daemon::keys::memory::MemoryKeys;
use finial_daemon::keys::{KeyError, KeyManager};
use finial_daemon::settings::{PluginStanza, Section, SettingsError, built_in};

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

type Read = fn(Section) -> Result<Choice, SettingsError>;

/// What is built in. To add one, write what reads its configuration, add the line, and open it in [`Choice::open`].
pub const BUILT_IN: &[(&str, Read)] = &[("disk", disk), ("memory", memory)];

/// Reads a `KeyManager` block. Blocking when its settings are in a file.
pub fn load(stanza: &PluginStanza) -> Result<Choice, SettingsError> {
    let read = built_in(stanza, BUILT_IN, &[])?;
    read(Section::named(&*stanza.configuration()?, &stanza.data_name()))
}

impl Choice {
    /// Opens it.
    pub async fn open(&self) -> Result<Arc<dyn KeyManager>, KeyError> {
        match self {
            Choice::Memory => Ok(Arc::new(MemoryKeys::new())),
            Choice::Disk { directory } => Ok(Arc::new(DiskKeys::open(directory.join("keys.json")).await?)),
        }
    }
}

fn disk(section: Section) -> Result<Choice, SettingsError> {
    let directory = PathBuf::from(section.require_string("directory"));
    section.finish()?;
    Ok(Choice::Disk { directory })
}

fn memory(section: Section) -> Result<Choice, SettingsError> {
    section.finish()?;
    Ok(Choice::Memory)
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
