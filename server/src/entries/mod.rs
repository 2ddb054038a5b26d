//! Registration entries: what makes one valid, which agent may serve which, and the copy in memory that answers
//! this without the database.
//!
//! - [`new_entry`]: every rule about an entry, applied to what a caller sent.
//! - [`snapshot`]: an immutable, indexed copy of all entries and of the agents' selectors.
//! - [`authorized`]: which entries an agent may serve, as plain functions over a snapshot.
//! - [`feed`]: keeps the snapshot in step with the database; `gaps` keeps its place in an event table.

pub mod authorized;
pub mod feed;
mod gaps;
pub mod new_entry;
pub mod snapshot;

#[cfg(test)]
pub(crate) mod fixture;
