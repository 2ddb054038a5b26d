//! What the SPIFFE standards and SPIRE's wire promise, asked of a whole trust domain in one process.
//!
//! The numbers U01 to U55, V, R and X5 are those of the conformance checklist that the project works from. Cases of the
//! Workload API that are held elsewhere, because they need more than one process or belong to a story told there:
//!
//! | Case | Held in |
//! |---|---|
//! | U31-U44 endpoint URIs | the client libraries in `interop`; the agent has no endpoint URI of its own |
//! | U46 passed sockets, recycled process IDs | `interop::processes` |
//! | U47 enterprise chains | `flows::upstream`, `interop::clients` |
//! | U48 equal hints | `flows::identities` |
//! | U49 server away | `faults::absence` |
//! | U52 agent restarted | `interop::processes` |
//! | U53 TLS on the socket, U55 connections that come, go and hang | `interop::socket` |
//!
//! The cases J01 to J65 of JWT-SVIDs are held in `identity`'s tests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken fixture ends the test")]

mod certificates;
mod permissions;
mod requests;
mod scenarios;
mod spiffe_ids;
mod streams;
mod workload_api;
