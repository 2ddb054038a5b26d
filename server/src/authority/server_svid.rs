//! The server's own SVID, shown in every TLS handshake.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::backoff::Backoff;
use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::keys::memory::MemoryKeys;
use finial_daemon::keys::{KeyError, KeyManager, KeyType, rustls_key};
use finial_daemon::metrics::{Metrics, UNKNOWN};
use finial_identity::bundle::Bundle;
use finial_identity::x509_svid::X509Svid;
use finial_identity::{lifetime, peer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::chain::at;
use super::issue::{IssueError, Issued, Issuer};

const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// The SVID and its key.
#[derive(Debug)]
pub struct ServerSvid {
    pub svid: X509Svid,
    /// Chain and key as a `ResolvesServerCert` gives them out.
    pub certified: Arc<CertifiedKey>,
    /// The authority that signed it.
    pub authority_id: String,
}

/// Why there is no SVID.
#[derive(Debug, thiserror::Error)]
pub enum ServerSvidError {
    #[error("the key of the server SVID can not be made: {0}")]
    Key(#[from] KeyError),
    #[error("the server SVID can not be signed: {0}")]
    Issue(#[from] IssueError),
}

/// Renews the server's SVID.
pub struct Renewal {
    issuer: Issuer,
    clock: Clock,
    key_type: KeyType,
    /// The key lives as long as the process: a new start makes a new one.
    keys: MemoryKeys,
    bundle: watch::Receiver<Arc<Bundle>>,
    metrics: Metrics,
    shown: watch::Sender<Arc<ServerSvid>>,
}

impl Renewal {
    /// Makes the first SVID.
    pub(super) async fn start(
        issuer: Issuer,
        clock: Clock,
        key_type: KeyType,
        bundle: watch::Receiver<Arc<Bundle>>,
        metrics: Metrics,
    ) -> Result<Renewal, ServerSvidError> {
        let keys = MemoryKeys::new();
        let first = make(&issuer, &keys, key_type, &metrics).await?;
        let shown = watch::Sender::new(Arc::new(first));
        Ok(Renewal { issuer, clock, key_type, keys, bundle, metrics, shown })
    }

    /// The SVID of now and all that follow.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerSvid>> {
        self.shown.subscribe()
    }

    /// Renews at half of each SVID's life, and as soon as its authority is tainted and another one signs.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let mut active = self.issuer.active_changes();
        loop {
            if !self.is_due() {
                let renew_at = self.renew_at();
                tokio::select! {
                    () = self.clock.sleep_until(renew_at) => {}
                    changed = self.bundle.changed() => if changed.is_err() { return },
                    changed = active.changed() => if changed.is_err() { return },
                }
                continue;
            }
            match make(&self.issuer, &self.keys, self.key_type, &self.metrics).await {
                Ok(made) => {
                    backoff.reset();
                    self.shown.send_replace(Arc::new(made));
                }
                Err(error) => {
                    let wait = backoff.next();
                    let expires_at = at(unix_seconds(self.shown.borrow().svid.not_after()));
                    tracing::error!(%error, retry_in = ?wait, expires_at, "Could not rotate server SVID");
                    self.clock.sleep(wait).await;
                }
            }
        }
    }

    fn is_due(&self) -> bool {
        self.renew_at() <= self.clock.now() || self.is_tainted()
    }

    fn renew_at(&self) -> SystemTime {
        let shown = self.shown.borrow();
        lifetime::renew_at(shown.svid.not_before(), shown.svid.not_after(), 0.0)
    }

    /// Whether a tainted authority holds the SVID up, and a new one would be signed by another.
    fn is_tainted(&self) -> bool {
        let shown = self.shown.borrow();
        let signs_now = self.issuer.active();
        if signs_now.is_none_or(|ca| ca.authority_id() == shown.authority_id) {
            return false;
        }
        let bundle = self.bundle.borrow();
        let tainted: Vec<_> = bundle.x509_authorities.iter().filter(|authority| authority.tainted).collect();
        !tainted.is_empty() && peer::verify_svid(&shown.svid, &tainted, self.clock.now()).is_ok()
    }
}

async fn make(
    issuer: &Issuer,
    keys: &MemoryKeys,
    key_type: KeyType,
    metrics: &Metrics,
) -> Result<ServerSvid, ServerSvidError> {
    metrics.timed(&["svid", "rotate"], |_| UNKNOWN, sign(issuer, keys, key_type)).await
}

async fn sign(issuer: &Issuer, keys: &MemoryKeys, key_type: KeyType) -> Result<ServerSvid, ServerSvidError> {
    let key = keys.generate("server-svid", key_type).await?;
    let Issued { svid, authority_id } = issuer.server_x509(key.public_key_der()).await?;
    tracing::debug!(spiffe_id = %svid.id(), expiration = at(unix_seconds(svid.not_after())), "Signed X509 SVID");
    let certified = Arc::new(CertifiedKey::new(svid.chain().to_vec(), rustls_key(&key)));
    Ok(ServerSvid { svid, certified, authority_id })
}
