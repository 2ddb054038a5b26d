//! The `plugins` block: which plugins to use, and what each is configured with.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::section::labels;
use super::{Block, Position, Problem, Section, SettingsError, Value, load};

/// One `Kind "name" { ... }` of the `plugins` block.
#[derive(Clone)]
pub struct PluginStanza {
    /// `KeyManager`, `NodeAttestor`, ...
    pub kind: String,
    /// `disk`, `join_token`, ...
    pub name: String,
    /// False when the stanza says `enabled = false`.
    pub enabled: bool,
    /// The program of an external plugin; `None` for a built-in.
    pub cmd: Option<String>,
    /// The program's arguments.
    pub args: Vec<String>,
    /// The SHA-256 of the program, in hexadecimal, as written: checked when the program is started.
    pub checksum: Option<String>,
    /// `plugin_data`; empty when there is none.
    pub data: Block,
    /// `plugin_data_file`, which excludes `plugin_data`.
    pub data_file: Option<PathBuf>,
    /// Where the stanza stands.
    pub at: Position,
}

impl PluginStanza {
    /// The block to configure the plugin with: `plugin_data`, or what `plugin_data_file` holds now. Blocking
    /// when there is a file.
    pub fn configuration(&self) -> Result<Cow<'_, Block>, SettingsError> {
        match &self.data_file {
            Some(path) => load(path, false).map(Cow::Owned),
            None => Ok(Cow::Borrowed(&self.data)),
        }
    }

    /// What errors call the plugin's configuration.
    pub fn data_name(&self) -> String {
        format!("plugin_data of {} {:?}", self.kind, self.name)
    }
}

/// Says which plugins are in use, a line each.
pub fn log_loaded(stanzas: &[PluginStanza]) {
    for stanza in stanzas.iter().filter(|stanza| stanza.enabled) {
        tracing::info!(
            external = stanza.cmd.is_some(),
            plugin_name = stanza.name,
            plugin_type = stanza.kind,
            subsystem_name = "catalog",
            "Plugin loaded"
        );
    }
}

/// The stanzas of a `plugins` block in the order they were written, disabled ones included.
///
/// `file` is the top of the configuration file. Refuses a missing `plugins` block, the same kind and name
/// twice, unknown keys, and `plugin_data` beside `plugin_data_file`.
pub fn plugin_stanzas(file: &Block) -> Result<Vec<PluginStanza>, SettingsError> {
    let mut problems = Vec::new();
    let mut stanzas: Vec<PluginStanza> = Vec::new();
    let note = |problems: &mut Vec<Problem>, at: Position, text: String| {
        problems.push(Problem { file: Arc::clone(&file.file), at: Some(at), text });
    };
    let mut present = false;
    for plugins in file.named("plugins") {
        present = true;
        for (kind, of_kind) in labels(plugins, file) {
            let Value::Block(of_kind) = &of_kind.value else {
                note(&mut problems, of_kind.at, format!("plugins: {kind} takes a name and a block"));
                continue;
            };
            for item in &of_kind.items {
                for (name, at, body) in named_bodies(item, of_kind) {
                    match body {
                        None => note(&mut problems, at, format!("plugins: {kind} {name:?} must be a block")),
                        Some(body) => match read_stanza(&kind, &name, at, &body) {
                            Err(error) => problems.extend(error.problems),
                            Ok(stanza) => {
                                match stanzas.iter().find(|other| other.kind == kind && other.name == name) {
                                    Some(first) => note(
                                        &mut problems,
                                        at,
                                        format!(
                                            "plugins: {kind} {name:?} is configured twice; it is first on line {}",
                                            first.at.line
                                        ),
                                    ),
                                    None => stanzas.push(stanza),
                                }
                            }
                        },
                    }
                }
            }
        }
    }
    if !present {
        note(&mut problems, file.at, "the \"plugins\" block is missing".to_string());
    }
    SettingsError::from_list(problems)?;
    Ok(stanzas)
}

/// What makes the plugin that `stanza` names, out of the table of its kind. `of_spire` are the plugins of this kind that SPIRE
/// has beside those.
///
/// # Errors
///
/// Refuses external plugins, those of SPIRE that are not in the table, and unknown ones, at the stanza's place and with the
/// list of what there is: a program that goes on without one is another program than the operator asked for.
pub fn built_in<M: Copy>(
    stanza: &PluginStanza,
    table: &[(&'static str, M)],
    of_spire: &[&str],
) -> Result<M, SettingsError> {
    let (kind, name) = (&stanza.kind, &stanza.name);
    let refused = |text: String| Err(SettingsError::at(&stanza.data.file, stanza.at, text));
    let list = table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if stanza.cmd.is_some() {
        return refused(format!(
            "plugins: {kind} {name:?} is an external plugin (plugin_cmd), and external plugins of this kind are not \
             supported yet; built in: {list}"
        ));
    }
    match table.iter().find(|(known, _)| known == name) {
        Some((_, make)) => Ok(*make),
        None if of_spire.contains(&name.as_str()) => refused(format!(
            "plugins: {kind} {name:?} of SPIRE is not built into this release of Finial; built in: {list}"
        )),
        None => refused(format!("plugins: {kind} {name:?} is not known; built in: {list}")),
    }
}

/// Without what the plugin is configured with, which may hold secrets.
impl fmt::Debug for PluginStanza {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} (line {})", self.kind, self.name, self.at.line)
    }
}

/// The plugin bodies under one name: one, or several when JSON gives a list. `None` for what is no block.
fn named_bodies(item: &super::Item, parent: &Block) -> Vec<(String, Position, Option<Block>)> {
    // As if under a key of its own, so that `name { }`, `name plugin_data { }` and lists read alike.
    let at = item.at();
    let holder = super::Item {
        keys: vec![super::Key { text: String::new(), at }],
        value: super::Node {
            at,
            value: Value::Block(Block {
                file: Arc::clone(&parent.file),
                at: parent.at,
                items: vec![item.clone()],
            }),
        },
    };
    labels(&holder, parent)
        .into_iter()
        .map(|(name, node)| match node.value {
            Value::Block(block) => (name, at, Some(block)),
            Value::Null => (name, at, Some(Block::empty(&parent.file, at))),
            _ => (name, at, None),
        })
        .collect()
}

fn read_stanza(kind: &str, name: &str, at: Position, body: &Block) -> Result<PluginStanza, SettingsError> {
    let section = Section::named(body, &format!("{kind} {name:?}"));
    let stanza = PluginStanza {
        kind: kind.to_string(),
        name: name.to_string(),
        enabled: section.bool("enabled").unwrap_or(true),
        cmd: section.string("plugin_cmd").filter(|cmd| !cmd.is_empty()),
        args: section.list("plugin_args").unwrap_or_default(),
        checksum: section.string("plugin_checksum").filter(|checksum| !checksum.is_empty()),
        data: section.block("plugin_data").map_or_else(
            || Block::empty(&body.file, at),
            |data| {
                data.allow_unknown();
                data.source().clone()
            },
        ),
        data_file: section.string("plugin_data_file").map(PathBuf::from),
        at,
    };
    if section.has("plugin_data") && section.has("plugin_data_file") {
        section.problem(
            "plugin_data_file",
            "only one of plugin_data and plugin_data_file may be set; remove one",
        );
    }
    if name.is_empty() {
        section.problem_here(format!("{kind}: the plugin has no name"));
    }
    section.finish()?;
    Ok(stanza)
}
