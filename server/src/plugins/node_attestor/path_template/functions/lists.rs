//! Lists. A list never changes: each function makes a new one.

use super::super::value::Value;
use super::text::items;
use super::{Function, Outcome, count, exactly, int, list, one, wrong};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("list", |a| Ok(Value::list(a.to_vec()))),
    ("tuple", |a| Ok(Value::list(a.to_vec()))),
    ("append", append),
    ("push", append),
    ("mustAppend", append),
    ("mustPush", append),
    ("prepend", prepend),
    ("mustPrepend", prepend),
    ("first", first),
    ("mustFirst", first),
    ("last", last),
    ("mustLast", last),
    ("rest", rest),
    ("mustRest", rest),
    ("initial", initial),
    ("mustInitial", initial),
    ("reverse", reverse),
    ("mustReverse", reverse),
    ("uniq", uniq),
    ("mustUniq", uniq),
    ("compact", compact),
    ("mustCompact", compact),
    ("without", without),
    ("mustWithout", without),
    ("has", has),
    ("mustHas", has),
    ("slice", slice),
    ("mustSlice", slice),
    ("concat", |a| {
        let mut all = Vec::new();
        for (i, value) in a.iter().enumerate() {
            all.extend(items(value, i + 1)?);
        }
        Ok(Value::list(all))
    }),
    ("chunk", chunk),
    ("mustChunk", chunk),
];

fn append(arguments: &[Value]) -> Outcome {
    let [of, item] = exactly(arguments)?;
    let mut all = items(of, 1)?;
    all.push(item.clone());
    Ok(Value::list(all))
}

fn prepend(arguments: &[Value]) -> Outcome {
    let [of, item] = exactly(arguments)?;
    let mut all = items(of, 1)?;
    all.insert(0, item.clone());
    Ok(Value::list(all))
}

fn first(arguments: &[Value]) -> Outcome {
    Ok(list(one(arguments)?, 1)?.first().cloned().unwrap_or(Value::Nil))
}

fn last(arguments: &[Value]) -> Outcome {
    Ok(list(one(arguments)?, 1)?.last().cloned().unwrap_or(Value::Nil))
}

/// Nothing of an empty list.
fn rest(arguments: &[Value]) -> Outcome {
    let all = list(one(arguments)?, 1)?;
    Ok(all.split_first().map_or(Value::Nil, |(_, rest)| Value::list(rest.to_vec())))
}

fn initial(arguments: &[Value]) -> Outcome {
    let all = list(one(arguments)?, 1)?;
    Ok(all.split_last().map_or(Value::Nil, |(_, initial)| Value::list(initial.to_vec())))
}

fn reverse(arguments: &[Value]) -> Outcome {
    Ok(Value::list(list(one(arguments)?, 1)?.iter().rev().cloned().collect()))
}

fn uniq(arguments: &[Value]) -> Outcome {
    let mut kept: Vec<Value> = Vec::new();
    for item in list(one(arguments)?, 1)? {
        if !kept.contains(item) {
            kept.push(item.clone());
        }
    }
    Ok(Value::list(kept))
}

fn compact(arguments: &[Value]) -> Outcome {
    let all = list(one(arguments)?, 1)?;
    Ok(Value::list(all.iter().filter(|item| !item.is_empty()).cloned().collect()))
}

fn without(arguments: &[Value]) -> Outcome {
    let Some((of, omitted)) = arguments.split_first() else { return Err(count(1, 0)) };
    let all = list(of, 1)?;
    Ok(Value::list(all.iter().filter(|item| !omitted.contains(item)).cloned().collect()))
}

fn has(arguments: &[Value]) -> Outcome {
    let [needle, haystack] = exactly(arguments)?;
    match haystack {
        Value::Nil => Ok(Value::Bool(false)),
        haystack => Ok(Value::Bool(list(haystack, 2)?.contains(needle))),
    }
}

fn slice(arguments: &[Value]) -> Outcome {
    let Some((of, bounds)) = arguments.split_first() else { return Err(count(1, 0)) };
    let all = list(of, 1)?;
    if all.is_empty() {
        return Ok(Value::Nil);
    }
    let bound = |i: usize, otherwise: usize| match bounds.get(i) {
        None => Ok(otherwise),
        Some(value @ (Value::Int(_) | Value::Text(_) | Value::Float(_))) => {
            let number = match value {
                Value::Text(text) => text.parse().unwrap_or(0),
                Value::Float(number) => *number as i64,
                number => int(number, i + 2)?,
            };
            usize::try_from(number).map_err(|_negative| format!("slice index {number} out of bounds"))
        }
        Some(other) => Err(wrong(other, i + 2, "int")),
    };
    let (start, end) = (bound(0, 0)?, bound(1, all.len())?);
    let part = all
        .get(start..end)
        .ok_or_else(|| format!("slice bounds out of range [{start}:{end}] of {}", all.len()))?;
    Ok(Value::list(part.to_vec()))
}

fn chunk(arguments: &[Value]) -> Outcome {
    let [size, of] = exactly(arguments)?;
    let size = usize::try_from(int(size, 1)?).ok().filter(|size| *size > 0);
    let size = size.ok_or_else(|| "the size of a chunk must be at least 1".to_owned())?;
    Ok(Value::list(list(of, 2)?.chunks(size).map(|chunk| Value::list(chunk.to_vec())).collect()))
}
