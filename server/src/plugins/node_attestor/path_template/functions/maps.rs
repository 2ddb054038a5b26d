//! Dictionaries. `set`, `unset` and the merging functions change their first argument, as in sprig.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::value::Value;
use super::{Function, Outcome, count, exactly, map, one, text};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("dict", |a| {
        let members = a
            .chunks(2)
            .map(|pair| (pair[0].printed(), pair.get(1).cloned().unwrap_or_else(|| Value::text(""))));
        Ok(Value::map(members.collect()))
    }),
    ("get", |a| {
        let [of, key] = exactly(a)?;
        let found = map(of, 1)?.borrow().get(&*text(key, 2)?).cloned();
        Ok(found.unwrap_or_else(|| Value::text("")))
    }),
    ("set", |a| {
        let [of, key, value] = exactly(a)?;
        let changed = map(of, 1)?;
        if reaches(value, changed) {
            return Err("a dict can not hold itself".to_owned());
        }
        changed.borrow_mut().insert(text(key, 2)?.to_string(), value.clone());
        Ok(of.clone())
    }),
    ("unset", |a| {
        let [of, key] = exactly(a)?;
        map(of, 1)?.borrow_mut().remove(&*text(key, 2)?);
        Ok(of.clone())
    }),
    ("hasKey", |a| {
        let [of, key] = exactly(a)?;
        Ok(Value::Bool(map(of, 1)?.borrow().contains_key(&*text(key, 2)?)))
    }),
    ("pluck", |a| {
        let Some((key, dicts)) = a.split_first() else { return Err(count(1, 0)) };
        let key = text(key, 1)?;
        let mut found = Vec::new();
        for (i, of) in dicts.iter().enumerate() {
            found.extend(map(of, i + 2)?.borrow().get(&*key).cloned());
        }
        Ok(Value::list(found))
    }),
    ("keys", |a| {
        let mut keys = Vec::new();
        for (i, of) in a.iter().enumerate() {
            keys.extend(map(of, i + 1)?.borrow().keys().cloned());
        }
        Ok(Value::texts(keys))
    }),
    ("values", |a| Ok(Value::list(map(one(a)?, 1)?.borrow().values().cloned().collect()))),
    ("pick", |a| selected(a, true)),
    ("omit", |a| selected(a, false)),
    ("merge", |a| merged(a, false)),
    ("mustMerge", |a| merged(a, false)),
    ("mergeOverwrite", |a| merged(a, true)),
    ("mustMergeOverwrite", |a| merged(a, true)),
    ("dig", dig),
];

type Members = Rc<RefCell<BTreeMap<String, Value>>>;

/// Whether `members` is `value` or within it.
fn reaches(value: &Value, members: &Members) -> bool {
    match value {
        Value::Map(inside) => {
            Rc::ptr_eq(inside, members) || inside.borrow().values().any(|value| reaches(value, members))
        }
        Value::List(items) => items.iter().any(|item| reaches(item, members)),
        _ => false,
    }
}

fn selected(arguments: &[Value], picks: bool) -> Outcome {
    let Some((of, keys)) = arguments.split_first() else { return Err(count(1, 0)) };
    let keys = keys.iter().enumerate().map(|(i, key)| text(key, i + 2)).collect::<Result<Vec<_>, _>>()?;
    let members = map(of, 1)?.borrow();
    let named = members.iter().filter(|(key, _)| keys.iter().any(|named| **named == ***key) == picks);
    Ok(Value::map(named.map(|(key, value)| (key.clone(), value.clone())).collect()))
}

fn merged(arguments: &[Value], overwrites: bool) -> Outcome {
    let Some((into, sources)) = arguments.split_first() else { return Err(count(1, 0)) };
    for (i, source) in sources.iter().enumerate() {
        // A copy, so that a dictionary can be merged into itself.
        let source = map(source, i + 2)?.borrow().clone();
        merge(map(into, 1)?, source, overwrites)?;
    }
    map(into, 1)?;
    Ok(into.clone())
}

/// Empty values never replace anything; dictionaries within dictionaries are merged too.
fn merge(into: &Members, source: BTreeMap<String, Value>, overwrites: bool) -> Result<(), String> {
    for (key, value) in source {
        if reaches(&value, into) {
            return Err("a dict can not hold itself".to_owned());
        }
        let there = into.borrow().get(&key).cloned();
        match (there, value) {
            (Some(Value::Map(there)), Value::Map(new)) => {
                let new = new.borrow().clone();
                merge(&there, new, overwrites)?;
            }
            (None, value) => {
                into.borrow_mut().insert(key, value);
            }
            (Some(there), value) => {
                if there.is_empty() || overwrites && !value.is_empty() {
                    into.borrow_mut().insert(key, value);
                }
            }
        }
    }
    Ok(())
}

/// `dig KEY … DEFAULT DICT`.
fn dig(arguments: &[Value]) -> Outcome {
    let [keys @ .., fallback, of] = arguments else {
        return Err("dig needs at least three arguments".to_owned());
    };
    if keys.is_empty() {
        return Err("dig needs at least three arguments".to_owned());
    }
    let mut value = of.clone();
    for (i, key) in keys.iter().enumerate() {
        let found = map(&value, arguments.len())?.borrow().get(&*text(key, i + 1)?).cloned();
        let Some(found) = found else { return Ok(fallback.clone()) };
        value = found;
    }
    Ok(value)
}
