//! HCL version 1 tokens, and the cursor that the JSON reader shares.

use std::sync::Arc;

use super::escape::{Dialect, read_escape};
use super::{Position, SettingsError};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Word(String),
    Text(String),
    Number(String),
    Bool(bool),
    Assign,
    Comma,
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    End,
}

impl Token {
    pub(super) fn describe(&self) -> String {
        match self {
            Token::Word(word) => format!("the word {word}"),
            Token::Text(_) => "a string".to_string(),
            Token::Number(text) => format!("the number {text}"),
            Token::Bool(value) => format!("{value}"),
            Token::Assign => "'='".to_string(),
            Token::Comma => "','".to_string(),
            Token::OpenBrace => "'{'".to_string(),
            Token::CloseBrace => "'}'".to_string(),
            Token::OpenBracket => "'['".to_string(),
            Token::CloseBracket => "']'".to_string(),
            Token::End => "the end of the file".to_string(),
        }
    }
}

/// A token written as a number, as HCL 1 reads it: `0x` hexadecimal, a leading zero octal. `None` for floats
/// and for what does not fit in 64 bits.
pub(super) fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, digits.get(2..)?),
        [b'0', _, ..] => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if digits.is_empty() || digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// Reads characters and knows where it is.
pub(super) struct Cursor<'a> {
    rest: &'a str,
    at: Position,
    pub(super) file: Arc<str>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str, file: &Arc<str>) -> Cursor<'a> {
        Cursor { rest: text, at: Position { line: 1, column: 1 }, file: Arc::clone(file) }
    }

    pub(super) fn at(&self) -> Position {
        self.at
    }

    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.rest = self.rest.get(next.len_utf8()..).unwrap_or("");
        if next == '\n' {
            self.at = Position { line: self.at.line.saturating_add(1), column: 1 };
        } else {
            self.at.column = self.at.column.saturating_add(1);
        }
        Some(next)
    }

    pub(super) fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let start = self.rest;
        while self.peek().is_some_and(&keep) {
            self.next();
        }
        let length = start.len() - self.rest.len();
        start.get(..length).unwrap_or("")
    }

    pub(super) fn error(&self, at: Position, text: impl Into<String>) -> SettingsError {
        SettingsError::at(&self.file, at, text)
    }
}

/// The tokens of an HCL text, one at a time, without comments.
pub(super) struct Lexer<'a> {
    pub(super) cursor: Cursor<'a>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, file: &Arc<str>) -> Lexer<'a> {
        Lexer { cursor: Cursor::new(text, file) }
    }

    pub(super) fn token(&mut self) -> Result<(Token, Position), SettingsError> {
        self.skip_blank()?;
        let at = self.cursor.at();
        let Some(first) = self.cursor.peek() else {
            return Ok((Token::End, at));
        };
        let token = match first {
            '"' => {
                self.cursor.next();
                Token::Text(self.quoted(at)?)
            }
            '<' => Token::Text(self.heredoc(at)?),
            '-' | '.' | '0'..='9' => Token::Number(self.number(at)?),
            _ if is_letter(first) => {
                match self.cursor.take_while(|c| is_letter(c) || c.is_numeric() || c == '-' || c == '.') {
                    "true" => Token::Bool(true),
                    "false" => Token::Bool(false),
                    word => Token::Word(word.to_string()),
                }
            }
            _ => {
                self.cursor.next();
                match first {
                    '=' => Token::Assign,
                    ',' => Token::Comma,
                    '{' => Token::OpenBrace,
                    '}' => Token::CloseBrace,
                    '[' => Token::OpenBracket,
                    ']' => Token::CloseBracket,
                    '\'' => return Err(self.cursor.error(at, "strings are written in double quotes")),
                    other => return Err(self.cursor.error(at, format!("unexpected character {other:?}"))),
                }
            }
        };
        Ok((token, at))
    }

    fn skip_blank(&mut self) -> Result<(), SettingsError> {
        loop {
            self.cursor.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            let at = self.cursor.at();
            let rest = self.cursor.rest();
            if rest.starts_with('#') || rest.starts_with("//") {
                self.cursor.take_while(|c| c != '\n');
            } else if rest.starts_with("/*") {
                self.cursor.next();
                self.cursor.next();
                while !self.cursor.rest().starts_with("*/") {
                    if self.cursor.next().is_none() {
                        return Err(self.cursor.error(at, "the comment that starts here has no closing */"));
                    }
                }
                self.cursor.next();
                self.cursor.next();
            } else {
                return Ok(());
            }
        }
    }

    /// The inside of a quoted string, the opening quote being read already. What stands between `${` and its
    /// closing brace is kept as written, quotes and line breaks included.
    fn quoted(&mut self, start: Position) -> Result<String, SettingsError> {
        let unclosed =
            |cursor: &Cursor<'_>| cursor.error(start, "the string that starts here has no closing quote");
        let mut bytes = Vec::new();
        let mut depth = 0_usize;
        loop {
            let at = self.cursor.at();
            let Some(next) = self.cursor.next() else {
                return Err(unclosed(&self.cursor));
            };
            match next {
                '"' if depth == 0 => break,
                '\n' if depth == 0 => return Err(unclosed(&self.cursor)),
                '\0' => return Err(self.cursor.error(at, "unexpected null character")),
                '\\' if depth == 0 => {
                    read_escape(&mut self.cursor, Dialect::Hcl, &mut bytes)
                        .map_err(|text| self.cursor.error(at, text))?;
                    continue;
                }
                '\\' => {
                    bytes.push(b'\\');
                    let Some(escaped) = self.cursor.next() else {
                        return Err(unclosed(&self.cursor));
                    };
                    push(&mut bytes, escaped);
                    continue;
                }
                '$' if depth == 0 && self.cursor.peek() == Some('{') => {
                    self.cursor.next();
                    bytes.extend_from_slice(b"${");
                    depth = 1;
                    continue;
                }
                '{' if depth > 0 => depth += 1,
                '}' if depth > 0 => depth -= 1,
                _ => {}
            }
            push(&mut bytes, next);
        }
        String::from_utf8(bytes)
            .map_err(|_| self.cursor.error(start, "the escapes of this string are not UTF-8"))
    }

    /// `<<NAME` up to a line that holds only NAME. With `<<-NAME`, the indentation of that last line is taken
    /// off every line, when every line has it.
    fn heredoc(&mut self, start: Position) -> Result<String, SettingsError> {
        if !self.cursor.rest().starts_with("<<") {
            return Err(self.cursor.error(start, "unexpected character '<'"));
        }
        self.cursor.next();
        self.cursor.next();
        let indented = self.cursor.peek() == Some('-');
        if indented {
            self.cursor.next();
        }
        let anchor = self.cursor.take_while(|c| is_letter(c) || c.is_numeric());
        self.cursor.take_while(|c| c == '\r');
        if anchor.is_empty() || self.cursor.next() != Some('\n') {
            return Err(self
                .cursor
                .error(start, "a heredoc starts with << and a word, and nothing else on its line"));
        }
        let body = self.cursor.rest();
        let mut length = 0;
        loop {
            let line = self.cursor.take_while(|c| c != '\n');
            let ended = self.cursor.next().is_none();
            if let Some(margin) = line.trim_end_matches('\r').strip_suffix(anchor)
                && margin.chars().all(|c| c.is_ascii_whitespace())
            {
                let text = body.get(..length).unwrap_or("");
                return Ok(if indented { unindent(text, margin) } else { format!("{text}{margin}") });
            }
            length += line.len() + 1;
            if ended {
                return Err(self
                    .cursor
                    .error(start, format!("the heredoc that starts here has no closing {anchor}")));
            }
        }
    }

    fn number(&mut self, at: Position) -> Result<String, SettingsError> {
        let mut text = String::new();
        if self.cursor.peek() == Some('-') {
            text.push('-');
            self.cursor.next();
        }
        text.push_str(self.cursor.take_while(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_'));
        let exponent = text.ends_with(['e', 'E']) && !text.contains(['x', 'X']);
        if exponent && let Some(sign @ ('+' | '-')) = self.cursor.peek() {
            text.push(sign);
            self.cursor.next();
            text.push_str(self.cursor.take_while(|c| c.is_ascii_digit()));
        }
        if integer(&text).is_some() || is_float(&text) {
            return Ok(text);
        }
        let digits = text.strip_prefix('-').unwrap_or(&text);
        Err(if !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()) {
            if digits.starts_with('0') {
                self.cursor.error(
                    at,
                    format!("{text} starts with a zero and so is octal, which has no digits 8 and 9"),
                )
            } else {
                self.cursor.error(at, format!("the number {text} does not fit in 64 bits"))
            }
        } else {
            self.cursor
                .error(at, format!("{text:?} is not a number; durations and names are written in quotes"))
        })
    }
}

/// Digits with a fraction or an exponent; what a Go float literal may look like, without its rarer forms.
fn is_float(text: &str) -> bool {
    let body = text.strip_prefix('-').unwrap_or(text);
    body.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && body.contains(['.', 'e', 'E'])
        && body.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'))
        && text.parse::<f64>().is_ok_and(f64::is_finite)
}

fn unindent(text: &str, margin: &str) -> String {
    if !text.lines().all(|line| line.starts_with(margin)) {
        return text.to_string();
    }
    text.split_inclusive('\n').map(|line| line.strip_prefix(margin).unwrap_or(line)).collect()
}

fn is_letter(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
