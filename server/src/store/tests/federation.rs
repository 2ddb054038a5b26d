use finial_identity::bundle::X509Authority;

use super::*;
use crate::store::bundles::DeleteMode;
use crate::store::federation::{EndpointProfile, Relationship, RelationshipUpdate};
use crate::store::tests::engines::{Fresh, on_every_engine};

on_every_engine!(
    relationships_are_created_found_listed_and_deleted,
    an_update_changes_what_it_names_and_takes_a_new_bundle,
    a_row_that_makes_no_sense_is_named,
);

fn web(name: &str) -> Relationship {
    Relationship {
        trust_domain: td(name),
        endpoint_url: format!("https://{name}/bundle"),
        profile: EndpointProfile::HttpsWeb,
        bundle: None,
    }
}

fn spiffe(name: &str) -> EndpointProfile {
    EndpointProfile::HttpsSpiffe(td(name).id())
}

fn bundle(name: &str, der: u8) -> Bundle {
    let x509_authorities = vec![X509Authority { der: vec![der], tainted: false }];
    Bundle { x509_authorities, ..Bundle::new(td(name)) }
}

async fn relationships_are_created_found_listed_and_deleted(fresh: Fresh) {
    let store = fresh.store().await;
    let with_bundle =
        Relationship { profile: spiffe("b.test"), bundle: Some(bundle("b.test", 1)), ..web("b.test") };
    assert_eq!(store.federation().create(web("a.test")).await.unwrap(), web("a.test"));
    assert_eq!(store.federation().create(with_bundle.clone()).await.unwrap(), with_bundle);
    assert_eq!(store.bundles().get(&td("b.test")).await.unwrap(), Some(bundle("b.test", 1)));

    let twice = Relationship { bundle: Some(bundle("a.test", 9)), ..web("a.test") };
    let error = store.federation().create(twice).await.unwrap_err();
    let taken = fresh.taken(
        "federated_trust_domains.trust_domain",
        "uix_federated_trust_domains_trust_domain",
        "'a.test' for key 'uix_federated_trust_domains_trust_domain'",
    );
    assert_eq!(error.to_string(), taken);
    assert_eq!(store.bundles().get(&td("a.test")).await.unwrap(), None, "nothing of it is left");

    let all = store.federation().list(None).await.unwrap();
    assert_eq!((all.items, all.next_token.as_str()), (vec![web("a.test"), with_bundle.clone()], ""));
    let page = |token: &str| PageRequest { token: token.to_owned(), size: 1 };
    let first = store.federation().list(Some(&page(""))).await.unwrap();
    assert_eq!((first.items, first.next_token.as_str()), (vec![web("a.test")], "1"));
    let second = store.federation().list(Some(&page("1"))).await.unwrap();
    assert_eq!((second.items, second.next_token.as_str()), (vec![with_bundle], "2"));
    assert_eq!(store.federation().list(Some(&page("2"))).await.unwrap().next_token, "");

    store.federation().delete(&td("b.test")).await.unwrap();
    assert_eq!(store.federation().get(&td("b.test")).await.unwrap(), None);
    assert!(store.bundles().get(&td("b.test")).await.unwrap().is_some(), "the bundle stays");
    let again = store.federation().delete(&td("b.test")).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))));
}

async fn an_update_changes_what_it_names_and_takes_a_new_bundle(fresh: Fresh) {
    let store = fresh.store().await;
    store.federation().create(Relationship { profile: spiffe("e.test"), ..web("a.test") }).await.unwrap();
    let mut expected = Relationship { profile: spiffe("e.test"), ..web("a.test") };
    type Expect = fn(&mut Relationship);
    let steps: [(RelationshipUpdate, Expect); 4] = [
        (RelationshipUpdate::default(), |_| {}),
        (RelationshipUpdate { endpoint_url: Some("https://x".into()), ..Default::default() }, |r| {
            r.endpoint_url = "https://x".into();
        }),
        (RelationshipUpdate { bundle: Some(bundle("a.test", 3)), ..Default::default() }, |r| {
            r.bundle = Some(bundle("a.test", 3));
        }),
        (RelationshipUpdate { profile: Some(EndpointProfile::HttpsWeb), ..Default::default() }, |r| {
            r.profile = EndpointProfile::HttpsWeb;
        }),
    ];
    for (update, expect) in steps {
        expect(&mut expected);
        assert_eq!(store.federation().update(&td("a.test"), update).await.unwrap(), expected);
        assert_eq!(store.federation().get(&td("a.test")).await.unwrap().as_ref(), Some(&expected));
    }
    let column = "SELECT endpoint_spiffe_id FROM federated_trust_domains";
    let kept = store.read(|sql| sql.row(column, &[], |row| row.text(0))).await.unwrap();
    assert_eq!(kept.as_deref(), Some("spiffe://e.test"), "SPIRE keeps it too");

    store.bundles().delete(&td("a.test"), DeleteMode::Restrict).await.unwrap();
    assert_eq!(store.federation().get(&td("a.test")).await.unwrap().unwrap().bundle, None);
    let missing = store.federation().update(&td("b.test"), RelationshipUpdate::default()).await.unwrap_err();
    assert_eq!(missing.to_string(), "unable to fetch federation relationship: record not found");
}

async fn a_row_that_makes_no_sense_is_named(fresh: Fresh) {
    let store = fresh.store().await;
    for (columns, cause) in [
        (
            "'a.test', 'https://a', 'smoke_signals', ''",
            "unknown bundle endpoint profile type: \"smoke_signals\"",
        ),
        ("'a.test', 'https://a', 'https_spiffe', 'x'", "unable to parse bundle endpoint SPIFFE ID: "),
    ] {
        let insert = format!(
            "DELETE FROM federated_trust_domains; INSERT INTO federated_trust_domains (trust_domain, \
             bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id) VALUES ({columns})"
        );
        store.write(move |sql| sql.script(&insert)).await.unwrap();
        let error = store.federation().list(None).await.unwrap_err().to_string();
        assert!(error.contains("federated_trust_domains") && error.contains(cause), "{error}");
    }
}
