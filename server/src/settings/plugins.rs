//! The `plugins` block: how many of each kind, and which of them are built.

use finial_daemon::settings::{Block, PluginStanza, Section, SettingsError, plugin_stanzas};

use super::unbuilt;
use crate::plugins::{at_most_one, key_manager, node_attestor, upstream_authority};

const DATASTORE: &str = "DataStore";

/// SQLite connections that the store opens at most: one writer and its readers. A limit of SPIRE's that lies below would
/// be promised in vain.
const CONNECTIONS: i64 = 9;

/// What the `plugins` block says.
#[derive(Clone, Debug)]
pub struct Plugins {
    pub datastore: DataStore,
    /// Every stanza that is enabled, for the tables of the kinds that have one.
    pub stanzas: Vec<PluginStanza>,
}

/// `DataStore "sql"` with `database_type = "sqlite3"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataStore {
    pub connection_string: String,
    pub disable_migration: bool,
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
        Ok(Plugins { datastore: read_datastore(datastore)?, stanzas })
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

fn read_datastore(stanza: &PluginStanza) -> Result<DataStore, SettingsError> {
    let configuration = stanza.configuration()?;
    let section = Section::named(&configuration, &stanza.data_name());
    if section.is_block("database_type") {
        section.problem("database_type", "aws_postgres and aws_mysql are not built yet; use \"sqlite3\"");
    } else {
        match section.require_string("database_type").as_str() {
            // Nothing: the missing key is noted already.
            "sqlite3" | "" => {}
            known @ ("postgres" | "mysql") => {
                section.problem("database_type", format!("{known:?} is not built yet; use \"sqlite3\""));
            }
            other => section
                .problem("database_type", format!("unsupported database_type {other:?}; use \"sqlite3\"")),
        }
    }
    let connection_string = section.require_string("connection_string");
    for key in ["max_open_conns", "max_idle_conns"] {
        if section.int(key).is_some_and(|most| most != 0 && most < CONNECTIONS) {
            section.problem(
                key,
                format!("this store opens up to {CONNECTIONS} connections; a lower limit is not built yet, remove the key"),
            );
        }
    }
    unbuilt::refuse(
        &section,
        &[
            "ro_connection_string",
            "root_ca_path",
            "client_cert_path",
            "client_key_path",
            "conn_max_lifetime",
            "log_sql",
        ],
    );
    let disable_migration = section.bool("disable_migration").unwrap_or(false);
    section.finish()?;
    Ok(DataStore { connection_string, disable_migration })
}
