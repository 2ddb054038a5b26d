//! Which entries belong to a set of selectors.
//!
//! An entry matches when each of its selectors is among those given. It is filed under one of them only, the
//! one that fewest entries were filed under when it came: whoever matches it must have that selector too, so a
//! search looks into one bucket for each selector given, and common selectors do not make buckets long.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use finial_identity::{
    entry::Entry,
    selector::{Selector, is_subset},
};

/// The entries of this node, by ID and by selector.
#[derive(Default)]
pub struct Index {
    entries: BTreeSet<Filed>,
    /// By hash of a selector. Two selectors in one bucket only cost a comparison, since a match is always checked.
    buckets: HashMap<u64, Vec<Arc<Entry>>>,
    hasher: RandomState,
}

impl Index {
    /// Files an entry and returns the one it replaces. An entry without selectors is kept, but matches nobody.
    pub fn upsert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let before = self.remove(&entry.id);
        let bucket = self.emptiest_bucket(&entry.selectors);
        if let Some(bucket) = bucket {
            self.buckets.entry(bucket).or_insert_with(|| Vec::with_capacity(1)).push(entry.clone());
        }
        self.entries.insert(Filed { entry, bucket });
        before
    }

    /// Takes an entry out and returns it.
    pub fn remove(&mut self, id: &str) -> Option<Arc<Entry>> {
        let Filed { entry, bucket } = self.entries.take(id)?;
        if let Some(bucket) = bucket
            && let Some(filed) = self.buckets.get_mut(&bucket)
        {
            filed.retain(|other| !Arc::ptr_eq(other, &entry));
            if filed.is_empty() {
                self.buckets.remove(&bucket);
            }
        }
        Some(entry)
    }

    /// The entry with this ID.
    pub fn get(&self, id: &str) -> Option<&Arc<Entry>> {
        self.entries.get(id).map(|filed| &filed.entry)
    }

    /// All entries whose selectors are among `selectors` (sorted, unique), by entry ID.
    pub fn matching(&self, selectors: &[Selector]) -> Vec<Arc<Entry>> {
        let mut found: Vec<Arc<Entry>> = selectors
            .iter()
            .filter_map(|selector| self.buckets.get(&self.hasher.hash_one(selector)))
            .flatten()
            .filter(|entry| is_subset(&entry.selectors, selectors))
            .cloned()
            .collect();
        found.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        // Only when two of the selectors given share a hash.
        found.dedup_by(|a, b| Arc::ptr_eq(a, b));
        found
    }

    /// All entries, by entry ID.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().map(|filed| &filed.entry)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn emptiest_bucket(&self, selectors: &[Selector]) -> Option<u64> {
        selectors
            .iter()
            .map(|selector| self.hasher.hash_one(selector))
            .min_by_key(|bucket| self.buckets.get(bucket).map_or(0, Vec::len))
    }
}

/// An entry and where it was filed, ordered and found by the entry's ID.
struct Filed {
    entry: Arc<Entry>,
    bucket: Option<u64>,
}

impl Borrow<str> for Filed {
    fn borrow(&self) -> &str {
        &self.entry.id
    }
}

impl Ord for Filed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.entry.id.cmp(&other.entry.id)
    }
}

impl PartialOrd for Filed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Filed {
    fn eq(&self, other: &Self) -> bool {
        self.entry.id == other.entry.id
    }
}

impl Eq for Filed {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::fixture::{entry, selectors};

    #[derive(Debug, Clone)]
    enum Step {
        Upsert(u8, Vec<u8>),
        Remove(u8),
    }

    fn names(numbers: &[u8]) -> Vec<String> {
        numbers.iter().map(|n| format!("unix:uid:{n}")).collect()
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..20, prop::collection::vec(0u8..8, 0..5)).prop_map(|(id, sels)| Step::Upsert(id, sels)),
            1 => (0u8..20).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_of_the_whole_list(
            steps in prop::collection::vec(step(), 0..80),
            callers in prop::collection::vec(prop::collection::vec(0u8..8, 0..8), 1..10),
        ) {
            let mut index = Index::default();
            let mut model: BTreeMap<String, Arc<Entry>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Upsert(id, sels) => {
                        let new = Arc::new(entry(&format!("e{id:02}"), "/w", &names(&sels)));
                        let before = index.upsert(new.clone());
                        let expected = model.insert(new.id.clone(), new);
                        prop_assert_eq!(before, expected);
                    }
                    Step::Remove(id) => {
                        let id = format!("e{id:02}");
                        prop_assert_eq!(index.remove(&id), model.remove(&id));
                    }
                }
            }
            prop_assert_eq!(index.len(), model.len());
            prop_assert_eq!(index.is_empty(), model.is_empty());
            prop_assert!(index.iter().eq(model.values()));
            let filed: usize = index.buckets.values().map(Vec::len).sum();
            prop_assert_eq!(filed, model.values().filter(|e| !e.selectors.is_empty()).count());
            for caller in callers {
                let given = selectors(&names(&caller));
                let expected: Vec<_> = model
                    .values()
                    .filter(|e| !e.selectors.is_empty() && e.selectors.iter().all(|s| given.contains(s)))
                    .cloned()
                    .collect();
                prop_assert_eq!(index.matching(&given), expected);
            }
        }
    }

    #[test]
    fn a_selector_that_all_entries_share_does_not_make_a_long_bucket() {
        let mut index = Index::default();
        for i in 0..10_000 {
            let sels = ["unix:uid:0".to_owned(), format!("unix:path:/bin/{i}")];
            index.upsert(Arc::new(entry(&format!("e{i}"), "/w", &sels)));
        }
        let longest = index.buckets.values().map(Vec::len).max();
        assert!(longest <= Some(2), "longest bucket: {longest:?}");
        let caller = selectors(&["unix:uid:0".to_owned(), "unix:path:/bin/77".to_owned()]);
        let found: Vec<_> = index.matching(&caller).iter().map(|e| e.id.clone()).collect();
        assert_eq!(found, ["e77"]);
    }
}
