//! Proving to the server which node this is.

use finial_daemon::keys::{self, Key, KeyError, spire_subject};
use finial_identity::SpiffeId;
use tokio::sync::Mutex;

use crate::own_svid::{Identity, Trust};
use crate::plugins::node_attestor::{NodeAttestor, NodeAttestorFault};
use crate::sync::client::{CallError, Client, Proved};

/// Why the node was not attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    #[error(transparent)]
    Attestor(#[from] NodeAttestorFault),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("failed to attest: {0}")]
    Call(#[from] CallError),
    #[error("the server signed an agent SVID for {got}, which is no agent of trust domain {trust_domain}")]
    ForeignId { got: SpiffeId, trust_domain: String },
    #[error("the server signed another key than the one of this agent")]
    ForeignKey,
}

/// Proves the node by the attestor and returns what the server signed for the key. When the server is still trusted
/// for being the first met, its bundle is fetched over the same connection and trusted from then on.
pub async fn prove(
    client: &Client,
    identity: &Identity,
    attestor: &dyn NodeAttestor,
    key: &Key,
) -> Result<Proved, AttestError> {
    let attestation = attestor.begin().await?;
    let payload = attestation.payload();
    let csr = keys::csr(key, &spire_subject(), &[]).await?;
    let server = client.anonymous();
    let attestation = Mutex::new(attestation);
    let attestation = &attestation;
    let respond = |challenge: Vec<u8>| async move { attestation.lock().await.respond(&challenge).await };
    let proved = server.attest(attestor.name(), payload, csr, respond).await??;

    let id = proved.svid.id();
    if !id.is_member_of(identity.trust_domain()) || !id.is_agent() {
        let trust_domain = identity.trust_domain().name().to_owned();
        return Err(AttestError::ForeignId { got: id.clone(), trust_domain });
    }
    if proved.svid.public_key_der() != key.public_key_der() {
        return Err(AttestError::ForeignKey);
    }
    if matches!(identity.trust(), Trust::FirstMet) {
        identity.set_trust(Trust::Bundle(server.bundle().await?.into()));
    }
    Ok(proved)
}
