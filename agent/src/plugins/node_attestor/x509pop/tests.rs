use std::path::Path;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P521_SHA256_ASN1, RSA_PSS_2048_8192_SHA256,
    RsaPssSaltLength, UnparsedPublicKey, VerificationAlgorithm,
};
use finial_daemon::settings::parse;
use finial_identity::go_json::Object;
use finial_identity::possession;
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

use super::*;

fn write(folder: &Path, key: &KeyPair) {
    let certificate = CertificateParams::default().self_signed(key).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

fn files(folder: &Path) -> String {
    format!(
        "private_key_path = {:?}\ncertificate_path = {:?}\n",
        folder.join("key.pem"),
        folder.join("cert.pem")
    )
}

fn configured(data: &str) -> Result<Arc<dyn NodeAttestor>, String> {
    let block = parse(data, "agent.conf").unwrap();
    configure(Section::named(&block, "plugin_data"), &Given::default()).map_err(|error| error.to_string())
}

/// The payload's certificates, and the answer to a challenge that all kinds of keys can read.
async fn exchange(attestor: &dyn NodeAttestor, nonce: &[u8]) -> (Vec<Vec<u8>>, Result<Value, String>) {
    let mut attestation = attestor.begin().await.unwrap();
    let chain = Object::read(&attestation.payload()).unwrap().list_of_bytes("certificates").unwrap();
    let nonce = json!({ "nonce": encoded(nonce) });
    let challenge = json!({ "rsa_signature": nonce, "ecdsa_signature": nonce }).to_string();
    let answer = attestation.respond(challenge.as_bytes()).await;
    (chain, answer.map(|answer| serde_json::from_slice(&answer).unwrap()).map_err(|error| error.to_string()))
}

#[tokio::test]
async fn each_kind_of_key_answers() {
    let longest: &'static dyn VerificationAlgorithm =
        &const { RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) };
    let kinds: [(_, &'static dyn VerificationAlgorithm); 4] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, &ECDSA_P256_SHA256_ASN1),
        (&rcgen::PKCS_ECDSA_P384_SHA384, &ECDSA_P384_SHA256_ASN1),
        (&rcgen::PKCS_ECDSA_P521_SHA512, &ECDSA_P521_SHA256_ASN1),
        (&rcgen::PKCS_RSA_SHA256, longest),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (kind, algorithm) in kinds {
        let key = KeyPair::generate_for(kind).unwrap();
        write(folder.path(), &key);
        let attestor = configured(&files(folder.path())).unwrap();
        for _ in 0..20 {
            let (_, answer) = exchange(&*attestor, &[3; 32]).await;
            let answer = Object::read(answer.unwrap().to_string().as_bytes()).unwrap();
            let (part, signature) = match answer.object("rsa_signature").unwrap() {
                Some(part) => {
                    let signature = part.bytes("signature").unwrap();
                    (part, signature)
                }
                None => {
                    let part = answer.object("ecdsa_signature").unwrap().unwrap();
                    let (r, s) = (part.bytes("r").unwrap(), part.bytes("s").unwrap());
                    // As Go writes numbers.
                    assert!(r[0] != 0 && s[0] != 0);
                    (part, possession::ecdsa_signature(&r, &s))
                }
            };
            let message = [vec![3; 32], part.bytes("nonce").unwrap()].concat();
            assert_eq!(message.len(), 64);
            UnparsedPublicKey::new(algorithm, key.public_key_raw()).verify(&message, &signature).unwrap();
        }
    }
}

#[tokio::test]
async fn files_are_read_anew_and_bad_challenges_are_not_answered() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &KeyPair::generate().unwrap());
    let attestor = configured(&files(folder.path())).unwrap();
    let (first, _) = exchange(&*attestor, &[3; 32]).await;
    write(folder.path(), &KeyPair::generate().unwrap());
    let (second, _) = exchange(&*attestor, &[3; 32]).await;
    assert_ne!(first, second, "the certificate was replaced on disk");

    let (_, short) = exchange(&*attestor, &[3; 31]).await;
    assert!(short.unwrap_err().contains("invalid challenge nonce"));
    let mut attestation = attestor.begin().await.unwrap();
    for (challenge, text) in [
        ("{\"rsa_signature\":{\"nonce\":\"AA==\"},\"ecdsa_signature\":null}", "expecting ECDSA challenge"),
        ("nonsense", "unable to unmarshal challenge"),
    ] {
        let error = attestation.respond(challenge.as_bytes()).await.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    std::fs::remove_file(folder.path().join("key.pem")).unwrap();
    let error = attestor.begin().await.err().unwrap();
    assert!(matches!(error, NodeAttestorFault::NotReady { .. }), "{error}");
}

#[test]
fn intermediates_follow_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &KeyPair::generate().unwrap());
    let one = std::fs::read_to_string(folder.path().join("cert.pem")).unwrap();
    std::fs::write(folder.path().join("more.pem"), format!("{one}\n{one}")).unwrap();
    let files = Files {
        certificate: folder.path().join("cert.pem"),
        key: folder.path().join("key.pem"),
        intermediates: Some(folder.path().join("more.pem")),
    };
    assert_eq!(files.load().unwrap().chain.len(), 3);
}

/// Files are looked at when they are needed: what is checked elsewhere than on the node is the text alone.
#[tokio::test]
async fn settings_and_files_are_refused_in_spires_words() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &KeyPair::generate().unwrap());
    let other = tempfile::tempdir().unwrap();
    write(other.path(), &KeyPair::generate().unwrap());
    let ed25519 = tempfile::tempdir().unwrap();
    write(ed25519.path(), &KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    let good = files(folder.path());
    let mixed = format!(
        "private_key_path = {:?}\ncertificate_path = {:?}",
        folder.path().join("key.pem"),
        other.path().join("cert.pem")
    );
    for (data, text) in [
        (String::new(), "private_key_path is required"),
        (String::new(), "certificate_path is required"),
        (
            "private_key_path = \"/no\"\ncertificate_path = \"/no\"".to_owned(),
            "unable to load keypair: open /no: ",
        ),
        (mixed, "unable to load keypair: tls: private key does not match public key"),
        (files(ed25519.path()), "unsupported private key type ed25519.PrivateKey"),
        (
            format!("{good}\nintermediates_path = \"/no\""),
            "unable to load intermediate certificates: open /no: ",
        ),
        ("spiffe_endpoint_socket = \"/run/x.sock\"".to_owned(), "spiffe_endpoint_socket"),
        ("spiffe_endpoint_socket = \"tcp://localhost:1\"".to_owned(), "needs an IP address and a port"),
        (format!("{good}\nfoo = 1"), "foo"),
    ] {
        let error = match configured(&data) {
            Ok(attestor) => {
                attestor.begin().await.err().unwrap_or_else(|| panic!("{data} passes")).to_string()
            }
            Err(error) => error,
        };
        assert!(error.contains(text), "{error} and not {text}");
    }
    configured(&good).unwrap();
    configured("spiffe_endpoint_socket = \"unix:///run/x.sock\"").unwrap();
}

#[test]
fn endpoints_are_those_of_the_standard() {
    let unix = |path: &str| Ok(Endpoint::Unix(path.into()));
    assert_eq!(Endpoint::parse("unix:///run/a.sock"), unix("/run/a.sock"));
    assert_eq!(Endpoint::parse("unix:/run/a.sock"), unix("/run/a.sock"));
    assert_eq!(Endpoint::parse("tcp://127.0.0.1:8000"), Ok(Endpoint::Tcp("127.0.0.1".into(), 8000)));
    assert_eq!(Endpoint::parse("tcp://[::1]:8000"), Ok(Endpoint::Tcp("::1".into(), 8000)));
    for bad in ["", "unix:", "unix://", "unix:a", "tcp://a:1", "tcp://127.0.0.1", "http://127.0.0.1:1"] {
        assert!(Endpoint::parse(bad).is_err(), "{bad}");
    }
}
