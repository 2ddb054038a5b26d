//! Registration entries: who may bear which SPIFFE ID.

use crate::selector::Selector;
use crate::spiffe_id::SpiffeId;
use crate::trust_domain::TrustDomain;

/// The longest hint, in bytes.
pub const MAX_HINT_BYTES: usize = 1024;

/// The longest entry ID, in bytes.
pub const MAX_ENTRY_ID_BYTES: usize = 255;

/// One registration entry. A plain record: the rules for new entries live where entries are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Unique; a UUID unless the operator chose one (`[A-Za-z0-9._-]`, at most 255 bytes).
    pub id: String,
    /// The identity that matching workloads get.
    pub spiffe_id: SpiffeId,
    /// The agent, node alias or server that may hand it out.
    pub parent_id: SpiffeId,
    /// Sorted and without repetitions ([`crate::selector::sorted`]); a workload must show all of them.
    pub selectors: Vec<Selector>,
    /// Seconds; 0 means the server's default.
    pub x509_svid_ttl: i32,
    /// Seconds; 0 means the server's default.
    pub jwt_svid_ttl: i32,
    /// Trust domains whose bundles the workload gets beside its own.
    pub federates_with: Vec<TrustDomain>,
    /// The bearer may administer the server.
    pub admin: bool,
    /// The bearer is a downstream server and may ask for a CA certificate.
    pub downstream: bool,
    /// Unix seconds; 0 means never.
    pub expires_at: i64,
    /// In the operator's order; the first becomes the common name.
    pub dns_names: Vec<String>,
    /// Starts at 0 and grows by one with each update.
    pub revision_number: i64,
    /// The SVID is for an SVID store plugin, not for the Workload API.
    pub store_svid: bool,
    /// Lets a workload tell its identities apart; at most [`MAX_HINT_BYTES`] bytes.
    pub hint: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Present only if the entry was made with them.
    pub additional_attributes: Option<AdditionalAttributes>,
}

impl Entry {
    /// An entry without an ID yet, that says nothing beyond whom it is for.
    pub fn plain(spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: Vec<Selector>) -> Entry {
        Entry {
            id: String::new(),
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            expires_at: 0,
            dns_names: Vec::new(),
            revision_number: 0,
            store_svid: false,
            hint: String::new(),
            created_at: 0,
            additional_attributes: None,
        }
    }
}

/// Rarely used switches of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdditionalAttributes {
    /// The agent fetches the SVID only when a workload asks for it.
    pub disable_x509_svid_prefetch: bool,
    /// JWT-SVIDs of this entry carry a `jti` claim.
    pub jwt_svid_include_jti: bool,
    /// Raw protobuf fields that this version does not know, kept for writing the record back.
    pub unknown: Vec<u8>,
}

/// Why a DNS name cannot go into a certificate. The texts follow SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    #[error("name must be ascii")]
    NotAscii,
    #[error("too many wildcards")]
    TooManyWildcards,
    #[error("wildcard must be first label")]
    WildcardNotFirst,
    #[error("empty or only whitespace")]
    Empty,
    #[error("domain ends with dot")]
    EndsWithDot,
    #[error(
        "idna error: {0:?} breaks the rules for host names (labels of letters, digits, underscores and inner hyphens, 63 bytes each, 253 in all)"
    )]
    Idna(String),
    #[error("input domain name {given:?} does not match idna output {mapped:?}: label mismatch after idna")]
    NotCanonical { given: String, mapped: String },
    #[error("name {0:?} overlaps with an existing wildcard name in the list: wildcard overlap")]
    WildcardOverlap(String),
}

/// What UTS 46 forbids under "STD3 ASCII rules", but for the underscore, which names of services have.
const NOT_IN_NAMES: idna::AsciiDenyList = idna::AsciiDenyList::new(true, " !\"#$%&'()*+,/:;<=>?@[\\]^`{|}~");

/// Checks a DNS name: ASCII, the IDNA rules for looking names up, no trailing dot, one leading `*.` at most.
/// Upper case is refused, for it is not the form that IDNA gives.
pub fn dns_name(name: &str) -> Result<(), DnsNameError> {
    if !name.is_ascii() {
        return Err(DnsNameError::NotAscii);
    }
    let host = match name.matches('*').count() {
        0 => name,
        1 => name.strip_prefix("*.").ok_or(DnsNameError::WildcardNotFirst)?,
        _ => return Err(DnsNameError::TooManyWildcards),
    };
    if host.trim().is_empty() {
        return Err(DnsNameError::Empty);
    }
    if host.ends_with('.') {
        return Err(DnsNameError::EndsWithDot);
    }
    let mapped = idna::uts46::Uts46::new()
        .to_ascii(host.as_bytes(), NOT_IN_NAMES, idna::uts46::Hyphens::Check, idna::uts46::DnsLength::Verify)
        .map_err(|_| DnsNameError::Idna(host.to_owned()))?;
    if mapped != host {
        return Err(DnsNameError::NotCanonical { given: host.to_owned(), mapped: mapped.into_owned() });
    }
    Ok(())
}

/// Refuses lists in which a wildcard name covers another name of the list.
pub fn no_wildcard_overlap(names: &[String]) -> Result<(), DnsNameError> {
    for name in names.iter().filter(|name| !name.starts_with('*')) {
        let parent = name.split_once('.').map_or("", |(_, parent)| parent);
        if names.iter().any(|other| other.strip_prefix("*.") == Some(parent) && !parent.is_empty()) {
            return Err(DnsNameError::WildcardOverlap(name.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_are_accepted() {
        let longest = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
        assert_eq!(longest.len(), 253);
        for name in [
            "com",
            "example.com",
            "*.example.com",
            "xn--ls8h.org",
            "a-b.c",
            "1.2",
            "*.com",
            "_sip.a_b.c",
            &longest,
        ] {
            assert_eq!(dns_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        use DnsNameError as E;
        let idna = |name: &str| Err(E::Idna(name.into()));
        let wide = "a".repeat(64);
        let long = format!("{}a", "abc.".repeat(63)).repeat(2);
        let cases = [
            ("", Err(E::Empty)),
            (" ", Err(E::Empty)),
            ("*.", Err(E::Empty)),
            (".", Err(E::EndsWithDot)),
            ("example.com.", Err(E::EndsWithDot)),
            ("*.foo.*.bar", Err(E::TooManyWildcards)),
            ("foo.*.bar", Err(E::WildcardNotFirst)),
            ("*foo.bar", Err(E::WildcardNotFirst)),
            ("*", Err(E::WildcardNotFirst)),
            ("💩.com", Err(E::NotAscii)),
            ("exämple.com", Err(E::NotAscii)),
            ("foo..bar", idna("foo..bar")),
            (".foo", idna(".foo")),
            ("a b.com", idna("a b.com")),
            ("a/b.com", idna("a/b.com")),
            ("a~b.com", idna("a~b.com")),
            ("a\u{7f}b.com", idna("a\u{7f}b.com")),
            ("-a.com", idna("-a.com")),
            ("a-.com", idna("a-.com")),
            ("ab--c.com", idna("ab--c.com")),
            ("xn--a.com", idna("xn--a.com")),
            ("a:1", idna("a:1")),
            (wide.as_str(), idna(&wide)),
            (long.as_str(), idna(&long)),
            (
                "Example.com",
                Err(E::NotCanonical { given: "Example.com".into(), mapped: "example.com".into() }),
            ),
        ];
        for (name, expected) in cases {
            assert_eq!(dns_name(name), expected, "{name:?}");
        }
    }

    #[test]
    fn a_wildcard_must_not_cover_a_name_beside_it() {
        let check = |names: &[&str]| {
            no_wildcard_overlap(&names.iter().map(|name| (*name).into()).collect::<Vec<_>>())
        };
        assert_eq!(check(&["*.example.com", "example.com", "a.b.example.com", "other.com"]), Ok(()));
        assert_eq!(check(&["a.example.com", "b.example.com"]), Ok(()));
        let refused = Err(DnsNameError::WildcardOverlap("a.example.com".into()));
        assert_eq!(check(&["*.example.com", "a.example.com"]), refused);
        assert_eq!(check(&["a.example.com", "*.example.com"]), refused);
    }
}
