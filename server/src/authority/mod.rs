//! The authority of the trust domain: its CA, how that turns, and everything it signs.
//!
//! `profile` says what is meant, `issue` signs it, `rotate` says when authorities change, `drive` changes them.

pub mod chain;
mod der;
pub mod drive;
pub mod issue;
mod journal;
mod name;
pub mod profile;
pub mod rotate;
mod self_signed;
pub mod server_svid;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::keys::{KeyManager, KeyType};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::bundles::own::OwnBundle;
use crate::plugins::upstream_authority::UpstreamAuthority;
use crate::store::Store;
use crate::store::issued::IssuedLog;
use drive::{DriveError, Driver, DriverParts};
use issue::Issuer;
use profile::{ProfileSettings, Profiles};
use server_svid::{Renewal, ServerSvid, ServerSvidError};

const JOURNAL_PRUNE_INTERVAL: Duration = Duration::from_secs(8 * 3600);
/// How long a journal stays after the last authority in it has expired.
const JOURNAL_PRUNE_SAFETY: Duration = Duration::from_secs(14 * 24 * 3600);

/// What operators set.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    pub profile: ProfileSettings,
    /// `ca_key_type`; also the server's own key is of this type.
    pub ca_key_type: KeyType,
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

/// Why the server can not start: it has no CA.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("unable to prepare and activate an X509 CA: {0}")]
    Drive(#[from] DriveError),
    #[error(transparent)]
    ServerSvid(#[from] ServerSvidError),
}

/// The authority, ready to sign.
pub struct Authority {
    pub issuer: Issuer,
    /// The server's own SVID, now and from now on.
    pub server_svid: watch::Receiver<Arc<ServerSvid>>,
    /// To be run for as long as the server does.
    pub turning: Turning,
}

/// What keeps the CA and the server's SVID fresh.
pub struct Turning {
    driver: Driver,
    renewal: Renewal,
    store: Store,
    clock: Clock,
}

impl Authority {
    /// Takes up the CA that signed last, or makes the first one. When this returns there is a CA and a server SVID.
    pub async fn build(
        settings: AuthoritySettings,
        parts: AuthorityParts,
    ) -> Result<Authority, AuthorityError> {
        let AuthorityParts { clock, store, keys, upstream, bundle, issued } = parts;
        let profiles = Arc::new(Profiles::new(settings.profile));
        let key_type = settings.ca_key_type;
        let changes = bundle.subscribe();
        let mut driver = Driver::load(DriverParts {
            clock: clock.clone(),
            store: store.clone(),
            keys,
            key_type,
            upstream,
            bundle,
            profiles: Arc::clone(&profiles),
            issued: issued.clone(),
        })
        .await?;
        driver.start().await?;
        // No key for JWT-SVIDs is made yet.
        let (_, jwt) = watch::channel(None);
        let issuer = Issuer::new(profiles, clock.clone(), driver.active(), jwt, issued);
        let renewal = Renewal::start(issuer.clone(), clock.clone(), key_type, changes).await?;
        Ok(Authority {
            issuer,
            server_svid: renewal.subscribe(),
            turning: Turning { driver, renewal, store, clock },
        })
    }
}

impl Turning {
    /// Never ends by itself.
    pub async fn run(self) {
        tokio::join!(self.driver.run(), self.renewal.run(), prune_journals(self.store, self.clock));
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
