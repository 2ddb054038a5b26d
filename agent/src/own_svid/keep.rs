//! Makes the agent's own SVID, keeps it fresh, and acts on what the server says of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::backoff::Backoff;
use finial_daemon::clock::Clock;
use finial_daemon::keys::{self, Key, KeyError, KeyManager, KeyType, spire_subject};
use finial_identity::lifetime;
use finial_identity::x509_svid::X509Svid;
use rand::Rng;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{Identity, OwnSvid, Trust};
use crate::attest::node::{self, AttestError};
use crate::plugins::node_attestor::{NodeAttestor, NodeAttestorFault};
use crate::storage::{Storage, StorageError};
use crate::sync::client::{CallError, Client, Denial};

/// The two places a key can be in: while one is in use, the other is made.
const KEY_IDS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];
/// SPIRE's agents use P-256 whatever the workloads' key type is.
const KEY_TYPE: KeyType = KeyType::EcP256;

/// Waits while the server can't be reached.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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
    pub clock: Clock,
    /// What the server said of this agent to whoever called it.
    pub denials: mpsc::Receiver<Denial>,
}

impl Keeper {
    /// Takes the stored SVID into use, or attests. Waits for a server that can't be reached.
    pub async fn start(&self) -> Result<(), KeepError> {
        if let Some(own) = self.stored().await? {
            tracing::info!(spiffe_id = %own.svid.id(), "SVID loaded; this node is attested already");
            self.identity.set_own(own);
            return Ok(());
        }
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match self.attest().await {
                Ok(()) => return Ok(()),
                Err(error) if is_passing(&error) => {
                    let wait = backoff.next();
                    tracing::warn!(%error, retry_interval = ?wait, "Failed to attest; trying again");
                    self.clock.sleep(wait).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Renews until stopped; returns an error when the agent can't go on.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), KeepError> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut trust = self.identity.trust_changes();
        let mut due_at = self.due_at();
        loop {
            let denial = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                denial = self.denials.recv() => denial,
                () = self.clock.sleep_until(due_at) => None,
                _ = trust.changed() => {
                    if !self.identity.is_tainted(self.clock.now()) {
                        continue;
                    }
                    tracing::info!("The authority of the agent's own SVID was tainted; renewing it");
                    None
                }
            };
            let was_denied = denial.is_some();
            let done = match denial {
                Some(denial) => self.act_on(denial).await,
                None => self.rotate().await,
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
        let proved = node::prove(&self.client, &self.identity, &*self.attestor, &key).await?;
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
            return self.attest().await;
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
        tracing::info!(spiffe_id = %svid.id(), "Agent SVID renewed");
        self.take(svid, key, false).await
    }

    async fn act_on(&self, denial: Denial) -> Result<(), KeepError> {
        match denial {
            Denial::Banned => {
                self.storage.delete_svid().await?;
                Err(KeepError::Banned)
            }
            Denial::MustAttest(reason) => {
                if self.identity.own().is_some_and(|own| own.reattestable) {
                    tracing::warn!(reason, "The server refuses this agent's SVID; attesting again");
                    return self.attest().await;
                }
                self.storage.delete_svid().await?;
                Err(KeepError::LockedOut { reason })
            }
        }
    }

    /// Stores, then uses. The server accepts the old SVID until it first sees the new one, so nothing is lost when
    /// the write fails.
    async fn take(&self, svid: X509Svid, key: Arc<Key>, reattestable: bool) -> Result<(), KeepError> {
        self.storage.store_svid(svid.chain().to_vec(), reattestable).await?;
        self.identity.set_own(OwnSvid { svid, key, reattestable });
        self.client.hang_up();
        Ok(())
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
        KeepError::NotProved(_) | KeepError::LockedOut { .. } | KeepError::Banned | KeepError::Expired => {
            false
        }
    }
}
