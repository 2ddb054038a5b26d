
pub mod access;
pub mod agents;
pub mod authority;
pub mod bundles;
pub mod entries;
pub mod plugins;
pub mod store;
