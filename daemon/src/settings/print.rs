//! A block as HCL text.

use super::{Block, Item, Key, Node, Value};

pub(super) fn print(block: &Block) -> String {
    let mut out = String::new();
    for item in &block.items {
        print_item(item, 0, &mut out);
    }
    out
}

fn print_item(item: &Item, depth: usize, out: &mut String) {
    // HCL version 1 has no null; leaving the key out means the same.
    if matches!(item.value.value, Value::Null) {
        return;
    }
    indent(depth, out);
    for (index, key) in item.keys.iter().enumerate() {
        if index > 0 {
            out.push(' ');
        }
        print_key(key, index > 0, out);
    }
    if matches!(item.value.value, Value::Block(_)) {
        out.push(' ');
    } else {
        out.push_str(" = ");
    }
    print_node(&item.value, depth, out);
    out.push('\n');
}

fn print_key(key: &Key, label: bool, out: &mut String) {
    let plain = key.text.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
        && key.text.chars().all(|c| c == '_' || c == '-' || c.is_ascii_alphanumeric())
        && key.text != "true"
        && key.text != "false";
    if plain && !label {
        out.push_str(&key.text);
    } else {
        print_string(&key.text, out);
    }
}

fn print_node(node: &Node, depth: usize, out: &mut String) {
    match &node.value {
        Value::String(text) => print_string(text, out),
        Value::Number(text) => out.push_str(text),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Null => out.push_str("\"\""),
        Value::List(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                print_node(element, depth, out);
            }
            out.push(']');
        }
        Value::Block(block) if block.items.is_empty() => out.push_str("{}"),
        Value::Block(block) => {
            out.push_str("{\n");
            for item in &block.items {
                print_item(item, depth + 1, out);
            }
            indent(depth, out);
            out.push('}');
        }
    }
}

/// A `$` is written as an escape where a brace follows it: between `${` and `}` nothing is escaped, so a text
/// that holds an unbalanced one could not be written otherwise.
fn print_string(text: &str, out: &mut String) {
    out.push('"');
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '$' if chars.peek() == Some(&'{') => out.push_str("\\x24"),
            c if c.is_control() || c == '\u{feff}' => {
                let code = u32::from(c);
                out.push_str(&format!("\\u{code:04x}"));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn indent(depth: usize, out: &mut String) {
    for _ in 0..depth {
        out.push('\t');
    }
}
