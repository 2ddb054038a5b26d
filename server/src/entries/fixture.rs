//! Entries for tests.

use finial_identity::entry::Entry;
use finial_identity::selector::{Selector, sorted};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;

pub(crate) fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// An ID in `example.org`; a whole ID is taken as it is.
pub(crate) fn id(path: &str) -> SpiffeId {
    if path.starts_with("spiffe:") { SpiffeId::parse(path) } else { SpiffeId::from_parts(&td(), path) }
        .unwrap()
}

pub(crate) fn selectors(texts: &[&str]) -> Vec<Selector> {
    sorted(texts.iter().map(|text| Selector::parse(text).unwrap()).collect())
}

pub(crate) fn entry(entry_id: &str, parent: &str, spiffe_id: &str, wanted: &[&str]) -> Entry {
    Entry { id: entry_id.to_owned(), ..Entry::plain(id(spiffe_id), id(parent), selectors(wanted)) }
}
