//! Edits of bundles.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

mod pki;

use std::time::Duration;

use finial_identity::TrustDomain;
use finial_identity::bundle::{AuthorityEditError, Bundle, JwtAuthority, PruneError, X509Authority};
use pki::{Ca, HOUR, NOW, at, subject_key_id};

fn key(key_id: &str, expires_at: i64) -> JwtAuthority {
    JwtAuthority { key_id: key_id.into(), public_key: vec![1], expires_at, tainted: false }
}

fn authority(id: u8, not_after: i64) -> X509Authority {
    let ca = Ca::root_with("example.org", |draft| {
        draft.not_after = not_after;
        draft.extensions.push(subject_key_id(&[id]));
    });
    X509Authority { der: ca.der.to_vec(), tainted: false }
}

fn bundle() -> Bundle {
    let mut bundle = Bundle::new(TrustDomain::parse("example.org").unwrap());
    bundle.x509_authorities = vec![authority(0xa1, NOW + HOUR), authority(0xb2, NOW + 9 * HOUR)];
    bundle.jwt_authorities = vec![key("j1", NOW + HOUR), key("j2", NOW + 9 * HOUR), key("forever", 0)];
    bundle.wit_authorities = vec![key("w1", NOW + 9 * HOUR)];
    bundle.sequence_number = 5;
    bundle
}

#[test]
fn only_what_is_new_is_appended() {
    let mut own = bundle();
    let mut other = bundle();
    other.x509_authorities[0] = own.x509_authorities[0].clone();
    other.x509_authorities[0].tainted = true;
    other.x509_authorities[1] = authority(0xc3, NOW + HOUR);
    other.jwt_authorities = vec![key("j1", 77), key("j3", NOW)];
    assert!(own.append(&other));
    assert_eq!(own.sequence_number, 6);
    assert_eq!(own.x509_authorities.len(), 3);
    assert!(!own.x509_authorities[0].tainted, "what is here keeps its taint");
    assert_eq!(own.jwt_authority("j1").unwrap().expires_at, NOW + HOUR);
    assert_eq!(own.jwt_authorities.last().unwrap().key_id, "j3");
    assert!(!own.append(&other));
    assert_eq!(own.sequence_number, 6);
}

#[test]
fn the_expired_are_pruned_but_never_the_last_of_a_kind() {
    let mut own = bundle();
    assert_eq!(own.prune(at(NOW + HOUR - 1)), Ok(false));
    assert_eq!(own.sequence_number, 5);
    assert_eq!(own.prune(at(NOW + HOUR)), Ok(true), "the instant of expiry counts as expired");
    assert_eq!(own.sequence_number, 6);
    assert_eq!(own.x509_authorities.len(), 1);
    let left: Vec<_> = own.jwt_authorities.iter().map(|key| key.key_id.as_str()).collect();
    assert_eq!(left, ["j2", "forever"]);

    let before = own.clone();
    assert_eq!(own.prune(at(NOW + 9 * HOUR)), Err(PruneError::NoCertificateLeft));
    own.x509_authorities.push(authority(0xd4, NOW + 99 * HOUR));
    assert_eq!(own.prune(at(NOW + 9 * HOUR)), Err(PruneError::NoWitKeyLeft));
    own.wit_authorities.clear();
    own.jwt_authorities.pop();
    assert_eq!(own.prune(at(NOW + 9 * HOUR)), Err(PruneError::NoJwtKeyLeft));
    assert_eq!(own.sequence_number, before.sequence_number, "refusals change nothing");
    own.x509_authorities[0].der = vec![0];
    assert!(matches!(own.prune(at(NOW)), Err(PruneError::Malformed(_))));
}

#[test]
fn authorities_are_tainted_once_and_revoked_only_then() {
    let mut own = bundle();
    assert_eq!(own.revoke_x509("a1"), Err(AuthorityEditError::CaNotTainted));
    assert_eq!(own.taint_x509("ff"), Err(AuthorityEditError::NoCaToTaint));
    assert_eq!(own.taint_x509("a1"), Ok(()));
    assert_eq!(own.taint_x509("a1"), Err(AuthorityEditError::CaAlreadyTainted));
    assert!(own.x509_authorities[0].tainted && !own.x509_authorities[1].tainted);
    assert_eq!(own.revoke_x509("a1"), Ok(()));
    assert_eq!(own.revoke_x509("a1"), Err(AuthorityEditError::NoCaToRevoke));
    assert_eq!(own.x509_authorities.len(), 1);
    assert_eq!(own.sequence_number, 7);

    assert_eq!(own.revoke_jwt("j1"), Err(AuthorityEditError::KeyNotTainted));
    assert!(own.taint_jwt("j1").unwrap().tainted);
    assert_eq!(own.taint_jwt("j1"), Err(AuthorityEditError::KeyAlreadyTainted));
    assert_eq!(own.revoke_jwt("j1").unwrap().key_id, "j1");
    assert_eq!(own.taint_jwt("j1").unwrap_err().to_string(), "no JWT Key found with provided key ID");
    assert_eq!(own.sequence_number, 9);
    assert!(own.taint_wit("w1").unwrap().tainted);
    assert_eq!(own.revoke_wit("w1").unwrap().key_id, "w1");
    assert_eq!(own.revoke_wit("w1"), Err(AuthorityEditError::NoKey("WIT")));
}

#[test]
fn consumers_fetch_again_in_time() {
    let mut own = bundle();
    // The shorter life is two hours, from an hour before now.
    assert_eq!(own.refresh_interval(), Duration::from_secs(2 * 3600 / 10));
    own.refresh_hint = 300;
    assert_eq!(own.refresh_interval(), Duration::from_secs(300));
    own.refresh_hint = 1;
    assert_eq!(own.refresh_interval(), Duration::from_secs(60));
    own.refresh_hint = -1;
    assert_eq!(own.refresh_interval(), Duration::from_secs(720));
    assert_eq!(Bundle::new(own.trust_domain).refresh_interval(), Duration::from_secs(60));
}
