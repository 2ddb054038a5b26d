//! What a workload does with an SVID. [`mtls`] is the whole of sidecar-free mutual TLS.

pub mod mtls;
