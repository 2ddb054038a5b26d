//! A server, and an agent with entries of its node, which the commands find by the environment.
//!
//! The server knows the bundle of the trust domain `fed.org`, and a further JWT key of its own trust domain, so that
//! tokens can be shown that no server signs.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_proto::spire::api::server::agent::v1 as agents;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1 as bundles;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1 as entries;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;
use finial_tests::tokens::{Stranger, key_ids};
use finial_tests::world::{Context, Workload, id};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::server::{ATTEMPTS, PAUSE};
use super::{Programs, ServerStage, Stage};
use crate::transcript::Outcome;

const TOKEN: &str = "node";

pub struct AgentStage {
    program: PathBuf,
    folder: PathBuf,
    process: Child,
    server: ServerStage,
    tokens: BTreeMap<String, String>,
    /// Takes connections and never answers.
    _mute: UnixListener,
}

impl Stage for AgentStage {
    const PROGRAM: &'static str = "agent";

    fn start(programs: &Programs, folder: &Path) -> AgentStage {
        let server = ServerStage::start(programs, folder);
        let (own, foreign) = (Stranger::new("example.org"), Stranger::new("fed.org"));
        server.call(|channel| fill(channel, &own, &foreign));
        std::fs::write(folder.join("agent.conf"), configured(folder, server.port)).unwrap();
        let program = programs.path("agent");
        let stage = AgentStage {
            process: launch(&program, folder, &["-joinToken", TOKEN]),
            program,
            folder: folder.to_owned(),
            server,
            tokens: tokens(&own, &foreign),
            _mute: UnixListener::bind(folder.join("mute.sock")).unwrap(),
        };
        stage.wait("to hand out what is registered", async |workload| {
            let context = first(&workload).await.ok()?;
            let keys = key_ids(&workload).await.ok()?;
            let has_key =
                |name: &str| keys.get(name).is_some_and(|ids| ids.contains(&Stranger::KEY_ID.into()));
            let is_whole =
                context.names().len() == 3 && has_key("spiffe://example.org") && has_key("spiffe://fed.org");
            is_whole.then_some(())
        });
        stage
    }

    fn environment(&self) -> Vec<(String, String)> {
        let socket = self.folder.join("public/agent.sock");
        vec![("SPIRE_AGENT_PUBLIC_SOCKET".to_owned(), socket.to_str().unwrap().to_owned())]
    }

    fn names(&self) -> BTreeMap<String, String> {
        self.tokens.clone()
    }

    /// `forget`: all entries are deleted. `start`: the agent is started again.
    fn direct(&mut self, words: &[String]) {
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["forget"] => {
                self.server.call(forget);
                self.wait("to know no workload", async |workload| {
                    let refusal = first(&workload).await.err()?;
                    (refusal.code() == Code::PermissionDenied).then_some(())
                });
            }
            ["start"] => {
                self.process = launch(&self.program, &self.folder, &[]);
                self.wait("to be back", async |workload| first(&workload).await.ok().map(drop));
            }
            _ => panic!("nobody knows what to do about {words:?}"),
        }
    }

    /// `:stop SIGNAL`: how the agent ends on it.
    fn answer(&mut self, words: &[String]) -> Outcome {
        let [_, name] = words else { panic!("nobody knows what to answer to {words:?}") };
        let signal: Signal = format!("SIG{name}").parse().unwrap();
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
        let status = self.process.wait().unwrap();
        Outcome { code: status.code().unwrap_or(-1), ..Outcome::default() }
    }
}

impl AgentStage {
    /// Asks as a workload until there is an answer.
    fn wait(&self, what: &str, ask: impl AsyncFn(Workload) -> Option<()>) {
        let socket = self.folder.join("public/agent.sock");
        let looked = self.server.runtime.block_on(async {
            for _ in 0..ATTEMPTS {
                let channel = dial::channel(Dialer::Unix(socket.clone()), None, "localhost");
                if ask(Workload::over(channel)).await.is_some() {
                    return true;
                }
                tokio::time::sleep(PAUSE).await;
            }
            false
        });
        let log = || std::fs::read_to_string(self.folder.join("agent.log")).unwrap();
        assert!(looked, "waited in vain for the agent {what}:\n{}", log());
    }
}

impl Drop for AgentStage {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a workload is told first.
async fn first(workload: &Workload) -> Result<Context, Status> {
    workload.try_open().await?.try_next(&Clock::wall()).await
}

fn launch(program: &Path, folder: &Path, more: &[&str]) -> Child {
    let log = std::fs::File::create(folder.join("agent.log")).unwrap();
    let mut process = Command::new(program);
    process.args(["run", "-config", folder.join("agent.conf").to_str().unwrap()]).args(more);
    process.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// A join token, three identities of this user, one more that shares a hint and one of somebody else, and bundles.
async fn fill(channel: Channel, own: &Stranger, foreign: &Stranger) {
    let request = agents::CreateJoinTokenRequest { ttl: 600, token: TOKEN.to_owned(), agent_id: None };
    AgentClient::new(channel.clone()).create_join_token(request).await.unwrap();

    let mut client = BundleClient::new(channel.clone());
    let authority = types::X509Certificate { asn1: authority(), tainted: false };
    let bundle = types::Bundle {
        trust_domain: foreign.trust_domain.clone(),
        x509_authorities: vec![authority],
        jwt_authorities: vec![foreign.jwt_key()],
        ..types::Bundle::default()
    };
    let request = bundles::BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
    client.batch_set_federated_bundle(request).await.unwrap();
    let jwt_authorities = vec![own.jwt_key()];
    let request = bundles::AppendBundleRequest { jwt_authorities, ..bundles::AppendBundleRequest::default() };
    client.append_bundle(request).await.unwrap();

    let entry = |name: &str, uid: &str, hint: &str| types::Entry {
        id: format!("entry-{name}"),
        spiffe_id: Some(id(name)),
        parent_id: Some(id(&format!("spire/agent/join_token/{TOKEN}"))),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") }],
        hint: hint.to_owned(),
        ..types::Entry::default()
    };
    let uid = Uid::effective().to_string();
    let mut entries = vec![
        entry("api", &uid, "external"),
        entry("db", &uid, ""),
        entry("web", &uid, "internal"),
        entry("web-too", &uid, "internal"),
        entry("stranger", "54321", ""),
    ];
    entries[0].federates_with = vec![foreign.trust_domain.clone()];
    entries[0].dns_names = vec!["api.example.org".to_owned()];
    let request = entries::BatchCreateEntryRequest { entries, output_mask: None };
    let answer = EntryClient::new(channel).batch_create_entry(request).await.unwrap();
    for result in answer.into_inner().results {
        let status = result.status.unwrap();
        assert_eq!(status.code, 0, "{}", status.message);
    }
}

async fn forget(channel: Channel) {
    let mut client = EntryClient::new(channel);
    let listed = client.list_entries(entries::ListEntriesRequest::default()).await.unwrap().into_inner();
    let ids = listed.entries.into_iter().map(|entry| entry.id).collect();
    client.batch_delete_entry(entries::BatchDeleteEntryRequest { ids }).await.unwrap();
}

/// An X.509 authority of `fed.org`.
fn authority() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::URI("spiffe://fed.org".try_into().unwrap())];
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

/// Tokens for the audience `a` by what is special about them.
fn tokens(own: &Stranger, foreign: &Stranger) -> BTreeMap<String, String> {
    let now = Clock::wall().now();
    let own = |more: &[(&str, Value)]| own.sign("/web", &["a"], now, more);
    let good = own(&[]);
    let unsigned = format!("{}.AAAA", good.rsplit_once('.').unwrap().0);
    [
        ("GOOD", good),
        ("UNSIGNED", unsigned),
        (
            "CLAIMS",
            own(&[
                ("half", json!(0.5)),
                ("inner", json!({"n": null, "list": [1, true]})),
                ("text", json!("ä<b>")),
            ]),
        ),
        ("EXPIRED", own(&[("exp", json!(1_700_000_000)), ("iat", json!(1_699_999_700))])),
        ("ENDLESS", own(&[("exp", Value::Null)])),
        ("EARLY", own(&[("nbf", json!(1_999_999_999))])),
        ("NOBODY", own(&[("sub", Value::Null)])),
        ("NO-ID", own(&[("sub", json!("web"))])),
        ("OTHER", own(&[("sub", json!("spiffe://fed.org/web"))])),
        ("UNKNOWN", own(&[("sub", json!("spiffe://unknown.org/web"))])),
        ("SERVER", own(&[("sub", json!("spiffe://example.org/spire/server"))])),
        ("FOREIGN", foreign.sign("/shop", &["a", "b"], now, &[("role", json!("buyer"))])),
    ]
    .map(|(name, token)| (name.to_owned(), token))
    .into()
}

fn configured(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    std::fs::create_dir(format!("{folder}/agent")).unwrap();
    format!(
        r#"agent {{
    trust_domain = "example.org"
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = "{folder}/public/agent.sock"
    admin_socket_path = "{folder}/admin/admin.sock"
    data_dir = "{folder}/agent"
    insecure_bootstrap = true
    experimental {{
        sync_interval = "1s"
    }}
}}
plugins {{
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{ directory = "{folder}/agent" }}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{}}
    }}
}}
"#
    )
}
