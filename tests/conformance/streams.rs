//! Long-lived streams of the Workload API: what is pushed, when, and to whom.

use std::collections::BTreeSet;
use std::time::Duration;

use finial_identity::x509_svid::AuthorityCertificate;
use finial_proto::spire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest,
};
use finial_proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use finial_proto::spire::api::server::trustdomain::v1::BatchCreateFederationRelationshipRequest;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use finial_tests::person::Person;
use finial_tests::world::{World, id, my_uid};
use tonic::Code;

/// Gives the server the bundle of another trust domain, with a new root, and returns the root (DER).
pub async fn federate(world: &World, trust_domain: &str) -> Vec<u8> {
    let (bundle, root) = foreign(trust_domain);
    let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
    let results = world.bundles().batch_set_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().code, Code::Ok as i32);
    root
}

/// Has the server keep a relationship with another trust domain, with a bundle with a new root, and returns the root (DER).
async fn relate(world: &World, trust_domain: &str) -> Vec<u8> {
    let (bundle, root) = foreign(trust_domain);
    let relationship = types::FederationRelationship {
        trust_domain: trust_domain.to_owned(),
        bundle_endpoint_url: format!("https://{trust_domain}/"),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
        trust_domain_bundle: Some(bundle),
    };
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![relationship],
        output_mask: None,
    };
    let mut client = TrustDomainClient::new(world.admin());
    let answer = client.batch_create_federation_relationship(request).await.unwrap().into_inner();
    assert_eq!(answer.results[0].status.as_ref().unwrap().code, Code::Ok as i32);
    root
}

/// The bundle of another trust domain with a new root, and the root (DER).
fn foreign(trust_domain: &str) -> (types::Bundle, Vec<u8>) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names.push(rcgen::SanType::URI(uri.as_str().try_into().unwrap()));
    let root = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let bundle = types::Bundle {
        trust_domain: uri,
        x509_authorities: vec![types::X509Certificate { asn1: root.clone(), tainted: false }],
        ..types::Bundle::default()
    };
    (bundle, root)
}

/// U26 and U27: a stream shows what its caller gains and loses, ends with the last identity, and others see nothing.
#[tokio::test(start_paused = true)]
async fn gains_and_losses_are_shown_to_whom_they_concern() {
    let world = World::new().await;
    let node = world.node("node").await;
    let (one, two) = (Person::new(world.folder.path(), "1001"), Person::new(world.folder.path(), "1002"));
    let mut entries = Vec::new();
    for name in ["e1", "e2"] {
        entries.push(world.register("node", name, &[one.selector()]).await);
    }
    world.register("node", "e3", &[two.selector()]).await;
    let mut of_one = node.workload(one.pid()).open().await;
    of_one.until(&world.clock, |context| context.names() == ["e1", "e2"]).await;
    let mut of_two = node.workload(two.pid()).open().await;
    assert_eq!(of_two.next(&world.clock).await.names(), ["e3"]);

    entries.push(world.register("node", "e4", &[one.selector()]).await);
    assert_eq!(of_one.next(&world.clock).await.names(), ["e1", "e2", "e4"]);
    for entry in entries {
        world.delete(&entry.id).await;
    }
    let end = loop {
        match of_one.try_next(&world.clock).await {
            Ok(context) => assert!(context.names().len() < 3),
            Err(end) => break end,
        }
    };
    assert_eq!((end.code(), end.message()), (Code::PermissionDenied, "no identity issued"));

    let quiet = tokio::time::timeout(Duration::from_secs(60), of_two.next(&world.clock)).await;
    assert!(quiet.is_err(), "the other caller was sent a message that does not concern it");
}

/// U29: an entry with 20 s to live.
#[tokio::test(start_paused = true)]
async fn short_lived_svids_are_renewed_long_before_they_end() {
    let world = World::new().await;
    let node = world.node("node").await;
    let web = world.register("node", "web", &[my_uid()]).await;
    world.update(types::Entry { x509_svid_ttl: 20, ..web }).await;
    let mut updates = node.me().open().await;
    let mut before = updates.until(&world.clock, |context| lifetime(context.svid("web")) == 30).await;

    let end = world.clock.unix() + 60;
    let (mut serials, mut keys) = (BTreeSet::new(), BTreeSet::new());
    while world.clock.unix() < end {
        let context = updates.next(&world.clock).await;
        let (svid, old) = (context.svid("web"), before.svid("web"));
        assert!(world.clock.now() < old.not_after(), "the SVID before had ended when this one came");
        assert!(serials.insert(svid.serial_decimal()) && svid.serial_decimal() != old.serial_decimal());
        assert!(keys.insert(svid.public_key_der().to_vec()) && svid.public_key_der() != old.public_key_der());
        before = context;
    }
    assert!(serials.len() >= 4, "{} messages in 60 s", serials.len());
}

fn lifetime(svid: &finial_identity::x509_svid::X509Svid) -> u64 {
    svid.not_after().duration_since(svid.not_before()).unwrap().as_secs()
}

/// U30: over a rotation of the CA the new root comes first, and the old one stays while anything stands on it.
#[tokio::test(start_paused = true)]
async fn roots_come_before_and_go_after_what_stands_on_them() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let mut leaves = Vec::new();
    let mut shown_before = BTreeSet::new();
    let mut issuers = BTreeSet::new();
    let end = world.clock.unix() + 30 * 3600;
    while world.clock.unix() < end {
        let context = updates.next(&world.clock).await;
        let roots: BTreeSet<String> = context
            .bundle
            .iter()
            .map(|der| AuthorityCertificate::read(der).unwrap().authority_id())
            .collect();
        let svid = context.svid("web");
        let issuer = svid.authority_key_id().unwrap();
        if issuers.insert(issuer.clone()) && issuers.len() > 1 {
            assert!(shown_before.contains(&issuer), "a leaf came with its root instead of after it");
        }
        leaves.push((svid.not_after(), issuer));
        leaves.retain(|(not_after, _)| world.clock.now() < *not_after);
        for (_, issuer) in &leaves {
            assert!(roots.contains(issuer), "the root of an SVID that is still valid has gone");
        }
        shown_before = roots;
    }
    assert_eq!(issuers.len(), 2);
}

/// U45: federation is added and taken away, and the bundle of the other trust domain changes meanwhile.
#[tokio::test(start_paused = true)]
async fn federated_bundles_come_change_and_go() {
    let world = World::new().await;
    let node = world.node("node").await;
    let web = world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    assert!(updates.next(&world.clock).await.federated.is_empty());
    const OTHER: &str = "spiffe://other.test";

    let root = federate(&world, "other.test").await;
    let friend = types::Entry { federates_with: vec!["other.test".to_owned()], ..web.clone() };
    world.update(friend).await;
    let context = updates.until(&world.clock, |context| !context.federated.is_empty()).await;
    assert_eq!(context.federated.keys().collect::<Vec<_>>(), [OTHER]);
    assert_eq!(context.federated[OTHER], [root]);
    assert_eq!(context.bundle.len(), 1, "the own bundle holds the own root alone");

    let root = federate(&world, "other.test").await;
    updates.until(&world.clock, |context| context.federated[OTHER] == [root.clone()]).await;
    let root = relate(&world, "other.test").await;
    updates.until(&world.clock, |context| context.federated[OTHER] == [root.clone()]).await;

    world.update(web.clone()).await;
    updates.until(&world.clock, |context| context.federated.is_empty()).await;

    // The bundle itself is deleted, and with it what the entry says of it.
    world.update(types::Entry { federates_with: vec!["other.test".to_owned()], ..web }).await;
    updates.until(&world.clock, |context| !context.federated.is_empty()).await;
    let dissociate =
        BatchDeleteFederatedBundleRequest { trust_domains: vec!["other.test".to_owned()], mode: 2 };
    world.bundles().batch_delete_federated_bundle(dissociate).await.unwrap();
    updates.until(&world.clock, |context| context.federated.is_empty()).await;
}

/// U50, first half: five hundred identities for one caller come in one message that any client takes.
#[tokio::test(start_paused = true)]
async fn five_hundred_identities_come_in_one_message() {
    let world = World::new().await;
    let node = world.node("node").await;
    let (kind, value) = ("unix".to_owned(), my_uid()["unix:".len()..].to_owned());
    let entries = (0..500).map(|n| types::Entry {
        spiffe_id: Some(id(&format!("w{n}"))),
        parent_id: Some(id("node")),
        selectors: vec![types::Selector { r#type: kind.clone(), value: value.clone() }],
        ..types::Entry::default()
    });
    let request = BatchCreateEntryRequest { entries: entries.collect(), output_mask: None };
    let answer = world.entries().batch_create_entry(request).await.unwrap().into_inner();
    assert!(answer.results.iter().all(|result| result.status.as_ref().unwrap().code == 0));
    let mut updates = node.me().open().await;
    let context = updates.until(&world.clock, |context| context.svids.len() == 500).await;
    let keys: BTreeSet<_> = context.svids.values().map(|svid| svid.public_key_der().to_vec()).collect();
    assert_eq!(keys.len(), 500);
    // A new stream gets them all at once; gRPC clients refuse messages of more than 4 MiB unless told otherwise.
    assert_eq!(node.me().fetch(&world.clock).await.svids.len(), 500);
}

/// U50, second half: two hundred streams, half of them on one connection.
#[tokio::test(start_paused = true)]
async fn two_hundred_streams_are_all_served() {
    let world = World::new().await;
    let node = world.node("node").await;
    let web = world.register("node", "web", &[my_uid()]).await;
    node.me().fetch(&world.clock).await;
    let together = node.me();
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(together.try_open().await.unwrap());
        streams.push(node.me().try_open().await.unwrap());
    }
    assert_eq!(node.handles.cache.stats().subscribers, 200);
    let named = types::Entry { dns_names: vec!["web.example.org".to_owned()], ..web };
    world.update(named).await;
    let waiting = streams.iter_mut().map(|stream| async {
        stream.until(&world.clock, |context| context.svid("web").dns_names() == ["web.example.org"]).await
    });
    assert_eq!(futures::future::join_all(waiting).await.len(), 200);
    drop((streams, together));
    let gone = async {
        while node.handles.cache.stats().subscribers > 0 {
            world.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("streams that are closed leave nothing");
}
