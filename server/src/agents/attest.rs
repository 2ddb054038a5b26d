//! Node attestation: from the evidence that an agent brings to a recorded node.
//!
//! The order of the steps, and the texts, are those of the reference implementation. [`prove`] gives the proof that the
//! issuer asks for, and [`record`] remembers what was issued; nothing is remembered if nothing was issued.

use std::time::SystemTime;

use finial_daemon::clock::unix_seconds;
use finial_identity::csr::{CsrError, VerifiedCsr};
use finial_identity::selector::{Selector, sorted};
use finial_identity::spiffe_id::{MembershipError, SpiffeId};

use crate::plugins::node_attestor::{Code, Exchange, NodeAttestors, join_token};
use crate::store::agents::{AttestedNode, Recorded};
use crate::store::{Store, StoreError};

/// Proof that a node attestor vouched for an agent that is not banned. Only this file makes one.
#[derive(Clone, Debug)]
pub struct Attested {
    agent_id: SpiffeId,
    attestation_type: String,
    selectors: Vec<Selector>,
    can_reattest: bool,
    first_use_only: bool,
}

/// The first message of an agent, nothing checked. `None`: the field was absent.
#[derive(Clone, Debug, Default)]
pub struct ParamsDraft {
    pub data: Option<AttestationData>,
    pub csr: Option<Vec<u8>>,
}

/// The evidence that an agent brings.
#[derive(Clone, Debug, Default)]
pub struct AttestationData {
    /// The name of an attestor.
    pub kind: String,
    pub payload: Vec<u8>,
}

/// The first message of an agent, complete.
#[derive(Clone, Debug)]
pub struct Params {
    pub data: AttestationData,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

/// Why an agent is not attested. [`code`](AttestFault::code) gives the status.
#[derive(Debug, thiserror::Error)]
pub enum AttestFault {
    #[error("malformed param: {0}")]
    MalformedParam(&'static str),
    #[error("error getting node attestor: could not find node attestor type {0:?}")]
    NoAttestor(String),
    /// The attestor's verdict; the text has the attestor's name where SPIRE gives it.
    #[error("{message}")]
    Refused { code: Code, message: String },
    #[error("invalid agent ID: {0}")]
    ForeignId(MembershipError),
    #[error("agent ID cannot collide with the server ID")]
    ServerId,
    #[error("failed to attest: agent is banned")]
    Banned,
    #[error("failed to parse CSR: {0}")]
    Csr(#[from] CsrError),
    #[error("{step}: {error}")]
    Store { step: &'static str, error: StoreError },
}

/// Refuses what is incomplete.
pub fn check_params(draft: Option<ParamsDraft>) -> Result<Params, AttestFault> {
    let malformed = AttestFault::MalformedParam;
    let ParamsDraft { data, csr } = draft.ok_or(malformed("missing params"))?;
    let data = data.ok_or(malformed("missing attestation data"))?;
    let csr = csr.ok_or(malformed("missing X509-SVID parameters"))?;
    if csr.is_empty() {
        return Err(malformed("missing CSR"));
    }
    if data.kind.is_empty() {
        return Err(malformed("missing attestation data type"));
    }
    if data.payload.is_empty() {
        return Err(malformed("missing attestation data payload"));
    }
    Ok(Params { data, csr })
}

/// Has the evidence judged. The CSR is read last, as in SPIRE; unlike there, its signature must be good.
/// `id_as_selector` is the setting `agent_spiffe_id_as_selector`.
pub async fn prove(
    attestors: &NodeAttestors,
    store: &Store,
    id_as_selector: bool,
    params: &Params,
    exchange: &mut Exchange,
) -> Result<(Attested, VerifiedCsr), AttestFault> {
    let kind = &params.data.kind;
    let attestor = attestors.get(kind).ok_or_else(|| AttestFault::NoAttestor(kind.clone()))?;
    let evidence = attestor
        .attest(&params.data.payload, exchange)
        .await
        .map_err(|fault| refused(kind, fault.code, &fault.message))?;

    let agent_id = evidence.agent_id;
    check_agent_id(&agent_id, kind, store)?;
    let mut selectors = evidence.selectors;
    if id_as_selector {
        selectors.push(Selector { kind: "spiffe_id".to_owned(), value: agent_id.to_string() });
    }

    let node = store.agents().get(&agent_id).await;
    let node = node.map_err(|error| AttestFault::Store { step: "failed to fetch agent", error })?;
    if evidence.first_use_only && node.is_some() {
        return Err(used_before(kind, &agent_id));
    }
    if node.as_ref().is_some_and(AttestedNode::is_banned) {
        return Err(AttestFault::Banned);
    }
    let csr = VerifiedCsr::from_der(&params.csr)?;
    let attested = Attested {
        agent_id,
        attestation_type: kind.clone(),
        selectors: sorted(selectors),
        can_reattest: evidence.can_reattest,
        first_use_only: evidence.first_use_only,
    };
    Ok((attested, csr))
}

/// Remembers the SVID that was issued, in one step: selectors replaced, and the node made or brought up to date. `serial` is
/// decimal. To be done before the agent gets the SVID; whoever was banned since [`prove`] is refused here, and so is the
/// later one of two who used at the same time what is good once.
pub async fn record(
    store: &Store,
    attested: &Attested,
    serial: &str,
    not_after: SystemTime,
) -> Result<(), AttestFault> {
    let node = AttestedNode {
        spiffe_id: attested.agent_id.clone(),
        attestation_type: attested.attestation_type.clone(),
        serial_number: serial.to_owned(),
        expires_at: unix_seconds(not_after),
        new_serial_number: String::new(),
        new_expires_at: 0,
        can_reattest: attested.can_reattest,
        agent_version: String::new(),
        selectors: attested.selectors.clone(),
    };
    match store.agents().record_attestation(node, attested.first_use_only).await {
        Ok(Recorded::Created | Recorded::Updated) => Ok(()),
        Ok(Recorded::NotFirst) => Err(used_before(&attested.attestation_type, &attested.agent_id)),
        Ok(Recorded::Banned) => Err(AttestFault::Banned),
        Err(error) => Err(AttestFault::Store { step: "failed to update attested agent", error }),
    }
}

impl Attested {
    pub fn agent_id(&self) -> &SpiffeId {
        &self.agent_id
    }

    /// The name of the attestor that vouched.
    pub fn attestation_type(&self) -> &str {
        &self.attestation_type
    }

    /// Sorted, unique.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// Whether the agent must attest again in place of renewing.
    pub fn can_reattest(&self) -> bool {
        self.can_reattest
    }
}

impl AttestFault {
    pub fn code(&self) -> Code {
        match self {
            AttestFault::MalformedParam(_) | AttestFault::Csr(_) => Code::InvalidArgument,
            AttestFault::NoAttestor(_) => Code::FailedPrecondition,
            AttestFault::Refused { code, .. } => *code,
            AttestFault::ForeignId(_) | AttestFault::ServerId | AttestFault::Store { .. } => Code::Internal,
            AttestFault::Banned => Code::PermissionDenied,
        }
    }
}

fn used_before(kind: &str, agent_id: &SpiffeId) -> AttestFault {
    tracing::error!(spiffe_id = %agent_id, "Attestation data has already been used to attest an agent");
    refused(kind, Code::PermissionDenied, "attestation data has already been used to attest an agent")
}

/// Join tokens are no plugin in SPIRE, so their texts have no plugin's name in front.
fn refused(kind: &str, code: Code, message: &str) -> AttestFault {
    let message = if kind == join_token::NAME {
        message.to_owned()
    } else {
        format!("nodeattestor({kind}): {message}")
    };
    AttestFault::Refused { code, message }
}

fn check_agent_id(agent_id: &SpiffeId, kind: &str, store: &Store) -> Result<(), AttestFault> {
    let td = store.trust_domain();
    agent_id.member_of(td).map_err(AttestFault::ForeignId)?;
    if *agent_id == td.server_id() {
        return Err(AttestFault::ServerId);
    }
    if !agent_id.path().starts_with(&format!("/spire/agent/{kind}/")) {
        tracing::warn!(
            agent_id = %agent_id,
            node_attestor_type = kind,
            "The node attestor produced an agent ID outside of its part of the agent namespace"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
