//! `join_token`: a one-use secret that an operator made on the server.

use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{Section, SettingsError};
use zeroize::Zeroizing;

use super::{Attestation, Given, NodeAttestor, NodeAttestorFault};

pub const NAME: &str = "join_token";

/// Proves the node by a token that the server forgets when it has seen it.
pub struct JoinToken {
    token: Option<Zeroizing<String>>,
}

/// A token on its way.
struct Shown {
    token: Zeroizing<String>,
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
        NAME
    }

    async fn begin(&self) -> Result<Box<dyn Attestation>, NodeAttestorFault> {
        let token = self.token.clone().ok_or(NodeAttestorFault::NoToken)?;
        Ok(Box::new(Shown { token }))
    }
}

#[async_trait]
impl Attestation for Shown {
    fn payload(&self) -> Vec<u8> {
        self.token.as_bytes().to_vec()
    }

    async fn respond(&mut self, _challenge: &[u8]) -> Result<Vec<u8>, NodeAttestorFault> {
        Err(NodeAttestorFault::UnexpectedChallenge { attestor: NAME })
    }
}

pub(super) fn configure(section: Section, given: &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    section.finish()?;
    Ok(Arc::new(JoinToken::new(given.join_token.clone())))
}
