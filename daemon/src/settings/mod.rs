//! Configuration files: HCL version 1 and JSON, with a line number for every complaint.
//!
//! [`parse`] turns a text into an ordered tree of [`Block`]s. [`Section`] reads values out of a block with
//! their types, and refuses what it does not know. All problems of a file are reported together.
//!
//! HCL version 1 is the language of SPIRE's configuration (`github.com/hashicorp/hcl` at 1.x): octal numbers,
//! `key = {}` beside `key {}`, labels, heredocs, and whole files in JSON.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

mod duration;
mod escape;
mod expand;
mod hcl;
mod json;
mod lexer;
mod notice;
pub mod plugins;
mod print;
mod section;
#[cfg(test)]
mod tests;

pub use duration::{DurationError, GoDuration};
pub use expand::expand_env;
pub use notice::Notice;
pub use plugins::{PluginStanza, built_in, plugin_stanzas};
pub use section::Section;

/// How deep blocks and lists may nest. SPIRE's deepest file needs seven levels.
pub const MAX_DEPTH: usize = 64;

/// Parses a configuration text: JSON when its first character is `{`, else HCL version 1.
///
/// `file_name` appears in every error, as the operator wrote it. A leading byte order mark is ignored.
pub fn parse(text: &str, file_name: &str) -> Result<Block, SettingsError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let file: Arc<str> = Arc::from(file_name);
    if text.trim_start().starts_with('{') { json::parse(text, &file) } else { hcl::parse(text, &file) }
}

/// Reads and parses a configuration file; with `expand` the environment is substituted first, as SPIRE's
/// `-expandEnv` does. Blocking: for start-up.
pub fn load(path: &Path, expand: bool) -> Result<Block, SettingsError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| {
        SettingsError::whole_file(&name, format!("cannot read the configuration file: {error}"))
    })?;
    let text = String::from_utf8(bytes).map_err(|_| {
        SettingsError::whole_file(&name, "the configuration file is not UTF-8 text".to_string())
    })?;
    if expand {
        parse(&expand_env(&text, |name| std::env::var(name).ok()), &name)
    } else {
        parse(&text, &name)
    }
}

/// A place in a file. Both count from one; a column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// The body between two braces, or a whole file: items in the order they were written.
#[derive(Clone, Debug)]
pub struct Block {
    pub file: Arc<str>,
    /// Where the block opens.
    pub at: Position,
    pub items: Vec<Item>,
}

impl Block {
    /// A block without items, for a stanza that was left out.
    pub fn empty(file: &Arc<str>, at: Position) -> Block {
        Block { file: Arc::clone(file), at, items: Vec::new() }
    }

    /// The items whose first key is `key`, in order.
    pub fn named<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Item> + 'a {
        self.items.iter().filter(move |item| item.name() == key)
    }

    /// The block as HCL text, which parses to an equal block. External plugins are configured with it.
    pub fn to_hcl(&self) -> String {
        print::print(self)
    }
}

/// One `key = value`, `key { ... }` or `key "label" { ... }`.
#[derive(Clone, Debug)]
pub struct Item {
    /// The key and its labels; never empty. Only an item with a block has more than one.
    pub keys: Vec<Key>,
    pub value: Node,
}

impl Item {
    /// The first key.
    pub fn name(&self) -> &str {
        self.keys.first().map_or("", |key| key.text.as_str())
    }

    /// Where the first key stands.
    pub fn at(&self) -> Position {
        self.keys.first().map_or(self.value.at, |key| key.at)
    }
}

/// A key or label, unquoted.
#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub at: Position,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

/// What a key can hold.
#[derive(Clone, Debug)]
pub enum Value {
    String(String),
    /// A number as written; it has been checked to be one. See [`Value::integer`] and [`Value::float`].
    Number(String),
    Bool(bool),
    /// JSON only; reads as a key that is absent.
    Null,
    List(Vec<Node>),
    Block(Block),
}

impl Value {
    /// What to call the value in an error.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Number(_) => "a number",
            Value::Bool(_) => "a boolean",
            Value::Null => "null",
            Value::List(_) => "a list",
            Value::Block(_) => "a block",
        }
    }

    /// A number without fraction; hexadecimal (`0x1f`) and octal (`0600`) as in Go.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Value::Number(text) => lexer::integer(text),
            _ => None,
        }
    }

    /// Any number.
    pub fn float(&self) -> Option<f64> {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "a float was asked for")]
            Value::Number(text) => lexer::integer(text).map(|n| n as f64).or_else(|| text.parse().ok()),
            _ => None,
        }
    }
}

/// One complaint about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: Arc<str>,
    /// Absent when the problem is the file as a whole.
    pub at: Option<Position>,
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(out, "{}:{}: {}", self.file, at.line, self.text),
            None => write!(out, "{}: {}", self.file, self.text),
        }
    }
}

/// Everything found wrong with a file: at least one [`Problem`], in the order of their lines.
/// Displays each on a line of its own as `file:line: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    problems: Vec<Problem>,
}

impl SettingsError {
    /// A problem of the file as a whole.
    pub fn whole_file(file_name: &str, text: String) -> SettingsError {
        SettingsError::one(Problem { file: Arc::from(file_name), at: None, text })
    }

    /// One problem at one place.
    pub fn at(file: &Arc<str>, at: Position, text: impl Into<String>) -> SettingsError {
        SettingsError::one(Problem { file: Arc::clone(file), at: Some(at), text: text.into() })
    }

    /// The problems, in the order of their lines.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn one(problem: Problem) -> SettingsError {
        SettingsError { problems: vec![problem] }
    }

    /// `Ok` when the list is empty.
    fn from_list(mut problems: Vec<Problem>) -> Result<(), SettingsError> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by(|a, b| (a.at, &a.text).cmp(&(b.at, &b.text)));
        problems.dedup();
        Err(SettingsError { problems })
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}
