//! The agent: one per node. It proves its node to the server, attests each process that connects to its socket, and
//! pushes rotated SVIDs to it.

pub mod admin_api;
pub mod attest;
pub mod bootstrap;
pub mod build;
pub mod cache;
pub mod cli;
pub mod own_svid;
pub mod plugins;
pub mod run;
pub mod settings;
pub mod storage;
pub mod sync;
pub mod workload_api;

pub use cli::main_with;
