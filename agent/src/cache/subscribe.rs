//! Who is listening, by set of selectors. All who have the same selectors share one view.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use finial_identity::selector::{Selector, is_subset};
use tokio::sync::watch;

use super::{Cache, View};

/// A workload's window on the cache. While it lives, the SVIDs it shows are kept and renewed.
pub struct Subscription {
    cache: Cache,
    slot: SlotId,
    views: watch::Receiver<Arc<View>>,
}

pub(super) type SlotId = u64;

/// All windows that are open.
#[derive(Default)]
pub(super) struct Slots {
    next: SlotId,
    by_set: HashMap<Arc<[Selector]>, SlotId>,
    slots: HashMap<SlotId, Slot>,
    /// By hash of a selector: the slots whose set has it. Collisions only cost a comparison.
    by_selector: HashMap<u64, Vec<SlotId>>,
    hasher: RandomState,
}

/// One set of selectors that somebody listens with.
pub(super) struct Slot {
    pub(super) selectors: Arc<[Selector]>,
    pub(super) views: watch::Sender<Arc<View>>,
    /// IDs of matching entries without a usable SVID, sorted.
    pub(super) missing: Vec<String>,
    subscribers: usize,
}

impl Subscription {
    pub(super) fn new(cache: Cache, slot: SlotId, views: watch::Receiver<Arc<View>>) -> Subscription {
        Subscription { cache, slot, views }
    }

    /// The newest view, which then counts as seen.
    pub fn view(&mut self) -> Arc<View> {
        self.views.borrow_and_update().clone()
    }

    /// Whether there is a view that was not seen.
    #[cfg(test)]
    pub(crate) fn views_changed(&self) -> bool {
        self.views.has_changed().unwrap_or(false)
    }

    /// Waits until there is a view that was not seen. Views that were overtaken meanwhile are never shown.
    pub async fn changed(&mut self) {
        if self.views.changed().await.is_err() {
            // The slot lives as long as its last subscription, so this cannot be.
            std::future::pending().await
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cache.unsubscribe(self.slot);
    }
}

impl Slots {
    /// Joins the slot of this set (sorted, unique), opening it if it is the first: then the answer's last part
    /// is true and the slot still shows an empty view.
    pub(super) fn join(&mut self, selectors: Vec<Selector>) -> (SlotId, watch::Receiver<Arc<View>>, bool) {
        if let Some(id) = self.by_set.get(selectors.as_slice()).copied()
            && let Some(slot) = self.slots.get_mut(&id)
        {
            slot.subscribers += 1;
            return (id, slot.views.subscribe(), false);
        }
        let id = self.next;
        self.next += 1;
        let selectors: Arc<[Selector]> = selectors.into();
        for selector in selectors.iter() {
            self.by_selector.entry(self.hasher.hash_one(selector)).or_default().push(id);
        }
        let (sender, receiver) = watch::channel(Arc::new(View::default()));
        self.by_set.insert(selectors.clone(), id);
        self.slots.insert(id, Slot { selectors, views: sender, missing: Vec::new(), subscribers: 1 });
        (id, receiver, true)
    }

    /// Leaves a slot. When that closes it, its last subscriber being gone, the answer is its selectors.
    pub(super) fn leave(&mut self, id: SlotId) -> Option<Arc<[Selector]>> {
        let slot = self.slots.get_mut(&id)?;
        slot.subscribers -= 1;
        if slot.subscribers > 0 {
            return None;
        }
        let selectors = self.slots.remove(&id)?.selectors;
        self.by_set.remove(&selectors);
        for selector in selectors.iter() {
            let hash = self.hasher.hash_one(selector);
            if let Some(slots) = self.by_selector.get_mut(&hash) {
                slots.retain(|other| *other != id);
                if slots.is_empty() {
                    self.by_selector.remove(&hash);
                }
            }
        }
        Some(selectors)
    }

    /// Adds to `found` all slots that an entry with these selectors matches.
    pub(super) fn matched_by(&self, selectors: &[Selector], found: &mut BTreeSet<SlotId>) {
        found.extend(self.candidates(selectors).iter().filter(|id| self.is_matched(**id, selectors)));
    }

    /// Whether an entry with these selectors matches any slot.
    pub(super) fn any_matched_by(&self, selectors: &[Selector]) -> bool {
        self.candidates(selectors).iter().any(|id| self.is_matched(*id, selectors))
    }

    pub(super) fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.slots.keys().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// How many subscriptions are alive.
    pub(super) fn subscribers(&self) -> usize {
        self.slots.values().map(|slot| slot.subscribers).sum()
    }

    /// Slots that have the rarest of these selectors.
    fn candidates(&self, selectors: &[Selector]) -> &[SlotId] {
        selectors
            .iter()
            .map(|selector| {
                self.by_selector.get(&self.hasher.hash_one(selector)).map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|slots| slots.len())
            .unwrap_or_default()
    }

    fn is_matched(&self, id: SlotId, selectors: &[Selector]) -> bool {
        self.slots.get(&id).is_some_and(|slot| is_subset(selectors, &slot.selectors))
    }
}
