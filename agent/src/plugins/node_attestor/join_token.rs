//! `join_token`: a one-use secret that an operator made on the server.

use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{Section, SettingsError};
use zeroize::Zeroizing;

use super::{Given, NodeAttestor, NodeAttestorFault};

/// Proves the node by a token that the server forgets when it has seen it.
pub struct JoinToken {
    token: Option<Zeroizing<String>>,
}

impl JoinToken {
    /// Without a token an agent can only start with an SVID that it has stored before.
    pub fn new(token: Option<String>) -> JoinToken {
        JoinToken { token: token.filter(|token| !token.is_empty()).map(Zeroizing::new) }
    }
}

#[async_trait]
impl NodeAttestor for JoinToken {
    fn name(&self) -> &'static str {
        "join_token"
    }

    async fn payload(&self) -> Result<Vec<u8>, NodeAttestorFault> {
        self.token.as_ref().map(|token| token.as_bytes().to_vec()).ok_or(NodeAttestorFault::NoToken)
    }

    async fn respond(&self, _challenge: &[u8]) -> Result<Vec<u8>, NodeAttestorFault> {
        Err(NodeAttestorFault::UnexpectedChallenge { attestor: self.name() })
    }
}

pub(super) fn configure(section: Section, given: &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    section.finish()?;
    Ok(Arc::new(JoinToken::new(given.join_token.clone())))
}
