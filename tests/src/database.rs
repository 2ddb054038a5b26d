//! Databases on PostgreSQL and MariaDB servers that end with this process.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

#[path = "../../server/src/store/tests/servers.rs"]
mod servers;

use servers::Relay;

/// A database that servers of the trust domain share, behind a way that can be cut.
pub struct SharedDatabase {
    kind: &'static str,
    connection_string: String,
    relay: Relay,
}

impl SharedDatabase {
    /// `None`, loudly, where PostgreSQL is not installed.
    pub fn postgres() -> Option<SharedDatabase> {
        let server = servers::postgres()?;
        let name = new_name();
        let create = format!("CREATE DATABASE {name}");
        succeeds(Command::new("psql").args([
            "-q",
            "-h",
            &server.directory,
            "-U",
            "finial",
            "-d",
            "postgres",
            "-c",
            &create,
        ]));
        let relay = Relay::open(server, ".s.PGSQL.5432");
        let connection_string =
            format!("host={} user=finial dbname={name} sslmode=disable", relay.directory());
        Some(SharedDatabase { kind: "postgres", connection_string, relay })
    }

    /// `None`, loudly, where MariaDB is not installed.
    pub fn mariadb() -> Option<SharedDatabase> {
        let server = servers::mysql()?;
        let name = new_name();
        let socket = format!("--socket={}/sock", server.directory);
        let create = format!("CREATE DATABASE {name}");
        succeeds(Command::new("mariadb").args(["--no-defaults", &socket, "-u", "root", "-e", &create]));
        let relay = Relay::open(server, "sock");
        let connection_string = format!("root@unix({}/sock)/{name}?parseTime=true", relay.directory());
        Some(SharedDatabase { kind: "mysql", connection_string, relay })
    }

    /// The settings of `DataStore "sql"`.
    pub fn settings(&self) -> String {
        format!("database_type = {:?}\nconnection_string = {:?}", self.kind, self.connection_string)
    }

    /// The database goes away: its connections end, and there are no new ones.
    pub async fn cut(&mut self) {
        self.relay.cut().await;
    }

    /// It is back.
    pub fn restore(&mut self) {
        self.relay.restore();
    }
}

fn new_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("shared_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
