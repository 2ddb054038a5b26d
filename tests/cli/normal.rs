//! What differs from run to run, or is each program's own, taken out of an output before it is compared.
//!
//! Keys, serial numbers, times, tokens, IDs made at random and the working directory become names in angle brackets. Of
//! help texts the names, types and defaults of flags and the names of commands are left: descriptions and examples are each
//! program's own.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

use crate::transcript::Outcome;

/// The outcome without what is not compared. `folder`: the working directory.
pub fn normal(outcome: &Outcome, folder: &Path) -> Outcome {
    let tidy = |text: &str| sorted_bundles(&helpless(&volatile(text, folder)));
    Outcome { code: outcome.code, out: tidy(&outcome.out), err: tidy(&outcome.err) }
}

/// Pattern and what stands for it, in order.
static VOLATILE: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        (
            r"(?s)-----BEGIN ([A-Z ]+)-----\n.*?\n-----END [A-Z ]+-----",
            "-----BEGIN $1-----\n<pem>\n-----END $1-----",
        ),
        (r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", "<jwt>"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
        (r#""(jti)":"[^"]*""#, r#""$1":"<jti>""#),
        (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? [+-]\d{4} \S+", "<time>"),
        (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "<time>"),
        (r"\b[0-9a-f]{40}\b", "<key id>"),
        (r"\b\d{30,50}\b", "<number>"),
        (r"\b1[789]\d{8}\b", "<seconds>"),
        (r"\bafter [0-9.]+(ns|µs|ms|s|m[0-9.]+s)\b", "after <duration>"),
        (r#""uptime":\d+"#, r#""uptime":<uptime>"#),
        (r"(Uptime: +)\S+", "$1<uptime>"),
        (r"[A-Za-z0-9+/_-]{43,}={0,2}", "<base64>"),
        (r"\bbuilt in: .*", "built in: <names>"),
        // What a SPIRE server names a JWT key.
        (r"\b[A-Za-z0-9]{32}\b", "<key id>"),
        (r"\b(spire|finial)-server\b([^/]|$)", "<program>$2"),
        (r"\b(spire|finial)-agent\b([^/]|$)", "<program>$2"),
    ]
    .map(|(pattern, name)| (Regex::new(pattern).unwrap(), name))
    .into()
});

fn volatile(text: &str, folder: &Path) -> String {
    let mut text = text.replace(folder.to_str().unwrap(), "{dir}");
    for (pattern, name) in VOLATILE.iter() {
        text = pattern.replace_all(&text, *name).into_owned();
    }
    text
}

/// The reference program prints the JWT bundles of several trust domains, and the keys of each, in an order that changes
/// from run to run.
fn sorted_bundles(text: &str) -> String {
    const OPEN: &str = "\"keys\": [\n";
    const CLOSE: &str = "\n    ]\n}\n";
    let Some(at) = text.find("bundle(spiffe://") else { return text.to_owned() };
    let bundle = |text: &str| match text.split_once(OPEN) {
        Some((before, keys)) if keys.ends_with(CLOSE) => {
            let mut keys: Vec<&str> = keys[..keys.len() - CLOSE.len()].split(",\n        {").collect();
            keys.iter_mut().for_each(|key| *key = key.trim_start_matches("        {"));
            keys.sort_unstable();
            format!("{before}{OPEN}        {{{}{CLOSE}", keys.join(",\n        {"))
        }
        _ => text.to_owned(),
    };
    let mut bundles: Vec<String> = text[at..].split_inclusive("\n}\n").map(bundle).collect();
    bundles.sort_unstable();
    format!("{}{}", &text[..at], bundles.concat())
}

/// Help texts cut down to names, types and defaults.
fn helpless(text: &str) -> String {
    let group = text.contains("\nSubcommands:\n") || text.starts_with("Subcommands:\n");
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    let mut in_help = false;
    while let Some(line) = lines.next() {
        if line.starts_with("Usage of ") && line.ends_with(':') {
            in_help = true;
            // The reference program's help on a group also shows the flags of all its commands, some of them twice.
            keep(&mut kept, line, !group);
            while let Some(line) = lines.next_if(|line| line.starts_with("  -") || line.starts_with("    \t"))
            {
                let flag = line.starts_with("  -");
                let default = line.rfind("(default ").filter(|_| line.ends_with(')'));
                let default = default.filter(|_| !flag).map(|at| format!("    {}", &line[at..]));
                keep(&mut kept, default.as_deref().unwrap_or(line), !group && (flag || default.is_some()));
            }
        } else if line == "Subcommands:" || line == "Available commands are:" {
            in_help = true;
            keep(&mut kept, line, true);
            while let Some(line) = lines.next_if(|line| line.starts_with("    ")) {
                let name = line.split_whitespace().next().unwrap_or_default();
                keep(&mut kept, &format!("    {name}"), true);
            }
        } else if line == "flag: help requested" || (in_help || group) && line.is_empty() {
            continue;
        } else if in_help && !line.starts_with("Usage: ") {
            // Examples and the like: the rest is Finial's.
            keep(&mut kept, line, line.starts_with("This command is accessed"));
        } else {
            keep(&mut kept, line, true);
        }
    }
    match in_help {
        true => kept,
        false => text.to_owned(),
    }
}

fn keep(kept: &mut String, line: &str, wanted: bool) {
    if wanted {
        kept.push_str(line);
        kept.push('\n');
    }
}

#[test]
fn only_what_changes_is_taken_out() {
    let folder = Path::new("/tmp/x1");
    for (text, normal) in [
        ("open /tmp/x1/a: no such file\n", "open {dir}/a: no such file\n"),
        ("Serial number     : 146392587493621346512394871236491234\n", "Serial number     : <number>\n"),
        ("Expiration time   : 2026-11-22 00:05:14 +0000 UTC\n", "Expiration time   : <time>\n"),
        ("{\"expires_at\":\"1795297481\",\"n\":600}\n", "{\"expires_at\":\"<seconds>\",\"n\":600}\n"),
        ("Token: 7b1f866b-0000-4000-8000-0123456789ab\n", "Token: <uuid>\n"),
        (
            "spiffe://example.org/spire/server /tmp/spire-server/x\n",
            "spiffe://example.org/spire/server /tmp/spire-server/x\n",
        ),
        ("Usage: spire-server [--help]\n", "Usage: <program> [--help]\n"),
        ("X\n\nY", "X\n\nY"),
        ("Received 1 svid after 5.152664ms\n", "Received 1 svid after <duration>\n"),
        (
            "bundle(spiffe://a):\n\t{\n    \"keys\": [\n        {\n2\n        },\n        {\n1\n        }\n    ]\n}\n",
            "bundle(spiffe://a):\n\t{\n    \"keys\": [\n        {\n1\n        },\n        {\n2\n        }\n    ]\n}\n",
        ),
        (
            "t\nbundle(spiffe://b):\n\t{\n}\nbundle(spiffe://a):\n\t{\n}\n",
            "t\nbundle(spiffe://a):\n\t{\n}\nbundle(spiffe://b):\n\t{\n}\n",
        ),
        (
            "flag provided but not defined: -x\nUsage of a b:\n  -n int\n    \tHow many\n    \tof it (default 600)\n  -x value\n    \tZ\n",
            "flag provided but not defined: -x\nUsage of a b:\n  -n int\n    (default 600)\n  -x value\n",
        ),
        (
            "Usage of a b:\n  -n int\n    \tHow many\n\nExamples:\n    finial-server a b\n",
            "Usage of a b:\n  -n int\n",
        ),
        ("Subcommands:\n    a   Does\n    b\n", "Subcommands:\n    a\n    b\n"),
    ] {
        let outcome = Outcome { code: 0, out: text.to_owned(), err: String::new() };
        assert_eq!(super::normal::normal(&outcome, folder).out, normal);
    }
}
