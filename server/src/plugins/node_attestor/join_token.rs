//! `join_token`: a secret that an operator carries to the machine, good for one attestation.
//!
//! The payload is the token itself; there is no challenge. Whoever asks uses the token up, even where that helps nobody
//! (an expired token, a banned agent): it was shown to the network.

use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{Section, SettingsError};

use crate::store::tokens::Taken;

use super::{AttestorFault, Code, Evidence, Exchange, Host, NodeAttestor};

pub const NAME: &str = "join_token";

const UNKNOWN: &str = "failed to attest: join token does not exist or has already been used";
const EXPIRED: &str = "join token expired";

/// The attestor.
pub struct JoinTokens {
    host: Host,
}

/// For the plugin table. There is nothing to configure.
pub fn make(settings: Section, host: &Host) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    settings.finish()?;
    Ok(Arc::new(JoinTokens::new(host)))
}

impl JoinTokens {
    pub fn new(host: &Host) -> JoinTokens {
        JoinTokens { host: host.clone() }
    }
}

#[async_trait]
impl NodeAttestor for JoinTokens {
    async fn attest(&self, payload: &[u8], _exchange: &mut Exchange) -> Result<Evidence, AttestorFault> {
        let refused = |text: &str| AttestorFault::new(Code::InvalidArgument, text);
        let token = std::str::from_utf8(payload).map_err(|_| refused(UNKNOWN))?;
        let internal = |what: &str, error: &dyn std::fmt::Display| {
            AttestorFault::new(Code::Internal, format!("failed to {what}: {error}"))
        };
        // Read and removed in one transaction: of two agents with one token, one wins.
        match self.host.store.tokens().take(token, self.host.clock.unix()).await {
            Ok(Taken::Valid) => {}
            Ok(Taken::Expired) => return Err(refused(EXPIRED)),
            Ok(Taken::Missing) => return Err(refused(UNKNOWN)),
            Err(error) => return Err(AttestorFault::of_store("failed to fetch join token", &error)),
        }
        let agent_id = self.host.trust_domain.agent_id(&format!("/join_token/{token}"));
        let agent_id = agent_id.map_err(|error| internal("create join token ID", &error))?;
        Ok(Evidence { agent_id, selectors: Vec::new(), can_reattest: false, first_use_only: false })
    }
}
