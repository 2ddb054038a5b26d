//! What comes from the server: entries, bundles, SVIDs and tokens; and how often to ask.

pub mod cadence;
pub mod client;
pub mod entries;
pub mod jwt_svids;
mod last;
pub mod svids;

pub use last::LastSync;
