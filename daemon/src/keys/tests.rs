use std::io::Write;
use std::process::{Command, Stdio};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use rustls::SignatureScheme;
use rustls::sign::SigningKey;

use super::*;

/// Checks a key's signature over a message with the public key that it shows.
pub(super) async fn check_signature(key: &Key) {
    let (asn1, jose): (&'static dyn VerificationAlgorithm, &'static dyn VerificationAlgorithm) =
        match key.key_type() {
            KeyType::EcP256 => (&ECDSA_P256_SHA256_ASN1, &ECDSA_P256_SHA256_FIXED),
            KeyType::EcP384 => (&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA384_FIXED),
            KeyType::Rsa2048 | KeyType::Rsa4096 => (&RSA_PKCS1_2048_8192_SHA256, &RSA_PKCS1_2048_8192_SHA256),
        };
    let message = b"what is signed";
    for (algorithm, signature) in
        [(asn1, key.sign(message).await.unwrap()), (jose, key.sign_jose(message).await.unwrap())]
    {
        let public = ParsedPublicKey::new(algorithm, key.public_key_der()).unwrap();
        public.verify_sig(message, &signature).unwrap();
        public.verify_sig(b"something else", &signature).unwrap_err();
    }
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract::holds(&memory::MemoryKeys::new()).await;
}

#[tokio::test]
async fn disk_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    contract::holds(&disk::DiskKeys::open(&path).await.unwrap()).await;
    let again = disk::DiskKeys::open(&path).await.unwrap();
    assert_eq!(again.list().await.unwrap().len(), 12);
    for key in again.list().await.unwrap() {
        check_signature(&key).await;
    }
}

#[test]
fn names_of_key_types() {
    for key_type in KeyType::ALL {
        assert_eq!(key_type.to_string().to_uppercase().parse::<KeyType>().unwrap(), key_type);
    }
    assert_eq!(
        "ec-p521".parse::<KeyType>().unwrap_err().to_string(),
        "key type \"ec-p521\" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]"
    );
}

#[test]
fn jose_signatures_keep_leading_zeros() {
    let der = hex_bytes("300702010102020080");
    let joined = local::jose_signature(KeyType::EcP256, der).unwrap();
    assert_eq!(joined.len(), 64);
    assert_eq!((joined[31], joined[63]), (1, 0x80));
    assert_eq!(joined.iter().filter(|byte| **byte != 0).count(), 2);
    assert_eq!(local::jose_signature(KeyType::EcP256, b"not DER".to_vec()), None);
}

/// Ours to OpenSSL and OpenSSL's to us, in each form that PKCS#8 keys come in.
#[test]
fn pkcs8_is_understood_by_others_and_theirs_by_us() {
    let openssl_names: [(&str, &[&str]); 4] = [
        ("ec-p256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("ec-p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("rsa-2048", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("rsa-4096", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"]),
    ];
    for (name, arguments) in openssl_names {
        let key_type: KeyType = name.parse().unwrap();
        let ours = WorkloadKey::generate(key_type).unwrap();
        let public =
            openssl(&["pkey", "-inform", "DER", "-pubout", "-outform", "DER", "-check"], ours.pkcs8());
        assert!(public.ends_with(ours.public_key_der()), "{name}");
        assert_eq!(WorkloadKey::from_pkcs8(ours.pkcs8()).unwrap().public_key_der(), ours.public_key_der());

        let pkcs8 = generated(arguments);
        let theirs = WorkloadKey::from_pkcs8(&pkcs8).unwrap();
        assert_eq!(theirs.key_type(), key_type);
        assert_eq!(theirs.pkcs8().as_slice(), pkcs8.as_slice());
        let public = openssl(&["pkey", "-inform", "DER", "-pubout", "-outform", "DER"], &pkcs8);
        assert_eq!(theirs.public_key_der(), public);
    }
}

/// Made by Go 1.26's `x509.MarshalPKCS8PrivateKey`, and the same P-256 key without its public half.
#[test]
fn reads_the_keys_that_go_writes() {
    let with_public = GO_P256_PKCS8;
    let public = WorkloadKey::from_pkcs8(&hex_bytes(with_public)).unwrap().public_key_der().to_vec();
    assert_eq!(public, hex_bytes(GO_P256_PUBLIC));
    let bare = WorkloadKey::from_pkcs8(&hex_bytes(BARE_P256_PKCS8)).unwrap();
    assert_eq!(bare.public_key_der(), public);
}

#[test]
fn refuses_what_is_no_key() {
    for (bytes, want) in [
        (b"".to_vec(), "not usable PKCS#8"),
        (b"\x30\x03\x02\x01\x00".to_vec(), "not usable PKCS#8"),
        (generated(&["-algorithm", "ED25519"]), "a key of algorithm 1.3.101.112"),
        (
            generated(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"]),
            "curve 1.3.132.0.35, where P-256, P-384, RSA 2048 and RSA 4096 are supported",
        ),
        (generated(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]), "an RSA key of 3072 bits"),
    ] {
        let text = WorkloadKey::from_pkcs8(&bytes).unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    }
    let mut cut = WorkloadKey::generate(KeyType::EcP256).unwrap().pkcs8().to_vec();
    cut.pop();
    WorkloadKey::from_pkcs8(&cut).unwrap_err();
}

#[tokio::test]
async fn requests_verify_elsewhere() {
    let keys = memory::MemoryKeys::new();
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let key = keys.generate("k", key_type).await.unwrap();
        let der = csr(&key, &spire_subject(), &["spiffe://example.org/a/b"]).await.unwrap();
        let text = request_text(&der);
        assert!(
            text.contains("Subject: C = US, O = SPIRE") || text.contains("Subject: C=US, O=SPIRE"),
            "{text}"
        );
        assert!(text.contains("URI:spiffe://example.org/a/b"), "{text}");

        let exportable = WorkloadKey::generate(key_type).unwrap();
        let text = request_text(&exportable.csr(&spire_subject(), &[]).unwrap());
        assert!(!text.contains("Alternative Name"), "{text}");
    }
    let key = keys.generate("k", KeyType::EcP256).await.unwrap();
    let error = csr(&key, &spire_subject(), &["spiffe://example.org/\u{e9}"]).await.unwrap_err();
    assert!(error.to_string().contains("is not an ASCII URI"), "{error}");
}

#[tokio::test]
async fn tls_keys_sign_with_what_the_peer_offers() {
    let keys = memory::MemoryKeys::new();
    let key = keys.generate("ec", KeyType::EcP256).await.unwrap();
    let tls = rustls_key(&key);
    assert_eq!(tls.public_key().unwrap().as_ref(), key.public_key_der());
    assert!(tls.choose_scheme(&[SignatureScheme::ECDSA_NISTP384_SHA384]).is_none());
    let signer = tls
        .choose_scheme(&[SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256])
        .unwrap();
    let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key_der()).unwrap();
    public.verify_sig(b"hello", &signer.sign(b"hello").unwrap()).unwrap();

    let key = keys.generate("rsa", KeyType::Rsa2048).await.unwrap();
    let tls: Arc<dyn SigningKey> = rustls_key(&key);
    for (offered, scheme) in [
        (
            &[SignatureScheme::RSA_PKCS1_SHA256, SignatureScheme::RSA_PSS_SHA384][..],
            SignatureScheme::RSA_PSS_SHA384,
        ),
        (&[SignatureScheme::RSA_PKCS1_SHA512], SignatureScheme::RSA_PKCS1_SHA512),
    ] {
        let signer = tls.choose_scheme(offered).unwrap();
        assert_eq!(signer.scheme(), scheme);
        assert_eq!(signer.sign(b"hello").unwrap().len(), 256);
    }
    assert!(tls.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).is_none());
}

#[tokio::test]
async fn debug_output_shows_no_secret() {
    let key = memory::MemoryKeys::new().generate("x509-CA-A", KeyType::EcP256).await.unwrap();
    assert_eq!(format!("{key:?}"), "Key { id: \"x509-CA-A\", key_type: EcP256, .. }");
    assert_eq!(
        format!("{:?}", WorkloadKey::generate(KeyType::EcP256).unwrap()),
        "WorkloadKey { key_type: EcP256, .. }"
    );
    assert_eq!(
        format!("{:?}", rustls_key(&key)),
        "TlsKey { key: Key { id: \"x509-CA-A\", key_type: EcP256, .. } }"
    );
}

/// `openssl req`'s view of a request, after it has checked the signature.
fn request_text(der: &[u8]) -> String {
    let text = openssl(&["req", "-inform", "DER", "-verify", "-noout", "-text"], der);
    String::from_utf8(text).unwrap()
}

/// A key of OpenSSL's making as PKCS#8, DER.
fn generated(arguments: &[&str]) -> Vec<u8> {
    let key = openssl(&[&["genpkey", "-outform", "DER"], arguments].concat(), b"");
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER"], &key)
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is part of the test machine");
    // A program that does not read its input closes it early.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn hex_bytes(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

const GO_P256_PKCS8: &str = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420d6d0eaeb164b0528bbc7f2b3aa344ef7231fca63b22f4888a9882361d14133a4a144034200044d8f5ae4de93598bb59fcaaf414376ddb86a9a40a7c4d642c72fbc3097055a0582c9a436711120a3d8f4e32f4605f422ded5001d1d95c9bdc8c56227ede7a663";
const GO_P256_PUBLIC: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200044d8f5ae4de93598bb59fcaaf414376ddb86a9a40a7c4d642c72fbc3097055a0582c9a436711120a3d8f4e32f4605f422ded5001d1d95c9bdc8c56227ede7a663";
const BARE_P256_PKCS8: &str = "3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420d6d0eaeb164b0528bbc7f2b3aa344ef7231fca63b22f4888a9882361d14133a4";
