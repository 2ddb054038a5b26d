//! What must not happen when things go wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken fixture ends the test")]

mod absence;
mod disk;
mod full;
mod input;
mod time;
