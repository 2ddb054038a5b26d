use finial_identity::entry::AdditionalAttributes;
use finial_identity::selector::{SelectorMatch, matches};

use super::*;
use crate::store::entries::{EntryUpdate, ListEntries};
use crate::store::tests::engines::{Fresh, on_every_engine};

on_every_engine!(
    every_field_is_stored,
    ids_are_made_and_revision_and_creation_time_are_the_stores,
    a_similar_entry_is_returned_and_left_alone,
    what_must_be_unique_is_told_in_the_words_of_the_database,
    an_unknown_bundle_is_named_and_nothing_stays_behind,
    an_update_without_a_mask_replaces_every_field_but_the_id_and_the_times,
    an_update_changes_the_fields_of_the_mask_alone,
    unknown_attributes_survive_an_update_by_a_client_that_does_not_know_them,
    attributes_have_a_largest_size,
    selectors_of_a_stored_svid_are_of_one_type_after_an_update_too,
    a_deleted_entry_leaves_nothing_but_its_event,
    simple_filters_restrict_and_combine,
    selectors_compare_as_sets_in_every_mode,
    federation_compares_as_sets_in_every_mode,
    long_sets_are_compared_too,
    pages_follow_each_other_and_end_with_an_empty_one,
    page_tokens_are_row_numbers,
    a_scan_reads_everything_once,
    entries_are_found_by_many_ids,
    expired_entries_are_pruned_with_their_events,
);

const MODES: [SelectorMatch; 4] =
    [SelectorMatch::Exact, SelectorMatch::Subset, SelectorMatch::Superset, SelectorMatch::Any];

fn full() -> Entry {
    Entry {
        id: "chosen".to_owned(),
        selectors: selectors(&["unix:uid:1", "unix:gid:2"]),
        x509_svid_ttl: 60,
        jwt_svid_ttl: 30,
        federates_with: vec![td("a.test"), td("b.test")],
        admin: true,
        downstream: true,
        expires_at: NOW + 100,
        dns_names: vec!["z.test".to_owned(), "a.test".to_owned()],
        revision_number: 0,
        store_svid: true,
        hint: "hint".to_owned(),
        created_at: NOW,
        additional_attributes: Some(AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: false,
            unknown: vec![0x18, 0x05],
        }),
        ..entry("/full", &[])
    }
}

async fn paths(store: &Store, list: &ListEntries) -> Vec<String> {
    let page = store.entries().list(list).await.unwrap();
    assert_eq!(store.entries().count(list).await.unwrap(), page.items.len() as u64);
    page.items.iter().map(|entry| entry.spiffe_id.path().to_owned()).collect()
}

async fn every_field_is_stored(fresh: Fresh) {
    let store = fresh.with_bundles(&["b.test", "a.test"]).await;
    let created = store.entries().create(full()).await.unwrap();
    assert!(!created.existing);
    assert_eq!(created.entry, full());
    assert_eq!(store.entries().get("chosen").await.unwrap(), Some(full()));
    assert_eq!(store.entries().get("other").await.unwrap(), None);
}

async fn ids_are_made_and_revision_and_creation_time_are_the_stores(fresh: Fresh) {
    let store = fresh.store().await;
    let given = Entry { revision_number: 9, created_at: 1, ..entry("/w", &["a:1"]) };
    let made = store.entries().create(given).await.unwrap().entry;
    assert_eq!(made.id.len(), 36);
    assert_eq!((made.revision_number, made.created_at), (0, NOW));
}

async fn a_similar_entry_is_returned_and_left_alone(fresh: Fresh) {
    let store = fresh.store().await;
    let first = store.entries().create(entry("/w", &["a:1", "a:2"])).await.unwrap().entry;
    let again = Entry { hint: "new".to_owned(), id: "mine".to_owned(), ..entry("/w", &["a:2", "a:1"]) };
    let again = store.entries().create(again).await.unwrap();
    assert!(again.existing);
    assert_eq!(again.entry, first);
    for different in [
        entry("/w", &["a:1"]),
        entry("/w", &["a:1", "a:2", "a:3"]),
        entry("/other", &["a:1", "a:2"]),
        Entry { parent_id: id("/spire/agent/b"), ..entry("/w", &["a:1", "a:2"]) },
    ] {
        assert!(!store.entries().create(different).await.unwrap().existing);
    }
    assert_eq!(store.events().latest().await.unwrap().entry_event, 5);
}

async fn what_must_be_unique_is_told_in_the_words_of_the_database(fresh: Fresh) {
    let store = fresh.store().await;
    store.entries().create(Entry { id: "x".to_owned(), ..entry("/w", &["a:1"]) }).await.unwrap();
    let same_id = Entry { id: "x".to_owned(), ..entry("/other", &["a:1"]) };
    let twice = vec![Selector::parse("a:1").unwrap(); 2];
    let same_selector = Entry { selectors: twice, ..entry("/other", &[]) };
    let same_name = Entry { dns_names: vec!["a".to_owned(); 2], ..entry("/other", &["a:1"]) };
    for (wrong, columns, index, mysql) in [
        (
            same_id,
            "registered_entries.entry_id",
            "uix_registered_entries_entry_id",
            "'x' for key 'uix_registered_entries_entry_id'",
        ),
        (
            same_selector,
            "selectors.registered_entry_id, selectors.type, selectors.value",
            "idx_selector_entry",
            "'-a-1' for key 'idx_selector_entry'",
        ),
        (
            same_name,
            "dns_names.registered_entry_id, dns_names.value",
            "idx_dns_entry",
            "'-a' for key 'idx_dns_entry'",
        ),
    ] {
        let error = store.entries().create(wrong).await.unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists(_)), "{error:?}");
        // A row's number, which is another at each try.
        let text = error.to_string().replace(|c: char| c.is_ascii_digit(), "");
        let expected = fresh.taken(columns, index, mysql).replace(|c: char| c.is_ascii_digit(), "");
        assert_eq!(text, expected);
    }
    assert_eq!(store.entries().count(&ListEntries::default()).await.unwrap(), 1);
}

async fn an_unknown_bundle_is_named_and_nothing_stays_behind(fresh: Fresh) {
    let store = fresh.with_bundles(&["a.test"]).await;
    let wrong = Entry { federates_with: vec![td("a.test"), td("x")], ..entry("/w", &["a:1"]) };
    let error = store.entries().create(wrong.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "unable to find federated bundle \"spiffe://x\"");
    let kept = store.entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    assert!(store.entries().update(&kept.id, EntryUpdate::all(wrong)).await.is_err());
    assert_eq!(store.entries().get(&kept.id).await.unwrap(), Some(kept));
    assert_eq!(store.events().latest().await.unwrap().entry_event, 1);
}

async fn an_update_without_a_mask_replaces_every_field_but_the_id_and_the_times(fresh: Fresh) {
    let store = fresh.with_bundles(&["a.test", "b.test"]).await;
    let old = store.entries().create(entry("/old", &["a:1"])).await.unwrap().entry;
    let updated = store.entries().update(&old.id, EntryUpdate::all(full())).await.unwrap();
    assert_eq!(
        updated,
        Entry { id: old.id.clone(), revision_number: 1, created_at: old.created_at, ..full() }
    );
    let back = store.entries().update(&old.id, EntryUpdate::all(old.clone())).await.unwrap();
    assert_eq!(back, Entry { revision_number: 2, ..old });
}

async fn an_update_changes_the_fields_of_the_mask_alone(fresh: Fresh) {
    let store = fresh.with_bundles(&["a.test", "b.test"]).await;
    store.entries().create(full()).await.unwrap();
    type Expect = fn(&mut Entry);
    let steps: Vec<(EntryUpdate, Expect)> = vec![
        (EntryUpdate::default(), |_| {}),
        (EntryUpdate { spiffe_id: Some(id("/new")), ..Default::default() }, |e| e.spiffe_id = id("/new")),
        (EntryUpdate { parent_id: Some(id("/p")), ..Default::default() }, |e| e.parent_id = id("/p")),
        (EntryUpdate { selectors: Some(selectors(&["b:1"])), ..Default::default() }, |e| {
            e.selectors = selectors(&["b:1"])
        }),
        (EntryUpdate { x509_svid_ttl: Some(1), ..Default::default() }, |e| e.x509_svid_ttl = 1),
        (EntryUpdate { jwt_svid_ttl: Some(2), ..Default::default() }, |e| e.jwt_svid_ttl = 2),
        (EntryUpdate { federates_with: Some(vec![td("b.test")]), ..Default::default() }, |e| {
            e.federates_with = vec![td("b.test")];
        }),
        (EntryUpdate { admin: Some(false), ..Default::default() }, |e| e.admin = false),
        (EntryUpdate { downstream: Some(false), ..Default::default() }, |e| e.downstream = false),
        (EntryUpdate { expires_at: Some(0), ..Default::default() }, |e| e.expires_at = 0),
        (EntryUpdate { dns_names: Some(vec!["q".to_owned()]), ..Default::default() }, |e| {
            e.dns_names = vec!["q".to_owned()]
        }),
        (EntryUpdate { store_svid: Some(false), ..Default::default() }, |e| e.store_svid = false),
        (EntryUpdate { hint: Some(String::new()), ..Default::default() }, |e| e.hint.clear()),
        (EntryUpdate { additional_attributes: Some(None), ..Default::default() }, |e| {
            e.additional_attributes = None
        }),
    ];
    let mut expected = full();
    for (update, expect) in steps {
        let told = format!("{update:?}");
        expect(&mut expected);
        expected.revision_number += 1;
        assert_eq!(store.entries().update("chosen", update).await.unwrap(), expected, "{told}");
    }
    assert!(matches!(
        store.entries().update("other", EntryUpdate::default()).await,
        Err(StoreError::NotFound(text)) if text == "datastore-sql: record not found"
    ));
}

async fn unknown_attributes_survive_an_update_by_a_client_that_does_not_know_them(fresh: Fresh) {
    let store = fresh.with_bundles(&["a.test", "b.test"]).await;
    store.entries().create(full()).await.unwrap();
    let known = AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() };
    let update = EntryUpdate { additional_attributes: Some(Some(known.clone())), ..Default::default() };
    let updated = store.entries().update("chosen", update).await.unwrap();
    assert_eq!(
        updated.additional_attributes,
        Some(AdditionalAttributes { unknown: vec![0x18, 0x05], ..known })
    );
}

async fn attributes_have_a_largest_size(fresh: Fresh) {
    let store = fresh.store().await;
    let unknown = vec![0x18; 65_535];
    let large = AdditionalAttributes { disable_x509_svid_prefetch: true, unknown, ..Default::default() };
    let error =
        store.entries().create(Entry { additional_attributes: Some(large), ..entry("/w", &["a:1"]) }).await;
    let text = error.unwrap_err().to_string();
    assert!(
        text.starts_with("datastore-validation: invalid registration entry: additional attributes size"),
        "{text}"
    );
}

async fn selectors_of_a_stored_svid_are_of_one_type_after_an_update_too(fresh: Fresh) {
    let store = fresh.store().await;
    let mixed = store.entries().create(entry("/w", &["a:1", "b:1"])).await.unwrap().entry;
    let update = EntryUpdate { store_svid: Some(true), ..Default::default() };
    let error = store.entries().update(&mixed.id, update.clone()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "datastore-validation: invalid registration entry: selector types must be the same when store SVID is enabled"
    );
    let update = EntryUpdate { selectors: Some(selectors(&["a:1", "a:2"])), ..update };
    assert!(store.entries().update(&mixed.id, update).await.unwrap().store_svid);
}

async fn a_deleted_entry_leaves_nothing_but_its_event(fresh: Fresh) {
    let store = fresh.with_bundles(&["a.test", "b.test"]).await;
    store.entries().create(full()).await.unwrap();
    store.entries().delete("chosen").await.unwrap();
    assert_eq!(store.entries().get("chosen").await.unwrap(), None);
    assert!(matches!(store.entries().delete("chosen").await, Err(StoreError::NotFound(_))));
    let left = store.write(|sql| {
        let mut left = 0;
        for table in ["registered_entries", "selectors", "dns_names", "federated_registration_entries"] {
            left += sql.number(&format!("SELECT COUNT(*) FROM {table}"), &[])?;
        }
        Ok(left)
    });
    assert_eq!(left.await.unwrap(), 0);
    let events = store.events().entries_after(0).await.unwrap();
    assert_eq!(events.iter().map(|event| event.entry_id.as_str()).collect::<Vec<_>>(), ["chosen", "chosen"]);
}

async fn simple_filters_restrict_and_combine(fresh: Fresh) {
    let store = fresh.store().await;
    let parent = id("/spire/agent/b");
    for new in [
        entry("/1", &["a:1"]),
        Entry { parent_id: parent.clone(), ..entry("/1", &["a:1"]) },
        Entry { parent_id: parent.clone(), downstream: true, ..entry("/2", &["a:1"]) },
        Entry { hint: "h".to_owned(), ..entry("/3", &["a:1"]) },
    ] {
        store.entries().create(new).await.unwrap();
    }
    let all = ListEntries::default();
    assert_eq!(paths(&store, &all).await, ["/1", "/1", "/2", "/3"]);
    let by_id = ListEntries { spiffe_id: Some(id("/1")), ..all.clone() };
    assert_eq!(paths(&store, &by_id).await, ["/1", "/1"]);
    let by_parent = ListEntries { parent_id: Some(parent.clone()), ..all.clone() };
    assert_eq!(paths(&store, &by_parent).await, ["/1", "/2"]);
    let by_both = ListEntries { parent_id: Some(parent), spiffe_id: Some(id("/1")), ..all.clone() };
    assert_eq!(paths(&store, &by_both).await, ["/1"]);
    assert_eq!(paths(&store, &ListEntries { hint: Some("h".to_owned()), ..all.clone() }).await, ["/3"]);
    assert_eq!(paths(&store, &ListEntries { hint: Some(String::new()), ..all.clone() }).await.len(), 4);
    assert_eq!(paths(&store, &ListEntries { downstream: true, ..all.clone() }).await, ["/2"]);
    assert_eq!(paths(&store, &ListEntries { downstream: false, ..all }).await.len(), 4);
    assert_eq!(store.entries().with_spiffe_id(&id("/1")).await.unwrap().len(), 2);
}

async fn selectors_compare_as_sets_in_every_mode(fresh: Fresh) {
    let store = fresh.store().await;
    let sets: [&[&str]; 6] =
        [&["a:1"], &["a:2"], &["a:1", "a:2"], &["a:1", "b:1"], &["a:1", "a:2", "b:1"], &["b:1", "c:9"]];
    for (i, set) in sets.iter().enumerate() {
        store.entries().create(entry(&format!("/{i}"), set)).await.unwrap();
    }
    let given: [&[&str]; 7] = [
        &["a:1"],
        &["a:1", "a:2"],
        &["a:2", "a:1", "a:1"],
        &["b:1", "a:1", "a:2"],
        &["c:9"],
        &["d:1"],
        &["a:1", "d:1"],
    ];
    for mode in MODES {
        for given in given {
            let given = selectors(given);
            let expected = sets.iter().enumerate().filter(|(_, set)| matches(mode, &selectors(set), &given));
            let expected: Vec<_> = expected.map(|(i, _)| format!("/{i}")).collect();
            let list = ListEntries { selectors: Some((mode, given.clone())), ..Default::default() };
            assert_eq!(paths(&store, &list).await, expected, "{mode:?} {given:?}");
        }
        let list = ListEntries { selectors: Some((mode, Vec::new())), ..Default::default() };
        let error = store.entries().list(&list).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot list by empty selector set");
        assert!(matches!(store.entries().count(&list).await, Err(StoreError::InvalidArgument(_))));
    }
}

async fn federation_compares_as_sets_in_every_mode(fresh: Fresh) {
    let names = ["a.test", "b.test", "c.test"];
    let store = fresh.with_bundles(&names).await;
    let sets: [&[&str]; 5] =
        [&[], &["a.test"], &["b.test"], &["a.test", "b.test"], &["a.test", "b.test", "c.test"]];
    let trust_domains = |names: &[&str]| sorted(names.iter().map(|name| td(name)).collect());
    for (i, set) in sets.iter().enumerate() {
        let new = Entry { federates_with: trust_domains(set), ..entry(&format!("/{i}"), &["a:1"]) };
        store.entries().create(new).await.unwrap();
    }
    let given: [&[&str]; 5] =
        [&["a.test"], &["a.test", "b.test"], &["b.test", "b.test"], &["c.test", "d.test"], &["d.test"]];
    for mode in MODES {
        for given in given {
            let given = trust_domains(given);
            // An entry that federates with nobody is in no list.
            let found = |set: &&[&str]| !set.is_empty() && matches(mode, &trust_domains(set), &given);
            let expected = sets.iter().enumerate().filter(|(_, set)| found(set));
            let expected: Vec<_> = expected.map(|(i, _)| format!("/{i}")).collect();
            let list = ListEntries { federates_with: Some((mode, given.clone())), ..Default::default() };
            assert_eq!(paths(&store, &list).await, expected, "{mode:?} {given:?}");
        }
    }
    let both = ListEntries {
        federates_with: Some((SelectorMatch::Any, vec![td("b.test")])),
        selectors: Some((SelectorMatch::Exact, selectors(&["a:1"]))),
        parent_id: Some(id("/spire/agent/a")),
        ..Default::default()
    };
    assert_eq!(paths(&store, &both).await, ["/2", "/3", "/4"]);
}

async fn long_sets_are_compared_too(fresh: Fresh) {
    let store = fresh.store().await;
    let many: Vec<_> = (0..1500).map(|i| Selector::new("a", format!("{i}")).unwrap()).collect();
    let new = Entry { selectors: sorted(many.clone()), ..entry("/w", &[]) };
    store.entries().create(new).await.unwrap();
    for mode in MODES {
        let list = ListEntries { selectors: Some((mode, many.clone())), ..Default::default() };
        assert_eq!(paths(&store, &list).await, ["/w"], "{mode:?}");
    }
}

async fn pages_follow_each_other_and_end_with_an_empty_one(fresh: Fresh) {
    let store = fresh.store().await;
    for i in 0..5 {
        store
            .entries()
            .create(Entry { downstream: i % 2 == 0, ..entry(&format!("/{i}"), &["a:1"]) })
            .await
            .unwrap();
    }
    for (downstream, expected) in [
        (false, vec![vec!["/0", "/1"], vec!["/2", "/3"], vec!["/4"], vec![]]),
        (true, vec![vec!["/0", "/2"], vec!["/4"], vec![]]),
    ] {
        let mut token = String::new();
        for (i, page) in expected.iter().enumerate() {
            let page_request = PageRequest { token, size: 2 };
            let list = ListEntries { page: Some(page_request), downstream, ..Default::default() };
            let found = store.entries().list(&list).await.unwrap();
            assert_eq!(found.items.iter().map(|entry| entry.spiffe_id.path()).collect::<Vec<_>>(), *page);
            assert_eq!(found.next_token.is_empty(), i + 1 == expected.len());
            token = found.next_token;
        }
    }
    assert_eq!(store.entries().list(&ListEntries::default()).await.unwrap().next_token, "");
}

async fn page_tokens_are_row_numbers(fresh: Fresh) {
    let store = fresh.store().await;
    store.entries().create(entry("/w", &["a:1"])).await.unwrap();
    let list = |token: &str, size| ListEntries {
        page: Some(PageRequest { token: token.to_owned(), size }),
        ..Default::default()
    };
    assert_eq!(store.entries().list(&list("0", 1)).await.unwrap().next_token, "1");
    assert!(store.entries().list(&list("18446744073709551615", 1)).await.unwrap().items.is_empty());
    for token in ["x", "-1", "+1", "1 ", "18446744073709551616", "1.0"] {
        let error = store.entries().list(&list(token, 1)).await.unwrap_err();
        assert!(matches!(error, StoreError::InvalidArgument(_)));
        assert_eq!(error.to_string(), format!("could not parse token '{token}'"));
    }
    let error = store.entries().list(&list("", 0)).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot paginate with pagesize = 0");
}

async fn a_scan_reads_everything_once(fresh: Fresh) {
    let store = fresh.store().await;
    for i in 0..7 {
        store.entries().create(entry(&format!("/{i}"), &["a:1"])).await.unwrap();
    }
    store
        .entries()
        .delete(store.entries().with_spiffe_id(&id("/3")).await.unwrap()[0].id.clone())
        .await
        .unwrap();
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let scan = store.entries().scan(after, 2).await.unwrap();
        seen.extend(scan.items.into_iter().map(|entry| entry.spiffe_id.path().to_owned()));
        match scan.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(seen, ["/0", "/1", "/2", "/4", "/5", "/6"]);
}

async fn entries_are_found_by_many_ids(fresh: Fresh) {
    let store = fresh.store().await;
    let mut ids = Vec::new();
    for i in 0..30 {
        ids.push(store.entries().create(entry(&format!("/{i}"), &["a:1", "b:2"])).await.unwrap().entry.id);
    }
    let mut wanted: Vec<_> = ids.iter().step_by(13).rev().cloned().collect();
    wanted.extend((0..2500).map(|i| format!("missing-{i}")));
    let found = store.entries().by_ids(wanted).await.unwrap();
    assert_eq!(found.iter().map(|entry| entry.spiffe_id.path()).collect::<Vec<_>>(), ["/0", "/13", "/26"]);
    assert!(found.iter().all(|entry| entry.selectors.len() == 2));
    assert!(store.entries().by_ids(Vec::new()).await.unwrap().is_empty());
}

async fn expired_entries_are_pruned_with_their_events(fresh: Fresh) {
    let store = fresh.store().await;
    for (path, expires_at) in [("/never", 0), ("/past", NOW - 1), ("/now", NOW), ("/later", NOW + 1)] {
        let new = Entry { id: path.trim_start_matches('/').to_owned(), expires_at, ..entry(path, &["a:1"]) };
        store.entries().create(new).await.unwrap();
    }
    assert_eq!(store.entries().prune_expired(NOW).await.unwrap(), ["past"]);
    assert_eq!(paths(&store, &ListEntries::default()).await, ["/never", "/now", "/later"]);
    assert_eq!(store.events().entries_after(4).await.unwrap()[0].entry_id, "past");
    assert!(store.entries().prune_expired(NOW).await.unwrap().is_empty());
}
