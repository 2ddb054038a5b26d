//! The HCL version 1 grammar.

use std::sync::Arc;

use super::lexer::{Lexer, Token};
use super::{Block, Item, Key, MAX_DEPTH, Node, Position, SettingsError, Value};

pub(super) fn parse(text: &str, file: &Arc<str>) -> Result<Block, SettingsError> {
    let mut parser = Parser::new(text, file)?;
    let start = Position { line: 1, column: 1 };
    let items = parser.items(None, 0)?;
    Ok(Block { file: Arc::clone(file), at: start, items })
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token under the cursor.
    token: Token,
    at: Position,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, file: &Arc<str>) -> Result<Parser<'a>, SettingsError> {
        let mut lexer = Lexer::new(text, file);
        let (token, at) = lexer.token()?;
        Ok(Parser { lexer, token, at })
    }

    /// Steps to the next token and hands over the one left behind.
    fn advance(&mut self) -> Result<(Token, Position), SettingsError> {
        let (token, at) = self.lexer.token()?;
        Ok((std::mem::replace(&mut self.token, token), std::mem::replace(&mut self.at, at)))
    }

    fn error(&self, at: Position, text: impl Into<String>) -> SettingsError {
        SettingsError::at(&self.lexer.cursor.file, at, text)
    }

    /// Items up to the closing brace of the block opened at `opened`, which is consumed, or to the end of
    /// the file.
    fn items(&mut self, opened: Option<Position>, depth: usize) -> Result<Vec<Item>, SettingsError> {
        let mut items = Vec::new();
        loop {
            match (&self.token, opened) {
                (Token::End, None) => return Ok(items),
                (Token::End, Some(brace)) => {
                    return Err(self.error(brace, "the block that opens here has no closing brace"));
                }
                (Token::CloseBrace, Some(_)) => {
                    self.advance()?;
                    return Ok(items);
                }
                (Token::CloseBrace, None) => {
                    return Err(self.error(self.at, "this closing brace closes nothing"));
                }
                _ => items.push(self.item(depth)?),
            }
            if self.token == Token::Comma {
                self.advance()?;
            }
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item, SettingsError> {
        let mut keys = Vec::new();
        loop {
            match &self.token {
                Token::Word(_) | Token::Text(_) => {
                    if let (Token::Word(text) | Token::Text(text), at) = self.advance()? {
                        keys.push(Key { text, at });
                    }
                }
                // A word like any other when it stands where a key does.
                Token::Bool(value) if keys.is_empty() => {
                    return Err(self.error(self.at, format!("a key is expected here, found {value}")));
                }
                Token::Assign if keys.len() == 1 => {
                    self.advance()?;
                    let value = self.value(depth)?;
                    return Ok(Item { keys, value });
                }
                Token::Assign if keys.len() > 1 => {
                    return Err(self
                        .error(self.at, "a key with a label is followed by a block in braces, without '='"));
                }
                Token::OpenBrace if !keys.is_empty() => {
                    let value = self.value(depth)?;
                    return Ok(Item { keys, value });
                }
                found => {
                    let text = match keys.last() {
                        Some(key) => format!(
                            "'=' or '{{' is expected after {:?}, found {}",
                            key.text,
                            found.describe()
                        ),
                        None => format!("a key is expected here, found {}", found.describe()),
                    };
                    return Err(self.error(self.at, text));
                }
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, SettingsError> {
        if depth >= MAX_DEPTH {
            return Err(self.error(self.at, format!("blocks and lists nest more than {MAX_DEPTH} deep")));
        }
        let (token, at) = self.advance()?;
        let value = match token {
            Token::Text(text) => Value::String(text),
            Token::Number(text) => Value::Number(text),
            Token::Bool(value) => Value::Bool(value),
            Token::OpenBrace => {
                let items = self.items(Some(at), depth + 1)?;
                Value::Block(Block { file: Arc::clone(&self.lexer.cursor.file), at, items })
            }
            Token::OpenBracket => Value::List(self.list(at, depth + 1)?),
            Token::Word(word) => {
                return Err(self.error(at, format!("strings are written in quotes: \"{word}\"")));
            }
            found => {
                return Err(self.error(at, format!("a value is expected here, found {}", found.describe())));
            }
        };
        Ok(Node { at, value })
    }

    fn list(&mut self, opened: Position, depth: usize) -> Result<Vec<Node>, SettingsError> {
        let mut elements = Vec::new();
        loop {
            match &self.token {
                Token::CloseBracket => {
                    self.advance()?;
                    return Ok(elements);
                }
                Token::End => {
                    return Err(self.error(opened, "the list that opens here has no closing bracket"));
                }
                _ => elements.push(self.value(depth)?),
            }
            match &self.token {
                Token::Comma => {
                    self.advance()?;
                }
                Token::CloseBracket => {}
                Token::End => {
                    return Err(self.error(opened, "the list that opens here has no closing bracket"));
                }
                found => {
                    let text = format!("',' or ']' is expected in the list, found {}", found.describe());
                    return Err(self.error(self.at, text));
                }
            }
        }
    }
}
