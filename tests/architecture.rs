//! The house's invariants, held by reading the source. Each test names the rule it holds and, when it
//! fails, the file and line that broke it. The rules are listed in the README's map.

#![allow(clippy::expect_used, reason = "a checkout that can't be read ends the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rooms of the server and the rooms they may name besides themselves. One circle is meant: the `disk` upstream authority
/// is a plugin, and what it signs is signed by `authority/issue`, which asks upstream plugins.
const SERVER_ROOMS: &[(&str, &[&str])] = &[
    ("store", &[]),
    ("plugins", &["authority", "store"]),
    ("entries", &["store"]),
    ("bundles", &["store"]),
    ("agents", &["entries", "plugins", "store"]),
    ("authority", &["access", "agents", "bundles", "entries", "plugins", "store"]),
    ("access", &["agents", "entries", "store"]),
    ("api", &["access", "agents", "authority", "bundles", "entries", "plugins", "store"]),
    ("settings", &["access", "agents", "authority", "entries", "plugins", "store"]),
    ("cli", &["build", "settings", "run"]),
];

/// Rooms of the agent and the rooms they may name besides themselves. Attestation, the own SVID and the calls to the server
/// are one circle: each needs the other two, and none the cache or the socket.
const AGENT_ROOMS: &[(&str, &[&str])] = &[
    ("plugins", &[]),
    ("cache", &[]),
    ("storage", &[]),
    ("own_svid", &["attest", "plugins", "storage", "sync"]),
    ("attest", &["own_svid", "plugins", "storage", "sync"]),
    ("sync", &["attest", "cache", "own_svid", "storage"]),
    ("workload_api", &["attest", "cache", "plugins"]),
    ("admin_api", &["attest", "cache", "own_svid", "sync", "workload_api"]),
    ("settings", &["attest", "cache", "own_svid", "plugins", "storage", "sync", "workload_api"]),
    ("cli", &["build", "own_svid", "settings", "run", "workload_api"]),
];

/// Files over the size guide, each with the reason why it is one thing.
const LONG_FILES: &[(&str, &str)] = &[];

/// Where wire types may be named, by invariant 1. Storage blobs are SPIRE's own protobuf messages, so
/// the store's codec is an edge of its own.
const WIRE_EDGES: &[&str] = &[
    "server/src/api/",
    "server/src/cli/",
    "server/src/store/blob",
    "server/src/store/journal",
    "server/src/build",
    "agent/src/admin_api/",
    "agent/src/workload_api/",
    "agent/src/sync/client",
    "agent/src/cli/",
    "agent/src/plugins/node_attestor/x509pop/workload_api",
];

#[test]
fn crates_depend_downwards_only() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("proto", &[][..]),
        ("identity", &[]),
        ("daemon", &["identity"]),
        ("server", &["daemon", "identity", "proto"]),
        ("agent", &["daemon", "identity", "proto"]),
    ]);
    let mut broken = Vec::new();
    for (krate, may) in allowed {
        let manifest = read(&root().join(krate).join("Cargo.toml"));
        for line in section(&manifest, "[dependencies]") {
            if let Some(dependency) = line.strip_prefix("finial-").and_then(|l| l.split([' ', '=']).next())
                && !may.contains(&dependency)
            {
                broken.push(format!("{krate} depends on {dependency}"));
            }
        }
    }
    let identity = read(&root().join("identity/Cargo.toml"));
    for line in section(&identity, "[dependencies]") {
        let name = line.split([' ', '=']).next().unwrap_or_default();
        if ["tokio", "tonic", "prost", "hyper", "rusqlite", "nix"].contains(&name) {
            broken.push(format!("identity depends on {name}: it holds values, no I/O and no wire"));
        }
    }
    none(broken);
}

#[test]
fn rooms_name_only_the_rooms_below_them() {
    let mut broken = Vec::new();
    for (krate, rooms) in [("server", SERVER_ROOMS), ("agent", AGENT_ROOMS)] {
        for (room, may) in rooms {
            for file in room_files(krate, room) {
                for (number, line) in code_lines(&file) {
                    for named in named_rooms(&line) {
                        let known = rooms.iter().any(|(name, _)| *name == named)
                            || named == "build"
                            || named == "api";
                        if known && named != *room && !may.contains(&named.as_str()) {
                            broken.push(format!("{}:{number}: {room} names {named}", show(&file)));
                        }
                    }
                }
            }
        }
    }
    none(broken);
}

#[test]
fn files_stay_within_the_size_guide() {
    let long = sources()
        .into_iter()
        .map(|file| (code_lines(&file).len(), show(&file)))
        .filter(|(lines, file)| *lines > 600 && !LONG_FILES.iter().any(|(name, _)| name == file))
        .map(|(lines, file)| format!("{file}: {lines} lines without tests (split by 600, or give a reason)"))
        .collect();
    none(long);
}

#[test]
fn wire_types_stop_at_the_edge() {
    none(find(
        |file| file.starts_with("server/") || file.starts_with("agent/"),
        |line| line.contains("finial_proto"),
        |file| WIRE_EDGES.iter().any(|edge| file.starts_with(edge)),
    ));
}

#[test]
fn only_the_clock_reads_time() {
    none(find(
        |_| true,
        |line| ["SystemTime::now(", "Instant::now(", "now_utc("].iter().any(|call| line.contains(call)),
        |file| file == "daemon/src/clock.rs" || file.contains("/benches/"),
    ));
}

#[test]
fn only_issue_signs() {
    none(find(
        |file| file.starts_with("server/src/"),
        |line| line.contains(".sign(") || line.contains("sign_tbs"),
        |file| file.starts_with("server/src/authority/issue"),
    ));
}

#[test]
fn private_keys_can_not_be_printed_copied_or_serialised() {
    const SECRETS: [&str; 7] = ["Key", "KeyPair", "Pair", "FileKey", "WorkloadKey", "TlsKey", "TlsSigner"];
    const FORBIDDEN: [&str; 3] = ["Debug", "Clone", "Serialize"];
    let mut broken = Vec::new();
    let mut seen = Vec::new();
    let rooms = ["daemon/src/keys", "server/src/authority/issue"];
    for file in sources().into_iter().filter(|file| rooms.iter().any(|room| show(file).starts_with(room))) {
        let lines = code_lines(&file);
        for (at, (number, line)) in lines.iter().enumerate() {
            let words: Vec<&str> =
                line.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
            let declared = words
                .iter()
                .position(|word| ["struct", "enum"].contains(word))
                .and_then(|at| words.get(at + 1));
            if let Some(name) = declared.filter(|name| SECRETS.contains(name)) {
                seen.push((*name).to_owned());
                let derive =
                    lines[..at].iter().rev().map(|(_, line)| line).take_while(|line| line.starts_with("#["));
                for derive in derive.filter(|line| FORBIDDEN.iter().any(|word| line.contains(word))) {
                    broken.push(format!("{}:{number}: {name} has {derive}", show(&file)));
                }
            }
            if let ["impl", what, "for", name] = words[..]
                && FORBIDDEN[1..].contains(&what)
                && SECRETS.contains(&name)
            {
                broken.push(format!("{}:{number}: {line}", show(&file)));
            }
        }
    }
    for secret in SECRETS {
        assert!(seen.iter().any(|name| name == secret), "{secret} is gone; name what holds the secret now");
    }
    none(broken);
}

#[test]
fn words_that_say_nothing_are_not_used() {
    let empty_words = ["Manager", "Handler", "Helper", "Util", "Base"];
    let declares = |line: &str| {
        let mut words =
            line.split_whitespace().skip_while(|word| !["struct", "enum", "trait"].contains(word));
        words.next().and_then(|_| words.next()).map(str::to_owned)
    };
    none(find(
        |_| true,
        |line| {
            declares(line).is_some_and(|name| {
                let name = name.split(['<', '(', '{', ';', ':']).next().unwrap_or_default();
                // KeyManager is the operator's own word for the plugin kind.
                !name.starts_with("KeyManager") && empty_words.iter().any(|word| name.contains(word))
            })
        },
        |_| false,
    ));
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    let marks = [concat!("#[", "ignore"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    let mut broken = Vec::new();
    for file in rust_files(&root()) {
        for (number, line) in read(&file).lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                broken.push(format!("{}:{}: {}", show(&file), number + 1, line.trim()));
            }
        }
    }
    none(broken);
}

#[test]
fn one_crypto_provider() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .expect("cargo tree runs");
    assert!(tree.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.lines().any(|line| line.starts_with("aws-lc-rs ")), "aws-lc-rs is the provider");
    for foreign in ["ring ", "openssl ", "native-tls ", "rsa "] {
        assert!(!tree.lines().any(|line| line.starts_with(foreign)), "{foreign}came into the tree");
    }
}

fn none(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout exists")
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn show(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn section<'a>(manifest: &'a str, head: &str) -> impl Iterator<Item = &'a str> {
    manifest.lines().skip_while(move |line| *line != head).skip(1).take_while(|line| !line.starts_with('['))
}

/// Every product source file (no tests, benches, fuzz targets or build output).
fn sources() -> Vec<PathBuf> {
    ["proto", "identity", "daemon", "server", "agent"]
        .iter()
        .flat_map(|krate| rust_files(&root().join(krate).join("src")))
        .filter(|file| !file.ends_with("tests.rs") && !show(file).contains("/tests/"))
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return files };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                files.extend(rust_files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn room_files(krate: &str, room: &str) -> Vec<PathBuf> {
    let source = root().join(krate).join("src");
    let mut files = rust_files(&source.join(room));
    let single = source.join(format!("{room}.rs"));
    if single.exists() {
        files.push(single);
    }
    files.retain(|file| !file.ends_with("tests.rs") && !show(file).contains("/tests/"));
    files
}

/// Numbered lines of a file up to the test module at its end, comments left out.
fn code_lines(file: &Path) -> Vec<(usize, String)> {
    let text = read(file);
    let lines: Vec<&str> = text.lines().collect();
    let tests =
        lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests {"));
    lines[..tests.unwrap_or(lines.len())]
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number + 1, (*line).to_owned()))
        .collect()
}

fn named_rooms(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(group.split(',').map(|part| word(part.trim()))),
            None => rooms.push(word(rest)),
        }
    }
    rooms
}

fn find(
    place: impl Fn(&str) -> bool,
    breaks: impl Fn(&str) -> bool,
    allowed: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut broken = Vec::new();
    for file in sources() {
        let name = show(&file);
        if place(&name) && !allowed(&name) {
            for (number, line) in code_lines(&file) {
                if breaks(&line) {
                    broken.push(format!("{name}:{number}: {}", line.trim()));
                }
            }
        }
    }
    broken
}
