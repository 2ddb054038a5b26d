//! What can be exchanged: for each kind a trait, an explicit table of what is built in, and one file for each of those.
//!
//! A plugin that is configured but not built in is refused by name at start, with the list of what there is: a server that
//! silently goes on without one would be a different server than the operator asked for.

pub mod key_manager;
pub mod node_attestor;
pub mod upstream_authority;

use finial_daemon::settings::{PluginStanza, SettingsError};

/// The one stanza of `kind` that is enabled, if any. Two are refused.
pub(crate) fn at_most_one<'a>(
    stanzas: &'a [PluginStanza],
    kind: &str,
) -> Result<Option<&'a PluginStanza>, SettingsError> {
    let mut enabled = stanzas.iter().filter(|stanza| stanza.kind == kind && stanza.enabled);
    let first = enabled.next();
    match (first, enabled.next()) {
        (Some(first), Some(second)) => Err(SettingsError::at(
            &second.data.file,
            second.at,
            format!(
                "plugins: there can be only one {kind}, but both {:?} (line {}) and {:?} are enabled; remove one or set \
                 enabled = false",
                first.name, first.at.line, second.name
            ),
        )),
        (first, _) => Ok(first),
    }
}
