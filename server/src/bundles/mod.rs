//! Trust bundles: our own, and those of others.

pub mod endpoint;
pub mod federated;
pub mod own;
