//! A stage for scenarios: a server and any number of agents as processes, driven through their own command lines, as an
//! operator's script would.
//!
//! The same scenarios run on SPIRE, to show that they say what SPIRE does: with `FINIAL_REFERENCE_BIN` naming the folder of
//! its programs and `FINIAL_STAGE` saying which of them are SPIRE's: `server`, `agents`, `both`, or `other` for the second server
//! of a scenario that has two.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use finial_daemon::clock::Clock;
use finial_identity::peer;
use finial_identity::x509_svid::{X509Svid, split_concatenated};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::Value;
use tempfile::TempDir;

use crate::real;
use crate::world::TRUST_DOMAIN;

/// How long anything may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is special about a server.
#[derive(Default)]
pub struct ServerShape {
    /// Lines of the `server` block.
    pub server: String,
    /// Whole plugin blocks.
    pub plugins: String,
    /// Settings of `DataStore "sql"`; SQLite where there are none.
    pub datastore: Option<String>,
}

/// One server, its agents, and their files. All end with this value.
pub struct Stage {
    pub folder: TempDir,
    port: u16,
    shape: ServerShape,
    server: Option<Child>,
    other: Option<Child>,
    agents: BTreeMap<String, Child>,
    nodes: CertifiedIssuer<'static, KeyPair>,
}

/// How an agent proves its node.
pub enum Proof {
    Token(String),
    /// A certificate that [`Stage::certify`] made for this agent.
    Certificate,
}

/// A command that ended.
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its output, when it went well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.stdout, self.stderr);
        self.stdout
    }

    /// Its output as JSON, when it went well.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

impl Stage {
    /// A server that runs, with the node attestors `join_token` and `x509pop`.
    pub async fn open(shape: impl FnOnce(&Path) -> ServerShape) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Nodes");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let nodes = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.path().join("nodes.pem"), nodes.pem()).unwrap();
        let shape = shape(folder.path());
        let mut stage =
            Stage { folder, port, shape, server: None, other: None, agents: BTreeMap::new(), nodes };
        stage.start_server().await;
        stage
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the server on the files there are, and waits until it is healthy.
    pub async fn start_server(&mut self) {
        self.server = Some(self.start(&server_program(), "server", self.port));
        until("the server is healthy", async || {
            self.server(&["healthcheck"]).await.status.success().then_some(())
        })
        .await;
    }

    /// Starts a second server with keys of its own on the same database, and waits until it is healthy. It listens on a
    /// port of its own, or, when the first was stopped, in its place.
    pub async fn start_other(&mut self) {
        let port = match self.server {
            Some(_) => std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port(),
            None => self.port,
        };
        self.other = Some(self.start(&other_program(), "other", port));
        until("the other server is healthy", async || {
            self.other(&["healthcheck"]).await.status.success().then_some(())
        })
        .await;
    }

    /// Asks the first server to end, and waits until it has.
    pub async fn stop_server(&mut self) {
        terminate(self.server.take().expect("a server runs")).await;
    }

    /// Asks the second server to end, and waits until it has.
    pub async fn stop_other(&mut self) {
        terminate(self.other.take().expect("a second server runs")).await;
    }

    fn start(&self, program: &Path, name: &str, port: u16) -> Child {
        std::fs::create_dir_all(self.path(name)).unwrap();
        let config = self.path(&format!("{name}.conf"));
        std::fs::write(&config, self.server_configuration(name, port)).unwrap();
        self.launch(program, &format!("{name}.log"), &["run", "-config", config.to_str().unwrap()])
    }

    /// Asks the server to end and starts it again, with other lines in its `server` block.
    pub async fn restart_server(&mut self, server: &str) {
        self.stop_server().await;
        self.shape.server = server.to_owned();
        self.start_server().await;
    }

    /// A command of the server's command line, on its socket.
    pub async fn server(&self, args: &[&str]) -> Ran {
        self.server_with_input(args, "").await
    }

    /// The same on the second server.
    pub async fn other(&self, args: &[&str]) -> Ran {
        let socket = self.path("other.sock");
        run(&other_program(), &[args, &["-socketPath", socket.to_str().unwrap()]].concat(), "").await
    }

    pub async fn server_with_input(&self, args: &[&str], input: &str) -> Ran {
        let socket = self.path("server.sock");
        let args = [args, &["-socketPath", socket.to_str().unwrap()]].concat();
        run(&server_program(), &args, input).await
    }

    /// A token for an agent that is also known as `alias`.
    pub async fn token(&self, alias: &str) -> String {
        let id = format!("spiffe://{TRUST_DOMAIN}{alias}");
        let made = self.server(&["token", "generate", "-spiffeID", &id, "-output", "json"]).await.json();
        made["value"].as_str().unwrap().to_owned()
    }

    /// Creates an entry for the people of this name.
    pub async fn register(&self, name: &str, parent: &str, person: &str, more: &[&str]) {
        let (id, selector) = (format!("spiffe://{TRUST_DOMAIN}/{name}"), self.selector(person));
        let args = ["entry", "create", "-parentID", parent, "-spiffeID", &id, "-selector", &selector];
        self.server(&[&args, more].concat()).await.ok();
    }

    /// What distinguishes the processes of a person: the path of the program that they run.
    pub fn selector(&self, person: &str) -> String {
        format!("unix:path:{}", self.person(person).display())
    }

    /// Gives an agent a certificate of the nodes' authority, with URI names; the SPIFFE ID that it leads to.
    pub fn certify(&self, agent: &str, names: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, agent);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names =
            names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.nodes).unwrap();
        std::fs::write(self.path(&format!("{agent}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{agent}.key")), key.serialize_pem()).unwrap();
        let fingerprint = hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, certificate.der()));
        format!("spiffe://{TRUST_DOMAIN}/spire/agent/x509pop/{fingerprint}")
    }

    /// Starts an agent and waits until it is healthy. `more`: lines of its `agent` block.
    pub async fn start_agent(&mut self, agent: &str, proof: Proof, more: &str) {
        self.launch_agent(agent, &proof, more);
        until("the agent is healthy", async || {
            let ended = self.agents.get_mut(agent).and_then(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                // SPIRE's may end to be started again; ours has no need to.
                assert!(agents_are_spires(), "the agent ended: {status}");
                self.launch_agent(agent, &proof, more);
            }
            self.agent(agent, &["healthcheck"]).await.status.success().then_some(())
        })
        .await;
    }

    /// Starts an agent that need not come to serve. What an agent of this name left is still there.
    pub fn launch_agent(&mut self, agent: &str, proof: &Proof, more: &str) {
        std::fs::create_dir_all(self.path(agent)).unwrap();
        let config = self.path(&format!("{agent}.conf"));
        std::fs::write(&config, self.agent_configuration(agent, proof, more)).unwrap();
        let log = format!("{agent}.log");
        let child = self.launch(&agent_program(), &log, &["run", "-config", config.to_str().unwrap()]);
        if let Some(mut before) = self.agents.insert(agent.to_owned(), child) {
            // Two agents of one name would share their files.
            assert!(before.try_wait().unwrap().is_some(), "{agent} runs already");
        }
    }

    /// Asks an agent to end, and waits until it has.
    pub async fn stop_agent(&mut self, agent: &str) -> ExitStatus {
        terminate(self.agents.remove(agent).expect("such an agent runs")).await
    }

    /// Waits until an agent ends by itself.
    pub async fn ended(&mut self, agent: &str) -> ExitStatus {
        let mut child = self.agents.remove(agent).expect("such an agent runs");
        until("the agent has ended", async || child.try_wait().unwrap()).await
    }

    /// A command of the agent's command line, on its public socket.
    pub async fn agent(&self, agent: &str, args: &[&str]) -> Ran {
        let socket = self.socket(agent);
        run(&agent_program(), &[args, &["-socketPath", socket.to_str().unwrap()]].concat(), "").await
    }

    /// A command of the agent's command line, on its admin socket.
    pub async fn agent_admin(&self, agent: &str, args: &[&str]) -> Ran {
        let socket = self.path(&format!("{agent}-admin/admin.sock"));
        run(&agent_program(), &[args, &["-socketPath", socket.to_str().unwrap()]].concat(), "").await
    }

    /// The same as [`Stage::agent`], run by a person: from a copy of the program at the person's path.
    pub async fn as_person(&self, person: &str, agent: &str, args: &[&str]) -> Ran {
        let program = self.person(person);
        if !program.exists() {
            // By a process of its own: a file that we wrote could still be open in a process that we start meanwhile, and is
            // then "busy".
            let (from, to) = (agent_program(), program.display().to_string());
            run(Path::new("cp"), &[from.to_str().unwrap(), &to], "").await.ok();
        }
        let socket = self.socket(agent);
        run(&program, &[args, &["-socketPath", socket.to_str().unwrap()]].concat(), "").await
    }

    /// What a person's X.509 fetch gives: by SPIFFE ID the chain and the trust bundle, already verified.
    pub async fn x509(&self, person: &str, agent: &str) -> BTreeMap<String, Fetched> {
        let ran = self.as_person(person, agent, &["api", "fetch", "x509", "-output", "json"]).await;
        if !ran.status.success() {
            return BTreeMap::new();
        }
        let fetched = ran.json();
        fetched["svids"].as_array().unwrap().iter().map(Fetched::read).collect()
    }

    /// The same, once it is what is expected.
    pub async fn x509_until(
        &self,
        person: &str,
        agent: &str,
        wanted: impl Fn(&BTreeMap<String, Fetched>) -> bool,
    ) -> BTreeMap<String, Fetched> {
        until(&format!("{person} has the expected identities from {agent}"), async || {
            Some(self.x509(person, agent).await).filter(&wanted)
        })
        .await
    }

    /// A person's JWT-SVIDs for this audience by SPIFFE ID, and the key IDs of the own trust domain's bundle.
    pub async fn jwts(
        &self,
        person: &str,
        agent: &str,
        audience: &str,
    ) -> Result<(BTreeMap<String, String>, Vec<String>), String> {
        let args = ["api", "fetch", "jwt", "-audience", audience, "-output", "json"];
        let ran = self.as_person(person, agent, &args).await;
        if !ran.status.success() {
            return Err(ran.stderr + &ran.stdout);
        }
        let fetched = ran.json();
        let tokens = fetched[0]["svids"].as_array().unwrap().iter();
        let tokens = tokens.map(|svid| {
            (name_of(svid["spiffe_id"].as_str().unwrap()), svid["svid"].as_str().unwrap().to_owned())
        });
        let bundle = fetched[1]["bundles"][format!("spiffe://{TRUST_DOMAIN}")].as_str().unwrap();
        let bundle: Value = serde_json::from_slice(&STANDARD.decode(bundle).unwrap()).unwrap();
        let keys =
            bundle["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned());
        Ok((tokens.collect(), keys.collect()))
    }

    /// What a program has logged: `server`, or an agent's name.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    fn person(&self, name: &str) -> PathBuf {
        self.path(name)
    }

    fn socket(&self, agent: &str) -> PathBuf {
        self.path(&format!("{agent}-public/agent.sock"))
    }

    fn launch(&self, program: &Path, log: &str, args: &[&str]) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path(log)).unwrap();
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap_or_else(|error| {
            panic!("{}: {error}; build it with cargo build --bins", program.display())
        })
    }

    fn server_configuration(&self, name: &str, port: u16) -> String {
        let folder = self.folder.path().display();
        let ServerShape { server, plugins, datastore } = &self.shape;
        let sqlite = || {
            format!("database_type = \"sqlite3\"\nconnection_string = \"{folder}/{name}/datastore.sqlite3\"")
        };
        let datastore = datastore.clone().unwrap_or_else(sqlite);
        format!(
            r#"
server {{
    trust_domain = "{TRUST_DOMAIN}"
    bind_address = "127.0.0.1"
    bind_port = {port}
    socket_path = "{folder}/{name}.sock"
    data_dir = "{folder}/{name}"
    log_level = "DEBUG"
    {server}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            {datastore}
        }}
    }}
    KeyManager "disk" {{
        plugin_data {{ keys_path = "{folder}/{name}/keys.json" }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    NodeAttestor "x509pop" {{
        plugin_data {{ ca_bundle_path = "{folder}/nodes.pem" }}
    }}
    {plugins}
}}
"#
        )
    }

    fn agent_configuration(&self, agent: &str, proof: &Proof, more: &str) -> String {
        let (folder, port) = (self.folder.path().display(), self.port);
        let (token, attestor) = match proof {
            Proof::Token(token) => (
                format!("join_token = {token:?}"),
                r#"NodeAttestor "join_token" { plugin_data {} }"#.to_owned(),
            ),
            Proof::Certificate => (
                String::new(),
                format!(
                    r#"NodeAttestor "x509pop" {{
                        plugin_data {{
                            private_key_path = "{folder}/{agent}.key"
                            certificate_path = "{folder}/{agent}.pem"
                        }}
                    }}"#
                ),
            ),
        };
        format!(
            r#"
agent {{
    trust_domain = "{TRUST_DOMAIN}"
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = "{folder}/{agent}-public/agent.sock"
    admin_socket_path = "{folder}/{agent}-admin/admin.sock"
    data_dir = "{folder}/{agent}"
    insecure_bootstrap = true
    log_level = "DEBUG"
    {token}
    {more}
}}
plugins {{
    {attestor}
    KeyManager "disk" {{
        plugin_data {{ directory = "{folder}/{agent}" }}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{
            discover_workload_path = true
            workload_size_limit = -1
        }}
    }}
}}
"#
        )
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in self.agents.values_mut().chain(&mut self.server).chain(&mut self.other) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for log in ["server", "other"].into_iter().chain(self.agents.keys().map(String::as_str)) {
                let text = self.log(log);
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- the end of {log}.log\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
            }
        }
    }
}

/// An X.509-SVID with the bundle it came with.
#[derive(Debug)]
pub struct Fetched {
    pub svid: X509Svid,
    /// DER.
    pub bundle: Vec<Vec<u8>>,
}

impl Fetched {
    /// Reads one of the fetched SVIDs, by the name behind the trust domain. It must chain to its bundle.
    fn read(json: &Value) -> (String, Fetched) {
        let der = |key: &str| STANDARD.decode(json[key].as_str().unwrap()).unwrap();
        let svid = X509Svid::parse_concatenated(&der("x509_svid")).unwrap();
        let bundle = split_concatenated(&der("bundle")).unwrap();
        peer::verify_svid(&svid, &bundle, Clock::wall().now())
            .expect("it chains to the bundle that it came with");
        let name = name_of(json["spiffe_id"].as_str().unwrap());
        (name, Fetched { svid, bundle: bundle.into_iter().map(|der| der.to_vec()).collect() })
    }
}

/// Asks again and again until there is an answer.
///
/// # Panics
///
/// When there is none for a minute.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looked = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looked).await;
    found.unwrap_or_else(|_| panic!("waited {} seconds in vain until {what}", PATIENCE.as_secs()))
}

fn name_of(id: &str) -> String {
    id.strip_prefix(&format!("spiffe://{TRUST_DOMAIN}/")).unwrap_or(id).to_owned()
}

async fn run(program: &Path, args: &[&str], input: &str) -> Ran {
    use tokio::io::AsyncWriteExt as _;

    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that reads nothing may have ended already.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{} {args:?} does not end", program.display())).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

async fn terminate(mut child: Child) -> ExitStatus {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    until("a program has ended that was told to", async || child.try_wait().unwrap()).await
}

fn server_program() -> PathBuf {
    program("server", is_spires("server"))
}

fn other_program() -> PathBuf {
    program("server", is_spires("other"))
}

fn agent_program() -> PathBuf {
    program("agent", agents_are_spires())
}

fn agents_are_spires() -> bool {
    is_spires("agents")
}

fn is_spires(part: &str) -> bool {
    std::env::var("FINIAL_STAGE").is_ok_and(|stage| stage == part || stage == "both")
}

fn program(kind: &str, is_spires: bool) -> PathBuf {
    if !is_spires {
        return real::binary(&format!("finial-{kind}"));
    }
    let folder = std::env::var_os("FINIAL_REFERENCE_BIN").expect("FINIAL_REFERENCE_BIN names a folder");
    PathBuf::from(folder).join(format!("spire-{kind}"))
}
