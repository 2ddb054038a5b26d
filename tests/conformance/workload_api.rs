//! Single calls of the Workload API: header, status, and who is told what.

use std::time::Duration;

use bytes::Bytes;
use finial_proto::workload::{X509BundlesResponse, X509svidResponse};
use finial_tests::person::Person;
use finial_tests::raw;
use finial_tests::tokens::{self, Stranger};
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

    let unimplemented: [(&str, &str); 6] = [
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

/// U12 to U23: tokens and JWT keys, to whom they are due.
#[tokio::test(start_paused = true)]
async fn jwt_svids_are_given_and_judged_as_the_table_says() {
    let estate = Estate::new(Shape::default()).await;
    let of = |who: &Person| estate.node.workload(who.pid());
    let (one, two, nobody) = (of(&estate.one), of(&estate.two), of(&estate.nobody));
    let (e1, e2, e3) = ("spiffe://example.org/e1", "spiffe://example.org/e2", "spiffe://example.org/e3");
    let must_be = |case: &str, refused: Status, code: Code, text: &str| {
        assert_eq!((refused.code(), refused.message()), (code, text), "{case}");
    };

    must_be("U12", tokens::key_ids(&nobody).await.unwrap_err(), DENIED.0, DENIED.1);
    assert_eq!(
        tokens::key_ids(&two).await.unwrap().into_keys().collect::<Vec<_>>(),
        ["spiffe://example.org"]
    );
    must_be("U13", tokens::fetch(&nobody, &["a"], "").await.unwrap_err(), DENIED.0, DENIED.1);

    let mut given = tokens::fetch(&two, &["a", "b"], "").await.unwrap();
    assert_eq!((given.len(), given[0].spiffe_id.as_str()), (1, e3), "U14");
    let token = given.remove(0).svid;
    let (header, claims) = tokens::parts(&token);
    assert_eq!((&claims["aud"], &claims["sub"]), (&serde_json::json!(["a", "b"]), &e3.into()), "U14");
    let mut names: Vec<&String> = header.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["alg", "kid", "typ"], "U14, JW-02");
    tokens::judge(&estate.world, &token, "b").unwrap();

    let no_audience = "audience must be specified";
    for (case, audience) in [("U15", &[][..]), ("U16", &[""])] {
        let refused = tokens::fetch(&one, audience, "").await.unwrap_err();
        must_be(case, refused, Code::InvalidArgument, no_audience);
    }
    let refused = tokens::fetch(&one, &["a"], "foo").await.unwrap_err();
    must_be(
        "U17",
        refused,
        Code::InvalidArgument,
        "invalid requested SPIFFE ID: scheme is missing or invalid",
    );
    let given = tokens::fetch(&one, &["a"], "").await.unwrap();
    assert_eq!(given.len(), 2, "U18");
    // In the order of entry IDs, which are random.
    assert!([e1, e2].iter().all(|id| given.iter().any(|svid| svid.spiffe_id == *id)), "U18");
    assert_eq!(tokens::fetch(&one, &["a"], e2).await.unwrap()[0].spiffe_id, e2);
    for (case, id) in [("U19", e3), ("U20", "spiffe://other.test/x")] {
        must_be(case, tokens::fetch(&one, &["a"], id).await.unwrap_err(), DENIED.0, DENIED.1);
    }

    must_be("U21", tokens::validate(&one, "", &token).await.unwrap_err(), Code::InvalidArgument, no_audience);
    let refused = tokens::validate(&one, "a", "").await.unwrap_err();
    must_be("U22", refused, Code::InvalidArgument, "svid must be specified");
    for who in [&one, &nobody] {
        let valid = tokens::validate(who, "a", &token).await.unwrap();
        assert_eq!(valid.spiffe_id, e3, "U23");
        let claims = valid.claims.unwrap().fields;
        use prost_types::value::Kind;
        assert!(matches!(claims["sub"].kind, Some(Kind::StringValue(_))), "U23");
        assert!(matches!(claims["aud"].kind, Some(Kind::ListValue(_))), "U23");
        assert!(matches!(claims["exp"].kind, Some(Kind::NumberValue(_))), "U23");
    }
}

/// U24, and U12 where verifiers need no identity.
#[tokio::test(start_paused = true)]
async fn foreign_jwt_svids_are_judged_by_those_who_federate() {
    let agent = "allow_unauthenticated_verifiers = true".to_owned();
    let estate = Estate::new(Shape { agent, ..Shape::default() }).await;
    let stranger = Stranger::federated(&estate.world, "other.test").await;
    let mut e1 = estate.world.register("node", "friend", &[estate.one.selector()]).await;
    e1.federates_with = vec!["other.test".to_owned()];
    estate.world.update(e1).await;
    let (friend, other) = (estate.node.workload(estate.one.pid()), estate.node.workload(estate.two.pid()));
    let mut bundles = tokens::follow_bundles(&friend).await.unwrap();
    let both = ["spiffe://example.org", "spiffe://other.test"];
    while tokens::key_ids_of(&bundles.message().await.unwrap().unwrap()).into_keys().collect::<Vec<_>>()
        != both
    {}

    let more = [("role", serde_json::json!("admin"))];
    let token = stranger.sign("/x", &["a"], estate.world.clock.now(), &more);
    let valid = tokens::validate(&friend, "a", &token).await.unwrap();
    let claims = valid.claims.unwrap().fields;
    assert_eq!(claims.keys().collect::<Vec<_>>(), ["aud", "exp", "sub"], "U24");
    let refused = tokens::validate(&other, "a", &token).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "U24");
    for who in [&other, &estate.node.workload(estate.nobody.pid())] {
        assert_eq!(tokens::key_ids(who).await.unwrap().into_keys().collect::<Vec<_>>(), both[..1], "U12");
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
