//! Configuration texts: what is parsed can be printed and parses to the same again; and the server's reading of it.
#![no_main]

use finial_daemon::settings::{Block, Node, Value, expand_env, parse, plugin_stanzas};
use finial_server::settings::{Flags, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };

    let expanded = expand_env(text, |name| (name.len() % 2 == 0).then(|| format!("<{name}>")));
    if !text.contains('$') {
        assert_eq!(expanded, text);
    }
    let _ = parse(&expanded, "expanded.conf");

    match parse(text, "fuzz.conf") {
        Ok(block) => {
            let printed = block.to_hcl();
            let again = parse(&printed, "printed.conf")
                .unwrap_or_else(|error| panic!("{error}\n--- in what was printed:\n{printed}"));
            assert!(same_block(&block, &again), "{block:#?}\n--- was printed as:\n{printed}");
            assert_eq!(again.to_hcl(), printed);
            let _ = Settings::read(&block, &Flags::default());
            if let Ok(stanzas) = plugin_stanzas(&block) {
                for stanza in stanzas {
                    let _ = stanza.configuration();
                }
            }
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            for problem in error.problems() {
                let last = text.lines().count() + 1;
                assert!(problem.at.is_none_or(|at| (1..=last).contains(&(at.line as usize))), "{problem}");
            }
        }
    }
});

/// Equal but for places, and for JSON's null, which HCL does not have.
fn same_block(a: &Block, b: &Block) -> bool {
    let mut left = a.items.iter().filter(|item| !matches!(item.value.value, Value::Null));
    let mut right = b.items.iter();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) => {
                let keys = a.keys.iter().map(|key| &key.text).eq(b.keys.iter().map(|key| &key.text));
                if !keys || !same(&a.value, &b.value) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

fn same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::String(a), Value::String(b)) | (Value::Number(a), Value::Number(b)) => a == b,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Null, Value::String(b)) => b.is_empty(),
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Block(a), Value::Block(b)) => same_block(a, b),
        _ => false,
    }
}
