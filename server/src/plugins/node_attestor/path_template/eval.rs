//! Renders what was parsed.

use std::collections::HashMap;

use super::parse::{Command, Node, Operand, Pipeline, Place};
use super::value::Value;
use super::{MOST_BYTES, TemplateError, functions};

/// Templates that call each other.
const DEEPEST: usize = 100;

pub(super) fn render(
    main: &[Node],
    named: &HashMap<String, Vec<Node>>,
    data: Value,
) -> Result<String, TemplateError> {
    let mut run =
        Run { named, variables: vec![("$".to_owned(), data.clone())], out: String::new(), depth: 0 };
    run.nodes(main, &data)?;
    Ok(run.out)
}

struct Run<'t> {
    named: &'t HashMap<String, Vec<Node>>,
    variables: Vec<(String, Value)>,
    out: String,
    depth: usize,
}

/// Whether a loop goes on.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        for node in nodes {
            let scope = self.variables.len();
            let flow = match node {
                Node::Text(text) => {
                    self.out.push_str(text);
                    continue;
                }
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.print(&value, pipeline)?;
                    }
                    // A variable lives to the end of the list that it is declared in.
                    continue;
                }
                Node::If(branches, last) => self.branch(branches, last, dot, false)?,
                Node::With(branches, last) => self.branch(branches, last, dot, true)?,
                Node::Range(pipeline, body, last) => self.range(pipeline, body, last, dot)?,
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
                Node::Call { name, data, place } => self.call(name, data.as_ref(), place, dot)?,
            };
            self.variables.truncate(scope);
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn branch(
        &mut self,
        branches: &[(Pipeline, Vec<Node>)],
        last: &[Node],
        dot: &Value,
        value_is_dot: bool,
    ) -> Result<Flow, TemplateError> {
        for (pipeline, body) in branches {
            let value = self.pipeline(pipeline, dot)?;
            if !value.is_empty() {
                return self.nodes(body, if value_is_dot { &value } else { dot });
            }
        }
        self.nodes(last, dot)
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        body: &[Node],
        last: &[Node],
        dot: &Value,
    ) -> Result<Flow, TemplateError> {
        let bare = Pipeline { variables: Vec::new(), declares: false, commands: pipeline.commands.clone() };
        let items: Vec<(Value, Value)> = match self.pipeline(&bare, dot)? {
            Value::Nil => Vec::new(),
            Value::List(items) => (0..).map(Value::Int).zip(items.iter().cloned()).collect(),
            Value::Map(members) => {
                let members = members.borrow();
                members.iter().map(|(key, value)| (Value::text(key.as_str()), value.clone())).collect()
            }
            Value::Int(count) if count <= MOST_BYTES as i64 => {
                (0..count).map(|i| (Value::Int(i), Value::Int(i))).collect()
            }
            value => {
                let message = format!("range can't iterate over {}", value.printed());
                return Err(failed(place_of(pipeline), message));
            }
        };
        if items.is_empty() {
            return self.nodes(last, dot);
        }
        let scope = self.variables.len();
        for (index, item) in items {
            match pipeline.variables.as_slice() {
                [] => {}
                [one] => self.set(one, item.clone(), pipeline.declares),
                [first, second, ..] => {
                    self.set(first, index, pipeline.declares);
                    self.set(second, item.clone(), pipeline.declares);
                }
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(scope);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn call(
        &mut self,
        name: &str,
        data: Option<&Pipeline>,
        place: &Place,
        dot: &Value,
    ) -> Result<Flow, TemplateError> {
        let data = match data {
            Some(pipeline) => self.pipeline(pipeline, dot)?,
            None => Value::Nil,
        };
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(failed(place, "exceeded maximum template depth"));
        }
        let outside = std::mem::replace(&mut self.variables, vec![("$".to_owned(), data.clone())]);
        let body = self.named.get(name).map_or(&[][..], Vec::as_slice);
        self.nodes(body, &data)?;
        self.variables = outside;
        self.depth -= 1;
        Ok(Flow::On)
    }

    fn print(&mut self, value: &Value, pipeline: &Pipeline) -> Result<(), TemplateError> {
        match value {
            Value::Nil => {
                return Err(failed(place_of(pipeline), "the result is nil, which is no part of a path"));
            }
            Value::Text(text) => self.out.push_str(text),
            value => self.out.push_str(&value.printed()),
        }
        if self.out.len() > MOST_BYTES {
            return Err(failed(place_of(pipeline), functions::too_long()));
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut result = None;
        for command in &pipeline.commands {
            result = Some(self.command(command, dot, result)?);
        }
        let value = result.unwrap_or(Value::Nil);
        for name in &pipeline.variables {
            self.set(name, value.clone(), pipeline.declares);
        }
        Ok(value)
    }

    fn command(
        &mut self,
        command: &Command,
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        if let Operand::Function(name, _) = command.head {
            return self.function(name, command, dot, piped);
        }
        if piped.is_some() || !command.arguments.is_empty() {
            let message = format!("can't give argument to non-function {}", command.place.source);
            return Err(failed(&command.place, message));
        }
        self.operand(&command.head, dot)
    }

    fn function(
        &mut self,
        name: &'static str,
        command: &Command,
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        if let "and" | "or" = name {
            // These look at no more arguments than they need.
            let stops_at = name == "or";
            let mut value = None;
            for argument in &command.arguments {
                let seen = self.operand(argument, dot)?;
                if seen.is_empty() != stops_at {
                    return Ok(seen);
                }
                value = Some(seen);
            }
            let message =
                || failed(&command.place, format!("wrong number of args for {name}: want at least 1 got 0"));
            return piped.or(value).ok_or_else(message);
        }
        let mut arguments = Vec::with_capacity(command.arguments.len() + 1);
        for argument in &command.arguments {
            arguments.push(self.operand(argument, dot)?);
        }
        arguments.extend(piped);
        functions::call(name, &arguments)
            .map_err(|message| failed(&command.place, format!("error calling {name}: {message}")))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        match operand {
            Operand::Dot => Ok(dot.clone()),
            Operand::Nil => Ok(Value::Nil),
            Operand::Bool(value) => Ok(Value::Bool(*value)),
            Operand::Int(value) => Ok(Value::Int(*value)),
            Operand::Float(value) => Ok(Value::Float(*value)),
            Operand::Text(text) => Ok(Value::Text(text.clone())),
            Operand::Field(fields, place) => follow(dot.clone(), fields, place),
            Operand::Variable(name, fields, place) => {
                let value = self.variables.iter().rev().find(|(known, _)| known == name);
                follow(value.map_or(Value::Nil, |(_, value)| value.clone()), fields, place)
            }
            Operand::Nested(pipeline, fields, place) => {
                let value = self.pipeline(pipeline, dot)?;
                follow(value, fields, place)
            }
            Operand::Function(name, place) => functions::call(name, &[])
                .map_err(|message| failed(place, format!("error calling {name}: {message}"))),
        }
    }

    fn set(&mut self, name: &str, value: Value, declares: bool) {
        match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some((_, place)) if !declares => *place = value,
            _ => self.variables.push((name.to_owned(), value)),
        }
    }
}

/// The value under `fields`, one after the other.
fn follow(mut value: Value, fields: &[String], place: &Place) -> Result<Value, TemplateError> {
    for field in fields {
        let Value::Map(members) = &value else {
            return Err(failed(place, format!("can't evaluate field {field} in type {}", value.kind())));
        };
        let members = members.borrow();
        let Some(found) = members.get(field).cloned() else {
            let there = members.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(failed(place, format!("there is no field {field}; there are: {there}")));
        };
        drop(members);
        value = found;
    }
    Ok(value)
}

fn place_of(pipeline: &Pipeline) -> &Place {
    const NOWHERE: &Place = &Place { line: 1, column: 1, source: String::new() };
    pipeline.commands.first().map_or(NOWHERE, |command| &command.place)
}

fn failed(place: &Place, message: impl Into<String>) -> TemplateError {
    TemplateError::Failed {
        line: place.line,
        column: place.column,
        at: place.source.to_string(),
        message: message.into(),
    }
}
