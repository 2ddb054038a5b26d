//! Texts: cut, compare, repeat, encode.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::MOST_BYTES;
use super::super::format::quoted;
use super::super::value::Value;
use super::{Function, Outcome, count, exactly, int, list, one, text, texted, too_long};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("trim", |a| on_text(a, |s| s.trim().to_owned())),
    ("upper", |a| on_text(a, str::to_uppercase)),
    ("lower", |a| on_text(a, str::to_lowercase)),
    ("nospace", |a| on_text(a, |s| s.chars().filter(|c| !c.is_whitespace()).collect())),
    ("trimAll", |a| with_text(a, |of, s| s.trim_matches(|c| of.contains(c)).to_owned())),
    ("trimSuffix", |a| with_text(a, |end, s| s.strip_suffix(end).unwrap_or(s).to_owned())),
    ("trimPrefix", |a| with_text(a, |start, s| s.strip_prefix(start).unwrap_or(s).to_owned())),
    ("contains", |a| about_text(a, |part, s| s.contains(part))),
    ("hasPrefix", |a| about_text(a, |start, s| s.starts_with(start))),
    ("hasSuffix", |a| about_text(a, |end, s| s.ends_with(end))),
    ("trunc", trunc),
    ("substr", substr),
    ("abbrev", |a| {
        let [width, s] = exactly(a)?;
        abbreviated(&text(s, 2)?, 0, int(width, 1)?)
    }),
    ("abbrevboth", |a| {
        let [left, right, s] = exactly(a)?;
        let (left, right, s) = (int(left, 1)?, int(right, 2)?, text(s, 3)?);
        if right < 4 || left > 0 && right < 7 {
            return texted(s.to_string());
        }
        abbreviated(&s, left, right)
    }),
    ("repeat", |a| {
        let [times, s] = exactly(a)?;
        let (times, s) = (int(times, 1)?, text(s, 2)?);
        let times = usize::try_from(times).map_err(|_negative| "negative Repeat count".to_owned())?;
        if s.len().saturating_mul(times) > MOST_BYTES {
            return Err(too_long());
        }
        texted(s.repeat(times))
    }),
    ("replace", |a| {
        let [old, new, s] = exactly(a)?;
        texted(text(s, 3)?.replace(&*text(old, 1)?, &text(new, 2)?))
    }),
    ("indent", |a| {
        let [spaces, s] = exactly(a)?;
        texted(indented(int(spaces, 1)?, &text(s, 2)?)?)
    }),
    ("nindent", |a| {
        let [spaces, s] = exactly(a)?;
        texted(format!("\n{}", indented(int(spaces, 1)?, &text(s, 2)?)?))
    }),
    ("quote", |a| {
        let texts: Vec<_> = a.iter().filter(|v| **v != Value::Nil).map(|v| quoted(&v.printed())).collect();
        texted(texts.join(" "))
    }),
    ("squote", |a| {
        let texts: Vec<_> =
            a.iter().filter(|v| **v != Value::Nil).map(|v| format!("'{}'", v.printed())).collect();
        texted(texts.join(" "))
    }),
    ("cat", |a| {
        let texts: Vec<_> = a.iter().filter(|v| **v != Value::Nil).map(Value::printed).collect();
        texted(texts.join(" "))
    }),
    ("plural", |a| {
        let [singular, plural, number] = exactly(a)?;
        let (singular, plural) = (text(singular, 1)?, text(plural, 2)?);
        Ok(Value::Text(if int(number, 3)? == 1 { singular } else { plural }))
    }),
    ("toString", |a| texted(one(a)?.printed())),
    ("toStrings", |a| Ok(Value::texts(printed_items(one(a)?)))),
    ("join", |a| {
        let [separator, items] = exactly(a)?;
        texted(printed_items(items).join(&text(separator, 1)?))
    }),
    ("splitList", |a| {
        let [separator, s] = exactly(a)?;
        let (separator, s) = (text(separator, 1)?, text(s, 2)?);
        if separator.is_empty() {
            return Ok(Value::texts(s.chars().map(|c| c.to_string())));
        }
        Ok(Value::texts(s.split(&*separator)))
    }),
    ("sortAlpha", |a| {
        let mut items = match one(a)? {
            Value::List(_) => printed_items(one(a)?),
            other => vec![other.printed()],
        };
        items.sort_unstable();
        Ok(Value::texts(items))
    }),
    ("seq", seq),
    ("b64enc", |a| on_text(a, |s| STANDARD.encode(s))),
    ("b64dec", |a| {
        let bytes = STANDARD.decode(text(one(a)?, 1)?.as_bytes());
        decoded(bytes.map_err(|error| format!("illegal base64 data: {error}"))?)
    }),
    ("b32enc", |a| on_text(a, base32)),
    ("b32dec", |a| decoded(from_base32(&text(one(a)?, 1)?)?)),
    ("sha1sum", |a| on_text(a, |s| digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, s))),
    ("sha256sum", |a| on_text(a, |s| digest(&aws_lc_rs::digest::SHA256, s))),
    ("adler32sum", |a| on_text(a, |s| adler32(s).to_string())),
    ("uuidv4", |a| {
        let [] = exactly(a)?;
        Ok(Value::text(uuid::Uuid::new_v4().to_string()))
    }),
    ("fail", |a| Err(text(one(a)?, 1)?.to_string())),
    ("default", |a| match a {
        [fallback] => Ok(fallback.clone()),
        [fallback, given, ..] => Ok(if given.is_empty() { fallback } else { given }.clone()),
        [] => Err(count(1, 0)),
    }),
    ("empty", |a| Ok(Value::Bool(one(a)?.is_empty()))),
    ("coalesce", |a| Ok(a.iter().find(|value| !value.is_empty()).cloned().unwrap_or(Value::Nil))),
    ("all", |a| Ok(Value::Bool(a.iter().all(|value| !value.is_empty())))),
    ("any", |a| Ok(Value::Bool(a.iter().any(|value| !value.is_empty())))),
    ("ternary", |a| {
        let [yes, no, condition] = exactly(a)?;
        match condition {
            Value::Bool(true) => Ok(yes.clone()),
            Value::Bool(false) => Ok(no.clone()),
            other => Err(super::wrong(other, 3, "bool")),
        }
    }),
];

/// `html`'s escapes.
pub(super) fn html_escaped(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\0' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn on_text(arguments: &[Value], make: impl Fn(&str) -> String) -> Outcome {
    texted(make(&text(one(arguments)?, 1)?))
}

fn with_text(arguments: &[Value], make: impl Fn(&str, &str) -> String) -> Outcome {
    let [with, on] = exactly(arguments)?;
    texted(make(&text(with, 1)?, &text(on, 2)?))
}

fn about_text(arguments: &[Value], holds: impl Fn(&str, &str) -> bool) -> Outcome {
    let [with, on] = exactly(arguments)?;
    Ok(Value::Bool(holds(&text(with, 1)?, &text(on, 2)?)))
}

/// Lengths here count bytes, as Go's do. A cut within a character would not be text and is refused.
fn cut(s: &str, range: std::ops::Range<usize>) -> Outcome {
    match s.get(range.clone()) {
        Some(part) => texted(part.to_owned()),
        None if range.start > range.end || range.end > s.len() => {
            Err(format!("slice bounds out of range [{}:{}] with length {}", range.start, range.end, s.len()))
        }
        None => Err(format!(
            "the cut at bytes {} to {} goes through a character of {s:?}",
            range.start, range.end
        )),
    }
}

fn trunc(arguments: &[Value]) -> Outcome {
    let [length, s] = exactly(arguments)?;
    let (length, s) = (int(length, 1)?, text(s, 2)?);
    let most = usize::try_from(length.unsigned_abs()).unwrap_or(usize::MAX);
    if most >= s.len() {
        return Ok(Value::Text(s));
    }
    if length < 0 { cut(&s, s.len() - most..s.len()) } else { cut(&s, 0..most) }
}

fn substr(arguments: &[Value]) -> Outcome {
    let [start, end, s] = exactly(arguments)?;
    let (start, end, s) = (int(start, 1)?, int(end, 2)?, text(s, 3)?);
    let at = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
    match (start, end) {
        (..0, ..0) => Err(format!("slice bounds out of range [:{end}]")),
        (..0, end) => cut(&s, 0..at(end)),
        (start, ..0) => cut(&s, at(start)..s.len()),
        (start, end) => cut(&s, at(start)..at(end).min(s.len())),
    }
}

/// At most `width` bytes from `offset`, with dots where something was left out.
fn abbreviated(s: &str, offset: i64, width: i64) -> Outcome {
    let Ok(width) = usize::try_from(width) else { return texted(s.to_owned()) };
    if width < 4 || s.len() <= width {
        return texted(s.to_owned());
    }
    let shown = width - 3;
    let offset = usize::try_from(offset).unwrap_or(0).min(s.len() - shown);
    if offset <= 4 {
        return Ok(dotted(cut(s, 0..shown)?, "", "..."));
    }
    if offset + shown < s.len() {
        // The text behind the offset is too long as well, so it is abbreviated in turn.
        if shown < 4 {
            return texted("...".to_owned());
        }
        return Ok(dotted(cut(s, offset..offset + shown - 3)?, "...", "..."));
    }
    Ok(dotted(cut(s, s.len() - shown..s.len())?, "...", ""))
}

fn dotted(middle: Value, before: &str, after: &str) -> Value {
    Value::text(format!("{before}{}{after}", middle.printed()))
}

fn indented(spaces: i64, s: &str) -> Result<String, String> {
    let spaces = usize::try_from(spaces).map_err(|_negative| "negative Repeat count".to_owned())?;
    if spaces.saturating_mul(1 + s.matches('\n').count()) > MOST_BYTES {
        return Err(too_long());
    }
    let pad = " ".repeat(spaces);
    Ok(format!("{pad}{}", s.replace('\n', &format!("\n{pad}"))))
}

fn printed_items(value: &Value) -> Vec<String> {
    match value {
        Value::Nil => Vec::new(),
        Value::List(items) => items.iter().filter(|item| **item != Value::Nil).map(Value::printed).collect(),
        other => vec![other.printed()],
    }
}

/// Numbers from the first to the last, both included; with three arguments the middle one is the step.
fn seq(arguments: &[Value]) -> Outcome {
    let numbers =
        arguments.iter().enumerate().map(|(i, value)| int(value, i + 1)).collect::<Result<Vec<_>, _>>()?;
    let (first, step, last) = match numbers[..] {
        [last] => (1, if last < 1 { -1 } else { 1 }, last),
        [first, last] => (first, if last < first { -1 } else { 1 }, last),
        [first, step, last] => (first, step, last),
        _ => return texted(String::new()),
    };
    let mut out = String::new();
    let mut number = first;
    while step != 0 && if last < first { step < 0 && number >= last } else { step > 0 && number <= last } {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&number.to_string());
        if out.len() > MOST_BYTES {
            return Err(too_long());
        }
        let Some(next) = number.checked_add(step) else { break };
        number = next;
    }
    texted(out)
}

fn decoded(bytes: Vec<u8>) -> Outcome {
    texted(String::from_utf8(bytes).map_err(|_bytes| "the decoded bytes are no text".to_owned())?)
}

fn digest(algorithm: &'static aws_lc_rs::digest::Algorithm, s: &str) -> String {
    hex::encode(aws_lc_rs::digest::digest(algorithm, s.as_bytes()))
}

/// RFC 1950 section 8.2.
fn adler32(s: &str) -> u32 {
    let (a, b) = s.bytes().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// RFC 4648 section 6.
fn base32(s: &str) -> String {
    let mut out = String::new();
    for group in s.as_bytes().chunks(5) {
        let bits =
            group.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)) << (8 * (5 - group.len()));
        let digits = (group.len() * 8).div_ceil(5);
        for i in 0..8 {
            let digit = BASE32[(bits >> (35 - 5 * i) & 31) as usize];
            out.push(if i < digits { char::from(digit) } else { '=' });
        }
    }
    out
}

fn from_base32(s: &str) -> Result<Vec<u8>, String> {
    let illegal = || "illegal base32 data".to_owned();
    let digits = s.trim_end_matches('=');
    if !s.len().is_multiple_of(8) || s.len() - digits.len() > 6 || matches!(digits.len() % 8, 1 | 3 | 6) {
        return Err(illegal());
    }
    let mut out = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = BASE32.iter().position(|known| *known == digit).ok_or_else(illegal)?;
        bits = bits << 5 | value as u32;
        held += 5;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Ok(out)
}

/// The items of a list argument, for the sibling files.
pub(super) fn items(value: &Value, number: usize) -> Result<Vec<Value>, String> {
    Ok(list(value, number)?.to_vec())
}
