//! SPIRE's keys that have no effect here: refused by name, with the reason.

use finial_daemon::settings::Section;

const PROFILING: &str = "there is no Go runtime to profile; use perf, for which the programs keep their symbols \
    (docs/operations.md), and leave profiling_enabled out";

/// Keys of `agent` that SPIRE has and this agent has not, with what to say of them.
const NOT_BUILT: &[(&str, &str)] = &[("sds", "the Envoy SDS API is not built yet")];

/// Keys of `agent.experimental`, likewise.
const EXPERIMENTAL_NOT_BUILT: &[(&str, &str)] =
    &[("broker", "the SPIFFE Broker API is not built yet; remove the block, or stay with SPIRE until it is")];

/// Refuses keys of `agent`.
pub(super) fn agent(agent: &Section) {
    if agent.bool("profiling_enabled") == Some(true) {
        agent.problem("profiling_enabled", PROFILING);
    }
    // Without profiling_enabled these have no effect, in SPIRE neither.
    agent.int("profiling_port");
    agent.int("profiling_freq");
    agent.list("profiling_names");
    refuse(agent, NOT_BUILT);
}

/// Refuses keys of `agent.experimental`.
pub(super) fn experimental(experimental: &Section) {
    refuse(experimental, EXPERIMENTAL_NOT_BUILT);
}

fn refuse(section: &Section, keys: &[(&str, &str)]) {
    for (key, reason) in keys {
        if section.has(key) {
            section.problem(key, format_args!("{key} is refused: {reason}"));
        }
    }
}
