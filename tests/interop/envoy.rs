//! A real Envoy that has its certificates from the agent (SDS v3).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use finial_tests::real::{self, Programs};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

/// Certificates by SPIFFE ID and as `default`, bundles by trust domain, as `ROOTCA` and as `ALL`: Envoy takes all of them,
/// lets in whom they vouch for, and follows each renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_takes_secrets_and_their_renewals() {
    let Some(envoy) = real::peer("python/bin/envoy") else { return };
    if !real::has_command("openssl", "version") {
        return;
    }
    let mut programs = Programs::new(|_| String::new());
    programs.start_server().await;
    programs.start_agent().await;
    programs.register("web", |entry| entry.x509_svid_ttl = 16).await;
    programs.workload().open().await;

    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let (admin, listeners) = (ports[0], &ports[1..]);
    let names =
        [("spiffe://example.org/web", "spiffe://example.org"), ("default", "ROOTCA"), ("default", "ALL")];
    let listened: Vec<Value> =
        listeners.iter().zip(names).map(|(port, (own, others))| listener(*port, own, others)).collect();
    let file = programs.path("envoy.json");
    let socket = programs.path("public/agent.sock");
    std::fs::write(&file, configuration(admin, &socket, listened).to_string()).unwrap();
    let log = std::fs::File::create(programs.path("envoy.log")).unwrap();
    let mut running = Command::new(envoy)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-c"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    let secrets = ["default", "ROOTCA", "ALL", "spiffe_example.org", "spiffe_example.org/web"];
    wait_for(&programs, admin, |stats| secrets.iter().all(|name| count(stats, name, "success") > 0)).await;
    serves(&programs, listeners).await;
    let stats = wait_for(&programs, admin, |stats| {
        ["default", "spiffe_example.org/web"].iter().all(|name| count(stats, name, "success") >= 3)
    })
    .await;
    for name in secrets {
        assert_eq!(count(&stats, name, "rejected"), 0, "{stats}");
    }
    serves(&programs, listeners).await;
    running.kill().await.unwrap();
}

/// Every listener answers to who shows an SVID, with a certificate that the bundle vouches for, and to nobody else.
async fn serves(programs: &Programs, listeners: &[u16]) {
    let folder = programs.path("client");
    std::fs::create_dir_all(&folder).unwrap();
    let (socket, to) = (programs.path("public/agent.sock"), folder.to_str().unwrap().to_owned());
    let fetch = ["api", "fetch", "-silent", "-socketPath", socket.to_str().unwrap(), "-write", &to];
    assert!(programs.run("finial-agent", &fetch).await.status.success());
    let file = |name: &str| folder.join(name).display().to_string();
    for port in listeners {
        let (cert, key) = (file("svid.0.pem"), file("svid.0.key"));
        let shown = ask(*port, &file("bundle.0.pem"), &["-cert", &cert, "-key", &key]).await;
        assert!(shown.ends_with("hello"), "{port}: {shown}");
        let refused = ask(*port, &file("bundle.0.pem"), &[]).await;
        assert!(!refused.contains("hello"), "{port}: {refused}");
    }
}

/// What OpenSSL reads from the listener, having verified its certificate.
async fn ask(port: u16, bundle: &str, own: &[&str]) -> String {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-CAfile", bundle, "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .args(own)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    // Who was refused does not read.
    let _ = input.write_all(REQUEST.as_bytes()).await;
    let output =
        tokio::time::timeout(PATIENCE, client.wait_with_output()).await.expect("OpenSSL ends").unwrap();
    drop(input);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Envoy's counters, once they are as wanted.
async fn wait_for(programs: &Programs, admin: u16, fits: impl Fn(&str) -> bool) -> String {
    let waiting = async {
        loop {
            if let Some(stats) = stats(admin).await.filter(|stats| fits(stats)) {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{}", programs.log("envoy.log")))
}

async fn stats(admin: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", admin)).await.ok()?;
    let request = "GET /stats?filter=sds HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}

fn count(stats: &str, secret: &str, what: &str) -> u64 {
    let name = format!("sds.{secret}.update_{what}: ");
    let line = stats.lines().find_map(|line| line.strip_prefix(&name));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

fn configuration(admin: u16, agent: &Path, listeners: Vec<Value>) -> Value {
    let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "node": { "id": "envoy", "cluster": "envoys" },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": admin } } },
        "static_resources": {
            "clusters": [{
                "name": "agent",
                "typed_extension_protocol_options": {
                    http2: {
                        "@type": format!("type.googleapis.com/{http2}"),
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                },
                "load_assignment": {
                    "cluster_name": "agent",
                    "endpoints": [{ "lb_endpoints": [{
                        "endpoint": { "address": { "pipe": { "path": agent } } },
                    }] }],
                },
            }],
            "listeners": listeners,
        },
    })
}

/// Says hello over mutual TLS.
fn listener(port: u16, own: &str, others: &str) -> Value {
    let http = "type.googleapis.com/envoy.extensions.filters";
    let sds = |name: &str| {
        json!({
            "name": name,
            "sds_config": { "resource_api_version": "V3", "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "agent" } }],
            } },
        })
    };
    json!({
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": {
                        "tls_certificate_sds_secret_configs": [sds(own)],
                        "combined_validation_context": {
                            "default_validation_context": {},
                            "validation_context_sds_secret_config": sds(others),
                        },
                    },
                },
            },
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": format!("{http}.network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "hello",
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": format!("{http}.http.router.v3.Router") },
                    }],
                    "route_config": { "virtual_hosts": [{
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{
                            "match": { "prefix": "/" },
                            "direct_response": { "status": 200, "body": { "inline_string": "hello" } },
                        }],
                    }] },
                },
            }],
        }],
    })
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
