use super::fixture::{Authority, TRUST_DOMAIN, clock, entry, now, selectors};
use super::*;

const HOUR: u64 = 3600;

struct Setup {
    cache: Cache,
    authority: Authority,
    clock: Clock,
}

/// A cache that has heard from the server, with room for `max_svids` and with these entries.
fn setup(max_svids: usize, entries: Vec<Entry>) -> Setup {
    let clock = clock();
    let cache = Cache::new(
        CacheSettings { max_svids, ..CacheSettings::default() },
        clock.clone(),
        Metrics::none(clock.clone()),
    );
    let authority = Authority::new(TRUST_DOMAIN, "first");
    cache.set_bundles(authority.bundle(), BTreeMap::new());
    cache.apply(EntryUpdate { full: true, ..upserted(entries) });
    Setup { cache, authority, clock }
}

impl Setup {
    fn install(&self, entry: &Entry) -> bool {
        self.install_for(entry, HOUR)
    }

    fn install_for(&self, entry: &Entry, ttl: u64) -> bool {
        let (svid, key) = self.authority.sign(entry, ttl);
        self.cache.install(&entry.id, entry.revision_number, svid, key)
    }

    fn subscribe(&self, texts: &[&str]) -> Subscription {
        self.cache.subscribe(selectors(&owned(texts)))
    }

    fn wanted(&self) -> Vec<(String, Reason)> {
        self.cache.wanted().into_iter().map(|wanted| (wanted.entry.id.clone(), wanted.reason)).collect()
    }

    /// Whether an SVID is held, seen without listening for it.
    fn holds(&self, id: &str) -> bool {
        self.cache.state().held_svids().iter().any(|(other, _)| other == id)
    }
}

fn upserted(entries: Vec<Entry>) -> EntryUpdate {
    EntryUpdate { upserted: entries.into_iter().map(Arc::new).collect(), ..EntryUpdate::default() }
}

fn deleted(id: &str) -> EntryUpdate {
    EntryUpdate { deleted: vec![id.to_owned()], ..EntryUpdate::default() }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn simple(id: &str, selector: &str) -> Entry {
    entry(id, &format!("/{id}"), &owned(&[selector]))
}

fn hinted(id: &str, hint: &str, created_at: i64) -> Entry {
    Entry { hint: hint.to_owned(), created_at, ..simple(id, "unix:uid:1") }
}

fn no_prefetch(entry: Entry) -> Entry {
    let more = finial_identity::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: true,
        ..Default::default()
    };
    Entry { additional_attributes: Some(more), ..entry }
}

fn ids(view: &View) -> Vec<&str> {
    view.shown().map(|identity| identity.entry.id.as_str()).collect()
}

#[tokio::test]
async fn nothing_is_said_before_the_server_was_heard() {
    let cache = Cache::new(CacheSettings::default(), clock(), Metrics::none(clock()));
    let mut sub = cache.subscribe(Vec::new());
    assert!(!sub.view().synced);
    let authority = Authority::new(TRUST_DOMAIN, "first");
    cache.apply(EntryUpdate { full: true, ..EntryUpdate::default() });
    assert!(!sub.view().synced, "the bundle is still missing");
    cache.set_bundles(authority.bundle(), BTreeMap::new());
    sub.changed().await;
    let view = sub.view();
    assert!(view.synced && !view.entitled);
    assert_eq!(view.bundle.as_ref().unwrap().x509, authority.der());
    assert_eq!(view.bundle.as_ref().unwrap().id, "spiffe://example.org");
}

#[tokio::test]
async fn a_subscriber_waits_for_all_its_svids_and_wakes_whoever_fetches_them() {
    let (a, b) = (no_prefetch(simple("a", "unix:uid:1")), no_prefetch(simple("b", "unix:gid:1")));
    let s = setup(10, vec![b.clone(), a.clone(), simple("c", "unix:uid:2")]);
    s.cache.wanted_changed().await;
    assert_eq!(s.wanted(), [("c".to_owned(), Reason::Prefetch)]);

    let mut sub = s.subscribe(&["unix:uid:1", "unix:gid:1", "unix:user:x"]);
    assert_eq!((sub.view().entitled, sub.view().waiting), (true, 2));
    s.cache.wanted_changed().await;
    let awaited = |id: &str| (id.to_owned(), Reason::Awaited);
    assert_eq!(s.wanted(), [awaited("a"), awaited("b"), ("c".to_owned(), Reason::Prefetch)]);

    assert!(s.install(&b));
    assert_eq!(sub.view().waiting, 1);
    assert!(s.install(&a));
    sub.changed().await;
    let view = sub.view();
    assert_eq!((view.waiting, ids(&view)), (0, vec!["a", "b"]));
    assert_eq!(s.wanted(), [("c".to_owned(), Reason::Prefetch)]);
}

#[tokio::test]
async fn svid_and_key_are_handed_out_as_they_came() {
    let a = simple("a", "unix:uid:1");
    let s = setup(10, vec![a.clone()]);
    let (svid, key) = s.authority.sign(&a, HOUR);
    let (chain, pkcs8) = (svid.concatenated(), key.pkcs8().to_vec());
    assert!(s.cache.install("a", 0, svid, key));
    let view = s.subscribe(&["unix:uid:1"]).view();
    assert_eq!(view.identities[0].svid.chain, chain);
    assert_eq!(view.identities[0].svid.key, pkcs8);
}

#[test]
fn equal_sets_share_one_view_and_the_last_subscriber_closes_it() {
    let a = simple("a", "unix:uid:1");
    let s = setup(10, vec![a.clone()]);
    s.install(&a);
    let mut first = s.subscribe(&["unix:uid:1", "unix:gid:1"]);
    let mut second = s.subscribe(&["unix:gid:1", "unix:uid:1", "unix:gid:1"]);
    assert!(Arc::ptr_eq(&first.view(), &second.view()));
    let other = s.subscribe(&["unix:uid:1"]);
    let stats = s.cache.stats();
    assert_eq!((stats.subscribers, stats.selector_sets, stats.entries, stats.x509_svids), (3, 2, 1, 1));
    drop(first);
    assert_eq!(s.cache.stats().selector_sets, 2);
    drop((second, other));
    assert_eq!((s.cache.stats().subscribers, s.cache.stats().selector_sets), (0, 0));
}

#[test]
fn of_equal_hints_the_oldest_entry_is_shown_and_of_equally_old_ones_the_smallest_id() {
    for (entries, expected) in [
        (vec![hinted("a", "x", 5), hinted("b", "x", 4)], vec!["b"]),
        (vec![hinted("a", "x", 5), hinted("b", "x", 5)], vec!["a"]),
        (vec![hinted("a", "x", 5), hinted("b", "y", 4)], vec!["a", "b"]),
        (vec![hinted("a", "", 5), hinted("b", "", 4)], vec!["a", "b"]),
        (
            vec![hinted("a", "x", 3), hinted("b", "x", 2), hinted("c", "x", 1), hinted("d", "", 9)],
            vec!["c", "d"],
        ),
        (vec![hinted("a", "x", 2), hinted("b", "x", 3), hinted("c", "x", 1)], vec!["c"]),
    ] {
        let s = setup(10, entries.clone());
        entries.iter().for_each(|entry| assert!(s.install(entry)));
        let view = s.subscribe(&["unix:uid:1"]).view();
        assert_eq!(ids(&view), expected);
        assert_eq!(view.identities.len(), entries.len(), "others than the Workload API may see them");
    }
}

#[tokio::test]
async fn a_changed_entry_keeps_its_svid_until_the_next_one_comes() {
    let a = simple("a", "unix:uid:1");
    let s = setup(10, vec![a.clone()]);
    s.install(&a);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    let before = sub.view();

    let a1 = Entry { revision_number: 1, dns_names: vec!["web".to_owned()], ..a.clone() };
    s.cache.apply(upserted(vec![a1.clone()]));
    assert_eq!(s.wanted(), [("a".to_owned(), Reason::Revised)]);
    assert!(Arc::ptr_eq(&sub.view().identities[0].svid, &before.identities[0].svid));

    assert!(s.install(&a), "for the old revision, still better than what is held");
    assert_eq!(s.wanted(), [("a".to_owned(), Reason::Revised)]);
    assert!(s.install(&a1));
    sub.changed().await;
    assert!(s.wanted().is_empty());
    assert!(!s.install(&a), "a late answer must not bring back an old revision");
    assert_eq!(sub.view().identities[0].svid.revision, 1);
}

#[tokio::test]
async fn an_entry_with_another_spiffe_id_or_other_selectors_is_not_served_from_what_is_held() {
    let (a, b) = (simple("a", "unix:uid:1"), simple("b", "unix:uid:1"));
    let s = setup(10, vec![a.clone(), b.clone()]);
    s.install(&a);
    s.install(&b);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    assert_eq!(ids(&sub.view()), ["a", "b"]);

    let renamed = Entry { spiffe_id: simple("z", "unix:uid:1").spiffe_id, revision_number: 1, ..a.clone() };
    s.cache.apply(upserted(vec![renamed.clone()]));
    sub.changed().await;
    assert_eq!((ids(&sub.view()), sub.view().waiting), (vec!["b"], 1));
    assert!(!s.install(&a), "signed for the name it had before");
    assert!(s.install(&renamed));

    let moved = Entry { selectors: selectors(&owned(&["unix:uid:2"])), revision_number: 1, ..b };
    s.cache.apply(upserted(vec![moved]));
    sub.changed().await;
    assert_eq!(ids(&sub.view()), ["a"]);
    assert_eq!(ids(&s.subscribe(&["unix:uid:2"]).view()), ["b"]);
}

#[tokio::test]
async fn deleted_entries_disappear_at_once() {
    let (a, b) = (simple("a", "unix:uid:1"), simple("b", "unix:uid:1"));
    let s = setup(10, vec![a.clone(), b.clone()]);
    s.install(&a);
    s.install(&b);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    sub.view();
    s.cache.apply(deleted("a"));
    sub.changed().await;
    assert_eq!(ids(&sub.view()), ["b"]);
    assert!(!s.install(&a));
    s.cache.apply(EntryUpdate { full: true, ..EntryUpdate::default() });
    sub.changed().await;
    assert!(!sub.view().entitled);
    assert_eq!(s.cache.stats().x509_svids, 0);
}

#[tokio::test]
async fn entries_for_svid_stores_never_show() {
    let a = simple("a", "unix:uid:1");
    let s = setup(10, vec![Entry { store_svid: true, ..simple("stored", "unix:uid:1") }, a.clone()]);
    s.install(&a);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    assert_eq!((ids(&sub.view()), sub.view().waiting), (vec!["a"], 0));
    assert!(s.wanted().is_empty());
    s.cache.apply(upserted(vec![Entry { store_svid: true, ..a }]));
    sub.changed().await;
    assert!(!sub.view().entitled);
}

#[tokio::test]
async fn administrators_and_downstream_servers_are_served_like_others() {
    let a = Entry { admin: true, downstream: true, ..simple("a", "unix:uid:1") };
    let s = setup(10, vec![a.clone()]);
    s.install(&a);
    assert_eq!(ids(&s.subscribe(&["unix:uid:1"]).view()), ["a"]);
}

#[test]
fn wrong_svids_are_refused() {
    let (a, b) = (simple("a", "unix:uid:1"), simple("b", "unix:uid:2"));
    let s = setup(10, vec![a.clone(), b.clone()]);
    let (svid, key) = s.authority.sign(&b, HOUR);
    assert!(!s.cache.install("a", 0, svid, key), "another SPIFFE ID");
    let ((svid, _), (_, key)) = (s.authority.sign(&a, HOUR), s.authority.sign(&a, HOUR));
    assert!(!s.cache.install("a", 0, svid, key), "another key");
    let (svid, key) = s.authority.sign(&a, 0);
    assert!(!s.cache.install("a", 0, svid, key), "expired");
    let (svid, key) = s.authority.sign(&simple("gone", "unix:uid:1"), HOUR);
    assert!(!s.cache.install("gone", 0, svid, key), "no such entry");
    assert_eq!(s.cache.stats().x509_svids, 0);
}

#[tokio::test(start_paused = true)]
async fn svids_are_due_at_half_of_their_life_and_gone_at_its_end() {
    let a = simple("a", "unix:uid:1");
    let s = setup(10, vec![a.clone()]);
    s.install_for(&a, HOUR - 10);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    assert_eq!(ids(&sub.view()), ["a"]);

    let due_at = s.cache.due().unwrap();
    let age = due_at.duration_since(now() - Duration::from_secs(10)).unwrap();
    assert!((Duration::from_secs(1620)..=Duration::from_secs(1980)).contains(&age), "{age:?}");
    assert!(s.wanted().is_empty());
    s.clock.sleep_until(due_at).await;
    let ends_at = s.cache.due().unwrap();
    assert_eq!(s.wanted(), [("a".to_owned(), Reason::Due)]);
    assert_eq!(ends_at, now() + Duration::from_secs(HOUR - 10));
    assert_eq!(s.cache.wanted()[0].expires_at, Some(ends_at));

    s.clock.sleep_until(ends_at).await;
    assert_eq!(s.cache.due(), None);
    sub.changed().await;
    let view = sub.view();
    assert_eq!((view.entitled, view.waiting, ids(&view)), (true, 1, vec![]));
    assert_eq!(s.wanted(), [("a".to_owned(), Reason::Awaited)]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_svid_is_not_given_to_a_new_subscriber_even_before_anybody_looked_at_the_clock() {
    let a = simple("a", "unix:uid:1");
    let s = setup(10, vec![a.clone()]);
    s.install_for(&a, 60);
    s.clock.jump(60);
    let view = s.subscribe(&["unix:uid:1"]).view();
    assert_eq!((ids(&view), view.waiting), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn an_entry_ends_when_it_says() {
    let a = Entry { expires_at: clock().unix() + 100, ..simple("a", "unix:uid:1") };
    let s = setup(10, vec![a.clone()]);
    s.install(&a);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    assert_eq!(ids(&sub.view()), ["a"]);
    assert_eq!(s.cache.due(), Some(now() + Duration::from_secs(100)));
    s.clock.jump(100);
    s.cache.due();
    sub.changed().await;
    assert!(!sub.view().entitled);
    assert!(s.wanted().is_empty());
    assert!(!s.install(&a));
}

#[tokio::test]
async fn an_availability_target_renews_earlier() {
    let clock = clock();
    let target = Some(Duration::from_secs(24 * HOUR));
    let cache = Cache::new(
        CacheSettings { max_svids: 1, availability_target: target, ..CacheSettings::default() },
        clock.clone(),
        Metrics::none(clock),
    );
    let a = simple("a", "unix:uid:1");
    cache.apply(EntryUpdate { full: true, ..upserted(vec![a.clone()]) });
    let (svid, key) = Authority::new(TRUST_DOMAIN, "first").sign(&a, 40 * HOUR);
    assert!(cache.install("a", 0, svid, key));
    let age = cache.due().unwrap().duration_since(now()).unwrap();
    assert!(age <= Duration::from_secs(16 * HOUR), "{age:?}");
}

#[test]
fn svids_of_tainted_authorities_are_wanted_anew_and_served_meanwhile() {
    let (a, b) = (simple("a", "unix:uid:1"), simple("b", "unix:uid:2"));
    let s = setup(10, vec![a.clone(), b.clone()]);
    s.install(&a);
    let second = Authority::new(TRUST_DOMAIN, "second");
    let (svid, key) = second.sign(&b, HOUR);
    assert!(s.cache.install("b", 0, svid, key));

    assert_eq!(s.cache.taint(&[s.authority.der()]), 1);
    assert_eq!(s.cache.taint(&[s.authority.der()]), 0, "they are marked already");
    assert_eq!(s.wanted(), [("a".to_owned(), Reason::Tainted)]);
    assert_eq!(ids(&s.subscribe(&["unix:uid:1"]).view()), ["a"]);
    let (svid, key) = second.sign(&a, HOUR);
    assert!(s.cache.install("a", 0, svid, key));
    assert!(s.wanted().is_empty());
}

#[test]
fn prefetch_fills_the_room_there_is_and_no_more() {
    let entries: Vec<_> = (0..6).map(|i| simple(&format!("e{i}"), &format!("unix:uid:{i}"))).collect();
    let mut all = entries.clone();
    all.push(no_prefetch(simple("d", "unix:uid:9")));
    let s = setup(3, all);
    let prefetch = |id: &str| (id.to_owned(), Reason::Prefetch);
    assert_eq!(s.wanted(), [prefetch("e0"), prefetch("e1"), prefetch("e2")]);
    s.install(&entries[0]);
    s.install(&entries[1]);
    assert_eq!(s.wanted(), [prefetch("e2")]);
    let _sub = s.subscribe(&["unix:uid:5"]);
    assert_eq!(s.wanted(), [("e5".to_owned(), Reason::Awaited)], "what is awaited takes the room");
}

#[test]
fn the_least_recently_used_svid_goes_first_and_never_one_that_is_listened_for() {
    let entries: Vec<_> = (0..5).map(|i| simple(&format!("e{i}"), &format!("unix:uid:{i}"))).collect();
    let s = setup(2, entries.clone());
    let live = s.subscribe(&["unix:uid:0"]);
    s.install(&entries[0]);
    s.install(&entries[1]);
    drop(s.subscribe(&["unix:uid:1"]));
    s.install(&entries[2]);
    assert!(!s.holds("e2"), "nobody ever asked for it");
    assert!(s.holds("e0") && s.holds("e1"));

    let also_live = s.subscribe(&["unix:uid:3"]);
    s.install(&entries[3]);
    assert!(s.holds("e0") && s.holds("e3") && !s.holds("e1"));

    let third = s.subscribe(&["unix:uid:4"]);
    s.install(&entries[4]);
    assert_eq!(s.cache.stats().x509_svids, 3, "the bound gives way to subscribers");
    drop(live);
    assert_eq!(s.cache.stats().x509_svids, 2);
    assert!(s.holds("e3") && s.holds("e4"));
    assert!(s.wanted().is_empty(), "what was evicted is not fetched again");
    drop((also_live, third));
    assert_eq!(s.cache.stats().x509_svids, 2);
}

#[tokio::test]
async fn bundles_of_federated_domains_come_with_the_entries_that_name_them() {
    let other = Authority::new("other.test", "other");
    let third = Authority::new("third.test", "third");
    let both = [&other, &third].map(|authority| (authority.trust_domain.clone(), authority.bundle()));
    let a = Entry { federates_with: vec![third.trust_domain.clone()], ..simple("a", "unix:uid:1") };
    let unknown = TrustDomain::parse("unknown.test").unwrap();
    let b = Entry { federates_with: vec![other.trust_domain.clone(), unknown], ..simple("b", "unix:uid:1") };
    let s = setup(10, vec![a.clone(), b.clone()]);
    s.install(&a);
    s.install(&b);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    assert!(sub.view().federated.is_empty());

    s.cache.set_bundles(s.authority.bundle(), BTreeMap::from(both.clone()));
    sub.changed().await;
    let seen: Vec<_> = sub.view().federated.iter().map(|bundle| bundle.id.clone()).collect();
    assert_eq!(seen, ["spiffe://other.test", "spiffe://third.test"]);
    assert_eq!(sub.view().federated[0].x509, other.der());

    s.cache.apply(upserted(vec![Entry { federates_with: Vec::new(), ..b }]));
    sub.changed().await;
    assert_eq!(sub.view().federated.len(), 1);

    s.cache.set_bundles(s.authority.bundle(), BTreeMap::from(both));
    assert!(!sub.views_changed(), "equal bundles are no news");
    s.cache.set_bundles(s.authority.bundle(), BTreeMap::new());
    assert!(sub.views_changed());
}

#[test]
fn what_reads_the_same_is_no_news() {
    let a = simple("a", "unix:uid:1");
    let s = setup(10, vec![a.clone()]);
    s.install(&a);
    let mut sub = s.subscribe(&["unix:uid:1"]);
    sub.view();
    s.cache.apply(EntryUpdate { full: true, ..upserted(vec![a.clone()]) });
    s.cache.apply(upserted(vec![a.clone(), simple("b", "unix:uid:2")]));
    assert!(!sub.views_changed());
    let e = simple("e", "unix:uid:1");
    s.cache.apply(upserted(vec![e.clone()]));
    s.install(&e);
    assert!(sub.views_changed());
    assert_eq!(ids(&sub.view()), ["a", "e"]);
}
