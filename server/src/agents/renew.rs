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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use finial_daemon::clock::Clock;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::access::fixture::noon;
    use crate::entries::fixture::{id, td};
    use crate::store::OpenSettings;
    use crate::store::agents::{AttestedNode, NodeUpdate};

    async fn store_with_agent() -> (Store, SpiffeId) {
        let store = Store::open(OpenSettings::new(":memory:", td(), Clock::paused(noon()))).await.unwrap();
        let agent = id("/spire/agent/join_token/a");
        let node = AttestedNode {
            spiffe_id: agent.clone(),
            attestation_type: "join_token".into(),
            serial_number: "7".into(),
            expires_at: 100,
            new_serial_number: String::new(),
            new_expires_at: 0,
            can_reattest: false,
            agent_version: String::new(),
            selectors: Vec::new(),
        };
        store.agents().create(node).await.unwrap();
        (store, agent)
    }

    fn csr() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    #[tokio::test]
    async fn a_renewal_notes_the_new_serial_beside_the_old_one() {
        let (store, agent) = store_with_agent().await;
        for serial in ["8", "9"] {
            let (renewable, _csr) = check(&store, &agent, Some(&csr())).await.unwrap();
            assert_eq!(renewable.agent_id(), &agent);
            record(&store, &renewable, serial, noon() + Duration::from_secs(60)).await.unwrap();
            let node = store.agents().get(&agent).await.unwrap().unwrap();
            assert_eq!((node.serial_number.as_str(), node.expires_at), ("7", 100), "untouched");
            assert_eq!(node.new_serial_number, serial);
            assert_eq!(node.new_expires_at, unix_seconds(noon()) + 60);
        }
    }

    #[tokio::test]
    async fn refusals_come_in_order_with_their_texts() {
        let (store, agent) = store_with_agent().await;
        let unknown = id("/spire/agent/join_token/b");
        let text = |outcome: Result<_, RenewFault>| outcome.map(|_| ()).unwrap_err().to_string();
        assert_eq!(text(check(&store, &unknown, None).await), "agent not found");
        assert_eq!(text(check(&store, &agent, None).await), "params cannot be nil");
        assert_eq!(text(check(&store, &agent, Some(&[])).await), "missing CSR");
        let bad = text(check(&store, &agent, Some(b"bad")).await);
        assert!(bad.starts_with("failed to parse CSR: "), "{bad}");

        let update = NodeUpdate { can_reattest: Some(true), ..NodeUpdate::default() };
        store.agents().update(&agent, update).await.unwrap();
        assert_eq!(text(check(&store, &agent, None).await), "agent must reattest instead of renew");
    }

    #[tokio::test]
    async fn an_agent_that_was_evicted_meanwhile_is_not_found() {
        let (store, agent) = store_with_agent().await;
        let (renewable, _csr) = check(&store, &agent, Some(&csr())).await.unwrap();
        store.agents().delete(&agent).await.unwrap();
        let fault = record(&store, &renewable, "8", noon()).await.unwrap_err();
        assert!(matches!(fault, RenewFault::NotFound), "{fault}");
    }
}
