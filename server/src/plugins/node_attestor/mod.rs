//! Node attestors: how a machine proves what it is before it gets an agent's SVID.

mod agent_path;
pub mod exchange;
pub mod http_challenge;
pub mod join_token;
pub mod path_template;
pub mod sshpop;
pub mod x509pop;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::clock::Clock;
use finial_daemon::settings::{PluginStanza, Section, SettingsError, built_in};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;

use crate::store::{Store, StoreError};

pub use exchange::Exchange;

/// The kind as the configuration names it.
pub const KIND: &str = "NodeAttestor";

/// Judges the evidence that agents bring. One value serves all attestations, at the same time.
#[async_trait]
pub trait NodeAttestor: Send + Sync {
    /// Judges `payload`, asking the agent for more over `exchange` as often as needed. Evidence that may be used once must
    /// be marked as used before this returns, unless [`Evidence::first_use_only`] leaves that to the caller.
    async fn attest(&self, payload: &[u8], exchange: &mut Exchange) -> Result<Evidence, AttestorFault>;
}

/// What an attestor found to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Usually below `/spire/agent/<name of the attestor>/`.
    pub agent_id: SpiffeId,
    pub selectors: Vec<Selector>,
    /// Whether the agent must come here again in place of renewing its SVID.
    pub can_reattest: bool,
    /// Refuse this evidence if an agent of this ID is known, in whatever state.
    pub first_use_only: bool,
}

/// Why an attestor does not vouch for an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AttestorFault {
    pub code: Code,
    /// Seen by the agent; without a prefix that names the attestor.
    pub message: String,
}

/// The gRPC status code that an agent sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    InvalidArgument,
    NotFound,
    PermissionDenied,
    FailedPrecondition,
    Unavailable,
    Internal,
    /// Any other, as an external plugin may give, by number.
    Other(i32),
}

/// What attestors are made with.
#[derive(Clone)]
pub struct Host {
    pub trust_domain: TrustDomain,
    pub store: Store,
    pub clock: Clock,
}

/// Makes an attestor from its part of the configuration.
pub type Make = fn(Section, &Host) -> Result<Arc<dyn NodeAttestor>, SettingsError>;

/// All attestors that this program has.
pub const BUILT_IN: &[(&str, Make)] = &[
    (http_challenge::NAME, http_challenge::make),
    (join_token::NAME, join_token::make),
    (sshpop::NAME, sshpop::make),
    (x509pop::NAME, x509pop::make),
];

/// SPIRE's other attestors, which this program refuses by name.
pub const NOT_BUILT: &[&str] = &["aws_iid", "azure_imds", "azure_msi", "gcp_iit", "k8s_psat", "tpm_devid"];

/// The configured attestors by name. Join tokens are always among them, as in SPIRE.
#[derive(Clone)]
pub struct NodeAttestors {
    by_name: Arc<BTreeMap<String, Arc<dyn NodeAttestor>>>,
}

impl NodeAttestors {
    /// Makes the attestors that the enabled `NodeAttestor` stanzas ask for; other stanzas are passed over. Reads
    /// `plugin_data_file`, where given.
    ///
    /// # Errors
    ///
    /// Names the stanza, and what exists instead, for attestors that are not built and for external ones.
    pub fn configure(stanzas: &[PluginStanza], host: &Host) -> Result<NodeAttestors, SettingsError> {
        let join_tokens: Arc<dyn NodeAttestor> = Arc::new(join_token::JoinTokens::new(host));
        let mut by_name = BTreeMap::from([(join_token::NAME.to_owned(), join_tokens)]);
        for stanza in stanzas.iter().filter(|stanza| stanza.kind == KIND && stanza.enabled) {
            let make = built_in(stanza, BUILT_IN, NOT_BUILT)?;
            let section = Section::named(&*stanza.configuration()?, &stanza.data_name());
            by_name.insert(stanza.name.clone(), make(section, host)?);
        }
        Ok(NodeAttestors { by_name: Arc::new(by_name) })
    }

    pub fn get(&self, name: &str) -> Option<&Arc<dyn NodeAttestor>> {
        self.by_name.get(name)
    }

    /// A set made by hand, for embedding and for tests of what uses attestors.
    pub fn of(attestors: impl IntoIterator<Item = (String, Arc<dyn NodeAttestor>)>) -> NodeAttestors {
        NodeAttestors { by_name: Arc::new(attestors.into_iter().collect()) }
    }
}

impl AttestorFault {
    /// The database failed. Where it is and what ails it is for the log alone.
    pub fn of_store(step: &'static str, error: &StoreError) -> AttestorFault {
        tracing::error!(%error, step, "Could not ask the database about a node");
        let code = if error.is_outage() { Code::Unavailable } else { Code::Internal };
        AttestorFault::new(code, step)
    }

    pub fn new(code: Code, message: impl Into<String>) -> AttestorFault {
        AttestorFault { code, message: message.into() }
    }
}

impl fmt::Debug for NodeAttestors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
