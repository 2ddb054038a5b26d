use finial_daemon::clock::unix_seconds;
use finial_identity::x509_svid::{AuthorityCertificate, X509Svid};
use finial_proto::spire::api::server::svid::v1 as wire;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

fn parse(svid: &types::X509svid) -> X509Svid {
    X509Svid::read(svid.cert_chain.iter().map(|der| CertificateDer::from(der.clone())).collect()).unwrap()
}

/// A CSR with DNS names.
fn csr_with(uri: &str, dns_names: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params
        .subject_alt_names
        .extend(dns_names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())));
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

/// With a signature that does not fit.
fn broken(mut csr: Vec<u8>) -> Vec<u8> {
    let last = csr.len() - 1;
    csr[last] ^= 1;
    csr
}

#[tokio::test(start_paused = true)]
async fn minting_refuses_what_an_operator_may_not_have() {
    let server = Server::start().await;
    let w = "spiffe://example.org/w";
    for (csr, start) in [
        (vec![], "missing CSR"),
        (b"nonsense".to_vec(), "malformed CSR: "),
        (csr_for(&[w])[..20].to_vec(), "malformed CSR: "),
        (broken(csr_for(&[w])), "failed to verify CSR signature: "),
        (csr_for(&[]), "CSR URI SAN is required"),
        (csr_for(&[w, w]), "only one URI SAN is expected"),
        (csr_for(&["http://example.org/w"]), "CSR URI SAN is invalid: scheme is missing or invalid"),
        (
            csr_for(&["spiffe://other.org/w"]),
            "CSR URI SAN is invalid: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\"",
        ),
        (
            csr_for(&["spiffe://example.org"]),
            "CSR URI SAN is invalid: \"spiffe://example.org\" is not a workload in trust domain \"example.org\"; path is empty",
        ),
        (
            csr_for(&["spiffe://example.org/spire/server"]),
            "CSR URI SAN is invalid: \"spiffe://example.org/spire/server\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace",
        ),
        (csr_with(w, &["a..b"]), "CSR DNS name is invalid: "),
        (
            csr_with(w, &["*.example", "a.example"]),
            "CSR DNS name contains a wildcard that covers another non-wildcard name: ",
        ),
    ] {
        let minted = server.svids().mint_x509svid(wire::MintX509svidRequest { csr, ttl: 0 }).await;
        assert_refused_with(minted, Code::InvalidArgument, start);
    }
}

#[tokio::test(start_paused = true)]
async fn minted_svids_say_what_the_csr_says() {
    let server = Server::start().await;
    let csr = csr_with("spiffe://example.org/w", &["a.example", "b.example"]);
    for (ttl, expected) in [(0, 3600), (-1, 3600), (90, 90)] {
        let request = wire::MintX509svidRequest { csr: csr.clone(), ttl };
        let svid = server.svids().mint_x509svid(request).await.unwrap().into_inner().svid.unwrap();
        assert_eq!(svid.expires_at, server.clock.unix() + expected);
        let parsed = parse(&svid);
        assert_eq!(parsed.id().as_str(), "spiffe://example.org/w");
        assert_eq!(parsed.dns_names(), ["a.example", "b.example"]);
        assert_eq!(svid.cert_chain.len(), 1, "the self-signed CA is not sent");
    }
}

#[tokio::test(start_paused = true)]
async fn each_csr_of_a_batch_has_its_own_fate() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let parent = agent.id.strip_prefix("spiffe://example.org").unwrap();
    let mine = types::Entry {
        dns_names: vec!["d.example".into()],
        x509_svid_ttl: 120,
        ..entry(parent, "/mine", &["s:1"])
    };
    let entries = server.create(vec![mine, entry("/spire/agent/other", "/theirs", &["s:1"])]).await;
    let mut client = SvidClient::new(agent.channel.clone());
    let empty = client.batch_new_x509svid(wire::BatchNewX509svidRequest { params: vec![] }).await;
    assert_refused(empty, Code::InvalidArgument, "missing parameters");

    // Names in the CSR are not looked at.
    let csr = csr_for(&["spiffe://other.org/whatever"]);
    let one =
        |entry_id: &str, csr: &[u8]| wire::NewX509svidParams { entry_id: entry_id.into(), csr: csr.to_vec() };
    let params = vec![
        one(&entries[0].id, &csr),
        one("", &csr),
        one(&entries[0].id, b""),
        one("unknown", &csr),
        one(&entries[1].id, &csr),
        one(&entries[0].id, b"nonsense"),
        one(&entries[0].id, &broken(csr.clone())),
        one(&entries[0].id, &csr),
    ];
    let results = client
        .batch_new_x509svid(wire::BatchNewX509svidRequest { params })
        .await
        .unwrap()
        .into_inner()
        .results;
    let expected = [
        (0, "OK"),
        (3, "missing entry ID"),
        (3, "missing CSR"),
        (5, "entry not found or not authorized"),
        (5, "entry not found or not authorized"),
        (3, "malformed CSR: "),
        (3, "invalid CSR signature: "),
        (0, "OK"),
    ];
    assert_eq!(results.len(), expected.len());
    for (result, (code, text)) in results.iter().zip(expected) {
        let status = result.status.as_ref().unwrap();
        assert_eq!(status.code, code, "{status:?}");
        assert!(status.message.starts_with(text), "{status:?}");
        assert_eq!(result.svid.is_some(), code == 0);
    }
    let svid = results[0].svid.as_ref().unwrap();
    assert_eq!(
        (uri(svid.id.as_ref().unwrap()).as_str(), svid.expires_at),
        ("spiffe://example.org/mine", server.clock.unix() + 120)
    );
    assert_eq!(parse(svid).dns_names(), ["d.example"]);
    assert_ne!(parse(svid).serial(), parse(results[7].svid.as_ref().unwrap()).serial());
}

#[tokio::test(start_paused = true)]
async fn more_csrs_than_a_second_allows_are_refused_and_others_wait() {
    let server = Server::start().await.coming_from("192.0.2.1:4711");
    let agent = server.agent().await;
    let mut client = SvidClient::new(agent.channel.clone());
    let batch =
        |size| wire::BatchNewX509svidRequest { params: vec![wire::NewX509svidParams::default(); size] };
    let text =
        "rejecting request due to certificate signing rate limiting: rate (501) exceeds burst size (500)";
    assert_refused(client.batch_new_x509svid(batch(501)).await, Code::ResourceExhausted, text);
    let before = server.clock.monotonic();
    client.batch_new_x509svid(batch(500)).await.unwrap();
    assert!(server.clock.monotonic() - before < Duration::from_millis(100));
    client.batch_new_x509svid(batch(500)).await.unwrap();
    let waited = server.clock.monotonic() - before;
    assert!(waited > Duration::from_millis(900) && waited < Duration::from_secs(2), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_downstream_server_gets_a_ca() {
    let server = Server::start().await;
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    let csr = key.csr(&spire_subject(), &["spiffe://example.org/nested"]).unwrap();
    server
        .create(vec![types::Entry { downstream: true, ..entry("/spire/agent/x", "/nested", &["s:1"]) }])
        .await;
    let minted = server.svids().mint_x509svid(wire::MintX509svidRequest { csr, ttl: 0 }).await.unwrap();
    let chain = minted.into_inner().svid.unwrap().cert_chain;
    let mut client = SvidClient::new(server.tls(Some(identity(&chain, &key))));

    let request = |csr: Vec<u8>| wire::NewDownstreamX509caRequest { csr, preferred_ttl: 600 };
    let bundle = server.handles.own_bundle.current();
    // Only the key of the CSR is used.
    for uri in ["spiffe://example.org", "spiffe://other.org"] {
        let ca = client.new_downstream_x509ca(request(csr_for(&[uri]))).await.unwrap().into_inner();
        assert_eq!(ca.x509_authorities, [bundle.x509_authorities[0].der.clone()]);
        assert_eq!(ca.ca_cert_chain.len(), 1);
        let certificate = AuthorityCertificate::read(&ca.ca_cert_chain[0]).unwrap();
        assert_eq!(certificate.uri(), Some("spiffe://example.org"));
        assert_eq!(unix_seconds(certificate.not_after()), server.clock.unix() + 600);
    }
    let refused = client.new_downstream_x509ca(request(b"nonsense".to_vec())).await;
    assert_refused_with(refused, Code::InvalidArgument, "malformed CSR: ");
    let refused = client.new_downstream_x509ca(request(broken(csr_for(&["spiffe://example.org"])))).await;
    assert_refused_with(refused, Code::InvalidArgument, "invalid CSR signature: ");
}
