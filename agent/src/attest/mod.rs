//! Proving what runs here: this node to the server, and workloads to this agent.

pub mod node;
pub mod workload;
