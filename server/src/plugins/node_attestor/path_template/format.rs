//! Go's `fmt`, as far as templates meet it: `%v` of numbers, `%q`, and `printf`.

use super::value::Value;

/// A float as Go's `%v` prints it: the fewest digits that read back the same, with an exponent from a million on.
pub(super) fn shortest(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e6).contains(&magnitude) {
        exponent(format!("{value:e}"))
    } else {
        format!("{value}")
    }
}

/// A text in Go's double quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `printf`. What does not fit is marked in the result as Go does (`%!d(string=x)`), so that nobody takes it for a path.
pub(super) fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut rest = format.chars().peekable();
    let mut next = values.iter();
    let mut taken = 0;
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = rest.next_if(|c| "+-# 0".contains(*c)) {
            match flag {
                '+' => spec.plus = true,
                '-' => spec.left = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                _ => spec.zero = true,
            }
        }
        spec.width = number(&mut rest);
        if rest.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut rest).unwrap_or(0));
        }
        match rest.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match next.next() {
                Some(value) => {
                    taken += 1;
                    out.push_str(&spec.apply(verb, value));
                }
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            },
        }
    }
    if taken < values.len() {
        let extra: Vec<_> =
            values[taken..].iter().map(|value| format!("{}={}", value.kind(), value.printed())).collect();
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

/// Widths are kept small: a path has no use for more.
const MOST_WIDTH: usize = 1024;

fn number(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<usize> {
    let mut found = None;
    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
        let digit = digit.to_digit(10).unwrap_or(0) as usize;
        found = Some((found.unwrap_or(0) * 10 + digit).min(MOST_WIDTH));
    }
    found
}

#[derive(Default)]
struct Spec {
    plus: bool,
    left: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

impl Spec {
    fn apply(&self, verb: char, value: &Value) -> String {
        if let ('v' | 's' | 'd' | 'q' | 'x' | 'X', Value::List(items)) = (verb, value) {
            let items: Vec<_> = items.iter().map(|item| self.apply(verb, item)).collect();
            return format!("[{}]", items.join(" "));
        }
        let plain = match (verb, value) {
            ('v', Value::Int(value)) | ('d', Value::Int(value)) => return self.digits(value.to_string()),
            ('v', Value::Nil) => "<nil>".to_owned(),
            ('v', value) => value.printed(),
            ('T', value) => value.kind().to_owned(),
            ('s', Value::Text(text)) => self.cut(text),
            ('q', Value::Text(text)) => quoted(&self.cut(text)),
            ('q', Value::Int(value)) => match u32::try_from(*value).ok().and_then(char::from_u32) {
                Some(c) => format!("'{}'", if c == '\'' { "\\'".to_owned() } else { c.to_string() }),
                None => "'\u{fffd}'".to_owned(),
            },
            ('t', Value::Bool(value)) => value.to_string(),
            ('x', Value::Text(text)) => hex::encode(self.cut(text)),
            ('X', Value::Text(text)) => hex::encode_upper(self.cut(text)),
            ('x', Value::Int(value)) => {
                return self.based(*value, "0x", |magnitude| format!("{magnitude:x}"));
            }
            ('X', Value::Int(value)) => {
                return self.based(*value, "0X", |magnitude| format!("{magnitude:X}"));
            }
            ('o', Value::Int(value)) => return self.based(*value, "0", |magnitude| format!("{magnitude:o}")),
            ('b', Value::Int(value)) => {
                return self.based(*value, "0b", |magnitude| format!("{magnitude:b}"));
            }
            ('U', Value::Int(value)) => format!("U+{value:04X}"),
            ('c', Value::Int(value)) => {
                let c = u32::try_from(*value).ok().and_then(char::from_u32);
                c.unwrap_or(char::REPLACEMENT_CHARACTER).to_string()
            }
            ('f' | 'F', Value::Float(value)) => {
                return self.digits(format!("{value:.*}", self.precision.unwrap_or(6)));
            }
            ('e', Value::Float(value)) => {
                return self.digits(exponent(format!("{value:.*e}", self.precision.unwrap_or(6))));
            }
            ('g', Value::Float(value)) => return self.digits(shortest(*value)),
            (verb, Value::Nil) => format!("%!{verb}(<nil>)"),
            (verb, value) => format!("%!{verb}({}={})", value.kind(), value.printed()),
        };
        self.padded(plain, ' ')
    }

    fn cut(&self, text: &str) -> String {
        match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text.to_owned(),
        }
    }

    fn based(&self, value: i64, prefix: &str, digits: impl Fn(u64) -> String) -> String {
        let sign = if value < 0 { "-" } else { "" };
        let prefix = if self.sharp { prefix } else { "" };
        self.digits(format!("{sign}{prefix}{}", digits(value.unsigned_abs())))
    }

    fn digits(&self, text: String) -> String {
        let text = match text.starts_with('-') {
            false if self.plus => format!("+{text}"),
            false if self.space => format!(" {text}"),
            _ => text,
        };
        if !self.zero || self.left {
            return self.padded(text, ' ');
        }
        let sign = text.len() - text.trim_start_matches(['+', '-', ' ']).len();
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..])
    }

    fn padded(&self, text: String, with: char) -> String {
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        let padding: String = std::iter::repeat_n(with, missing).collect();
        if self.left { text + &padding } else { padding + &text }
    }
}

/// Go writes at least two digits and a sign: `1e+06`.
fn exponent(text: String) -> String {
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}
