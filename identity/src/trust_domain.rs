//! Trust domains (SPIFFE-ID.md §2.1).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::spiffe_id::{SpiffeId, SpiffeIdError, check_path, check_trust_domain_name};

/// The name of a trust domain, as in `example.org`: `[a-z0-9._-]`, 1 to 255 bytes. It is never treated as a DNS name
/// or an address, and never normalised. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain {
    name: Arc<str>,
}

impl TrustDomain {
    /// Reads a bare name, or takes the trust domain of any SPIFFE ID (`spiffe://example.org[/path]`).
    pub fn parse(name_or_id: &str) -> Result<TrustDomain, SpiffeIdError> {
        // ":/" and not "://", so that `spiffe:/example.org` is told that its scheme is wrong.
        if name_or_id.contains(":/") {
            return SpiffeId::parse(name_or_id).map(|id| id.trust_domain());
        }
        check_trust_domain_name(name_or_id)?;
        Ok(TrustDomain::from_checked(name_or_id))
    }

    /// The bare name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ID of the trust domain itself, `spiffe://<name>`, without a path.
    pub fn id(&self) -> SpiffeId {
        SpiffeId::join(&self.name, "")
    }

    /// The ID that each server of the trust domain bears: `spiffe://<name>/spire/server`.
    pub fn server_id(&self) -> SpiffeId {
        SpiffeId::join(&self.name, "/spire/server")
    }

    /// An agent's ID: `spiffe://<name>/spire/agent` followed by `path`, which must start with `/`.
    pub fn agent_id(&self, path: &str) -> Result<SpiffeId, SpiffeIdError> {
        check_path(path)?;
        SpiffeId::from_parts(self, &format!("/spire/agent{path}"))
    }

    pub(crate) fn from_checked(name: &str) -> TrustDomain {
        TrustDomain { name: Arc::from(name) }
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<TrustDomain, SpiffeIdError> {
        TrustDomain::parse(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
