//! Node attestors: how this node proves to the server which node it is.

mod http_challenge;
mod join_token;
mod sshpop;
mod x509pop;

use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{PluginStanza, Section, SettingsError, built_in};

pub use join_token::JoinToken;

/// Proves this node. One value serves all attestations of the agent's life.
#[async_trait]
pub trait NodeAttestor: Send + Sync {
    /// Its name in the configuration, and the attestation type on the wire.
    fn name(&self) -> &'static str;

    /// Begins one attestation: files are read anew, ports are opened. What was begun ends when the value is dropped.
    async fn begin(&self) -> Result<Box<dyn Attestation>, NodeAttestorFault>;
}

/// One attestation, from the payload to the server's verdict.
#[async_trait]
pub trait Attestation: Send + Sync {
    /// What the attestation begins with; never empty.
    fn payload(&self) -> Vec<u8>;

    /// The answer to a challenge; never empty.
    async fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestorFault>;
}

/// Why this node can't prove itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeAttestorFault {
    /// There is nothing to prove it with.
    #[error(
        "no join token was given; make one with `finial-server token generate` and pass it with -joinToken, join_token or join_token_file"
    )]
    NoToken,
    /// The server asked something that this attestor does not answer.
    #[error(
        "the server sent a challenge, which {attestor} has none of; check that both sides are configured with the same node attestor"
    )]
    UnexpectedChallenge {
        /// The attestor.
        attestor: &'static str,
    },
    /// What the proof is made of is not there, or can't be used, at the moment: a file, a socket, a port.
    #[error("{attestor}: {text}")]
    NotReady { attestor: &'static str, text: String },
    /// The server's challenge can't be answered.
    #[error("{attestor}: {text}; check that both sides are configured with the same node attestor")]
    Challenge { attestor: &'static str, text: String },
}

/// What an attestor is made of besides its own settings.
#[derive(Clone, Default)]
pub struct Given {
    /// `join_token` or the content of `join_token_file`.
    pub join_token: Option<String>,
}

/// Makes an attestor from its part of the configuration.
pub type Configure = fn(Section, &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError>;

/// All attestors that are part of the agent.
pub const BUILT_IN: &[(&str, Configure)] = &[
    (http_challenge::NAME, http_challenge::configure),
    (join_token::NAME, join_token::configure),
    (sshpop::NAME, sshpop::configure),
    (x509pop::NAME, x509pop::configure),
];

/// SPIRE's other attestors, which this program refuses by name.
const NOT_BUILT: &[&str] = &["aws_iid", "azure_imds", "azure_msi", "gcp_iit", "k8s_psat", "tpm_devid"];

/// Makes the attestor that a block of the configuration names. Blocking when its settings are in a file.
pub fn load(stanza: &PluginStanza, given: &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    let configure = built_in(stanza, BUILT_IN, NOT_BUILT)?;
    configure(Section::named(&*stanza.configuration()?, &stanza.data_name()), given)
}
