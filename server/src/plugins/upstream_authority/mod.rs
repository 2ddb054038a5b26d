//! Who stands above our CA, when it does not sign itself.

pub mod disk;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use finial_daemon::clock::Clock;
use finial_daemon::settings::{PluginStanza, Section, SettingsError, built_in};
use finial_identity::trust_domain::TrustDomain;
use rustls_pki_types::CertificateDer;

use super::at_most_one;

/// The operator's name of the kind.
pub const KIND: &str = "UpstreamAuthority";

/// Gives our CA its certificate.
#[async_trait]
pub trait UpstreamAuthority: Send + Sync {
    /// The plugin's name in the configuration.
    fn name(&self) -> &'static str;

    /// A CA certificate for a CSR (DER) that asks for the trust domain's ID. It lasts `preferred_ttl` or less. What comes
    /// back is not trusted: the caller reads and checks all of it.
    async fn mint_x509_ca(&self, csr: &[u8], preferred_ttl: Duration) -> Result<MintedCa, UpstreamError>;

    /// Whether minting could work now, as far as can be told without doing it.
    async fn check(&self) -> Result<(), UpstreamError>;
}

/// What an upstream authority gave.
#[derive(Clone, Debug)]
pub struct MintedCa {
    /// DER; our CA first, then the intermediates towards the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// DER; what goes into the bundle.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why an upstream authority gave nothing; one variant for each built-in.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("UpstreamAuthority \"disk\": {0}")]
    Disk(#[from] disk::DiskFault),
}

/// What every plugin of this kind gets beside its own configuration.
#[derive(Clone)]
pub struct Core {
    pub trust_domain: TrustDomain,
    pub clock: Clock,
}

type Build = fn(Section, Core) -> Result<Arc<dyn UpstreamAuthority>, SettingsError>;

/// What is built in. To add one, write the file and add the line.
pub const BUILT_IN: &[(&str, Build)] = &[("disk", disk::build)];

/// What SPIRE also has.
const OF_SPIRE: &[&str] = &["aws_pca", "awssecret", "cert-manager", "ejbca", "gcp_cas", "spire", "vault"];

/// Builds the UpstreamAuthority of the configuration's `plugins` block; `None` when the CA shall sign itself.
pub fn build(
    stanzas: &[PluginStanza],
    core: Core,
) -> Result<Option<Arc<dyn UpstreamAuthority>>, SettingsError> {
    let Some(stanza) = at_most_one(stanzas, KIND)? else { return Ok(None) };
    let build = built_in(stanza, BUILT_IN, OF_SPIRE)?;
    let configuration = stanza.configuration()?;
    build(Section::named(&configuration, &stanza.data_name()), core).map(Some)
}
