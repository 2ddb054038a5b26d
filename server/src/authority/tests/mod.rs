//! Tests of the authority as a whole, and what they share.

mod certificates;
mod drive;
mod jwt;
pub(crate) mod pki;
mod rotate;

use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::clock::Clock;
use finial_daemon::keys::memory::MemoryKeys;
use finial_daemon::keys::{KeyManager, KeyType};
use finial_identity::trust_domain::TrustDomain;

use super::drive::{Driver, DriverParts};
use super::jwt_keys::JwtKeys;
use super::own_journal;
use super::profile::{ProfileSettings, Profiles};
use super::x509_cas::X509Cas;
use super::{Authority, AuthorityParts, AuthoritySettings};
use crate::bundles::own::OwnBundle;
use crate::plugins::upstream_authority::UpstreamAuthority;
use crate::store::issued::{Batching, IssuedLog};
use crate::store::{OpenSettings, Store};

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// The present, since the files that openssl makes begin now.
pub(crate) fn today() -> SystemTime {
    Clock::wall().now()
}

/// What a server keeps over a restart, and the time.
struct Machine {
    clock: Clock,
    store: Store,
    keys: Arc<dyn KeyManager>,
    upstream: Option<Arc<dyn UpstreamAuthority>>,
    settings: ProfileSettings,
    key_type: KeyType,
    issued: IssuedLog,
}

impl Machine {
    async fn new() -> Machine {
        let clock = Clock::paused(today());
        let store = Store::open(OpenSettings::new(":memory:", trust_domain(), clock.clone())).await.unwrap();
        let (issued, writing) = IssuedLog::start(store.clone(), Batching::default());
        tokio::spawn(writing);
        Machine {
            clock,
            store,
            keys: Arc::new(MemoryKeys::new()),
            upstream: None,
            settings: ProfileSettings::new(trust_domain()),
            key_type: KeyType::EcP256,
            issued,
        }
    }

    /// What the drivers share, as a start of the server makes it.
    async fn parts(&self) -> DriverParts {
        DriverParts {
            clock: self.clock.clone(),
            keys: Arc::clone(&self.keys),
            journal: own_journal(&self.store, self.keys.as_ref()).await.unwrap(),
            bundle: OwnBundle::load(self.store.clone()).await.unwrap(),
            metrics: self.store.metrics().clone(),
        }
    }

    /// The driver of X.509 CAs as a start of the server makes it.
    async fn driver(&self) -> Driver<X509Cas> {
        self.x509_driver(self.parts().await).await
    }

    async fn x509_driver(&self, parts: DriverParts) -> Driver<X509Cas> {
        let kind = X509Cas {
            key_type: self.key_type,
            upstream: self.upstream.clone(),
            profiles: Arc::new(Profiles::new(self.settings.clone())),
            issued: self.issued.clone(),
        };
        Driver::load(kind, parts).await.unwrap()
    }

    async fn jwt_driver(&self, parts: DriverParts) -> Driver<JwtKeys> {
        let kind = JwtKeys { key_type: self.key_type, ttl: self.settings.ca_ttl };
        Driver::load(kind, parts).await.unwrap()
    }

    /// The whole authority on `bundle`.
    async fn authority(&self, bundle: &OwnBundle) -> Authority {
        let settings = AuthoritySettings {
            profile: self.settings.clone(),
            ca_key_type: self.key_type,
            jwt_key_type: Some(self.key_type),
        };
        let parts = AuthorityParts {
            clock: self.clock.clone(),
            store: self.store.clone(),
            keys: Arc::clone(&self.keys),
            upstream: self.upstream.clone(),
            bundle: bundle.clone(),
            issued: self.issued.clone(),
        };
        Authority::build(settings, parts).await.unwrap()
    }

    /// The X.509 authorities that the store holds now.
    async fn roots(&self) -> Vec<Vec<u8>> {
        let bundle = self.store.bundles().get(&trust_domain()).await.unwrap();
        bundle
            .map(|bundle| bundle.x509_authorities.into_iter().map(|root| root.der).collect())
            .unwrap_or_default()
    }
}
