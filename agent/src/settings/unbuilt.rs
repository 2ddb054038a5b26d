//! SPIRE's keys that have no effect here: refused by name, with the reason.

use finial_daemon::settings::Section;

const PROFILING: &str = "there is no Go runtime to profile; use perf, for which the programs keep their symbols \
    (docs/operations.md), and leave profiling_enabled out";

const BROKER: &str = "broker is refused: the SPIFFE Broker API is not built yet; remove the block, or stay with SPIRE until it is";

/// Refuses keys of `agent`.
pub(super) fn agent(agent: &Section) {
    if agent.bool("profiling_enabled") == Some(true) {
        agent.problem("profiling_enabled", PROFILING);
    }
    // Without profiling_enabled these have no effect, in SPIRE neither.
    agent.int("profiling_port");
    agent.int("profiling_freq");
    agent.list("profiling_names");
}

/// Refuses keys of `agent.experimental`.
pub(super) fn experimental(experimental: &Section) {
    if experimental.has("broker") {
        experimental.problem("broker", BROKER);
    }
}
