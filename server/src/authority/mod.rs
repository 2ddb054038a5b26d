//! The authority of the trust domain: its CA and its JWT key, how they turn, and everything they sign.
//!
//! `profile` says what is meant, `issue` signs it, `rotate` says when authorities change, `drive` changes them.

pub mod by_hand;
pub mod chain;
mod der;
pub mod drive;
pub mod expiry;
pub mod issue;
mod journal;
mod jwt_keys;
mod name;
pub mod profile;
pub mod rotate;
mod self_signed;
pub mod server_svid;
pub mod upstream;
mod x509_cas;

use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::keys::{KeyError, KeyManager, KeyType};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::bundles::own::OwnBundle;
use crate::plugins::upstream_authority::UpstreamAuthority;
use crate::store::Store;
use crate::store::issued::IssuedLog;
use by_hand::ByHand;
use drive::{DriveError, Driver, DriverParts, Failures, Kind};
use issue::Issuer;
use journal::{Journal, JournalError};
use jwt_keys::JwtKeys;
use profile::{ProfileSettings, Profiles};
use server_svid::{Renewal, ServerSvid, ServerSvidError};
use x509_cas::X509Cas;

const JOURNAL_PRUNE_INTERVAL: Duration = Duration::from_secs(8 * 3600);
/// How long a journal stays after the last authority in it has expired.
const JOURNAL_PRUNE_SAFETY: Duration = Duration::from_secs(14 * 24 * 3600);

/// What operators set.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    pub profile: ProfileSettings,
    /// `ca_key_type`; also the server's own key is of this type.
    pub ca_key_type: KeyType,
    /// `jwt_key_type`; `None` when JWT-SVIDs are switched off.
    pub jwt_key_type: Option<KeyType>,
}

/// What the authority works with.
pub struct AuthorityParts {
    pub clock: Clock,
    pub store: Store,
    pub keys: Arc<dyn KeyManager>,
    /// `None`: our CA signs itself.
    pub upstream: Option<Arc<dyn UpstreamAuthority>>,
    pub bundle: OwnBundle,
    pub issued: IssuedLog,
}

/// Why the server can not start: it has no CA or no JWT key.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("unable to prepare and activate a {kind}: {cause}")]
    Drive { kind: &'static str, cause: DriveError },
    #[error("the keys can not be listed: {0}")]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    ServerSvid(#[from] ServerSvidError),
}

/// The authority, ready to sign.
pub struct Authority {
    pub issuer: Issuer,
    pub by_hand: ByHand,
    /// The server's own SVID, now and from now on.
    pub server_svid: watch::Receiver<Arc<ServerSvid>>,
    /// How each kind of authority's rotation fares.
    pub rotations: Vec<Failures>,
    /// To be run for as long as the server does.
    pub turning: Turning,
}

/// What keeps the CA, the JWT key and the server's SVID fresh.
pub struct Turning {
    x509: Driver<X509Cas>,
    jwt: Option<Driver<JwtKeys>>,
    renewal: Renewal,
    store: Store,
    clock: Clock,
}

impl Authority {
    /// Takes up what signed last, or makes the first of each kind. When this returns there is a CA, a JWT key if one is
    /// wanted, and a server SVID.
    pub async fn build(
        settings: AuthoritySettings,
        parts: AuthorityParts,
    ) -> Result<Authority, AuthorityError> {
        let AuthorityParts { clock, store, keys, upstream, bundle, issued } = parts;
        let profiles = Arc::new(Profiles::new(settings.profile));
        let key_type = settings.ca_key_type;
        let changes = bundle.subscribe();
        let journal = own_journal(&store, keys.as_ref()).await?;
        let metrics = store.metrics().clone();
        let parts = DriverParts { clock: clock.clone(), keys, journal, bundle, metrics: metrics.clone() };
        let kind = X509Cas {
            key_type,
            upstream: upstream.clone(),
            profiles: Arc::clone(&profiles),
            issued: issued.clone(),
        };
        // The CA comes first: the journal's row is found by it.
        let x509 = started(kind, parts.clone(), async || warn_if_broken(upstream.as_deref()).await).await?;
        let jwt = match settings.jwt_key_type {
            None => None,
            Some(key_type) => {
                let kind = JwtKeys { key_type, ttl: profiles.ca_ttl() };
                Some(started(kind, parts, async || {}).await?)
            }
        };
        let jwt_key = jwt.as_ref().map_or_else(|| watch::channel(None).1, Driver::active);
        let issuer = Issuer::new(profiles, clock.clone(), x509.active(), jwt_key, issued);
        let renewal = Renewal::start(issuer.clone(), clock.clone(), key_type, changes, metrics).await?;
        let rotations = std::iter::once(x509.failures()).chain(jwt.as_ref().map(Driver::failures)).collect();
        let by_hand = ByHand {
            x509: x509.orders(),
            jwt: jwt.as_ref().map(Driver::orders),
            has_upstream: upstream.is_some(),
        };
        Ok(Authority {
            issuer,
            by_hand,
            server_svid: renewal.subscribe(),
            rotations,
            turning: Turning { x509, jwt, renewal, store, clock },
        })
    }
}

impl Turning {
    /// Never ends by itself.
    pub async fn run(self) {
        let jwt = async {
            match self.jwt {
                Some(driver) => driver.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(self.x509.run(), jwt, self.renewal.run(), prune_journals(self.store, self.clock));
    }
}

/// A driver that has an authority that signs; `resumed` is done if it had one before.
async fn started<K: Kind>(
    kind: K,
    parts: DriverParts,
    resumed: impl AsyncFnOnce(),
) -> Result<Driver<K>, AuthorityError> {
    let failed = |cause| AuthorityError::Drive { kind: K::NAME, cause };
    let mut driver = Driver::load(kind, parts).await.map_err(failed)?;
    if driver.active().borrow().is_some() {
        resumed().await;
    }
    driver.start().await.map_err(failed)?;
    Ok(driver)
}

/// The journal that belongs to the keys.
async fn own_journal(store: &Store, keys: &dyn KeyManager) -> Result<Journal, AuthorityError> {
    let keys = keys.list().await?;
    let ours: Vec<_> =
        keys.iter().filter_map(|key| profile::authority_id(key.public_key_der()).ok()).collect();
    Ok(Journal::load(store.clone(), &ours).await?)
}

/// The next rotation may be far away; that it will fail is better known now.
async fn warn_if_broken(upstream: Option<&dyn UpstreamAuthority>) {
    let Some(upstream) = upstream else { return };
    if let Err(error) = upstream.check().await {
        tracing::error!(
            %error,
            "The upstream authority can not be used; the X509 CA in use stays in use until it expires"
        );
    }
}

/// Removes the journals of servers that are gone.
async fn prune_journals(store: Store, clock: Clock) {
    loop {
        clock.sleep(JOURNAL_PRUNE_INTERVAL).await;
        if let Err(error) = store.journal().prune(unix_seconds(clock.now() - JOURNAL_PRUNE_SAFETY)).await {
            tracing::error!(%error, "Could not prune CA journals");
        }
    }
}

/// A CA certificate that was made and read back, from wherever it came.
struct NewCa {
    der: CertificateDer<'static>,
    /// What is sent behind a leaf: nothing when self-signed, else this certificate and the intermediates above it.
    above: Vec<CertificateDer<'static>>,
    /// What has to be in the bundle before it signs.
    roots: Vec<CertificateDer<'static>>,
    /// Unix seconds at which the first certificate ends, roots included.
    ends: i64,
}

#[cfg(test)]
pub(crate) mod tests;
