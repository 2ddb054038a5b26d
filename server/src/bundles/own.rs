//! The bundle of our own trust domain: what agents and workloads trust, and what our CA must be in before it signs.
//!
//! Every change is written to the store first and shown to the watchers after. The store is the truth, since other servers
//! and administrators write there too; [`OwnBundle::refresh`] picks that up.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::clock::Clock;
use finial_daemon::metrics::UNKNOWN;
use finial_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use tokio::sync::{Mutex, Notify, watch};

use crate::store::{Store, StoreError};

/// How often expired authorities are removed.
pub const PRUNE_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How long an authority stays in the bundle after it has expired.
pub const PRUNE_SAFETY: Duration = Duration::from_secs(24 * 3600);

/// The own bundle. Clones are the same bundle.
#[derive(Clone)]
pub struct OwnBundle {
    inner: Arc<Inner>,
}

/// What is added to a bundle.
#[derive(Clone, Debug, Default)]
pub struct Authorities {
    pub x509: Vec<X509Authority>,
    pub jwt: Vec<JwtAuthority>,
}

struct Inner {
    store: Store,
    shown: watch::Sender<Arc<Bundle>>,
    /// Held from a write to its publication, so that versions are shown in their order.
    turn: Mutex<()>,
    wake: Notify,
}

impl OwnBundle {
    /// Reads the bundle; a trust domain that has none yet gets an empty one, which is stored with its first authority.
    pub async fn load(store: Store) -> Result<OwnBundle, StoreError> {
        let bundle = stored(&store).await?;
        let shown = watch::Sender::new(Arc::new(bundle));
        Ok(OwnBundle { inner: Arc::new(Inner { store, shown, turn: Mutex::new(()), wake: Notify::new() }) })
    }

    pub fn current(&self) -> Arc<Bundle> {
        Arc::clone(&self.inner.shown.borrow())
    }

    /// Every version from now on; a slow reader sees the last one only.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Bundle>> {
        self.inner.shown.subscribe()
    }

    /// Adds the authorities that are not in the bundle yet. When this returns, they are stored and shown.
    pub async fn append(&self, authorities: Authorities) -> Result<Arc<Bundle>, StoreError> {
        let addition = Bundle {
            x509_authorities: authorities.x509,
            jwt_authorities: authorities.jwt,
            ..Bundle::new(self.inner.store.trust_domain().clone())
        };
        let _turn = self.inner.turn.lock().await;
        let bundle = self.inner.store.bundles().append(addition).await?;
        Ok(self.show(bundle))
    }

    /// Marks the X.509 authority with this subject key ID (lowercase hex): what it signed has to be replaced.
    pub async fn taint_x509(&self, subject_key_id: &str) -> Result<(), StoreError> {
        let _turn = self.inner.turn.lock().await;
        let Inner { store, .. } = &*self.inner;
        self.show(store.bundles().taint_x509(store.trust_domain(), subject_key_id).await?);
        Ok(())
    }

    /// Removes the X.509 authority with this subject key ID (lowercase hex), which must be tainted.
    pub async fn revoke_x509(&self, subject_key_id: &str) -> Result<(), StoreError> {
        let _turn = self.inner.turn.lock().await;
        let Inner { store, .. } = &*self.inner;
        self.show(store.bundles().revoke_x509(store.trust_domain(), subject_key_id).await?);
        Ok(())
    }

    /// Marks a JWT key: what it signed has to be replaced.
    pub async fn taint_jwt(&self, key_id: &str) -> Result<(), StoreError> {
        let _turn = self.inner.turn.lock().await;
        let Inner { store, .. } = &*self.inner;
        self.show(store.bundles().taint_jwt(store.trust_domain(), key_id).await?.1);
        Ok(())
    }

    /// Removes a JWT key, which must be tainted.
    pub async fn revoke_jwt(&self, key_id: &str) -> Result<(), StoreError> {
        let _turn = self.inner.turn.lock().await;
        let Inner { store, .. } = &*self.inner;
        self.show(store.bundles().revoke_jwt(store.trust_domain(), key_id).await?.1);
        Ok(())
    }

    /// Removes authorities that expired a day ago or earlier. Refuses, with nothing changed, to leave none.
    pub async fn prune(&self, now: SystemTime) -> Result<bool, StoreError> {
        let _turn = self.inner.turn.lock().await;
        let trust_domain = self.inner.store.trust_domain();
        let pruned = self.inner.store.bundles().prune(trust_domain, now - PRUNE_SAFETY).await?;
        Ok(pruned.map(|bundle| self.show(bundle)).is_some())
    }

    /// Shows what the store holds now: to be called after a write that went past this, and from time to time for the sake
    /// of other servers.
    pub async fn refresh(&self) -> Result<Arc<Bundle>, StoreError> {
        let _turn = self.inner.turn.lock().await;
        Ok(self.show(stored(&self.inner.store).await?))
    }

    /// Has it read again soon, without waiting for it.
    pub fn poke(&self) {
        self.inner.wake.notify_one();
    }

    /// Keeps the bundle fresh (each `reload`, and when poked) and free of expired authorities (each [`PRUNE_INTERVAL`]). Never ends.
    pub async fn run(self, clock: Clock, reload: Duration) {
        let mut prune_at = clock.now() + PRUNE_INTERVAL;
        loop {
            tokio::select! {
                () = clock.sleep(reload) => {}
                () = self.inner.wake.notified() => {}
            }
            if let Err(error) = self.refresh().await
                && !error.is_outage()
            {
                tracing::warn!(%error, "Could not reload the trust bundle; the known one stays in use");
            }
            if prune_at <= clock.now() {
                prune_at = clock.now() + PRUNE_INTERVAL;
                let metrics = self.inner.store.metrics();
                let prune = self.prune(clock.now());
                match metrics.timed(&["ca", "manager", "bundle", "prune"], |_| UNKNOWN, prune).await {
                    Ok(true) => {
                        metrics.count(&["ca", "manager", "bundle", "pruned"], 1);
                        tracing::debug!("Expired certificates were successfully pruned from bundle");
                    }
                    Ok(false) => {}
                    Err(error) => tracing::error!(%error, "Could not prune CA certificates"),
                }
            }
        }
    }

    fn show(&self, bundle: Bundle) -> Arc<Bundle> {
        let bundle = Arc::new(bundle);
        self.inner.shown.send_if_modified(|shown| {
            let changed = **shown != *bundle;
            if changed {
                *shown = Arc::clone(&bundle);
            }
            changed
        });
        bundle
    }
}

async fn stored(store: &Store) -> Result<Bundle, StoreError> {
    let found = store.bundles().get(store.trust_domain()).await?;
    Ok(found.unwrap_or_else(|| Bundle::new(store.trust_domain().clone())))
}

#[cfg(test)]
mod tests {
    use finial_identity::trust_domain::TrustDomain;
    use rustls_pki_types::CertificateDer;

    use super::*;
    use crate::store::OpenSettings;

    fn authorities(certificates: &[CertificateDer<'static>]) -> Authorities {
        let x509 = certificates.iter().map(|der| X509Authority { der: der.to_vec(), tainted: false });
        Authorities { x509: x509.collect(), jwt: Vec::new() }
    }

    fn certificate(days: i64) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = time::OffsetDateTime::from(start());
        params.not_after = params.not_before + time::Duration::days(days);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
    }

    async fn bundle(clock: &Clock) -> (Store, OwnBundle) {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let store = Store::open(OpenSettings::new(":memory:", trust_domain, clock.clone())).await.unwrap();
        (store.clone(), OwnBundle::load(store).await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_shown_is_stored_and_shown_once() {
        let (store, own) = bundle(&Clock::paused(start())).await;
        let mut watching = own.subscribe();
        assert!(own.current().x509_authorities.is_empty());
        let first = certificate(1);
        own.append(authorities(std::slice::from_ref(&first))).await.unwrap();
        assert!(watching.has_changed().unwrap());
        assert_eq!(*watching.borrow_and_update(), stored(&store).await.unwrap().into());
        own.append(authorities(std::slice::from_ref(&first))).await.unwrap();
        own.refresh().await.unwrap();
        assert!(!watching.has_changed().unwrap(), "nothing new, nothing shown");

        // Another server adds its own.
        let mut theirs = Bundle::new(store.trust_domain().clone());
        theirs.x509_authorities = vec![X509Authority { der: certificate(1).to_vec(), tainted: false }];
        store.bundles().append(theirs).await.unwrap();
        assert_eq!(own.current().x509_authorities.len(), 1);
        own.refresh().await.unwrap();
        assert_eq!(watching.borrow_and_update().x509_authorities.len(), 2);
        assert_eq!(
            OwnBundle::load(store).await.unwrap().current(),
            own.current(),
            "a restart shows the same"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn expired_authorities_go_after_a_day_and_never_the_last() {
        let clock = Clock::paused(start());
        let (_, own) = bundle(&clock).await;
        own.append(authorities(&[certificate(1), certificate(10)])).await.unwrap();
        let day = 86_400;
        clock.jump(2 * day - 1);
        assert!(!own.prune(clock.now()).await.unwrap(), "a day has not passed since the end");
        clock.jump(2);
        assert!(own.prune(clock.now()).await.unwrap());
        assert_eq!(own.current().x509_authorities.len(), 1);
        clock.jump(30 * day);
        let text = own.prune(clock.now()).await.unwrap_err().to_string();
        assert!(text.contains("would prune all certificates"), "{text}");
        assert_eq!(own.current().x509_authorities.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn running_it_prunes_and_sees_other_servers() {
        let clock = Clock::paused(start());
        let (store, own) = bundle(&clock).await;
        own.append(authorities(&[certificate(1), certificate(10)])).await.unwrap();
        tokio::spawn(own.clone().run(clock.clone(), Duration::from_secs(60)));
        let mut theirs = Bundle::new(store.trust_domain().clone());
        theirs.x509_authorities = vec![X509Authority { der: certificate(20).to_vec(), tainted: false }];
        store.bundles().append(theirs).await.unwrap();
        clock.sleep(Duration::from_secs(61)).await;
        assert_eq!(own.current().x509_authorities.len(), 3);
        clock.sleep(Duration::from_secs(2 * 86_400 + 7 * 3600)).await;
        assert_eq!(own.current().x509_authorities.len(), 2);
    }
}
