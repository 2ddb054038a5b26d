//! Certificates and chains. With the authorities of `identity/tests/data/bundle.pem`, whose key is gone, only one SVID
//! was ever signed: whatever else is believed is a forgery.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use finial_identity::bundle::document::certificates_from_pem;
use finial_identity::x509_svid::{AuthorityCertificate, X509Svid, leaf_id, split_concatenated};
use finial_identity::{SpiffeId, TrustDomain, peer};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

struct Known {
    authorities: Vec<CertificateDer<'static>>,
    svid: X509Svid,
    now: SystemTime,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let read = |pem| certificates_from_pem(pem).expect("a fixture");
    let authorities = read(include_bytes!("../../../identity/tests/data/bundle.pem"));
    let svid =
        X509Svid::read(read(include_bytes!("../../../identity/tests/data/svid.pem"))).expect("a fixture");
    let now = svid.not_before() + Duration::from_secs(60);
    peer::verify_svid(&svid, &authorities, now).expect("the fixtures belong together");
    Known { authorities, svid, now }
});

fuzz_target!(|data: &[u8]| {
    let known = &*KNOWN;

    if let Ok(authority) = AuthorityCertificate::read(data) {
        let _ = (authority.subject_der(), authority.issuer_der(), authority.public_key_der());
        let _ = (authority.authority_id(), authority.upstream_authority_id(), authority.serial_decimal());
        let _ = (authority.not_before(), authority.not_after(), authority.is_valid_at(known.now));
        let _ = (authority.is_ca(), authority.can_sign(), authority.path_len(), authority.uri());
        let _ = authority.is_self_signed();
        let _ = authority.check_for(&TrustDomain::parse("example.org").expect("a name"));
        // As an authority, too: of a bundle that a stranger gave.
        let _ = peer::verify_svid(&known.svid, &[data], known.now);
    }

    let Ok(chain) = split_concatenated(data) else { return };
    if let Some(leaf) = chain.first() {
        let _ = leaf_id(leaf);
    }
    let Ok(svid) = X509Svid::parse_concatenated(data) else { return };
    assert_eq!(svid.chain(), chain);
    assert_eq!(svid.concatenated(), data);
    assert_eq!(SpiffeId::parse(svid.id().as_str()).as_ref(), Ok(svid.id()));
    assert!(svid.serial_decimal().bytes().all(|byte| byte.is_ascii_digit()));
    let _ = (
        svid.not_before(),
        svid.not_after(),
        svid.dns_names(),
        svid.authority_key_id(),
        svid.issuer_faults(),
    );

    if peer::verify(&chain, &known.authorities, known.now).is_ok() {
        let what = |svid: &X509Svid| {
            (svid.id().clone(), svid.serial().to_vec(), svid.public_key_der().to_vec(), svid.not_after())
        };
        assert_eq!(what(&svid), what(&known.svid), "a forged SVID is believed");
    }
});
