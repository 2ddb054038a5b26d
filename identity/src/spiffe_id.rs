//! SPIFFE IDs (SPIFFE-ID.md).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::trust_domain::TrustDomain;

/// The longest SPIFFE ID, in bytes (SPIFFE-ID.md §2.3). Longer input is refused everywhere.
pub const MAX_ID_BYTES: usize = 2048;

/// The longest trust domain name, in bytes (SPIFFE-ID.md §2.3, note). Longer input is refused everywhere.
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// A SPIFFE ID: `spiffe://<trust domain>[/<path>]`.
///
/// Holding one means that it is well formed (SPIFFE-ID.md §2) and at most [`MAX_ID_BYTES`] long. Nothing is
/// normalised: upper case in the scheme or the trust domain is refused, so two IDs are the same if and only if their
/// texts are. Cloning is cheap; the text is shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    path_start: u16,
}

/// Why a text is not a SPIFFE ID or trust domain. The first nine sentences are those of go-spiffe, which clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    #[error(
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
    )]
    BadTrustDomainCharacter,
    #[error("path segment characters are limited to letters, numbers, dots, dashes, and underscores")]
    BadPathCharacter,
    #[error("path cannot contain dot segments")]
    DotSegment,
    #[error("path must have a leading slash")]
    NoLeadingSlash,
    #[error("cannot be empty")]
    Empty,
    #[error("path cannot contain empty segments")]
    EmptySegment,
    #[error("trust domain is missing")]
    MissingTrustDomain,
    #[error("path cannot have a trailing slash")]
    TrailingSlash,
    #[error("scheme is missing or invalid")]
    WrongScheme,
    /// Not in go-spiffe, which has no limit (SPIFFE-ID.md §2.3).
    #[error("SPIFFE ID is longer than 2048 bytes")]
    TooLong,
    /// Not in go-spiffe, which has no limit (SPIFFE-ID.md §2.3).
    #[error("trust domain is longer than 255 bytes")]
    TrustDomainTooLong,
}

/// Why an ID has no place in a trust domain, in SPIRE's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("\"{id}\" is not a member of trust domain \"{trust_domain}\"")]
    OtherTrustDomain { id: SpiffeId, trust_domain: TrustDomain },
    #[error("\"{id}\" is not a member of trust domain \"{trust_domain}\"; path is empty")]
    MemberWithoutPath { id: SpiffeId, trust_domain: TrustDomain },
    #[error("\"{id}\" is not a workload in trust domain \"{trust_domain}\"; path is empty")]
    WorkloadWithoutPath { id: SpiffeId, trust_domain: TrustDomain },
    #[error(
        "\"{id}\" is not a workload in trust domain \"{trust_domain}\"; path is in the reserved namespace"
    )]
    WorkloadInReservedNamespace { id: SpiffeId, trust_domain: TrustDomain },
    #[error("\"{id}\" is not an agent in trust domain \"{trust_domain}\"; path is empty")]
    AgentWithoutPath { id: SpiffeId, trust_domain: TrustDomain },
    #[error(
        "\"{id}\" is not an agent in trust domain \"{trust_domain}\"; path is not in the agent namespace"
    )]
    AgentOutsideNamespace { id: SpiffeId, trust_domain: TrustDomain },
}

impl SpiffeId {
    /// Reads the text form. Nothing is trimmed, decoded or lower-cased.
    pub fn parse(text: &str) -> Result<SpiffeId, SpiffeIdError> {
        if text.is_empty() {
            return Err(SpiffeIdError::Empty);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::WrongScheme)?;
        let name_len = rest.find('/').unwrap_or(rest.len());
        check_trust_domain_name(&rest[..name_len])?;
        check_path(&rest[name_len..])?;
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        Ok(SpiffeId { text: Arc::from(text), path_start: path_start(name_len) })
    }

    /// Joins a trust domain and a path. The path is empty or starts with `/`.
    pub fn from_parts(trust_domain: &TrustDomain, path: &str) -> Result<SpiffeId, SpiffeIdError> {
        check_path(path)?;
        let name = trust_domain.name();
        if SCHEME.len() + name.len() + path.len() > MAX_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        Ok(SpiffeId::join(name, path))
    }

    /// The whole text, `spiffe://...`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain this ID belongs to.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain::from_checked(self.trust_domain_name())
    }

    /// The bare name of the trust domain, as in `example.org`.
    pub fn trust_domain_name(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.path_start)]
    }

    /// The path with its leading `/`, or an empty text.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path_start)..]
    }

    /// Whether the ID is in this trust domain, with or without a path.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.name()
    }

    /// Whether the path is `/spire` or below it: names that only servers and agents bear.
    pub fn is_reserved(&self) -> bool {
        self.path() == "/spire" || self.path().starts_with("/spire/")
    }

    /// Whether the path is below `/spire/agent/`.
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }

    /// Refuses IDs of other trust domains and IDs without a path.
    pub fn member_of(&self, trust_domain: &TrustDomain) -> Result<(), MembershipError> {
        self.in_domain(trust_domain)?;
        if self.path().is_empty() {
            return Err(MembershipError::MemberWithoutPath {
                id: self.clone(),
                trust_domain: trust_domain.clone(),
            });
        }
        Ok(())
    }

    /// Refuses everything but workloads of this trust domain: a path is needed, and not a reserved one.
    pub fn workload_in(&self, trust_domain: &TrustDomain) -> Result<(), MembershipError> {
        self.in_domain(trust_domain)?;
        let (id, trust_domain) = (self.clone(), trust_domain.clone());
        if self.path().is_empty() {
            return Err(MembershipError::WorkloadWithoutPath { id, trust_domain });
        }
        if self.is_reserved() {
            return Err(MembershipError::WorkloadInReservedNamespace { id, trust_domain });
        }
        Ok(())
    }

    /// Refuses everything but agents of this trust domain.
    pub fn agent_in(&self, trust_domain: &TrustDomain) -> Result<(), MembershipError> {
        self.in_domain(trust_domain)?;
        let (id, trust_domain) = (self.clone(), trust_domain.clone());
        if self.path().is_empty() {
            return Err(MembershipError::AgentWithoutPath { id, trust_domain });
        }
        if !self.is_agent() {
            return Err(MembershipError::AgentOutsideNamespace { id, trust_domain });
        }
        Ok(())
    }

    /// For parts that were checked already and are short enough.
    pub(crate) fn join(name: &str, path: &str) -> SpiffeId {
        SpiffeId { text: Arc::from(format!("{SCHEME}{name}{path}")), path_start: path_start(name.len()) }
    }

    fn in_domain(&self, trust_domain: &TrustDomain) -> Result<(), MembershipError> {
        if self.is_member_of(trust_domain) {
            return Ok(());
        }
        Err(MembershipError::OtherTrustDomain { id: self.clone(), trust_domain: trust_domain.clone() })
    }
}

/// Checks a path: empty, or `/`-separated segments of `[A-Za-z0-9._-]`, none of them empty, `.` or `..`.
pub fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    let Some(relative) = path.strip_prefix('/') else {
        return if path.is_empty() { Ok(()) } else { Err(SpiffeIdError::NoLeadingSlash) };
    };
    let mut segments = relative.split('/').peekable();
    while let Some(segment) = segments.next() {
        match check_path_segment(segment) {
            Err(SpiffeIdError::EmptySegment) if segments.peek().is_none() => {
                return Err(SpiffeIdError::TrailingSlash);
            }
            result => result?,
        }
    }
    Ok(())
}

/// Checks one segment of a path.
pub fn check_path_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => Err(SpiffeIdError::EmptySegment),
        "." | ".." => Err(SpiffeIdError::DotSegment),
        _ if segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || is_mark(byte)) => Ok(()),
        _ => Err(SpiffeIdError::BadPathCharacter),
    }
}

pub(crate) fn check_trust_domain_name(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::MissingTrustDomain);
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || is_mark(byte)) {
        return Err(SpiffeIdError::BadTrustDomainCharacter);
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong);
    }
    Ok(())
}

fn is_mark(byte: u8) -> bool {
    matches!(byte, b'.' | b'-' | b'_')
}

/// A name has at most 255 bytes, so this cannot overflow.
fn path_start(name_len: usize) -> u16 {
    (SCHEME.len() + name_len) as u16
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::parse(text)
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
