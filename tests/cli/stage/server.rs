//! A server alone, on files of its own, which the commands find by the environment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use finial_daemon::dial::{self, Dialer};
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_proto::spire::api::server::agent::v1 as wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::types;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::{Programs, Stage};

/// How often a starting server is asked, and with what pause.
const ATTEMPTS: u32 = 1200;
const PAUSE: Duration = Duration::from_millis(50);

pub struct ServerStage {
    process: Child,
    socket: PathBuf,
    runtime: Runtime,
}

impl Stage for ServerStage {
    const PROGRAM: &'static str = "server";

    fn start(programs: &Programs, folder: &Path) -> ServerStage {
        let configuration = folder.join("server.conf");
        std::fs::write(&configuration, configured(folder)).unwrap();
        let log = std::fs::File::create(folder.join("server.log")).unwrap();
        let mut process = Command::new(programs.path("server"));
        process.args(["run", "-config", configuration.to_str().unwrap()]).stdin(Stdio::null());
        process.stdout(log.try_clone().unwrap()).stderr(log);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut stage =
            ServerStage { process: process.spawn().unwrap(), socket: folder.join("server.sock"), runtime };
        stage.wait(programs, folder);
        stage
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![("SPIRE_SERVER_PRIVATE_SOCKET".to_owned(), self.socket.to_str().unwrap().to_owned())]
    }

    /// `agent NAME`: a node attests with the join token NAME.
    fn direct(&mut self, words: &[String]) {
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["agent", token] => self.runtime.block_on(attest(channel(&self.socket), token)),
            _ => panic!("nobody knows what to do about {words:?}"),
        }
    }
}

impl ServerStage {
    fn wait(&mut self, programs: &Programs, folder: &Path) {
        let log = || std::fs::read_to_string(folder.join("server.log")).unwrap();
        let healthy = || {
            let mut ask = Command::new(programs.path("server"));
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

fn channel(socket: &Path) -> impl Fn() -> Channel {
    let socket = socket.to_owned();
    move || dial::channel(Dialer::Unix(socket.clone()), None, "localhost")
}

/// Anybody may attest, over the socket as over the network.
async fn attest(channel: impl Fn() -> Channel, token: &str) {
    let mut client = AgentClient::new(channel());
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

fn configured(folder: &Path) -> String {
    let folder = folder.display();
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
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
