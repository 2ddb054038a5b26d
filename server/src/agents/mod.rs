//! Agents: how one proves its node, keeps its SVID alive, loses it, and is forgotten.

pub mod attest;
pub mod prune;
pub mod renew;
pub mod standing;
