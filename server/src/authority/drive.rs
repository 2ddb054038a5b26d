//! Turns the authorities: performs what [`rotate`] says is due, one small step at a time, for every kind of authority.
//!
//! Each [`Driver::step`] does one thing that lasts. The order of the steps is what makes a kill between any two of them
//! harmless: a new key overwrites only a slot that signs no more; the journal knows of an authority before the bundle does;
//! the bundle knows of it before it signs; the journal says that it signs before it does. After a start, [`Driver::load`]
//! takes up what the journal, the keys and the bundle agree on and forgets the rest, which nobody has relied on yet.
//!
//! A step that fails changes nothing and is tried again. The authority that signs goes on signing meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use finial_daemon::backoff::Backoff;
use finial_daemon::clock::{Clock, from_unix_seconds, unix_seconds};
use finial_daemon::keys::{Key, KeyError, KeyManager, KeyType};
use finial_daemon::metrics::{self, Call, Metrics};
use finial_identity::bundle::Bundle;
use finial_identity::lifetime;
use tokio::sync::{mpsc, watch};

use super::by_hand::{Order, OrderError, Orders, Rule, Standings, State, Wish};
use super::chain::at;
use super::issue::IssueError;
use super::journal::{Journal, JournalError};
use super::rotate::{self, Held, SlotId, Slots, Standing, Step};
use super::upstream::UpstreamFault;
use crate::bundles::own::{Authorities, OwnBundle};
use crate::store::StoreError;
use crate::store::journal::entries::{Content, List, Record, status};

const FIRST_RETRY: Duration = Duration::from_secs(10);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// Orders that wait while one is carried out; whoever sends more waits himself.
const ORDERS: usize = 8;

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A key was made in the slot.
    KeyMade(SlotId),
    /// The journal says that an authority will be made of it.
    IntentJournaled(SlotId),
    /// The authority was made and checked.
    Made(SlotId),
    /// The journal holds the prepared authority.
    PreparationJournaled(SlotId),
    /// The bundle knows of it: it is prepared.
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

/// A kind of authority: how one is made, and what the journal and the bundle hold of it.
pub(super) trait Kind: Send + Sync + 'static {
    /// What signs.
    type Signer: Send + Sync + 'static;

    /// As operators read it in the log.
    const NAME: &'static str;
    /// Where the journal keeps it.
    const LIST: List;
    /// The names of its keys in the key manager, without the slot.
    const KEYS: &'static str;

    fn key_type(&self) -> KeyType;

    /// The ID of the authority that will be made of a new key.
    fn authority_id(&self, key: &Key) -> Result<String, DriveError>;

    /// Makes it. `in_use` is what it would follow when its time has come, so it may be refused as no improvement.
    fn make(
        &self,
        key: Arc<Key>,
        authority_id: &str,
        in_use: Option<&Held>,
        now: SystemTime,
    ) -> impl Future<Output = Result<Made<Self::Signer>, DriveError>> + Send;

    /// Makes it again out of the journal, if the bundle still holds it.
    fn revive(
        &self,
        key: Arc<Key>,
        record: &Record,
        bundle: &Bundle,
        now: SystemTime,
    ) -> impl Future<Output = Result<Self::Signer, Unusable>> + Send;

    fn facts(signer: &Self::Signer) -> Facts;

    /// The words under which it is counted.
    const WORDS: Words;

    /// What the journal keeps of it beside its facts.
    fn content(signer: &Self::Signer) -> Content;
}

/// Names of counters and gauges.
pub(super) struct Words {
    pub(super) prepare: &'static [&'static str],
    pub(super) activate: &'static [&'static str],
    pub(super) expiration: &'static [&'static str],
    pub(super) ttl: &'static [&'static str],
}

/// A new authority.
pub(super) struct Made<S> {
    pub(super) signer: Arc<S>,
    /// What has to be in the bundle before it signs.
    pub(super) addition: Authorities,
    pub(super) issued_at: SystemTime,
}

/// What there is to say of any authority.
pub(super) struct Facts {
    /// X.509: lowercase hex of the subject key identifier; JWT: the key ID.
    pub(super) authority_id: String,
    /// Of the authority itself.
    pub(super) not_after: SystemTime,
    /// When it or something above it ends: nothing it signs lasts longer.
    pub(super) ends: SystemTime,
    /// Lowercase hex of the key identifier of whoever signed it; empty when nobody did.
    pub(super) upstream_authority_id: String,
}

/// Why a record of the journal is not taken up.
pub(super) struct Unusable(pub(super) String);

/// What the drivers of all kinds work with.
#[derive(Clone)]
pub(super) struct DriverParts {
    pub(super) clock: Clock,
    pub(super) keys: Arc<dyn KeyManager>,
    pub(super) journal: Journal,
    pub(super) bundle: OwnBundle,
    pub(super) metrics: Metrics,
}

/// Turns the authorities of one kind.
pub(super) struct Driver<K: Kind> {
    kind: K,
    parts: DriverParts,
    pub(super) slots: Slots,
    signers: [Option<Arc<K::Signer>>; 2],
    work: Work<Arc<Made<K::Signer>>>,
    active: watch::Sender<Option<Arc<K::Signer>>>,
    /// Both ends: without a sender there would be nothing to wait for.
    orders: (Orders, mpsc::Receiver<Order>),
    /// Whether the work is an operator's wish.
    by_hand: bool,
    /// From the making of a key to the bundle that knows of it.
    preparing: Option<Call>,
    failures: Failures,
}

/// How many steps have failed in a row. Clones share one number.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<AtomicU32>);

impl Failures {
    pub fn in_a_row(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is under way, between two steps.
#[derive(Clone)]
enum Work<M> {
    Idle,
    KeyMade(SlotId, Arc<Key>),
    /// With the ID of the authority.
    Intended(SlotId, Arc<Key>, String),
    Made(SlotId, M),
    Journaled(SlotId, M),
    Activating(SlotId, Slots),
}

impl<K: Kind> Driver<K> {
    /// Takes up where the journal, the keys and the bundle agree. An authority that was active signs again at once.
    pub(super) async fn load(kind: K, parts: DriverParts) -> Result<Driver<K>, DriveError> {
        let (active, _) = watch::channel(None);
        let (slots, signers, work) = (Slots::default(), [None, None], Work::Idle);
        let (sender, receiver) = mpsc::channel(ORDERS);
        let orders = (Orders { driver: sender }, receiver);
        let (preparing, failures) = (None, Failures::default());
        let mut driver =
            Driver { kind, parts, slots, signers, work, active, orders, by_hand: false, preparing, failures };
        driver.take_up().await?;
        if let Some(slot) = driver.slots.active() {
            driver.switch_to(slot);
        }
        Ok(driver)
    }

    /// What signs, now and from now on; `None` until the first is active.
    pub(super) fn active(&self) -> watch::Receiver<Option<Arc<K::Signer>>> {
        self.active.subscribe()
    }

    pub(super) fn failures(&self) -> Failures {
        self.failures.clone()
    }

    /// Does the next thing that is due. After an error the same thing is due again.
    pub(super) async fn step(&mut self) -> Result<Progress, DriveError> {
        let call = self.parts.metrics.call(K::WORDS.prepare);
        let progress = self.advance().await;
        match &progress {
            Ok(Progress::KeyMade(_)) => self.preparing = Some(call),
            Ok(Progress::Prepared(_)) => {
                call.discard();
                self.preparing.take().into_iter().for_each(|call| call.done(metrics::OK));
            }
            Err(_) => match self.preparing.replace(call) {
                Some(failed) => failed.done(metrics::UNKNOWN),
                None => self.preparing.take().into_iter().for_each(Call::discard),
            },
            Ok(_) => call.discard(),
        }
        let failures = &self.failures.0;
        match &progress {
            Ok(_) => failures.store(0, Ordering::Relaxed),
            Err(_) => _ = failures.fetch_add(1, Ordering::Relaxed),
        }
        progress
    }

    async fn advance(&mut self) -> Result<Progress, DriveError> {
        let now = self.parts.clock.now();
        match self.work.clone() {
            Work::Idle => match rotate::next(&self.slots, now) {
                Step::Wait(until) => Ok(Progress::Waiting(until)),
                Step::Prepare(slot) => self.make_key(slot).await,
                Step::Activate(slot) => self.journal_activation(slot).await,
                Step::Retire(slot) => {
                    self.empty(slot);
                    Ok(Progress::Retired(slot))
                }
            },
            Work::KeyMade(slot, key) => {
                let authority_id = self.kind.authority_id(&key)?;
                self.parts.journal.intend(K::LIST, slot, &authority_id, now).await?;
                self.work = Work::Intended(slot, key, authority_id);
                Ok(Progress::IntentJournaled(slot))
            }
            Work::Intended(slot, key, authority_id) => {
                // An operator may have reasons that the driver does not know.
                let in_use = match self.by_hand {
                    true => None,
                    false => self.slots.active().and_then(|slot| self.slots.get(slot)),
                };
                let made = self.kind.make(key, &authority_id, in_use, now).await?;
                self.work = Work::Made(slot, Arc::new(made));
                Ok(Progress::Made(slot))
            }
            Work::Made(slot, made) | Work::Journaled(slot, made) if made.is_stale::<K>(now) => {
                // Its store or bundle could not be reached for half of its life.
                self.make_key(slot).await
            }
            Work::Made(slot, made) => {
                self.parts.journal.prepared(K::LIST, made.record::<K>(slot)).await?;
                self.work = Work::Journaled(slot, made);
                Ok(Progress::PreparationJournaled(slot))
            }
            Work::Journaled(slot, made) => {
                self.parts.bundle.append(made.addition.clone()).await?;
                self.slots = std::mem::take(&mut self.slots).with(slot, made.held::<K>());
                self.signers[index(slot)] = Some(Arc::clone(&made.signer));
                self.work = Work::Idle;
                self.log(slot, "prepared");
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

    /// Steps until an authority signs. The first failure is the caller's: a server can not start without one.
    pub(super) async fn start(&mut self) -> Result<(), DriveError> {
        while self.active.borrow().is_none() {
            self.step().await?;
        }
        Ok(())
    }

    /// The way to this driver while it runs.
    pub(super) fn orders(&self) -> Orders {
        self.orders.0.clone()
    }

    /// Turns the authorities for as long as the server runs.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let until = match self.step().await {
                Ok(Progress::Waiting(until)) => {
                    backoff.reset();
                    until
                }
                Ok(_) => continue,
                Err(error) => {
                    let wait = backoff.next();
                    let ends = self.active.borrow().as_ref().map(|signer| K::facts(signer).ends);
                    tracing::error!(
                        %error,
                        retry_in = ?wait,
                        expires_at = ends.map(|ends| at(unix_seconds(ends))),
                        "Unable to rotate {}; the one in use stays in use until it expires", K::NAME
                    );
                    self.parts.clock.now() + wait
                }
            };
            self.serve_until(until).await;
        }
    }

    /// Carries out orders until this moment, or until one of them changed what is due.
    async fn serve_until(&mut self, until: SystemTime) {
        loop {
            let order = tokio::select! {
                () = self.parts.clock.sleep_until(until) => return,
                Some(order) = self.orders.1.recv() => order,
            };
            let looked_only = matches!(order.wish, Wish::Show);
            let done = self.obey(order.wish).await;
            // Who asked may be gone.
            let _ = order.answer.send(done.map(|()| self.standings()));
            if !looked_only {
                return;
            }
        }
    }

    async fn obey(&mut self, wish: Wish) -> Result<(), OrderError> {
        if matches!(self.work, Work::Activating(..)) {
            self.step().await?;
        }
        while let Step::Retire(slot) = rotate::next(&self.slots, self.parts.clock.now()) {
            self.empty(slot);
        }
        match wish {
            Wish::Show => Ok(()),
            Wish::Prepare => {
                let active = self.slots.active().ok_or(Rule::Initializing)?;
                self.by_hand = true;
                let done = self.prepare(active.other()).await;
                self.by_hand = false;
                if done.is_err() {
                    // Not to be tried again: who ordered it was told.
                    self.work = Work::Idle;
                }
                Ok(done?)
            }
            Wish::Activate(authority_id) => {
                self.standings().may_activate(&authority_id)?;
                let slot = self.slots.prepared().ok_or(Rule::UnexpectedId)?;
                self.journal_activation(slot).await?;
                self.step().await?;
                Ok(())
            }
        }
    }

    async fn prepare(&mut self, slot: SlotId) -> Result<(), DriveError> {
        self.make_key(slot).await?;
        while !matches!(self.work, Work::Idle) {
            self.step().await?;
        }
        Ok(())
    }

    fn standings(&self) -> Standings {
        let state = |slot| {
            let facts = self.signers[index(slot)].as_deref().map(K::facts)?;
            Some(State {
                authority_id: facts.authority_id,
                expires_at: unix_seconds(facts.not_after),
                upstream_authority_id: facts.upstream_authority_id,
            })
        };
        let Some(active) = self.slots.active() else { return Standings::default() };
        let standing = self.slots.get(active.other()).map(|held| held.standing);
        Standings { active: state(active), next: standing.zip(state(active.other())) }
    }

    async fn make_key(&mut self, slot: SlotId) -> Result<Progress, DriveError> {
        let key = self.parts.keys.generate(&key_id::<K>(slot), self.kind.key_type()).await?;
        // What the slot held can sign no more once its key is overwritten.
        self.empty(slot);
        self.work = Work::KeyMade(slot, key);
        Ok(Progress::KeyMade(slot))
    }

    async fn journal_activation(&mut self, slot: SlotId) -> Result<Progress, DriveError> {
        let slots = self.slots.clone().activated(slot);
        if let Some(held) = slots.get(slot) {
            self.parts.journal.activated(K::LIST, &held.authority_id).await?;
        }
        self.work = Work::Activating(slot, slots);
        Ok(Progress::ActivationJournaled(slot))
    }

    fn switch_to(&self, slot: SlotId) {
        if let Some(signer) = &self.signers[index(slot)] {
            self.active.send_replace(Some(Arc::clone(signer)));
            self.log(slot, "activated");
            let DriverParts { metrics, bundle, clock, .. } = &self.parts;
            let current = bundle.current();
            let (ends, labels) = (K::facts(signer).ends, [("trust_domain_id", current.trust_domain.name())]);
            let left = ends.duration_since(clock.now()).unwrap_or_default();
            metrics.count(K::WORDS.activate, 1);
            metrics.gauge_with(K::WORDS.expiration, unix_seconds(ends) as f64, &labels);
            metrics.gauge_with(K::WORDS.ttl, left.as_secs_f64(), &labels);
        }
    }

    fn empty(&mut self, slot: SlotId) {
        self.slots = std::mem::take(&mut self.slots).without(slot);
        self.signers[index(slot)] = None;
    }

    /// Fills the slots from the journal, newest records first: the active one, and the newest other that is still good.
    async fn take_up(&mut self) -> Result<(), DriveError> {
        let bundle = self.parts.bundle.current();
        for record in self.parts.journal.records(K::LIST).await.into_iter().rev() {
            let standing = match record.status {
                status::ACTIVE if self.slots.active().is_none() => Standing::Active,
                // Go writes the end of one and the beginning of the next separately.
                status::ACTIVE | status::OLD => Standing::Old,
                status::PREPARED if self.slots.prepared().is_none() => Standing::Prepared,
                _ => continue,
            };
            let Some(slot) = SlotId::from_name(&record.slot) else { continue };
            if self.slots.get(slot).is_some() {
                continue;
            }
            let revived = match self.parts.keys.get(&key_id::<K>(slot)).await? {
                Some(key) => self.kind.revive(key, &record, &bundle, self.parts.clock.now()).await,
                None => Err(Unusable("no key manager key".to_owned())),
            };
            match revived {
                Ok(signer) => {
                    let issued_at = from_unix_seconds(record.issued_at);
                    let held = held(&K::facts(&signer), issued_at, standing);
                    self.slots = std::mem::take(&mut self.slots).with(slot, held);
                    self.signers[index(slot)] = Some(Arc::new(signer));
                }
                Err(Unusable(reason)) => tracing::warn!(
                    slot = slot.name(),
                    issued_at = at(record.issued_at),
                    status = record.status,
                    local_authority_id = record.authority_id,
                    %reason,
                    "{} slot unusable", K::NAME
                ),
            }
        }
        Ok(())
    }

    fn log(&self, slot: SlotId, what: &str) {
        let Some(facts) = self.signers[index(slot)].as_deref().map(K::facts) else { return };
        let upstream = (!facts.upstream_authority_id.is_empty()).then_some(facts.upstream_authority_id);
        tracing::info!(
            slot = slot.name(),
            issued_at = self.slots.get(slot).map(|held| at(unix_seconds(held.issued_at))),
            expiration = at(unix_seconds(facts.ends)),
            local_authority_id = facts.authority_id,
            upstream_authority_id = upstream,
            "{} {what}",
            K::NAME
        );
    }
}

impl<S> Made<S> {
    fn is_stale<K: Kind<Signer = S>>(&self, now: SystemTime) -> bool {
        lifetime::prepare_at(self.issued_at, K::facts(&self.signer).ends) <= now
    }

    fn record<K: Kind<Signer = S>>(&self, slot: SlotId) -> Record {
        let facts = K::facts(&self.signer);
        Record::intended(K::LIST, slot.name(), &facts.authority_id, unix_seconds(self.issued_at))
            .prepared(unix_seconds(facts.not_after), K::content(&self.signer))
    }

    fn held<K: Kind<Signer = S>>(&self) -> Held {
        // As the journal has it: whole seconds.
        let issued_at = from_unix_seconds(unix_seconds(self.issued_at));
        held(&K::facts(&self.signer), issued_at, Standing::Prepared)
    }
}

impl Unusable {
    pub(super) fn other_key() -> Unusable {
        Unusable("public key does not match key manager key".to_owned())
    }
}

fn held(facts: &Facts, issued_at: SystemTime, standing: Standing) -> Held {
    Held { authority_id: facts.authority_id.clone(), issued_at, not_after: facts.ends, standing }
}

/// The id of a slot's key in the key manager.
fn key_id<K: Kind>(slot: SlotId) -> String {
    format!("{}-{slot}", K::KEYS)
}

fn index(slot: SlotId) -> usize {
    match slot {
        SlotId::A => 0,
        SlotId::B => 1,
    }
}
