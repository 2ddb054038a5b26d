//! Laws that hold for all values, or for many.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

mod pki;

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
};
use finial_identity::bundle::document::{self, Content};
use finial_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use finial_identity::csr::VerifiedCsr;
use finial_identity::selector::{self, Selector, SelectorMatch, is_subset, matches, sorted};
use finial_identity::x509_svid::{AuthorityCertificate, X509Svid, decimal};
use finial_identity::{SpiffeId, TrustDomain, entry, lifetime};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn path() -> impl Strategy<Value = String> {
    vec("[A-Za-z0-9._-]{1,12}".prop_filter("dots", |segment| segment != "." && segment != ".."), 0..6)
        .prop_map(|segments| segments.iter().map(|segment| format!("/{segment}")).collect())
}

proptest! {
    #[test]
    fn an_id_is_what_its_text_says(name in "[a-z0-9._-]{1,40}", path in path()) {
        let trust_domain = TrustDomain::parse(&name).unwrap();
        let id = SpiffeId::from_parts(&trust_domain, &path).unwrap();
        prop_assert_eq!(SpiffeId::parse(&format!("{id}")).unwrap(), id.clone());
        prop_assert_eq!(id.trust_domain(), trust_domain.clone());
        prop_assert_eq!(id.path(), path.as_str());
        prop_assert!(id.is_member_of(&trust_domain));
        prop_assert_eq!(id.workload_in(&trust_domain).is_ok(), !path.is_empty() && !id.is_reserved());
    }

    #[test]
    fn no_text_is_too_strange_to_be_refused(text in any::<String>(), tail in any::<String>()) {
        for text in [text.clone(), format!("spiffe://{text}"), format!("spiffe://td/{text}"), format!("spiffe://td/a{text}/{tail}")] {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert!(text.is_ascii());
            }
            let _ = TrustDomain::parse(&text);
            let _ = Selector::parse(&text);
            let _ = entry::dns_name(&text);
        }
    }

    #[test]
    fn a_selector_is_what_its_text_says(kind in "[^:]{1,10}", value in "(?s).{1,20}") {
        let selector = Selector::new(kind, value).unwrap();
        prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn subsets_are_those_of_set_theory(a in vec(0_u8..12, 0..8), b in vec(0_u8..12, 0..8), c in vec(0_u8..12, 0..8)) {
        let (a, b, c) = (sorted(a), sorted(b), sorted(c));
        prop_assert_eq!(is_subset(&a, &b), a.iter().all(|member| b.contains(member)));
        prop_assert_eq!(selector::intersects(&a, &b), a.iter().any(|member| b.contains(member)));
        prop_assert!(is_subset(&a, &a) && is_subset(&[], &a));
        prop_assert!(!(is_subset(&a, &b) && is_subset(&b, &a)) || a == b);
        prop_assert!(!(is_subset(&a, &b) && is_subset(&b, &c)) || is_subset(&a, &c));
        let union = sorted([a.clone(), b.clone()].concat());
        prop_assert!(is_subset(&a, &union) && is_subset(&b, &union));

        prop_assert_eq!(matches(SelectorMatch::Exact, &a, &b), a == b);
        prop_assert_eq!(matches(SelectorMatch::Subset, &a, &b), matches(SelectorMatch::Superset, &b, &a));
        prop_assert_eq!(matches(SelectorMatch::Any, &a, &b), matches(SelectorMatch::Any, &b, &a));
        let both = matches(SelectorMatch::Subset, &a, &b) && matches(SelectorMatch::Superset, &a, &b);
        prop_assert_eq!(matches(SelectorMatch::Exact, &a, &b), both);
    }

    #[test]
    fn decimals_are_those_of_arithmetic(number in any::<u128>()) {
        prop_assert_eq!(decimal(&number.to_be_bytes()), number.to_string());
    }

    #[test]
    fn arbitrary_bytes_are_refused_and_nothing_breaks(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(VerifiedCsr::from_der(&bytes).is_err());
        prop_assert!(X509Svid::parse_concatenated(&bytes).is_err());
        prop_assert!(AuthorityCertificate::read(&bytes).is_err());
        let td = TrustDomain::parse("example.org").unwrap();
        let _ = document::from_pem(&td, &bytes);
        prop_assert!(document::read(&td, &bytes).is_err());
    }

    #[test]
    fn no_changed_byte_of_a_request_is_overlooked(position in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut request = REQUEST.clone();
        let index = position.index(request.len());
        request[index] ^= 1 << bit;
        prop_assert!(VerifiedCsr::from_der(&request).is_err());
    }

    #[test]
    fn a_changed_byte_of_a_certificate_breaks_nothing(position in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut der = POOL.certificates[0].clone();
        let index = position.index(der.len());
        der[index] = byte;
        let _ = X509Svid::parse_concatenated(&der);
        if let Ok(certificate) = AuthorityCertificate::read(&der) {
            prop_assert!(!certificate.is_self_signed() || der == POOL.certificates[0]);
        }
    }

    #[test]
    fn a_bundle_survives_its_document(
        certificates in vec(0..POOL_SIZE, 0..4),
        keys in btree_map("(?s).{1,12}", (0..POOL_SIZE, any::<bool>()), 0..6),
        sequence in any::<u64>(),
        refresh_hint in 0..i64::MAX,
    ) {
        let bundle = bundle_of(&sorted(certificates), keys, sequence, refresh_hint);
        let json = document::to_json(&bundle).unwrap();
        let read = document::read(&bundle.trust_domain, json.as_bytes()).unwrap();
        prop_assert_eq!(&read.bundle, &bundle);
        prop_assert!(read.skipped.is_empty());
        prop_assert_eq!(document::to_json(&read.bundle).unwrap(), json);

        let plain = document::to_json_of(&bundle, Content::PLAIN_JWT).unwrap();
        prop_assert_eq!(plain.matches("\"kid\": ").count(), bundle.jwt_authorities.len());
        prop_assert!(!plain.contains("\"use\": ") && !plain.contains("\"spiffe_sequence\": "));

        if !bundle.x509_authorities.is_empty() {
            let pem = document::to_pem(&bundle);
            let from_pem = document::from_pem(&bundle.trust_domain, pem.as_bytes()).unwrap();
            prop_assert_eq!(from_pem.x509_authorities, bundle.x509_authorities);
        }
    }

    #[test]
    fn appending_twice_is_appending_once(
        first in vec(0..POOL_SIZE, 0..4), second in vec(0..POOL_SIZE, 0..4),
        keys in btree_map("[a-z]{1,2}", (0..POOL_SIZE, any::<bool>()), 0..4),
        other_keys in btree_map("[a-z]{1,2}", (0..POOL_SIZE, any::<bool>()), 0..4),
    ) {
        let mut bundle = bundle_of(&sorted(first), keys, 7, 0);
        let other = bundle_of(&sorted(second), other_keys, 3, 0);
        let before = bundle.clone();
        let changed = bundle.append(&other);
        prop_assert_eq!(changed, bundle.sequence_number == 8);
        prop_assert_eq!(!changed, bundle == before);
        let once = bundle.clone();
        prop_assert!(!bundle.append(&other));
        prop_assert_eq!(&bundle, &once);
        for authority in &other.x509_authorities {
            prop_assert!(bundle.x509_authorities.contains(authority));
        }
        for key in &before.jwt_authorities {
            prop_assert_eq!(bundle.jwt_authority(&key.key_id), Some(key), "what was there stays as it was");
        }
    }

    #[test]
    fn renewal_lies_in_the_middle_fifth_of_a_life(start in 0_u32.., life in 1_u32.., jitter in -0.2..0.2_f64) {
        let from = UNIX_EPOCH + Duration::from_secs(start.into());
        let to = from + Duration::from_secs(life.into());
        let due = lifetime::renew_at(from, to, jitter);
        let left = to.duration_since(due).unwrap().as_secs_f64() / f64::from(life);
        prop_assert!((0.4499..=0.5501).contains(&left), "{left}");
    }

    #[test]
    fn a_successor_is_prepared_before_it_takes_over(start in 0_u32.., life in 1_u32..) {
        let from = UNIX_EPOCH + Duration::from_secs(start.into());
        let to = from + Duration::from_secs(life.into());
        let (prepare, activate) = (lifetime::prepare_at(from, to), lifetime::activate_at(from, to));
        prop_assert!(from <= prepare && prepare < activate && activate < to);
        let longest = lifetime::longest_svid_ttl(to.duration_since(from).unwrap());
        prop_assert!(activate + longest <= to);
    }
}

const POOL_SIZE: usize = 5;

struct Pool {
    certificates: Vec<Vec<u8>>,
    keys: Vec<Vec<u8>>,
}

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool {
    certificates: (0..POOL_SIZE).map(|_| pki::Ca::root("example.org").der.to_vec()).collect(),
    keys: vec![
        pki::ec_spki(&ECDSA_P256_SHA256_ASN1_SIGNING),
        pki::ec_spki(&ECDSA_P384_SHA384_ASN1_SIGNING),
        pki::ec_spki(&ECDSA_P521_SHA512_ASN1_SIGNING),
        pki::rsa_spki(),
        pki::ed25519_spki(),
    ],
});

static REQUEST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["web.example.org".to_owned()]).unwrap();
    parameters.serialize_request(&key).unwrap().der().to_vec()
});

fn bundle_of(
    certificates: &[usize],
    keys: std::collections::BTreeMap<String, (usize, bool)>,
    sequence_number: u64,
    refresh_hint: i64,
) -> Bundle {
    let mut bundle = Bundle::new(TrustDomain::parse("example.org").unwrap());
    bundle.sequence_number = sequence_number;
    bundle.refresh_hint = refresh_hint;
    bundle.x509_authorities = certificates
        .iter()
        .map(|index| X509Authority { der: POOL.certificates[*index].clone(), tainted: false })
        .collect();
    for (key_id, (index, is_wit)) in keys {
        let key =
            JwtAuthority { key_id, public_key: POOL.keys[index].clone(), expires_at: 0, tainted: false };
        if is_wit { bundle.wit_authorities.push(key) } else { bundle.jwt_authorities.push(key) }
    }
    bundle
}

#[test]
fn the_request_that_is_changed_above_holds_unchanged() {
    let request = VerifiedCsr::from_der(&REQUEST).unwrap();
    assert_eq!(request.dns_names(), ["web.example.org"]);
}
