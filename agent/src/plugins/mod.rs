//! Plugins: each kind has its trait, and a table of what is built in.

pub mod key_manager;
pub mod node_attestor;
pub mod workload_attestor;
