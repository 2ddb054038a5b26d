//! What machines bring to prove what they are: JSON as Go reads it, certificates, SSH certificates, keys.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use finial_identity::chain::{self, Link};
use finial_identity::go_json::Object;
use finial_identity::possession::{self, PublicKey};
use finial_identity::ssh;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(object) = Object::read(data) else {
        blob(data);
        return;
    };
    for name in ["nonce", "signature", "r", "s", "Certificate", "Blob"] {
        if let Ok(bytes) = object.bytes(name) {
            blob(&bytes);
        }
    }
    let _ = (object.text("hostname"), object.number("port"), object.object("rsa_signature").is_ok());
    let Ok(certificates) = object.list_of_bytes("certificates") else { return };
    let links: Vec<Link> = certificates.iter().filter_map(|der| Link::read(der).ok()).collect();
    let Some((leaf, others)) = links.split_first() else { return };
    let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    // Whoever brings the roots is believed; what is believed must hang together.
    for path in chain::verify(leaf, others, others, now).into_iter().flatten() {
        let mut below = leaf;
        for link in path {
            assert!(below.certificate().was_signed_by(link.certificate()));
            below = link;
        }
    }
});

fn blob(bytes: &[u8]) {
    let _ = PublicKey::read(bytes);
    if let Ok((r, s)) = possession::ecdsa_parts(bytes) {
        assert_eq!(possession::ecdsa_parts(&possession::ecdsa_signature(&r, &s)), Ok((r, s)));
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = ssh::PublicKey::read_line(&text);
    let Ok(certificate) = ssh::Certificate::read(bytes) else { return };
    assert_eq!(certificate.blob(), bytes);
    if certificate.check_signature().is_ok() {
        let mut changed = bytes.to_vec();
        changed[bytes.len() / 3] ^= 1;
        let holds = ssh::Certificate::read(&changed).is_ok_and(|changed| changed.check_signature().is_ok());
        assert!(!holds);
    }
}
