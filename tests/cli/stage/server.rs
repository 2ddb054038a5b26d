//! A server alone, on files of its own, which the commands find by the environment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use finial_daemon::dial::{self, Dialer};
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_proto::spire::api::server::agent::v1 as wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::types;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::{Programs, Stage};

/// How often a starting program is asked, and with what pause.
pub const ATTEMPTS: u32 = 1200;
pub const PAUSE: Duration = Duration::from_millis(50);

pub struct ServerStage {
    program: PathBuf,
    folder: PathBuf,
    process: Child,
    socket: PathBuf,
    pub runtime: Runtime,
    /// On the loopback address.
    pub port: u16,
}

impl Stage for ServerStage {
    const PROGRAM: &'static str = "server";

    fn start(programs: &Programs, folder: &Path) -> ServerStage {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        std::fs::write(folder.join("server.conf"), configured(folder, port)).unwrap();
        let program = programs.path("server");
        let process = launch(&program, folder);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let socket = folder.join("server.sock");
        let mut stage = ServerStage { program, folder: folder.to_owned(), process, socket, runtime, port };
        stage.wait();
        stage
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![("SPIRE_SERVER_PRIVATE_SOCKET".to_owned(), self.socket.to_str().unwrap().to_owned())]
    }

    /// `agent NAME`: a node attests with the join token NAME. `upstream`: the server's CAs are signed from now on by a new
    /// CA of an enterprise; the first time the server is started again for it.
    fn direct(&mut self, words: &[String]) {
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["agent", token] => self.call(|channel| attest(channel, token)),
            ["upstream"] => self.upstream(),
            _ => panic!("nobody knows what to do about {words:?}"),
        }
    }
}

impl ServerStage {
    /// Waits for what is done over the admin socket.
    pub fn call<F: Future>(&self, work: impl FnOnce(Channel) -> F) -> F::Output {
        self.runtime.block_on(async {
            work(dial::channel(Dialer::Unix(self.socket.clone()), None, "localhost")).await
        })
    }

    fn upstream(&mut self) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Enterprise CA");
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self.folder.join("upstream-key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(self.folder.join("upstream.pem"), certificate.pem()).unwrap();
        let configuration = self.folder.join("server.conf");
        let text = std::fs::read_to_string(&configuration).unwrap();
        if !text.contains("UpstreamAuthority") {
            let folder = self.folder.display();
            let block = format!(
                r#"plugins {{
    UpstreamAuthority "disk" {{
        plugin_data {{
            cert_file_path = "{folder}/upstream.pem"
            key_file_path = "{folder}/upstream-key.pem"
        }}
    }}"#
            );
            std::fs::write(&configuration, text.replace("plugins {", &block)).unwrap();
            self.process.kill().unwrap();
            self.process.wait().unwrap();
            for file in ["datastore.sqlite3", "keys.json", "server.sock"] {
                std::fs::remove_file(self.folder.join(file)).unwrap();
            }
            self.process = launch(&self.program, &self.folder);
            self.wait();
        }
    }

    fn wait(&mut self) {
        let log = || std::fs::read_to_string(self.folder.join("server.log")).unwrap();
        let healthy = || {
            let mut ask = Command::new(&self.program);
            ask.args(["healthcheck", "-socketPath", self.socket.to_str().unwrap()]);
            ask.stdin(Stdio::null()).output().unwrap().status.success()
        };
        for _ in 0..ATTEMPTS {
            if healthy() {
                return;
            }
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("the server ended ({status}):\n{}", log());
            }
            self.runtime.block_on(async { tokio::time::sleep(PAUSE).await });
        }
        panic!("the server did not become healthy:\n{}", log());
    }
}

impl Drop for ServerStage {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn launch(program: &Path, folder: &Path) -> Child {
    let log = std::fs::File::create(folder.join("server.log")).unwrap();
    let mut process = Command::new(program);
    process.args(["run", "-config", folder.join("server.conf").to_str().unwrap()]).stdin(Stdio::null());
    process.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// Anybody may attest, over the socket as over the network.
async fn attest(channel: Channel, token: &str) {
    let mut client = AgentClient::new(channel);
    let request = wire::CreateJoinTokenRequest { ttl: 600, token: token.to_owned(), agent_id: None };
    client.create_join_token(request).await.unwrap();
    let csr = WorkloadKey::generate(KeyType::EcP256).unwrap().csr(&spire_subject(), &[]).unwrap();
    let params = wire::attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: "join_token".to_owned(), payload: token.into() }),
        params: Some(wire::AgentX509svidParams { csr }),
    };
    let step = Some(wire::attest_agent_request::Step::Params(params));
    let requests = futures::stream::iter([wire::AttestAgentRequest { step }]);
    let answers = client.attest_agent(requests).await.unwrap();
    answers.into_inner().message().await.unwrap().unwrap();
}

fn configured(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    format!(
        r#"server {{
    trust_domain = "example.org"
    bind_address = "127.0.0.1"
    bind_port = {port}
    socket_path = "{folder}/server.sock"
    data_dir = "{folder}"
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{folder}/datastore.sqlite3"
        }}
    }}
    KeyManager "disk" {{
        plugin_data {{ keys_path = "{folder}/keys.json" }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
}}
"#
    )
}
