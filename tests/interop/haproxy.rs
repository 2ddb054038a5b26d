//! A server behind a real load balancer that speaks the PROXY protocol.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use finial_tests::real::{self, Programs};

/// The balancer's own address, which alone is trusted; everybody else here is 127.0.0.1.
const BALANCER: &str = "127.0.0.2";

struct Haproxy {
    child: Child,
    port: u16,
}

impl Haproxy {
    fn start(folder: &Path, server_port: u16, option: &str) -> Haproxy {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let configuration = format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             listen spire\n  bind 127.0.0.1:{port}\n  server one 127.0.0.1:{server_port} {option} source {BALANCER}\n"
        );
        let file = folder.join(format!("haproxy.{option}.cfg"));
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-f").arg(&file).args(["-db"]).stdin(Stdio::null()).stdout(Stdio::null());
        Haproxy { child: command.spawn().unwrap(), port }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_behind_a_balancer_has_its_own_address() {
    if !real::has_command("haproxy", "-v") {
        return;
    }
    for option in ["send-proxy", "send-proxy-v2"] {
        let mut programs = Programs::new(|_| String::new());
        programs.server_keys =
            format!("audit_log_enabled = true\nproxy_protocol_trusted_cidrs = [\"{BALANCER}/32\"]");
        programs.start_server().await;
        let balancer = Haproxy::start(programs.folder.path(), programs.port(), option);
        programs.agent_dials = Some(balancer.port);
        programs.start_agent().await;
        let log = programs.log("server.log");
        let attested: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("type=audit") && line.contains("method=AttestAgent"))
            .collect();
        assert!(!attested.is_empty(), "{option}: {log}");
        for line in attested {
            assert!(line.contains("caller_addr=\"127.0.0.1:"), "{option}: {line}");
        }
        // From an address that is not trusted a header is no header: the connection ends without an answer.
        let mut liar = TcpStream::connect(("127.0.0.1", programs.port())).unwrap();
        liar.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").unwrap();
        let mut answer = Vec::new();
        // An alert, or a reset: anything but a handshake.
        let _ = liar.read_to_end(&mut answer);
        assert!(!answer.starts_with(&[22]), "{option}: {answer:?}");
        assert!(!programs.log("server.log").contains("192.0.2.1"), "{option}");
        assert_eq!(programs.stop_agent().await.code(), Some(0));
    }
}
