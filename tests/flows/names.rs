//! Nodes that prove themselves by their name or by an SSH host key. These speak over real ports and with real files, so time
//! runs as it does; days pass by moving the clock.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use finial_identity::ssh::push_string;
use finial_proto::spire::api::server::agent::v1::DeleteAgentRequest;
use finial_tests::world::{Shape, World, my_uid};

const NAME: &str = "spire/agent/http_challenge/127.0.0.1";

fn by_name(server: &str) -> Shape {
    Shape {
        server_plugins: format!("NodeAttestor \"http_challenge\" {{ plugin_data {{ {server} }} }}"),
        node_attestor: "NodeAttestor \"http_challenge\" { plugin_data { hostname = \"127.0.0.1\" } }"
            .to_owned(),
        ..Shape::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_trusted_on_first_use_and_renews_from_then_on() {
    let world = World::of(by_name("")).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    world.register(NAME, "web", &[my_uid()]).await;
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
    let first = world.attested().await.remove(0);
    assert!(!first.can_reattest);

    // Whoever has the name now, but not the files, is refused until the operator lets him in.
    let thief = world.start_node("thief", None).await.unwrap();
    let end = thief.end().await;
    assert!(end.contains("attestation data has already been used to attest an agent"), "{end}");

    world.clock.jump(2000);
    let renewed = loop {
        let agent = world.attested().await.remove(0);
        if agent.x509svid_serial_number != first.x509svid_serial_number {
            break agent;
        }
        world.clock.sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(renewed.id, first.id);
    node.stop().await;

    world.agents().delete_agent(DeleteAgentRequest { id: first.id }).await.unwrap();
    let again = world.start_node("again", None).await.unwrap();
    again.synced().await;
    assert_eq!(world.attested().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_allowed_gets_nothing() {
    let world = World::of(by_name("allowed_dns_patterns = [\"\\\\.example$\"]")).await;
    let end = world.start_node("node", None).await.unwrap().end().await;
    assert!(end.contains("the requested hostname is not allowed to connect"), "{end}");
    assert!(world.attested().await.is_empty());
}

/// An authority for hosts, and one host.
fn ssh(folder: &Path) -> Shape {
    let (authority, host) = (Ed25519KeyPair::generate().unwrap(), Ed25519KeyPair::generate().unwrap());
    let public = |pair: &Ed25519KeyPair| {
        let mut blob = Vec::new();
        push_string(&mut blob, b"ssh-ed25519");
        push_string(&mut blob, pair.public_key().as_ref());
        blob
    };
    let mut blob = Vec::new();
    push_string(&mut blob, b"ssh-ed25519-cert-v01@openssh.com");
    push_string(&mut blob, &[7; 32]);
    push_string(&mut blob, host.public_key().as_ref());
    blob.extend(1_u64.to_be_bytes());
    blob.extend(2_u32.to_be_bytes());
    push_string(&mut blob, b"host");
    let mut names = Vec::new();
    push_string(&mut names, b"machine.example.org");
    push_string(&mut blob, &names);
    blob.extend(0_u64.to_be_bytes());
    blob.extend(u64::MAX.to_be_bytes());
    for _ in 0..3 {
        push_string(&mut blob, b"");
    }
    push_string(&mut blob, &public(&authority));
    let mut signature = Vec::new();
    push_string(&mut signature, b"ssh-ed25519");
    push_string(&mut signature, authority.sign(&blob).as_ref());
    push_string(&mut blob, &signature);

    let (key, certificate) = (folder.join("host"), folder.join("host-cert.pub"));
    let pkcs8 = BASE64_STANDARD.encode(host.to_pkcs8v1().unwrap());
    std::fs::write(&key, format!("-----BEGIN PRIVATE KEY-----\n{pkcs8}\n-----END PRIVATE KEY-----\n"))
        .unwrap();
    let line = format!("ssh-ed25519-cert-v01@openssh.com {}", BASE64_STANDARD.encode(&blob));
    std::fs::write(&certificate, line).unwrap();
    let authority = format!("ssh-ed25519 {}", BASE64_STANDARD.encode(public(&authority)));
    Shape {
        server_plugins: format!(
            "NodeAttestor \"sshpop\" {{ plugin_data {{
                cert_authorities = [{authority:?}]
                canonical_domain = \"example.org\"
                agent_path_template = \"/sshpop/{{{{ .Hostname }}}}\"
            }} }}"
        ),
        node_attestor: format!(
            "NodeAttestor \"sshpop\" {{ plugin_data {{ host_key_path = {key:?} host_cert_path = {certificate:?} }} }}"
        ),
        ..Shape::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_ssh_host_attests_again_and_comes_back_after_eviction() {
    let folder = tempfile::tempdir().unwrap();
    let shape = ssh(folder.path());
    let world = World::in_folder(folder, shape).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    world.register("spire/agent/sshpop/machine", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let first = world.attested().await.remove(0);
    assert!(first.can_reattest && first.selectors.is_empty());
    let end = world.clock.unix() + 24 * 3600;
    while world.clock.unix() < end {
        assert_eq!(updates.next(&world.clock).await.names(), ["web"]);
    }
    let last = world.attested().await.remove(0);
    assert_ne!(first.x509svid_serial_number, last.x509svid_serial_number);
    world.agents().delete_agent(DeleteAgentRequest { id: last.id.clone() }).await.unwrap();
    while world.attested().await.is_empty() {
        world.clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.attested().await.remove(0).id, last.id);
}
