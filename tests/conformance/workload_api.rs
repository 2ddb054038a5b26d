//! Single calls of the Workload API: header, status, and who is told what.

use std::time::Duration;

use bytes::Bytes;
use finial_proto::workload::{X509BundlesResponse, X509svidResponse};
use finial_tests::person::Person;
use finial_tests::raw;
use finial_tests::world::{Node, Shape, World};
use prost::Message;
use tonic::{Code, Status};

use crate::streams::federate;

const HEADER: &[(&str, &str)] = &[("workload.spiffe.io", "true")];
const DENIED: (Code, &str) = (Code::PermissionDenied, "no identity issued");

const METHODS: [&str; 7] = [
    "/SpiffeWorkloadAPI/FetchX509SVID",
    "/SpiffeWorkloadAPI/FetchX509Bundles",
    "/SpiffeWorkloadAPI/FetchJWTSVID",
    "/SpiffeWorkloadAPI/FetchJWTBundles",
    "/SpiffeWorkloadAPI/ValidateJWTSVID",
    "/SpiffeWorkloadAPI/FetchWITSVID",
    "/SpiffeWorkloadAPI/FetchWITBundles",
];

/// Two entries for one person, one for another, none for the third.
struct Estate {
    world: World,
    node: Node,
    one: Person,
    two: Person,
    nobody: Person,
}

impl Estate {
    async fn new(shape: Shape) -> Estate {
        let world = World::of(shape).await;
        let node = world.node("node").await;
        let person = |name| Person::new(world.folder.path(), name);
        let (one, two, nobody) = (person("1001"), person("1002"), person("1003"));
        for (name, person) in [("e1", &one), ("e2", &one), ("e3", &two)] {
            world.register("node", name, &[person.selector()]).await;
        }
        for (person, names) in [(&one, &["e1", "e2"][..]), (&two, &["e3"])] {
            let mut updates = node.workload(person.pid()).open().await;
            updates.until(&world.clock, |context| context.names() == names).await;
        }
        Estate { world, node, one, two, nobody }
    }

    async fn ask(
        &self,
        who: &Person,
        method: &str,
        body: &'static [u8],
        metadata: &[(&str, &str)],
    ) -> Result<Option<Bytes>, Status> {
        raw::call(self.node.workload(who.pid()).channel(), method, body, metadata).await
    }
}

/// U01 to U05: before anything else, and of every method.
#[tokio::test(start_paused = true)]
async fn every_method_wants_exactly_one_security_header_that_says_true() {
    let estate = Estate::new(Shape::default()).await;
    let wrong: [&[(&str, &str)]; 10] = [
        &[],
        &[("workload.spiffe.io", "True")],
        &[("workload.spiffe.io", "TRUE")],
        &[("workload.spiffe.io", "false")],
        &[("workload.spiffe.io", "1")],
        &[("workload.spiffe.io", "")],
        &[("workload.spiffe.io", "true, true")],
        &[("workload.spiffe.io", "true"), ("workload.spiffe.io", "true")],
        &[("workload.spiffe.io", "false"), ("workload.spiffe.io", "true")],
        &[("broker.spiffe.io", "true")],
    ];
    for who in [&estate.one, &estate.nobody] {
        for method in METHODS {
            for headers in wrong {
                let refused = estate.ask(who, method, b"", headers).await.unwrap_err();
                let expected = (Code::InvalidArgument, "security header missing from request");
                assert_eq!((refused.code(), refused.message()), expected, "{method} with {headers:?}");
            }
        }
    }
}

/// The rest of the table: each caller, each method, with the header unless it is said that it is not needed.
#[tokio::test(start_paused = true)]
async fn each_caller_gets_the_status_of_the_table() {
    let estate = Estate::new(Shape::default()).await;
    let Estate { one, two, nobody, .. } = &estate;
    const LIST: &[u8] = &[0x3a, 0];
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const REFLECTION_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";

    // (case, caller, method, body, metadata)
    type Case<'a> = (&'a str, &'a Person, &'a str, &'static [u8], &'a [(&'a str, &'a str)]);
    let served: [Case<'_>; 8] = [
        ("U06 health", nobody, HEALTH, b"", &[]),
        ("U06 reflection", nobody, REFLECTION, LIST, &[]),
        ("U06 old reflection", nobody, REFLECTION_ALPHA, LIST, &[]),
        ("U10", one, METHODS[0], b"", HEADER),
        ("U10", two, METHODS[0], b"", HEADER),
        ("U11", one, METHODS[1], b"", HEADER),
        ("an unknown field", one, METHODS[0], b"\x7a\x01x", HEADER),
        (
            "metadata of no concern",
            one,
            METHODS[0],
            b"",
            &[("workload.spiffe.io", "true"), ("broker.spiffe.io", "x"), ("user-agent", "y")],
        ),
    ];
    for (case, who, method, body, metadata) in served {
        let answer = estate.ask(who, method, body, metadata).await;
        assert!(answer.as_ref().is_ok_and(Option::is_some), "{case}: {answer:?}");
    }

    let denied: [Case<'_>; 2] =
        [("U10", nobody, METHODS[0], b"", HEADER), ("U11", nobody, METHODS[1], b"", HEADER)];
    for (case, who, method, body, metadata) in denied {
        let refused = estate.ask(who, method, body, metadata).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), DENIED, "{case}");
    }

    let unimplemented: [(&str, &str); 9] = [
        ("U12-U20, U28", METHODS[2]),
        ("U12, U28", METHODS[3]),
        ("U21-U24, U28", METHODS[4]),
        ("U25", METHODS[5]),
        ("U25", METHODS[6]),
        ("U28", "/SpiffeWorkloadAPI/FetchX509Svid"),
        ("U28", "/SpiffeWorkloadAPI/"),
        ("U28", "/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID"),
        ("U28", "/spire.api.server.entry.v1.Entry/ListEntries"),
    ];
    for (case, method) in unimplemented {
        for who in [one, nobody] {
            let refused = estate.ask(who, method, b"", HEADER).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unimplemented, "{case} {method}: {refused}");
        }
    }
}

/// U11 with `allow_unauthenticated_verifiers`: the bundle of the own trust domain, nothing else, and no SVID.
#[tokio::test(start_paused = true)]
async fn verifiers_without_identity_get_the_own_bundle_where_that_is_allowed() {
    let agent = "allow_unauthenticated_verifiers = true".to_owned();
    let estate = Estate::new(Shape { agent, ..Shape::default() }).await;
    let other = federate(&estate.world, "other.test").await;
    let mut e1 = estate.world.register("node", "friend", &[estate.one.selector()]).await;
    e1.federates_with = vec!["other.test".to_owned()];
    estate.world.update(e1).await;
    let mut updates = estate.node.workload(estate.one.pid()).open().await;
    updates.until(&estate.world.clock, |context| !context.federated.is_empty()).await;

    let bundles = |answer: Result<Option<Bytes>, Status>| {
        X509BundlesResponse::decode(answer.unwrap().unwrap()).unwrap().bundles
    };
    let known = bundles(estate.ask(&estate.one, METHODS[1], b"", HEADER).await);
    assert_eq!(known.keys().collect::<Vec<_>>(), ["spiffe://example.org", "spiffe://other.test"]);
    assert_eq!(known["spiffe://other.test"], other);
    let given = bundles(estate.ask(&estate.nobody, METHODS[1], b"", HEADER).await);
    assert_eq!(given.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    assert_eq!(given["spiffe://example.org"], known["spiffe://example.org"]);
    let refused = estate.ask(&estate.nobody, METHODS[0], b"", HEADER).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), DENIED);
}

/// U51, and that every mandatory field is there.
#[tokio::test(start_paused = true)]
async fn messages_are_whole_and_keys_are_bare_pkcs8() {
    let estate = Estate::new(Shape::default()).await;
    let answer = estate.ask(&estate.one, METHODS[0], b"", HEADER).await.unwrap().unwrap();
    let message = X509svidResponse::decode(answer).unwrap();
    assert!(message.crl.is_empty() && message.federated_bundles.is_empty());
    assert_eq!(message.svids.len(), 2);
    for svid in &message.svids {
        assert!(svid.spiffe_id.starts_with("spiffe://example.org/e"));
        assert!(!svid.x509_svid.is_empty() && !svid.bundle.is_empty() && svid.hint.is_empty());
        // One SEQUENCE to the last byte: version 0 and an algorithm, so neither SEC1 nor encrypted.
        use der::{Decode, Encode};
        let whole = der::asn1::AnyRef::from_der(&svid.x509_svid_key).expect("DER without trailing bytes");
        let mut parts = der::SliceReader::new(whole.value()).unwrap();
        assert_eq!(u8::decode(&mut parts).unwrap(), 0);
        let algorithm = der::asn1::AnyRef::decode(&mut parts).unwrap();
        let ec_public_key = der::oid::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1").to_der().unwrap();
        assert!(algorithm.value().starts_with(&ec_public_key));
    }
    assert_ne!(message.svids[0].x509_svid_key, message.svids[1].x509_svid_key);
}

/// U54: a caller that cannot be attested is told so, and gets no part of what it might have.
#[tokio::test(start_paused = true)]
async fn a_failed_attestation_gives_nothing() {
    // The program is larger than one byte, and so the only attestor fails.
    let unix = "discover_workload_path = true\nworkload_size_limit = 1".to_owned();
    let world = World::of(Shape { unix, ..Shape::default() }).await;
    let token = world.token("node").await;
    let uid = format!("unix:uid:{}", nix::unistd::Uid::effective());
    world.register("node", "web", &[uid]).await;
    let node = world.start_node("node", Some(&token)).await.unwrap();
    while node.handles.cache.stats().x509_svids == 0 {
        world.clock.sleep(Duration::from_millis(10)).await;
    }
    let person = Person::new(world.folder.path(), "1001");
    let workload = node.workload(person.pid());
    for method in [METHODS[0], METHODS[1]] {
        let refused = raw::call(workload.channel(), method, b"".as_slice(), HEADER).await.unwrap_err();
        let expected = (Code::Unavailable, "workload attestation failed");
        assert_eq!((refused.code(), refused.message()), expected, "{method}");
    }
}
