use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::keys::{self, KeyManager, KeyType, memory::MemoryKeys, spire_subject};
use finial_daemon::settings::{Section, parse};
use finial_identity::x509_svid::AuthorityCertificate;

use super::*;
use crate::authority::tests::pki::{self, Pki};
use crate::authority::tests::{today, trust_domain};

const HOUR: Duration = Duration::from_secs(3600);

async fn csr(uris: &[&str]) -> Vec<u8> {
    let key = MemoryKeys::new().generate("x509-CA-A", KeyType::EcP256).await.unwrap();
    keys::csr(&key, &spire_subject(), uris).await.unwrap()
}

async fn refusal(pki: &Pki, certificate: &str, key: &str, bundle: Option<&str>) -> String {
    let plugin = pki.upstream(certificate, key, bundle, Clock::paused(today()));
    let csr = csr(&["spiffe://example.org"]).await;
    let minting = plugin.mint_x509_ca(&csr, HOUR).await.expect_err("accepted").to_string();
    assert_eq!(plugin.check().await.unwrap_err().to_string(), minting, "a check says what minting says");
    minting
}

/// Every way in which files can be wrong: the error names file, cause and next step, and nothing is signed.
#[tokio::test(start_paused = true)]
async fn wrong_files_are_refused_by_name() {
    let pki = Pki::new();
    pki.root("root", pki::RSA, "/O=Big Corp/CN=Root", 3650, pki::CA);
    pki.root("other", pki::P256, "/O=Other/CN=Root", 3650, pki::CA);
    pki.below("issuing", "root", pki::P384, "/O=Big Corp/CN=Issuing", 1825, pki::CA);
    pki.below("narrow", "root", pki::P256, "/O=Big Corp/CN=Narrow", 1825, "critical,CA:TRUE,pathlen:0");
    pki.below("below-narrow", "narrow", pki::P256, "/O=Big Corp/CN=Below", 1825, pki::CA);
    pki.below("leaf", "root", pki::P256, "/O=Big Corp/CN=Leaf", 1825, "critical,CA:FALSE");
    pki.join("wrong-order.pem", &["root.pem", "issuing.pem"]);
    pki.join("gap.pem", &["below-narrow.pem"]);
    pki.join("narrow-chain.pem", &["below-narrow.pem", "narrow.pem"]);
    std::fs::write(pki.path("empty.pem"), "").unwrap();
    std::fs::write(pki.path("garbage.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();

    let root = Some("root.pem");
    let table: &[(&str, &str, Option<&str>, &[&str])] = &[
        (
            "none.pem",
            "issuing.key",
            root,
            &["cert_file_path", "none.pem can not be read", "make it readable"],
        ),
        ("issuing.pem", "none.key", root, &["key_file_path", "none.key can not be read"]),
        ("issuing.pem", "issuing.key", Some("none.pem"), &["bundle_file_path", "none.pem can not be read"]),
        ("empty.pem", "issuing.key", root, &["cert_file_path", "empty.pem holds no certificate"]),
        (
            "garbage.pem",
            "issuing.key",
            root,
            &["cert_file_path", "garbage.pem", "can not be read", "replace it"],
        ),
        (
            "issuing.pem",
            "issuing.pem",
            root,
            &["key_file_path", "issuing.pem can not be used", "no PEM block"],
        ),
        ("issuing.pem", "root.key", root, &["root.key does not belong to", "issuing.pem", "replace one"]),
        ("issuing.pem", "issuing.key", None, &["issuing.pem", "bundle_file_path is not set"]),
        ("wrong-order.pem", "issuing.key", None, &["wrong-order.pem", "bundle_file_path is not set"]),
        ("wrong-order.pem", "root.key", root, &["was not signed by the one after it", "issuer"]),
        ("issuing.pem", "issuing.key", Some("other.pem"), &["none of the trusted", "into bundle_file_path"]),
        ("gap.pem", "below-narrow.key", root, &["gap.pem", "none of the trusted", "every intermediate"]),
        ("narrow.pem", "narrow.key", root, &["narrow.pem", "path length 0", "1 CA", "leaves room"]),
        ("narrow-chain.pem", "below-narrow.key", root, &["certificate 2", "path length 0", "2 CA"]),
        ("leaf.pem", "leaf.key", root, &["leaf.pem", "not a CA certificate that may sign"]),
    ];
    for (certificate, key, bundle, expected) in table {
        let text = refusal(&pki, certificate, key, *bundle).await;
        for part in *expected {
            assert!(text.contains(part), "{certificate}, {key}, {bundle:?}: no {part:?} in {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn expired_files_are_refused_by_name() {
    let pki = Pki::new();
    pki.root("root", pki::P256, "/O=Big Corp/CN=Root", 20, pki::CA);
    pki.below("issuing", "root", pki::P256, "/O=Big Corp/CN=Issuing", 5, pki::CA);
    let clock = Clock::paused(today());
    let plugin = pki.upstream("issuing.pem", "issuing.key", Some("root.pem"), clock.clone());
    plugin.check().await.unwrap();
    clock.jump(6 * 86_400);
    let text = plugin.check().await.unwrap_err().to_string();
    assert!(
        text.contains("cert_file_path") && text.contains("issuing.pem") && text.contains("expired"),
        "{text}"
    );
    assert!(text.contains("have it renewed"), "{text}");
    pki.certify("issuing", "root", "/O=Big Corp/CN=Issuing", 365, pki::CA);
    plugin.check().await.unwrap();
    clock.jump(20 * 86_400);
    let text = plugin.check().await.unwrap_err().to_string();
    assert!(
        text.contains("bundle_file_path") && text.contains("root.pem") && text.contains("expired"),
        "{text}"
    );
    clock.jump(-60 * 86_400);
    let text = plugin.check().await.unwrap_err().to_string();
    assert!(text.contains("not valid before") && text.contains("compare the clocks"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn keys_are_read_in_every_usual_form() {
    let pki = Pki::new();
    pki.root("rsa", pki::RSA, "/CN=rsa", 30, pki::CA);
    pki.root("ec", pki::P384, "/CN=ec", 30, pki::CA);
    let convert = |arguments: &[&str]| {
        let status = std::process::Command::new("openssl").args(arguments).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    let [rsa, pkcs1, ec, sec1] =
        ["rsa.key", "pkcs1.key", "ec.key", "sec1.key"].map(|file| pki.path(file).display().to_string());
    convert(&["rsa", "-in", &rsa, "-traditional", "-out", &pkcs1]);
    convert(&["ec", "-in", &ec, "-out", &sec1]);
    assert!(std::fs::read_to_string(&pkcs1).unwrap().contains("BEGIN RSA PRIVATE KEY"));
    assert!(std::fs::read_to_string(&sec1).unwrap().contains("BEGIN EC PRIVATE KEY"));
    for (certificate, key) in
        [("rsa.pem", "rsa.key"), ("rsa.pem", "pkcs1.key"), ("ec.pem", "ec.key"), ("ec.pem", "sec1.key")]
    {
        let plugin = pki.upstream(certificate, key, None, Clock::paused(today()));
        plugin.mint_x509_ca(&csr(&["spiffe://example.org"]).await, HOUR).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_csr_for_the_trust_domain_itself_is_signed() {
    let pki = Pki::new();
    pki.root("root", pki::P256, "/CN=Root", 30, pki::CA);
    let plugin = pki.upstream("root.pem", "root.key", None, Clock::paused(today()));
    for uris in [
        &[][..],
        &["spiffe://other.org"],
        &["spiffe://example.org/ca"],
        &["spiffe://example.org", "spiffe://example.org"],
    ] {
        let error = plugin.mint_x509_ca(&csr(uris).await, HOUR).await.expect_err("signed").to_string();
        assert!(error.contains("spiffe://example.org"), "{error}");
    }
    let mut broken = csr(&["spiffe://example.org"]).await;
    *broken.last_mut().unwrap() ^= 1;
    assert!(plugin.mint_x509_ca(&broken, HOUR).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn lifetime_is_what_was_asked_for_or_the_parents() {
    let pki = Pki::new();
    pki.root("root", pki::P256, "/CN=Root", 30, pki::CA);
    let clock = Clock::paused(today());
    let plugin = pki.upstream("root.pem", "root.key", None, clock.clone());
    let ends = async |ttl| {
        let minted = plugin.mint_x509_ca(&csr(&["spiffe://example.org"]).await, ttl).await.unwrap();
        AuthorityCertificate::read(&minted.chain[0]).unwrap().not_after()
    };
    let left = ends(HOUR).await.duration_since(clock.now()).unwrap();
    assert!(left <= HOUR && left > HOUR - Duration::from_secs(2), "{left:?}");
    let root = AuthorityCertificate::read(&pki.der("root.pem")).unwrap();
    assert_eq!(ends(365 * 24 * HOUR).await, root.not_after());
}

#[test]
fn configuration_is_strict() {
    let build = |text: &str| {
        let core = Core { trust_domain: trust_domain(), clock: Clock::wall() };
        super::build(Section::new(&parse(text, "server.conf").unwrap()), core)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    build("cert_file_path = \"a\"\nkey_file_path = \"b\"\nbundle_file_path = \"c\"").unwrap();
    assert!(build("cert_file_path = \"a\"").unwrap_err().contains("key_file_path"));
    let text = build("cert_file_path = \"a\"\nkey_file_path = \"b\"\nbundel_file_path = \"c\"").unwrap_err();
    assert!(text.contains("server.conf:3") && text.contains("\"bundel_file_path\""), "{text}");
}
