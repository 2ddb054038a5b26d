//! Turns the authorities: performs what [`rotate`] says is due, one small step at a time.
//!
//! Each [`Driver::step`] does one thing that lasts. The order of the steps is what makes a kill between any two of them
//! harmless: a new key overwrites only a slot that signs no more; the journal knows of an authority before the bundle does;
//! the bundle knows of it before it signs; the journal says that it signs before it does. After a start, [`Driver::load`]
//! takes up what the journal, the keys and the bundle agree on and forgets the rest, which nobody has relied on yet.
//!
//! A step that fails changes nothing and is tried again. The authority that signs goes on signing meanwhile.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::backoff::Backoff;
use finial_daemon::clock::{Clock, from_unix_seconds, unix_seconds};
use finial_daemon::keys::{Key, KeyError, KeyManager, KeyType};
use finial_identity::bundle::X509Authority;
use finial_identity::lifetime;
use finial_identity::x509_svid::AuthorityCertificate;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::NewCa;
use super::chain::{self, ChainFault, at};
use super::issue::{ActiveCa, IssueError};
use super::journal::{self, Journal, JournalError, status};
use super::profile::{self, Profiles};
use super::rotate::{self, Held, SlotId, Slots, Standing, Step};
use super::self_signed;
use super::upstream::{self, UpstreamFault};
use crate::bundles::own::OwnBundle;
use crate::plugins::upstream_authority::UpstreamAuthority;
use crate::store::issued::IssuedLog;
use crate::store::{Store, StoreError};

const FIRST_RETRY: Duration = Duration::from_secs(10);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A key was made in the slot.
    KeyMade(SlotId),
    /// The journal says that a certificate will be asked for.
    IntentJournaled(SlotId),
    /// A certificate came back and was checked.
    Certified(SlotId),
    /// The journal holds the prepared authority.
    PreparationJournaled(SlotId),
    /// Its root is in the bundle: it is prepared.
    Prepared(SlotId),
    /// The journal says that it signs, and that the one before does not.
    ActivationJournaled(SlotId),
    /// It signs.
    Activated(SlotId),
    /// An expired authority was forgotten.
    Retired(SlotId),
    /// Nothing is due before this moment.
    Waiting(SystemTime),
}

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the trust bundle can not be stored: {0}")]
    Bundle(#[from] StoreError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    #[error(
        "the new X509 CA would end no later than the one in use, at {}, because a certificate of the upstream authority ends \
         then; have that one renewed", at(*ends)
    )]
    NoGain { ends: i64 },
}

/// What the driver works with.
pub struct DriverParts {
    pub clock: Clock,
    pub store: Store,
    pub keys: Arc<dyn KeyManager>,
    /// `ca_key_type`.
    pub key_type: KeyType,
    /// `None`: our CA signs itself.
    pub upstream: Option<Arc<dyn UpstreamAuthority>>,
    pub bundle: OwnBundle,
    pub profiles: Arc<Profiles>,
    pub issued: IssuedLog,
}

/// Turns the X.509 CA.
pub struct Driver {
    parts: DriverParts,
    journal: Journal,
    slots: Slots,
    cas: [Option<Arc<ActiveCa>>; 2],
    work: Work,
    active: watch::Sender<Option<Arc<ActiveCa>>>,
}

/// What is under way, between two steps.
#[derive(Clone)]
enum Work {
    Idle,
    KeyMade(SlotId, Arc<Key>),
    Intended(SlotId, Arc<Key>),
    Certified(SlotId, Arc<Made>),
    Journaled(SlotId, Arc<Made>),
    Activating(SlotId, Slots),
}

struct Made {
    ca: Arc<ActiveCa>,
    roots: Vec<CertificateDer<'static>>,
    issued_at: SystemTime,
}

impl Driver {
    /// Takes up where the journal, the keys and the bundle agree. An authority that was active signs again at once.
    pub async fn load(parts: DriverParts) -> Result<Driver, DriveError> {
        let mut ours = Vec::new();
        for key in parts.keys.list().await? {
            ours.extend(profile::authority_id(key.public_key_der()).ok());
        }
        let journal = Journal::load(parts.store.clone(), &ours).await?;
        let (active, _) = watch::channel(None);
        let mut driver =
            Driver { parts, journal, slots: Slots::default(), cas: [None, None], work: Work::Idle, active };
        driver.take_up().await?;
        if let Some(slot) = driver.slots.active() {
            driver.switch_to(slot);
        }
        Ok(driver)
    }

    /// The CA that signs, now and from now on; `None` until the first is active.
    pub fn active(&self) -> watch::Receiver<Option<Arc<ActiveCa>>> {
        self.active.subscribe()
    }

    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Does the next thing that is due. After an error the same thing is due again.
    pub async fn step(&mut self) -> Result<Progress, DriveError> {
        let now = self.parts.clock.now();
        match self.work.clone() {
            Work::Idle => match rotate::next(&self.slots, now) {
                Step::Wait(until) => Ok(Progress::Waiting(until)),
                Step::Prepare(slot) => self.make_key(slot).await,
                Step::Activate(slot) => self.journal_activation(slot).await,
                Step::Retire(slot) => {
                    self.slots = std::mem::take(&mut self.slots).without(slot);
                    self.cas[index(slot)] = None;
                    Ok(Progress::Retired(slot))
                }
            },
            Work::KeyMade(slot, key) => {
                self.journal.intend(slot, &authority_id(&key)?, now).await?;
                self.work = Work::Intended(slot, key);
                Ok(Progress::IntentJournaled(slot))
            }
            Work::Intended(slot, key) => {
                let made = self.certify(key, now).await?;
                self.parts.issued.record(made.ca.own_record());
                self.work = Work::Certified(slot, Arc::new(made));
                Ok(Progress::Certified(slot))
            }
            Work::Certified(slot, made) | Work::Journaled(slot, made) if made.is_stale(now) => {
                // Its store or bundle could not be reached for half of its life.
                self.make_key(slot).await
            }
            Work::Certified(slot, made) => {
                self.journal.prepared(made.entry(slot)).await?;
                self.work = Work::Journaled(slot, made);
                Ok(Progress::PreparationJournaled(slot))
            }
            Work::Journaled(slot, made) => {
                self.parts.bundle.append_x509(&made.roots).await?;
                self.slots = std::mem::take(&mut self.slots).with(slot, made.held());
                self.cas[index(slot)] = Some(Arc::clone(&made.ca));
                self.work = Work::Idle;
                made.log(slot, self.parts.upstream.is_none());
                Ok(Progress::Prepared(slot))
            }
            Work::Activating(slot, slots) => {
                self.slots = slots;
                self.work = Work::Idle;
                self.switch_to(slot);
                Ok(Progress::Activated(slot))
            }
        }
    }

    /// Steps until an authority signs. The first failure is the caller's: a server can not start without a CA.
    pub async fn start(&mut self) -> Result<(), DriveError> {
        if self.active.borrow().is_some() {
            self.warn_if_upstream_is_broken().await;
        }
        while self.active.borrow().is_none() {
            self.step().await?;
        }
        Ok(())
    }

    /// Turns the authorities for as long as the server runs.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            match self.step().await {
                Ok(Progress::Waiting(until)) => {
                    backoff.reset();
                    self.parts.clock.sleep_until(until).await;
                }
                Ok(_) => {}
                Err(error) => {
                    let wait = backoff.next();
                    let expires_at = self.active.borrow().as_ref().map(|ca| at(ca.ends()));
                    tracing::error!(
                        %error,
                        retry_in = ?wait,
                        expires_at,
                        "Unable to rotate X509 CA; the one in use stays in use until it expires"
                    );
                    self.parts.clock.sleep(wait).await;
                }
            }
        }
    }

    async fn make_key(&mut self, slot: SlotId) -> Result<Progress, DriveError> {
        let key = self.parts.keys.generate(&key_id(slot), self.parts.key_type).await?;
        // What the slot held can sign no more once its key is overwritten.
        self.slots = std::mem::take(&mut self.slots).without(slot);
        self.cas[index(slot)] = None;
        self.work = Work::KeyMade(slot, key);
        Ok(Progress::KeyMade(slot))
    }

    async fn journal_activation(&mut self, slot: SlotId) -> Result<Progress, DriveError> {
        let slots = self.slots.clone().activated(slot);
        if let Some(held) = slots.get(slot) {
            self.journal.activated(&held.authority_id).await?;
        }
        self.work = Work::Activating(slot, slots);
        Ok(Progress::ActivationJournaled(slot))
    }

    /// A certificate for the key, from above or from itself, checked to the end: the chain rule by rule, and a first SVID
    /// as a peer would see it.
    async fn certify(&self, key: Arc<Key>, now: SystemTime) -> Result<Made, DriveError> {
        let profiles = &self.parts.profiles;
        let NewCa { der, above, roots, ends } = match &self.parts.upstream {
            Some(authority) => upstream::mint(authority.as_ref(), profiles, &key, now).await?,
            None => self_signed::make(profiles, &key, now).await?,
        };
        let ca = ActiveCa::new(key, der, above, ends)?;
        self.refuse_no_gain(&ca, now)?;
        ca.prove(profiles, &roots, now).await?;
        Ok(Made { ca: Arc::new(ca), roots, issued_at: now })
    }

    /// Below a certificate that is about to end, each new CA would last half as long as the one before, faster and faster.
    fn refuse_no_gain(&self, ca: &ActiveCa, now: SystemTime) -> Result<(), DriveError> {
        let in_use = self.slots.active().and_then(|slot| self.slots.get(slot));
        let ends = from_unix_seconds(ca.ends());
        let was_capped = ends < now + self.parts.profiles.ca_ttl() - Duration::from_secs(1);
        match in_use {
            Some(held) if was_capped && now < held.not_after && ends <= held.not_after => {
                Err(DriveError::NoGain { ends: ca.ends() })
            }
            _ => Ok(()),
        }
    }

    fn switch_to(&self, slot: SlotId) {
        let Some(ca) = &self.cas[index(slot)] else { return };
        self.active.send_replace(Some(Arc::clone(ca)));
        let issued_at = self.slots.get(slot).map(|held| at(unix_seconds(held.issued_at)));
        tracing::info!(
            slot = slot.name(),
            issued_at,
            expiration = at(ca.ends()),
            local_authority_id = ca.authority_id(),
            upstream_authority_id = ca.upstream_authority_id(),
            "X509 CA activated"
        );
    }

    /// Fills the slots from the journal, newest entries first: the active one, and the newest other that is still good.
    async fn take_up(&mut self) -> Result<(), DriveError> {
        let entries: Vec<_> = self.journal.entries().rev().cloned().collect();
        tracing::info!(x509_cas = entries.len(), "Journal loaded");
        let authorities = self.parts.bundle.current().x509_authorities.clone();
        for entry in entries {
            let standing = match entry.status {
                status::ACTIVE if self.slots.active().is_none() => Standing::Active,
                // Go writes the end of one and the beginning of the next separately.
                status::ACTIVE | status::OLD => Standing::Old,
                status::PREPARED if self.slots.prepared().is_none() => Standing::Prepared,
                _ => continue,
            };
            let Some(slot) = SlotId::from_name(&entry.slot_id) else { continue };
            if self.slots.get(slot).is_some() {
                continue;
            }
            match self.revive(slot, &entry, &authorities).await {
                Ok(ca) => {
                    let held = Held {
                        authority_id: ca.authority_id().to_owned(),
                        issued_at: from_unix_seconds(entry.issued_at),
                        not_after: from_unix_seconds(ca.ends()),
                        standing,
                    };
                    self.slots = std::mem::take(&mut self.slots).with(slot, held);
                    self.cas[index(slot)] = Some(Arc::new(ca));
                }
                Err(Unusable::Failed(error)) => return Err(error),
                Err(Unusable::Because(reason)) => tracing::warn!(
                    slot = slot.name(),
                    issued_at = at(entry.issued_at),
                    status = entry.status,
                    local_authority_id = entry.authority_id,
                    %reason,
                    "X509CA slot unusable"
                ),
            }
        }
        Ok(())
    }

    /// An authority out of the journal, if its key is still there and the bundle still holds it.
    async fn revive(
        &self,
        slot: SlotId,
        entry: &journal::Entry,
        authorities: &[X509Authority],
    ) -> Result<ActiveCa, Unusable> {
        let now = self.parts.clock.now();
        let certificate = AuthorityCertificate::read(&entry.certificate)
            .map_err(|fault| Unusable::Because(fault.to_string()))?;
        let key = self.parts.keys.get(&key_id(slot)).await.map_err(|error| Unusable::Failed(error.into()))?;
        let key = key.ok_or_else(|| Unusable::Because("no key manager key".to_owned()))?;
        if key.public_key_der() != certificate.public_key_der() {
            return Err(Unusable::Because("public key does not match key manager key".to_owned()));
        }
        let der = CertificateDer::from(entry.certificate.clone());
        let above: Vec<_> = entry.upstream_chain.iter().cloned().map(CertificateDer::from).collect();
        let chain = if above.is_empty() { std::slice::from_ref(&der) } else { above.as_slice() };
        let anchored = chain::check(chain, authorities, 0, now)?;
        let ca = ActiveCa::new(key, der, above, anchored.ends)?;
        ca.prove(&self.parts.profiles, authorities, now).await?;
        Ok(ca)
    }

    /// The next rotation may be far away; that it will fail is better known now.
    async fn warn_if_upstream_is_broken(&self) {
        let Some(upstream) = &self.parts.upstream else { return };
        if let Err(error) = upstream.check().await {
            tracing::error!(
                %error,
                "The upstream authority can not be used; the X509 CA in use stays in use until it expires"
            );
        }
    }
}

impl Made {
    fn is_stale(&self, now: SystemTime) -> bool {
        lifetime::prepare_at(self.issued_at, from_unix_seconds(self.ca.ends())) <= now
    }

    fn entry(&self, slot: SlotId) -> journal::Entry {
        journal::Entry {
            slot_id: slot.name().to_owned(),
            issued_at: unix_seconds(self.issued_at),
            certificate: self.ca.der().to_vec(),
            upstream_chain: self.ca.above().iter().map(|der| der.to_vec()).collect(),
            status: status::PREPARED,
            authority_id: self.ca.authority_id().to_owned(),
            not_after: unix_seconds(self.ca.certificate().not_after()),
            upstream_authority_id: self.ca.upstream_authority_id(),
        }
    }

    fn held(&self) -> Held {
        Held {
            authority_id: self.ca.authority_id().to_owned(),
            // As the journal has it: whole seconds.
            issued_at: from_unix_seconds(unix_seconds(self.issued_at)),
            not_after: from_unix_seconds(self.ca.ends()),
            standing: Standing::Prepared,
        }
    }

    fn log(&self, slot: SlotId, self_signed: bool) {
        tracing::info!(
            slot = slot.name(),
            issued_at = at(unix_seconds(self.issued_at)),
            expiration = at(self.ca.ends()),
            self_signed,
            local_authority_id = self.ca.authority_id(),
            upstream_authority_id = self.ca.upstream_authority_id(),
            "X509 CA prepared"
        );
    }
}

/// Why an entry of the journal is not taken up.
enum Unusable {
    Because(String),
    /// It can not be told; the start fails.
    Failed(DriveError),
}

impl From<ChainFault> for Unusable {
    fn from(fault: ChainFault) -> Self {
        Unusable::Because(fault.to_string())
    }
}

impl From<IssueError> for Unusable {
    fn from(error: IssueError) -> Self {
        Unusable::Because(error.to_string())
    }
}

/// The id of a slot's key in the key manager.
fn key_id(slot: SlotId) -> String {
    format!("x509-CA-{slot}")
}

fn index(slot: SlotId) -> usize {
    match slot {
        SlotId::A => 0,
        SlotId::B => 1,
    }
}

fn authority_id(key: &Key) -> Result<String, DriveError> {
    Ok(profile::authority_id(key.public_key_der())
        .map_err(profile::ProfileError::PublicKey)
        .map_err(IssueError::from)?)
}
