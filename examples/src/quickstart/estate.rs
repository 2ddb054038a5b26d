//! Everything the quickstart puts on disk: an enterprise PKI, the two configurations, the workloads' programs.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::Stuck;

/// The trust domain of the quickstart.
pub const TRUST_DOMAIN: &str = "quickstart.example";

/// A folder with all files of one run; it goes away with this value.
pub struct Estate {
    folder: TempDir,
    port: u16,
}

impl Estate {
    /// Makes the folder, the PKI and the configurations.
    pub fn make() -> Result<Estate, Stuck> {
        let stuck = |cause: std::io::Error| {
            Stuck::new(
                "the folder for the quickstart can't be written",
                cause,
                "free some space, or set TMPDIR to a folder you may write",
            )
        };
        let folder = tempfile::Builder::new().prefix("finial-quickstart-").tempdir().map_err(stuck)?;
        // The port is free now; should another program take it in between, the server says so by name.
        let port = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .map_err(stuck)?
            .port();
        let estate = Estate { folder, port };
        for name in ["server", "agent", "public", "bin", "enterprise"] {
            fs::create_dir(estate.path(name)).map_err(stuck)?;
        }
        estate.make_enterprise()?;
        estate.write("server.conf", &estate.server_configuration()).map_err(stuck)?;
        estate.write("agent.conf", &estate.agent_configuration()).map_err(stuck)?;
        Ok(estate)
    }

    /// The folder of this run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file or folder of this run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The server's TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's admin socket.
    pub fn admin_socket(&self) -> String {
        self.path("server/api.sock").display().to_string()
    }

    /// The agent's Workload API socket.
    pub fn workload_socket(&self) -> String {
        self.path("public/api.sock").display().to_string()
    }

    /// Gives a workload a program file of its own, so that its path tells it from others of the same user.
    pub fn workload_program(&self, name: &str) -> Result<PathBuf, Stuck> {
        let program = self.path("bin").join(name);
        let stuck = |cause| {
            Stuck::new(
                format!("the program {name} can't be made"),
                cause,
                "free some space in the temporary folder",
            )
        };
        let own = std::env::current_exe().map_err(stuck)?;
        if !program.exists() && fs::hard_link(&own, &program).is_err() {
            fs::copy(&own, &program).map_err(stuck)?;
        }
        Ok(program)
    }

    /// The enterprise's offline root, and the intermediate with its key that it hands to Finial.
    fn make_enterprise(&self) -> Result<(), Stuck> {
        let made = || -> Result<(String, String, String), rcgen::Error> {
            let root = CertifiedIssuer::self_signed(
                authority("Quickstart Enterprise Root CA", BasicConstraints::Unconstrained, 3650),
                KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?,
            )?;
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
            let intermediate =
                authority("Quickstart Workload Identity CA", BasicConstraints::Constrained(1), 365)
                    .signed_by(&key, &root)?;
            Ok((root.pem(), intermediate.pem(), key.serialize_pem()))
        };
        let stuck = |cause: String| {
            Stuck::new(
                "the enterprise PKI can't be made",
                cause,
                "report this: it needs nothing from outside",
            )
        };
        let (root, intermediate, key) = made().map_err(|error| stuck(error.to_string()))?;
        self.write("enterprise/root.pem", &root)
            .and_then(|()| self.write("enterprise/intermediate.pem", &intermediate))
            .and_then(|()| self.write("enterprise/intermediate.key", &key))
            .map_err(|error| stuck(error.to_string()))
    }

    fn server_configuration(&self) -> String {
        let folder = self.folder.path().display();
        let port = self.port;
        format!(
            r#"server {{
    bind_address = "127.0.0.1"
    bind_port = {port}
    socket_path = "{folder}/server/api.sock"
    trust_domain = "{TRUST_DOMAIN}"
    data_dir = "{folder}/server"
    log_level = "INFO"
}}

plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{folder}/server/datastore.sqlite3"
        }}
    }}
    KeyManager "disk" {{
        plugin_data {{ keys_path = "{folder}/server/keys.json" }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    UpstreamAuthority "disk" {{
        plugin_data {{
            cert_file_path = "{folder}/enterprise/intermediate.pem"
            key_file_path = "{folder}/enterprise/intermediate.key"
            bundle_file_path = "{folder}/enterprise/root.pem"
        }}
    }}
}}
"#
        )
    }

    fn agent_configuration(&self) -> String {
        let folder = self.folder.path().display();
        let port = self.port;
        format!(
            r#"agent {{
    data_dir = "{folder}/agent"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = "{folder}/public/api.sock"
    trust_bundle_path = "{folder}/enterprise/root.pem"
    trust_domain = "{TRUST_DOMAIN}"
}}

plugins {{
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{ directory = "{folder}/agent" }}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{ discover_workload_path = true }}
    }}
}}
"#
        )
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        use std::io::Write;
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(name))?
            .write_all(text.as_bytes())
    }
}

/// The parameters of an enterprise CA certificate that is valid for `days` from now.
fn authority(name: &str, constraints: BasicConstraints, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Quickstart Enterprise");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::from(finial_daemon::clock::Clock::wall().now());
    params.not_before = now - Duration::minutes(1);
    params.not_after = now + Duration::days(days);
    params
}
