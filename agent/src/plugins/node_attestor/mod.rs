//! Node attestors: how this node proves to the server which node it is.

mod http_challenge;
mod join_token;
mod sshpop;
mod x509pop;

use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{PluginStanza, Section, SettingsError};

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

/// Why a `NodeAttestor` block of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginRefused {
    /// The reference has it, this agent does not.
    #[error("NodeAttestor {name:?} is not built into this agent yet; built in: {}", names())]
    NotBuilt {
        /// The plugin.
        name: String,
    },
    /// Nobody knows it.
    #[error("NodeAttestor {name:?} is unknown; built in: {}", names())]
    Unknown {
        /// The plugin.
        name: String,
    },
    /// It is to be run as a program of its own.
    #[error(
        "NodeAttestor {name:?} has a plugin_cmd: external plugins are not built into this agent yet; built in: {}",
        names()
    )]
    External {
        /// The plugin.
        name: String,
    },
    /// Its own settings are wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// What an attestor is made of besides its own settings.
#[derive(Clone, Default)]
pub struct Given {
    /// `join_token` or the content of `join_token_file`.
    pub join_token: Option<String>,
}

/// One attestor that is part of the agent.
pub struct BuiltIn {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Makes it.
    pub configure: Configure,
}

type Configure = fn(Section, &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError>;

/// All attestors that are part of the agent.
pub const BUILT_IN: &[BuiltIn] = &[
    BuiltIn { name: http_challenge::NAME, configure: http_challenge::configure },
    BuiltIn { name: "join_token", configure: join_token::configure },
    BuiltIn { name: sshpop::NAME, configure: sshpop::configure },
    BuiltIn { name: x509pop::NAME, configure: x509pop::configure },
];

/// What the reference has beyond [`BUILT_IN`].
const NOT_BUILT: &[&str] = &["aws_iid", "azure_imds", "azure_msi", "gcp_iit", "k8s_psat", "tpm_devid"];

/// Makes the attestor that a block of the configuration names. Blocking when its settings are in a file.
pub fn load(stanza: &PluginStanza, given: &Given) -> Result<Arc<dyn NodeAttestor>, PluginRefused> {
    let name = stanza.name.clone();
    if stanza.cmd.as_ref().is_some_and(|cmd| !cmd.is_empty()) {
        return Err(PluginRefused::External { name });
    }
    match BUILT_IN.iter().find(|built_in| built_in.name == name) {
        Some(built_in) => {
            let data = stanza.configuration()?;
            Ok((built_in.configure)(Section::named(&data, &stanza.data_name()), given)?)
        }
        None if NOT_BUILT.contains(&name.as_str()) => Err(PluginRefused::NotBuilt { name }),
        None => Err(PluginRefused::Unknown { name }),
    }
}

fn names() -> String {
    BUILT_IN.iter().map(|built_in| built_in.name).collect::<Vec<_>>().join(", ")
}
