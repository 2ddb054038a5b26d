//! SPIRE's keys that have no effect here yet: refused by name, unless they are set to what a missing key means.

use finial_daemon::settings::{Section, Value};

/// Why such a key is refused, and what to do.
const REASON: &str = "not built yet; remove the key, or stay with SPIRE until it is built";

pub(super) fn server(section: &Section) {
    refuse(
        section,
        &[
            "proxy_protocol_trusted_cidrs",
            "profiling_enabled",
            "profiling_port",
            "profiling_freq",
            "profiling_names",
        ],
    );
    if let Some(federation) = section.block("federation") {
        refuse(&federation, &["bundle_endpoint", "federates_with"]);
    }
}

pub(super) fn experimental(section: &Section) {
    refuse(
        section,
        &["auth_opa_policy_engine", "feature_flags", "named_pipe_name", "wit_issuer", "wit_key_type"],
    );
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
