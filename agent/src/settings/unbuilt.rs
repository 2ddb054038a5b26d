//! SPIRE's keys that have no effect here: refused by name, with the reason.

use finial_daemon::settings::Section;

use super::{Flags, RefusedSettings};

/// Keys of `agent` that SPIRE has and this agent has not, with what to say of them.
const NOT_BUILT: &[(&str, &str)] = &[
    ("log_selectors", "selectors are never logged by this agent"),
    ("profiling_enabled", "profiling is not built yet"),
    ("profiling_freq", "profiling is not built yet"),
    ("profiling_names", "profiling is not built yet"),
    ("profiling_port", "profiling is not built yet"),
    ("rebootstrap_delay", "rebootstrapping is not built yet"),
    ("sds", "the Envoy SDS API is not built yet"),
    ("trust_bundle_spiffe_workload_api", "bootstrapping from another Workload API is not built yet"),
];

/// Keys of `agent.experimental`, likewise.
const EXPERIMENTAL_NOT_BUILT: &[(&str, &str)] = &[
    ("admin_named_pipe_name", "it is for Windows"),
    ("broker", "the Broker API is not built yet"),
    ("feature_flags", "this agent has no feature flags"),
    ("named_pipe_name", "it is for Windows"),
    ("ratelimit", "the Workload API's rate limits are not built yet"),
    ("require_pq_kem", "it is not built yet; X25519MLKEM768 is offered first without it"),
];

/// Refuses the blocks beside `agent` that say anything.
pub(super) fn top(top: &Section) {
    for (block, what) in [("telemetry", "telemetry sinks"), ("health_checks", "the health_checks listener")] {
        if top.has(block) && top.block(block).is_some_and(|block| !block.source().items.is_empty()) {
            top.problem(block, format_args!("the {block} block is refused: {what} are not built yet"));
        }
    }
}

/// Refuses keys of `agent`.
pub(super) fn agent(agent: &Section) {
    refuse(agent, NOT_BUILT);
}

/// Refuses keys of `agent.experimental`.
pub(super) fn experimental(experimental: &Section) {
    refuse(experimental, EXPERIMENTAL_NOT_BUILT);
}

/// Refuses flags.
pub(super) fn flags(flags: &Flags) -> Result<(), RefusedSettings> {
    let rebootstraps = flags.rebootstrap_mode.as_deref().is_some_and(|mode| !matches!(mode, "" | "never"));
    let delays = flags.rebootstrap_delay.as_deref().is_some_and(|delay| !delay.is_empty());
    let not_rebootstrapped = "rebootstrapping is not built yet; leave it out";
    for (flag, given, reason) in [
        ("rebootstrapMode", rebootstraps, not_rebootstrapped),
        ("rebootstrapDelay", delays, not_rebootstrapped),
        (
            "disableWorkloadAPI",
            flags.disable_workload_api,
            "an agent without the Workload API has nothing to serve until the broker is built",
        ),
    ] {
        if given {
            return Err(RefusedSettings::FlagNotBuilt(flag, reason));
        }
    }
    Ok(())
}

fn refuse(section: &Section, keys: &[(&str, &str)]) {
    for (key, reason) in keys {
        if section.has(key) {
            section.problem(key, format_args!("{key} is refused: {reason}"));
        }
    }
}
