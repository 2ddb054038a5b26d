//! SPIRE's own server, as a process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use tempfile::TempDir;

use super::target::Target;

/// How long the program may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// `spire-server` in the folder that `FINIAL_REFERENCE_BIN` names.
pub fn program() -> Option<PathBuf> {
    match std::env::var_os("FINIAL_REFERENCE_BIN") {
        Some(folder) => Some(PathBuf::from(folder).join("spire-server")),
        None => {
            eprintln!("\n!!! SKIPPED: FINIAL_REFERENCE_BIN is not set, so nothing is compared with SPIRE\n");
            None
        }
    }
}

pub struct Reference {
    folder: TempDir,
    port: u16,
    server: Child,
}

impl Reference {
    pub async fn start(program: &Path) -> Reference {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let at = folder.path().display();
        let configuration = format!(
            r#"
server {{
    trust_domain = "example.org"
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{at}/admin.sock"
    data_dir = "{at}"
    ratelimit {{ attestation = false }}
}}
plugins {{
    DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{at}/datastore.sqlite3" }} }}
    KeyManager "memory" {{ plugin_data {{}} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#
        );
        let file = folder.path().join("server.conf");
        std::fs::write(&file, configuration).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let server = Command::new(program)
            .args(["run", "-config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Reference { folder, port, server }
    }

    /// The running server, prepared.
    pub async fn target(&self) -> Target {
        let admin = || {
            let socket = self.folder.path().join("admin.sock");
            dial::channel(Dialer::Unix(socket), None, "localhost")
        };
        let ready = async {
            while BundleClient::new(admin()).get_bundle(GetBundleRequest::default()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("spire-server starts");
        let network = Dialer::Tcp { host: "127.0.0.1".to_owned(), port: self.port };
        Target::prepare(admin(), network, Clock::wall()).await
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
