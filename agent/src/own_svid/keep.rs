//! Makes the agent's own SVID, keeps it fresh, and acts on what the server says of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::backoff::Backoff;
use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::keys::{self, Key, KeyError, KeyManager, KeyType, spire_subject};
use finial_daemon::metrics::{self, Metrics, UNKNOWN};
use finial_identity::lifetime;
use finial_identity::x509_svid::X509Svid;
use rand::Rng;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{Identity, OwnSvid, Trust};
use crate::attest::node::{self, AttestError};
use crate::bootstrap::{BootstrapError, FirstTrust};
use crate::plugins::node_attestor::{NodeAttestor, NodeAttestorFault};
use crate::storage::{Storage, StorageError};
use crate::sync::LastSync;
use crate::sync::client::{CallError, Client, Denial};

/// The two places a key can be in: while one is in use, the other is made.
const KEY_IDS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];
/// SPIRE's agents use P-256 whatever the workloads' key type is.
const KEY_TYPE: KeyType = KeyType::EcP256;

/// Waits while the server can't be reached.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long an agent that has not been in step with its server yet puts up with one whom it does not believe, or with a
/// first bundle that does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where rebootstrapping is on, which waits for the server to come back as another one.
const LONG_PATIENCE: Duration = Duration::from_secs(24 * 3600);

const NOT_ALLOWED: &str = "you have requested rebootstrap support but the NodeAttestor plugin or the spire server \
                           configuration is not allowing it";

/// `rebootstrap_mode`: what to do when the server is no longer believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebootstrapMode {
    /// End.
    Never,
    /// Start anew, if this node can attest again.
    Auto,
    /// Start anew, and do not run where this node could not attest again.
    Always,
}

/// `rebootstrap_mode` and `rebootstrap_delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebootstrap {
    pub mode: RebootstrapMode,
    /// How long the server must have been another one.
    pub delay: Duration,
}

/// What a call to the server brought to light.
pub enum News {
    /// What the server thinks of this agent.
    Denied(Denial),
    /// The server is not believed: the reason, and when that was seen.
    NotBelieved { text: String, at: SystemTime },
}

/// Why the agent can't go on.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("cannot prove this node: {0}")]
    NotProved(#[from] AttestError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "the server refuses this agent because {reason}, and its way of attestation can't be repeated; start it with a new join token"
    )]
    LockedOut { reason: &'static str },
    #[error(
        "this agent is banned; its SVID was deleted. Have the ban lifted (agent evict) before it is started again"
    )]
    Banned,
    #[error(
        "the server refuses this agent because {reason}; its SVID was deleted: start it again to attest anew"
    )]
    StartAgain { reason: &'static str },
    #[error(
        "failed to sync with SPIRE Server: {0}; if the server's authorities were replaced on purpose, remove data_dir/agent-data.json and renew the trust bundle, or set rebootstrap_mode"
    )]
    NotBelieved(String),
    #[error("Agent needs to rebootstrap. shutting down: its SVID and bundle were deleted; start it again")]
    Rebootstraps,
    #[error(
        "{NOT_ALLOWED}; set rebootstrap_mode to auto or never, or use a node attestor that can attest again"
    )]
    RebootstrapNotAllowed,
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(
        "the agent's own SVID has expired and could not be renewed; start it with a new join token when the server can be reached"
    )]
    Expired,
}

/// Keeps the agent's own SVID.
pub struct Keeper {
    pub identity: Identity,
    pub client: Client,
    pub storage: Storage,
    pub keys: Arc<dyn KeyManager>,
    pub attestor: Arc<dyn NodeAttestor>,
    pub metrics: Metrics,
    pub clock: Clock,
    pub first_trust: FirstTrust,
    pub rebootstrap: Rebootstrap,
    pub last_sync: LastSync,
    /// What others heard who called the server.
    pub news: mpsc::Receiver<News>,
}

impl News {
    /// What the error says beyond that one call.
    pub fn of(error: &CallError, at: SystemTime) -> Option<News> {
        if error.is_unknown_authority() {
            return Some(News::NotBelieved { text: error.to_string(), at });
        }
        error.denial().map(News::Denied)
    }
}

impl Keeper {
    /// Finds out whom to believe, and takes the stored SVID into use or attests. Waits for a server that can't be reached.
    pub async fn start(&mut self) -> Result<(), KeepError> {
        if let Some(stored) = self.storage.svid() {
            self.allow_rebootstrap(stored.reattestable)?;
        }
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let started = self.clock.monotonic();
        let mut attempts = 0;
        loop {
            attempts += 1;
            self.show_bootstrap(self.storage.svid().is_some(), attempts);
            let error = match self.begin().await {
                Ok(reattestable) => {
                    self.show_bootstrap(true, 0);
                    return self.allow_rebootstrap(reattestable);
                }
                Err(error) if is_passing(&error) => error,
                Err(error) => return Err(error),
            };
            let not_believed = is_unknown_authority(&error);
            if not_believed && self.first_trust.is_first() {
                tracing::info!("Trust Bundle and Server don't agree, bootstrapping again");
            } else if not_believed && self.rebootstraps() && self.is_time_to_rebootstrap().await? {
                self.first_trust.forget_bundle().await?;
            }
            let patience = if self.rebootstraps() { LONG_PATIENCE } else { PATIENCE };
            let waits_for_server = !not_believed && !matches!(error, KeepError::Bootstrap(_));
            if !waits_for_server && self.clock.monotonic().saturating_sub(started) >= patience {
                return Err(error);
            }
            let wait = backoff.next();
            tracing::warn!(%error, retry_interval = ?wait, "Failed to retrieve attestation result");
            self.clock.sleep(wait).await;
        }
    }

    /// Renews until stopped; returns an error when the agent can't go on.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), KeepError> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut trust = self.identity.trust_changes();
        let mut due_at = self.due_at();
        let started = self.clock.monotonic();
        loop {
            let news = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                news = self.news.recv() => news,
                () = self.clock.sleep_until(due_at) => None,
                _ = trust.changed() => {
                    if !self.identity.is_tainted(self.clock.now()) {
                        continue;
                    }
                    tracing::info!("Agent SVID is tainted by a root authority, forcing rotation");
                    None
                }
            };
            let was_denied = news.is_some();
            let done = match news {
                Some(News::Denied(denial)) => self.act_on(denial).await,
                // Told late: it has been believed since.
                Some(News::NotBelieved { at, .. })
                    if self.last_sync.success().is_some_and(|last| last >= at) =>
                {
                    continue;
                }
                Some(News::NotBelieved { text, .. }) => {
                    let is_new = self.last_sync.success().is_none();
                    let is_patient = is_new && self.clock.monotonic().saturating_sub(started) < PATIENCE;
                    if self.rebootstraps() {
                        if self.is_time_to_rebootstrap().await? {
                            self.first_trust.start_over().await?;
                            return Err(KeepError::Rebootstraps);
                        }
                    } else if !is_patient {
                        let error = KeepError::NotBelieved(text);
                        // Another server in the place of ours must not take the node's workloads down.
                        if is_new || !self.is_good() {
                            return Err(error);
                        }
                        tracing::error!(%error, "The server is not believed; serving until this agent's SVID ends");
                    }
                    continue;
                }
                None => self.metrics.timed(&["agent_svid", "rotate"], |_| UNKNOWN, self.rotate()).await,
            };
            match done {
                Ok(()) => {
                    backoff.reset();
                    due_at = self.due_at();
                }
                Err(error) if is_passing(&error) || (!was_denied && self.has_time_left(&error)) => {
                    self.must_be_alive().await?;
                    let wait = backoff.next();
                    tracing::error!(%error, retry_interval = ?wait, "Failed to rotate the agent's SVID; trying again");
                    due_at = self.clock.now() + wait;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One attempt to start; says whether this node can attest again.
    async fn begin(&self) -> Result<bool, KeepError> {
        self.identity.set_trust(self.first_trust.get().await?);
        if let Some(own) = self.stored().await? {
            tracing::info!(spiffe_id = %own.svid.id(), "SVID loaded; this node is attested already");
            self.set_own(own);
        } else {
            self.attest().await?;
            // With a stored SVID the server has not been met yet.
            self.first_trust.succeeded().await?;
        }
        Ok(self.identity.own().is_some_and(|own| own.reattestable))
    }

    /// Whether the SVID in use has not ended.
    fn is_good(&self) -> bool {
        self.identity.own().is_some_and(|own| own.svid.not_after() > self.clock.now())
    }

    fn rebootstraps(&self) -> bool {
        self.rebootstrap.mode != RebootstrapMode::Never
    }

    /// Rebootstrapping ends with an attestation, so a node that can't attest again is not left without an identity.
    fn allow_rebootstrap(&mut self, reattestable: bool) -> Result<(), KeepError> {
        match self.rebootstrap.mode {
            RebootstrapMode::Always if !reattestable => Err(KeepError::RebootstrapNotAllowed),
            RebootstrapMode::Auto if !reattestable => {
                tracing::warn!("{NOT_ALLOWED}. Disabling");
                self.rebootstrap.mode = RebootstrapMode::Never;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether the server has been another one for long enough.
    async fn is_time_to_rebootstrap(&self) -> Result<bool, KeepError> {
        let since = self.first_trust.failing_since().await?;
        let waited = self.clock.now().duration_since(since).unwrap_or_default();
        match self.rebootstrap.delay.checked_sub(waited).filter(|left| !left.is_zero()) {
            Some(left) => {
                tracing::info!(time_left = ?left, "Trust Bundle and Server don't agree, ignoring for now");
                Ok(false)
            }
            None => {
                tracing::warn!("Trust Bundle and Server don't agree, rebootstrapping");
                Ok(true)
            }
        }
    }

    /// The SVID of an earlier run, if it is still good and its key is there.
    async fn stored(&self) -> Result<Option<OwnSvid>, KeepError> {
        let Some(stored) = self.storage.svid() else { return Ok(None) };
        let svid = match X509Svid::read(stored.chain) {
            Ok(svid) => svid,
            Err(error) => {
                tracing::warn!(%error, "The stored SVID can't be used");
                return Ok(None);
            }
        };
        if svid.not_after() <= self.clock.now() {
            tracing::warn!(spiffe_id = %svid.id(), "The stored SVID has expired");
            return Ok(None);
        }
        let key =
            self.keys.list().await?.into_iter().find(|key| key.public_key_der() == svid.public_key_der());
        let Some(key) = key else {
            tracing::warn!(spiffe_id = %svid.id(), "The key of the stored SVID is gone");
            return Ok(None);
        };
        Ok(Some(OwnSvid { svid, key, reattestable: stored.reattestable }))
    }

    async fn attest(&self) -> Result<(), KeepError> {
        let key = self.new_key().await?;
        let mut call = self.metrics.call(&["node", "attestor", "new_svid"]);
        call.label("attestor", self.attestor.name().to_owned());
        let proved = node::prove(&self.client, &self.identity, &*self.attestor, &key).await;
        call.done(if proved.is_ok() { metrics::OK } else { UNKNOWN });
        let proved = proved?;
        tracing::info!(spiffe_id = %proved.svid.id(), reattestable = proved.reattestable, "Node attestation was successful");
        if let Trust::Bundle(bundle) = self.identity.trust() {
            let authorities =
                bundle.x509_authorities.iter().map(|authority| authority.der.clone().into()).collect();
            self.storage.store_bundle(authorities).await?;
        }
        self.take(proved.svid, key, proved.reattestable).await
    }

    async fn rotate(&self) -> Result<(), KeepError> {
        let reattestable = match self.identity.own() {
            Some(own) => own.reattestable,
            None => return self.attest().await,
        };
        if reattestable {
            return self.metrics.timed(&["node", "attest"], |_| UNKNOWN, self.attest()).await;
        }
        let key = self.new_key().await?;
        let csr = keys::csr(&key, &spire_subject(), &[]).await?;
        let svid = match self.client.renew(csr).await {
            Ok(svid) => svid,
            Err(error) => match error.denial() {
                Some(denial) => return self.act_on(denial).await,
                None => return Err(AttestError::Call(error).into()),
            },
        };
        if svid.public_key_der() != key.public_key_der() {
            return Err(AttestError::ForeignKey.into());
        }
        tracing::info!(spiffe_id = %svid.id(), "Successfully rotated agent SVID");
        self.take(svid, key, false).await
    }

    async fn act_on(&self, denial: Denial) -> Result<(), KeepError> {
        let reason = match denial {
            Denial::Banned => {
                tracing::warn!("Agent is banned: removing SVID and shutting down");
                self.storage.delete_svid().await?;
                return Err(KeepError::Banned);
            }
            Denial::MustAttest(reason) => reason,
        };
        let reattestable = self.identity.own().is_some_and(|own| own.reattestable);
        if reattestable && self.last_sync.success().is_some() {
            tracing::warn!(reason, "Agent needs to re-attest; will attempt to re-attest");
            let attested = self.attest().await;
            if attested.as_ref().is_err_and(|error| !is_passing(error)) {
                tracing::error!("Agent failed re-attestation; removing SVID and shutting down");
                self.storage.delete_svid().await?;
            }
            return attested;
        }
        tracing::error!(reason, "Agent needs to re-attest: removing SVID and shutting down");
        self.storage.delete_svid().await?;
        Err(if reattestable { KeepError::StartAgain { reason } } else { KeepError::LockedOut { reason } })
    }

    /// Stores, then uses. The server accepts the old SVID until it first sees the new one, so nothing is lost when
    /// the write fails.
    async fn take(&self, svid: X509Svid, key: Arc<Key>, reattestable: bool) -> Result<(), KeepError> {
        self.storage.store_svid(svid.chain().to_vec(), reattestable).await?;
        self.set_own(OwnSvid { svid, key, reattestable });
        self.client.hang_up();
        Ok(())
    }

    fn set_own(&self, own: OwnSvid) {
        let ends = unix_seconds(own.svid.not_after());
        self.identity.set_own(own);
        self.metrics.gauge(&["finial", "agent_svid", "expiration"], ends as f64);
    }

    /// Whether the node is attested, and how often that was tried since when. A node that is may have to do it again.
    fn show_bootstrap(&self, done: bool, attempts: u32) {
        let mode = [("mode", if done { "rebootstrap" } else { "bootstrap" })];
        self.metrics.gauge(&["bootstrapped"], f64::from(u8::from(done)));
        if attempts <= 1 {
            let since = if attempts == 0 { 0 } else { unix_seconds(self.clock.now()) };
            self.metrics.gauge_with(&["bootstrap_seconds"], since as f64, &mode);
        }
        self.metrics.gauge_with(&["bootstrap_attempts"], f64::from(attempts), &mode);
    }

    /// A key in the place that is not in use.
    async fn new_key(&self) -> Result<Arc<Key>, KeyError> {
        let in_use = self.identity.own().map(|own| own.key.id().to_owned());
        let stored = match &in_use {
            Some(_) => None,
            // Before the first SVID is taken, a stored one may still be the only good one.
            None => self.stored().await.ok().flatten().map(|own| own.key.id().to_owned()),
        };
        let in_use = in_use.or(stored);
        let id = KEY_IDS.into_iter().find(|id| in_use.as_deref() != Some(id)).unwrap_or(KEY_IDS[0]);
        self.keys.generate(id, KEY_TYPE).await
    }

    fn due_at(&self) -> SystemTime {
        let Some(own) = self.identity.own() else { return self.clock.now() };
        let jitter = rand::rng().random_range(-0.1..=0.1);
        lifetime::renew_at(own.svid.not_before(), own.svid.not_after(), jitter)
    }

    /// Whether an attestation that was refused may be tried again: while the SVID in use is good, an operator can still put
    /// things right, such as the certificate that proves this node.
    fn has_time_left(&self, error: &KeepError) -> bool {
        let was_refused = matches!(
            error,
            KeepError::NotProved(AttestError::Attestor(_) | AttestError::Call(CallError::Refused { .. }))
        );
        let now = self.clock.now();
        was_refused && self.identity.own().is_some_and(|own| own.reattestable && own.svid.not_after() > now)
    }

    /// An agent whose SVID is over can only prove itself anew.
    async fn must_be_alive(&self) -> Result<(), KeepError> {
        let over = self
            .identity
            .own()
            .is_some_and(|own| own.svid.not_after() <= self.clock.now() && !own.reattestable);
        if !over {
            return Ok(());
        }
        self.storage.delete_svid().await?;
        Err(KeepError::Expired)
    }
}

fn is_unknown_authority(error: &KeepError) -> bool {
    matches!(error, KeepError::NotProved(AttestError::Call(call)) if call.is_unknown_authority())
}

/// Whether trying again may help: the server can't be reached or can't serve now, or the disk is full.
fn is_passing(error: &KeepError) -> bool {
    match error {
        KeepError::NotProved(AttestError::Call(call)) => match call {
            CallError::Unavailable(_) | CallError::TimedOut | CallError::Malformed(_) => true,
            CallError::Refused { code, .. } => {
                !matches!(code, Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition)
            }
            CallError::Denied { .. } | CallError::Unimplemented(_) | CallError::NotFound(_) => false,
        },
        KeepError::NotProved(AttestError::Attestor(NodeAttestorFault::NotReady { .. })) => true,
        KeepError::NotProved(AttestError::Key(_)) | KeepError::Storage(_) | KeepError::Key(_) => true,
        KeepError::Bootstrap(_) => true,
        KeepError::NotProved(_)
        | KeepError::LockedOut { .. }
        | KeepError::Banned
        | KeepError::StartAgain { .. }
        | KeepError::NotBelieved(_)
        | KeepError::Rebootstraps
        | KeepError::RebootstrapNotAllowed
        | KeepError::Expired => false,
    }
}
