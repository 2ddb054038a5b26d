//! `-expandEnv`: Go's `os.Expand` with `$$` for a dollar sign.

/// Replaces `$NAME` and `${NAME}` in the whole text, comments included; a name that `lookup` does not know
/// becomes nothing, `$$` becomes `$`. As in Go, `$` before anything else stays, an empty or unclosed brace
/// is dropped, and the one-character names `* # @ ! ? -` and the digits are names.
pub fn expand_env(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, after) = rest.split_at(dollar);
        out.push_str(before);
        let after = after.get(1..).unwrap_or("");
        let (name, length) = name_at(after);
        if name == "$" {
            out.push('$');
        } else if !name.is_empty() {
            out.push_str(&lookup(name).unwrap_or_default());
        } else if length == 0 {
            out.push('$');
        }
        rest = after.get(length..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// The name after a dollar sign and how many bytes it takes; an empty name with a length is bad syntax.
fn name_at(text: &str) -> (&str, usize) {
    if let Some(inner) = text.strip_prefix('{') {
        let special =
            inner.len() >= 2 && inner.starts_with(is_special) && inner.as_bytes().get(1) == Some(&b'}');
        if special {
            return (inner.get(..1).unwrap_or(""), 3);
        }
        return match inner.find('}') {
            Some(end) => (inner.get(..end).unwrap_or(""), end + 2),
            None => ("", 1),
        };
    }
    if text.starts_with(is_special) {
        return (text.get(..1).unwrap_or(""), 1);
    }
    let length = text.find(|c: char| !(c == '_' || c.is_ascii_alphanumeric())).unwrap_or(text.len());
    (text.get(..length).unwrap_or(""), length)
}

fn is_special(c: char) -> bool {
    matches!(c, '*' | '#' | '$' | '@' | '!' | '?' | '-' | '0'..='9')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_go() {
        let lookup = |name: &str| match name {
            "HOME" => Some("/home/gopher".to_string()),
            "H" => Some("(Value of H)".to_string()),
            "*" => Some("all the args".to_string()),
            "1" => Some("ARGUMENT1".to_string()),
            "_x1" => Some("under".to_string()),
            _ => None,
        };
        // The table of Go's own test of os.Expand, plus `$$`.
        for (text, want) in [
            ("", ""),
            ("$*", "all the args"),
            ("${*}", "all the args"),
            ("$1", "ARGUMENT1"),
            ("${1}", "ARGUMENT1"),
            ("now is the time", "now is the time"),
            ("$HOME", "/home/gopher"),
            ("${HOME}", "/home/gopher"),
            ("${H}OME", "(Value of H)OME"),
            ("A$H$1", "A(Value of H)ARGUMENT1"),
            ("$_x1.", "under."),
            ("start$+middle$^end$", "start$+middle$^end$"),
            ("mixed$|bag$$x", "mixed$|bag$x"),
            ("${", ""),
            ("${}", ""),
            ("${unclosed", "unclosed"),
            ("$unset-", "-"),
            ("$\u{e9}", "$\u{e9}"),
            ("a$$$$b", "a$$b"),
        ] {
            assert_eq!(expand_env(text, lookup), want, "{text}");
        }
    }
}
