//! What the agent knows and holds: entries, bundles, SVIDs; and who is listening for them.
//!
//! # Invariants
//!
//! - An SVID that has expired, whose entry is gone or has another SPIFFE ID, is not served.
//! - An SVID that somebody listens for is never evicted. The bound on the number of SVIDs is soft.
//! - A stale SVID (tainted, revised, due) is served until its successor is there.
//! - Nothing here polls or waits for the network. What is missing is *wanted*; [`Cache::wanted_changed`] wakes
//!   whoever fetches it, and [`Cache::due`] says when time alone will change something.
//! - Entries for SVID stores never show.

pub mod held;
mod index;
pub mod jwt;
mod state;
mod subscribe;
pub mod view;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use finial_daemon::{
    clock::Clock,
    keys::exportable::WorkloadKey,
    metrics::{self, Metrics},
};
use finial_identity::{
    TrustDomain,
    bundle::Bundle,
    entry::Entry,
    peer,
    selector::{Selector, sorted},
    x509_svid::X509Svid,
};
use tokio::sync::{Notify, watch};

pub use held::{Reason, Svid};
pub use index::Index;
pub use jwt::{HeldJwt, JwtFault, JwtIdentity, JwtKey, JwtRequest, JwtSvid};
use state::State;
pub use subscribe::Subscription;
pub use view::{Identity, TrustBundle, View};

/// `x509_svid_cache_max_size` when it is not set.
pub const DEFAULT_MAX_SVIDS: usize = 1000;

/// `experimental.jwt_svid_cache_hit_timeout` when it is not set: as long as a call to the server may take.
pub const DEFAULT_JWT_HIT_TIMEOUT: Duration = Duration::from_secs(30);

/// How the cache is to behave.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// `x509_svid_cache_max_size`: how many SVIDs are kept, as far as nobody is listening for more. 0 means
    /// [`DEFAULT_MAX_SVIDS`].
    pub max_svids: usize,
    /// `availability_target`: how long an SVID is to stay usable when the server is away. None: SVIDs are
    /// replaced at half of their life.
    pub availability_target: Option<Duration>,
    /// `jwt_svid_cache_max_size`: how many JWT-SVIDs are kept. 0 means [`jwt::DEFAULT_MAX_JWT_SVIDS`].
    pub max_jwt_svids: usize,
    /// `experimental.jwt_svid_cache_hit_timeout`: how long a workload waits for the renewal of a JWT-SVID while the one
    /// that is held is still valid.
    pub jwt_hit_timeout: Duration,
}

/// A change of the node's entries.
#[derive(Default)]
pub struct EntryUpdate {
    /// Whether `upserted` holds all entries: then those that are not in it are gone.
    pub full: bool,
    /// New entries and new versions of entries.
    pub upserted: Vec<Arc<Entry>>,
    /// IDs of entries that are gone.
    pub deleted: Vec<String>,
}

/// An entry for which the server is to sign an SVID.
#[derive(Clone)]
pub struct Wanted {
    /// For what.
    pub entry: Arc<Entry>,
    /// Why.
    pub reason: Reason,
    /// When the SVID that is served meanwhile ends; None when there is none.
    pub expires_at: Option<SystemTime>,
}

/// A signed SVID that came for an entry.
pub struct NewSvid {
    /// The entry.
    pub entry_id: String,
    /// The entry's revision when the signature was asked for.
    pub revision: i64,
    /// What the server signed.
    pub svid: X509Svid,
    /// The key it was signed for.
    pub key: WorkloadKey,
}

/// Figures for the debug interface and for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Entries that workloads can match.
    pub entries: usize,
    /// SVIDs held.
    pub x509_svids: usize,
    /// JWT-SVIDs held.
    pub jwt_svids: usize,
    /// Open subscriptions.
    pub subscribers: usize,
    /// Different sets of selectors among them.
    pub selector_sets: usize,
}

/// The cache. Clones are handles to one and the same.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    metrics: Metrics,
    state: Mutex<State>,
    wanted: Notify,
    jwt_requested: Notify,
    jwt_hit_timeout: Duration,
}

impl Cache {
    /// An empty cache, not yet synchronised: nobody is told that he has no identity before the server was heard.
    pub fn new(settings: CacheSettings, clock: Clock, metrics: Metrics) -> Cache {
        let shared = Shared {
            clock,
            metrics,
            jwt_hit_timeout: settings.jwt_hit_timeout,
            state: Mutex::new(State::new(settings)),
            wanted: Notify::new(),
            jwt_requested: Notify::new(),
        };
        Cache { shared: Arc::new(shared) }
    }

    /// Takes over a change of the entries. Workloads see it at once.
    pub fn apply(&self, update: EntryUpdate) {
        let changes = self.change(|state, now| state.apply(update, now));
        let (metrics, stats) = (&self.shared.metrics, self.stats());
        metrics.count(&["lru_cache_entry_add"], changes.added);
        metrics.count(&["lru_cache_entry_update"], changes.updated);
        metrics.count(&["lru_cache_entry_remove"], changes.removed);
        metrics.gauge(&["lru_cache_record_map_size"], stats.entries as f64);
        self.show_svids();
    }

    /// Takes over the bundles: the own trust domain's, and those of others by trust domain. Bundles that are not
    /// given are gone.
    pub fn set_bundles(&self, own: Arc<Bundle>, federated: BTreeMap<TrustDomain, Arc<Bundle>>) {
        let dropped = self.change(|state, now| state.set_bundles(own, federated, now));
        if dropped > 0 {
            self.shared
                .metrics
                .call(&["cache_manager", "workload", "process_tainted_jwt_svids"])
                .done(metrics::OK);
            self.shared.metrics.sample(&["cache_manager", "tainted_jwt_svids", "workload"], dropped as f64);
        }
    }

    /// Takes over one SVID. See [`Cache::install_all`].
    pub fn install(&self, entry_id: &str, revision: i64, svid: X509Svid, key: WorkloadKey) -> bool {
        self.install_all([NewSvid { entry_id: entry_id.to_owned(), revision, svid, key }]) == 1
    }

    /// Takes over SVIDs and says how many. Refused are those whose entry is gone or bears another SPIFFE ID now,
    /// whose key is not the one in the certificate, that have expired, and those for an older revision than the
    /// SVID that is held. One for an older revision than the entry's is better than none: it is served, and
    /// another one stays wanted.
    pub fn install_all(&self, new: impl IntoIterator<Item = NewSvid>) -> usize {
        let installed = self.change(|state, now| state.install(new, now));
        self.show_svids();
        installed
    }

    /// Everything that is to be signed, the most urgent first. Includes what is to be prefetched.
    pub fn wanted(&self) -> Vec<Wanted> {
        let now = self.shared.clock.now();
        self.state().wanted(now)
    }

    /// Waits until more is wanted than before. A change that came before the call is not lost. For one waiter.
    pub async fn wanted_changed(&self) {
        self.shared.wanted.notified().await;
    }

    /// Does what time alone brings: SVIDs that lived long enough become wanted, expired ones and those of expired
    /// entries disappear. Returns when it must be called next; None: when something else has changed.
    pub fn due(&self) -> Option<SystemTime> {
        self.change(|state, now| state.due(now))
    }

    /// Marks all SVIDs that lead to one of these authorities (DER) as wanted anew and returns their number. It
    /// verifies signatures: call it where blocking is allowed.
    pub fn taint(&self, authorities: &[Vec<u8>]) -> usize {
        let now = self.shared.clock.now();
        let held = self.state().held_svids();
        let tainted: Vec<(String, Arc<Svid>)> = held
            .into_iter()
            .filter(|(_, svid)| {
                X509Svid::parse_concatenated(&svid.chain)
                    .is_ok_and(|svid| peer::verify_svid(&svid, authorities, now).is_ok())
            })
            .collect();
        let call = self.shared.metrics.call(&["cache_manager", "workload", "process_tainted_x509_svids"]);
        let marked = self.change(|state, _| state.mark_tainted(&tainted));
        call.done(metrics::OK);
        self.shared.metrics.sample(&["cache_manager", "tainted_x509_svids", "workload"], marked as f64);
        marked
    }

    fn show_svids(&self) {
        let stats = self.stats();
        self.shared.metrics.gauge(&["lru_cache_svid_map_size"], stats.x509_svids as f64);
        self.shared.metrics.gauge(&["jwt_svid_cache_size"], stats.jwt_svids as f64);
    }

    /// Opens a window on what whoever has these selectors may see. The first view may still be waiting for SVIDs.
    pub fn subscribe(&self, selectors: Vec<Selector>) -> Subscription {
        let (slot, views) = self.change(|state, now| state.subscribe(sorted(selectors), now));
        Subscription::new(self.clone(), slot, views)
    }

    /// The entries that whoever has these selectors is entitled to, by entry ID. None until entries and bundle have come.
    pub fn entries_of(&self, selectors: &[Selector]) -> Option<Vec<Arc<Entry>>> {
        let now = self.shared.clock.now();
        self.state().entries_of(selectors, now)
    }

    /// Follows all bundles the agent knows, its own trust domain's first; empty until they have come.
    pub fn bundles(&self) -> watch::Receiver<Arc<[Arc<TrustBundle>]>> {
        self.state().follow_bundles()
    }

    /// The identities of whoever has these selectors (sorted, unique), by entry ID, with the tokens for this audience that
    /// are held. Of those with one non-empty hint only the oldest is there. None before the server was heard.
    pub fn jwt_identities(&self, selectors: &[Selector], audience: &[String]) -> Option<Vec<JwtIdentity>> {
        let now = self.shared.clock.now();
        self.state().jwt_identities(selectors, audience, now)
    }

    /// The identity of an entry, with the token for this audience that is held.
    pub fn jwt_identity(&self, entry: Arc<Entry>, audience: &[String]) -> JwtIdentity {
        let now = self.shared.clock.now();
        self.state().jwt_identity(entry, audience, now)
    }

    /// The bundles by which whoever has these selectors (sorted, unique) judges others: the own trust domain's, and those
    /// that a matching entry federates with. None before the server was heard.
    pub fn bundles_of(&self, selectors: &[Selector]) -> Option<Vec<Arc<TrustBundle>>> {
        let now = self.shared.clock.now();
        self.state().bundles_of(selectors, now)
    }

    /// Figures for the debug interface and for metrics.
    pub fn stats(&self) -> Stats {
        self.state().stats()
    }

    fn unsubscribe(&self, slot: subscribe::SlotId) {
        self.state().unsubscribe(slot);
    }

    fn change<T>(&self, work: impl FnOnce(&mut State, SystemTime) -> T) -> T {
        let now = self.shared.clock.now();
        let mut state = self.state();
        let result = work(&mut state, now);
        let more_is_wanted = state.take_more_wanted();
        drop(state);
        if more_is_wanted {
            self.shared.wanted.notify_one();
        }
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CacheSettings {
    fn default() -> CacheSettings {
        CacheSettings {
            max_svids: DEFAULT_MAX_SVIDS,
            availability_target: None,
            max_jwt_svids: jwt::DEFAULT_MAX_JWT_SVIDS,
            jwt_hit_timeout: DEFAULT_JWT_HIT_TIMEOUT,
        }
    }
}
