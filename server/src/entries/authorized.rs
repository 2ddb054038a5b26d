//! Which entries an agent may serve: plain functions over a [`Snapshot`].
//!
//! The walk starts at the agent's own ID and at the SPIFFE ID of every node alias that the agent matches (an entry
//! parented by the server whose selectors are all among the agent's node selectors). Every entry with such a parent
//! belongs to the agent, and so do, all the way down, the entries parented by *their* SPIFFE IDs. A parent is visited
//! once, so circles end. Node aliases themselves are not part of the result. Where the snapshot does not know the
//! agent's selectors yet, the agent gets what is parented by its own ID.
//!
//! Expired entries are not part of a snapshot; see there.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use finial_identity::entry::Entry;
use finial_identity::selector::is_subset;
use finial_identity::spiffe_id::SpiffeId;

use super::snapshot::{Change, Snapshot};

/// Proof that an agent may serve an entry. Only this file makes one.
#[derive(Clone, Debug)]
pub struct Authorized {
    agent: SpiffeId,
    entry: Arc<Entry>,
}

impl Authorized {
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    pub fn agent_id(&self) -> &SpiffeId {
        &self.agent
    }
}

/// All entries that one agent may serve, at one version of the snapshot.
#[derive(Clone, Debug)]
pub struct AuthorizedSet {
    agent: SpiffeId,
    version: u64,
    /// SPIFFE IDs of the node aliases that the agent matches.
    roots: Vec<SpiffeId>,
    /// Sorted by entry ID.
    entries: Vec<Arc<Entry>>,
}

/// The difference between two sets of one agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// New or changed, sorted by entry ID.
    pub upserted: Vec<Arc<Entry>>,
    /// Entry IDs, sorted.
    pub deleted: Vec<String>,
}

/// The names below which an agent looks for entries; enough to tell whether a change concerns it.
#[derive(Clone, Debug)]
pub struct Reach {
    agent: SpiffeId,
    /// Hashes of every parent that the walk looks below, sorted. Two names with one hash only cost a needless look.
    parents: Box<[u64]>,
}

/// Everything that `agent` may serve.
pub fn for_agent(snapshot: &Snapshot, agent: &SpiffeId) -> AuthorizedSet {
    let roots: Vec<SpiffeId> =
        snapshot.aliases_of(snapshot.agent_selectors(agent)).map(|alias| alias.spiffe_id.clone()).collect();
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    let mut pending: Vec<&SpiffeId> = roots.iter().chain([agent]).collect();
    while let Some(parent) = pending.pop() {
        // Most entries are nobody's parent: ask this first, so that `seen` stays small.
        if !snapshot.has_children(parent) || !seen.insert(parent) {
            continue;
        }
        for entry in snapshot.children(parent) {
            entries.push(Arc::clone(entry));
            pending.push(&entry.spiffe_id);
        }
    }
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    AuthorizedSet { agent: agent.clone(), version: snapshot.version(), roots, entries }
}

/// Whether `agent` may serve the entry `entry_id`. Gives what `for_agent(..).find(..)` gives, without the whole walk
/// for the usual entry, whose parent is the agent itself or a node alias.
pub fn one_for_agent(snapshot: &Snapshot, agent: &SpiffeId, entry_id: &str) -> Option<Authorized> {
    let entry = snapshot.entry(entry_id).filter(|entry| !snapshot.is_alias(entry))?;
    let direct = entry.parent_id == *agent
        || snapshot
            .aliases_of(snapshot.agent_selectors(agent))
            .any(|alias| alias.spiffe_id == entry.parent_id);
    if direct {
        return Some(Authorized { agent: agent.clone(), entry: Arc::clone(entry) });
    }
    for_agent(snapshot, agent).find(entry_id)
}

/// What an agent that holds `old` has to do to hold `new`.
pub fn delta(old: &AuthorizedSet, new: &AuthorizedSet) -> Delta {
    let mut delta = Delta::default();
    let mut before = old.entries.iter().peekable();
    for entry in &new.entries {
        while let Some(gone) = before.next_if(|held| held.id < entry.id) {
            delta.deleted.push(gone.id.clone());
        }
        match before.next_if(|held| held.id == entry.id) {
            Some(held) if Arc::ptr_eq(held, entry) || held == entry => {}
            _ => delta.upserted.push(Arc::clone(entry)),
        }
    }
    delta.deleted.extend(before.map(|gone| gone.id.clone()));
    delta
}

impl AuthorizedSet {
    pub fn agent_id(&self) -> &SpiffeId {
        &self.agent
    }

    /// The version of the snapshot that this was read from.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Sorted by entry ID.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    pub fn find(&self, entry_id: &str) -> Option<Authorized> {
        let at = self.entries.binary_search_by(|entry| entry.id.as_str().cmp(entry_id)).ok()?;
        Some(Authorized { agent: self.agent.clone(), entry: Arc::clone(&self.entries[at]) })
    }

    /// What to keep in order to tell later changes that concern this agent from others: eight bytes for each entry.
    pub fn reach(&self) -> Reach {
        let parents = self.roots.iter().chain([&self.agent]).chain(self.entries.iter().map(|e| &e.spiffe_id));
        let mut parents: Vec<u64> = parents.map(name_hash).collect();
        parents.sort_unstable();
        parents.dedup();
        Reach { agent: self.agent.clone(), parents: parents.into() }
    }
}

impl Reach {
    /// False only if `change` leaves the agent's set as it is. True asks for a new look, which may find it unchanged.
    /// Ask for each change in turn after the one that the set was made from: the first that concerns the agent ends
    /// the use of this value.
    pub fn is_concerned_by(&self, snapshot: &Snapshot, change: &Change) -> bool {
        if change.agents().contains(&self.agent) {
            return true;
        }
        let selectors = snapshot.agent_selectors(&self.agent);
        change.entries().iter().flat_map(|touched| touched.states()).any(|entry| {
            if snapshot.is_alias(entry) {
                is_subset(&entry.selectors, selectors)
            } else {
                self.parents.binary_search(&name_hash(&entry.parent_id)).is_ok()
            }
        })
    }
}

fn name_hash(id: &SpiffeId) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.as_str().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
