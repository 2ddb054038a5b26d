//! Who is calling, and what that lets them do.
//!
//! - [`handshake`]: TLS of the network listener; [`caller`]: who a connection belongs to.
//! - [`permit`]: one row for each method, and the decision as a plain function. `api::gate` collects the facts for it.
//! - [`limit`]: rate limits; [`audit`]: the audit log.

pub mod audit;
pub mod caller;
pub mod handshake;
pub mod limit;
pub mod permit;

#[cfg(test)]
pub(crate) mod fixture;
