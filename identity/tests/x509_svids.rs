//! Which chains prove an identity, and which do not (X509-SVID.md, RFC 5280).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

mod pki;

use finial_identity::TrustDomain;
use finial_identity::bundle::document;
use finial_identity::peer::{self, PeerError};
use finial_identity::x509_svid::{
    AuthorityCertificate, AuthorityFault, IssuerFault, X509Svid, X509SvidError, leaf_id,
};
use pki::{
    CLIENT_AUTH, CRL_SIGN, Ca, DIGITAL_SIGNATURE, Draft, HOUR, KEY_AGREEMENT, KEY_CERT_SIGN,
    KEY_ENCIPHERMENT, NOW, SERVER_AUTH, Signer, address, authority_key_id, basic_constraints, ca_extensions,
    dns, email, extended_key_usage, key_usage, leaf_extensions, name, now, san, subject_key_id,
    unknown_critical, uri, uri_name_constraint,
};
use rustls_pki_types::CertificateDer;

const SVC: &str = "spiffe://example.org/svc";

type Der = CertificateDer<'static>;

fn verify(chain: &[Der], authorities: &[&Ca]) -> Result<X509Svid, PeerError> {
    let authorities: Vec<&Der> = authorities.iter().map(|ca| &ca.der).collect();
    peer::verify(chain, &authorities, now())
}

/// A leaf of a new root with these names, and the root.
fn named(names: Vec<Vec<u8>>) -> (Der, Ca) {
    let root = Ca::root("example.org");
    (root.leaf(SVC, |draft| draft.extensions = leaf_extensions(names)), root)
}

fn with_extensions(extensions: Vec<Vec<u8>>) -> (Der, Ca) {
    let root = Ca::root("example.org");
    (root.leaf(SVC, |draft| draft.extensions = extensions), root)
}

fn assert_accepted(case: &str, chain: &[Der], authorities: &[&Ca]) -> X509Svid {
    verify(chain, authorities).unwrap_or_else(|error| panic!("{case}: {error}"))
}

#[track_caller]
fn assert_refused(
    chain: &[Der],
    authorities: &[&Ca],
    is_expected: impl FnOnce(&PeerError) -> bool,
) -> String {
    let error = verify(chain, authorities).expect_err("this chain must be refused");
    assert!(is_expected(&error), "refused for another reason: {error:?}");
    error.to_string()
}

#[track_caller]
fn assert_no_svid(chain: &[Der], authorities: &[&Ca], expected: X509SvidError) {
    assert_eq!(X509Svid::read(chain.to_vec()), Err(expected.clone()));
    assert_refused(chain, authorities, |error| *error == PeerError::NotAnSvid(expected));
}

#[test]
fn good_chains_are_accepted() {
    let root = Ca::root("example.org");
    let middle = root.intermediate("middle", |_| {});

    let svid = assert_accepted("leaf under root", &[root.leaf(SVC, |_| {})], &[&root]);
    assert_eq!(svid.id().as_str(), SVC);
    assert_eq!(svid.issuer_faults(), []);
    assert_accepted("leaf and intermediate", &[middle.leaf(SVC, |_| {}), middle.der.clone()], &[&root]);
    assert_accepted("root sent along", &[root.leaf(SVC, |_| {}), root.der.clone()], &[&root]);

    let rsa = root.leaf(SVC, |draft| {
        draft.spki = pki::rsa_spki();
        draft.extensions[1] = key_usage(DIGITAL_SIGNATURE | KEY_ENCIPHERMENT | KEY_AGREEMENT, true);
    });
    assert_accepted("RSA leaf", &[rsa], &[&root]);
    let ed25519 = root.leaf(SVC, |draft| draft.spki = pki::ed25519_spki());
    assert_accepted("Ed25519 leaf", &[ed25519], &[&root]);

    let no_subject = root.leaf(SVC, |draft| {
        draft.subject = name("");
        draft.extensions[3] = san(&[uri(SVC)], true);
    });
    assert_eq!(assert_accepted("empty subject", &[no_subject], &[&root]).issuer_faults(), []);

    let (leaf, root) = named(vec![
        uri(SVC),
        dns("a.example.org"),
        dns("b.example.org"),
        address([10, 0, 0, 1]),
        email("a@b.c"),
    ]);
    let svid = assert_accepted("names of all kinds", &[leaf], &[&root]);
    assert_eq!(svid.dns_names(), ["a.example.org", "b.example.org"]);

    let longest = format!("spiffe://example.org/{}", "p".repeat(2027));
    let (leaf, root) = named(vec![uri(&longest)]);
    assert_eq!(assert_accepted("ID of 2048 bytes", &[leaf], &[&root]).id().as_str(), longest);
}

#[test]
fn what_only_the_issuer_did_wrong_is_tolerated_and_told() {
    let base = || leaf_extensions(vec![uri(SVC)]);
    let cases: [(&str, Vec<Vec<u8>>, IssuerFault); 5] = [
        (
            "no digitalSignature",
            {
                let mut extensions = base();
                extensions[1] = key_usage(KEY_ENCIPHERMENT, true);
                extensions
            },
            IssuerFault::NoDigitalSignature,
        ),
        (
            "no key usage",
            {
                let mut extensions = base();
                extensions.remove(1);
                extensions
            },
            IssuerFault::NoKeyUsage,
        ),
        (
            "key usage not critical",
            {
                let mut extensions = base();
                extensions[1] = key_usage(DIGITAL_SIGNATURE, false);
                extensions
            },
            IssuerFault::KeyUsageNotCritical,
        ),
        ("no basic constraints", base()[1..].to_vec(), IssuerFault::NoBasicConstraints),
        (
            "serverAuth only",
            {
                let mut extensions = base();
                extensions[2] = extended_key_usage(&[SERVER_AUTH]);
                extensions
            },
            IssuerFault::ExtendedKeyUsageIncomplete,
        ),
    ];
    for (case, extensions, fault) in cases {
        let (leaf, root) = with_extensions(extensions);
        assert_eq!(assert_accepted(case, &[leaf], &[&root]).issuer_faults(), [fault], "{case}");
    }

    let root = Ca::root("example.org");
    let leaf = root.leaf(SVC, |draft| draft.subject = name(""));
    let svid = assert_accepted("empty subject, SAN not critical", &[leaf], &[&root]);
    assert_eq!(svid.issuer_faults(), [IssuerFault::SubjectAltNameNotCritical]);

    let mut extensions = base();
    extensions.remove(2);
    let (leaf, root) = with_extensions(extensions);
    assert_eq!(assert_accepted("no extended key usage", &[leaf], &[&root]).issuer_faults(), []);
    let mut extensions = base();
    extensions[2] = extended_key_usage(&[CLIENT_AUTH, &[0x2a, 3]]);
    let (leaf, root) = with_extensions(extensions);
    assert_accepted("clientAuth and another", &[leaf], &[&root]);
}

#[test]
fn a_leaf_needs_exactly_one_spiffe_id() {
    let second = "spiffe://example.org/other";
    for names in [
        vec![uri(SVC), uri(second)],
        vec![uri(SVC), uri("https://example.org/svc")],
        vec![uri("https://example.org/svc"), dns("a"), uri(SVC)],
        vec![uri(SVC), uri(SVC)],
    ] {
        let (leaf, root) = named(names);
        assert_no_svid(&[leaf], &[&root], X509SvidError::ManyUris);
    }
    let (leaf, root) = with_extensions(leaf_extensions(vec![])[..3].to_vec());
    assert_no_svid(&[leaf], &[&root], X509SvidError::NoUri);
    let (leaf, root) = named(vec![dns("svc.example.org")]);
    assert_no_svid(&[leaf], &[&root], X509SvidError::NoUri);

    for wrong in [
        "https://example.org/svc",
        "spiffe://example.org/svc/",
        "spiffe://example.org/a%62",
        "spiffe://example.org/svc?a=b",
        "spiffe://EXAMPLE.org/svc",
        "SPIFFE://example.org/svc",
    ] {
        let (leaf, root) = named(vec![uri(wrong)]);
        let cause = finial_identity::SpiffeId::parse(wrong).unwrap_err();
        assert_no_svid(
            std::slice::from_ref(&leaf),
            &[&root],
            X509SvidError::InvalidId { uri: wrong.into(), cause },
        );
        assert!(leaf_id(&leaf).is_err());
    }
    let (leaf, root) = named(vec![uri("spiffe://example.org")]);
    assert_no_svid(&[leaf], &[&root], X509SvidError::NoPath);
}

#[test]
fn a_leaf_must_not_sign_and_a_signer_must() {
    let leaf_with = |constraints, usage| {
        with_extensions(vec![constraints, key_usage(usage, true), san(&[uri(SVC)], false)])
    };
    let (leaf, root) = leaf_with(basic_constraints(true, None), DIGITAL_SIGNATURE);
    assert_no_svid(&[leaf], &[&root], X509SvidError::LeafIsCa);
    let (leaf, root) = leaf_with(basic_constraints(false, None), DIGITAL_SIGNATURE | KEY_CERT_SIGN);
    assert_no_svid(&[leaf], &[&root], X509SvidError::LeafSignsCertificates);
    let (leaf, root) = leaf_with(basic_constraints(false, None), DIGITAL_SIGNATURE | CRL_SIGN);
    assert_no_svid(&[leaf], &[&root], X509SvidError::LeafSignsCrls);

    let root = Ca::root("example.org");
    let not_ca = root.intermediate("middle", |draft| draft.extensions[0] = basic_constraints(false, None));
    let chain = [not_ca.leaf(SVC, |_| {}), not_ca.der.clone()];
    assert_no_svid(&chain, &[&root], X509SvidError::IntermediateNotCa { position: 1 });
    let cannot_sign = root.intermediate("middle", |draft| draft.extensions[1] = key_usage(CRL_SIGN, true));
    let chain = [cannot_sign.leaf(SVC, |_| {}), cannot_sign.der.clone()];
    assert_no_svid(&chain, &[&root], X509SvidError::IntermediateCannotSign { position: 1 });

    let middle = root.intermediate("middle", |_| {});
    let wrong_order = [middle.der.clone(), middle.leaf(SVC, |_| {})];
    assert!(matches!(X509Svid::read(wrong_order.to_vec()), Err(X509SvidError::LeafIsCa)));
    assert_no_svid(&[], &[&root], X509SvidError::Empty);
}

#[test]
fn time_counts_for_each_certificate_up_to_the_authority() {
    let root = Ca::root("example.org");
    let past = |draft: &mut Draft| (draft.not_before, draft.not_after) = (NOW - 2 * HOUR, NOW - HOUR);
    let future = |draft: &mut Draft| (draft.not_before, draft.not_after) = (NOW + HOUR, NOW + 2 * HOUR);

    let text = assert_refused(&[root.leaf(SVC, past)], &[&root], |e| matches!(e, PeerError::Expired { .. }));
    assert!(text.contains("x509: certificate has expired or is not yet valid"), "{text}");
    assert_refused(&[root.leaf(SVC, future)], &[&root], |e| matches!(e, PeerError::NotYetValid { .. }));
    let middle = root.intermediate("middle", past);
    let chain = [middle.leaf(SVC, |_| {}), middle.der.clone()];
    assert_refused(&chain, &[&root], |e| matches!(e, PeerError::Expired { .. }));

    for stale in [Ca::root_with("example.org", past), Ca::root_with("example.org", future)] {
        let chain = [stale.leaf(SVC, |_| {})];
        assert_refused(&chain, &[&stale], |e| matches!(e, PeerError::AuthorityNotValid { .. }));
        // Beside a valid authority that did not sign it, and along with the leaf.
        assert_refused(&chain, &[&root, &stale], |e| matches!(e, PeerError::AuthorityNotValid { .. }));
        assert_refused(&[chain[0].clone(), stale.der.clone()], &[&stale], |e| {
            matches!(e, PeerError::AuthorityNotValid { .. })
        });
        assert_accepted(
            "a stale authority does no harm to others",
            &[root.leaf(SVC, |_| {})],
            &[&stale, &root],
        );
    }

    let last_second = root.leaf(SVC, |draft| draft.not_after = NOW);
    assert_accepted("the last second is valid", &[last_second], &[&root]);
    let first_second = root.leaf(SVC, |draft| draft.not_before = NOW);
    assert_accepted("the first second is valid", &[first_second], &[&root]);
}

#[test]
fn only_the_authorities_of_the_leafs_trust_domain_count() {
    let unknown = |error: &PeerError| matches!(error, PeerError::UnknownAuthority { .. });
    let (root, other) = (Ca::root("example.org"), Ca::root("other.test"));

    let forged = other.leaf(SVC, |_| {});
    assert_eq!(leaf_id(&forged).unwrap().trust_domain_name(), "example.org");
    // Both roots bear the same name, so this is a wrong signature to path building.
    let text = assert_refused(&[forged], &[&root], unknown);
    assert!(text.contains("x509: certificate signed by unknown authority"), "{text}");
    let renamed = Ca::root_with("other.test", |draft| draft.subject = name("Other"));
    let text = assert_refused(&[renamed.leaf(SVC, |_| {})], &[&root], unknown);
    assert!(text.contains("x509: certificate signed by unknown authority"), "{text}");

    let text = assert_refused(&[root.leaf(SVC, |_| {})], &[], unknown);
    assert!(text.contains("x509: certificate signed by unknown authority"), "{text}");

    let foreign = other.leaf("spiffe://other.test/svc", |_| {});
    assert_accepted("foreign ID under its own root", &[foreign], &[&other]);
    let second = Ca::root("example.org");
    assert_accepted("the second root signed", &[second.leaf(SVC, |_| {})], &[&root, &second]);
}

#[test]
fn broken_paths_are_refused() {
    let unknown = |error: &PeerError| matches!(error, PeerError::UnknownAuthority { .. });
    let root = Ca::root("example.org");

    let mut tampered = root.leaf(SVC, |_| {}).to_vec();
    *tampered.last_mut().unwrap() ^= 1;
    assert_refused(&[Der::from(tampered)], &[&root], unknown);
    let middle = root.intermediate("middle", |_| {});
    assert_refused(&[middle.leaf(SVC, |_| {})], &[&root], unknown);

    let sha1 = root.leaf(SVC, |draft| draft.algorithm = vec![0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]);
    assert_refused(&[sha1], &[&root], unknown);

    let (leaf, ca) = with_extensions([leaf_extensions(vec![uri(SVC)]), vec![unknown_critical()]].concat());
    assert_refused(&[leaf], &[&ca], |e| matches!(e, PeerError::Path { .. }));

    let mut trailing = root.leaf(SVC, |_| {}).to_vec();
    trailing.push(0);
    assert!(matches!(
        verify(&[Der::from(trailing)], &[&root]),
        Err(PeerError::NotAnSvid(X509SvidError::Malformed { position: 0, .. }))
    ));

    let limited = root.intermediate("middle", |draft| draft.extensions[0] = basic_constraints(true, Some(0)));
    let below = limited.intermediate("below", |_| {});
    assert_accepted("within the limit", &[limited.leaf(SVC, |_| {}), limited.der.clone()], &[&root]);
    let chain = [below.leaf(SVC, |_| {}), below.der.clone(), limited.der.clone()];
    assert_refused(&chain, &[&root], |e| matches!(e, PeerError::Path { .. }));

    let limited =
        Ca::root_with("example.org", |draft| draft.extensions[0] = basic_constraints(true, Some(0)));
    let middle = limited.intermediate("middle", |_| {});
    assert_accepted("an authority's limit is kept", &[limited.leaf(SVC, |_| {})], &[&limited]);
    let chain = [middle.leaf(SVC, |_| {}), middle.der.clone()];
    assert_refused(&chain, &[&limited], |e| matches!(e, PeerError::Path { .. }));
}

#[test]
fn uri_name_constraints_are_refused_even_if_they_permit() {
    for tag in [0, 1] {
        let constraint = uri_name_constraint(tag, "example.org");
        let root = Ca::root_with("example.org", |draft| draft.extensions.push(constraint.clone()));
        let text = assert_refused(&[root.leaf(SVC, |_| {})], &[&root], |e| {
            matches!(e, PeerError::NameConstraint { .. })
        });
        assert!(text.contains("use authorities without URI name constraints"), "{text}");

        let root = Ca::root("example.org");
        let middle = root.intermediate("middle", |draft| draft.extensions.push(constraint));
        let chain = [middle.leaf(SVC, |_| {}), middle.der.clone()];
        assert_refused(&chain, &[&root], |e| matches!(e, PeerError::NameConstraint { .. }));
    }
}

#[test]
fn what_the_id_of_an_intermediate_says_does_not_matter() {
    let root = Ca::root("example.org");
    for id in [Some("spiffe://other.test"), Some("spiffe://example.org/ca"), None] {
        let middle = root.intermediate("middle", |draft| {
            draft.extensions = ca_extensions(None);
            draft.extensions.extend(id.map(|id| san(&[uri(id)], false)));
        });
        assert_accepted("intermediate", &[middle.leaf(SVC, |_| {}), middle.der.clone()], &[&root]);
    }
}

#[test]
fn of_two_ways_the_good_one_is_found() {
    let root = Ca::root("example.org");
    let middle = root.intermediate("middle", |_| {});
    let leaf = middle.leaf(SVC, |_| {});
    let mut expired = Draft::new(name("middle"), middle.signer.spki(), ca_extensions(Some("example.org")));
    (expired.not_before, expired.not_after) = (NOW - 2 * HOUR, NOW - HOUR);
    let expired = expired.signed_by(&root.name, &root.signer);
    assert_accepted("good first", &[leaf.clone(), middle.der.clone(), expired.clone()], &[&root]);
    assert_accepted("good last", &[leaf, expired, middle.der.clone()], &[&root]);
}

#[test]
fn a_leaf_in_the_bundle_vouches_for_nobody_not_even_itself() {
    let signer = Signer::new();
    let draft = Draft::new(name("SPIFFE"), signer.spki(), leaf_extensions(vec![uri(SVC)]));
    let der = draft.signed_by(&draft.subject.clone(), &signer);
    let own = Ca { name: draft.subject.clone(), signer, der: der.clone() };
    assert_refused(&[der], &[&own], |e| matches!(e, PeerError::UnknownAuthority { .. }));
    let child = own.leaf(SVC, |_| {});
    assert_refused(&[child], &[&own], |e| matches!(e, PeerError::UnknownAuthority { .. }));
}

#[test]
fn fields_are_those_of_the_leaf() {
    let root = Ca::root("example.org");
    let leaf = root.leaf(SVC, |draft| {
        draft.serial = vec![0, 0xff, 0, 1];
        draft.extensions.push(authority_key_id(&[0x0a, 0xbc]));
    });
    let svid = X509Svid::read(vec![leaf.clone(), root.der.clone()]).unwrap();
    assert_eq!(svid.serial(), [0xff, 0, 1]);
    assert_eq!(svid.serial_decimal(), 0xff_0001.to_string());
    assert_eq!(svid.not_before(), pki::at(NOW - HOUR));
    assert_eq!(svid.not_after(), pki::at(NOW + HOUR));
    assert_eq!(svid.leaf_der(), &leaf);
    assert_eq!(svid.authority_key_id().as_deref(), Some("0abc"));
    assert_eq!(X509Svid::parse_concatenated(&svid.concatenated()).unwrap(), svid);
    assert_eq!(X509Svid::parse_concatenated(&[]), Err(X509SvidError::Empty));
    let cut = &svid.concatenated()[..svid.concatenated().len() - 1];
    assert!(matches!(X509Svid::parse_concatenated(cut), Err(X509SvidError::Malformed { .. })));

    let negative = root.leaf(SVC, |draft| draft.serial = vec![0x80]);
    assert!(matches!(X509Svid::read(vec![negative]), Err(X509SvidError::Malformed { .. })));
    let twice = [leaf_extensions(vec![uri(SVC)]), vec![san(&[uri(SVC)], false)]].concat();
    let (leaf, _) = with_extensions(twice);
    assert!(matches!(X509Svid::read(vec![leaf]), Err(X509SvidError::Malformed { .. })));
}

#[test]
fn authorities_are_judged_before_they_may_sign() {
    let example = TrustDomain::parse("example.org").unwrap();
    let judge = |edit: fn(&mut Draft)| {
        AuthorityCertificate::read(&Ca::root_with("example.org", edit).der).unwrap().check_for(&example)
    };
    assert_eq!(judge(|_| {}), Ok(()));
    assert_eq!(judge(|draft| draft.extensions = ca_extensions(None)), Ok(()));
    assert_eq!(
        judge(|draft| draft.extensions[1] = key_usage(KEY_CERT_SIGN | CRL_SIGN | DIGITAL_SIGNATURE, true)),
        Ok(())
    );
    assert_eq!(judge(|draft| drop(draft.extensions.remove(0))), Err(AuthorityFault::NoBasicConstraints));
    assert_eq!(
        judge(|draft| draft.extensions[0] = basic_constraints(false, None)),
        Err(AuthorityFault::NotCa)
    );
    assert_eq!(judge(|draft| drop(draft.extensions.remove(1))), Err(AuthorityFault::CannotSign));
    assert_eq!(
        judge(|draft| draft.extensions[1] = key_usage(CRL_SIGN, true)),
        Err(AuthorityFault::CannotSign)
    );
    assert_eq!(
        judge(|draft| draft.extensions[1] = key_usage(KEY_CERT_SIGN | KEY_ENCIPHERMENT, true)),
        Err(AuthorityFault::OtherKeyUsage)
    );
    for wrong in [
        vec![uri("spiffe://other.test")],
        vec![uri("spiffe://example.org/ca")],
        vec![uri("spiffe://example.org"); 2],
    ] {
        let ca = Ca::root_with("x", |draft| draft.extensions[2] = san(&wrong, false));
        let judged = AuthorityCertificate::read(&ca.der).unwrap().check_for(&example);
        assert!(matches!(judged, Err(AuthorityFault::OtherId { .. })), "{judged:?}");
    }
}

#[test]
fn authorities_know_who_signed_them() {
    let root = Ca::root_with("example.org", |draft| draft.extensions.push(subject_key_id(&[0, 0xab])));
    let middle = root.intermediate("middle", |draft| {
        draft.extensions.extend([subject_key_id(&[0xcd]), authority_key_id(&[0, 0xab])]);
    });
    let [of_root, of_middle] = [&root, &middle].map(|ca| AuthorityCertificate::read(&ca.der).unwrap());
    assert!(of_root.is_self_signed() && !of_middle.is_self_signed());
    assert!(of_middle.was_signed_by(&of_root) && !of_root.was_signed_by(&of_middle));
    assert_eq!((of_root.authority_id(), of_root.upstream_authority_id()), ("00ab".into(), String::new()));
    assert_eq!((of_middle.authority_id(), of_middle.upstream_authority_id()), ("cd".into(), "00ab".into()));
    assert_eq!(of_root.uri(), Some("spiffe://example.org"));
    assert_eq!(of_middle.issuer_der(), of_root.subject_der());
    // Same name, other key.
    let namesake = AuthorityCertificate::read(&Ca::root("example.org").der).unwrap();
    assert!(!of_middle.was_signed_by(&namesake));
}

/// Certificates that SPIRE made.
#[test]
fn svids_of_spire_hold_under_its_bundle() {
    let example = TrustDomain::parse("example.org").unwrap();
    let bundle = document::from_pem(&example, include_bytes!("data/bundle.pem")).unwrap();
    let chain = document::certificates_from_pem(include_bytes!("data/svid.pem")).unwrap();
    let svid = X509Svid::read(chain).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://example.org/web");
    assert_eq!(svid.dns_names(), ["web.example.org"]);
    assert_eq!(svid.issuer_faults(), []);
    peer::verify_svid(&svid, &bundle.x509_authorities, svid.not_before()).unwrap();
    peer::verify_svid(&svid, &bundle.x509_authorities, svid.not_after()).unwrap();

    let authority = AuthorityCertificate::read(&bundle.x509_authorities[0].der).unwrap();
    authority.check_for(&example).unwrap();
    assert!(authority.is_self_signed());
    assert_eq!(authority.authority_id(), "7e4336b96b25a61e5c2c469767b3e5114c517f35");
    assert_eq!(svid.authority_key_id(), Some(authority.authority_id()));
    // SPIRE writes a CA's serial number into its name, in decimal.
    assert_eq!(authority.serial_decimal(), "180890935825122681437871773796020354085");
    assert!(
        authority.subject_der().windows(39).any(|window| window == authority.serial_decimal().as_bytes())
    );
}
