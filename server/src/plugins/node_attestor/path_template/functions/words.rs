//! Words in a text: their letters' case, their initials, and where lines break.

use super::{Function, Outcome, exactly, int, one, text, texted, too_long};
use crate::plugins::node_attestor::path_template::MOST_BYTES;

pub(super) const TABLE: &[(&str, Function)] = &[
    ("title", |a| {
        let s = text(one(a)?, 1)?;
        let mut in_word = false;
        let mut out = String::new();
        for c in s.chars() {
            if in_word {
                out.push(c);
            } else {
                out.extend(c.to_uppercase());
            }
            in_word = c.is_alphanumeric() || c == '_' || !c.is_ascii() && !c.is_whitespace();
        }
        texted(out)
    }),
    ("untitle", |a| {
        let s = text(one(a)?, 1)?;
        let mut at_start = true;
        let mut out = String::new();
        for c in s.chars() {
            if at_start {
                out.extend(c.to_lowercase());
            } else {
                out.push(c);
            }
            at_start = c.is_whitespace();
        }
        texted(out)
    }),
    ("swapcase", |a| {
        let s = text(one(a)?, 1)?;
        let mut out = String::new();
        for c in s.chars() {
            if c.is_uppercase() {
                out.extend(c.to_lowercase());
            } else {
                out.extend(c.to_uppercase());
            }
        }
        texted(out)
    }),
    ("initials", |a| {
        let s = text(one(a)?, 1)?;
        texted(s.split_whitespace().filter_map(|word| word.chars().next()).collect())
    }),
    ("snakecase", |a| texted(joined(&text(one(a)?, 1)?, '_'))),
    ("kebabcase", |a| texted(joined(&text(one(a)?, 1)?, '-'))),
    ("camelcase", |a| texted(pascal(&text(one(a)?, 1)?))),
    ("wrap", |a| {
        let [width, s] = exactly(a)?;
        wrapped(int(width, 1)?, "\n", &text(s, 2)?, false)
    }),
    ("wrapWith", |a| {
        let [width, separator, s] = exactly(a)?;
        wrapped(int(width, 1)?, &text(separator, 2)?, &text(s, 3)?, true)
    }),
];

fn is_connector(c: char) -> bool {
    c == '-' || c == '_' || c.is_whitespace()
}

/// Small letters, with `connector` between words: `HTTPServer` gives `http_server`, `http2xx` gives `http_2xx`, and
/// `Bld4Floor` gives `bld4_floor`: digits belong to the word before, unless small letters follow them.
fn joined(s: &str, connector: char) -> String {
    let chars: Vec<char> = s.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    let mut in_word = false;
    while at < chars.len() {
        let c = chars[at];
        if is_connector(c) {
            out.push(connector);
            in_word = false;
            at += 1;
            continue;
        }
        if !c.is_alphanumeric() {
            out.push(c);
            in_word = false;
            at += 1;
            continue;
        }
        if in_word {
            out.push(connector);
        }
        let end = word_end(&chars, at);
        out.extend(chars[at..end].iter().flat_map(|c| c.to_lowercase()));
        in_word = true;
        at = end;
    }
    out
}

/// Where the word that starts at `at` ends.
fn word_end(chars: &[char], at: usize) -> usize {
    let run = |from: usize, of: fn(&char) -> bool| from + chars[from..].iter().take_while(|c| of(c)).count();
    let digits = |from: usize| run(from, |c| c.is_numeric());
    let small = |from: usize| run(from, |c| c.is_alphabetic() && !c.is_uppercase());
    if chars[at].is_numeric() {
        // Digits and small letters by turns, such as `2m3s`.
        let mut end = digits(at);
        loop {
            let next = digits(small(end));
            if next == end {
                return end;
            }
            end = next;
        }
    }
    let capitals = run(at, |c| c.is_uppercase());
    let letters = match capitals - at {
        0 | 1 => small(capitals),
        // The last capital begins the next word when small letters follow.
        _ if small(capitals) > capitals => capitals - 1,
        _ => capitals,
    };
    let numbers = digits(letters);
    let belongs = numbers > letters && small(numbers) == numbers;
    if belongs { numbers } else { letters }
}

/// `some_words` gives `SomeWords`. Connectors at the start stay, and all but the last of several in a row.
fn pascal(s: &str) -> String {
    let mut out = String::new();
    let mut rest = s.chars().peekable();
    while let Some(c) = rest.next_if(|c| is_connector(*c)) {
        out.push(c);
    }
    let mut at_start = true;
    // Capitals that follow a capital at the start of a word are made small: `HTTP_SERVER` gives `HttpServer`.
    let mut in_capitals = false;
    while let Some(c) = rest.next() {
        if is_connector(c) {
            if rest.peek().is_none_or(|next| is_connector(*next)) {
                out.push(c);
            }
            at_start = true;
        } else if at_start {
            in_capitals = c.is_uppercase();
            out.extend(c.to_uppercase());
            at_start = false;
        } else if in_capitals && c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            in_capitals = false;
            out.push(c);
        }
    }
    out
}

/// Lines of at most `width` bytes, broken at spaces; `cuts`: a longer word is cut as well.
fn wrapped(width: i64, separator: &str, s: &str, cuts: bool) -> Outcome {
    let width = usize::try_from(width).unwrap_or(1).max(1);
    let separator = if separator.is_empty() { "\n" } else { separator };
    if s.len().saturating_mul(separator.len() + 1) > MOST_BYTES {
        return Err(too_long());
    }
    let mut out = String::new();
    let mut rest = s;
    while rest.len() > width {
        if let Some(after) = rest.strip_prefix(' ') {
            rest = after;
            continue;
        }
        let space = rest.as_bytes()[..=width].iter().rposition(|byte| *byte == b' ');
        let (line, after) = match space {
            Some(space) => (&rest[..space], &rest[space + 1..]),
            None if cuts => match rest.is_char_boundary(width) {
                true => rest.split_at(width),
                false => return Err(format!("a line of {width} bytes would end within a character")),
            },
            None => match rest[rest.ceil_char_boundary(width)..].find(' ') {
                Some(space) => {
                    let space = rest.ceil_char_boundary(width) + space;
                    (&rest[..space], &rest[space + 1..])
                }
                None => break,
            },
        };
        out.push_str(line);
        out.push_str(separator);
        rest = after;
    }
    out.push_str(rest);
    texted(out)
}
