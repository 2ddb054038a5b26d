//! The processes of the quickstart: the real server, the real agent and two workloads.

use std::ffi::OsString;
use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::Stuck;
use crate::estate::{Estate, TRUST_DOMAIN};

/// How long a program may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Turns `quickstart as-server ARGS` into the arguments of the program it stands for.
pub fn arguments_of(name: &str, args: &mut Vec<OsString>) -> Vec<OsString> {
    let mut rest = args.split_off(2);
    rest.insert(0, name.into());
    rest
}

/// The started processes; they are killed when this value goes away.
pub struct Programs<'a> {
    estate: &'a Estate,
    server: Option<Child>,
    agent: Option<Child>,
    node: String,
}

impl<'a> Programs<'a> {
    /// Nothing runs yet.
    pub fn new(estate: &'a Estate) -> Self {
        Programs { estate, server: None, agent: None, node: format!("spiffe://{TRUST_DOMAIN}/node") }
    }

    /// Starts the server and waits until it is healthy.
    pub async fn start_server(&mut self) -> Result<(), Stuck> {
        let config = self.estate.path("server.conf");
        self.server =
            Some(self.spawn("as-server", "server.log", ["run".into(), "-config".into(), config.into()])?);
        self.healthy("as-server", "the server", "server.log", &self.estate.admin_socket()).await
    }

    /// Starts the agent and waits until it is healthy.
    pub async fn start_agent(&mut self, token: &str) -> Result<(), Stuck> {
        let config = self.estate.path("agent.conf");
        let args = ["run".into(), "-config".into(), config.into(), "-joinToken".into(), token.into()];
        self.agent = Some(self.spawn("as-agent", "agent.log", args)?);
        self.healthy("as-agent", "the agent", "agent.log", &self.estate.workload_socket()).await
    }

    /// A one-use token with which the agent proves its node.
    pub fn join_token(&self) -> Result<String, Stuck> {
        let printed = self.server_command(&["token", "generate", "-spiffeID", &self.node])?;
        let token = printed.lines().find_map(|line| line.strip_prefix("Token: "));
        token.map(str::to_owned).ok_or_else(|| Stuck::new("no join token came", printed, self.logs()))
    }

    /// Registers `spiffe://<trust domain>/<name>` for processes with all the given selectors.
    pub fn register(&self, name: &str, selectors: &[String], ttl: Option<u32>) -> Result<(), Stuck> {
        let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
        let mut args = vec!["entry", "create", "-parentID", &self.node, "-spiffeID", &id];
        for selector in selectors {
            args.extend(["-selector", selector]);
        }
        let ttl = ttl.map(|ttl| ttl.to_string());
        if let Some(ttl) = &ttl {
            args.extend(["-x509SVIDTTL", ttl]);
        }
        self.server_command(&args).map(drop)
    }

    /// Starts `orders`, lets `billing` call it, and returns what `billing` printed.
    pub async fn mutual_tls(&self, endpoint: &str) -> Result<String, Stuck> {
        let stuck = |cause: String| Stuck::new("the two workloads did not meet", cause, self.logs());
        let mut orders = Command::new(self.estate.workload_program("orders")?)
            .args(["as-orders", endpoint])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| stuck(error.to_string()))?;
        let printed = orders.stdout.take().ok_or_else(|| stuck("orders has no output".to_owned()))?;
        let address = tokio::time::timeout(PATIENCE, BufReader::new(printed).lines().next_line())
            .await
            .map_err(|_| stuck("orders got no identity in time".to_owned()))?
            .map_err(|error| stuck(error.to_string()))?
            .ok_or_else(|| stuck("orders ended".to_owned()))?;
        let billing = Command::new(self.estate.workload_program("billing")?)
            .args(["as-billing", endpoint, &address])
            .kill_on_drop(true)
            .output();
        let billing = tokio::time::timeout(PATIENCE, billing)
            .await
            .map_err(|_| stuck("billing got no answer in time".to_owned()))?
            .map_err(|error| stuck(error.to_string()))?;
        if !billing.status.success() {
            return Err(stuck(String::from_utf8_lossy(&billing.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&billing.stdout).into_owned())
    }

    /// Where to look when something did not come.
    pub fn logs(&self) -> String {
        let (server, agent) = (self.estate.path("server.log"), self.estate.path("agent.log"));
        let tail = |file| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(8).collect();
            lines.into_iter().rev().map(|line| format!("\n    {line}")).collect::<String>()
        };
        format!("read the logs.\n  server:{}\n  agent:{}", tail(server), tail(agent))
    }

    /// Stays until Ctrl-C, or until one of the programs ends by itself.
    pub async fn wait_for_stop(mut self) -> Result<(), Stuck> {
        let logs = self.logs();
        let ended = |name: &str| Stuck::new(format!("the {name} ended"), "it was not asked to", logs.clone());
        let (Some(server), Some(agent)) = (self.server.as_mut(), self.agent.as_mut()) else {
            return Err(ended("quickstart"));
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = server.wait() => return Err(ended("server")),
            _ = agent.wait() => return Err(ended("agent")),
        }
        self.stop().await
    }

    /// Stops the agent, then the server, and reports one that did not end well.
    pub async fn stop(mut self) -> Result<(), Stuck> {
        for (name, child) in [("agent", self.agent.take()), ("server", self.server.take())] {
            let Some(mut child) = child else { continue };
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                // It may have ended in between; then the status below says how.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGTERM,
                );
            }
            let status = tokio::time::timeout(PATIENCE, child.wait()).await;
            if !matches!(&status, Ok(Ok(status)) if status.success()) {
                return Err(Stuck::new(
                    format!("the {name} did not stop cleanly"),
                    format!("{status:?}"),
                    self.logs(),
                ));
            }
        }
        Ok(())
    }

    fn server_command(&self, args: &[&str]) -> Result<String, Stuck> {
        let output = own_program()?
            .arg("as-server")
            .args(args)
            .args(["-socketPath", &self.estate.admin_socket()])
            .output()
            .map_err(|error| {
                Stuck::new("this program can't start itself", error, "try again from a fresh build")
            })?;
        if !output.status.success() {
            let cause = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Stuck::new(format!("`finial-server {}` failed", args.join(" ")), cause, self.logs()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn spawn<const N: usize>(&self, role: &str, log: &str, args: [OsString; N]) -> Result<Child, Stuck> {
        let stuck = |cause: std::io::Error| {
            Stuck::new("this program can't start itself", cause, "try again from a fresh build")
        };
        let log = File::create(self.estate.path(log)).map_err(stuck)?;
        let mut command = Command::from(own_program()?);
        command
            .arg(role)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(stuck)?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(stuck)
    }

    async fn healthy(&mut self, role: &str, what: &str, log: &str, socket: &str) -> Result<(), Stuck> {
        let asked = async {
            let mut pause = tokio::time::interval(Duration::from_millis(100));
            loop {
                pause.tick().await;
                let child = if role == "as-server" { self.server.as_mut() } else { self.agent.as_mut() };
                if let Some(Ok(Some(status))) = child.map(|child| child.try_wait()) {
                    return Err(status.to_string());
                }
                let healthy = Command::from(own_program().map_err(|stuck| stuck.to_string())?)
                    .args([role, "healthcheck", "-socketPath", socket])
                    .output()
                    .await;
                if healthy.is_ok_and(|output| output.status.success()) {
                    return Ok(());
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ended)) => Err(Stuck::new(format!("{what} ended at once"), ended, self.logs())),
            Err(_) => Err(Stuck::new(
                format!("{what} is not healthy after {} s", PATIENCE.as_secs()),
                format!("its log is {}", self.estate.path(log).display()),
                self.logs(),
            )),
        }
    }
}

fn own_program() -> Result<std::process::Command, Stuck> {
    let own = std::env::current_exe().map_err(|error| {
        Stuck::new("this program does not find itself", error, "start it by its full path")
    })?;
    Ok(std::process::Command::new(own))
}
