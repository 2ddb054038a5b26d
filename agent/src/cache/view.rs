//! What one workload sees: its identities, and the bundles to judge others by.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use finial_identity::{
    bundle::{
        Bundle,
        document::{self, Content},
    },
    entry::Entry,
    trust_domain::TrustDomain,
};

use super::held::{Svid, concatenated};

/// Everything the agent would tell a workload, at one moment. All parts are shared with other views.
#[derive(Default)]
pub struct View {
    /// Whether entries and bundle have come from the server. Until then the rest says nothing.
    pub synced: bool,
    /// Whether any entry matches the workload.
    pub entitled: bool,
    /// Matching entries that have an SVID, by entry ID. The first one is the workload's default identity.
    pub identities: Vec<Identity>,
    /// How many matching entries have no SVID yet.
    pub waiting: usize,
    /// The bundle of the agent's own trust domain.
    pub bundle: Option<Arc<TrustBundle>>,
    /// The bundles of all trust domains that a matching entry federates with, as far as they are known, by name.
    pub federated: Vec<Arc<TrustBundle>>,
}

/// One identity of a workload.
#[derive(Clone)]
pub struct Identity {
    /// The entry that grants it.
    pub entry: Arc<Entry>,
    /// Chain and key.
    pub svid: Arc<Svid>,
    /// Another identity of this view has the same hint and goes before. The Workload API leaves this one out.
    pub shadowed: bool,
}

/// The authorities of one trust domain, in the shape in which workloads receive them.
pub struct TrustBundle {
    /// `spiffe://` and the trust domain's name.
    pub id: String,
    /// DER authorities laid end to end, tainted ones included: their SVIDs are in use until the last is replaced.
    pub x509: Bytes,
    /// The JWT keys as a JWK Set (JSON), tainted ones included.
    pub jwks: Bytes,
    /// What it was made from.
    pub source: Arc<Bundle>,
}

/// All bundles the agent knows.
#[derive(Default)]
pub(super) struct Bundles {
    pub(super) own: Option<Arc<TrustBundle>>,
    pub(super) federated: BTreeMap<TrustDomain, Arc<TrustBundle>>,
}

impl View {
    /// The identities that the Workload API shows: of those with one non-empty hint, the one whose entry is
    /// oldest, and of equally old ones that with the smallest entry ID.
    pub fn shown(&self) -> impl Iterator<Item = &Identity> {
        self.identities.iter().filter(|identity| !identity.shadowed)
    }

    /// Whether an X.509-SVID answer made from `other` would read the same.
    pub fn same_svids(&self, other: &View) -> bool {
        let bytes = |bundle: &Arc<TrustBundle>| bundle.x509.clone();
        self.identities.len() == other.identities.len()
            && self.identities.iter().zip(&other.identities).all(|(a, b)| a.reads_like(b))
            && self.bundle.as_ref().map(bytes) == other.bundle.as_ref().map(bytes)
            && self.federated.len() == other.federated.len()
            && self.federated.iter().zip(&other.federated).all(|(a, b)| a.id == b.id && a.x509 == b.x509)
    }

    /// Builds the view of whoever matches `entries` (by entry ID). `svid` finds a usable SVID.
    pub(super) fn build(
        synced: bool,
        entries: &[Arc<Entry>],
        svid: impl Fn(&Entry) -> Option<Arc<Svid>>,
        bundles: &Bundles,
    ) -> View {
        let mut identities: Vec<Identity> = entries
            .iter()
            .filter_map(|entry| Some(Identity { entry: entry.clone(), svid: svid(entry)?, shadowed: false }))
            .collect();
        let shown: Vec<Arc<Entry>> = identities.iter().map(|identity| identity.entry.clone()).collect();
        for hidden in outshone(&shown) {
            identities[hidden].shadowed = true;
        }
        View {
            synced,
            entitled: !entries.is_empty(),
            waiting: entries.len() - identities.len(),
            identities,
            bundle: bundles.own.clone(),
            federated: bundles.federated_with(entries),
        }
    }

    /// Whether somebody who has seen `other` needs to see this view: the number of those who still wait for an
    /// SVID matters only when it reaches zero.
    pub(super) fn differs(&self, other: &View) -> bool {
        let same_bundles = |a: &[Arc<TrustBundle>], b: &[Arc<TrustBundle>]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        self.synced != other.synced
            || self.entitled != other.entitled
            || (self.waiting == 0) != (other.waiting == 0)
            || self.identities.len() != other.identities.len()
            || !self.identities.iter().zip(&other.identities).all(|(a, b)| a.reads_like(b))
            || !same_bundles(self.bundle.as_slice(), other.bundle.as_slice())
            || !same_bundles(&self.federated, &other.federated)
    }
}

impl Identity {
    fn reads_like(&self, other: &Identity) -> bool {
        Arc::ptr_eq(&self.svid, &other.svid)
            && self.shadowed == other.shadowed
            && self.entry.id == other.entry.id
            && self.entry.hint == other.entry.hint
    }
}

impl TrustBundle {
    /// Prepares a bundle for being served.
    pub fn new(source: Arc<Bundle>) -> TrustBundle {
        let authorities: Vec<&[u8]> = source.x509_authorities.iter().map(|a| a.der.as_ref()).collect();
        TrustBundle {
            id: source.trust_domain.id().to_string(),
            x509: concatenated(&authorities),
            jwks: jwks(&source).into(),
            source: source.clone(),
        }
    }
}

impl Bundles {
    /// All of them, the own one first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.own.iter().chain(self.federated.values())
    }

    /// The bundles of all trust domains that one of these entries federates with, as far as they are known, by name.
    pub(super) fn federated_with(&self, entries: &[Arc<Entry>]) -> Vec<Arc<TrustBundle>> {
        let mut federated: Vec<&TrustDomain> =
            entries.iter().flat_map(|entry| &entry.federates_with).collect();
        federated.sort_unstable();
        federated.dedup();
        federated.into_iter().filter_map(|name| self.federated.get(name).cloned()).collect()
    }

    /// Takes over a new set; bundles that did not change stay the same values. Says whether any changed.
    pub(super) fn replace(
        &mut self,
        own: Arc<Bundle>,
        federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    ) -> bool {
        let mut changed = false;
        let mut keep = |old: Option<&Arc<TrustBundle>>, new: Arc<Bundle>| match old {
            Some(old) if old.source == new => old.clone(),
            _ => {
                changed = true;
                Arc::new(TrustBundle::new(new))
            }
        };
        let own = keep(self.own.as_ref(), own);
        let before = std::mem::take(&mut self.federated);
        self.own = Some(own);
        self.federated = federated
            .into_iter()
            .map(|(td, new)| {
                let bundle = keep(before.get(&td), new);
                (td, bundle)
            })
            .collect();
        changed || before.len() != self.federated.len()
    }
}

/// Those of these entries (by entry ID) that have the hint of another one which goes before, by their place: the oldest
/// entry keeps the hint, and of equally old ones that with the smallest ID.
pub(super) fn outshone(entries: &[Arc<Entry>]) -> HashSet<usize> {
    let (mut first, mut hidden): (HashMap<&str, usize>, _) = (HashMap::new(), HashSet::new());
    for (place, entry) in entries.iter().enumerate().filter(|(_, entry)| !entry.hint.is_empty()) {
        let kept = first.entry(&entry.hint).or_insert(place);
        if *kept == place {
            continue;
        }
        // They come in the order of their IDs, so of equally old ones the one before stays.
        let newer_wins = entry.created_at < entries[*kept].created_at;
        hidden.insert(if newer_wins { std::mem::replace(kept, place) } else { place });
    }
    hidden
}

/// A key that cannot be written is left out, so that the others keep their trust.
fn jwks(bundle: &Arc<Bundle>) -> String {
    let write = |bundle: &Bundle| document::to_json_of(bundle, Content::PLAIN_JWT);
    write(bundle)
        .or_else(|error| {
            tracing::error!(trust_domain_id = %bundle.trust_domain, %error, "JWT authority left out");
            let mut writable = Bundle::new(bundle.trust_domain.clone());
            for authority in &bundle.jwt_authorities {
                let one = Bundle {
                    jwt_authorities: vec![authority.clone()],
                    ..Bundle::new(bundle.trust_domain.clone())
                };
                if write(&one).is_ok() {
                    writable.jwt_authorities.push(authority.clone());
                }
            }
            write(&writable)
        })
        .unwrap_or_default()
}
