//! An SVID in the cache, in the shape in which workloads receive it.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use finial_daemon::keys::exportable::WorkloadKey;
use finial_identity::{entry::Entry, spiffe_id::SpiffeId, x509_svid::X509Svid};

/// A signed identity with its key. Neither is ever copied: all who serve it share the same bytes.
pub struct Svid {
    /// DER certificates laid end to end, leaf first.
    pub chain: Bytes,
    /// The private key, PKCS#8 DER. Wiped from memory when the last user drops it.
    pub key: Bytes,
    /// Whose identity it is.
    pub spiffe_id: SpiffeId,
    /// The revision of the entry that it was signed for.
    pub revision: i64,
    /// The end of its validity.
    pub not_after: SystemTime,
    /// When it is to be replaced.
    pub renew_at: SystemTime,
}

impl Svid {
    /// Joins what the server signed with the key it was signed for. `renew_at` is the caller's rule.
    pub fn new(
        svid: &X509Svid,
        key: &WorkloadKey,
        entry: &Entry,
        revision: i64,
        renew_at: SystemTime,
    ) -> Svid {
        Svid {
            chain: concatenated(svid.chain()),
            key: Bytes::from_owner(key.pkcs8().clone()),
            // The entry's own copy: one allocation for both.
            spiffe_id: entry.spiffe_id.clone(),
            revision,
            not_after: svid.not_after(),
            renew_at,
        }
    }

    /// Whether it may be served: an expired SVID is worth nothing.
    pub fn is_usable(&self, entry: &Entry, now: SystemTime) -> bool {
        now < self.not_after && self.spiffe_id == entry.spiffe_id
    }
}

/// Certificates laid end to end, as the Workload API carries them.
pub fn concatenated<C: AsRef<[u8]>>(certificates: &[C]) -> Bytes {
    let mut joined = Vec::with_capacity(certificates.iter().map(|der| der.as_ref().len()).sum());
    certificates.iter().for_each(|der| joined.extend_from_slice(der.as_ref()));
    joined.into()
}

/// Why an entry needs a signature, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A workload waits and there is nothing to give it.
    Awaited,
    /// The SVID leads to an authority that is no longer to be trusted.
    Tainted,
    /// The entry changed after the SVID was signed.
    Revised,
    /// The SVID has lived long enough.
    Due,
    /// Nobody asked yet, and there is room in the cache.
    Prefetch,
}

/// An SVID and its place in the cache.
pub(super) struct Held {
    pub(super) svid: Arc<Svid>,
    /// Set when another SVID is wanted in its place. It is served until that one comes.
    pub(super) stale: Option<Reason>,
    /// Grows with each use; the smallest number is evicted first.
    pub(super) last_access: u64,
}
