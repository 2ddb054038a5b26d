//! Patterns: Go's RE2 syntax, which is that of the crate `regex` but for details.

use regex::Regex;

use super::super::value::Value;
use super::{Function, Outcome, exactly, int, one, text, texted};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("regexMatch", matches),
    ("mustRegexMatch", matches),
    ("regexFind", find),
    ("mustRegexFind", find),
    ("regexFindAll", find_all),
    ("mustRegexFindAll", find_all),
    ("regexReplaceAll", |a| replace(a, false)),
    ("mustRegexReplaceAll", |a| replace(a, false)),
    ("regexReplaceAllLiteral", |a| replace(a, true)),
    ("mustRegexReplaceAllLiteral", |a| replace(a, true)),
    ("regexSplit", split),
    ("mustRegexSplit", split),
    ("regexQuoteMeta", |a| texted(quoted_meta(&text(one(a)?, 1)?))),
];

fn pattern(value: &Value) -> Result<Regex, String> {
    Regex::new(&text(value, 1)?).map_err(|error| format!("error parsing regexp: {error}"))
}

fn matches(arguments: &[Value]) -> Outcome {
    let [regex, s] = exactly(arguments)?;
    Ok(Value::Bool(pattern(regex)?.is_match(&text(s, 2)?)))
}

fn find(arguments: &[Value]) -> Outcome {
    let [regex, s] = exactly(arguments)?;
    let s = text(s, 2)?;
    texted(pattern(regex)?.find(&s).map_or(String::new(), |found| found.as_str().to_owned()))
}

/// At most so many; a negative number means all.
fn most(value: &Value) -> Result<usize, String> {
    Ok(usize::try_from(int(value, 3)?).unwrap_or(usize::MAX))
}

fn find_all(arguments: &[Value]) -> Outcome {
    let [regex, s, number] = exactly(arguments)?;
    let s = text(s, 2)?;
    Ok(Value::texts(pattern(regex)?.find_iter(&s).take(most(number)?).map(|found| found.as_str())))
}

fn replace(arguments: &[Value], literal: bool) -> Outcome {
    let [regex, s, with] = exactly(arguments)?;
    let (s, with) = (text(s, 2)?, text(with, 3)?);
    let regex = pattern(regex)?;
    let replaced = match literal {
        true => regex.replace_all(&s, regex::NoExpand(&with)),
        false => regex.replace_all(&s, &*with),
    };
    texted(replaced.into_owned())
}

fn split(arguments: &[Value]) -> Outcome {
    let [regex, s, number] = exactly(arguments)?;
    let s = text(s, 2)?;
    let most = most(number)?;
    if most == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let regex = pattern(regex)?;
    if !s.is_empty() && regex.is_match("") {
        // Between all characters: Go gives no empty pieces at the ends.
        let pieces: Vec<_> = regex.split(&s).filter(|piece| !piece.is_empty()).collect();
        if pieces.len() <= most {
            return Ok(Value::texts(pieces));
        }
        let end = pieces[most - 1].as_ptr() as usize - s.as_ptr() as usize;
        let mut kept: Vec<&str> = pieces[..most - 1].to_vec();
        kept.push(&s[end..]);
        return Ok(Value::texts(kept));
    }
    Ok(Value::texts(regex.splitn(&s, most)))
}

fn quoted_meta(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
