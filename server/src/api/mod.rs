//! The edge: gRPC services over the rest of the server. Messages of the wire go no deeper than this folder.
//!
//! - [`gate`] stands before every method and decides who may call it; [`serve`] accepts connections.
//! - One file for each service.
//! - [`convert`] turns messages into values and back; [`status`] turns errors into statuses, and nothing else does.

pub mod agent;
pub mod bundle;
pub mod convert;
pub mod debug;
pub mod entry;
pub mod gate;
pub mod health;
pub mod localauthority;
pub mod logger;
pub mod serve;
pub mod status;
pub mod svid;
pub mod trust_domain;
pub mod watch;

#[cfg(test)]
mod tests;
