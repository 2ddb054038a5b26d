//! Whole configuration files in JSON (RFC 8259), read into the same tree as HCL and with the same positions.

use std::sync::Arc;

use super::escape::{Dialect, read_escape};
use super::lexer::Cursor;
use super::{Block, Item, Key, MAX_DEPTH, Node, Position, SettingsError, Value};

pub(super) fn parse(text: &str, file: &Arc<str>) -> Result<Block, SettingsError> {
    let mut parser = Parser { cursor: Cursor::new(text, file) };
    parser.skip_blank();
    let node = parser.value(0)?;
    parser.skip_blank();
    if parser.cursor.peek().is_some() {
        return Err(parser
            .cursor
            .error(parser.cursor.at(), "there is more text after the end of the JSON object"));
    }
    match node.value {
        Value::Block(block) => Ok(block),
        other => Err(parser
            .cursor
            .error(node.at, format!("the file holds {}, not a JSON object", other.type_name()))),
    }
}

struct Parser<'a> {
    cursor: Cursor<'a>,
}

impl Parser<'_> {
    fn skip_blank(&mut self) {
        self.cursor.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
    }

    fn value(&mut self, depth: usize) -> Result<Node, SettingsError> {
        let at = self.cursor.at();
        if depth >= MAX_DEPTH {
            return Err(self.cursor.error(at, format!("objects and arrays nest more than {MAX_DEPTH} deep")));
        }
        let value = match self.cursor.peek() {
            Some('{') => Value::Block(self.object(at, depth)?),
            Some('[') => Value::List(self.array(at, depth)?),
            Some('"') => Value::String(self.string()?),
            Some('-' | '0'..='9') => Value::Number(self.number(at)?),
            Some('a'..='z') => match self.cursor.take_while(|c| c.is_ascii_alphanumeric()) {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                word => {
                    return Err(self
                        .cursor
                        .error(at, format!("{word} is not JSON; strings are written in quotes")));
                }
            },
            Some(other) => {
                return Err(self.cursor.error(at, format!("a JSON value is expected here, found {other:?}")));
            }
            None => {
                return Err(self
                    .cursor
                    .error(at, "a JSON value is expected here, found the end of the file"));
            }
        };
        Ok(Node { at, value })
    }

    fn object(&mut self, at: Position, depth: usize) -> Result<Block, SettingsError> {
        let mut items = Vec::new();
        self.cursor.next();
        self.skip_blank();
        while self.cursor.peek() != Some('}') {
            let key_at = self.cursor.at();
            if self.cursor.peek() != Some('"') {
                return Err(self.unexpected(
                    at,
                    "a key in quotes is expected",
                    "the object that opens here is not closed",
                ));
            }
            let text = self.string()?;
            self.skip_blank();
            if self.cursor.peek() != Some(':') {
                return Err(self.unexpected(
                    at,
                    "':' is expected",
                    "the object that opens here is not closed",
                ));
            }
            self.cursor.next();
            self.skip_blank();
            let value = self.value(depth + 1)?;
            items.push(Item { keys: vec![Key { text, at: key_at }], value });
            self.separator(at, '}')?;
        }
        self.cursor.next();
        Ok(Block { file: Arc::clone(&self.cursor.file), at, items })
    }

    fn array(&mut self, at: Position, depth: usize) -> Result<Vec<Node>, SettingsError> {
        let mut elements = Vec::new();
        self.cursor.next();
        self.skip_blank();
        while self.cursor.peek() != Some(']') {
            elements.push(self.value(depth + 1)?);
            self.separator(at, ']')?;
        }
        self.cursor.next();
        Ok(elements)
    }

    /// Reads a comma, or stops before the closing character. A comma may stand before it too, as in HCL.
    fn separator(&mut self, opened: Position, close: char) -> Result<(), SettingsError> {
        self.skip_blank();
        match self.cursor.peek() {
            Some(',') => {
                self.cursor.next();
                self.skip_blank();
                Ok(())
            }
            Some(found) if found == close => Ok(()),
            _ => {
                let wanted = format!("',' or '{close}' is expected");
                let unclosed = format!("what opens here has no closing '{close}'");
                Err(self.unexpected(opened, &wanted, &unclosed))
            }
        }
    }

    fn unexpected(&self, opened: Position, wanted: &str, unclosed: &str) -> SettingsError {
        match self.cursor.peek() {
            Some(found) => self.cursor.error(self.cursor.at(), format!("{wanted} here, found {found:?}")),
            None => self.cursor.error(opened, unclosed),
        }
    }

    fn string(&mut self) -> Result<String, SettingsError> {
        let start = self.cursor.at();
        self.cursor.next();
        let mut bytes = Vec::new();
        loop {
            let at = self.cursor.at();
            match self.cursor.next() {
                Some('"') => break,
                Some('\\') => read_escape(&mut self.cursor, Dialect::Json, &mut bytes)
                    .map_err(|text| self.cursor.error(at, text))?,
                Some('\n') | None => {
                    return Err(self.cursor.error(start, "the string that starts here has no closing quote"));
                }
                Some(other) => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.cursor.error(start, "the string is not UTF-8"))
    }

    fn number(&mut self, at: Position) -> Result<String, SettingsError> {
        let text = self.cursor.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
        let digits = text.strip_prefix('-').unwrap_or(text);
        let whole: String = digits.chars().take_while(char::is_ascii_digit).collect();
        let regular = !whole.is_empty() && (whole == "0" || !whole.starts_with('0'));
        let allowed = digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '-' | '+'));
        if regular && allowed && text.parse::<f64>().is_ok_and(f64::is_finite) {
            Ok(text.to_string())
        } else {
            Err(self.cursor.error(at, format!("{text} is not a JSON number")))
        }
    }
}
