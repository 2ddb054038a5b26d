//! The real programs as processes, and the foreign clients that talk to them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use finial_daemon::dial::{self, Dialer};
use finial_proto::spire::api::server::{agent, entry};
use finial_proto::spire::api::types;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::world::{TRUST_DOMAIN, Workload, id};

/// How long a program may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server and an agent of this build, running on files of their own.
pub struct Programs {
    pub folder: TempDir,
    port: u16,
    server: Option<Child>,
    agent: Option<Child>,
    server_plugins: String,
    /// Further keys of the server's block `server`.
    pub server_keys: String,
    /// Further blocks beside it.
    pub server_blocks: String,
    /// Where the agent finds the server, if not at its own port.
    pub agent_dials: Option<u16>,
}

impl Programs {
    /// Nothing runs yet. `server_plugins`: further plugin blocks of the server.
    pub fn new(server_plugins: impl Fn(&Path) -> String) -> Programs {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let server_plugins = server_plugins(folder.path());
        Programs {
            folder,
            port,
            server: None,
            agent: None,
            server_plugins,
            server_keys: String::new(),
            server_blocks: String::new(),
            agent_dials: None,
        }
    }

    /// A server and an agent that is attested, with a self-signed CA.
    pub async fn started() -> Programs {
        let mut programs = Programs::new(|_| String::new());
        programs.start_server().await;
        programs.start_agent().await;
        programs
    }

    /// Starts the server and waits until it is healthy.
    pub async fn start_server(&mut self) {
        std::fs::write(self.path("server.conf"), self.server_configuration()).unwrap();
        let config = self.path("server.conf");
        let mut server =
            self.spawn("finial-server", "server.log", &["run", "-config", config.to_str().unwrap()]);
        self.healthy("finial-server", "server.sock", &mut server, "server.log").await;
        self.server = Some(server);
    }

    /// Starts the agent with a new join token and waits until it is healthy.
    pub async fn start_agent(&mut self) {
        let request =
            agent::v1::CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: Some(id("node")) };
        let token = agent::v1::agent_client::AgentClient::new(self.admin()).create_join_token(request).await;
        let token = token.unwrap().into_inner().value;
        std::fs::write(self.path("agent.conf"), self.agent_configuration()).unwrap();
        self.restart_agent(Some(&token)).await;
    }

    /// Starts the agent on the files it has.
    pub async fn restart_agent(&mut self, token: Option<&str>) {
        let config = self.path("agent.conf");
        let mut args = vec!["run", "-config", config.to_str().unwrap()];
        if let Some(token) = token {
            args.extend(["-joinToken", token]);
        }
        let mut agent = self.spawn("finial-agent", "agent.log", &args);
        self.healthy("finial-agent", "public/agent.sock", &mut agent, "agent.log").await;
        self.agent = Some(agent);
    }

    /// Kills the server as a power cut would.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("a server runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Kills the agent as a power cut would.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("an agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Asks the server to stop, and returns how it ended.
    pub async fn stop_server(&mut self) -> ExitStatus {
        let server = self.server.take().expect("a server runs");
        self.terminate(server, "server.log").await
    }

    /// Asks the agent to stop, and returns how it ended.
    pub async fn stop_agent(&mut self) -> ExitStatus {
        let agent = self.agent.take().expect("an agent runs");
        self.terminate(agent, "agent.log").await
    }

    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().expect("a server runs").id()
    }

    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("an agent runs").id()
    }

    /// The server's port on the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of the Workload API that is this very process.
    pub fn workload(&self) -> Workload {
        Workload::over(dial::channel(Dialer::Unix(self.path("public/agent.sock")), None, "localhost"))
    }

    /// A channel to the admin socket.
    pub fn admin(&self) -> Channel {
        dial::channel(Dialer::Unix(self.path("server.sock")), None, "localhost")
    }

    /// Creates an entry for processes of this user.
    pub async fn register(&self, name: &str, edit: impl FnOnce(&mut types::Entry)) -> types::Entry {
        let uid = nix::unistd::Uid::effective().to_string();
        let mut entry = types::Entry {
            spiffe_id: Some(id(name)),
            parent_id: Some(id("node")),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") }],
            ..types::Entry::default()
        };
        edit(&mut entry);
        let request = entry::v1::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let mut client = entry::v1::entry_client::EntryClient::new(self.admin());
        let answer = client.batch_create_entry(request).await.unwrap().into_inner();
        let result = answer.results.into_iter().next().unwrap();
        assert_eq!(result.status.unwrap().code, 0);
        result.entry.unwrap()
    }

    /// The Workload API's endpoint as SPIFFE_ENDPOINT_SOCKET wants it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path("public/agent.sock").display())
    }

    /// A file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs one of the two programs to its end, which must come by itself.
    pub async fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(binary(program));
        let ended = command.args(args).stdin(Stdio::null()).kill_on_drop(true).output();
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        ended.unwrap_or_else(|_| panic!("{program} {args:?} does not end")).unwrap()
    }

    /// What the server needs to be started by a reference program on the same files.
    pub fn server_configuration(&self) -> String {
        let folder = self.folder.path().display();
        let (port, plugins, keys) = (self.port, &self.server_plugins, &self.server_keys);
        let blocks = &self.server_blocks;
        format!(
            r#"
server {{
    trust_domain = "{TRUST_DOMAIN}"
    bind_address = "127.0.0.1"
    bind_port = {port}
    socket_path = "{folder}/server.sock"
    data_dir = "{folder}"
    log_level = "DEBUG"
    {keys}
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
    {plugins}
}}
{blocks}
"#
        )
    }

    /// What the agent is started with, without a token.
    pub fn agent_configuration(&self) -> String {
        let folder = self.folder.path().display();
        let port = self.agent_dials.unwrap_or(self.port);
        std::fs::create_dir_all(self.path("agent")).unwrap();
        format!(
            r#"
agent {{
    trust_domain = "{TRUST_DOMAIN}"
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = "{folder}/public/agent.sock"
    data_dir = "{folder}/agent"
    insecure_bootstrap = true
    log_level = "DEBUG"
}}
plugins {{
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{ directory = "{folder}/agent" }}
    }}
    WorkloadAttestor "unix" {{
        # No digests: the program that runs the tests is large.
        plugin_data {{ discover_workload_path = true  workload_size_limit = -1 }}
    }}
}}
"#
        )
    }

    fn spawn(&self, program: &str, log: &str, args: &[&str]) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path(log)).unwrap();
        Command::new(binary(program))
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}; build it with cargo build --bins", binary(program).display())
            })
    }

    async fn terminate(&self, child: Child, log: &str) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ended = tokio::task::spawn_blocking(move || {
            let mut child = child;
            child.wait()
        });
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok(status) => status.unwrap().unwrap(),
            Err(_) => {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
                panic!("SIGTERM did not end the program:\n{}", self.log(log))
            }
        }
    }

    async fn healthy(&self, program: &str, socket: &str, child: &mut Child, log: &str) {
        let socket = self.path(socket);
        let asked = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("{program} ended ({status}):\n{}", self.log(log));
                }
                let args = ["healthcheck", "-socketPath", socket.to_str().unwrap()];
                let healthy =
                    tokio::process::Command::new(binary(program)).args(args).output().await.unwrap();
                if healthy.status.success() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, asked).await.is_err() {
            panic!("{program} did not become healthy:\n{}", self.log(log));
        }
    }

    /// What a program has logged, `server.log` or `agent.log`.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.server].into_iter().flatten() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A program of this build, beside the test that asks for it.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join(name)
}

/// A file that `tests/run.sh peers` installed. A missing one fails under CI and is loudly skipped elsewhere.
pub fn peer(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FINIAL_PEERS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| binary("..").join("peers"));
    let file = folder.join(name);
    if file.exists() {
        return Some(file);
    }
    missing(&format!("the foreign client {name}"));
    None
}

/// Whether a command is there. As with [`peer`], a missing one fails under CI and is loudly skipped elsewhere.
pub fn has_command(name: &str, probe: &str) -> bool {
    let found = Command::new(name).arg(probe).output().is_ok_and(|output| output.status.success());
    if !found {
        missing(&format!("the command {name}"));
    }
    found
}

fn missing(what: &str) {
    let what = format!("{what} is not installed; run `tests/run.sh peers`");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what}");
    eprintln!("\n!!! SKIPPED: {what}\n");
}
