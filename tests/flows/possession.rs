//! Nodes that prove themselves by a key of their own attest again instead of renewing.

use std::path::Path;
use std::time::Duration;

use finial_proto::spire::api::server::agent::v1::{BanAgentRequest, DeleteAgentRequest};
use finial_tests::world::{Shape, World, my_uid};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

const DAY: u64 = 24 * 3600;

/// A PKI of the nodes' maker.
pub struct Pki {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Pki {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Maker");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Pki { root: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// A new key and certificate for the node, good for `days` from the beginning of the world.
    pub fn certify(&self, folder: &Path, days: u64) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "machine");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = (World::beginning() - Duration::from_secs(DAY)).into();
        params.not_after = (World::beginning() + Duration::from_secs(days * DAY)).into();
        let certificate = params.signed_by(&key, &self.root).unwrap();
        std::fs::write(folder.join("node.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("node.key"), key.serialize_pem()).unwrap();
    }

    pub fn shape(&self, folder: &Path) -> Shape {
        std::fs::write(folder.join("maker.pem"), self.root.pem()).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        Shape {
            server_plugins: format!(
                // A path that outlives the certificate.
                "NodeAttestor \"x509pop\" {{ plugin_data {{
                    ca_bundle_path = {:?}
                    agent_path_template = \"/{{{{ .PluginName }}}}/{{{{ .Subject.CommonName }}}}\"
                }} }}",
                file("maker.pem")
            ),
            node_attestor: format!(
                "NodeAttestor \"x509pop\" {{ plugin_data {{ private_key_path = {:?} certificate_path = {:?} }} }}",
                file("node.key"),
                file("node.pem")
            ),
            ..Shape::default()
        }
    }

    /// A world whose nodes have certificates for `days`.
    async fn world(&self, days: u64) -> World {
        let folder = tempfile::tempdir().unwrap();
        self.certify(folder.path(), days);
        let shape = self.shape(folder.path());
        World::in_folder(folder, shape).await
    }
}

pub const NODE: &str = "spire/agent/x509pop/machine";

#[tokio::test(start_paused = true)]
async fn a_node_attests_again_for_as_long_as_it_lives() {
    let world = Pki::new().world(30).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    world.register(NODE, "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let mut serials = vec![world.attested().await.remove(0).x509svid_serial_number];
    let end = world.clock.unix() + 2 * DAY as i64;
    while world.clock.unix() < end {
        assert_eq!(updates.next(&world.clock).await.names(), ["web"]);
        let agents = world.attested().await;
        assert_eq!(agents.len(), 1, "the node stays one node");
        assert!(agents[0].can_reattest && agents[0].x509svid_expires_at > world.clock.unix());
        let serial = agents[0].x509svid_serial_number.clone();
        if serials.last() != Some(&serial) {
            serials.push(serial);
        }
    }
    // An agent's SVID lives an hour.
    assert!(serials.len() > 2 * 24, "{}", serials.len());
}

#[tokio::test(start_paused = true)]
async fn an_evicted_node_comes_back_by_itself() {
    let world = Pki::new().world(30).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    world.register(NODE, "web", &[my_uid()]).await;
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
    let before = world.attested().await.remove(0);
    world.agents().delete_agent(DeleteAgentRequest { id: before.id.clone() }).await.unwrap();
    let after = loop {
        if let Some(agent) = world.attested().await.pop() {
            break agent;
        }
        world.clock.sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(before.id, after.id);
    assert_ne!(before.x509svid_serial_number, after.x509svid_serial_number);
    assert_eq!(node.me().fetch(&world.clock).await.names(), ["web"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_evicted_while_it_was_down_ends_and_attests_at_the_next_start() {
    let world = Pki::new().world(30).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    node.stop().await;
    let id = world.attested().await.remove(0).id;
    world.agents().delete_agent(DeleteAgentRequest { id }).await.unwrap();
    let node = world.start_node("node", None).await.unwrap();
    let end = node.end().await;
    assert!(end.contains("its SVID was deleted: start it again to attest anew"), "{end}");
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    assert_eq!(world.attested().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_banned_node_stays_out_until_it_is_evicted() {
    let world = Pki::new().world(30).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    let id = world.attested().await.remove(0).id;
    world.agents().ban_agent(BanAgentRequest { id: id.clone() }).await.unwrap();
    assert!(node.end().await.contains("banned"));
    let again = world.start_node("node", None).await.unwrap();
    let end = again.end().await;
    assert!(end.contains("failed to attest: agent is banned"), "{end}");
    world.agents().delete_agent(DeleteAgentRequest { id }).await.unwrap();
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    assert!(!world.attested().await[0].banned);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_files_is_the_same_node() {
    let world = Pki::new().world(30).await;
    let first = world.start_node("one", None).await.unwrap();
    first.synced().await;
    first.stop().await;
    let second = world.start_node("two", None).await.unwrap();
    second.synced().await;
    assert_eq!(world.attested().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_may_be_replaced_until_the_last_svid_is_over() {
    let pki = Pki::new();
    let world = pki.world(1).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    // The certificate is over, the SVID is not.
    while world.clock.unix() < unix(World::beginning()) + DAY as i64 + 600 {
        world.clock.sleep(Duration::from_secs(60)).await;
    }
    let before = world.attested().await.remove(0);
    assert!(before.x509svid_expires_at > world.clock.unix());
    pki.certify(world.folder.path(), 30);
    world.clock.sleep(Duration::from_secs(3600)).await;
    let after = world.attested().await.remove(0);
    assert_ne!(before.x509svid_serial_number, after.x509svid_serial_number);
    node.stop().await;

    let world = pki.world(1).await;
    let node = world.start_node("node", None).await.unwrap();
    node.synced().await;
    let end = node.end().await;
    assert!(end.contains("x509: certificate has expired or is not yet valid"), "{end}");
    assert!(world.attested().await[0].x509svid_expires_at <= world.clock.unix());
}

fn unix(time: std::time::SystemTime) -> i64 {
    time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}
