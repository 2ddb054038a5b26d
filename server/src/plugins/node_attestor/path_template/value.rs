//! The values of a template, after Go's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// A value. Lists are shared and never change; dictionaries are shared and change by `set` and `unset`.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    List(Rc<Vec<Value>>),
    Map(Rc<RefCell<BTreeMap<String, Value>>>),
}

impl Value {
    pub(super) fn text(text: impl Into<Arc<str>>) -> Value {
        Value::Text(text.into())
    }

    pub(super) fn list(items: Vec<Value>) -> Value {
        Value::List(Rc::new(items))
    }

    pub(super) fn texts<T: Into<Arc<str>>>(items: impl IntoIterator<Item = T>) -> Value {
        Value::list(items.into_iter().map(Value::text).collect())
    }

    pub(super) fn map(members: BTreeMap<String, Value>) -> Value {
        Value::Map(Rc::new(RefCell::new(members)))
    }

    /// The zero value of its type, in the sense of Go's `if` and sprig's `empty`.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Value::Nil => true,
            Value::Bool(value) => !value,
            Value::Int(value) => *value == 0,
            Value::Float(value) => *value == 0.0,
            Value::Text(text) => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(members) => members.borrow().is_empty(),
        }
    }

    /// The name of its type in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Text(_) => "string",
            Value::List(_) => "list",
            Value::Map(_) => "map",
        }
    }

    /// As Go prints it with `%v`.
    pub(super) fn printed(&self) -> String {
        match self {
            Value::Nil => "<nil>".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => super::format::shortest(*value),
            Value::Text(text) => text.to_string(),
            Value::List(items) => {
                let items: Vec<_> = items.iter().map(Value::printed).collect();
                format!("[{}]", items.join(" "))
            }
            Value::Map(members) => {
                let members = members.borrow();
                let members: Vec<_> =
                    members.iter().map(|(key, value)| format!("{key}:{}", value.printed())).collect();
                format!("map[{}]", members.join(" "))
            }
        }
    }
}

/// Deep equality of values of one type, after Go's `reflect.DeepEqual`.
impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Nil, Value::Nil) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::List(a), Value::List(b)) => a == b,
            (Value::Map(a), Value::Map(b)) => Rc::ptr_eq(a, b) || *a.borrow() == *b.borrow(),
            _ => false,
        }
    }
}

impl From<&serde_json::Value> for Value {
    fn from(value: &serde_json::Value) -> Value {
        match value {
            serde_json::Value::Null => Value::Nil,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(value) => Value::Int(value),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::text(text.as_str()),
            serde_json::Value::Array(items) => Value::list(items.iter().map(Value::from).collect()),
            serde_json::Value::Object(members) => {
                Value::map(members.iter().map(|(key, value)| (key.clone(), Value::from(value))).collect())
            }
        }
    }
}
