use finial_identity::bundle::{JwtAuthority, X509Authority};

use super::*;
use crate::store::bundles::{BundleUpdate, DeleteMode};
use crate::store::entries::ListEntries;
use crate::store::tests::engines::{Fresh, on_every_engine};

on_every_engine!(
    bundles_are_created_found_listed_and_counted,
    the_stored_name_is_a_spiffe_id_as_spire_has_it,
    an_update_changes_the_fields_of_the_mask_alone,
    set_replaces_and_append_adds,
    taints_and_revocations_are_stored_with_the_sequence_number,
    pruning_a_missing_bundle_is_nothing_and_a_broken_certificate_is_named,
    an_edit_that_fails_changes_nothing,
    the_delete_mode_decides_over_federated_entries,
    unknown_fields_of_a_stored_bundle_survive_every_change,
);

fn key(id: &str) -> JwtAuthority {
    JwtAuthority { key_id: id.to_owned(), public_key: vec![1, 2, 3], expires_at: NOW, tainted: false }
}

fn bundle(name: &str) -> Bundle {
    Bundle {
        x509_authorities: vec![X509Authority { der: vec![1, 2], tainted: false }],
        jwt_authorities: vec![key("a")],
        refresh_hint: 60,
        sequence_number: 7,
        ..Bundle::new(td(name))
    }
}

async fn bundles_are_created_found_listed_and_counted(fresh: Fresh) {
    let store = fresh.store().await;
    for name in ["b.test", "a.test", "c.test"] {
        assert_eq!(store.bundles().create(bundle(name)).await.unwrap(), bundle(name));
    }
    assert_eq!(store.bundles().get(&td("a.test")).await.unwrap(), Some(bundle("a.test")));
    assert_eq!(store.bundles().get(&td("d.test")).await.unwrap(), None);
    assert_eq!(store.bundles().count().await.unwrap(), 3);
    let error = store.bundles().create(bundle("a.test")).await.unwrap_err();
    let taken = fresh.taken(
        "bundles.trust_domain",
        "uix_bundles_trust_domain",
        "'spiffe://a.test' for key 'uix_bundles_trust_domain'",
    );
    assert_eq!(error.to_string(), taken);

    let all = store.bundles().list(None).await.unwrap();
    assert_eq!(all.items, [bundle("b.test"), bundle("a.test"), bundle("c.test")]);
    assert_eq!(all.next_token, "");
    let page = |token: &str| PageRequest { token: token.to_owned(), size: 2 };
    let first = store.bundles().list(Some(&page(""))).await.unwrap();
    assert_eq!((first.items.len(), first.next_token.as_str()), (2, "2"));
    let second = store.bundles().list(Some(&page("2"))).await.unwrap();
    assert_eq!((second.items.len(), second.next_token.as_str()), (1, "3"));
    assert_eq!(store.bundles().list(Some(&page("3"))).await.unwrap().next_token, "");
    assert!(store.bundles().list(Some(&page("x"))).await.is_err());
}

async fn the_stored_name_is_a_spiffe_id_as_spire_has_it(fresh: Fresh) {
    let store = fresh.with_bundles(&["a.test"]).await;
    let name = store.read(|sql| sql.row("SELECT trust_domain FROM bundles", &[], |row| row.text(0))).await;
    assert_eq!(name.unwrap().as_deref(), Some("spiffe://a.test"));
}

async fn an_update_changes_the_fields_of_the_mask_alone(fresh: Fresh) {
    let store = fresh.store().await;
    store.bundles().create(bundle("a.test")).await.unwrap();
    let mut expected = bundle("a.test");
    let authority = X509Authority { der: vec![9], tainted: true };
    type Expect = fn(&mut Bundle);
    let steps: Vec<(BundleUpdate, Expect)> = vec![
        (BundleUpdate::default(), |_| {}),
        (BundleUpdate { x509_authorities: Some(vec![authority]), ..Default::default() }, |b| {
            b.x509_authorities = vec![X509Authority { der: vec![9], tainted: true }];
        }),
        (BundleUpdate { jwt_authorities: Some(vec![key("z")]), ..Default::default() }, |b| {
            b.jwt_authorities = vec![key("z")]
        }),
        (BundleUpdate { wit_authorities: Some(vec![key("w")]), ..Default::default() }, |b| {
            b.wit_authorities = vec![key("w")]
        }),
        (BundleUpdate { refresh_hint: Some(5), ..Default::default() }, |b| b.refresh_hint = 5),
        (BundleUpdate { sequence_number: Some(99), ..Default::default() }, |b| b.sequence_number = 99),
    ];
    for (update, expect) in steps {
        expect(&mut expected);
        assert_eq!(store.bundles().update(&td("a.test"), update).await.unwrap(), expected);
    }
    assert_eq!(store.bundles().get(&td("a.test")).await.unwrap(), Some(expected));
    let missing = store.bundles().update(&td("x"), BundleUpdate::default()).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
}

async fn set_replaces_and_append_adds(fresh: Fresh) {
    let store = fresh.store().await;
    store.bundles().set(bundle("a.test")).await.unwrap();
    let other = Bundle { jwt_authorities: vec![key("b")], sequence_number: 1, ..bundle("a.test") };
    store.bundles().set(other.clone()).await.unwrap();
    assert_eq!(store.bundles().get(&td("a.test")).await.unwrap(), Some(other));

    let appended = store.bundles().append(bundle("a.test")).await.unwrap();
    assert_eq!(appended.jwt_authorities, [key("b"), key("a")]);
    assert_eq!((appended.x509_authorities.len(), appended.sequence_number), (1, 2));
    assert_eq!(store.bundles().append(bundle("a.test")).await.unwrap().sequence_number, 2);
    assert_eq!(store.bundles().append(bundle("new.test")).await.unwrap(), bundle("new.test"));
    assert_eq!(store.bundles().count().await.unwrap(), 2);
}

async fn taints_and_revocations_are_stored_with_the_sequence_number(fresh: Fresh) {
    let store = fresh.store().await;
    let a = td("a.test");
    store.bundles().create(bundle("a.test")).await.unwrap();
    let text = |error: StoreError| error.to_string();
    let untainted = store.bundles().revoke_jwt(&a, "a").await.unwrap_err();
    assert!(matches!(untainted, StoreError::InvalidArgument(_)));
    assert_eq!(text(untainted), "it is not possible to revoke an untainted key");
    let (tainted, after) = store.bundles().taint_jwt(&a, "a").await.unwrap();
    assert!(tainted.tainted);
    assert_eq!(after.sequence_number, 8);
    assert_eq!(text(store.bundles().taint_jwt(&a, "a").await.unwrap_err()), "key is already tainted");
    let missing = store.bundles().taint_jwt(&a, "b").await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound(_)));
    assert_eq!(text(missing), "no JWT Key found with provided key ID");
    let (_, after) = store.bundles().revoke_jwt(&a, "a").await.unwrap();
    assert_eq!((after.sequence_number, after.jwt_authorities.len()), (9, 0));
    assert_eq!(store.bundles().get(&a).await.unwrap(), Some(after));
    assert!(matches!(store.bundles().taint_jwt(&td("x"), "a").await, Err(StoreError::NotFound(_))));
}

async fn pruning_a_missing_bundle_is_nothing_and_a_broken_certificate_is_named(fresh: Fresh) {
    let store = fresh.store().await;
    let expired_by = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs());
    assert_eq!(store.bundles().prune(&td("a.test"), expired_by).await.unwrap(), None);
    store.bundles().create(bundle("a.test")).await.unwrap();
    let error = store.bundles().prune(&td("a.test"), expired_by).await.unwrap_err();
    assert!(error.to_string().starts_with("prune failed: cannot parse certificates"), "{error}");
    assert_eq!(store.bundles().get(&td("a.test")).await.unwrap(), Some(bundle("a.test")));
}

async fn an_edit_that_fails_changes_nothing(fresh: Fresh) {
    let store = fresh.store().await;
    store.bundles().create(bundle("a.test")).await.unwrap();
    let fail = |bundle: &mut Bundle| {
        bundle.sequence_number = 1000;
        Err::<(), _>(StoreError::FailedPrecondition("no".to_owned()))
    };
    let edited = store.bundles().edit(&td("a.test"), fail).await;
    assert_eq!(edited.unwrap_err().to_string(), "no");
    assert_eq!(store.bundles().get(&td("a.test")).await.unwrap(), Some(bundle("a.test")));
}

async fn the_delete_mode_decides_over_federated_entries(fresh: Fresh) {
    let a = td("a.test");
    for (mode, federated_left, total_left) in
        [(DeleteMode::Restrict, 2, 3), (DeleteMode::Delete, 0, 1), (DeleteMode::Dissociate, 0, 3)]
    {
        let store = fresh.with_bundles(&["a.test", "b.test"]).await;
        for (i, names) in [&["a.test"][..], &["a.test", "b.test"], &["b.test"]].iter().enumerate() {
            let federates_with = names.iter().map(|name| td(name)).collect();
            let new = Entry { id: format!("e{i}"), federates_with, ..entry(&format!("/{i}"), &["a:1"]) };
            store.entries().create(new).await.unwrap();
        }
        let deleted = store.bundles().delete(&a, mode).await;
        match mode {
            DeleteMode::Restrict => {
                let error = deleted.unwrap_err();
                assert!(matches!(error, StoreError::FailedPrecondition(_)));
                assert_eq!(
                    error.to_string(),
                    "datastore-sql: cannot delete bundle; federated with 2 registration entries"
                );
            }
            _ => {
                deleted.unwrap();
                let events = store.events().entries_after(3).await.unwrap();
                assert_eq!(events.iter().map(|e| e.entry_id.as_str()).collect::<Vec<_>>(), ["e0", "e1"]);
            }
        }
        assert_eq!(store.bundles().get(&a).await.unwrap().is_some(), mode == DeleteMode::Restrict);
        let left = store.entries().list(&ListEntries::default()).await.unwrap().items;
        assert_eq!(left.len(), total_left, "{mode:?}");
        assert_eq!(left.iter().filter(|entry| entry.federates_with.contains(&a)).count(), federated_left);
        if mode == DeleteMode::Dissociate {
            assert_eq!(left.iter().map(|entry| entry.revision_number).collect::<Vec<_>>(), [1, 1, 0]);
            assert_eq!(left[1].federates_with, [td("b.test")]);
        }
        assert!(matches!(store.bundles().delete(&td("x"), mode).await, Err(StoreError::NotFound(_))));
        store.bundles().delete(&td("b.test"), DeleteMode::Delete).await.unwrap();
    }
}

async fn unknown_fields_of_a_stored_bundle_survive_every_change(fresh: Fresh) {
    const UNKNOWN: [u8; 6] = [0xd2, 0x05, 0x03, b'n', b'e', b'w'];
    let store = fresh.store().await;
    store.bundles().create(bundle("a.test")).await.unwrap();
    store
        .write(|sql| sql.run("UPDATE bundles SET data = data || ?", dialect::values![&UNKNOWN[..]]))
        .await
        .unwrap();
    store.bundles().taint_jwt(&td("a.test"), "a").await.unwrap();
    store.bundles().append(Bundle { jwt_authorities: vec![key("b")], ..bundle("a.test") }).await.unwrap();
    store.bundles().set(bundle("a.test")).await.unwrap();
    let data =
        store.read(|sql| sql.row("SELECT data FROM bundles", &[], |row| Ok(row.blob(0)?.to_vec()))).await;
    assert!(data.unwrap().unwrap().ends_with(&UNKNOWN));
}
