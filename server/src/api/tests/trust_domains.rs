use finial_proto::spire::api::server::trustdomain::v1 as wire;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile;

use super::bundles::bundle;
use super::*;

fn web(td: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: td.into(),
        bundle_endpoint_url: "https://h/x".into(),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
        trust_domain_bundle: None,
    }
}

fn spiffe(id: &str) -> Option<BundleEndpointProfile> {
    Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: id.into() }))
}

fn with_bundle(td: &str) -> types::FederationRelationship {
    types::FederationRelationship { trust_domain_bundle: Some(bundle(td)), ..web(td) }
}

fn create(
    relationships: Vec<types::FederationRelationship>,
) -> wire::BatchCreateFederationRelationshipRequest {
    wire::BatchCreateFederationRelationshipRequest {
        federation_relationships: relationships,
        output_mask: None,
    }
}

fn update(relationship: types::FederationRelationship) -> wire::BatchUpdateFederationRelationshipRequest {
    wire::BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![relationship],
        input_mask: None,
        output_mask: None,
    }
}

fn get(td: &str) -> wire::GetFederationRelationshipRequest {
    wire::GetFederationRelationshipRequest { trust_domain: td.into(), output_mask: None }
}

#[tokio::test(start_paused = true)]
async fn relationships_live_their_life() {
    let server = Server::start().await;
    let mut client = TrustDomainClient::new(server.local.clone());
    let own =
        types::FederationRelationship { bundle_endpoint_profile: spiffe("spiffe://c.org/x"), ..web("c.org") };
    let request = create(vec![web("spiffe://a.org/ignored"), with_bundle("b.org"), own.clone()]);
    let results = client.batch_create_federation_relationship(request).await.unwrap().into_inner().results;
    let created: Vec<_> = results.into_iter().map(|result| result.federation_relationship.unwrap()).collect();
    assert_eq!(created, [web("a.org"), with_stored("b.org", &created[1]), own.clone()]);

    let list =
        client.list_federation_relationships(wire::ListFederationRelationshipsRequest::default()).await;
    assert_eq!(list.unwrap().into_inner().federation_relationships, created);
    let paged = wire::ListFederationRelationshipsRequest {
        page_size: 2,
        output_mask: Some(types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let page = client.list_federation_relationships(paged.clone()).await.unwrap().into_inner();
    let bare = |td: &str| types::FederationRelationship { bundle_endpoint_profile: None, ..web(td) };
    assert_eq!(
        (page.federation_relationships, page.next_page_token.as_str()),
        (vec![bare("a.org"), bare("b.org")], "2")
    );
    let odd = wire::ListFederationRelationshipsRequest { page_token: "x".into(), ..paged };
    assert_refused(
        client.list_federation_relationships(odd).await,
        Code::Internal,
        "failed to list federation relationships: could not parse token 'x'",
    );

    let changed = types::FederationRelationship { bundle_endpoint_url: "https://h/y".into(), ..web("c.org") };
    let mask = types::FederationRelationshipMask { bundle_endpoint_url: true, ..Default::default() };
    let masked =
        wire::BatchUpdateFederationRelationshipRequest { input_mask: Some(mask), ..update(changed.clone()) };
    let updated = client.batch_update_federation_relationship(masked).await.unwrap().into_inner();
    let only_url = types::FederationRelationship { bundle_endpoint_url: "https://h/y".into(), ..own };
    assert_eq!(updated.results[0].federation_relationship, Some(only_url));
    let updated =
        client.batch_update_federation_relationship(update(changed.clone())).await.unwrap().into_inner();
    assert_eq!(updated.results[0].federation_relationship, Some(changed));
    let kept = client.batch_update_federation_relationship(update(web("b.org"))).await.unwrap().into_inner();
    assert_eq!(
        kept.results[0].federation_relationship,
        Some(created[1].clone()),
        "no bundle leaves the stored one"
    );

    let request = wire::BatchDeleteFederationRelationshipRequest {
        trust_domains: vec![
            "b.org".into(),
            "b.org".into(),
            "spiffe://c.org/x".into(),
            "Z z".into(),
            String::new(),
        ],
    };
    let results = client.batch_delete_federation_relationship(request).await.unwrap().into_inner().results;
    let told: Vec<_> = results
        .iter()
        .map(|r| {
            (
                r.trust_domain.as_str(),
                r.status.as_ref().unwrap().code,
                r.status.as_ref().unwrap().message.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("b.org", 0, "OK"),
            ("b.org", 5, "federation relationship not found"),
            ("c.org", 0, "OK"),
            (
                "Z z",
                3,
                "failed to parse trust domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
            ),
            ("", 3, "missing trust domain"),
        ]
    );
    assert_refused(
        client.get_federation_relationship(get("b.org")).await,
        Code::NotFound,
        "federation relationship does not exist",
    );
    assert!(
        server.handles.store.bundles().count().await.unwrap() == 2,
        "own bundle, and the one of b.org stays"
    );
}

#[tokio::test(start_paused = true)]
async fn wrong_relationships_are_refused_in_the_words_of_spire() {
    let server = Server::start().await;
    let mut client = TrustDomainClient::new(server.local.clone());
    client.batch_create_federation_relationship(create(vec![web("a.org")])).await.unwrap();
    let of_bundle = |of_bundle: types::Bundle| types::FederationRelationship {
        trust_domain_bundle: Some(of_bundle),
        ..web("b.org")
    };
    let broken = types::Bundle {
        x509_authorities: vec![types::X509Certificate { asn1: vec![9], tainted: false }],
        ..bundle("b.org")
    };
    const CONVERT: &str = "failed to convert federation relationship: ";
    let id_letters =
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores";
    let cases = [
        (web("a.org"), 13, "failed to create federation relationship: datastore-sql: UNIQUE constraint failed: federated_trust_domains.trust_domain".to_owned()),
        (web("example.org"), 3, "unable to create federation relationship for server trust domain".to_owned()),
        (web("X"), 3, format!("{CONVERT}failed to parse trust domain: {id_letters}")),
        (types::FederationRelationship { bundle_endpoint_url: "http://x".into(), ..web("b.org") }, 3, format!("{CONVERT}bundle endpoint URL must use the https scheme")),
        (types::FederationRelationship { bundle_endpoint_profile: None, ..web("b.org") }, 3, format!("{CONVERT}unsupported bundle endpoint profile type: <nil>")),
        (types::FederationRelationship { bundle_endpoint_profile: spiffe("x"), ..web("b.org") }, 3, format!("{CONVERT}failed to parse endpoint SPIFFE ID: scheme is missing or invalid")),
        (of_bundle(bundle("X")), 3, format!("{CONVERT}failed to parse bundle: invalid trust domain: {id_letters}")),
        (of_bundle(bundle("e.org")), 3, format!("{CONVERT}trust domain bundle (\"e.org\") must match the trust domain of the federation relationship (\"b.org\")")),
        (of_bundle(broken), 3, format!("{CONVERT}failed to parse bundle: unable to parse X.509 authority: ")),
    ];
    for (given, code, text) in cases {
        let results = client.batch_create_federation_relationship(create(vec![given.clone()])).await;
        let result = results.unwrap().into_inner().results.remove(0);
        let status = result.status.unwrap();
        assert_eq!(status.code, code, "{given:?}: {}", status.message);
        assert!(status.message.starts_with(&text), "{}", status.message);
        assert_eq!(result.federation_relationship, None);
    }
    for td in ["nosuch.org", "example.org"] {
        let results =
            client.batch_update_federation_relationship(update(web(td))).await.unwrap().into_inner().results;
        let status = results[0].status.as_ref().unwrap();
        let text = "failed to update federation relationship: unable to fetch federation relationship: record not found";
        assert_eq!((status.code, status.message.as_str()), (13, text));
    }
    assert_refused_with(
        client.get_federation_relationship(get("Z Z")).await,
        Code::InvalidArgument,
        "failed to parse trust domain: ",
    );
    let refresh = |td: &str| wire::RefreshBundleRequest { trust_domain: td.into() };
    assert_refused(
        client.refresh_bundle(refresh("zz")).await,
        Code::NotFound,
        "no relationship with trust domain \"zz\"",
    );
    assert_refused_with(
        client.refresh_bundle(refresh("Z")).await,
        Code::InvalidArgument,
        "failed to parse trust domain: ",
    );
    assert_refused_with(
        client.refresh_bundle(refresh("spiffe://a.org")).await,
        Code::Unimplemented,
        "failed to refresh bundle: bundle endpoints are not asked yet by this server; ",
    );
}

/// The bundle of a relationship reaches whoever watches bundles at once.
#[tokio::test(start_paused = true)]
async fn bundles_of_relationships_are_shown_to_watchers() {
    let server = Server::start().await;
    let mut shown = server.handles.federated.subscribe();
    let mut client = TrustDomainClient::new(server.local.clone());
    client.batch_create_federation_relationship(create(vec![with_bundle("b.org")])).await.unwrap();
    assert!(shown.has_changed().unwrap());
    let names: Vec<_> = shown.borrow_and_update().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["b.org"]);
}

/// [`with_bundle`] with the keys that `stored` has, which differ in each call.
fn with_stored(td: &str, stored: &types::FederationRelationship) -> types::FederationRelationship {
    let keys = stored.trust_domain_bundle.clone().unwrap();
    let expected = types::Bundle {
        x509_authorities: keys.x509_authorities,
        jwt_authorities: keys.jwt_authorities,
        ..bundle(td)
    };
    types::FederationRelationship { trust_domain_bundle: Some(expected), ..web(td) }
}
