//! An immutable, indexed copy of the entries and of the agents' selectors.
//!
//! A snapshot is made from the one before it and shares all that did not change, so that following one event costs
//! O(log n) and a reader never waits. It holds only entries that may be served: those of other trust domains are left
//! out, as in the reference implementation, and so are those that have expired. SPIRE goes on serving an expired
//! entry until it is pruned, up to five minutes later; here `expires_at` is taken at its word.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use finial_identity::entry::Entry;
use finial_identity::selector::{Selector, is_subset};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use imbl::{HashMap, OrdMap, OrdSet, Vector};

/// Changes kept for [`Snapshot::changes_since`], counted in snapshots and in entries and agents touched.
const RECENT_CHANGES: usize = 1024;
const RECENT_TOUCHED: usize = 16 * 1024;

/// All entries that may be served and the selectors of all agents, at one moment.
#[derive(Clone)]
pub struct Snapshot {
    trust_domain: TrustDomain,
    server_id: SpiffeId,
    version: u64,
    entries: HashMap<ById, ()>,
    /// Entries that are no node aliases, by parent.
    children: HashMap<SpiffeId, OrdSet<ById>>,
    /// Node aliases, each below one of its own selectors: whoever matches the alias has that one too.
    aliases: OrdMap<Selector, OrdSet<ById>>,
    /// Entries that give their holder rights on this server, by SPIFFE ID.
    privileged: HashMap<SpiffeId, OrdSet<ById>>,
    /// Sorted, unique. Agents without selectors are not here.
    agents: HashMap<SpiffeId, Arc<[Selector]>>,
    recent: Vector<Arc<Change>>,
    recent_touched: usize,
}

/// What changed between one snapshot and the next.
#[derive(Debug)]
pub struct Change {
    version: u64,
    entries: Vec<EntryChange>,
    agents: Vec<SpiffeId>,
}

/// One entry before and after. At least one of the two is there.
#[derive(Clone, Debug)]
pub struct EntryChange {
    pub old: Option<Arc<Entry>>,
    pub new: Option<Arc<Entry>>,
}

/// Rows as they are now in the database; `None` means that there is no such row any more.
#[derive(Default)]
pub struct Rows {
    /// By entry ID.
    pub entries: Vec<(String, Option<Entry>)>,
    /// The node selectors of agents.
    pub agents: Vec<(SpiffeId, Option<Vec<Selector>>)>,
    /// Agents that were banned or deleted. They count as changed even where nothing here shows it.
    pub gone: Vec<SpiffeId>,
}

/// What a SPIFFE ID may do on this server because of the entries that carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryFlags {
    pub admin: bool,
    pub downstream: bool,
}

impl Snapshot {
    /// Without entries and agents, version 0.
    pub fn empty(trust_domain: TrustDomain) -> Snapshot {
        Snapshot {
            server_id: trust_domain.server_id(),
            trust_domain,
            version: 0,
            entries: HashMap::new(),
            children: HashMap::new(),
            aliases: OrdMap::new(),
            privileged: HashMap::new(),
            agents: HashMap::new(),
            recent: Vector::new(),
            recent_touched: 0,
        }
    }

    /// The next snapshot, or `None` when `rows` say nothing new. An entry whose `expires_at` is not after `now` (unix
    /// seconds), or that lies outside the trust domain, counts as absent.
    #[must_use]
    pub fn with(&self, rows: Rows, now: i64) -> Option<Snapshot> {
        let mut next = self.clone();
        let mut change = Change { version: self.version + 1, entries: Vec::new(), agents: Vec::new() };
        for (id, row) in rows.entries {
            let row = row.filter(|entry| next.serves(entry, now));
            if let Some(touched) = next.put(&id, row) {
                change.entries.push(touched);
            }
        }
        for (id, selectors) in rows.agents {
            if next.put_agent(&id, selectors) {
                change.agents.push(id);
            }
        }
        change.agents.extend(rows.gone);
        if change.touched() == 0 {
            return None;
        }
        next.version = change.version;
        next.remember(change);
        Some(next)
    }

    /// Grows by one with every change. Versions of different processes have nothing to do with each other.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Entries that may be served, and node aliases.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// How many entries name agents by their selectors, and by how many selectors.
    pub fn alias_counts(&self) -> (usize, usize) {
        let aliases: BTreeSet<&ById> = self.aliases.values().flatten().collect();
        (aliases.len(), self.aliases.len())
    }

    /// How many agents are known.
    pub fn agent_count(&self) -> usize {
        self.agents.len()
    }

    pub fn entry(&self, id: &str) -> Option<&Arc<Entry>> {
        self.entries.get_key_value(id).map(|(key, ())| &key.0)
    }

    /// All entries, node aliases among them, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.keys().map(|key| &key.0)
    }

    /// Agents that have selectors, in no order.
    pub fn agents(&self) -> impl Iterator<Item = &SpiffeId> {
        self.agents.keys()
    }

    /// The node selectors of an agent, sorted and unique; empty for one that has none or is not known.
    pub fn agent_selectors(&self, agent: &SpiffeId) -> &[Selector] {
        self.agents.get(agent).map_or(&[], |selectors| selectors)
    }

    /// The rights that entries give to a SPIFFE ID.
    pub fn flags(&self, id: &SpiffeId) -> EntryFlags {
        let mut flags = EntryFlags::default();
        for entry in self.privileged.get(id).into_iter().flatten() {
            flags.admin |= entry.0.admin;
            flags.downstream |= entry.0.downstream;
        }
        flags
    }

    /// What changed after `version`, oldest first; `None` when that is too long ago to know (or not of this process):
    /// whoever asks has to start from the whole.
    pub fn changes_since(&self, version: u64) -> Option<impl Iterator<Item = &Arc<Change>>> {
        let known_from = self.version - self.recent.len() as u64;
        if version < known_from || version > self.version {
            return None;
        }
        Some(self.recent.iter().skip((version - known_from) as usize))
    }

    /// Entries with this parent, by entry ID. Node aliases are nobody's children.
    pub(super) fn children(&self, parent: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.children.get(parent).into_iter().flatten().map(|key| &key.0)
    }

    pub(super) fn has_children(&self, parent: &SpiffeId) -> bool {
        self.children.contains_key(parent)
    }

    pub(super) fn is_alias(&self, entry: &Entry) -> bool {
        entry.parent_id == self.server_id
    }

    /// The node aliases that an agent with these selectors (sorted) belongs to.
    pub(super) fn aliases_of<'a>(
        &'a self,
        selectors: &'a [Selector],
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        selectors
            .iter()
            .filter_map(|selector| self.aliases.get(selector))
            .flatten()
            .map(|key| &key.0)
            .filter(|alias| is_subset(&alias.selectors, selectors))
    }

    fn serves(&self, entry: &Entry, now: i64) -> bool {
        entry.spiffe_id.is_member_of(&self.trust_domain)
            && entry.parent_id.is_member_of(&self.trust_domain)
            && !(entry.expires_at != 0 && entry.expires_at <= now)
    }

    fn put(&mut self, id: &str, row: Option<Entry>) -> Option<EntryChange> {
        let old = self.entry(id).cloned();
        if old.as_deref() == row.as_ref() {
            return None;
        }
        if let Some(old) = &old {
            self.unlink(old);
        }
        let new = row.map(|mut entry| {
            self.intern(&mut entry);
            let entry = Arc::new(entry);
            self.link(&entry);
            entry
        });
        Some(EntryChange { old, new })
    }

    /// Siblings share one copy of their parent's name.
    fn intern(&self, entry: &mut Entry) {
        if let Some((parent, _)) = self.children.get_key_value(&entry.parent_id) {
            entry.parent_id = parent.clone();
        }
    }

    fn link(&mut self, entry: &Arc<Entry>) {
        self.entries.insert(ById(Arc::clone(entry)), ());
        if self.is_alias(entry) {
            // The shortest list, so that a selector that all nodes share does not collect all aliases.
            let below = entry.selectors.iter().min_by_key(|s| self.aliases.get(*s).map_or(0, OrdSet::len));
            if let Some(selector) = below.cloned() {
                self.aliases.entry(selector).or_default().insert(ById(Arc::clone(entry)));
            }
        } else {
            self.children.entry(entry.parent_id.clone()).or_default().insert(ById(Arc::clone(entry)));
        }
        if entry.admin || entry.downstream {
            self.privileged.entry(entry.spiffe_id.clone()).or_default().insert(ById(Arc::clone(entry)));
        }
    }

    fn unlink(&mut self, entry: &Entry) {
        self.entries.remove(entry.id.as_str());
        if self.is_alias(entry) {
            for selector in &entry.selectors {
                if let Some(aliases) = self.aliases.get_mut(selector) {
                    aliases.remove(entry.id.as_str());
                    if aliases.is_empty() {
                        self.aliases.remove(selector);
                    }
                }
            }
        } else {
            remove_below(&mut self.children, &entry.parent_id, &entry.id);
        }
        if entry.admin || entry.downstream {
            remove_below(&mut self.privileged, &entry.spiffe_id, &entry.id);
        }
    }

    fn put_agent(&mut self, id: &SpiffeId, selectors: Option<Vec<Selector>>) -> bool {
        let mut selectors = selectors.unwrap_or_default();
        selectors.sort();
        selectors.dedup();
        if self.agent_selectors(id) == selectors {
            return false;
        }
        if selectors.is_empty() {
            self.agents.remove(id);
        } else {
            self.agents.insert(id.clone(), selectors.into());
        }
        true
    }

    fn remember(&mut self, change: Change) {
        self.recent_touched += change.touched();
        self.recent.push_back(Arc::new(change));
        while self.recent.len() > RECENT_CHANGES || self.recent_touched > RECENT_TOUCHED {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_touched -= oldest.touched();
        }
    }
}

impl Change {
    /// The version of the snapshot that this change led to.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn entries(&self) -> &[EntryChange] {
        &self.entries
    }

    /// Agents whose node selectors changed, or that are gone.
    pub fn agents(&self) -> &[SpiffeId] {
        &self.agents
    }

    fn touched(&self) -> usize {
        self.entries.len() + self.agents.len()
    }
}

impl EntryChange {
    /// The states before and after, as far as they exist.
    pub fn states(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.old.iter().chain(&self.new)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("trust_domain", &self.trust_domain)
            .field("version", &self.version)
            .field("entries", &self.entries.len())
            .field("agents", &self.agents.len())
            .finish_non_exhaustive()
    }
}

fn remove_below(index: &mut HashMap<SpiffeId, OrdSet<ById>>, key: &SpiffeId, id: &str) {
    if let Some(below) = index.get_mut(key) {
        below.remove(id);
        if below.is_empty() {
            index.remove(key);
        }
    }
}

/// An entry that is known by its ID.
#[derive(Clone)]
struct ById(Arc<Entry>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &ById) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &ById) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &ById) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}
