//! What OpenSSL makes of the certificates: it verifies the chains and reads the extensions.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use finial_tests::enterprise::{Enterprise, Intermediate};
use finial_tests::real;
use finial_tests::world::{Shape, World, my_uid};

/// For each kind of CA key, self-signed and below an enterprise's root.
#[tokio::test(start_paused = true)]
async fn chains_verify_and_extensions_read_as_they_must() {
    if !real::has_command("openssl", "version") {
        return;
    }
    for (key_type, signature) in [
        ("ec-p256", "ecdsa-with-SHA256"),
        ("ec-p384", "ecdsa-with-SHA384"),
        ("rsa-2048", "sha256WithRSAEncryption"),
    ] {
        for has_enterprise in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let enterprise = Enterprise::new(World::beginning());
            let mut shape = Shape { server: format!("ca_key_type = {key_type:?}"), ..Shape::default() };
            if has_enterprise {
                shape.server_plugins = enterprise.give(folder.path(), &Intermediate::default()).stanza();
            }
            let world = World::in_folder(folder, shape).await;
            let workload = check_leaves(&world, signature, has_enterprise).await;
            if has_enterprise {
                // The CA that the server made, signed by the enterprise.
                check_authority(&world.folder.path().join("ca"), &workload[1], true);
            }
        }
    }
}

async fn check_leaves(world: &World, signature: &str, has_enterprise: bool) -> Vec<Vec<u8>> {
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let context = node.me().fetch(&world.clock).await;
    let workload: Vec<Vec<u8>> = context.svid("web").chain().iter().map(|der| der.to_vec()).collect();
    let (_, agent) = world.bare_agent("bare").await;
    let server = world.server_chain().await;
    let minted = world.minted("minted").await;
    let root = context.bundle.concat();
    assert_eq!(context.bundle.len(), 1);
    let time = world.clock.unix().to_string();
    for (name, id, chain) in [
        ("workload", "spiffe://example.org/web", &workload),
        ("agent", "spiffe://example.org/spire/agent/join_token/", &agent.chain),
        ("server", "spiffe://example.org/spire/server", &server),
        ("minted", "spiffe://example.org/minted", &minted.chain),
    ] {
        let files = Files::write(world.folder.path(), name, chain, &root);
        for purpose in ["sslserver", "sslclient"] {
            files.verify(&time, purpose).unwrap_or_else(|said| panic!("{name}: {said}"));
        }
        let text = describe(&files.leaf);
        let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in [
            "Version: 3 (0x2)",
            &format!("Signature Algorithm: {signature}"),
            "X509v3 Key Usage: critical Digital Signature, Key Encipherment, Key Agreement X509v3",
            "X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication X509v3",
            "X509v3 Basic Constraints: critical CA:FALSE",
            "X509v3 Subject Key Identifier: ",
            "X509v3 Authority Key Identifier: ",
            &format!("URI:{id}"),
        ] {
            assert!(text.contains(expected), "{name}: {expected:?} is not in {text}");
        }
        assert_eq!(text.matches("URI:").count(), 1, "{name}: {text}");

        // What is to be refused is: a stranger's root, and the chain without its intermediates.
        let stranger = Enterprise::new(World::beginning());
        let elsewhere = Files::write(world.folder.path(), "stranger", chain, stranger.root_der());
        assert!(elsewhere.verify(&time, "sslserver").is_err(), "{name} verifies to any root");
        if has_enterprise {
            assert_eq!(chain.len(), 3);
            let short = Files::write(world.folder.path(), "short", &chain[..1], &root);
            assert!(short.verify(&time, "sslserver").is_err(), "{name} needs no intermediates");
        }
    }
    if !has_enterprise {
        check_authority(&world.folder.path().join("ca"), &root, false);
    }
    workload
}

fn check_authority(file: &Path, der: &[u8], is_below_another: bool) {
    std::fs::write(file, pem(der)).unwrap();
    let text: String = describe(file).split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "X509v3 Key Usage: critical Certificate Sign, CRL Sign X509v3",
        "X509v3 Basic Constraints: critical CA:TRUE X509v3",
        "X509v3 Subject Key Identifier: ",
        "URI:spiffe://example.org ",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    assert_eq!(text.contains("X509v3 Authority Key Identifier: "), is_below_another, "{text}");
    assert!(!text.contains("Extended Key Usage") && !text.contains("Name Constraints"), "{text}");
    assert_eq!(text.matches("URI:").count(), 1, "{text}");
}

/// A chain as OpenSSL wants it.
struct Files {
    leaf: PathBuf,
    above: PathBuf,
    root: PathBuf,
}

impl Files {
    fn write(folder: &Path, name: &str, chain: &[Vec<u8>], root: &[u8]) -> Files {
        let file = |part: &str| folder.join(format!("{name}-{part}.pem"));
        let files = Files { leaf: file("leaf"), above: file("above"), root: file("root") };
        std::fs::write(&files.leaf, pem(&chain[0])).unwrap();
        std::fs::write(&files.above, chain[1..].iter().map(|der| pem(der)).collect::<String>()).unwrap();
        std::fs::write(&files.root, pem(root)).unwrap();
        files
    }

    fn verify(&self, time: &str, purpose: &str) -> Result<(), String> {
        let Files { leaf, above, root } = self;
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-attime", time, "-purpose", purpose]);
        command.arg("-CAfile").arg(root);
        if std::fs::metadata(above).unwrap().len() > 0 {
            command.arg("-untrusted").arg(above);
        }
        let Output { status, stdout, stderr } = command.arg(leaf).output().unwrap();
        let said = [stdout, stderr].concat();
        if status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
    }
}

fn describe(certificate: &Path) -> String {
    let command = ["x509", "-noout", "-text", "-in"];
    let shown = Command::new("openssl").args(command).arg(certificate).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    String::from_utf8(shown.stdout).unwrap()
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
