//! A trust domain in one process: the real server, real agents and workloads, in-memory wires, virtual time.
//!
//! Tests that use it run with `#[tokio::test(start_paused = true)]`: when nothing is left to do, time jumps to the
//! next timer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finial_agent::plugins::key_manager::Choice;
use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::listen::peer::LocalPeer;
use finial_daemon::metrics::Metrics;
use finial_daemon::settings;
use finial_daemon::telemetry::{LogHandle, LogLevel};
use finial_identity::bundle::document::certificate_pem;
use finial_identity::x509_svid::{X509Svid, split_concatenated};
use finial_identity::{TrustDomain, peer};
use finial_proto::spire::api::server::{agent, bundle, entry, svid};
use finial_proto::spire::api::types;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{X509svidRequest, X509svidResponse};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::wire::Wire;

/// The trust domain of every world.
pub const TRUST_DOMAIN: &str = "example.org";

/// When worlds begin: 2030-01-01.
pub const BEGINNING: Duration = Duration::from_secs(1_893_456_000);

/// How a world differs from the usual one.
#[derive(Clone)]
pub struct Shape {
    /// Lines of the `server` block.
    pub server: String,
    /// Whole plugin blocks of the server, such as `UpstreamAuthority "disk" {...}`.
    pub server_plugins: String,
    /// Lines of the `agent` block.
    pub agent: String,
    /// The agent's `NodeAttestor` block.
    pub node_attestor: String,
    /// How agents come to believe the server; BUNDLE is the file that [`World::write_bundle`] writes.
    pub bootstrap: String,
    /// `plugin_data` of the agent's `unix` attestor.
    pub unix: String,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            server: String::new(),
            server_plugins: String::new(),
            agent: String::new(),
            node_attestor: "NodeAttestor \"join_token\" { plugin_data {} }".to_owned(),
            bootstrap: "insecure_bootstrap = true".to_owned(),
            // No digests: the program that runs the tests is large.
            unix: "discover_workload_path = true\nworkload_size_limit = -1".to_owned(),
        }
    }
}

/// The trust domain.
pub struct World {
    pub clock: Clock,
    pub folder: Folder,
    shape: Shape,
    api: Wire,
    admin: Wire,
    server: Option<Server>,
}

/// Where a world's files are.
pub enum Folder {
    /// Goes away with the world.
    Own(TempDir),
    /// Belongs to another world.
    Other(PathBuf),
}

impl Folder {
    pub fn path(&self) -> &Path {
        match self {
            Folder::Own(folder) => folder.path(),
            Folder::Other(folder) => folder,
        }
    }
}

struct Server {
    handles: finial_server::build::Handles,
    task: JoinHandle<Result<(), finial_server::build::RunError>>,
}

/// A node of the trust domain.
pub struct Node {
    pub handles: finial_agent::build::Handles,
    folder: PathBuf,
    socket: Wire,
    admin: Wire,
    stop: CancellationToken,
    task: JoinHandle<Result<(), finial_agent::build::RunError>>,
}

impl World {
    /// A running server of the usual shape.
    pub async fn new() -> World {
        World::of(Shape::default()).await
    }

    /// A running server of this shape.
    pub async fn of(shape: Shape) -> World {
        World::in_folder(tempfile::tempdir().unwrap(), shape).await
    }

    /// A running server whose files are in `folder`, which may have some already.
    pub async fn in_folder(folder: TempDir, shape: Shape) -> World {
        let mut world = World::idle(folder, shape);
        world.start_server().await;
        world
    }

    /// A world whose server does not run yet.
    pub fn idle(folder: TempDir, shape: Shape) -> World {
        World::over(Folder::Own(folder), shape)
    }

    /// A world of the usual shape on the files of another one.
    pub fn idle_at(folder: &Path) -> World {
        World::over(Folder::Other(folder.to_owned()), Shape::default())
    }

    fn over(folder: Folder, shape: Shape) -> World {
        let clock = Clock::paused(UNIX_EPOCH + BEGINNING);
        World { clock, folder, shape, api: Wire::new(), admin: Wire::new(), server: None }
    }

    /// When worlds begin.
    pub fn beginning() -> SystemTime {
        UNIX_EPOCH + BEGINNING
    }

    /// Starts the server; panics with its words when it refuses.
    pub async fn start_server(&mut self) {
        if let Err(refusal) = self.try_start_server().await {
            panic!("the server does not start: {refusal}");
        }
    }

    /// Starts the server, or returns what it says.
    pub async fn try_start_server(&mut self) -> Result<(), String> {
        let file = settings::parse(&self.server_configuration(), "server.conf")
            .map_err(|error| error.to_string())?;
        let settings =
            finial_server::settings::Settings::read(&file, &finial_server::settings::Flags::default())
                .map_err(|error| error.to_string())?;
        let around = finial_server::build::Surroundings {
            metrics: Metrics::none(self.clock.clone()),
            clock: self.clock.clone(),
            api: self.api.listen(),
            admin: self.admin.listen(),
            log: LogHandle::detached(LogLevel::Info),
        };
        let built = finial_server::build::build(settings, around).await.map_err(|error| error.to_string())?;
        let task = tokio::spawn(built.task);
        built.ready.wait().await;
        self.server = Some(Server { handles: built.handles, task });
        Ok(())
    }

    /// Stops the server and waits for its end. Nobody listens any more, and its files are closed.
    pub async fn stop_server(&mut self) {
        let server = self.server.take().expect("a server runs");
        self.api.hang_up();
        self.admin.hang_up();
        server.handles.stop.cancel();
        server.task.await.unwrap().unwrap();
        drop(server.handles);
        // The last connection to the database may be closed by a thread that still works; then its lock is free.
        let lock = self.folder.path().join("datastore.sqlite3.finial-lock");
        let waited = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::open(lock).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
                .map(drop)
                .map_err(|(_, errno)| errno)
        });
        waited.await.unwrap().unwrap();
    }

    /// Writes the server's bundle to a file for agents to believe it by.
    pub async fn write_bundle(&self) {
        let bundle = self.bundles().get_bundle(bundle::v1::GetBundleRequest::default()).await;
        let authorities = bundle.unwrap().into_inner().x509_authorities;
        let pem = authorities.iter().map(|authority| certificate_pem(&authority.asn1)).collect::<String>();
        std::fs::write(self.bundle_file(), pem).unwrap();
    }

    fn bundle_file(&self) -> PathBuf {
        self.folder.path().join("bundle.pem")
    }

    /// Another server of the same name takes the place of the running one: nothing is left of its keys and its data.
    pub async fn replace_server(&mut self) {
        self.stop_server().await;
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("datastore.") || name == "keys.json" {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        self.start_server().await;
    }

    /// The parts of the running server.
    pub fn server(&self) -> &finial_server::build::Handles {
        &self.server.as_ref().expect("a server runs").handles
    }

    /// A channel to the admin socket.
    pub fn admin(&self) -> Channel {
        dial::channel(Dialer::Memory(self.admin.dialer()), None, "localhost")
    }

    /// A client of the Entry service on the admin socket.
    pub fn entries(&self) -> entry::v1::entry_client::EntryClient<Channel> {
        entry::v1::entry_client::EntryClient::new(self.admin())
    }

    /// A client of the Agent service on the admin socket.
    pub fn agents(&self) -> agent::v1::agent_client::AgentClient<Channel> {
        agent::v1::agent_client::AgentClient::new(self.admin())
    }

    /// A client of the Bundle service on the admin socket.
    pub fn bundles(&self) -> bundle::v1::bundle_client::BundleClient<Channel> {
        bundle::v1::bundle_client::BundleClient::new(self.admin())
    }

    /// A client of the SVID service on the admin socket.
    pub fn svids(&self) -> svid::v1::svid_client::SvidClient<Channel> {
        svid::v1::svid_client::SvidClient::new(self.admin())
    }

    /// Dials the network port.
    pub fn network(&self) -> Dialer {
        Dialer::Memory(self.api.dialer())
    }

    /// A join token whose node gets the entries under `spiffe://example.org/<node>`.
    pub async fn token(&self, node: &str) -> String {
        let request =
            agent::v1::CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: Some(id(node)) };
        self.agents().create_join_token(request).await.unwrap().into_inner().value
    }

    /// A new node with entries under `spiffe://example.org/<name>`, attested and synchronised.
    pub async fn node(&self, name: &str) -> Node {
        let token = self.token(name).await;
        let node = self.start_node(name, Some(&token)).await.expect("the agent starts");
        node.synced().await;
        node
    }

    /// Starts an agent on the files of `name`, or returns what it says.
    pub async fn start_node(&self, name: &str, token: Option<&str>) -> Result<Node, String> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let text = self.agent_configuration(&folder, token);
        let file = settings::parse(&text, "agent.conf").map_err(|error| error.to_string())?;
        let settings =
            finial_agent::settings::Settings::read(&file, &finial_agent::settings::Flags::default())
                .map_err(|error| error.to_string())?;
        let (socket, admin) = (Wire::new(), Wire::new());
        let stop = CancellationToken::new();
        let around = finial_agent::build::Surroundings {
            metrics: Metrics::none(self.clock.clone()),
            clock: self.clock.clone(),
            server: self.network(),
            workloads: Some(socket.listen()),
            admins: Some(admin.listen()),
            log: LogHandle::detached(LogLevel::Info),
            keys: Choice::Disk { directory: folder.clone() }
                .open()
                .await
                .map_err(|error| error.to_string())?,
            stop: stop.clone(),
        };
        let built = finial_agent::build::build(settings, around).await.map_err(|error| error.to_string())?;
        let task = tokio::spawn(built.task);
        let node = Node { handles: built.handles, folder, socket, admin, stop, task };
        Ok(node)
    }

    /// Stops a node's agent and starts it again on the same files.
    pub async fn restart(&self, node: Node) -> Node {
        let name = node.folder.file_name().unwrap().to_str().unwrap().to_owned();
        node.stop().await;
        self.start_node(&name, None).await.expect("the agent starts again")
    }

    /// Creates an entry under a node's alias; selectors as `type:value`.
    pub async fn register(&self, node: &str, name: &str, selectors: &[String]) -> types::Entry {
        self.register_as(types::Entry {
            spiffe_id: Some(id(name)),
            parent_id: Some(id(node)),
            selectors: selectors.iter().map(|selector| parse_selector(selector)).collect(),
            ..types::Entry::default()
        })
        .await
    }

    /// Creates an entry as it is given.
    pub async fn register_as(&self, entry: types::Entry) -> types::Entry {
        let request = entry::v1::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let answer = self.entries().batch_create_entry(request).await.unwrap().into_inner();
        let result = answer.results.into_iter().next().expect("one result");
        let status = result.status.expect("a status");
        assert_eq!(status.code, Code::Ok as i32, "{}", status.message);
        result.entry.expect("the entry")
    }

    /// Replaces an entry's fields.
    pub async fn update(&self, entry: types::Entry) -> types::Entry {
        let request =
            entry::v1::BatchUpdateEntryRequest { entries: vec![entry], input_mask: None, output_mask: None };
        let answer = self.entries().batch_update_entry(request).await.unwrap().into_inner();
        let result = answer.results.into_iter().next().expect("one result");
        let status = result.status.expect("a status");
        assert_eq!(status.code, Code::Ok as i32, "{}", status.message);
        result.entry.expect("the entry")
    }

    /// Deletes an entry.
    pub async fn delete(&self, id: &str) {
        let request = entry::v1::BatchDeleteEntryRequest { ids: vec![id.to_owned()] };
        let answer = self.entries().batch_delete_entry(request).await.unwrap().into_inner();
        assert_eq!(answer.results[0].status.as_ref().unwrap().code, Code::Ok as i32);
    }

    /// The attested agents.
    pub async fn attested(&self) -> Vec<types::Agent> {
        self.agents().list_agents(agent::v1::ListAgentsRequest::default()).await.unwrap().into_inner().agents
    }

    fn server_configuration(&self) -> String {
        let folder = self.folder.path().display();
        let Shape { server, server_plugins, .. } = &self.shape;
        format!(
            r#"
server {{
    trust_domain = "{TRUST_DOMAIN}"
    bind_address = "127.0.0.1"
    bind_port = 8081
    data_dir = "{folder}"
    ratelimit {{ attestation = false }}
    {server}
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
    {server_plugins}
}}
"#
        )
    }

    fn agent_configuration(&self, folder: &Path, token: Option<&str>) -> String {
        let folder = folder.display();
        let Shape { agent, unix, bootstrap, node_attestor, .. } = &self.shape;
        let bootstrap = bootstrap.replace("BUNDLE", &self.bundle_file().display().to_string());
        let token = token.map(|token| format!("join_token = {token:?}")).unwrap_or_default();
        format!(
            r#"
agent {{
    trust_domain = "{TRUST_DOMAIN}"
    server_address = "localhost"
    server_port = 8081
    data_dir = "{folder}"
    {bootstrap}
    {token}
    {agent}
}}
plugins {{
    {node_attestor}
    KeyManager "disk" {{
        plugin_data {{ directory = "{folder}" }}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{ {unix} }}
    }}
}}
"#
        )
    }
}

impl Node {
    /// Waits until entries and bundles have come.
    pub async fn synced(&self) {
        let workload = self.workload(std::process::id());
        loop {
            // Unavailable means: running, but not ready yet.
            match workload.try_open().await {
                Err(status) if status.code() == Code::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                _ => return,
            }
        }
    }

    /// A client that is the process `pid`.
    pub fn workload(&self, pid: u32) -> Workload {
        let peer = Arc::new(LocalPeer::of_process(pid).expect("the process lives"));
        let dialer = Dialer::Memory(self.socket.dialer().acting_as(peer));
        Workload { channel: dial::channel(dialer, None, "localhost") }
    }

    /// A channel to the admin socket on which the caller is the process `pid`.
    pub fn admin(&self, pid: u32) -> Channel {
        let peer = Arc::new(LocalPeer::of_process(pid).expect("the process lives"));
        dial::channel(Dialer::Memory(self.admin.dialer().acting_as(peer)), None, "localhost")
    }

    /// A client that is this very process.
    pub fn me(&self) -> Workload {
        self.workload(std::process::id())
    }

    /// Stops the agent and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Waits until the agent gives up by itself, and returns why.
    pub async fn end(self) -> String {
        match self.task.await.unwrap() {
            Ok(()) => "it was stopped".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

/// A process that talks to the Workload API.
pub struct Workload {
    channel: Channel,
}

impl Workload {
    /// A client over any connection.
    pub fn over(channel: Channel) -> Workload {
        Workload { channel }
    }

    /// For calls that the client does not make.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The raw client.
    pub fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel.clone())
    }

    /// Opens FetchX509SVID when what was registered has reached the agent.
    pub async fn open(&self) -> Updates {
        for _ in 0..1000 {
            match self.try_open().await {
                Ok(updates) => return updates,
                Err(status) if status.code() == Code::PermissionDenied => {
                    tokio::time::sleep(Duration::from_millis(10)).await
                }
                Err(status) => panic!("{status}"),
            }
        }
        panic!("the workload got no identity within 10 s");
    }

    /// Opens FetchX509SVID.
    pub async fn try_open(&self) -> Result<Updates, Status> {
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        let mut stream = self.client().fetch_x509svid(request).await?.into_inner();
        // A refusal may come as the stream's end instead of its head.
        let first = stream.message().await?.ok_or_else(|| Status::internal("the stream ended"))?;
        Ok(Updates { stream, first: Some(first) })
    }

    /// The first answer of a new stream, when what was registered has reached the agent.
    pub async fn fetch(&self, clock: &Clock) -> Context {
        self.open().await.next(clock).await
    }
}

/// An open stream of X.509 contexts.
pub struct Updates {
    stream: Streaming<X509svidResponse>,
    first: Option<X509svidResponse>,
}

impl Updates {
    /// The next context, verified as a stranger would when it comes.
    pub async fn next(&mut self, clock: &Clock) -> Context {
        match self.try_next(clock).await {
            Ok(context) => context,
            Err(status) => panic!("the stream ended: {status}"),
        }
    }

    /// The next context, or why there is none.
    pub async fn try_next(&mut self, clock: &Clock) -> Result<Context, Status> {
        let message = match self.first.take() {
            Some(first) => first,
            None => self.stream.message().await?.ok_or_else(|| Status::cancelled("the stream ended"))?,
        };
        Ok(Context::read(message, clock.now()))
    }

    /// The first context in which `fits` holds.
    pub async fn until(&mut self, clock: &Clock, fits: impl Fn(&Context) -> bool) -> Context {
        loop {
            let context = self.next(clock).await;
            if fits(&context) {
                return context;
            }
        }
    }
}

/// What a workload received, taken apart and checked.
pub struct Context {
    /// By SPIFFE ID; the default identity is `first`.
    pub svids: BTreeMap<String, X509Svid>,
    pub first: String,
    /// Hints by SPIFFE ID.
    pub hints: BTreeMap<String, String>,
    /// The own trust domain's authorities, DER.
    pub bundle: Vec<Vec<u8>>,
    /// Keys as on the wire.
    pub federated: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Context {
    /// Checks each SVID: the chain leads to the bundle that came with it, key and ID fit.
    fn read(message: X509svidResponse, now: SystemTime) -> Context {
        assert!(!message.svids.is_empty(), "a message without SVIDs");
        let split = |der: &[u8]| {
            split_concatenated(der).unwrap().into_iter().map(|der| der.to_vec()).collect::<Vec<_>>()
        };
        let mut context = Context {
            svids: BTreeMap::new(),
            first: message.svids[0].spiffe_id.clone(),
            hints: BTreeMap::new(),
            bundle: split(&message.svids[0].bundle),
            federated: message
                .federated_bundles
                .iter()
                .map(|(name, der)| (name.clone(), split(der)))
                .collect(),
        };
        for wire in &message.svids {
            let svid = X509Svid::parse_concatenated(&wire.x509_svid).unwrap();
            assert_eq!(svid.id().as_str(), wire.spiffe_id);
            assert_eq!(svid.issuer_faults(), []);
            peer::verify_svid(&svid, &split(&wire.bundle), now).unwrap();
            let key = finial_daemon::keys::WorkloadKey::from_pkcs8(&wire.x509_svid_key).unwrap();
            assert_eq!(
                key.public_key_der(),
                svid.public_key_der(),
                "the key is another than the certificate's"
            );
            context.hints.insert(wire.spiffe_id.clone(), wire.hint.clone());
            context.svids.insert(wire.spiffe_id.clone(), svid);
        }
        context
    }

    /// The SVID of `spiffe://example.org/<name>`.
    pub fn svid(&self, name: &str) -> &X509Svid {
        let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
        self.svids.get(&id).unwrap_or_else(|| panic!("no SVID for {id} among {:?}", self.svids.keys()))
    }

    /// The names of all identities, without the trust domain.
    pub fn names(&self) -> Vec<&str> {
        self.svids.values().map(|svid| svid.id().path().trim_start_matches('/')).collect()
    }
}

/// `spiffe://example.org/<name>` on the wire.
pub fn id(name: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: TRUST_DOMAIN.to_owned(), path: format!("/{name}") }
}

/// The selector that every process of this user has.
pub fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::Uid::effective())
}

/// The trust domain as a value.
pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse(TRUST_DOMAIN).unwrap()
}

fn parse_selector(text: &str) -> types::Selector {
    let (kind, value) = text.split_once(':').expect("type:value");
    types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
}
