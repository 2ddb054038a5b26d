use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::entries::fixture::td;
use crate::plugins::node_attestor::fixture::{attest, configured, host, refusal};

/// A web server that gives one answer, made of the nonce, and remembers what it was asked.
struct Web {
    port: u16,
    nonce: Arc<Mutex<String>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    async fn answering(answer: impl Fn(&str) -> String + Send + 'static) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web =
            Web { port: listener.local_addr().unwrap().port(), nonce: Arc::default(), asked: Arc::default() };
        let (nonce, asked) = (Arc::clone(&web.nonce), Arc::clone(&web.asked));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                asked.lock().unwrap().push(String::from_utf8(head).unwrap());
                let answer = answer(&nonce.lock().unwrap().clone());
                // The caller may have heard enough.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        web
    }

    async fn honest() -> Web {
        Web::answering(|nonce| ok(&format!("{nonce}\n"))).await
    }

    fn claim(&self) -> Vec<u8> {
        claim("127.0.0.1", "default", i64::from(self.port))
    }

    async fn attest(&self, attestor: &dyn NodeAttestor, claim: &[u8]) -> Result<Evidence, AttestorFault> {
        let take = |challenge: Vec<u8>| {
            let challenge: serde_json::Value = serde_json::from_slice(&challenge).unwrap();
            *self.nonce.lock().unwrap() = challenge["nonce"].as_str().unwrap().to_owned();
            b"\n".to_vec()
        };
        attest(attestor, None, claim, take).await
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn claim(hostname: &str, agent_name: &str, port: i64) -> Vec<u8> {
    json!({ "hostname": hostname, "agentname": agent_name, "port": port }).to_string().into_bytes()
}

async fn attestor(data: &str) -> Arc<dyn NodeAttestor> {
    configured(make, data, &host().await).unwrap()
}

#[tokio::test]
async fn whoever_answers_on_the_name_is_the_name() {
    let web = Web::honest().await;
    let evidence = web.attest(&*attestor("").await, &web.claim()).await.unwrap();
    assert_eq!(evidence.agent_id.as_str(), format!("spiffe://{}/spire/agent/http_challenge/127.0.0.1", td()));
    let selectors: Vec<String> = evidence.selectors.iter().map(ToString::to_string).collect();
    assert_eq!(selectors, ["http_challenge:hostname:127.0.0.1"]);
    assert!(evidence.first_use_only && !evidence.can_reattest);
    let asked = web.asked.lock().unwrap().remove(0);
    let path = "/.well-known/spiffe/nodeattestor/http_challenge/default/challenge";
    assert!(asked.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{asked}");
    assert!(asked.to_lowercase().contains(&format!("host: 127.0.0.1:{}\r\n", web.port)), "{asked}");
}

#[tokio::test]
async fn every_challenge_is_another() {
    let web = Web::honest().await;
    let attestor = attestor("").await;
    web.attest(&*attestor, &web.claim()).await.unwrap();
    let first = web.nonce.lock().unwrap().clone();
    web.attest(&*attestor, &web.claim()).await.unwrap();
    let second = web.nonce.lock().unwrap().clone();
    assert_ne!(first, second);
    assert_eq!(BASE64_URL_SAFE.decode(first).unwrap().len(), NONCE_BYTES);
}

#[tokio::test]
async fn wrong_answers_are_refused() {
    let attestor = attestor("").await;
    let not_found = "challenge verification failed: expected nonce was not found in HTTP response";
    type Answers = fn(&str) -> String;
    let cases: [(Answers, &str); 7] = [
        (|_| ok("something else"), not_found),
        (|_| ok(""), not_found),
        // Only the first 64 bytes are looked at.
        (|nonce| ok(&format!("{}{nonce}", " ".repeat(21))), not_found),
        (|nonce| ok(&nonce[1..]), not_found),
        (
            |_| {
                "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/x\r\nContent-Length: 0\r\n\r\n"
                    .to_owned()
            },
            "challenge verification failed: http redirects are disabled",
        ),
        (|_| "nonsense\r\n\r\n".to_owned(), "challenge verification failed: "),
        (
            |_| format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(20_000)),
            "challenge verification failed: ",
        ),
    ];
    for (answer, text) in cases {
        let web = Web::answering(answer).await;
        let (code, message) = refusal(web.attest(&*attestor, &web.claim()).await);
        assert_eq!(code, Code::PermissionDenied, "{message}");
        assert!(message.starts_with(text), "{message} and not {text}");
    }
    // As in SPIRE the status is not looked at, and blanks around the nonce are not either.
    let web = Web::answering(|nonce| {
        format!("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2e\r\n {nonce}\n\r\n0\r\n\r\n")
    });
    let web = web.await;
    web.attest(&*attestor, &web.claim()).await.unwrap();
}

#[tokio::test]
async fn an_endless_answer_ends_after_64_bytes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fed = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    let attestor = attestor("").await;
    let (code, _) =
        refusal(attest(&*attestor, None, &claim("127.0.0.1", "a", port.into()), |_| b"\n".to_vec()).await);
    assert_eq!(code, Code::PermissionDenied);
    // The connection was closed.
    fed.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_not_waited_for() {
    // Accepts by the kernel's backlog and says nothing; with nothing to do, virtual time runs.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let attestor = attestor("").await;
    let (code, message) =
        refusal(attest(&*attestor, None, &claim("127.0.0.1", "a", port.into()), |_| b"\n".to_vec()).await);
    assert_eq!(code, Code::PermissionDenied);
    assert!(message.starts_with("challenge verification failed: "), "{message}");
    drop(listener);
}

#[tokio::test]
async fn what_must_not_be_asked_is_not() {
    let web = Web::honest().await;
    let port = i64::from(web.port);
    let (invalid, denied) = (Code::InvalidArgument, Code::PermissionDenied);
    let localhost = "you can not use localhost as a hostname";
    let failed = "challenge verification failed: ";
    let not_allowed = "the requested hostname is not allowed to connect";
    let cases = [
        ("", b"{".to_vec(), invalid, "failed to unmarshal data: "),
        ("", b"{\"port\":\"x\"}".to_vec(), invalid, "failed to unmarshal data: "),
        ("", claim("a", "", port), invalid, "agent name is not valid"),
        ("", claim("a", "1x", port), invalid, "agent name is not valid"),
        ("", claim("a", "a/b", port), invalid, "agent name is not valid"),
        ("", claim("a", "a.b", port), invalid, "agent name is not valid"),
        ("", claim("a", &"a".repeat(33), port), invalid, "agent name is not valid"),
        ("", claim("localhost", "a", port), denied, localhost),
        ("", claim("LocalHost", "a", port), denied, localhost),
        ("", claim("localhost.", "a", port), denied, localhost),
        ("", claim("x.localhost", "a", port), denied, localhost),
        ("", claim("", "a", port), denied, "challenge verification failed: hostname must be set"),
        ("", claim("127.0.0.1", "a", 0), denied, "challenge verification failed: port is invalid"),
        ("", claim("127.0.0.1", "a", -1), denied, "challenge verification failed: port is invalid"),
        ("", claim("127.0.0.1", "a", 65536), denied, "challenge verification failed: port is invalid"),
        (
            "",
            claim("127.0.0.1/x", "a", port),
            denied,
            "challenge verification failed: hostname can not contain a slash",
        ),
        (
            "",
            claim("127.0.0.1:80", "a", port),
            denied,
            "challenge verification failed: hostname can not contain a colon",
        ),
        ("", claim("user@127.0.0.1", "a", port), denied, failed),
        ("", claim("127.0.0.1?x", "a", port), denied, failed),
        ("", claim("127.0.0.1 x", "a", port), denied, failed),
        ("", claim("127.0.0.1\r\nX: y", "a", port), denied, failed),
        ("required_port = 80", claim("127.0.0.1", "a", port), invalid, "port "),
        ("allow_non_root_ports = false", claim("127.0.0.1", "a", port), invalid, "port "),
        (
            "allowed_dns_patterns = [\"^x[0-9]+\\\\.example$\"]",
            claim("127.0.0.1", "a", port),
            denied,
            not_allowed,
        ),
        (
            "allowed_dns_patterns = [\"^x[0-9]+\\\\.example$\"]",
            claim("x1.example.evil", "a", port),
            denied,
            not_allowed,
        ),
    ];
    for (data, claim, code, text) in cases {
        let attestor = attestor(data).await;
        let (found, message) = refusal(web.attest(&*attestor, &claim).await);
        assert_eq!(found, code, "{message}");
        assert!(message.starts_with(text), "{message} and not {text}");
    }
    assert!(web.asked.lock().unwrap().is_empty(), "{:?}", web.asked.lock().unwrap());
    let allowed = attestor("allowed_dns_patterns = [\"^x\", \"^127\\\\.\"]").await;
    web.attest(&*allowed, &web.claim()).await.unwrap();
}

#[tokio::test]
async fn first_use_must_be_trusted_where_any_process_may_answer() {
    let host = host().await;
    let tofu = "you can not turn off trust on first use (TOFU) when non-root ports are allowed";
    for (data, refused) in [
        ("", false),
        ("tofu = true\nrequired_port = 4000", false),
        ("tofu = false", true),
        ("tofu = false\nallow_non_root_ports = true", true),
        ("tofu = false\nrequired_port = 1024", true),
        ("tofu = false\nrequired_port = 1024\nallow_non_root_ports = false", true),
        ("tofu = false\nrequired_port = 80", false),
        ("tofu = false\nrequired_port = 80\nallow_non_root_ports = true", false),
        ("tofu = false\nallow_non_root_ports = false", false),
    ] {
        match configured(make, data, &host) {
            Ok(_) => assert!(!refused, "{data} passes"),
            Err(error) => assert!(refused && error.contains(tofu), "{data}: {error}"),
        }
    }
    let error = configured(make, "allowed_dns_patterns = [\"(\"]\nfoo = 1", &host).err().unwrap();
    assert!(error.contains("cannot compile allowed_dns_pattern: \"(\"") && error.contains("foo"), "{error}");
}
