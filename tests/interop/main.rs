//! The real programs, as processes: with client libraries of other languages, with OpenSSL, and with what happens to
//! processes. Peers that are not installed are skipped loudly, and fail under CI (`tests/run.sh peers` installs them).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken fixture ends the test")]

mod clients;
mod configurations;
mod envoy;
mod haproxy;
mod metrics;
mod openssl;
mod processes;
mod socket;
