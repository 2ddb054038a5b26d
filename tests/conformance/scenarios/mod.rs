//! What SPIRE's integration suites check, told anew: real programs, driven through their command lines. See
//! [`finial_tests::stage`] for how to run them on SPIRE.
//!
//! | Suite of SPIRE | Here |
//! |---|---|
//! | join-token, evict-agent, node-re-attestation, node-attestation | `nodes` |
//! | entries, events-based-entries, sync-authorized-entries | `entries` |
//! | fetch-x509-svids, fetch-jwt-svids, debug-endpoints, agent-cli | `fetching` |
//! | datastore-postgres, datastore-mysql | `sharing`; and the store's own tests, all of which run on each engine |
//! | rotation, force-rotation-self-signed, -upstream-authority, -jwt-authority | `rotation` |
//! | admin-endpoints, downstream-endpoints | `permissions`, by every method and kind of caller |
//! | spire-server-cli | the golden files of the command lines |
//! | upgrade | by hand, in both directions: see `docs/compatibility.md` |
//!
//! The suites for nested servers, Kubernetes, Vault, brokers, OIDC, federation endpoints and SVID stores belong to parts that
//! are not built.

mod entries;
mod fetching;
mod nodes;
mod rotation;
mod sharing;
