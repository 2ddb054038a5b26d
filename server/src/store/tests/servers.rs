//! PostgreSQL and MariaDB servers that live as long as this process, and ways to them that can be cut. The tests of whole
//! systems use this file too.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use tokio::net::{UnixListener, UnixStream};

/// Hands connections on to a server, until it is cut.
pub(crate) struct Relay {
    from: PathBuf,
    to: PathBuf,
    task: Option<tokio::task::JoinHandle<()>>,
    directory: tempfile::TempDir,
}

impl Relay {
    /// A way to the server's socket, which has this name; it is open.
    pub(crate) fn open(server: &Server, socket: &str) -> Relay {
        let directory = tempfile::tempdir().unwrap();
        let to = format!("{}/{socket}", server.directory).into();
        let mut relay = Relay { from: directory.path().join(socket), to, directory, task: None };
        relay.restore();
        relay
    }

    /// Where the socket is.
    pub(crate) fn directory(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// Ends all connections, and refuses others.
    pub(crate) async fn cut(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        // Its connections end with it.
        let _ = task.await;
        std::fs::remove_file(&self.from).unwrap();
    }

    pub(crate) fn restore(&mut self) {
        let (listener, to) = (UnixListener::bind(&self.from).unwrap(), self.to.clone());
        self.task = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                let mut to = UnixStream::connect(&to).await.unwrap();
                connections.spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
            }
        }));
    }
}

/// A server that ends when this process does: it ends with its standard input.
pub(crate) struct Server {
    /// Where its socket is.
    pub(crate) directory: String,
    _child: Child,
    _until: ChildStdin,
}

/// `None`, loudly, where it is not installed.
pub(crate) fn postgres() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    const START: &str = r#"
        PATH=$PATH:$(ls -d /usr/lib/postgresql/*/bin | tail -1)
        initdb -D "$dir/data" -U finial -A trust -E UTF8 --no-locale --no-sync >"$dir/log" 2>&1
        options="-k $dir -h '' -p 5432 -F -c max_connections=400 -c max_wal_size=64MB -c wal_level=minimal -c max_wal_senders=0"
        pg_ctl -D "$dir/data" -w -l "$dir/log" -o "$options" start >/dev/null
        stop() { pg_ctl -D "$dir/data" -m immediate -w stop >/dev/null; }"#;
    SERVER
        .get_or_init(|| {
            Server::start("postgresql", "postgres", "ls /usr/lib/postgresql/*/bin/postgres", START)
        })
        .as_ref()
}

/// `None`, loudly, where it is not installed.
pub(crate) fn mysql() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    const START: &str = r#"
        PATH=$PATH:/usr/sbin
        mariadb-install-db --no-defaults --datadir="$dir/data" --auth-root-authentication-method=normal \
            --skip-test-db >"$dir/log" 2>&1
        mariadbd --no-defaults --datadir="$dir/data" --socket="$dir/sock" --skip-networking --max-connections=400 \
            --innodb-flush-log-at-trx-commit=0 --skip-log-bin >"$dir/log" 2>&1 &
        pid=$!
        mariadb-admin --no-defaults --socket="$dir/sock" -u root --wait=60 --connect-timeout=60 ping >/dev/null 2>&1
        stop() { kill -9 $pid; }"#;
    SERVER
        .get_or_init(|| {
            Server::start("mariadb-server", "mysql", "command -v mariadbd || ls /usr/sbin/mariadbd", START)
        })
        .as_ref()
}

impl Server {
    /// Starts a server as `user`, since both refuse to run as root.
    fn start(package: &str, user: &str, is_there: &str, start: &str) -> Option<Server> {
        let found =
            Command::new("sh").args(["-c", is_there]).output().is_ok_and(|found| found.status.success());
        if !found {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "package {package} is not installed");
            eprintln!("SKIPPED: package {package} is not installed, so nothing is tested on it");
            return None;
        }
        let script = format!(
            "set -e; dir=$(mktemp -d /tmp/finial-{package}.XXXXXX); cd \"$dir\"\n{start}\necho \"$dir\"\n\
             cat >/dev/null\nstop\nrm -rf \"$dir\""
        );
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", user, "--", "sh", "-c", &script]);
            command
        } else {
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            command
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let until = child.stdin.take().unwrap();
        let mut directory = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut directory).unwrap();
        assert!(!directory.is_empty(), "{package} did not start");
        Some(Server { directory: directory.trim().to_owned(), _child: child, _until: until })
    }
}
