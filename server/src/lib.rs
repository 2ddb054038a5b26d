//! The trust domain's authority.

pub mod access;
pub mod agents;
pub mod api;
pub mod authority;
pub mod build;
pub mod bundles;
pub mod cli;
pub mod entries;
pub mod plugins;
pub mod run;
pub mod settings;
pub mod store;

pub use cli::main_with;
