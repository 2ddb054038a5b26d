//! Where the server's own private keys are: the keys of its CAs.

use std::path::PathBuf;
use std::sync::Arc;

use finial_daemon::keys::disk::DiskKeys;
use finial_daemon::keys::memory::MemoryKeys;
use finial_daemon::keys::{KeyError, KeyManager};
use finial_daemon::settings::{PluginStanza, Section, SettingsError, built_in};

use super::at_most_one;

/// The operator's name of the kind.
pub const KIND: &str = "KeyManager";

type Read = fn(Section) -> Result<Chosen, SettingsError>;

/// What is built in. To add one, write what reads its configuration, add the line, and open it in [`Chosen::open`].
pub const BUILT_IN: &[(&str, Read)] = &[("memory", memory), ("disk", disk)];

/// What SPIRE also has.
const OF_SPIRE: &[&str] = &["aws_kms", "azure_key_vault", "gcp_kms", "hashicorp_vault"];

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyManagerError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(
        "plugins: exactly one KeyManager is needed and none is configured; add KeyManager \"disk\" {{ plugin_data {{ \
         keys_path = \"...\" }} }} to the plugins block"
    )]
    None,
}

/// Builds the one KeyManager of the configuration's `plugins` block.
pub async fn build(stanzas: &[PluginStanza]) -> Result<Arc<dyn KeyManager>, KeyManagerError> {
    choose(stanzas)?.open().await
}

/// A KeyManager and its configuration, not opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Keys that end with the process, so each start makes a new CA.
    Memory,
    /// SPIRE's JSON file at `keys_path`.
    Disk { keys_path: PathBuf },
}

/// Reads which KeyManager the configuration wants; touches no key.
pub fn choose(stanzas: &[PluginStanza]) -> Result<Chosen, KeyManagerError> {
    let stanza = at_most_one(stanzas, KIND)?.ok_or(KeyManagerError::None)?;
    let read = built_in(stanza, BUILT_IN, OF_SPIRE)?;
    let configuration = stanza.configuration()?;
    Ok(read(Section::named(&configuration, &stanza.data_name()))?)
}

impl Chosen {
    pub async fn open(self) -> Result<Arc<dyn KeyManager>, KeyManagerError> {
        match self {
            Chosen::Memory => Ok(Arc::new(MemoryKeys::new())),
            Chosen::Disk { keys_path } => Ok(Arc::new(DiskKeys::open(keys_path).await?)),
        }
    }
}

fn memory(section: Section) -> Result<Chosen, SettingsError> {
    section.finish()?;
    Ok(Chosen::Memory)
}

fn disk(section: Section) -> Result<Chosen, SettingsError> {
    let keys_path = section.require_string("keys_path").into();
    section.finish()?;
    Ok(Chosen::Disk { keys_path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use finial_daemon::settings::{parse, plugin_stanzas};

    async fn refusal(text: &str) -> String {
        let file = parse(text, "server.conf").unwrap();
        match build(&plugin_stanzas(&file).unwrap()).await {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn refusals_name_the_plugin_and_what_there_is() {
        let text = refusal("plugins {\n KeyManager \"aws_kms\" { plugin_data { } } }").await;
        assert_eq!(
            text,
            "server.conf:2: plugins: KeyManager \"aws_kms\" of SPIRE is not built into this release of Finial; \
             built in: memory, disk"
        );
        assert!(
            refusal("plugins { KeyManager \"dsik\" { } }").await.contains("\"dsik\" is not known; built in")
        );
        assert!(
            refusal("plugins { KeyManager \"x\" { plugin_cmd = \"/x\" } }").await.contains("external plugin")
        );
        assert!(refusal("plugins { }").await.contains("none is configured"));
        assert!(
            refusal("plugins { KeyManager \"memory\" { enabled = false } }")
                .await
                .contains("none is configured")
        );
        let two = refusal("plugins { KeyManager \"memory\" { } KeyManager \"disk\" { } }").await;
        assert!(two.contains("only one KeyManager"), "{two}");
        assert!(refusal("plugins { KeyManager \"disk\" { plugin_data { } } }").await.contains("keys_path"));
        let unknown =
            refusal("plugins { KeyManager \"memory\" { plugin_data { keys_path = \"x\" } } }").await;
        assert!(unknown.contains("keys_path"), "{unknown}");
    }

    #[tokio::test]
    async fn disk_keys_outlive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let text = format!("plugins {{ KeyManager \"disk\" {{ plugin_data {{ keys_path = {path:?} }} }} }}");
        let stanzas = plugin_stanzas(&parse(&text, "server.conf").unwrap()).unwrap();
        let keys = build(&stanzas).await.unwrap();
        let made = keys.generate("x509-CA-A", finial_daemon::keys::KeyType::EcP256).await.unwrap();
        let again = build(&stanzas).await.unwrap().get("x509-CA-A").await.unwrap().unwrap();
        assert_eq!(made.public_key_der(), again.public_key_der());
    }
}
