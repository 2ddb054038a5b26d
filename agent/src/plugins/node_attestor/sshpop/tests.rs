use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use finial_daemon::settings::parse;
use finial_identity::go_json::Object;
use finial_identity::ssh::{Signature, push_string};

use super::*;

/// Writes a host key and its certificate, which nobody signed.
fn write(folder: &Path, key: &Ed25519KeyPair) {
    let pkcs8 = BASE64_STANDARD.encode(key.to_pkcs8v1().unwrap());
    std::fs::write(
        folder.join("key"),
        format!("-----BEGIN PRIVATE KEY-----\n{pkcs8}\n-----END PRIVATE KEY-----\n"),
    )
    .unwrap();
    let public = key.public_key().as_ref();
    let mut plain = Vec::new();
    push_string(&mut plain, b"ssh-ed25519");
    push_string(&mut plain, public);
    let mut blob = Vec::new();
    push_string(&mut blob, b"ssh-ed25519-cert-v01@openssh.com");
    push_string(&mut blob, b"");
    push_string(&mut blob, public);
    blob.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
    for _ in 0..2 {
        push_string(&mut blob, b"");
    }
    blob.extend([0; 16]);
    for _ in 0..3 {
        push_string(&mut blob, b"");
    }
    push_string(&mut blob, &plain);
    let mut signature = Vec::new();
    push_string(&mut signature, b"ssh-ed25519");
    push_string(&mut signature, &[0; 64]);
    push_string(&mut blob, &signature);
    let line = format!("ssh-ed25519-cert-v01@openssh.com {} host\n", BASE64_STANDARD.encode(&blob));
    std::fs::write(folder.join("key-cert.pub"), line).unwrap();
    std::fs::write(folder.join("key.pub"), format!("ssh-ed25519 {}\n", BASE64_STANDARD.encode(&plain)))
        .unwrap();
}

fn data(folder: &Path, key: &str, certificate: &str) -> String {
    format!("host_key_path = {:?}\nhost_cert_path = {:?}", folder.join(key), folder.join(certificate))
}

fn configured(data: &str) -> Result<Arc<dyn NodeAttestor>, String> {
    let block = parse(data, "agent.conf").unwrap();
    configure(Section::named(&block, "plugin_data"), &Given::default()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn challenges_are_answered_with_the_hosts_key() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Ed25519KeyPair::generate().unwrap());
    let attestor = configured(&data(folder.path(), "key", "key-cert.pub")).unwrap();
    let mut attestation = attestor.begin().await.unwrap();
    let certificate = Object::read(&attestation.payload()).unwrap().bytes("certificate").unwrap();
    let certificate = Certificate::read(&certificate).unwrap();
    let challenge = json!({ "Nonce": encoded(&[3; 32]) }).to_string();
    let answer = attestation.respond(challenge.as_bytes()).await.unwrap();
    let answer = Object::read(&answer).unwrap();
    let part = answer.object("Signature").unwrap().unwrap();
    let signature = Signature { format: part.text("Format").unwrap(), blob: part.bytes("Blob").unwrap() };
    let signed = possession::combine(&[3; 32], &answer.bytes("Nonce").unwrap()).unwrap();
    certificate.key.verify(&possession::hash(&signed), &signature).unwrap();

    for (challenge, text) in [
        (json!({ "Nonce": encoded(&[3; 31]) }).to_string(), "invalid challenge nonce size"),
        ("{}".to_owned(), "invalid challenge nonce size"),
        ("nonsense".to_owned(), "failed to unmarshal challenge request"),
    ] {
        let error = attestation.respond(challenge.as_bytes()).await.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Ed25519KeyPair::generate().unwrap());
    let attestor = configured(&data(folder.path(), "key", "key-cert.pub")).unwrap();
    let before = attestor.begin().await.unwrap().payload();
    write(folder.path(), &Ed25519KeyPair::generate().unwrap());
    assert_ne!(before, attestor.begin().await.unwrap().payload());
    std::fs::remove_file(folder.path().join("key")).unwrap();
    assert!(matches!(attestor.begin().await.err().unwrap(), NodeAttestorFault::NotReady { .. }));
}

/// Files are looked at when they are needed: what is checked elsewhere than on the node is the text alone.
#[tokio::test]
async fn settings_and_files_are_refused_in_spires_words() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    for folder in [&folder, &other] {
        write(folder.path(), &Ed25519KeyPair::generate().unwrap());
    }
    let at = folder.path();
    std::fs::copy(other.path().join("key-cert.pub"), at.join("other-cert.pub")).unwrap();
    std::fs::write(at.join("empty"), "").unwrap();
    std::fs::write(
        at.join("locked"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    std::fs::write(
        at.join("cut"),
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n",
    )
    .unwrap();
    for (data, text) in [
        (data(at, "missing", "key-cert.pub"), "failed to read host key file: open "),
        (data(at, "key", "missing"), "failed to read host cert file: open "),
        (data(at, "empty", "key-cert.pub"), "failed to get cert and signer from pem: "),
        (data(at, "locked", "key-cert.pub"), "ssh: this private key is passphrase protected"),
        (data(at, "cut", "key-cert.pub"), "ssh: short read"),
        (data(at, "key", "empty"), "ssh: no key found"),
        (data(at, "key", "key.pub"), "is not a certificate"),
        (data(at, "key", "other-cert.pub"), "it is not for the key in"),
        (format!("{}\nfoo = 1", data(at, "key", "key-cert.pub")), "foo"),
    ] {
        let error = match configured(&data) {
            Ok(attestor) => {
                attestor.begin().await.err().unwrap_or_else(|| panic!("{data} passes")).to_string()
            }
            Err(error) => error,
        };
        assert!(error.contains(text), "{error} and not {text}");
    }
}
