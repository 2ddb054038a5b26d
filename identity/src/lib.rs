//! The values of workload identity: what a SPIFFE ID, a selector, an entry, an SVID, a signing request and a
//! bundle are, and which rules hold for them on paper.
//!
//! Nothing here waits, reads a clock, opens a file or knows the wire. Time is always an argument.

pub mod bundle;
mod certificate;
pub mod chain;
pub mod csr;
mod distinguished_name;
pub mod entry;
pub mod go_json;
pub mod jwt_svid;
pub mod lifetime;
pub mod peer;
pub mod possession;
pub mod selector;
mod signature;
pub mod spiffe_id;
pub mod ssh;
pub mod trust_domain;
pub mod x509_svid;

pub use spiffe_id::{SpiffeId, SpiffeIdError};
pub use trust_domain::TrustDomain;
