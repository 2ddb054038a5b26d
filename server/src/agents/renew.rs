//! Renewal of an agent's SVID without a new attestation.
//!
//! The new serial number is only noted. The old SVID stays good until the new one is first used
//! ([`super::standing`]), so an answer that gets lost costs nothing; the next renewal replaces the note.

use std::time::SystemTime;

use finial_daemon::clock::unix_seconds;
use finial_identity::csr::{CsrError, VerifiedCsr};
use finial_identity::spiffe_id::SpiffeId;

use crate::store::{Store, StoreError};

/// Proof that an agent may have its SVID renewed without attesting again. Only this file makes one.
#[derive(Clone, Debug)]
pub struct Renewable {
    agent_id: SpiffeId,
}

/// Why a renewal is refused.
#[derive(Debug, thiserror::Error)]
pub enum RenewFault {
    /// `NOT_FOUND`.
    #[error("agent not found")]
    NotFound,
    /// `PERMISSION_DENIED`, with the reason `AGENT_MUST_REATTEST` in the details.
    #[error("agent must reattest instead of renew")]
    MustReattest,
    /// `INVALID_ARGUMENT`.
    #[error("params cannot be nil")]
    NoParams,
    /// `INVALID_ARGUMENT`.
    #[error("missing CSR")]
    NoCsr,
    /// `INVALID_ARGUMENT`.
    #[error("failed to parse CSR: {0}")]
    Csr(#[from] CsrError),
    /// `INTERNAL`.
    #[error("failed to fetch agent: {0}")]
    Fetch(StoreError),
    /// `INTERNAL`.
    #[error("failed to update agent: {0}")]
    Update(StoreError),
}

/// Checks a renewal that the agent itself asks for; that the caller is this agent, and active, is known already. `csr` is
/// DER; `None`: the parameters were absent.
pub async fn check(
    store: &Store,
    agent_id: &SpiffeId,
    csr: Option<&[u8]>,
) -> Result<(Renewable, VerifiedCsr), RenewFault> {
    let node = store.agents().get(agent_id).await.map_err(RenewFault::Fetch)?.ok_or(RenewFault::NotFound)?;
    if node.can_reattest {
        return Err(RenewFault::MustReattest);
    }
    let csr = csr.ok_or(RenewFault::NoParams)?;
    if csr.is_empty() {
        return Err(RenewFault::NoCsr);
    }
    let csr = VerifiedCsr::from_der(csr)?;
    Ok((Renewable { agent_id: agent_id.clone() }, csr))
}

/// Notes the SVID that was issued as the agent's next one. `serial` is decimal. To be done before the agent gets the SVID.
pub async fn record(
    store: &Store,
    renewable: &Renewable,
    serial: &str,
    not_after: SystemTime,
) -> Result<(), RenewFault> {
    match store.agents().set_pending(&renewable.agent_id, serial, unix_seconds(not_after)).await {
        Ok(_) => Ok(()),
        Err(StoreError::NotFound(_)) => Err(RenewFault::NotFound),
        Err(error) => Err(RenewFault::Update(error)),
    }
}

impl Renewable {
    pub fn agent_id(&self) -> &SpiffeId {
        &self.agent_id
    }
}
