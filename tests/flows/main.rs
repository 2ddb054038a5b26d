//! What must work, end to end, in one process and in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken fixture ends the test")]

mod admin;
mod by_hand;
mod identities;
mod jwt;
mod names;
mod nodes;
mod possession;
mod rotation;
mod sds;
mod trust;
mod upstream;
