//! Reading typed values out of a block, strictly.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::{Block, GoDuration, Item, Node, Notice, Position, Problem, SettingsError, Value, lexer};

/// A block being read. Every getter notes its key as known and notes what is wrong with the value; nothing
/// stops at the first problem. [`Section::finish`], called once on the section made by [`Section::new`],
/// reports all of them, together with every key of this block and of the blocks read out of it that no
/// getter asked for.
///
/// Getters return `None` both for an absent key and for a wrong value, so a caller builds its settings from
/// defaults and throws them away when `finish` fails:
///
/// ```
/// # use finial_daemon::settings::{parse, Section, SettingsError};
/// # fn main() -> Result<(), SettingsError> {
/// let file = parse("server { bind_port = 8081 }", "server.conf")?;
/// let top = Section::new(&file);
/// let server = top.require_block("server");
/// let port = server.int("bind_port").unwrap_or(8081);
/// top.finish()?;
/// # assert_eq!(port, 8081);
/// # Ok(())
/// # }
/// ```
///
/// Types are weak where SPIRE's are: a quoted number is a number and a number is a string; a quoted boolean
/// is a boolean.
pub struct Section {
    block: Rc<Block>,
    name: String,
    reading: Rc<RefCell<Reading>>,
    /// This block's place in `Reading::visited`.
    index: usize,
}

/// What is shared by all sections of one file.
#[derive(Default)]
struct Reading {
    problems: Vec<Problem>,
    visited: Vec<Visited>,
}

struct Visited {
    block: Rc<Block>,
    name: String,
    /// Keys asked for; true when they may appear more than once.
    known: BTreeMap<String, bool>,
    allow_unknown: bool,
}

impl Section {
    /// Starts reading a whole file.
    pub fn new(block: &Block) -> Section {
        Section::named(block, "")
    }

    /// Starts reading a block that errors shall call `name`, such as `plugin_data of KeyManager "disk"`.
    pub fn named(block: &Block, name: &str) -> Section {
        Section::visit(Rc::new(block.clone()), name.to_string(), Rc::default())
    }

    /// Does not complain about keys of this block that no getter asked for. (Blocks read out of it do.)
    pub fn allow_unknown(&self) {
        self.with_visited(|visited| visited.allow_unknown = true);
    }

    /// Accepts keys of this block that no getter has asked for by now, as SPIRE does where this is called, and says so in
    /// `warnings`.
    pub fn warn_of_unknown(&self, warnings: &mut Vec<Notice>) {
        self.allow_unknown();
        let reading = self.reading.borrow();
        let Some(visited) = reading.visited.get(self.index) else { return };
        for item in &self.block.items {
            let key = item.name();
            if !visited.known.contains_key(key) {
                let (file, line) = (&self.block.file, item.at().line);
                let mut text = format!("{file}:{line}: unknown key {key:?}{} has no effect", self.place());
                if let Some(near) = nearest(key, visited.known.keys()) {
                    text.push_str(&format!("; did you mean {near:?}?"));
                }
                warnings.push(Notice::Warning(text));
            }
        }
    }

    /// Ends the reading: all problems of this block and of those read out of it.
    pub fn finish(self) -> Result<(), SettingsError> {
        let mut reading = self.reading.borrow_mut();
        let mut problems = std::mem::take(&mut reading.problems);
        for visited in &reading.visited {
            visited.check(&mut problems);
        }
        SettingsError::from_list(problems)
    }

    /// What errors call this block.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The block being read.
    pub fn source(&self) -> &Block {
        &self.block
    }

    /// Whether the key is there, with any value but JSON's null. Counts as asking for it.
    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Whether the key holds a block, with or without a label. Counts as asking for it.
    pub fn is_block(&self, key: &str) -> bool {
        self.know(key, true);
        self.block.named(key).any(|item| matches!(item.value.value, Value::Block(_)))
    }

    /// Notes a problem of the key's value that only the caller can see.
    pub fn problem(&self, key: &str, text: impl fmt::Display) {
        let at = self.block.named(key).next().map_or(self.block.at, |item| item.value.at);
        self.note(at, format!("{key}: {text}"));
    }

    /// Notes that a key is missing, or any other problem of the block as a whole.
    pub fn problem_here(&self, text: impl Into<String>) {
        self.note(self.block.at, text.into());
    }

    pub fn string(&self, key: &str) -> Option<String> {
        let node = self.find(key)?;
        string_of(&node.value).or_else(|| self.wrong(key, "a string", &node))
    }

    /// A string that must be there and not be empty; "" with a problem noted otherwise.
    pub fn require_string(&self, key: &str) -> String {
        let noted = self.noted();
        let text = self.string(key).unwrap_or_default();
        if text.is_empty() && self.noted() == noted {
            self.missing(key);
        }
        text
    }

    pub fn int(&self, key: &str) -> Option<i64> {
        let node = self.find(key)?;
        let number = match &node.value {
            Value::String(text) => lexer::integer(text),
            other => other.integer(),
        };
        number.or_else(|| self.wrong(key, "a whole number", &node))
    }

    /// A number that the type can hold, such as a `u16` for a port.
    pub fn number<T: TryFrom<i64>>(&self, key: &str) -> Option<T> {
        let number = self.int(key)?;
        let converted = T::try_from(number).ok();
        if converted.is_none() {
            self.problem(key, format!("{number} is out of range"));
        }
        converted
    }

    pub fn bool(&self, key: &str) -> Option<bool> {
        let node = self.find(key)?;
        let value = match &node.value {
            Value::Bool(value) => Some(*value),
            Value::String(text) | Value::Number(text) => match text.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
                _ => None,
            },
            _ => None,
        };
        value.or_else(|| self.wrong(key, "true or false", &node))
    }

    /// A Go duration, as a string: "1h30m". The empty string reads as an absent key.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        let node = self.find(key)?;
        match &node.value {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => match text.parse::<GoDuration>() {
                Ok(duration) => Some(duration.0),
                Err(error) => {
                    self.note(node.at, format!("{key}: {error}"));
                    None
                }
            },
            _ => self.wrong(key, "a duration in quotes such as \"1h30m\"", &node),
        }
    }

    /// A string that the type can parse; its error becomes the problem. The empty string reads as absent.
    pub fn parsed<T>(&self, key: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let text = self.string(key).filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, error);
                None
            }
        }
    }

    /// A list of strings.
    pub fn list(&self, key: &str) -> Option<Vec<String>> {
        let node = self.find(key)?;
        let Value::List(elements) = &node.value else {
            return self.wrong(key, "a list of strings", &node);
        };
        let mut strings = Vec::with_capacity(elements.len());
        for element in elements {
            match string_of(&element.value) {
                Some(text) => strings.push(text),
                None => return self.wrong(key, "a list of strings", element),
            }
        }
        Some(strings)
    }

    /// A block whose keys are free and whose values are strings, in order.
    pub fn string_map(&self, key: &str) -> Option<Vec<(String, String)>> {
        let section = self.block(key)?;
        let mut pairs = Vec::new();
        for item in &section.block.items {
            if let Some(value) = section.string(item.name()) {
                pairs.push((item.name().to_string(), value));
            }
        }
        Some(pairs)
    }

    /// A block that may appear once.
    pub fn block(&self, key: &str) -> Option<Section> {
        let node = self.find(key)?;
        if let Value::Block(block) = &node.value {
            return Some(self.child(block, key));
        }
        // JSON written for HCL may wrap a single block in a list.
        if let Value::List(elements) = &node.value
            && let [Node { value: Value::Block(block), .. }] = elements.as_slice()
        {
            return Some(self.child(block, key));
        }
        self.wrong(key, "a block", &node)
    }

    /// A block that must be there; an empty one with a problem noted otherwise.
    pub fn require_block(&self, key: &str) -> Section {
        let noted = self.noted();
        self.block(key).unwrap_or_else(|| {
            if self.noted() == noted {
                self.note(self.block.at, format!("the {key:?} block is missing{}", self.place()));
            }
            // What is missing in a missing block is not worth a line each: it is read on its own.
            let empty = Block::empty(&self.block.file, self.block.at);
            Section::visit(Rc::new(empty), key.to_string(), Rc::default())
        })
    }

    /// A block that may appear several times, or be given as a list of blocks.
    pub fn blocks(&self, key: &str) -> Vec<Section> {
        self.know(key, true);
        let mut sections = Vec::new();
        for item in self.block.named(key) {
            for node in flatten(&item.value) {
                match &node.value {
                    Value::Block(block) if item.keys.len() == 1 => sections.push(self.child(block, key)),
                    Value::Null => {}
                    _ if item.keys.len() > 1 => self.note(item.at(), format!("{key}: takes no label")),
                    _ => {
                        let _: Option<()> = self.wrong(key, "a block", node);
                    }
                }
            }
        }
        sections
    }

    /// Blocks with a label: `key "label" { ... }`, or the same as `key { label { ... } }` and in JSON. In the
    /// order they were written; the same label may come twice.
    pub fn labelled(&self, key: &str) -> Vec<(String, Section)> {
        self.know(key, true);
        let mut found = Vec::new();
        for item in self.block.named(key) {
            for (label, node) in labels(item, &self.block) {
                match &node.value {
                    Value::Block(block) => {
                        let section = self.child(block, &format!("{key} {label:?}"));
                        found.push((label, section));
                    }
                    Value::Null => {}
                    other => {
                        let text = format!("{key}: {label:?} must be a block, found {}", describe(other));
                        self.note(node.at, text);
                    }
                }
            }
            if flatten(&item.value).iter().any(|node| !matches!(node.value, Value::Block(_) | Value::Null)) {
                let _: Option<()> = self.wrong(key, "a block with a label", &item.value);
            }
        }
        found
    }

    fn visit(block: Rc<Block>, name: String, reading: Rc<RefCell<Reading>>) -> Section {
        let index = {
            let mut reading = reading.borrow_mut();
            reading.visited.push(Visited {
                block: Rc::clone(&block),
                name: name.clone(),
                known: BTreeMap::new(),
                allow_unknown: false,
            });
            reading.visited.len() - 1
        };
        Section { block, name, reading, index }
    }

    fn child(&self, block: &Block, key: &str) -> Section {
        let name = if self.name.is_empty() { key.to_string() } else { format!("{}.{key}", self.name) };
        Section::visit(Rc::new(block.clone()), name, Rc::clone(&self.reading))
    }

    fn with_visited(&self, change: impl FnOnce(&mut Visited)) {
        if let Some(visited) = self.reading.borrow_mut().visited.get_mut(self.index) {
            change(visited);
        }
    }

    fn know(&self, key: &str, repeatable: bool) {
        self.with_visited(|visited| {
            let entry = visited.known.entry(key.to_string()).or_default();
            *entry = *entry || repeatable;
        });
    }

    /// The value of a key that may appear once. `key "label" {}` counts as a block that holds a block.
    fn find(&self, key: &str) -> Option<Node> {
        self.know(key, false);
        let item = self.block.named(key).next()?;
        match &item.value.value {
            Value::Null => None,
            _ if item.keys.len() > 1 => Some(unlabelled(item, &self.block)),
            _ => Some(item.value.clone()),
        }
    }

    fn wrong<T>(&self, key: &str, expected: &str, node: &Node) -> Option<T> {
        self.note(node.at, format!("{key} must be {expected}, found {}", describe(&node.value)));
        None
    }

    fn missing(&self, key: &str) {
        let at = self.block.named(key).next().map_or(self.block.at, Item::at);
        self.note(at, format!("{key:?} must be set{}", self.place()));
    }

    fn place(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!(" in the {} block", self.name) }
    }

    fn note(&self, at: Position, text: String) {
        let file = Arc::clone(&self.block.file);
        self.reading.borrow_mut().problems.push(Problem { file, at: Some(at), text });
    }

    fn noted(&self) -> usize {
        self.reading.borrow().problems.len()
    }
}

impl Visited {
    fn check(&self, problems: &mut Vec<Problem>) {
        let place = if self.name.is_empty() {
            "at the top of the file".to_string()
        } else {
            format!("in {} block", self.name)
        };
        let mut note = |at: Position, text: String| {
            problems.push(Problem { file: Arc::clone(&self.block.file), at: Some(at), text });
        };
        let mut seen: BTreeMap<&str, Position> = BTreeMap::new();
        for item in &self.block.items {
            let key = item.name();
            match self.known.get(key) {
                Some(true) => {}
                Some(false) => {
                    if let Some(first) = seen.insert(key, item.at()) {
                        note(
                            item.at(),
                            format!("{key:?} is set twice {place}; it is first set on line {}", first.line),
                        );
                    }
                }
                None if self.allow_unknown => {}
                None => {
                    let mut text = format!("unknown key {key:?} {place}");
                    if let Some(near) = nearest(key, self.known.keys()) {
                        text.push_str(&format!("; did you mean {near:?}?"));
                    }
                    note(item.at(), text);
                }
            }
        }
    }
}

/// A value for an error; a string only when it is short, since a long one may be a secret.
fn describe(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() <= 40 => format!("the string {text:?}"),
        Value::Number(text) => format!("the number {text}"),
        other => other.type_name().to_string(),
    }
}

fn string_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) | Value::Number(text) => Some(text.clone()),
        _ => None,
    }
}

/// The elements of a list, or the value itself.
pub(super) fn flatten(node: &Node) -> Vec<&Node> {
    match &node.value {
        Value::List(elements) => elements.iter().flat_map(flatten).collect(),
        _ => vec![node],
    }
}

/// An item's labelled values: what `key` holds, by the key one level further down.
pub(super) fn labels(item: &Item, parent: &Block) -> Vec<(String, Node)> {
    let mut found = Vec::new();
    let holder = unlabelled(item, parent);
    for node in flatten(&holder) {
        let Value::Block(block) = &node.value else {
            continue;
        };
        for inner in &block.items {
            let value = unlabelled(inner, block);
            for element in flatten(&value) {
                found.push((inner.name().to_string(), element.clone()));
            }
        }
    }
    found
}

/// The value of an item with the labels turned into nested blocks.
fn unlabelled(item: &Item, parent: &Block) -> Node {
    match item.keys.split_first() {
        Some((_, rest)) if !rest.is_empty() => {
            let inner = Item { keys: rest.to_vec(), value: item.value.clone() };
            let at = item.at();
            let block = Block { file: Arc::clone(&parent.file), at, items: vec![inner] };
            Node { at, value: Value::Block(block) }
        }
        _ => item.value.clone(),
    }
}

/// The known key that a misspelt one most likely stands for.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let length = key.chars().count();
    let limit = (length / 3).max(1).min(length.saturating_sub(1));
    known
        .map(|candidate| (distance(&plain(key), &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate.as_str())
}

/// How many letters must be added, dropped, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let width = b.len() + 1;
    let mut before: Vec<usize> = vec![0; width];
    let mut above: Vec<usize> = (0..width).collect();
    for (row, x) in a.iter().enumerate() {
        let mut current = vec![row + 1; width];
        for (column, y) in b.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&above, column + 1) + 1)
                .min(at(&current, column) + 1)
                .min(at(&above, column) + usize::from(x != y));
            if row > 0 && column > 0 && Some(x) == b.get(column - 1) && a.get(row - 1) == Some(y) {
                best = best.min(at(&before, column - 1) + 1);
            }
            if let Some(cell) = current.get_mut(column + 1) {
                *cell = best;
            }
        }
        before = std::mem::replace(&mut above, current);
    }
    above.last().copied().unwrap_or(0)
}
