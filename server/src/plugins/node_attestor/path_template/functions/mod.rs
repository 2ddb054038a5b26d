//! What templates may call: Go's own functions, and those of sprig that SPIRE allows.
//!
//! An argument of the wrong type is an error, never a guess. The order of `keys` and `values`, which is left to chance in
//! Go, is that of the keys.

mod lists;
mod maps;
mod paths;
mod regexes;
mod text;
mod words;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::MOST_BYTES;
use super::value::Value;

/// What went wrong, for the message `error calling NAME: …`.
type Outcome = Result<Value, String>;
type Function = fn(&[Value]) -> Outcome;

/// The name as a constant, when there is a function of this name.
pub(super) fn known(name: &str) -> Option<&'static str> {
    names().find(|known| *known == name)
}

/// The names of all functions.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ["and", "or"].into_iter().chain(tables().map(|(known, _)| *known))
}

/// Calls a function that is [`known`], other than `and` and `or`.
pub(super) fn call(name: &str, arguments: &[Value]) -> Outcome {
    match tables().find(|(known, _)| *known == name) {
        Some((_, function)) => function(arguments),
        None => Err("it needs arguments".to_owned()),
    }
}

pub(super) fn too_long() -> String {
    format!("the result has more than {MOST_BYTES} bytes, and a SPIFFE ID at most 2048")
}

fn tables() -> impl Iterator<Item = &'static (&'static str, Function)> {
    [BASIC, text::TABLE, words::TABLE, lists::TABLE, maps::TABLE, regexes::TABLE, paths::TABLE]
        .into_iter()
        .flatten()
}

/// Go's own.
const BASIC: &[(&str, Function)] = &[
    ("not", |arguments| Ok(Value::Bool(one(arguments)?.is_empty()))),
    ("len", |arguments| {
        let length = match one(arguments)? {
            Value::Text(text) => text.len(),
            Value::List(items) => items.len(),
            Value::Map(members) => members.borrow().len(),
            value => return Err(format!("len of type {}", value.kind())),
        };
        Ok(Value::Int(length as i64))
    }),
    ("index", index),
    ("print", |arguments| {
        // A space stands between two operands when neither is a text.
        let mut out = String::new();
        for (i, value) in arguments.iter().enumerate() {
            let text = |value: &Value| matches!(value, Value::Text(_));
            if i > 0 && !text(value) && !text(&arguments[i - 1]) {
                out.push(' ');
            }
            out.push_str(&value.printed());
        }
        texted(out)
    }),
    ("println", |arguments| {
        let texts: Vec<_> = arguments.iter().map(Value::printed).collect();
        texted(texts.join(" ") + "\n")
    }),
    ("printf", |arguments| match arguments.split_first() {
        Some((format, values)) => texted(super::format::printf(&text(format, 1)?, values)),
        None => Err(count(1, 0)),
    }),
    ("urlquery", |arguments| {
        let texts: Vec<_> = arguments.iter().map(Value::printed).collect();
        texted(paths::query_escaped(&texts.concat()))
    }),
    ("html", |arguments| {
        let texts: Vec<_> = arguments.iter().map(Value::printed).collect();
        texted(text::html_escaped(&texts.concat()))
    }),
    ("eq", |arguments| match arguments.split_first() {
        Some((first, rest)) if !rest.is_empty() => {
            for other in rest {
                if equal(first, other)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        _ => Err("missing argument for comparison".to_owned()),
    }),
    ("ne", |arguments| {
        let [a, b] = exactly(arguments)?;
        Ok(Value::Bool(!equal(a, b)?))
    }),
    ("lt", |arguments| ordered(arguments, |order| order.is_lt())),
    ("le", |arguments| ordered(arguments, |order| order.is_le())),
    ("gt", |arguments| ordered(arguments, |order| order.is_gt())),
    ("ge", |arguments| ordered(arguments, |order| order.is_ge())),
];

fn index(arguments: &[Value]) -> Outcome {
    let Some((value, keys)) = arguments.split_first() else { return Err(count(1, 0)) };
    let mut value = value.clone();
    for key in keys {
        value = match &value {
            Value::List(items) => {
                let at = int(key, 2)?;
                let found = usize::try_from(at).ok().and_then(|at| items.get(at));
                found.cloned().ok_or_else(|| format!("index out of range: {at}"))?
            }
            Value::Text(text) => {
                let at = int(key, 2)?;
                let found = usize::try_from(at).ok().and_then(|at| text.as_bytes().get(at));
                Value::Int(i64::from(*found.ok_or_else(|| format!("index out of range: {at}"))?))
            }
            Value::Map(members) => {
                let key = text(key, 2)?;
                let found = members.borrow().get(&*key).cloned();
                found.ok_or_else(|| format!("there is no entry for key {key:?}"))?
            }
            other => return Err(format!("can't index item of type {}", other.kind())),
        };
    }
    Ok(value)
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::List(_) | Value::Map(_), _) | (_, Value::List(_) | Value::Map(_)) => {
            Err("non-comparable type for comparison".to_owned())
        }
        (Value::Nil, _) | (_, Value::Nil) => Ok(a == b),
        _ if a.kind() != b.kind() => Err("incompatible types for comparison".to_owned()),
        _ => Ok(a == b),
    }
}

fn ordered(arguments: &[Value], holds: fn(std::cmp::Ordering) -> bool) -> Outcome {
    let [a, b] = exactly(arguments)?;
    let order = match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        _ if a.kind() != b.kind() => return Err("incompatible types for comparison".to_owned()),
        _ => return Err("invalid type for comparison".to_owned()),
    };
    Ok(Value::Bool(order.is_some_and(holds)))
}

fn count(wanted: usize, got: usize) -> String {
    format!("wrong number of arguments: want {wanted} got {got}")
}

fn exactly<const N: usize>(arguments: &[Value]) -> Result<&[Value; N], String> {
    arguments.try_into().map_err(|_other_count| count(N, arguments.len()))
}

fn one(arguments: &[Value]) -> Result<&Value, String> {
    let [value] = exactly(arguments)?;
    Ok(value)
}

fn wrong(value: &Value, number: usize, wanted: &str) -> String {
    format!("argument {number} has the wrong type: expected {wanted}; found {}", value.kind())
}

/// `number` counts the arguments from 1, for the message.
fn text(value: &Value, number: usize) -> Result<Arc<str>, String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        other => Err(wrong(other, number, "string")),
    }
}

fn int(value: &Value, number: usize) -> Result<i64, String> {
    match value {
        Value::Int(value) => Ok(*value),
        other => Err(wrong(other, number, "int")),
    }
}

fn list(value: &Value, number: usize) -> Result<&[Value], String> {
    match value {
        Value::List(items) => Ok(items),
        other => Err(wrong(other, number, "list")),
    }
}

fn map(value: &Value, number: usize) -> Result<&Rc<RefCell<BTreeMap<String, Value>>>, String> {
    match value {
        Value::Map(members) => Ok(members),
        other => Err(wrong(other, number, "dict")),
    }
}

fn texted(text: String) -> Outcome {
    if text.len() > MOST_BYTES {
        return Err(too_long());
    }
    Ok(Value::text(text))
}
