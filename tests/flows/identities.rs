//! A workload connects and is pushed what its entries say.

use finial_daemon::keys::WorkloadKey;
use finial_proto::spire::api::types;
use finial_tests::world::{World, id, my_uid};
use tonic::Code;

#[tokio::test(start_paused = true)]
async fn a_workload_gets_the_identity_of_its_entry() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;

    let context = node.me().fetch(&world.clock).await;
    assert_eq!(context.names(), ["web"]);
    let svid = context.svid("web");
    assert_eq!(svid.chain().len(), 1, "a self-signed CA is not sent along");
    let lifetime = svid.not_after().duration_since(svid.not_before()).unwrap();
    assert_eq!(lifetime.as_secs(), 3600 + 10);
    assert_eq!(context.bundle.len(), 1);
    assert!(context.federated.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_has_no_entry_is_told_so() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "somebody-else", &["unix:uid:4294967294".to_owned()]).await;
    let refused = node.me().try_open().await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "no identity issued"));
}

#[tokio::test(start_paused = true)]
async fn every_change_of_the_entries_is_pushed() {
    let world = World::new().await;
    let node = world.node("node").await;
    let web = world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    assert_eq!(updates.next(&world.clock).await.names(), ["web"]);

    // One more.
    let db = world.register("node", "db", &[my_uid()]).await;
    updates.until(&world.clock, |context| context.names() == ["db", "web"]).await;

    // One changes: a DNS name asks for a new signature.
    let before = node.me().fetch(&world.clock).await.svid("web").serial_decimal();
    world.update(types::Entry { dns_names: vec!["web.example.org".to_owned()], ..web.clone() }).await;
    let after = loop {
        let context = updates.next(&world.clock).await;
        if context.svid("web").serial_decimal() != before {
            break context;
        }
    };
    assert_eq!(after.svid("web").dns_names(), ["web.example.org"]);

    // One goes, then the last: the stream ends.
    world.delete(&db.id).await;
    assert_eq!(updates.next(&world.clock).await.names(), ["web"]);
    world.delete(&web.id).await;
    let end = updates.try_next(&world.clock).await.err().unwrap();
    assert_eq!((end.code(), end.message()), (Code::PermissionDenied, "no identity issued"));
}

#[tokio::test(start_paused = true)]
async fn an_expired_entry_is_served_to_nobody() {
    let world = World::new().await;
    let node = world.node("node").await;
    let ends = world.clock.unix() + 300;
    world
        .register_as(types::Entry {
            spiffe_id: Some(id("temp")),
            parent_id: Some(id("node")),
            selectors: vec![types::Selector {
                r#type: "unix".to_owned(),
                value: my_uid()["unix:".len()..].to_owned(),
            }],
            expires_at: ends,
            ..types::Entry::default()
        })
        .await;
    let mut updates = node.me().open().await;
    assert_eq!(updates.next(&world.clock).await.names(), ["temp"]);
    let end = updates.try_next(&world.clock).await.err().unwrap();
    assert_eq!(end.code(), Code::PermissionDenied);
    let late = world.clock.unix() - ends;
    assert!((0..=1).contains(&late), "the stream ended {late} s after the entry");
    assert_eq!(node.me().try_open().await.err().unwrap().code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_of_equal_hints_wins_and_the_order_is_stable() {
    let world = World::new().await;
    let node = world.node("node").await;
    for (name, hint) in [("a", "internal"), ("b", "internal"), ("c", ""), ("d", "external")] {
        world
            .register_as(types::Entry {
                spiffe_id: Some(id(name)),
                parent_id: Some(id("node")),
                selectors: vec![types::Selector {
                    r#type: "unix".to_owned(),
                    value: my_uid()["unix:".len()..].to_owned(),
                }],
                hint: hint.to_owned(),
                ..types::Entry::default()
            })
            .await;
        world.clock.sleep(std::time::Duration::from_secs(2)).await;
    }
    let context = node.me().fetch(&world.clock).await;
    assert_eq!(context.names(), ["a", "c", "d"]);
    for _ in 0..5 {
        let again = node.me().fetch(&world.clock).await;
        assert_eq!(again.first, context.first);
    }
}

#[tokio::test(start_paused = true)]
async fn minting_gives_a_certificate_for_the_callers_key() {
    use finial_proto::spire::api::server::svid::v1::MintX509svidRequest;
    let world = World::new().await;
    let key = WorkloadKey::generate(finial_daemon::keys::KeyType::EcP384).unwrap();
    let csr = key.csr(&finial_daemon::keys::spire_subject(), &["spiffe://example.org/minted"]).unwrap();
    let minted =
        world.svids().mint_x509svid(MintX509svidRequest { csr: csr.clone(), ttl: 120 }).await.unwrap();
    let svid = minted.into_inner().svid.unwrap();
    let chain = svid.cert_chain.into_iter().map(Into::into).collect();
    let read = finial_identity::x509_svid::X509Svid::read(chain).unwrap();
    assert_eq!(read.id().as_str(), "spiffe://example.org/minted");
    assert_eq!(read.public_key_der(), key.public_key_der());

    // One flipped bit, and the request is nobody's.
    let mut forged = csr;
    let last = forged.len() - 5;
    forged[last] ^= 1;
    let refused = world.svids().mint_x509svid(MintX509svidRequest { csr: forged, ttl: 0 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
