//! The `plugins` block: how many of each kind, and which of them are built.

use finial_daemon::settings::{Block, PluginStanza, SettingsError, plugin_stanzas};

use super::datastore;
use crate::plugins::{at_most_one, key_manager, node_attestor, upstream_authority};
use crate::store::DatabaseSettings;

const DATASTORE: &str = "DataStore";

/// What the `plugins` block says.
#[derive(Clone, Debug)]
pub struct Plugins {
    pub datastore: DatabaseSettings,
    /// Every other stanza that is enabled, for the tables of the kinds that have one.
    pub stanzas: Vec<PluginStanza>,
}

/// Kinds with a table of their own in `crate::plugins`, which counts them and refuses what is not built.
const TABLES: [&str; 3] = [key_manager::KIND, node_attestor::KIND, upstream_authority::KIND];
/// Kinds of SPIRE that are not built at all.
const UNBUILT: [&str; 3] = ["BundlePublisher", "CredentialComposer", "Notifier"];

impl Plugins {
    pub(super) fn read(file: &Block) -> Result<Plugins, SettingsError> {
        let mut stanzas = plugin_stanzas(file)?;
        stanzas.retain(|stanza| stanza.enabled);
        for stanza in &stanzas {
            check_kind(file, stanza)?;
        }
        let Some(datastore) = at_most_one(&stanzas, DATASTORE)? else {
            let at = file.named("plugins").next().map_or(file.at, |plugins| plugins.at());
            let text = "the plugins block has no DataStore; exactly one must be configured and enabled";
            return Err(SettingsError::at(&file.file, at, text));
        };
        let datastore = datastore::read(datastore)?;
        // It may hold passwords, and nobody else reads it.
        stanzas.retain(|stanza| stanza.kind != DATASTORE);
        Ok(Plugins { datastore, stanzas })
    }
}

fn check_kind(file: &Block, stanza: &PluginStanza) -> Result<(), SettingsError> {
    let PluginStanza { kind, name, .. } = stanza;
    let text = if kind == DATASTORE && (name != "sql" || stanza.cmd.is_some()) {
        format!("DataStore {name:?}: only the built-in \"sql\" plugin is supported")
    } else if kind == node_attestor::KIND && name == node_attestor::join_token::NAME && stanza.cmd.is_some() {
        "the built-in join_token node attestor cannot be overridden by an external plugin".to_owned()
    } else if UNBUILT.contains(&kind.as_str()) {
        format!(
            "{kind} {name:?}: plugins of the kind {kind} are not built yet; remove the plugin, or stay with SPIRE until they \
             are built"
        )
    } else if kind != DATASTORE && !TABLES.contains(&kind.as_str()) {
        format!(
            "unsupported plugin type {kind:?}; it must be one of BundlePublisher, CredentialComposer, DataStore, KeyManager, \
             NodeAttestor, Notifier, UpstreamAuthority"
        )
    } else {
        return Ok(());
    };
    Err(SettingsError::at(&file.file, stanza.at, text))
}
