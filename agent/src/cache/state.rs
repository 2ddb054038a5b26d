//! The cache's rules, without the lock and the clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use finial_daemon::{
    clock::{from_unix_seconds, unix_seconds},
    keys::exportable::WorkloadKey,
};
use finial_identity::{
    TrustDomain, bundle::Bundle, entry::Entry, lifetime, selector::Selector, x509_svid::X509Svid,
};
use tokio::sync::watch;

use super::{
    CacheSettings, DEFAULT_MAX_SVIDS, EntryUpdate, Index, JwtIdentity, JwtKey, JwtSvid, NewSvid, Reason,
    Stats, Svid, TrustBundle, View, Wanted,
    held::Held,
    jwt::{JwtSvids, Requests},
    subscribe::{SlotId, Slots},
    view::{Bundles, outshone},
};

pub(super) struct State {
    max_svids: usize,
    availability_target: Option<Duration>,
    index: Index,
    has_entries: bool,
    bundles: Bundles,
    /// `bundles`, for those who follow all of them.
    all_bundles: watch::Sender<Arc<[Arc<TrustBundle>]>>,
    /// By entry ID.
    held: HashMap<String, Held>,
    pub(super) jwt_svids: JwtSvids,
    pub(super) jwt_requests: Requests,
    slots: Slots,
    /// The last number given out for `Held::last_access`.
    accesses: u64,
    /// All SVIDs above the bound are being listened for, so that looking for victims is of no use.
    no_victims: bool,
    more_wanted: bool,
}

/// What became of the entries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    pub(super) added: u64,
    pub(super) updated: u64,
    pub(super) removed: u64,
}

impl State {
    pub(super) fn new(settings: CacheSettings) -> State {
        State {
            max_svids: if settings.max_svids == 0 { DEFAULT_MAX_SVIDS } else { settings.max_svids },
            availability_target: settings.availability_target,
            index: Index::default(),
            has_entries: false,
            bundles: Bundles::default(),
            all_bundles: watch::Sender::default(),
            held: HashMap::new(),
            jwt_svids: JwtSvids::new(settings.max_jwt_svids),
            jwt_requests: Requests::default(),
            slots: Slots::default(),
            accesses: 0,
            no_victims: false,
            more_wanted: false,
        }
    }

    pub(super) fn apply(&mut self, update: EntryUpdate, now: SystemTime) -> Changes {
        let before = self.index.len();
        let mut changes = Changes::default();
        let may_change = update.full || !update.upserted.is_empty() || !update.deleted.is_empty();
        let mut touched = BTreeSet::new();
        let mut gone = update.deleted;
        if update.full {
            let kept: HashSet<&str> = update.upserted.iter().map(|entry| entry.id.as_str()).collect();
            gone.extend(self.index.iter().filter(|e| !kept.contains(e.id.as_str())).map(|e| e.id.clone()));
        }
        for id in gone {
            self.remove_entry(&id, &mut touched);
        }
        for entry in update.upserted {
            if entry.store_svid {
                self.remove_entry(&entry.id, &mut touched);
            } else {
                changes.updated += u64::from(self.index.get(&entry.id).is_some());
                self.upsert_entry(entry, &mut touched);
                changes.added += 1;
            }
        }
        changes.added -= changes.updated;
        changes.removed = (before as u64 + changes.added).saturating_sub(self.index.len() as u64);
        if may_change {
            self.jwt_svids.keep_those_of(|id| self.index.get(id));
        }
        self.no_victims = false;
        if self.has_entries {
            self.refresh(touched, now);
        } else {
            self.has_entries = true;
            self.refresh_all(now);
        }
        self.evict();
        changes
    }

    pub(super) fn set_bundles(
        &mut self,
        own: Arc<Bundle>,
        federated: BTreeMap<TrustDomain, Arc<Bundle>>,
        now: SystemTime,
    ) -> usize {
        let before = self.bundles.own.clone();
        let mut dropped = 0;
        if self.bundles.replace(own, federated) {
            dropped = self.drop_untrusted_jwts(before.as_deref());
            self.all_bundles.send_replace(self.bundles.all().cloned().collect());
            self.refresh_all(now);
        }
        dropped
    }

    pub(super) fn jwt_identities(
        &mut self,
        selectors: &[Selector],
        audience: &[String],
        now: SystemTime,
    ) -> Option<Vec<JwtIdentity>> {
        let entries = self.entries_of(selectors, now)?;
        let hidden = outshone(&entries);
        let shown = entries.into_iter().enumerate().filter(|(place, _)| !hidden.contains(place));
        Some(shown.map(|(_, entry)| self.jwt_identity(entry, audience, now)).collect())
    }

    pub(super) fn jwt_identity(
        &mut self,
        entry: Arc<Entry>,
        audience: &[String],
        now: SystemTime,
    ) -> JwtIdentity {
        let key = Arc::new(JwtKey::new(entry.spiffe_id.clone(), audience));
        let held = self.jwt_svids.get(&key, now);
        JwtIdentity { entry, key, held }
    }

    pub(super) fn keep_jwt(&mut self, key: Arc<JwtKey>, entry: &Entry, svid: Arc<JwtSvid>) {
        let is_current = self.index.get(&entry.id).is_some_and(|known| {
            known.revision_number == entry.revision_number && known.spiffe_id == svid.spiffe_id
        });
        let own = self.bundles.own.as_ref();
        let authority = own.and_then(|own| own.source.jwt_authority(&svid.key_id));
        if is_current && !authority.is_some_and(|authority| authority.tainted) {
            self.jwt_svids.insert(key, entry, svid, rand::random_range(-0.1..=0.1));
        }
    }

    pub(super) fn bundles_of(
        &self,
        selectors: &[Selector],
        now: SystemTime,
    ) -> Option<Vec<Arc<TrustBundle>>> {
        let entries = self.entries_of(selectors, now)?;
        Some(self.bundles.own.iter().cloned().chain(self.bundles.federated_with(&entries)).collect())
    }

    pub(super) fn install(&mut self, new: impl IntoIterator<Item = NewSvid>, now: SystemTime) -> usize {
        let mut touched = BTreeSet::new();
        let mut installed = 0;
        for NewSvid { entry_id, revision, svid, key } in new {
            let Some(entry) = self.index.get(&entry_id).cloned() else {
                tracing::debug!(entry_id, "SVID arrived for an entry that is gone");
                continue;
            };
            if let Err(fault) = self.check_new(&entry, revision, &svid, &key, now) {
                tracing::error!(entry_id, spiffe_id = %entry.spiffe_id, error = fault, "SVID refused");
                continue;
            }
            let renew_at = self.renew_at(&svid);
            let svid = Arc::new(Svid::new(&svid, &key, &entry, revision, renew_at));
            let stale = (revision != entry.revision_number).then_some(Reason::Revised);
            self.more_wanted |= stale.is_some();
            // What was prefetched and never asked for goes first.
            let mut last_access = self.held.get(&entry_id).map_or(0, |held| held.last_access);
            if self.slots.any_matched_by(&entry.selectors) {
                self.accesses += 1;
                last_access = self.accesses;
                self.slots.matched_by(&entry.selectors, &mut touched);
            }
            tracing::debug!(entry_id, spiffe_id = %entry.spiffe_id, "SVID updated");
            self.held.insert(entry_id, Held { svid, stale, last_access });
            installed += 1;
        }
        self.refresh(touched, now);
        self.no_victims = false;
        self.evict();
        installed
    }

    pub(super) fn wanted(&self, now: SystemTime) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = self
            .held
            .iter()
            .filter_map(|(id, held)| {
                let entry = self.index.get(id)?.clone();
                Some(Wanted { entry, reason: held.stale?, expires_at: Some(held.svid.not_after) })
            })
            .collect();
        let missing: BTreeSet<&str> =
            self.slots.iter().flat_map(|slot| &slot.missing).map(String::as_str).collect();
        let new = |entry: &Arc<Entry>, reason| Wanted { entry: entry.clone(), reason, expires_at: None };
        wanted.extend(
            missing.iter().filter_map(|id| self.index.get(id)).map(|entry| new(entry, Reason::Awaited)),
        );
        let room = self.max_svids.saturating_sub(self.held.len() + missing.len());
        if room > 0 {
            let absent = |entry: &&Arc<Entry>| {
                !self.held.contains_key(&entry.id)
                    && !missing.contains(entry.id.as_str())
                    && !has_ended(entry, now)
                    && !entry
                        .additional_attributes
                        .as_ref()
                        .is_some_and(|more| more.disable_x509_svid_prefetch)
            };
            wanted.extend(
                self.index.iter().filter(absent).take(room).map(|entry| new(entry, Reason::Prefetch)),
            );
        }
        wanted.sort_by(|a, b| {
            (a.reason, a.expires_at, &a.entry.id).cmp(&(b.reason, b.expires_at, &b.entry.id))
        });
        wanted
    }

    pub(super) fn due(&mut self, now: SystemTime) -> Option<SystemTime> {
        let mut touched = BTreeSet::new();
        let mut next: Option<SystemTime> = None;
        let mut at = |time: SystemTime| next = Some(next.map_or(time, |soonest| soonest.min(time)));

        for entry in self.index.iter().filter(|entry| entry.expires_at != 0) {
            if has_ended(entry, now) {
                self.held.remove(&entry.id);
                self.slots.matched_by(&entry.selectors, &mut touched);
            } else {
                at(from_unix_seconds(entry.expires_at));
            }
        }
        let index = &self.index;
        self.held.retain(|id, held| {
            if held.svid.not_after <= now {
                if let Some(entry) = index.get(id) {
                    tracing::warn!(entry_id = id, spiffe_id = %entry.spiffe_id, "SVID expired before another came");
                    self.slots.matched_by(&entry.selectors, &mut touched);
                }
                self.more_wanted = true;
                return false;
            }
            at(held.svid.not_after);
            if held.stale.is_none() {
                if held.svid.renew_at <= now {
                    held.stale = Some(Reason::Due);
                    self.more_wanted = true;
                } else {
                    at(held.svid.renew_at);
                }
            }
            true
        });
        self.refresh(touched, now);
        next
    }

    pub(super) fn held_svids(&self) -> Vec<(String, Arc<Svid>)> {
        self.held.iter().map(|(id, held)| (id.clone(), held.svid.clone())).collect()
    }

    /// Marks these SVIDs, as far as they are still the ones that are held.
    pub(super) fn mark_tainted(&mut self, tainted: &[(String, Arc<Svid>)]) -> usize {
        let mut marked = 0;
        for (id, svid) in tainted {
            if let Some(held) = self.held.get_mut(id)
                && Arc::ptr_eq(&held.svid, svid)
                && held.stale != Some(Reason::Tainted)
            {
                held.stale = Some(Reason::Tainted);
                marked += 1;
            }
        }
        self.more_wanted |= marked > 0;
        marked
    }

    pub(super) fn subscribe(
        &mut self,
        selectors: Vec<Selector>,
        now: SystemTime,
    ) -> (SlotId, watch::Receiver<Arc<View>>) {
        self.touch(&selectors);
        let (id, views, is_new) = self.slots.join(selectors);
        if is_new {
            self.refresh_one(id, now);
        }
        (id, views)
    }

    pub(super) fn unsubscribe(&mut self, id: SlotId) {
        if let Some(selectors) = self.slots.leave(id) {
            self.touch(&selectors);
            self.no_victims = false;
            self.evict();
        }
    }

    pub(super) fn entries_of(&self, selectors: &[Selector], now: SystemTime) -> Option<Vec<Arc<Entry>>> {
        let mut entries = self.index.matching(selectors);
        entries.retain(|entry| !has_ended(entry, now));
        self.is_synced().then_some(entries)
    }

    pub(super) fn follow_bundles(&self) -> watch::Receiver<Arc<[Arc<TrustBundle>]>> {
        self.all_bundles.subscribe()
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            entries: self.index.len(),
            x509_svids: self.held.len(),
            jwt_svids: self.jwt_svids.len(),
            subscribers: self.slots.subscribers(),
            selector_sets: self.slots.iter().count(),
        }
    }

    /// Whether more became wanted since the last call.
    pub(super) fn take_more_wanted(&mut self) -> bool {
        std::mem::take(&mut self.more_wanted)
    }

    fn is_synced(&self) -> bool {
        self.has_entries && self.bundles.own.is_some()
    }

    fn remove_entry(&mut self, id: &str, touched: &mut BTreeSet<SlotId>) {
        if let Some(entry) = self.index.remove(id) {
            tracing::debug!(entry_id = id, spiffe_id = %entry.spiffe_id, "Entry removed");
            self.held.remove(id);
            self.slots.matched_by(&entry.selectors, touched);
        }
    }

    fn upsert_entry(&mut self, entry: Arc<Entry>, touched: &mut BTreeSet<SlotId>) {
        if self.index.get(&entry.id) == Some(&entry) {
            return;
        }
        self.slots.matched_by(&entry.selectors, touched);
        let before = self.index.upsert(entry.clone());
        if let Some(before) = &before {
            self.slots.matched_by(&before.selectors, touched);
        }
        let text = if before.is_some() { "Entry updated" } else { "Entry created" };
        tracing::debug!(entry_id = entry.id, spiffe_id = %entry.spiffe_id, "{text}");
        if let Some(held) = self.held.get_mut(&entry.id) {
            if held.svid.spiffe_id != entry.spiffe_id {
                self.held.remove(&entry.id);
            } else if held.svid.revision != entry.revision_number && held.stale != Some(Reason::Tainted) {
                held.stale = Some(Reason::Revised);
            }
        }
        self.more_wanted = true;
    }

    fn check_new(
        &self,
        entry: &Entry,
        revision: i64,
        svid: &X509Svid,
        key: &WorkloadKey,
        now: SystemTime,
    ) -> Result<(), &'static str> {
        if *svid.id() != entry.spiffe_id {
            return Err("the certificate bears another SPIFFE ID than the entry");
        }
        if svid.public_key_der() != key.public_key_der() {
            return Err("the certificate is for another key");
        }
        if svid.not_after() <= now || has_ended(entry, now) {
            return Err("the certificate or its entry has expired");
        }
        if self.held.get(&entry.id).is_some_and(|held| held.svid.revision > revision) {
            return Err("the certificate was signed for an older revision of the entry");
        }
        Ok(())
    }

    fn renew_at(&self, svid: &X509Svid) -> SystemTime {
        let jitter = rand::random_range(-0.1..=0.1);
        let (from, to) = (svid.not_before(), svid.not_after());
        match self.availability_target {
            Some(target) => {
                let more = lifetime::MAX_TARGET_JITTER.mul_f64(rand::random_range(0.0..=1.0));
                lifetime::renew_at_with_target(from, to, jitter, target, more)
            }
            None => lifetime::renew_at(from, to, jitter),
        }
    }

    /// Drops the tokens of authorities that are tainted, and of those that are in the bundle no more. One that is not in
    /// it yet signed with a key that the server has just made.
    fn drop_untrusted_jwts(&mut self, before: Option<&TrustBundle>) -> usize {
        let Some(now) = self.bundles.own.clone() else { return 0 };
        let mut all = 0;
        let is_revoked = |key_id: &str| {
            before.is_some_and(|before| before.source.jwt_authority(key_id).is_some())
                && now.source.jwt_authority(key_id).is_none()
        };
        let is_tainted = |key_id: &str| now.source.jwt_authority(key_id).is_some_and(|key| key.tainted);
        let dropped = self.jwt_svids.drop_signed_by(|key_id| is_tainted(key_id) || is_revoked(key_id));
        for (key_id, count) in dropped {
            all += count;
            tracing::info!(
                jwt_authority_key_ids = key_id,
                tainted_jwt_svids = count,
                "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority"
            );
        }
        all
    }

    /// Counts a use of all SVIDs that match these selectors.
    fn touch(&mut self, selectors: &[Selector]) {
        self.accesses += 1;
        for entry in self.index.matching(selectors) {
            if let Some(held) = self.held.get_mut(&entry.id) {
                held.last_access = self.accesses;
            }
        }
    }

    fn refresh_all(&mut self, now: SystemTime) {
        let all: BTreeSet<SlotId> = self.slots.ids().collect();
        self.refresh(all, now);
    }

    fn refresh(&mut self, slots: BTreeSet<SlotId>, now: SystemTime) {
        for id in slots {
            self.refresh_one(id, now);
        }
    }

    /// Rebuilds a slot's view and shows it to the subscribers if it reads differently.
    fn refresh_one(&mut self, id: SlotId, now: SystemTime) {
        let synced = self.is_synced();
        let Some(slot) = self.slots.get_mut(id) else { return };
        let mut entries = self.index.matching(&slot.selectors);
        entries.retain(|entry| !has_ended(entry, now));
        let usable = |entry: &Entry| {
            let held = self.held.get(&entry.id)?;
            held.svid.is_usable(entry, now).then(|| held.svid.clone())
        };
        let view = View::build(synced, &entries, usable, &self.bundles);
        let missing: Vec<String> =
            entries.iter().filter(|entry| usable(entry).is_none()).map(|entry| entry.id.clone()).collect();
        self.more_wanted |= missing.iter().any(|id| slot.missing.binary_search(id).is_err());
        slot.missing = missing;
        slot.views.send_if_modified(|shown| {
            let differs = view.differs(shown);
            *shown = Arc::new(view);
            differs
        });
    }

    /// Drops the SVIDs that were used least recently, down to the bound. Those that somebody listens for stay.
    fn evict(&mut self) {
        if self.held.len() <= self.max_svids || self.no_victims {
            return;
        }
        let mut idle: Vec<(u64, &String)> = self
            .held
            .iter()
            .filter(|(id, _)| !self.index.get(id).is_some_and(|e| self.slots.any_matched_by(&e.selectors)))
            .map(|(id, held)| (held.last_access, id))
            .collect();
        idle.sort_unstable();
        let extra = self.held.len() - self.max_svids;
        let victims: Vec<String> = idle.into_iter().take(extra).map(|(_, id)| id.clone()).collect();
        self.no_victims = victims.len() < extra;
        for id in victims {
            tracing::debug!(entry_id = id, "Removing SVID record");
            self.held.remove(&id);
        }
    }
}

/// Whether the entry's own time is over.
fn has_ended(entry: &Entry, now: SystemTime) -> bool {
    entry.expires_at != 0 && entry.expires_at <= unix_seconds(now)
}
