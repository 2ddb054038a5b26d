//! Every certificate that a trust domain makes, against the requirements X5-01 to X5-14 of the X509-SVID standard.
//!
//! Read with the `x509-cert` crate alone, so that nothing here leans on the reader that the product uses.

use std::time::SystemTime;

use der::asn1::ObjectIdentifier;
use der::{Decode, Encode};
use finial_daemon::clock::from_unix_seconds;
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::server::svid::v1::{MintX509svidRequest, NewDownstreamX509caRequest};
use finial_proto::spire::api::types;
use finial_tests::enterprise::{Enterprise, Intermediate};
use finial_tests::network::Identity;
use finial_tests::world::{Shape, World, id, my_uid};
use tonic::Code;
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName,
    SubjectKeyIdentifier,
};

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const DAY: u64 = 24 * 3600;

#[tokio::test(start_paused = true)]
async fn certificates_under_a_self_signed_ca() {
    for key_type in ["ec-p256", "ec-p384", "rsa-2048"] {
        let server = format!("ca_key_type = {key_type:?}");
        check(World::of(Shape { server, ..Shape::default() }).await, &[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn certificates_under_an_enterprises_root() {
    let folder = tempfile::tempdir().unwrap();
    let enterprise = Enterprise::new(World::beginning());
    let files = enterprise.give(folder.path(), &Intermediate::default());
    let server_plugins = files.stanza();
    let intermediate = std::fs::read(&files.cert).unwrap();
    let intermediate = Certificate::load_pem_chain(&intermediate).unwrap().remove(0).to_der().unwrap();
    let world = World::in_folder(folder, Shape { server_plugins, ..Shape::default() }).await;
    check(world, &[intermediate, enterprise.root_der().to_vec()]).await;
}

/// Gets one certificate of each kind and checks them all. `above`: what the server's own CA stands on.
async fn check(world: World, above: &[Vec<u8>]) {
    let node = world.node("node").await;
    let web = world.register("node", "web", &[my_uid()]).await;
    world
        .update(types::Entry { dns_names: vec!["b.example.org".into(), "*.a.example.org".into()], ..web })
        .await;
    world
        .register_as(types::Entry {
            spiffe_id: Some(id("nested")),
            parent_id: Some(id("node")),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            downstream: true,
            ..types::Entry::default()
        })
        .await;
    let mut updates = node.me().open().await;
    let context = updates.until(&world.clock, |context| context.svid("web").dns_names().len() == 2).await;
    let workload: Vec<Vec<u8>> = context.svid("web").chain().iter().map(|der| der.to_vec()).collect();
    let (agent_id, agent) = world.bare_agent("bare").await;
    let nested = world.minted("nested").await;
    let server = world.server_chain().await;

    // What the leaves stand on: the CA itself when it is the root, else CA, intermediate, root.
    let own_ca = match above {
        [] => context.bundle.clone(),
        _ => [&workload[1..], &context.bundle[..]].concat(),
    };
    assert_eq!(own_ca[1..], *above, "the chain holds every intermediate, the bundle only the root");
    let now = world.clock.now();
    let leaves = [
        ("spiffe://example.org/web".to_owned(), &workload, &["b.example.org", "*.a.example.org"][..]),
        (format!("spiffe://example.org{}", agent_id.path), &agent.chain, &[]),
        ("spiffe://example.org/nested".to_owned(), &nested.chain, &[]),
        ("spiffe://example.org/spire/server".to_owned(), &server, &[]),
    ];
    for (uri, chain, dns_names) in leaves {
        assert_eq!(chain[1..], own_ca[..own_ca.len() - 1], "{uri}: all leaves have the same chain");
        check_leaf(&chain[0], &own_ca[0], &uri, dns_names, now);
    }
    for (position, der) in own_ca[..own_ca.len().saturating_sub(above.len())].iter().enumerate() {
        check_authority(der, own_ca.get(position + 1), now);
    }
    // The enterprise's own certificates are not ours to make, but X5-05 holds for them or they are not used.
    for der in above {
        must_be_an_authority(&Certificate::from_der(der).unwrap());
    }

    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    let downstream = |uri: &str| NewDownstreamX509caRequest {
        csr: key.csr(&spire_subject(), &[uri]).unwrap(),
        preferred_ttl: 600,
    };
    let mut client = SvidClient::new(world.showing(&nested));
    let ca = client.new_downstream_x509ca(downstream("spiffe://example.org")).await.unwrap().into_inner();
    assert_eq!(ca.x509_authorities, context.bundle);
    assert_eq!(ca.ca_cert_chain[1..], own_ca[..own_ca.len() - 1]);
    check_authority(&ca.ca_cert_chain[0], Some(&own_ca[0]), now);
    // X5-07: whatever path the request names, the CA has none.
    let ca = client.new_downstream_x509ca(downstream("spiffe://example.org/ca")).await.unwrap().into_inner();
    check_authority(&ca.ca_cert_chain[0], Some(&own_ca[0]), now);
}

fn check_leaf(der: &[u8], issuer: &[u8], uri: &str, dns_names: &[&str], now: SystemTime) {
    let certificate = Certificate::from_der(der).unwrap();
    let issuer = Certificate::from_der(issuer).unwrap();
    check_common(&certificate, Some(&issuer), now);

    // X5-01, X5-03, and that nothing else is named.
    let (san_critical, san) = extension::<SubjectAltName>(&certificate).unwrap();
    let mut expected = vec![format!("URI {uri}")];
    expected.extend(dns_names.iter().map(|name| format!("DNS {name}")));
    let mut names: Vec<String> = san.0.iter().map(show).collect();
    expected.sort();
    names.sort();
    assert_eq!(names, expected);
    // X5-04
    let subject = certificate.tbs_certificate().subject();
    assert!(!subject.is_empty() || san_critical, "{uri}: an empty subject and names that are not critical");

    // X5-10
    let (critical, constraints) = extension::<BasicConstraints>(&certificate).expect("stated, not implied");
    assert_eq!((critical, constraints.ca, constraints.path_len_constraint), (true, false, None), "{uri}");
    // X5-11 to X5-13
    let (critical, usage) = extension::<KeyUsage>(&certificate).unwrap();
    assert!(
        critical && usage.digital_signature() && usage.key_encipherment() && usage.key_agreement(),
        "{uri}"
    );
    assert!(!usage.key_cert_sign() && !usage.crl_sign() && !usage.non_repudiation(), "{uri}");
    // X5-14
    let (_, purposes) = extension::<ExtendedKeyUsage>(&certificate).unwrap();
    assert_eq!(purposes.0, [SERVER_AUTH, CLIENT_AUTH], "{uri}");
}

/// X5-05 to X5-08, X5-11, of a CA that the server made.
fn check_authority(der: &[u8], issuer: Option<&Vec<u8>>, now: SystemTime) {
    let certificate = Certificate::from_der(der).unwrap();
    let issuer = issuer.map(|der| Certificate::from_der(der).unwrap());
    check_common(&certificate, issuer.as_ref(), now);
    must_be_an_authority(&certificate);
    let (_, usage) = extension::<KeyUsage>(&certificate).unwrap();
    assert!(!usage.key_encipherment() && !usage.key_agreement());
    let (_, san) = extension::<SubjectAltName>(&certificate).unwrap();
    assert_eq!(san.0.iter().map(show).collect::<Vec<_>>(), ["URI spiffe://example.org"]);
    assert!(extension::<ExtendedKeyUsage>(&certificate).is_none());
}

fn must_be_an_authority(certificate: &Certificate) {
    let (critical, constraints) = extension::<BasicConstraints>(certificate).unwrap();
    assert!(critical && constraints.ca);
    let (critical, usage) = extension::<KeyUsage>(certificate).unwrap();
    assert!(critical && usage.key_cert_sign());
}

/// What holds for leaves and authorities alike: version 3, the identifiers of both keys, and a life within the
/// issuer's.
fn check_common(certificate: &Certificate, issuer: Option<&Certificate>, now: SystemTime) {
    let body = certificate.tbs_certificate();
    assert_eq!(body.version(), x509_cert::Version::V3);
    let serial = body.serial_number().as_bytes();
    assert!(serial.len() <= 20 && serial.len() > 8 && serial[0] < 0x80, "{serial:02x?}");
    let (critical, own) = extension::<SubjectKeyIdentifier>(certificate).unwrap();
    assert!(!critical && !own.0.as_bytes().is_empty());
    let life = |certificate: &Certificate| {
        let validity = certificate.tbs_certificate().validity();
        let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs().try_into().unwrap();
        (from_unix_seconds(seconds(&validity.not_before)), from_unix_seconds(seconds(&validity.not_after)))
    };
    let (not_before, not_after) = life(certificate);
    assert!(not_before < now && now < not_after);
    assert!(not_after.duration_since(not_before).unwrap().as_secs() <= DAY + 10);

    let above = extension::<AuthorityKeyIdentifier>(certificate);
    let Some(issuer) = issuer else {
        assert!(above.is_none(), "who signed itself names no other key");
        assert_eq!(body.issuer(), body.subject());
        return;
    };
    assert_eq!(body.issuer().to_der().unwrap(), issuer.tbs_certificate().subject().to_der().unwrap());
    if let Some((_, key)) = extension::<SubjectKeyIdentifier>(issuer) {
        assert_eq!(above.unwrap().1.key_identifier.unwrap(), key.0);
    }
    assert!(not_after <= life(issuer).1, "a certificate outlives its issuer");
}

fn extension<'a, T: Decode<'a> + der::oid::AssociatedOid>(certificate: &'a Certificate) -> Option<(bool, T)>
where
    T::Error: std::fmt::Debug,
{
    let found = certificate.tbs_certificate().extensions()?.iter().filter(|one| one.extn_id == T::OID);
    let mut found = found.map(|one| (one.critical, T::from_der(one.extn_value.as_bytes()).unwrap()));
    let first = found.next();
    assert!(found.next().is_none(), "an extension stands twice");
    first
}

fn show(name: &GeneralName) -> String {
    match name {
        GeneralName::UniformResourceIdentifier(uri) => format!("URI {}", uri.as_str()),
        GeneralName::DnsName(name) => format!("DNS {}", name.as_str()),
        other => panic!("a name of a kind that no SVID has: {other:?}"),
    }
}

/// X5-01 to X5-03, X5-17, from the other side: what a certificate may not say is not signed.
#[tokio::test(start_paused = true)]
async fn requests_for_what_is_no_svid_are_refused() {
    let world = World::new().await;
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    for uris in [
        &["spiffe://example.org/a", "spiffe://example.org/b"][..],
        &["spiffe://example.org/a", "https://example.org/"],
        &["spiffe://example.org"],
        &["https://example.org/a"],
        &[],
    ] {
        let csr = key.csr(&spire_subject(), uris).unwrap();
        let refused = world.svids().mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{uris:?}: {refused}");
    }
}

/// X5-09: the CA's own certificate and key open no door.
#[tokio::test(start_paused = true)]
async fn a_ca_certificate_authenticates_nobody() {
    let world = World::new().await;
    let ask = async |identity: &Identity| {
        BundleClient::new(world.showing(identity)).get_bundle(GetBundleRequest::default()).await
    };
    ask(&world.minted("web").await).await.expect("an SVID of the same CA is let in");

    let root = world.server().own_bundle.current().x509_authorities[0].der.to_vec();
    let body = Certificate::from_der(&root).unwrap();
    let public_key = body.tbs_certificate().subject_public_key_info().to_der().unwrap();
    let file = std::fs::read_to_string(world.folder.path().join("keys.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&file).unwrap();
    let key = file["keys"].as_object().unwrap().values().find_map(|key| {
        use base64::Engine;
        let pkcs8 = base64::engine::general_purpose::STANDARD.decode(key.as_str().unwrap()).unwrap();
        WorkloadKey::from_pkcs8(&pkcs8).ok().filter(|key| key.public_key_der() == public_key)
    });
    let ca = Identity { chain: vec![root], key: key.expect("the CA's key is in the file") };
    let refused = ask(&ca).await.unwrap_err();
    // The handshake fails. With TLS 1.3 the client learns that only from its first call.
    assert!(matches!(refused.code(), Code::Unavailable | Code::Cancelled), "{refused}");
}
