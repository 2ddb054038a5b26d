//! `agent_path_template`: the part of Go's `text/template` and of its companion library sprig that SPIRE offers to
//! write the path of an agent's SPIFFE ID, such as `/{{ .PluginName }}/{{ .Subject.CommonName | lower }}`.
//!
//! A key that the data has not is an error, as in SPIRE, and never becomes `<no value>` in an identity. The data are
//! plain values: methods of Go types (`.NotAfter.Unix`) do not exist.

mod eval;
mod format;
mod functions;
mod parse;
mod tokens;
mod value;

use std::collections::HashMap;

use parse::Node;
use value::Value;

/// The greatest result, and the greatest value on the way to it, in bytes. A SPIFFE ID takes 2,048.
const MOST_BYTES: usize = 64 * 1024;

/// A template that was read and can be rendered.
#[derive(Debug, Clone)]
pub struct PathTemplate {
    main: Vec<Node>,
    /// From `define` and `block`.
    named: HashMap<String, Vec<Node>>,
}

/// Why there is no path. Positions are in characters, from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("template: agent-path:{line}: {message}")]
    Unreadable { line: usize, message: String },
    #[error("template: agent-path:{line}:{column}: executing \"agent-path\" at <{at}>: {message}")]
    Failed { line: usize, column: usize, at: String, message: String },
}

impl PathTemplate {
    /// Reads a template. Functions that it calls must be known.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Unreadable`], with the line.
    pub fn parse(text: &str) -> Result<PathTemplate, TemplateError> {
        parse::template(text)
    }

    /// The text of the template for `data`, an object with one member for each field.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Failed`] for a field that is not in the data, a function called in a wrong way, `fail`, and a
    /// result of more than 64 KiB.
    pub fn render(&self, data: &serde_json::Value) -> Result<String, TemplateError> {
        eval::render(&self.main, &self.named, Value::from(data))
    }
}

#[cfg(test)]
mod tests;
