//! The page for Prometheus over TLS, asked by curl and OpenSSL.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use finial_tests::real::{self, Programs};

struct Scraped {
    programs: Programs,
    port: u16,
}

impl Scraped {
    /// A server with these lines in `telemetry.Prometheus.tls`.
    async fn start(mut programs: Programs, tls: &str) -> Scraped {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        programs.server_blocks = format!("telemetry {{ Prometheus {{ port = {port} tls {{\n{tls}\n}} }} }}");
        programs.start_server().await;
        Scraped { programs, port }
    }

    /// Asks until somebody listens: the page opens after the sockets.
    fn curl(&self, bearer: Option<&str>) -> Output {
        let mut command = Command::new("curl");
        command.args(["-sS", "-k", "--retry", "20", "--retry-connrefused", "--retry-delay", "1"]);
        if let Some(name) = bearer {
            command
                .arg("--cert")
                .arg(self.file(name, "svid.pem"))
                .arg("--key")
                .arg(self.file(name, "key.pem"));
        }
        command.arg(format!("https://127.0.0.1:{}/metrics", self.port)).output().unwrap()
    }

    fn reads(&self, bearer: Option<&str>) -> bool {
        String::from_utf8_lossy(&self.curl(bearer).stdout).contains("\nspire_server_started{")
    }

    fn file(&self, name: &str, file: &str) -> PathBuf {
        self.programs.path(name).join(file)
    }
}

/// Files `svid.pem`, `key.pem`, `bundle.pem` for an ID.
async fn mint(programs: &Programs, name: &str) {
    let folder = programs.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    let (socket, id) = (programs.path("server.sock"), format!("spiffe://example.org/{name}"));
    let (socket, write) = (socket.to_str().unwrap(), folder.to_str().unwrap());
    let minted = programs
        .run("finial-server", &["x509", "mint", "-socketPath", socket, "-spiffeID", &id, "-write", write])
        .await;
    assert!(minted.status.success(), "{}", String::from_utf8_lossy(&minted.stderr));
}

#[tokio::test]
async fn with_the_servers_own_svid_and_an_allow_list() {
    if !real::has_command("curl", "--version") || !real::has_command("openssl", "version") {
        return;
    }
    let tls = "use_spire_svid = true\nauthorized_spiffe_ids = [\"spiffe://example.org/prometheus\"]";
    let scraped = Scraped::start(Programs::new(|_| String::new()), tls).await;
    mint(&scraped.programs, "prometheus").await;
    mint(&scraped.programs, "other").await;
    assert!(scraped.reads(Some("prometheus")), "{:?}", scraped.curl(Some("prometheus")));
    assert!(!scraped.reads(Some("other")), "an ID that is not listed");
    assert!(!scraped.reads(None), "nobody in particular");
    // What the server shows chains to its bundle, and is its SVID.
    let shown = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{}", scraped.port),
            "-verify_return_error",
            "-CAfile",
        ])
        .arg(scraped.file("prometheus", "bundle.pem"))
        .arg("-cert")
        .arg(scraped.file("prometheus", "svid.pem"))
        .arg("-key")
        .arg(scraped.file("prometheus", "key.pem"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("Verify return code: 0 (ok)"), "{shown}");
}

#[tokio::test]
async fn with_files_and_a_client_authority() {
    if !real::has_command("curl", "--version") {
        return;
    }
    let mut programs = Programs::new(|_| String::new());
    programs.start_server().await;
    mint(&programs, "page").await;
    mint(&programs, "anybody").await;
    assert_eq!(programs.stop_server().await.code(), Some(0));
    let file = |name: &str| programs.path("page").join(name).display().to_string();
    let tls = format!(
        "cert_file = {:?}\nkey_file = {:?}\nclient_ca_file = {:?}",
        file("svid.pem"),
        file("key.pem"),
        file("bundle.pem")
    );
    let scraped = Scraped::start(programs, &tls).await;
    assert!(scraped.reads(Some("anybody")), "{:?}", scraped.curl(Some("anybody")));
    assert!(!scraped.reads(None), "a client without a certificate");
}
