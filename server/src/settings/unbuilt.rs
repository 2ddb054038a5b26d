//! SPIRE's keys that have no effect here: refused by name, unless they are set to what a missing key means.

use finial_daemon::settings::{Section, Value};

/// Why such a key is refused, and what to do.
const REASON: &str = "not built yet; remove the key, or stay with SPIRE until it is built";
const PROFILING: &str = "there is no Go runtime to profile; use perf, for which the programs keep their symbols \
    (docs/operations.md), and leave profiling_enabled out";
const POLICY: &str = "the permission table is part of the program and cannot be replaced by a Rego policy: a policy file \
    that is wrong opens or shuts the whole API; remove the block, or stay with SPIRE if its policy is not the default one";
const WIT: &str = "WIT-SVIDs are not built; remove the flag";

pub(super) fn server(section: &Section) {
    refuse_as(section, &["profiling_enabled"], PROFILING);
    // Without profiling_enabled these have no effect, in SPIRE neither.
    section.int("profiling_port");
    section.int("profiling_freq");
    section.list("profiling_names");
    if let Some(federation) = section.block("federation") {
        refuse(&federation, &["bundle_endpoint", "federates_with"]);
    }
}

pub(super) fn experimental(section: &Section) {
    refuse_as(section, &["auth_opa_policy_engine"], POLICY);
    if section.string("named_pipe_name").is_some_and(|name| !name.is_empty()) {
        section.problem(
            "named_pipe_name",
            "named_pipe_name is not supported in this platform; please use socket_path instead",
        );
    }
    let mut unknown = Vec::new();
    for flag in section.list("feature_flags").unwrap_or_default() {
        match flag.as_str() {
            // It is for tests of the flags, and does nothing.
            "i_am_a_test_flag" => {}
            "wit-svid" => section.problem("feature_flags", WIT),
            _ => unknown.push(flag),
        }
    }
    if !unknown.is_empty() {
        unknown.sort();
        let text = format!("error loading feature flags: unknown feature flag(s): [{}]", unknown.join(" "));
        section.problem("feature_flags", text);
    }
    // Without the flag these have no effect, in SPIRE neither.
    section.parsed::<finial_daemon::keys::KeyType>("wit_key_type");
    section.string("wit_issuer");
}

/// Notes a problem for each of the keys that is set to something.
pub(super) fn refuse(section: &Section, keys: &[&str]) {
    refuse_as(section, keys, REASON);
}

/// As [`refuse`], for another reason.
pub(super) fn refuse_as(section: &Section, keys: &[&str], reason: &str) {
    for key in keys {
        // Marks the key as known; it may come more than once, since each time is refused.
        section.is_block(key);
        if section.source().named(key).any(|item| item.keys.len() > 1 || !is_zero(&item.value.value)) {
            section.problem(key, reason);
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::String(text) => text.is_empty() || text == "false" || text == "0",
        Value::Number(_) => value.float() == Some(0.0),
        Value::List(items) => items.is_empty(),
        Value::Block(block) => block.items.is_empty(),
    }
}
