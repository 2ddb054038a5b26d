//! The tokens of a template.

use std::sync::Arc;

use super::TemplateError;

/// Outside of actions there is only [`Token::Text`].
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Text(String),
    /// `{{`
    Open,
    /// `}}`
    Close,
    Space,
    Word(String),
    /// `.Name`
    Field(String),
    /// `$name`
    Variable(String),
    Dot,
    Int(i64),
    Float(f64),
    Quoted(String),
    Declare,
    Assign,
    Pipe,
    Comma,
    LeftParen,
    RightParen,
}

/// A token and where it is.
pub(super) struct At {
    pub(super) token: Token,
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) source: Arc<str>,
}

/// Cuts a template into tokens; space that actions trim is gone.
pub(super) fn tokens(text: &str) -> Result<Vec<At>, TemplateError> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let open = rest.find("{{");
        let mut before = &rest[..open.unwrap_or(rest.len())];
        if trim_next {
            before = before.trim_start_matches(SPACES);
        }
        let Some(open) = open else {
            push_text(&mut out, text, rest, before);
            return Ok(out);
        };
        let inside = &rest[open + 2..];
        let (trims, inside) = match inside.strip_prefix('-') {
            Some(after) if after.starts_with(SPACES) => (true, after),
            _ => (false, inside),
        };
        push_text(&mut out, text, rest, if trims { before.trim_end_matches(SPACES) } else { before });
        let at_open = text.len() - rest.len() + open;
        let comment = inside.trim_start_matches(SPACES);
        let after = if let Some(comment) = comment.strip_prefix("/*") {
            let Some(end) = comment.find("*/") else {
                return Err(unreadable(text, at_open, "unclosed comment"));
            };
            let after = comment[end + 2..].trim_start_matches(SPACES);
            let trims = after.starts_with('-');
            let Some(after) = after.strip_prefix('-').unwrap_or(after).strip_prefix("}}") else {
                return Err(unreadable(text, at_open, "comment ends before closing delimiter"));
            };
            trim_next = trims;
            after
        } else {
            let (line, column) = position(text, at_open);
            out.push(At { token: Token::Open, line, column, source: "{{".into() });
            let (after, trims) = action(text, inside, &mut out)?;
            trim_next = trims;
            after
        };
        rest = after;
    }
}

const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

fn push_text(out: &mut Vec<At>, text: &str, rest: &str, piece: &str) {
    if !piece.is_empty() {
        let (line, column) = position(text, text.len() - rest.len());
        out.push(At { token: Token::Text(piece.to_owned()), line, column, source: "".into() });
    }
}

/// Reads the tokens of one action; the text behind it, and whether space there is trimmed.
fn action<'t>(text: &'t str, mut rest: &'t str, out: &mut Vec<At>) -> Result<(&'t str, bool), TemplateError> {
    loop {
        let start = text.len() - rest.len();
        let mut add = |token, length: usize| {
            let (line, column) = position(text, start);
            out.push(At { token, line, column, source: rest[..length].into() });
            &rest[length..]
        };
        let spaces = rest.len() - rest.trim_start_matches(SPACES).len();
        if spaces > 0 {
            if let Some(after) = rest[spaces..].strip_prefix("-}}") {
                add(Token::Close, spaces + 3);
                return Ok((after, true));
            }
            rest = add(Token::Space, spaces);
            continue;
        }
        if rest.starts_with("}}") {
            let after = add(Token::Close, 2);
            return Ok((after, false));
        }
        let Some(first) = rest.chars().next() else { return Err(unreadable(text, start, "unclosed action")) };
        rest = match first {
            '"' => {
                let (value, length) = quoted(rest).map_err(|message| unreadable(text, start, message))?;
                add(Token::Quoted(value), length)
            }
            '`' => match rest[1..].find('`') {
                Some(end) => add(Token::Quoted(rest[1..=end].to_owned()), end + 2),
                None => return Err(unreadable(text, start, "unterminated raw quoted string")),
            },
            '\'' => {
                let (value, length) = character(rest)
                    .ok_or_else(|| unreadable(text, start, "malformed or unterminated character constant"))?;
                add(Token::Int(value), length)
            }
            '|' => add(Token::Pipe, 1),
            ',' => add(Token::Comma, 1),
            '(' => add(Token::LeftParen, 1),
            ')' => add(Token::RightParen, 1),
            ':' if rest[1..].starts_with('=') => add(Token::Declare, 2),
            '=' => add(Token::Assign, 1),
            '$' => {
                let length = 1 + word_length(&rest[1..]);
                add(Token::Variable(rest[..length].to_owned()), length)
            }
            '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => match word_length(&rest[1..]) {
                0 => add(Token::Dot, 1),
                length => add(Token::Field(rest[1..=length].to_owned()), length + 1),
            },
            '0'..='9' | '+' | '-' | '.' => {
                let length =
                    rest.find(|c: char| !(c.is_alphanumeric() || "+-._".contains(c))).unwrap_or(rest.len());
                let token = numeral(&rest[..length]).ok_or_else(|| {
                    unreadable(
                        text,
                        start,
                        format!("bad number syntax: {}", super::format::quoted(&rest[..length])),
                    )
                })?;
                add(token, length)
            }
            c if c == '_' || c.is_alphabetic() => {
                let length = word_length(rest);
                add(Token::Word(rest[..length].to_owned()), length)
            }
            c => {
                let message = format!(
                    "unexpected {c:?} in the action; quote texts, and write names with letters, digits and _"
                );
                return Err(unreadable(text, start, message));
            }
        };
    }
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !(c == '_' || c.is_alphanumeric())).unwrap_or(text.len())
}

/// A text in double quotes with Go's escapes, and its length in the source.
fn quoted(text: &str) -> Result<(String, usize), &'static str> {
    const UNTERMINATED: &str = "unterminated quoted string";
    let mut value = Vec::new();
    let mut rest = &text[1..];
    loop {
        match rest.chars().next() {
            None | Some('\n') => return Err(UNTERMINATED),
            Some('"') => {
                let value = String::from_utf8(value).map_err(|_not_utf8| "quoted string is not UTF-8")?;
                return Ok((value, text.len() - rest.len() + 1));
            }
            Some('\\') => {
                let length = escape(rest, &mut value).ok_or("unknown escape in a quoted string")?;
                rest = &rest[length..];
            }
            Some(c) => {
                value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[c.len_utf8()..];
            }
        }
    }
}

/// Takes the escape at the start of `text`; its length in the source.
fn escape(text: &str, value: &mut Vec<u8>) -> Option<usize> {
    let kind = text[1..].chars().next()?;
    let plain = match kind {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '"' => b'"',
        '\'' => b'\'',
        'x' => {
            value.push(u8::from_str_radix(text.get(2..4)?, 16).ok()?);
            return Some(4);
        }
        '0'..='7' => {
            value.push(u8::from_str_radix(text.get(1..4)?, 8).ok()?);
            return Some(4);
        }
        'u' | 'U' => {
            let end = if kind == 'u' { 6 } else { 10 };
            let c = char::from_u32(u32::from_str_radix(text.get(2..end)?, 16).ok()?)?;
            value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(end);
        }
        _ => return None,
    };
    value.push(plain);
    Some(2)
}

/// `'x'`: the number of the character, and the length in the source.
fn character(text: &str) -> Option<(i64, usize)> {
    let inside = &text[1..];
    let (c, length) = match inside.chars().next()? {
        '\'' | '\n' => return None,
        '\\' => {
            let mut value = Vec::new();
            let length = escape(inside, &mut value)?;
            (std::str::from_utf8(&value).ok()?.chars().next()?, length)
        }
        c => (c, c.len_utf8()),
    };
    inside[length..].starts_with('\'').then_some((i64::from(u32::from(c)), length + 2))
}

fn numeral(text: &str) -> Option<Token> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let clean = digits.replace('_', "");
    let lower = clean.to_ascii_lowercase();
    let based = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find_map(|(prefix, radix)| lower.strip_prefix(prefix).map(|digits| (digits, radix)))
        .or_else(|| {
            (lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()))
                .then_some((&lower[1..], 8))
        });
    let int = match based {
        Some((digits, radix)) => i64::from_str_radix(digits, radix).ok()?,
        None => match lower.parse::<i64>() {
            Ok(value) => value,
            Err(_) => {
                let value = lower.parse::<f64>().ok()?;
                return Some(Token::Float(if negative { -value } else { value }));
            }
        },
    };
    Some(Token::Int(if negative { int.checked_neg()? } else { int }))
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

fn unreadable(text: &str, at: usize, message: impl Into<String>) -> TemplateError {
    TemplateError::Unreadable { line: position(text, at).0, message: message.into() }
}
