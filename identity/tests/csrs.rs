//! Signing requests made by OpenSSL: which are accepted, and what is read from them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use finial_identity::csr::{CsrError, SignatureFault, VerifiedCsr};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;

macro_rules! csr {
    ($name:literal) => {
        ($name, include_bytes!(concat!("data/csr/", $name, ".pem")).as_slice())
    };
}

fn der(pem: &[u8]) -> Vec<u8> {
    CertificateSigningRequestDer::from_pem_slice(pem).unwrap().to_vec()
}

#[test]
fn each_key_type_is_accepted_with_each_sha2() {
    let accepted = [
        csr!("p256_sha256"),
        csr!("p256_sha384"),
        csr!("p256_sha512"),
        csr!("p384_sha256"),
        csr!("p384_sha384"),
        csr!("p384_sha512"),
        csr!("p521_sha256"),
        csr!("p521_sha384"),
        csr!("p521_sha512"),
        csr!("rsa_sha256"),
        csr!("rsa_sha384"),
        csr!("rsa_sha512"),
        csr!("pss_sha256"),
        csr!("pss_sha384"),
        csr!("pss_sha512"),
        csr!("ed25519"),
    ];
    for (name, pem) in accepted {
        let der = der(pem);
        let csr = VerifiedCsr::from_der(&der).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(csr.uris(), ["spiffe://example.org/web"], "{name}");
        assert_eq!(csr.dns_names(), ["web.example.org", "*.example.org"], "{name}");
        assert_eq!(csr.other_names(), 2, "{name}");
        assert_eq!(csr.subject().to_string(), "O=SPIRE,C=US", "{name}");
        let key = csr.public_key_der();
        assert!(der.windows(key.len()).any(|window| window == key), "{name}: the key is not byte for byte");
    }
}

#[test]
fn weak_and_unknown_algorithms_are_refused() {
    let refused = [
        (csr!("rsa_sha1"), SignatureFault::AlgorithmNotAccepted),
        (csr!("p256_sha1"), SignatureFault::AlgorithmNotAccepted),
        (csr!("p521_sha224"), SignatureFault::AlgorithmNotAccepted),
        (csr!("pss_salt20_sha256"), SignatureFault::AlgorithmNotAccepted),
        (csr!("secp256k1_sha256"), SignatureFault::AlgorithmDoesNotFitKey),
        (csr!("rsa1024_sha256"), SignatureFault::RsaKeySize(1024)),
    ];
    for ((name, pem), fault) in refused {
        assert_eq!(VerifiedCsr::from_der(&der(pem)), Err(CsrError::BadSignature(fault)), "{name}");
    }
}

#[test]
fn names_are_optional_and_counted() {
    let csr = VerifiedCsr::from_der(&der(csr!("no_extensions").1)).unwrap();
    assert!(csr.uris().is_empty() && csr.dns_names().is_empty());
    assert_eq!(csr.subject().to_string(), "CN=x");
    let csr = VerifiedCsr::from_der(&der(csr!("two_uris").1)).unwrap();
    assert_eq!(csr.uris(), ["spiffe://example.org/a", "spiffe://example.org/b"]);
}

#[test]
fn a_key_that_did_not_sign_is_refused() {
    let whole = der(csr!("p256_sha256").1);
    let mut other_signature = whole.clone();
    *other_signature.last_mut().unwrap() ^= 1;
    assert_eq!(VerifiedCsr::from_der(&other_signature), Err(CsrError::BadSignature(SignatureFault::Wrong)));
    let mut other_name = whole.clone();
    let position = other_name.windows(3).position(|window| window == b"web").unwrap();
    other_name[position] = b'W';
    assert_eq!(VerifiedCsr::from_der(&other_name), Err(CsrError::BadSignature(SignatureFault::Wrong)));

    let mut trailing = whole.clone();
    trailing.push(0);
    for malformed in [&trailing[..], &whole[..whole.len() - 1], &[]] {
        let error = VerifiedCsr::from_der(malformed).unwrap_err();
        assert!(matches!(error, CsrError::Malformed(_)), "{error}");
        assert!(error.to_string().starts_with("malformed CSR: "), "{error}");
    }
}

/// The keys that Finial's own agents ask with.
#[test]
fn requests_of_rcgen_are_accepted() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        let uri = "spiffe://example.org/x".try_into().unwrap();
        parameters.subject_alt_names.push(rcgen::SanType::URI(uri));
        let request = parameters.serialize_request(&key).unwrap();
        let csr = VerifiedCsr::from_der(request.der()).unwrap();
        assert_eq!(csr.uris(), ["spiffe://example.org/x"]);
    }
}
