//! The bundles of other trust domains, kept at hand for the agents that are told of their changes.
//!
//! The store is the truth. No event tells of a change there, so it is read again after each write of this process and
//! once in an interval for the sake of others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_identity::bundle::Bundle;
use finial_identity::trust_domain::TrustDomain;
use tokio::sync::{Mutex, Notify, watch};

use crate::store::{Store, StoreError};

/// All bundles that are stored, except our own.
pub type Federated = BTreeMap<TrustDomain, Arc<Bundle>>;

/// Access to them. Clones share one view.
#[derive(Clone)]
pub struct FederatedBundles {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    shown: watch::Sender<Arc<Federated>>,
    /// Held from a reading to its publication, so that versions are shown in their order.
    turn: Mutex<()>,
    wake: Notify,
}

impl FederatedBundles {
    /// Reads them once.
    pub async fn load(store: Store) -> Result<FederatedBundles, StoreError> {
        let inner =
            Inner { store, shown: watch::Sender::default(), turn: Mutex::new(()), wake: Notify::new() };
        let bundles = FederatedBundles { inner: Arc::new(inner) };
        bundles.refresh().await?;
        Ok(bundles)
    }

    /// Every version from now on; a slow reader sees the last one only.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Federated>> {
        self.inner.shown.subscribe()
    }

    /// The bundle of a trust domain as it was read last.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.inner.shown.borrow().get(trust_domain).cloned()
    }

    /// Has them read again soon, without waiting for it.
    pub fn poke(&self) {
        self.inner.wake.notify_one();
    }

    /// Shows what the store holds now: to be called after each write.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let _turn = self.inner.turn.lock().await;
        let own = self.inner.store.trust_domain();
        let stored = self.inner.store.bundles().list(None).await?.items;
        let mut fresh = Federated::new();
        let shown = Arc::clone(&self.inner.shown.borrow());
        for bundle in stored.into_iter().filter(|bundle| bundle.trust_domain != *own) {
            // An unchanged bundle stays the same value, so that watchers compare pointers.
            let kept = shown.get(&bundle.trust_domain).filter(|old| ***old == bundle).cloned();
            fresh.insert(bundle.trust_domain.clone(), kept.unwrap_or_else(|| Arc::new(bundle)));
        }
        if fresh != *shown {
            self.inner.shown.send_replace(Arc::new(fresh));
        }
        Ok(())
    }

    /// Reads them again in each interval, and when poked. Never ends.
    pub async fn run(self, clock: Clock, reload: Duration) {
        loop {
            tokio::select! {
                () = clock.sleep(reload) => {}
                () = self.inner.wake.notified() => {}
            }
            if let Err(error) = self.refresh().await
                && !error.is_outage()
            {
                tracing::warn!(%error, "Could not reload federated bundles; the known ones stay in use");
            }
        }
    }
}
