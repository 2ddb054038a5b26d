//! What the whole-system tests stand on.
//!
//! [`world::World`] is a server and agents in one process over in-memory wires, in virtual time: the real `build`
//! functions with the real configuration files, databases and key files, and no sleeps. [`real`] starts the real
//! programs as processes, for clients of other languages and for what only a process can show.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken fixture ends the test")]

pub mod database;
pub mod enterprise;
pub mod network;
pub mod person;
pub mod raw;
pub mod real;
pub mod stage;
pub mod tokens;
pub mod wire;
pub mod world;
