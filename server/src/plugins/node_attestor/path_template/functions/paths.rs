//! Slash-separated paths and URLs.

use std::collections::BTreeMap;

use super::super::value::Value;
use super::{Function, Outcome, map, one, text, texted};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("base", |a| {
        let s = text(one(a)?, 1)?;
        let trimmed = s.trim_end_matches('/');
        texted(match (s.is_empty(), trimmed.is_empty()) {
            (true, _) => ".".to_owned(),
            (false, true) => "/".to_owned(),
            (false, false) => trimmed.rsplit('/').next().unwrap_or(trimmed).to_owned(),
        })
    }),
    ("dir", |a| {
        let s = text(one(a)?, 1)?;
        texted(clean(s.rfind('/').map_or("", |slash| &s[..=slash])))
    }),
    ("clean", |a| texted(clean(&text(one(a)?, 1)?))),
    ("ext", |a| {
        let s = text(one(a)?, 1)?;
        let name = s.rsplit('/').next().unwrap_or("");
        texted(name.rfind('.').map_or(String::new(), |dot| name[dot..].to_owned()))
    }),
    ("isAbs", |a| Ok(Value::Bool(text(one(a)?, 1)?.starts_with('/')))),
    ("urlParse", |a| url_parse(&text(one(a)?, 1)?)),
    ("urlJoin", url_join),
];

/// Escapes all but letters, digits and `-_.~`; a space becomes `+`.
pub(super) fn query_escaped(s: &str) -> String {
    let mut out = String::new();
    for byte in s.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The shortest path that names the same place, by its text alone.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    match (rooted, parts.join("/")) {
        (true, path) => format!("/{path}"),
        (false, path) if path.is_empty() => ".".to_owned(),
        (false, path) => path,
    }
}

/// The parts of a URL (RFC 3986 section 3), path and fragment decoded.
fn url_parse(url: &str) -> Outcome {
    let refused = |why: &str| Err(format!("unable to parse url: parse {url:?}: {why}"));
    if url.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return refused("net/url: invalid control character in URL");
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (scheme, rest) = match rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))) {
        Some(0) if rest.starts_with(':') => return refused("missing protocol scheme"),
        Some(end) if rest[end..].starts_with(':') && rest.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            (rest[..end].to_ascii_lowercase(), &rest[end + 1..])
        }
        _ => (String::new(), rest),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parts: BTreeMap<&str, String> = BTreeMap::new();
    if !scheme.is_empty() && !rest.starts_with('/') {
        parts.insert("opaque", rest.to_owned());
    } else if let Some(rest) = rest.strip_prefix("//") {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (userinfo, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (name, port) = match host.rfind(']') {
            Some(end) => (host[..end].trim_start_matches('['), &host[end + 1..]),
            None => host.split_at(host.rfind(':').unwrap_or(host.len())),
        };
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return refused(&format!("invalid port {port:?} after host"));
        }
        parts.insert("userinfo", userinfo.to_owned());
        parts.insert("host", host.to_owned());
        parts.insert("hostname", name.to_owned());
        parts.insert("path", path.to_owned());
    } else {
        parts.insert("path", rest.to_owned());
    }
    let Some(path) = percent_decoded(parts.remove("path").as_deref().unwrap_or("")) else {
        return refused("invalid URL escape");
    };
    let Some(fragment) = percent_decoded(fragment) else { return refused("invalid URL escape") };
    parts.extend([("scheme", scheme), ("query", query.to_owned()), ("fragment", fragment), ("path", path)]);
    for name in ["opaque", "userinfo", "host", "hostname"] {
        parts.entry(name).or_default();
    }
    Ok(Value::map(parts.into_iter().map(|(name, part)| (name.to_owned(), Value::text(part))).collect()))
}

fn url_join(arguments: &[Value]) -> Outcome {
    let parts = map(one(arguments)?, 1)?.borrow();
    let part = |name: &str| match parts.get(name) {
        None => Ok(String::new()),
        Some(Value::Text(text)) => Ok(text.to_string()),
        Some(other) => {
            Err(format!("unable to parse {name} key, must be of type string, but {} found", other.kind()))
        }
    };
    let (scheme, opaque, userinfo, host) =
        (part("scheme")?, part("opaque")?, part("userinfo")?, part("host")?);
    let mut out = String::new();
    if !scheme.is_empty() {
        out.push_str(&scheme);
        out.push(':');
    }
    if opaque.is_empty() {
        let path = percent_encoded(&part("path")?, b"/");
        if !scheme.is_empty() && !path.is_empty() || !host.is_empty() || !userinfo.is_empty() {
            if !host.is_empty() || !userinfo.is_empty() || path.starts_with('/') {
                out.push_str("//");
            }
            if !userinfo.is_empty() {
                out.push_str(&userinfo);
                out.push('@');
            }
            out.push_str(&host);
        }
        if !path.is_empty() && !path.starts_with('/') && !host.is_empty() {
            out.push('/');
        }
        out.push_str(&path);
    } else {
        out.push_str(&opaque);
    }
    let (query, fragment) = (part("query")?, part("fragment")?);
    if !query.is_empty() {
        out.push('?');
        out.push_str(&query);
    }
    if !fragment.is_empty() {
        out.push('#');
        out.push_str(&percent_encoded(&fragment, b"/?!()*"));
    }
    texted(out)
}

fn percent_decoded(s: &str) -> Option<String> {
    let mut out = Vec::with_capacity(s.len());
    let mut rest = s.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
            rest = &after[2..];
        } else {
            out.push(*first);
            rest = after;
        }
    }
    String::from_utf8(out).ok()
}

/// Escapes what may not stand in a path segment, but for `also`.
fn percent_encoded(s: &str, also: &[u8]) -> String {
    let mut out = String::new();
    for byte in s.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            byte if b"-_.~$&+:=@,;".contains(&byte) || also.contains(&byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
