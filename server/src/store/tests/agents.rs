use finial_identity::selector::{SelectorMatch, matches};

use super::*;
use crate::store::agents::{AttestedNode, ListAgents, NodeUpdate, Recorded};
use crate::store::tests::engines::{Fresh, on_every_engine};

on_every_engine!(
    every_field_is_stored,
    an_attestation_creates_then_updates_and_never_revives_a_banned_agent,
    an_update_changes_the_fields_of_the_mask_alone,
    a_pending_svid_is_promoted_once_by_its_serial_number,
    selectors_are_replaced_and_repetitions_do_not_matter,
    deleting_a_node_deletes_the_alias_of_its_token_and_nothing_of_an_operator,
    filters_restrict_and_combine,
    selectors_compare_as_sets_in_every_mode,
    pruning_spares_the_banned_and_those_who_cannot_come_back,
    nodes_are_found_by_ids_and_by_scan,
);

pub(super) fn node(path: &str) -> AttestedNode {
    AttestedNode {
        spiffe_id: id(path),
        attestation_type: "test".to_owned(),
        serial_number: "1".to_owned(),
        expires_at: NOW + 10,
        new_serial_number: String::new(),
        new_expires_at: 0,
        can_reattest: true,
        agent_version: "1.2".to_owned(),
        selectors: selectors(&["a:1", "b:2"]),
    }
}

async fn paths(store: &Store, list: &ListAgents) -> Vec<String> {
    let page = store.agents().list(list).await.unwrap();
    assert_eq!(store.agents().count(list).await.unwrap(), page.items.len() as u64);
    page.items.iter().map(|node| node.spiffe_id.path().to_owned()).collect()
}

async fn every_field_is_stored(fresh: Fresh) {
    let store = fresh.store().await;
    let pending = AttestedNode {
        new_serial_number: "2".to_owned(),
        new_expires_at: NOW + 20,
        ..node("/spire/agent/x")
    };
    assert_eq!(store.agents().create(pending.clone()).await.unwrap(), pending);
    assert_eq!(store.agents().get(&pending.spiffe_id).await.unwrap(), Some(pending.clone()));
    assert_eq!(store.agents().get(&id("/spire/agent/y")).await.unwrap(), None);
    let error = store.agents().create(pending).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists(_)), "{error:?}");
}

async fn an_attestation_creates_then_updates_and_never_revives_a_banned_agent(fresh: Fresh) {
    let store = fresh.store().await;
    let first = node("/spire/agent/x");
    assert_eq!(store.agents().record_attestation(first.clone(), false).await.unwrap(), Recorded::Created);
    store.agents().set_pending(&first.spiffe_id, "9", NOW + 90).await.unwrap();

    let second = AttestedNode {
        attestation_type: "ignored".to_owned(),
        serial_number: "2".to_owned(),
        expires_at: NOW + 20,
        can_reattest: false,
        agent_version: "ignored".to_owned(),
        selectors: selectors(&["c:3"]),
        ..first.clone()
    };
    assert_eq!(store.agents().record_attestation(second.clone(), false).await.unwrap(), Recorded::Updated);
    let expected = AttestedNode {
        attestation_type: "test".to_owned(),
        agent_version: "1.2".to_owned(),
        ..second.clone()
    };
    assert_eq!(store.agents().get(&first.spiffe_id).await.unwrap(), Some(expected));

    let third = AttestedNode { serial_number: "3".to_owned(), ..second.clone() };
    assert_eq!(store.agents().record_attestation(third, true).await.unwrap(), Recorded::NotFirst);
    assert_eq!(store.agents().get(&first.spiffe_id).await.unwrap().unwrap().serial_number, "2");

    store.agents().ban(&first.spiffe_id).await.unwrap();
    let banned = store.agents().get(&first.spiffe_id).await.unwrap().unwrap();
    assert!(banned.is_banned());
    let events = store.events().latest().await.unwrap();
    assert_eq!(store.agents().record_attestation(second, false).await.unwrap(), Recorded::Banned);
    assert_eq!(store.agents().get(&first.spiffe_id).await.unwrap(), Some(banned));
    assert_eq!(store.events().latest().await.unwrap(), events);
}

async fn an_update_changes_the_fields_of_the_mask_alone(fresh: Fresh) {
    let store = fresh.store().await;
    let mut expected = store.agents().create(node("/spire/agent/x")).await.unwrap();
    type Expect = fn(&mut AttestedNode);
    let steps: Vec<(NodeUpdate, Expect)> = vec![
        (NodeUpdate { serial_number: Some("7".into()), ..Default::default() }, |n| {
            n.serial_number = "7".into()
        }),
        (NodeUpdate { expires_at: Some(5), ..Default::default() }, |n| n.expires_at = 5),
        (NodeUpdate { new_serial_number: Some("8".into()), ..Default::default() }, |n| {
            n.new_serial_number = "8".into()
        }),
        (NodeUpdate { new_expires_at: Some(6), ..Default::default() }, |n| n.new_expires_at = 6),
        (NodeUpdate { new_expires_at: Some(0), ..Default::default() }, |n| n.new_expires_at = 0),
        (NodeUpdate { can_reattest: Some(false), ..Default::default() }, |n| n.can_reattest = false),
        (NodeUpdate { agent_version: Some("2".into()), ..Default::default() }, |n| {
            n.agent_version = "2".into()
        }),
    ];
    for (update, expect) in steps {
        expect(&mut expected);
        assert_eq!(store.agents().update(&expected.spiffe_id, update).await.unwrap(), expected);
    }
    let missing = store.agents().update(&id("/spire/agent/y"), NodeUpdate::default()).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
}

async fn a_pending_svid_is_promoted_once_by_its_serial_number(fresh: Fresh) {
    let store = fresh.store().await;
    let agent = store.agents().create(node("/spire/agent/x")).await.unwrap().spiffe_id;
    assert_eq!(store.agents().promote(&agent, "").await.unwrap(), None);
    store.agents().set_pending(&agent, "5", NOW + 50).await.unwrap();
    assert_eq!(store.agents().promote(&agent, "6").await.unwrap(), None);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, agent) = (store.clone(), agent.clone());
        tasks.spawn(async move { store.agents().promote(&agent, "5").await.unwrap() });
    }
    let promoted: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let expected =
        AttestedNode { serial_number: "5".to_owned(), expires_at: NOW + 50, ..node("/spire/agent/x") };
    assert_eq!(promoted, [expected]);

    store.agents().set_pending(&agent, "6", NOW + 60).await.unwrap();
    store.agents().ban(&agent).await.unwrap();
    assert_eq!(store.agents().promote(&agent, "6").await.unwrap(), None);
    let missing = store.agents().ban(&id("/spire/agent/y")).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
}

async fn selectors_are_replaced_and_repetitions_do_not_matter(fresh: Fresh) {
    let store = fresh.store().await;
    let agent = store.agents().create(node("/spire/agent/x")).await.unwrap().spiffe_id;
    let twice = [selectors(&["z:1", "c:3"]), selectors(&["z:1"])].concat();
    store.agents().set_selectors(&agent, twice).await.unwrap();
    assert_eq!(store.agents().get(&agent).await.unwrap().unwrap().selectors, selectors(&["c:3", "z:1"]));
    store.agents().set_selectors(&agent, Vec::new()).await.unwrap();
    assert!(store.agents().get(&agent).await.unwrap().unwrap().selectors.is_empty());
}

async fn deleting_a_node_deletes_the_alias_of_its_token_and_nothing_of_an_operator(fresh: Fresh) {
    let store = fresh.store().await;
    for (kind, aliases_left) in [("join_token", 0), ("other", 1)] {
        let path = format!("/spire/agent/join_token/{kind}");
        let agent = id(&path);
        let alias_selector = format!("spiffe_id:{agent}");
        let children = [
            (entry("/alias", &[&alias_selector]), "alias"),
            (entry("/two", &[&alias_selector, "a:1"]), "two"),
            (entry("/other", &["spiffe_id:spiffe://example.org/x"]), "other"),
        ];
        for (child, name) in children {
            let child = Entry { id: format!("{name}-{kind}"), parent_id: agent.clone(), ..child };
            store.entries().create(child).await.unwrap();
        }
        let attested = AttestedNode { attestation_type: kind.to_owned(), ..node(&path) };
        store.agents().create(attested).await.unwrap();
        let before = store.events().latest().await.unwrap();
        store.agents().delete(&agent).await.unwrap();

        assert_eq!(store.agents().get(&agent).await.unwrap(), None);
        let left = store
            .entries()
            .by_ids(["alias", "two", "other"].map(|name| format!("{name}-{kind}")).to_vec())
            .await;
        assert_eq!(left.unwrap().len(), 2 + aliases_left);
        let events = store.events().entries_after(before.entry_event).await.unwrap();
        assert_eq!(events.len(), 1 - aliases_left);
        let events = store.events().nodes_after(before.node_event).await.unwrap();
        assert_eq!(events[0].spiffe_id, agent.as_str());
        assert!(matches!(store.agents().delete(&agent).await, Err(StoreError::NotFound(_))));
    }
    let selectors_left =
        store.read(|sql| sql.number("SELECT COUNT(*) FROM node_resolver_map_entries", &[])).await;
    assert_eq!(selectors_left.unwrap(), 0);
}

async fn filters_restrict_and_combine(fresh: Fresh) {
    let store = fresh.store().await;
    for new in [
        AttestedNode { attestation_type: "x".to_owned(), ..node("/spire/agent/1") },
        AttestedNode { can_reattest: false, expires_at: NOW - 5, ..node("/spire/agent/2") },
        AttestedNode { serial_number: String::new(), ..node("/spire/agent/3") },
    ] {
        store.agents().create(new).await.unwrap();
    }
    let all = ListAgents::default();
    let expect = |numbers: &[&str]| numbers.iter().map(|n| format!("/spire/agent/{n}")).collect::<Vec<_>>();
    assert_eq!(paths(&store, &all).await, expect(&["1", "2", "3"]));
    for (list, expected) in [
        (ListAgents { attestation_type: Some("x".to_owned()), ..all.clone() }, &["1"][..]),
        (ListAgents { attestation_type: Some(String::new()), ..all.clone() }, &["1", "2", "3"]),
        (ListAgents { banned: Some(true), ..all.clone() }, &["3"]),
        (ListAgents { banned: Some(false), ..all.clone() }, &["1", "2"]),
        (ListAgents { can_reattest: Some(true), ..all.clone() }, &["1", "3"]),
        (ListAgents { can_reattest: Some(false), banned: Some(true), ..all.clone() }, &[]),
        (ListAgents { expires_before: Some(NOW), ..all.clone() }, &["2"]),
        (ListAgents { expires_before: Some(NOW - 5), ..all.clone() }, &[]),
    ] {
        assert_eq!(paths(&store, &list).await, expect(expected), "{list:?}");
    }
    let page = |token: &str| ListAgents {
        page: Some(PageRequest { token: token.to_owned(), size: 2 }),
        ..all.clone()
    };
    let first = store.agents().list(&page("")).await.unwrap();
    assert_eq!((first.items.len(), first.next_token.as_str()), (2, "2"));
    let second = store.agents().list(&page("2")).await.unwrap();
    assert_eq!((second.items.len(), second.next_token.as_str()), (1, "3"));
    assert_eq!(
        store.agents().list(&page("3")).await.unwrap(),
        Page { items: vec![], next_token: String::new() }
    );
    let error = store.agents().list(&page("x")).await.unwrap_err();
    assert_eq!(error.to_string(), "could not parse token 'x'");
}

async fn selectors_compare_as_sets_in_every_mode(fresh: Fresh) {
    let store = fresh.store().await;
    let sets: [&[&str]; 4] = [&["a:1"], &["a:1", "a:2"], &["a:2", "b:1"], &["c:1"]];
    for (i, set) in sets.iter().enumerate() {
        let new = AttestedNode { selectors: selectors(set), ..node(&format!("/spire/agent/{i}")) };
        store.agents().create(new).await.unwrap();
    }
    for mode in [SelectorMatch::Exact, SelectorMatch::Subset, SelectorMatch::Superset, SelectorMatch::Any] {
        for given in [&["a:1"][..], &["a:1", "a:2"], &["a:1", "a:2", "b:1"], &["d:1"]] {
            let given = selectors(given);
            let expected = sets.iter().enumerate().filter(|(_, set)| matches(mode, &selectors(set), &given));
            let expected: Vec<_> = expected.map(|(i, _)| format!("/spire/agent/{i}")).collect();
            let list = ListAgents { selectors: Some((mode, given.clone())), ..Default::default() };
            assert_eq!(paths(&store, &list).await, expected, "{mode:?} {given:?}");
        }
        let list = ListAgents { selectors: Some((mode, Vec::new())), ..Default::default() };
        assert!(matches!(store.agents().list(&list).await, Err(StoreError::InvalidArgument(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn expiry_is_compared_as_time_whatever_zone_it_was_written_in() {
    let store = Fresh::SQLITE.store().await;
    store.agents().create(node("/spire/agent/x")).await.unwrap();
    // Both are 07:00 UTC, an hour before NOW.
    for text in ["2027-01-15 21:00:00+14:00", "2027-01-14 19:00:00-12:00"] {
        let set = format!("UPDATE attested_node_entries SET expires_at = '{text}'");
        store.write(move |sql| sql.script(&set)).await.unwrap();
        let before = |unix| ListAgents { expires_before: Some(unix), ..Default::default() };
        assert_eq!(paths(&store, &before(NOW - 3600)).await.len(), 0, "{text}");
        assert_eq!(paths(&store, &before(NOW - 3599)).await.len(), 1, "{text}");
        assert_eq!(store.agents().list(&before(NOW)).await.unwrap().items[0].expires_at, NOW - 3600);
    }
}

async fn pruning_spares_the_banned_and_those_who_cannot_come_back(fresh: Fresh) {
    let store = fresh.store().await;
    for new in [
        AttestedNode { expires_at: NOW - 1, ..node("/spire/agent/gone1") },
        AttestedNode { expires_at: NOW - 1, ..node("/spire/agent/gone2") },
        AttestedNode { expires_at: NOW - 1, can_reattest: false, ..node("/spire/agent/tofu") },
        AttestedNode { expires_at: NOW - 1, serial_number: String::new(), ..node("/spire/agent/banned") },
        AttestedNode { expires_at: NOW, ..node("/spire/agent/live") },
    ] {
        store.agents().create(new).await.unwrap();
    }
    assert_eq!(
        store.agents().prune(NOW, false, 1).await.unwrap(),
        ["spiffe://example.org/spire/agent/gone1"]
    );
    assert_eq!(
        store.agents().prune(NOW, false, 9).await.unwrap(),
        ["spiffe://example.org/spire/agent/gone2"]
    );
    assert!(store.agents().prune(NOW, false, 9).await.unwrap().is_empty());
    assert_eq!(store.agents().prune(NOW, true, 9).await.unwrap(), ["spiffe://example.org/spire/agent/tofu"]);
    assert_eq!(paths(&store, &ListAgents::default()).await, ["/spire/agent/banned", "/spire/agent/live"]);
    assert_eq!(store.events().latest().await.unwrap().node_event, 8);
}

async fn nodes_are_found_by_ids_and_by_scan(fresh: Fresh) {
    let store = fresh.store().await;
    for i in 0..5 {
        store.agents().create(node(&format!("/spire/agent/{i}"))).await.unwrap();
    }
    let wanted = vec![id("/spire/agent/4"), id("/spire/agent/none"), id("/spire/agent/0")];
    let found = store.agents().by_ids(wanted).await.unwrap();
    assert_eq!(found, [node("/spire/agent/0"), node("/spire/agent/4")]);
    let scan = store.agents().scan(0, 3).await.unwrap();
    assert_eq!((scan.items.len(), scan.next), (3, Some(3)));
    let scan = store.agents().scan(3, 3).await.unwrap();
    assert_eq!((scan.items.len(), scan.next), (2, None));
}
