use std::collections::{BTreeMap, BTreeSet};

use finial_identity::selector::Selector;
use proptest::prelude::*;

use super::super::fixture::{entry, id, selectors, td};
use super::super::snapshot::{EntryFlags, Rows};
use super::*;

fn rows(entries: Vec<Entry>) -> Rows {
    Rows { entries: entries.into_iter().map(|e| (e.id.clone(), Some(e))).collect(), ..Rows::default() }
}

fn agent_rows(agents: &[(&str, &[&str])]) -> Rows {
    let agents = agents.iter().map(|(agent, known)| (id(agent), Some(selectors(known)))).collect();
    Rows { agents, ..Rows::default() }
}

fn snapshot(entries: Vec<Entry>, agents: &[(&str, &[&str])]) -> Snapshot {
    let filled = Snapshot::empty(td());
    let filled = filled.with(rows(entries), 0).unwrap_or(filled);
    filled.with(agent_rows(agents), 0).unwrap_or(filled)
}

fn ids(set: &AuthorizedSet) -> Vec<&str> {
    set.entries().iter().map(|entry| entry.id.as_str()).collect()
}

const AGENT: &str = "/spire/agent/join_token/a";
const OTHER: &str = "/spire/agent/join_token/b";

#[test]
fn the_walk_goes_down_from_the_agent_and_its_aliases() {
    let snapshot = snapshot(
        vec![
            entry("direct", AGENT, "/web", &["unix:uid:1"]),
            entry("nested", "/web", "/web/worker", &["unix:uid:2"]),
            entry("deeper", "/web/worker", "/web/worker/child", &["unix:uid:3"]),
            entry("of-other", OTHER, "/db", &["unix:uid:1"]),
            entry("alias", "/spire/server", "/cluster/eu", &["k8s:cluster:eu", "k8s:node:1"]),
            entry("wide-alias", "/spire/server", "/cluster/any", &["k8s:cluster:eu"]),
            entry("too-narrow", "/spire/server", "/cluster/us", &["k8s:cluster:eu", "k8s:zone:us"]),
            entry("by-alias", "/cluster/eu", "/log", &["unix:uid:4"]),
            entry("by-wide", "/cluster/any", "/metrics", &["unix:uid:5"]),
            entry("not-mine", "/cluster/us", "/secret", &["unix:uid:6"]),
        ],
        &[(AGENT, &["k8s:node:1", "k8s:cluster:eu", "k8s:other:x"]), (OTHER, &["k8s:cluster:eu"])],
    );
    let set = for_agent(&snapshot, &id(AGENT));
    assert_eq!(ids(&set), ["by-alias", "by-wide", "deeper", "direct", "nested"]);
    assert_eq!(set.agent_id(), &id(AGENT));
    assert_eq!(set.version(), snapshot.version());
    assert_eq!(ids(&for_agent(&snapshot, &id(OTHER))), ["by-wide", "of-other"]);
    assert_eq!(ids(&for_agent(&snapshot, &id("/spire/agent/unknown"))), Vec::<&str>::new());

    let proof = set.find("nested").unwrap();
    assert_eq!((proof.entry().id.as_str(), proof.agent_id()), ("nested", &id(AGENT)));
    assert!(set.find("of-other").is_none());
    assert!(set.find("alias").is_none(), "an alias is not served");
    assert!(one_for_agent(&snapshot, &id(AGENT), "alias").is_none());
}

#[test]
fn circles_end() {
    let snapshot = snapshot(
        vec![
            entry("self", "/loop", "/loop", &["a:1"]),
            entry("in", AGENT, "/loop", &["a:1"]),
            entry("ab", "/a", "/b", &["a:1"]),
            entry("ba", "/b", "/a", &["a:1"]),
            entry("to-a", AGENT, "/a", &["a:1"]),
        ],
        &[],
    );
    assert_eq!(ids(&for_agent(&snapshot, &id(AGENT))), ["ab", "ba", "in", "self", "to-a"]);
}

#[test]
fn entries_outside_of_the_trust_domain_are_skipped() {
    let snapshot = snapshot(
        vec![
            entry("foreign-parent", "spiffe://other.org/spire/agent/x", "/web", &["a:1"]),
            entry("foreign-id", AGENT, "spiffe://other.org/web", &["a:1"]),
            entry("own", AGENT, "/web", &["a:1"]),
        ],
        &[],
    );
    assert_eq!(ids(&for_agent(&snapshot, &id(AGENT))), ["own"]);
    assert!(for_agent(&snapshot, &id("spiffe://other.org/spire/agent/x")).entries().is_empty());
}

#[test]
fn an_expired_entry_is_not_served() {
    let expiring = |at| Entry { expires_at: at, ..entry("e", AGENT, "/web", &["a:1"]) };
    for (expires_at, now, served) in [(0, 500, true), (101, 100, true), (100, 100, false), (99, 100, false)] {
        let next = Snapshot::empty(td()).with(rows(vec![expiring(expires_at)]), now);
        let found = next.is_some_and(|next| one_for_agent(&next, &id(AGENT), "e").is_some());
        assert_eq!(found, served, "expires at {expires_at}, now {now}");
    }
    // An update that brings the expiry into the past takes the entry away, along with its rights.
    let before = Snapshot::empty(td()).with(rows(vec![Entry { admin: true, ..expiring(200) }]), 100).unwrap();
    assert!(before.flags(&id("/web")).admin);
    let after = before.with(rows(vec![Entry { admin: true, ..expiring(90) }]), 100).unwrap();
    assert!(for_agent(&after, &id(AGENT)).entries().is_empty());
    assert_eq!(after.flags(&id("/web")), EntryFlags::default());
}

#[test]
fn flags_are_those_of_all_entries_of_an_id() {
    let snapshot = snapshot(
        vec![
            Entry { admin: true, ..entry("1", AGENT, "/admin", &["a:1"]) },
            Entry { downstream: true, ..entry("2", OTHER, "/admin", &["a:1"]) },
            entry("3", AGENT, "/web", &["a:1"]),
        ],
        &[],
    );
    assert_eq!(snapshot.flags(&id("/admin")), EntryFlags { admin: true, downstream: true });
    assert_eq!(snapshot.flags(&id("/web")), EntryFlags::default());
    let demoted = snapshot.with(rows(vec![entry("1", AGENT, "/admin", &["a:1"])]), 0).unwrap();
    assert_eq!(demoted.flags(&id("/admin")), EntryFlags { admin: false, downstream: true });
}

#[test]
fn nothing_new_is_no_new_snapshot() {
    let entries = vec![entry("1", AGENT, "/web", &["a:1"])];
    let snapshot = snapshot(entries.clone(), &[(AGENT, &["a:1", "b:2"])]);
    assert!(snapshot.with(rows(entries), 0).is_none());
    assert!(snapshot.with(agent_rows(&[(AGENT, &["b:2", "a:1", "a:1"])]), 0).is_none());
    let gone = Rows {
        entries: vec![("unknown".into(), None)],
        agents: vec![(id(OTHER), None), (id("/spire/agent/c"), Some(Vec::new()))],
        gone: Vec::new(),
    };
    assert!(snapshot.with(gone, 0).is_none());
}

#[test]
fn changes_are_remembered_for_a_while() {
    let mut snapshot = Snapshot::empty(td());
    for number in 0..1500 {
        snapshot = snapshot.with(rows(vec![entry(&number.to_string(), AGENT, "/web", &["a:1"])]), 0).unwrap();
    }
    assert_eq!(snapshot.version(), 1500);
    assert_eq!(snapshot.changes_since(1500).unwrap().count(), 0);
    let versions: Vec<u64> = snapshot.changes_since(1497).unwrap().map(|change| change.version()).collect();
    assert_eq!(versions, [1498, 1499, 1500]);
    assert!(snapshot.changes_since(1500 - 1024).is_some());
    assert!(snapshot.changes_since(1500 - 1025).is_none(), "too long ago");
    assert!(snapshot.changes_since(1501).is_none(), "not of this process");

    let many = (0..20_000).map(|number| entry(&format!("m{number}"), AGENT, "/web", &["a:1"])).collect();
    let flooded = snapshot.with(rows(many), 0).unwrap();
    assert!(flooded.changes_since(1500).is_none(), "more than it is worth to remember");
    assert_eq!(flooded.changes_since(1501).unwrap().count(), 0);
}

#[test]
fn ten_thousand_entries_of_one_agent() {
    let mut entries: Vec<Entry> =
        (0..10_000).map(|n| entry(&format!("e{n:05}"), "/cluster", &format!("/w/{n}"), &["a:1"])).collect();
    entries.push(entry("alias", "/spire/server", "/cluster", &["k8s:cluster:eu"]));
    let snapshot = snapshot(entries, &[(AGENT, &["k8s:cluster:eu"])]);
    let set = for_agent(&snapshot, &id(AGENT));
    assert_eq!(set.entries().len(), 10_000);
    let change = rows(vec![entry("e00007", "/cluster", "/w/new", &["a:1"])]);
    let next = for_agent(&snapshot.with(change, 0).unwrap(), &id(AGENT));
    let delta = delta(&set, &next);
    assert_eq!((delta.upserted.len(), delta.deleted.len()), (1, 0));
}

/// The rules again, as slowly and plainly as possible.
fn naive(
    entries: &BTreeMap<String, Entry>,
    agents: &BTreeMap<SpiffeId, Vec<Selector>>,
    agent: &SpiffeId,
    now: i64,
) -> BTreeSet<String> {
    let served: Vec<&Entry> = entries
        .values()
        .filter(|e| e.spiffe_id.trust_domain() == td() && e.parent_id.trust_domain() == td())
        .filter(|e| e.expires_at == 0 || e.expires_at > now)
        .collect();
    let server = id("/spire/server");
    let mine = agents.get(agent).cloned().unwrap_or_default();
    let mut parents = BTreeSet::from([agent.clone()]);
    for alias in served.iter().filter(|e| e.parent_id == server) {
        if alias.selectors.iter().all(|wanted| mine.contains(wanted)) {
            parents.insert(alias.spiffe_id.clone());
        }
    }
    let mut found = BTreeSet::new();
    loop {
        let before = (found.len(), parents.len());
        for entry in served.iter().filter(|e| e.parent_id != server && parents.contains(&e.parent_id)) {
            found.insert(entry.id.clone());
        }
        for entry in served.iter().filter(|e| found.contains(&e.id)) {
            parents.insert(entry.spiffe_id.clone());
        }
        if before == (found.len(), parents.len()) {
            return found;
        }
    }
}

const AGENTS: [&str; 3] = [AGENT, OTHER, "/spire/agent/x509pop/c"];
const PARENTS: [&str; 9] = [
    "/spire/server",
    "/spire/server",
    AGENT,
    OTHER,
    "/a",
    "/b",
    "/c",
    "/spire/agent/nobody",
    "spiffe://other.org/spire/agent/x",
];
const IDS: [&str; 6] = ["/a", "/b", "/c", "/d", "/e", "spiffe://other.org/a"];

fn some_selectors() -> impl Strategy<Value = Vec<Selector>> {
    proptest::collection::vec(prop::sample::select(vec!["s:1", "s:2", "s:3", "t:1"]), 1..4)
        .prop_map(|s| selectors(&s))
}

fn some_entry() -> impl Strategy<Value = Entry> {
    let names = (0..12_u8, prop::sample::select(&PARENTS[..]), prop::sample::select(&IDS[..]));
    let rest = (some_selectors(), prop::sample::select(vec![0_i64, 0, 50, 100, 150]), any::<(bool, bool)>());
    (names, rest).prop_map(|((number, parent, spiffe_id), (selectors, expires_at, (admin, downstream)))| {
        Entry {
            selectors,
            expires_at,
            admin,
            downstream,
            ..entry(&format!("e{number}"), parent, spiffe_id, &["s:1"])
        }
    })
}

#[derive(Clone, Debug)]
enum Step {
    Put(Box<Entry>),
    Remove(u8),
    Agent(&'static str, Option<Vec<Selector>>),
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => some_entry().prop_map(|entry| Step::Put(Box::new(entry))),
        2 => (0..12_u8).prop_map(Step::Remove),
        2 => (prop::sample::select(&AGENTS[..]), proptest::option::of(some_selectors()))
            .prop_map(|(agent, selectors)| Step::Agent(agent, selectors)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// After any sequence of changes, in any batches, each agent gets what the plain rules give, by the whole walk and by
    /// the look at one entry; deltas lead from one set to the next; and no change that matters is taken for one that does not.
    #[test]
    fn the_index_agrees_with_the_rules(steps in proptest::collection::vec(some_step(), 0..40), batch in 1..6_usize) {
        const NOW: i64 = 100;
        let mut snapshot = Snapshot::empty(td());
        let mut entries = BTreeMap::new();
        let mut agents = BTreeMap::new();
        let mut held: Vec<(AuthorizedSet, Reach)> = AGENTS
            .iter()
            .map(|agent| for_agent(&snapshot, &id(agent)))
            .map(|set| { let reach = set.reach(); (set, reach) })
            .collect();
        for batch in steps.chunks(batch) {
            let mut rows = Rows::default();
            for step in batch {
                match step.clone() {
                    Step::Put(entry) => {
                        entries.insert(entry.id.clone(), (*entry).clone());
                        rows.entries.push((entry.id.clone(), Some(*entry)));
                    }
                    Step::Remove(number) => {
                        let id = format!("e{number}");
                        entries.remove(&id);
                        rows.entries.push((id, None));
                    }
                    Step::Agent(agent, selectors) => {
                        match &selectors {
                            Some(selectors) => _ = agents.insert(id(agent), selectors.clone()),
                            None => _ = agents.remove(&id(agent)),
                        }
                        rows.agents.push((id(agent), selectors));
                    }
                }
            }
            let version = snapshot.version();
            if let Some(next) = snapshot.with(rows, NOW) {
                snapshot = next;
            }
            for (agent, (old, reach)) in AGENTS.iter().map(|agent| id(agent)).zip(&mut held) {
                let new = for_agent(&snapshot, &agent);
                let expected = naive(&entries, &agents, &agent, NOW);
                prop_assert_eq!(new.entries().iter().map(|e| e.id.clone()).collect::<BTreeSet<_>>(), expected.clone());
                prop_assert_eq!(new.entries().len(), expected.len(), "no entry twice");
                for entry in new.entries() {
                    prop_assert_eq!(&**entry, &entries[&entry.id]);
                }
                for number in 0..12 {
                    let entry_id = format!("e{number}");
                    let one = one_for_agent(&snapshot, &agent, &entry_id);
                    prop_assert_eq!(one.is_some(), expected.contains(&entry_id));
                    prop_assert_eq!(new.find(&entry_id).is_some(), expected.contains(&entry_id));
                }

                let delta = delta(old, &new);
                let mut patched: BTreeMap<String, Arc<Entry>> =
                    old.entries().iter().map(|e| (e.id.clone(), Arc::clone(e))).collect();
                for gone in &delta.deleted {
                    prop_assert!(patched.remove(gone).is_some(), "only what was held is deleted");
                }
                for entry in &delta.upserted {
                    let before = patched.insert(entry.id.clone(), Arc::clone(entry));
                    prop_assert!(before.as_ref() != Some(entry), "only what differs is sent");
                }
                prop_assert_eq!(patched.into_values().collect::<Vec<_>>(), new.entries().to_vec());

                let concerned = snapshot
                    .changes_since(version)
                    .expect("a recent version")
                    .any(|change| reach.is_concerned_by(&snapshot, change));
                prop_assert!(concerned || delta == Delta::default(), "a change that matters was overlooked");
                *reach = new.reach();
                *old = new;
            }
            for path in IDS {
                let served = |e: &&Entry| {
                    e.spiffe_id == id(path)
                        && e.spiffe_id.trust_domain() == td()
                        && e.parent_id.trust_domain() == td()
                        && (e.expires_at == 0 || e.expires_at > NOW)
                };
                let flags = EntryFlags {
                    admin: entries.values().filter(served).any(|e| e.admin),
                    downstream: entries.values().filter(served).any(|e| e.downstream),
                };
                prop_assert_eq!(snapshot.flags(&id(path)), flags);
            }
        }
    }
}
