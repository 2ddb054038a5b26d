//! What comes from the server: entries, bundles and SVIDs; and how often to ask.

pub mod cadence;
pub mod client;
pub mod entries;
mod last;
pub mod svids;

pub use last::LastSync;
