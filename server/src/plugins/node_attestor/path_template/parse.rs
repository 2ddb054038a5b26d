//! Reads a template: text, and actions between `{{` and `}}`.

use std::collections::HashMap;
use std::sync::Arc;

use super::tokens::{At, Token, tokens};
use super::{PathTemplate, TemplateError, functions};

/// Conditions and what they stand before.
pub(super) type Branches = Vec<(Pipeline, Vec<Node>)>;

/// A piece of a template.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    /// The first branch whose pipeline is not empty, else the last.
    If(Branches, Vec<Node>),
    /// As `If`, with the value as the new dot.
    With(Branches, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
    Break,
    Continue,
    Call {
        name: String,
        data: Option<Pipeline>,
        place: Place,
    },
}

/// Commands, each with the result of the one before as its last argument.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// Variables that get the result: two in a `range` only.
    pub(super) variables: Vec<String>,
    /// The variables are new (`:=`), not given a new value (`=`).
    pub(super) declares: bool,
    pub(super) commands: Vec<Command>,
}

#[derive(Debug, Clone)]
pub(super) struct Command {
    pub(super) head: Operand,
    pub(super) arguments: Vec<Operand>,
    pub(super) place: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Operand {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    Field(Vec<String>, Place),
    Variable(String, Vec<String>, Place),
    Function(&'static str, Place),
    Nested(Box<Pipeline>, Vec<String>, Place),
}

/// Where something is, for messages.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) source: String,
}

/// Actions within actions, parentheses within parentheses.
const DEEPEST: usize = 50;

pub(super) fn template(text: &str) -> Result<PathTemplate, TemplateError> {
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        named: HashMap::new(),
        variables: vec!["$".to_owned()],
        depth: 0,
        in_range: false,
    };
    let (main, end) = parser.nodes()?;
    match end {
        Ended::OutOfText => {}
        Ended::AtEnd => return Err(parser.fault("unexpected {{end}}")),
        Ended::AtElse => return Err(parser.fault("unexpected {{else}}")),
    }
    let named = parser.named;
    if let Some((name, place)) = called(&main)
        .into_iter()
        .chain(named.values().flat_map(|nodes| called(nodes)))
        .find(|(name, _)| !named.contains_key(*name))
    {
        return Err(TemplateError::Unreadable {
            line: place.line,
            message: format!("template {} not defined", super::format::quoted(name)),
        });
    }
    Ok(PathTemplate { main, named })
}

/// The templates that are called by name.
fn called(nodes: &[Node]) -> Vec<(&str, &Place)> {
    nodes
        .iter()
        .flat_map(|node| match node {
            Node::Call { name, place, .. } => vec![(name.as_str(), place)],
            Node::If(branches, last) | Node::With(branches, last) => {
                branches.iter().map(|(_, body)| body).chain([last]).flat_map(|body| called(body)).collect()
            }
            Node::Range(_, body, last) => [body, last].into_iter().flat_map(|body| called(body)).collect(),
            Node::Text(_) | Node::Action(_) | Node::Break | Node::Continue => Vec::new(),
        })
        .collect()
}

/// What ended a list of nodes.
enum Ended {
    OutOfText,
    AtEnd,
    /// The parser is behind the word `else`.
    AtElse,
}

struct Parser<'t> {
    tokens: &'t [At],
    at: usize,
    named: HashMap<String, Vec<Node>>,
    variables: Vec<String>,
    depth: usize,
    in_range: bool,
}

impl Parser<'_> {
    fn nodes(&mut self) -> Result<(Vec<Node>, Ended), TemplateError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.fault("actions are nested too deeply"));
        }
        let mut nodes = Vec::new();
        let end = loop {
            match self.take() {
                None => break Ended::OutOfText,
                Some(Token::Text(text)) => nodes.push(Node::Text(text)),
                Some(_open) => {
                    self.skip_space();
                    let word = match self.peek() {
                        Some(Token::Word(word)) => word.clone(),
                        _ => String::new(),
                    };
                    match word.as_str() {
                        "end" => {
                            self.at += 1;
                            self.close()?;
                            break Ended::AtEnd;
                        }
                        "else" => {
                            self.at += 1;
                            break Ended::AtElse;
                        }
                        _ => nodes.extend(self.action(&word)?),
                    }
                }
            }
        };
        self.depth -= 1;
        Ok((nodes, end))
    }

    /// An action behind its `{{`, up to its `}}` or `{{end}}`.
    fn action(&mut self, word: &str) -> Result<Option<Node>, TemplateError> {
        let scope = self.variables.len();
        if matches!(word, "if" | "with" | "range" | "break" | "continue" | "template" | "block" | "define") {
            self.at += 1;
        }
        let node = match word {
            "if" | "with" => {
                let (branches, last) = self.branches(word)?;
                if word == "if" { Node::If(branches, last) } else { Node::With(branches, last) }
            }
            "range" => {
                let pipeline = self.pipeline(true)?;
                self.close()?;
                let outside = std::mem::replace(&mut self.in_range, true);
                let (body, end) = self.nodes()?;
                self.in_range = outside;
                let last = self.last_branch(end)?;
                Node::Range(pipeline, body, last)
            }
            "break" | "continue" => {
                if !self.in_range {
                    return Err(self.fault(format!("{{{{{word}}}}} outside {{{{range}}}}")));
                }
                self.close()?;
                return Ok(Some(if word == "break" { Node::Break } else { Node::Continue }));
            }
            "template" => {
                let place = self.place();
                let name = self.name("template")?;
                self.skip_space();
                let data = match self.peek() {
                    Some(Token::Close) => None,
                    _ => Some(self.pipeline(false)?),
                };
                self.close()?;
                Node::Call { name, data, place }
            }
            "block" => {
                let place = self.place();
                let name = self.name("block")?;
                let data = self.pipeline(false)?;
                self.close()?;
                self.define(name.clone())?;
                Node::Call { name, data: Some(data), place }
            }
            "define" => {
                if self.depth > 1 {
                    return Err(self.fault("unexpected {{define}}"));
                }
                let name = self.name("define")?;
                self.close()?;
                self.define(name)?;
                return Ok(None);
            }
            _ => {
                let pipeline = self.pipeline(false)?;
                self.close()?;
                return Ok(Some(Node::Action(pipeline)));
            }
        };
        self.variables.truncate(scope);
        Ok(Some(node))
    }

    fn branches(&mut self, word: &str) -> Result<(Branches, Vec<Node>), TemplateError> {
        let mut branches = Vec::new();
        loop {
            let pipeline = self.pipeline(false)?;
            self.close()?;
            let (body, end) = self.nodes()?;
            branches.push((pipeline, body));
            match end {
                Ended::AtElse => {
                    self.skip_space();
                    match self.peek() {
                        Some(Token::Word(next)) if next == word => self.at += 1,
                        _ => return Ok((branches, self.last_branch(Ended::AtElse)?)),
                    }
                }
                end => return Ok((branches, self.last_branch(end)?)),
            }
        }
    }

    /// What stands between `{{else}}` and `{{end}}`, if there is an `{{else}}`.
    fn last_branch(&mut self, end: Ended) -> Result<Vec<Node>, TemplateError> {
        match end {
            Ended::AtEnd => Ok(Vec::new()),
            Ended::OutOfText => Err(self.fault("unexpected EOF; an {{end}} is missing")),
            Ended::AtElse => {
                self.close()?;
                match self.nodes()? {
                    (nodes, Ended::AtEnd) => Ok(nodes),
                    (_, Ended::AtElse) => Err(self.fault("expected end; found {{else}}")),
                    (_, Ended::OutOfText) => Err(self.fault("unexpected EOF; an {{end}} is missing")),
                }
            }
        }
    }

    fn define(&mut self, name: String) -> Result<(), TemplateError> {
        let outside = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let in_range = std::mem::replace(&mut self.in_range, false);
        let (nodes, end) = self.nodes()?;
        self.variables = outside;
        self.in_range = in_range;
        match end {
            Ended::AtEnd => {
                self.named.insert(name, nodes);
                Ok(())
            }
            Ended::AtElse | Ended::OutOfText => {
                Err(self.fault("an {{end}} is missing after {{define}} or {{block}}"))
            }
        }
    }

    fn name(&mut self, context: &str) -> Result<String, TemplateError> {
        self.skip_space();
        match self.take() {
            Some(Token::Quoted(name)) => Ok(name),
            _ => Err(self.fault(format!("a quoted name is missing in {context} clause"))),
        }
    }

    fn pipeline(&mut self, in_range: bool) -> Result<Pipeline, TemplateError> {
        self.skip_space();
        let (variables, declares) = self.variables(in_range)?;
        let mut commands: Vec<Command> = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                Some(Token::Close | Token::RightParen) | None => break,
                Some(Token::Pipe) if !commands.is_empty() => {
                    self.at += 1;
                    self.skip_space();
                    // Go lets a pipe stand at the end.
                    match self.peek() {
                        Some(Token::Close) => break,
                        Some(Token::RightParen | Token::Pipe) => {
                            return Err(self.fault("missing value for command"));
                        }
                        _ => {}
                    }
                }
                _ if !commands.is_empty() => return Err(self.unexpected("operand")),
                _ => {}
            }
            let command = self.command()?;
            if !commands.is_empty()
                && !matches!(
                    command.head,
                    Operand::Function(..) | Operand::Field(..) | Operand::Variable(..) | Operand::Nested(..)
                )
            {
                return Err(
                    self.fault(format!("non executable command in pipeline stage {}", commands.len() + 1))
                );
            }
            commands.push(command);
        }
        if commands.is_empty() {
            return Err(self.fault("missing value for command"));
        }
        if declares {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline { variables, declares, commands })
    }

    /// `$x :=`, `$x =`, and in a range `$i, $x :=`.
    fn variables(&mut self, in_range: bool) -> Result<(Vec<String>, bool), TemplateError> {
        let start = self.at;
        let mut variables = Vec::new();
        while let Some(Token::Variable(name)) = self.peek() {
            variables.push(name.clone());
            self.at += 1;
            self.skip_space();
            match self.peek() {
                Some(Token::Comma) if in_range && variables.len() == 1 => {
                    self.at += 1;
                    self.skip_space();
                }
                Some(Token::Declare) => {
                    self.at += 1;
                    return Ok((variables, true));
                }
                Some(Token::Assign) => {
                    self.at += 1;
                    if let Some(unknown) = variables.iter().find(|name| !self.variables.contains(name)) {
                        return Err(
                            self.fault(format!("undefined variable {}", super::format::quoted(unknown)))
                        );
                    }
                    return Ok((variables, false));
                }
                Some(Token::Comma) => return Err(self.fault("too many declarations in command")),
                _ => break,
            }
        }
        self.at = start;
        Ok((Vec::new(), false))
    }

    fn command(&mut self) -> Result<Command, TemplateError> {
        let place = self.place();
        let first = self.at;
        let head = self.operand()?;
        let mut arguments = Vec::new();
        loop {
            match self.peek() {
                Some(Token::Space) => {
                    self.skip_space();
                    if !matches!(self.peek(), Some(Token::Close | Token::Pipe | Token::RightParen) | None) {
                        arguments.push(self.operand()?);
                    }
                }
                Some(Token::Close | Token::Pipe | Token::RightParen) => break,
                _ => return Err(self.unexpected("operand")),
            }
        }
        let source: String = self.tokens[first..self.at].iter().map(|at| &*at.source).collect();
        Ok(Command { head, arguments, place: Place { source: source.trim_end().to_owned(), ..place } })
    }

    fn operand(&mut self) -> Result<Operand, TemplateError> {
        let place = self.place();
        let first = self.at;
        let Some(token) = self.take() else { return Err(self.fault("unclosed action")) };
        let place_with = |parser: &mut Self| {
            let fields = parser.fields();
            let source: String = parser.tokens[first..parser.at].iter().map(|at| &*at.source).collect();
            (fields, Place { source, ..place.clone() })
        };
        let operand = match token {
            Token::Dot => Operand::Dot,
            Token::Int(value) => Operand::Int(value),
            Token::Float(value) => Operand::Float(value),
            Token::Quoted(text) => Operand::Text(text.into()),
            Token::Field(name) => {
                let (more, place) = place_with(self);
                Operand::Field([vec![name], more].concat(), place)
            }
            Token::Variable(name) => {
                if !self.variables.contains(&name) {
                    return Err(self.fault(format!("undefined variable {}", super::format::quoted(&name))));
                }
                let (fields, place) = place_with(self);
                Operand::Variable(name, fields, place)
            }
            Token::LeftParen => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err(self.fault("parentheses are nested too deeply"));
                }
                let pipeline = self.pipeline(false)?;
                self.depth -= 1;
                if self.take() != Some(Token::RightParen) {
                    return Err(self.fault("unclosed left paren"));
                }
                let (fields, place) = place_with(self);
                Operand::Nested(Box::new(pipeline), fields, place)
            }
            Token::Word(word) => match word.as_str() {
                "nil" => Operand::Nil,
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                word => match functions::known(word) {
                    Some(name) => Operand::Function(name, place),
                    None => {
                        return Err(
                            self.fault(format!("function {} not defined", super::format::quoted(word)))
                        );
                    }
                },
            },
            _ => {
                self.at -= 1;
                return Err(self.unexpected("operand"));
            }
        };
        Ok(operand)
    }

    /// `.A.B` directly behind an operand.
    fn fields(&mut self) -> Vec<String> {
        let mut fields = Vec::new();
        while let Some(Token::Field(name)) = self.peek() {
            fields.push(name.clone());
            self.at += 1;
        }
        fields
    }

    fn close(&mut self) -> Result<(), TemplateError> {
        self.skip_space();
        match self.take() {
            Some(Token::Close) => Ok(()),
            None => Err(self.fault("unclosed action")),
            Some(_) => {
                self.at -= 1;
                Err(self.unexpected("end of action"))
            }
        }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|at| &at.token)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        if token.is_some() {
            self.at += 1;
        }
        token
    }

    fn skip_space(&mut self) {
        while self.peek() == Some(&Token::Space) {
            self.at += 1;
        }
    }

    fn place(&self) -> Place {
        match self.tokens.get(self.at).or(self.tokens.last()) {
            Some(at) => Place { line: at.line, column: at.column, source: at.source.to_string() },
            None => Place { line: 1, column: 1, source: String::new() },
        }
    }

    fn unexpected(&self, wanted: &str) -> TemplateError {
        let found = self.place().source;
        self.fault(format!("unexpected {} where {wanted} was expected", super::format::quoted(&found)))
    }

    /// An error at the token that was taken last.
    fn fault(&self, message: impl Into<String>) -> TemplateError {
        let line = self.tokens.get(self.at.saturating_sub(1)).map_or(1, |at| at.line);
        TemplateError::Unreadable { line, message: message.into() }
    }
}
