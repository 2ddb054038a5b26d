//! What the benchmarks of both programs stand on: the programs as child processes in a directory of their own, what
//! they cost, and a table.
//!
//! Programs: this tree's `finial-server` and `finial-agent`, from the directory `FINIAL_BIN_DIR` or from where the
//! benchmark itself was built; and, when `FINIAL_REFERENCE_BIN` names a directory, its `spire-server` and `spire-agent`.

// Each benchmark uses a part.
#![allow(dead_code)]

pub mod table;

use std::error::Error;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_proto::spire::api::server::agent::v1 as agent;
use finial_proto::spire::api::server::bundle::v1 as bundle;
use finial_proto::spire::api::server::entry::v1 as entry;
use finial_proto::spire::api::types;
use tempfile::TempDir;
use tonic::transport::Channel;

pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

pub const TRUST_DOMAIN: &str = "bench.test";

/// How long a program may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);
const ENTRIES_PER_CALL: usize = 500;

/// One server and agent that belong together.
pub struct Programs {
    pub name: &'static str,
    server: PathBuf,
    agent: PathBuf,
}

impl Programs {
    /// Finial's first; the reference's where there is one.
    pub fn all() -> Outcome<Vec<Programs>> {
        let own = match std::env::var_os("FINIAL_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            // From target/release/deps/NAME to target/release.
            None => {
                std::env::current_exe()?.ancestors().nth(2).ok_or("no place to look for programs")?.to_owned()
            }
        };
        let mut all = vec![Programs::of("finial", &own)?];
        match std::env::var_os("FINIAL_REFERENCE_BIN") {
            Some(dir) => all.push(Programs::of("spire", Path::new(&dir))?),
            None => println!("FINIAL_REFERENCE_BIN is not set: no comparison with the reference"),
        }
        Ok(all)
    }

    fn of(name: &'static str, dir: &Path) -> Outcome<Programs> {
        let program = |kind: &str| -> Outcome<PathBuf> {
            let path = std::path::absolute(dir.join(format!("{name}-{kind}")))?;
            let missing = || format!("{} is missing: cargo build --release --bins", path.display());
            if path.is_file() { Ok(path) } else { Err(missing().into()) }
        };
        Ok(Programs { name, server: program("server")?, agent: program("agent")? })
    }
}

/// A running server, perhaps with an agent. Both end with this value.
pub struct Estate<'a> {
    programs: &'a Programs,
    /// Where programs run; `None`: anywhere.
    core: Option<usize>,
    pub port: u16,
    pub admin: Admin,
    pub server: Process,
    pub agent: Option<Process>,
    // Last, so that the directory outlives the processes in it.
    dir: TempDir,
}

impl<'a> Estate<'a> {
    /// A server with SQLite, keys on disk and a self-signed CA, all settings at their defaults except the limit on
    /// signing, which is off.
    pub async fn start(programs: &'a Programs, core: Option<usize>) -> Outcome<Estate<'a>> {
        let dir = new_dir()?;
        let tables = Tables::sqlite(&dir);
        Estate::start_in(programs, core, dir, &tables, PATIENCE).await
    }

    /// The same in a directory and on tables that may have been used before. Returns once the admin socket answers.
    pub async fn start_in(
        programs: &'a Programs,
        core: Option<usize>,
        dir: TempDir,
        tables: &Tables,
        patience: Duration,
    ) -> Outcome<Estate<'a>> {
        let at = |name: &str| dir.path().join(name);
        // Free a moment ago; nothing else is expected to ask for one just now.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::create_dir_all(at("server"))?;
        fs::write(at("server.conf"), server_conf(dir.path(), port, tables))?;
        let args = ["run".into(), "-config".into(), at("server.conf")];
        let server = Process::spawn(&programs.server, core, &args, at("server.log"))?;
        let admin = Admin::new(&at("server.sock"));
        let clock = Clock::wall();
        let begun = clock.monotonic();
        while let Err(status) = admin.bundle().await {
            if clock.monotonic() - begun > patience {
                return Err(
                    format!("{} does not answer: {status}\n{}", programs.name, server.last_lines()).into()
                );
            }
            clock.sleep(Duration::from_millis(50)).await;
        }
        Ok(Estate { programs, core, port, admin, server, agent: None, dir })
    }

    /// Tells the server to end, waits until it has, and leaves its directory.
    pub fn stop(mut self) -> Outcome<TempDir> {
        self.server.stop()?;
        Ok(self.dir)
    }

    /// Starts the agent that spends `token`. Its socket may not be there yet.
    pub fn start_agent(&mut self, token: &str) -> Outcome<()> {
        let at = |name: &str| self.dir.path().join(name);
        fs::create_dir(at("agent"))?;
        fs::write(at("agent.conf"), agent_conf(self.dir.path(), self.port, token))?;
        let args = ["run".into(), "-config".into(), at("agent.conf")];
        self.agent = Some(Process::spawn(&self.programs.agent, self.core, &args, at("agent.log"))?);
        Ok(())
    }

    /// The agent's socket.
    pub fn workload_socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }
}

/// A directory for an estate.
pub fn new_dir() -> Outcome<TempDir> {
    Ok(tempfile::Builder::new().prefix("finial-bench-").tempdir()?)
}

/// Where a server keeps its tables.
pub struct Tables {
    /// `database_type`.
    pub kind: &'static str,
    /// `connection_string`.
    pub connection: String,
}

impl Tables {
    pub fn sqlite(dir: &TempDir) -> Tables {
        let connection = dir.path().join("server/datastore.sqlite3").display().to_string();
        Tables { kind: "sqlite3", connection }
    }
}

/// The server's admin socket.
pub struct Admin {
    channel: Channel,
}

impl Admin {
    fn new(socket: &Path) -> Admin {
        Admin { channel: dial::channel(Dialer::Unix(socket.to_owned()), None, "localhost") }
    }

    /// The X.509 authorities, DER.
    pub async fn bundle(&self) -> Result<Vec<Vec<u8>>, tonic::Status> {
        let mut client = bundle::bundle_client::BundleClient::new(self.channel.clone());
        let bundle = client.get_bundle(bundle::GetBundleRequest::default()).await?.into_inner();
        Ok(bundle.x509_authorities.into_iter().map(|authority| authority.asn1).collect())
    }

    /// A join token and the path of the agent that will spend it.
    pub async fn join_token(&self) -> Outcome<(String, String)> {
        let mut client = agent::agent_client::AgentClient::new(self.channel.clone());
        let request = agent::CreateJoinTokenRequest { ttl: 600, ..Default::default() };
        let token = client.create_join_token(request).await?.into_inner().value;
        let path = format!("/spire/agent/join_token/{token}");
        Ok((token, path))
    }

    /// Creates an entry below the agent for each user ID; returns the entries' IDs.
    pub async fn create_entries(&self, agent: &str, uids: &[u32]) -> Outcome<Vec<String>> {
        let id = |path: String| Some(types::Spiffeid { trust_domain: TRUST_DOMAIN.to_owned(), path });
        let entry_for = |uid: &u32| types::Entry {
            spiffe_id: id(format!("/workload/{uid}")),
            parent_id: id(agent.to_owned()),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") }],
            ..Default::default()
        };
        let mut client = entry::entry_client::EntryClient::new(self.channel.clone());
        let mut ids = Vec::with_capacity(uids.len());
        for some in uids.chunks(ENTRIES_PER_CALL) {
            let entries = some.iter().map(entry_for).collect();
            let request = entry::BatchCreateEntryRequest { entries, output_mask: Some(Default::default()) };
            for result in client.batch_create_entry(request).await?.into_inner().results {
                match (result.status, result.entry) {
                    (Some(status), Some(entry)) if status.code == 0 => ids.push(entry.id),
                    (status, _) => return Err(format!("an entry was not created: {status:?}").into()),
                }
            }
        }
        Ok(ids)
    }
}

/// A child process; it is killed when this value goes away.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Of a process, in MiB.
pub struct Memory {
    pub now: f64,
    pub peak: f64,
}

impl Process {
    fn spawn(program: &Path, core: Option<usize>, args: &[PathBuf], log: PathBuf) -> Outcome<Process> {
        let mut command = pinned(program, core);
        let output = File::create(&log)?;
        command.args(args).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child =
            command.spawn().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(Process { child, log })
    }

    /// Processor time that it has used, to 10 ms.
    pub fn cpu(&self) -> Outcome<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) -> Outcome<()> {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let ended = self.child.wait()?;
        if told.success() && ended.success() {
            Ok(())
        } else {
            Err(format!("it ended badly: {ended}").into())
        }
    }

    pub fn memory(&self) -> Outcome<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mebibytes = |key: &str| -> Outcome<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kibibytes: f64 =
                line.and_then(|l| l.split_whitespace().next()).ok_or("no memory figure")?.parse()?;
            Ok(kibibytes / 1024.0)
        };
        Ok(Memory { now: mebibytes("VmRSS:")?, peak: mebibytes("VmHWM:")? })
    }

    /// Waits until it does next to nothing for two seconds on end, at most for the given time.
    pub async fn quiet(&self, clock: &Clock, limit: Duration) -> Outcome<()> {
        let begun = clock.monotonic();
        let mut calm = 0;
        while calm < 2 && clock.monotonic() - begun < limit {
            let before = self.cpu()?;
            clock.sleep(Duration::from_secs(1)).await;
            calm = if self.cpu()? - before <= Duration::from_millis(30) { calm + 1 } else { 0 };
        }
        Ok(())
    }

    /// The end of its log, for a failure.
    pub fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first and the last core this process may use: one for what is measured, one for who asks.
pub fn two_cores() -> Outcome<(usize, usize)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0");
    let numbers: Vec<usize> =
        list.split([',', '-']).filter_map(|number| number.trim().parse().ok()).collect();
    match numbers.as_slice() {
        [first, .., last] => Ok((*first, *last)),
        [only] => {
            println!("there is only one core, which the asking side shares: wall-clock rates are too low");
            Ok((*only, *only))
        }
        [] => Err(format!("cannot read the list of cores {list:?}").into()),
    }
}

/// Keeps this process on one core.
pub fn pin_self(core: usize) -> Outcome<()> {
    let args = ["-a", "-c", "-p", &core.to_string(), &std::process::id().to_string()];
    let done = Command::new("taskset").args(args).stdout(Stdio::null()).status();
    let done = done.map_err(|error| format!("cannot run taskset (package util-linux): {error}"))?;
    if done.success() { Ok(()) } else { Err("taskset could not pin this process".into()) }
}

/// A command that runs on one core; a Go program is told that there is only one.
pub fn pinned(program: &Path, core: Option<usize>) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(core.to_string()).arg(program).env("GOMAXPROCS", "1");
            command
        }
    }
}

/// Processor time, user and system, of a process by ID or of `self`.
pub fn cpu_of(process: &str) -> Outcome<Duration> {
    /// Ticks per second in `/proc`, on every Linux (proc_pid_stat(5); USER_HZ).
    const TICKS: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may contain anything; utime and stime are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').ok_or("unreadable /proc stat")?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / TICKS))
}

/// The machine's load averages over 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn server_conf(dir: &Path, port: u16, tables: &Tables) -> String {
    let dir = dir.display();
    let Tables { kind, connection } = tables;
    format!(
        r#"server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{dir}/server.sock"
    trust_domain = "{TRUST_DOMAIN}"
    data_dir = "{dir}/server"
    ratelimit {{
        signing = false
    }}
}}

plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "{kind}"
            connection_string = "{connection}"
        }}
    }}
    KeyManager "disk" {{
        plugin_data {{
            keys_path = "{dir}/server/keys.json"
        }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
}}
"#
    )
}

fn agent_conf(dir: &Path, port: u16, token: &str) -> String {
    let dir = dir.display();
    format!(
        r#"agent {{
    data_dir = "{dir}/agent"
    socket_path = "{dir}/agent.sock"
    trust_domain = "{TRUST_DOMAIN}"
    server_address = "127.0.0.1"
    server_port = {port}
    insecure_bootstrap = true
    join_token = "{token}"
}}

plugins {{
    KeyManager "disk" {{
        plugin_data {{
            directory = "{dir}/agent"
        }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{}}
    }}
}}
"#
    )
}
