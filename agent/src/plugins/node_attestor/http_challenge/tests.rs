use finial_daemon::settings::parse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

fn configured(data: &str) -> Result<Arc<dyn NodeAttestor>, String> {
    let block = parse(data, "agent.conf").unwrap();
    configure(Section::named(&block, "plugin_data"), &Given::default()).map_err(|error| error.to_string())
}

fn claim(attestation: &dyn Attestation) -> serde_json::Value {
    serde_json::from_slice(&attestation.payload()).unwrap()
}

async fn get(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_nonce_is_shown_for_as_long_as_the_attestation_lasts() {
    let attestor = configured("hostname = \"web.example\"\nagentname = \"one\"").unwrap();
    let mut attestation = attestor.begin().await.unwrap();
    let said = claim(&*attestation);
    assert_eq!((&said["hostname"], &said["agentname"]), (&json!("web.example"), &json!("one")));
    let port = u16::try_from(said["port"].as_u64().unwrap()).unwrap();
    assert_eq!(attestation.respond(b"{\"nonce\":\"abc\"}").await.unwrap(), b"\n");
    let path = "/.well-known/spiffe/nodeattestor/http_challenge/one/challenge";
    for _ in 0..3 {
        let answer = get(port, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nabc\n"), "{answer}");
    }
    for other in ["/", "/.well-known/spiffe/nodeattestor/http_challenge/two/challenge"] {
        let answer = get(port, &format!("GET {other} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n") && !answer.contains("abc"), "{answer}");
    }
    assert!(attestation.respond(b"{\"nonce\":\"d\"}").await.is_err(), "one challenge, one nonce");
    drop(attestation);
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_port_is_free_again_and_a_taken_one_is_named() {
    let taken = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let attestor = configured(&format!("port = {port}\nadvertised_port = 80")).unwrap();
    let error = attestor.begin().await.err().unwrap();
    assert!(matches!(error, NodeAttestorFault::NotReady { .. }), "{error}");
    assert!(error.to_string().contains(&format!("could not listen on port {port}: ")), "{error}");
    drop(taken);
    let mut attestation = attestor.begin().await.unwrap();
    assert_eq!(claim(&*attestation)["port"], json!(80), "what is advertised");
    assert!(attestation.respond(b"nonsense").await.is_err());
    drop(attestation);
    attestor.begin().await.unwrap();
}

#[test]
fn what_is_not_said_has_defaults() {
    configured("").unwrap();
    for (data, text) in [
        ("agentname = \"a/b\"", "agentname"),
        ("port = 70000", "port"),
        ("advertised_port = -1", "advertised_port"),
        ("foo = 1", "foo"),
    ] {
        let error = configured(data).err().unwrap();
        assert!(error.contains(text), "{error}");
    }
}
