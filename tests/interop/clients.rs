//! Client libraries that others wrote, all on one agent below an enterprise's root.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_proto::spire::api::types;
use finial_tests::enterprise::{Enterprise, Intermediate};
use finial_tests::real::{self, Programs};
use serde_json::Value;
use spiffe::{WorkloadApiClient, X509Source};

const PATIENCE: Duration = Duration::from_secs(60);
/// The leaf, the server's CA, the enterprise's intermediate.
const CHAIN: usize = 3;
const WEB: &str = "spiffe://example.org/web";
const BATCH: &str = "spiffe://example.org/batch";

/// Every client gets both identities with chains up to the enterprise's root, and sees one of them renewed while it
/// watches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_gets_chains_bundles_and_renewals() {
    let enterprise = Enterprise::new(Clock::wall().now());
    let mut programs = Programs::new(|folder| enterprise.give(folder, &Intermediate::default()).stanza());
    programs.start_server().await;
    programs.start_agent().await;
    let brief = |entry: &mut types::Entry| {
        entry.x509_svid_ttl = 20;
        entry.hint = "internal".to_owned();
        entry.dns_names = vec!["web.example.org".to_owned()];
    };
    programs.register("web", brief).await;
    programs.register("batch", |_| {}).await;
    let mut updates = programs.workload().open().await;
    updates.until(&Clock::wall(), |context| context.svids.len() == 2).await;

    tokio::join!(
        rust(&programs),
        python(&programs),
        bare_grpcio(&programs),
        go(&programs),
        java(&programs),
        openssl_handshake(&programs),
        bundle_in_spiffe_format(&programs),
    );
}

/// The crate `spiffe`.
async fn rust(programs: &Programs) {
    let source = X509Source::builder().endpoint(programs.endpoint()).build();
    let source = tokio::time::timeout(PATIENCE, source).await.expect("a first SVID comes").unwrap();
    let context = source.x509_context().unwrap();
    let mut ids: Vec<String> = context.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect();
    ids.sort();
    assert_eq!(ids, [BATCH, WEB]);
    let of = |id: &str| {
        let context = source.x509_context().unwrap();
        let svid = context.svids().iter().find(|svid| svid.spiffe_id().to_string() == id).cloned();
        svid.expect("the identity stays")
    };
    let (first, steady) = (of(WEB), of(BATCH));
    assert_eq!(first.hint(), Some("internal"));
    assert_eq!((first.cert_chain().len(), steady.cert_chain().len()), (CHAIN, CHAIN));
    let trust_domain = first.spiffe_id().trust_domain().clone();
    let bundle =
        source.try_bundle_for_trust_domain(&trust_domain).expect("the own trust domain has a bundle");
    assert_eq!(bundle.authorities().len(), 1, "only the enterprise's root");

    let mut changes = source.updated();
    let renewed = async {
        while of(WEB).leaf().as_bytes() == first.leaf().as_bytes() {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("a renewed SVID is pushed");
    assert_ne!(of(WEB).private_key().as_bytes(), first.private_key().as_bytes());
    assert_eq!(of(BATCH).leaf().as_bytes(), steady.leaf().as_bytes());
    source.shutdown().await;
    rust_tokens(programs).await;
}

/// The crate refuses headers and answers that the specification does not name.
async fn rust_tokens(programs: &Programs) {
    let client = WorkloadApiClient::connect_to(programs.endpoint()).await.unwrap();
    let audience = ["reports", "billing"];
    let svids = client.fetch_all_jwt_svids(audience, None).await.unwrap();
    let bundles = client.fetch_jwt_bundles().await.unwrap();
    let keys: serde_json::Map<String, Value> = bundles
        .iter()
        .map(|(name, bundle)| (name.to_string(), bundle.jwt_authorities().count().into()))
        .collect();
    let mut validated = Vec::new();
    for svid in &svids {
        assert_eq!(svid.audience(), audience);
        let bundle = bundles.get(svid.spiffe_id().trust_domain()).unwrap();
        assert!(bundle.find_jwt_authority(svid.key_id()).is_some(), "the key is in the bundle");
        let judged = client.validate_jwt_token("billing", svid.token()).await.unwrap();
        validated.push(judged.spiffe_id().to_string());
    }
    let last = svids.last().unwrap().spiffe_id();
    let one = client.fetch_jwt_svid(audience, Some(last)).await.unwrap();
    let refused = client.validate_jwt_token("other", one.token()).await.unwrap_err().to_string();
    let ids: Vec<String> = svids.iter().map(|svid| svid.spiffe_id().to_string()).collect();
    // The crate verifies signatures only with another backend; the others do.
    let seen = serde_json::json!({
        "ids": ids, "one": one.spiffe_id().to_string(), "verified": ids, "validated": validated, "refused": refused, "keys": keys,
    });
    must_have_tokens("rust", &seen);
    let hinted = client.fetch_jwt_svid_by_hint(audience, None, "internal").await.unwrap();
    assert_eq!(hinted.spiffe_id().to_string(), WEB);
}

/// The package `spiffe` of Python, on gRPC C-core.
async fn python(programs: &Programs) {
    let Some(python) = real::peer("python/bin/python") else { return };
    let seen =
        json("python", run(programs, python, [script("client.py"), "--updates".into(), "2".into()]).await);
    assert_eq!(seen["svid"], seen["fetched"]["svids"][0]["id"]);
    assert_eq!(seen["bundles"], serde_json::json!(["example.org"]));
    must_be_renewed("python", &seen);
    must_have_tokens("python", &seen["jwt"]);
}

/// go-spiffe, which also does mTLS with what it got.
async fn go(programs: &Programs) {
    let Some(client) = real::peer("go-client") else { return };
    let seen = json("go", run(programs, client, ["-updates", "2"]).await);
    must_be_renewed("go", &seen);
    must_have_tokens("go", &seen["jwt"]);
    assert!([WEB, BATCH].contains(&seen["peer"].as_str().unwrap()), "{seen}");
    let hints =
        seen["fetched"]["svids"].as_array().unwrap().iter().map(|svid| svid["hint"].as_str().unwrap());
    assert_eq!(hints.filter(|hint| *hint == "internal").count(), 1, "{seen}");
}

/// java-spiffe.
async fn java(programs: &Programs) {
    let Some(folder) = real::peer("java") else { return };
    let classes = format!("{0}/interop-1.jar:{0}/dependency/*", folder.display());
    let arguments = ["-cp", &classes, "dev.finial.interop.Client", "2"];
    let seen = json("java", run(programs, PathBuf::from("java"), arguments).await);
    must_be_renewed("java", &seen);
    must_have_tokens("java", &seen["jwt"]);
}

/// gRPC C-core without a client library, which sends what libraries do not.
async fn bare_grpcio(programs: &Programs) {
    let Some(python) = real::peer("python/bin/python") else { return };
    let socket = programs.path("public/agent.sock").into_os_string();
    let seen = json("raw", run(programs, python, [script("raw.py").into_os_string(), socket]).await);
    for (authority, cases) in seen.as_object().unwrap() {
        let of = |case: &str| (cases[case]["code"].as_str().unwrap(), cases[case]["text"].as_str().unwrap());
        for case in ["health", "reflection", "svid", "svid afterwards"] {
            assert_eq!(of(case).0, "OK", "{case} with {authority}: {}", cases[case]);
        }
        // HealthCheckResponse{status: SERVING}
        assert_eq!(cases["health"]["body"], "\u{8}\u{1}");
        let services = cases["reflection"]["body"].as_str().unwrap();
        assert!(
            services.contains("SpiffeWorkloadAPI") && services.contains("grpc.health.v1.Health"),
            "{services}"
        );
        assert!(cases["svid"]["body"].as_str().unwrap().contains(WEB));
        let missing = ("INVALID_ARGUMENT", "security header missing from request");
        for case in ["no header", "header twice", "header True"] {
            assert_eq!(of(case), missing, "{case} with {authority}");
        }
        assert_eq!(of("health of a service"), ("INVALID_ARGUMENT", "per-service health is not supported"));
        assert_eq!(of("unknown method").0, "UNIMPLEMENTED", "with {authority}");
        for case in ["wrong wire type", "truncated", "not text"] {
            assert!(["INTERNAL", "INVALID_ARGUMENT"].contains(&of(case).0), "{case}: {}", cases[case]);
        }
        assert!(
            ["RESOURCE_EXHAUSTED", "OUT_OF_RANGE"].contains(&of("oversized").0),
            "{}",
            cases["oversized"]
        );
    }
    assert_eq!(seen.as_object().unwrap().len(), 5);
}

/// OpenSSL as a TLS client of the server's port: it sees the whole chain and, with the root alone, believes it.
async fn openssl_handshake(programs: &Programs) {
    if !real::has_command("openssl", "version") {
        return;
    }
    let address = format!("127.0.0.1:{}", programs.port());
    let root = programs.path("root.pem").into_os_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let arguments =
            ["s_client", "-connect", &address, "-alpn", "h2", "-showcerts", "-verify_return_error", version];
        let arguments = arguments.iter().map(Into::into).chain(["-CAfile".into(), root.clone()]);
        let text = run(programs, PathBuf::from("openssl"), arguments.collect::<Vec<_>>()).await;
        assert_eq!(text.matches("-----BEGIN CERTIFICATE-----").count(), CHAIN, "{text}");
        assert!(text.contains("ALPN protocol: h2"), "{text}");
        assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
    }
    let arguments = ["s_client", "-connect", &address, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    let refused = command(programs, PathBuf::from("openssl"), arguments).output().await.unwrap();
    assert!(!refused.status.success(), "TLS 1.1 is spoken");
}

/// X5-19 to X5-22: the bundle as a SPIFFE document, from the command line.
async fn bundle_in_spiffe_format(programs: &Programs) {
    let socket = programs.path("server.sock");
    let arguments = ["bundle", "show", "-format", "spiffe", "-socketPath", socket.to_str().unwrap()];
    let shown = programs.run("finial-server", &arguments).await;
    assert!(shown.status.success(), "{shown:?}");
    let document: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let keys = document["keys"].as_array().unwrap();
    let of_x509: Vec<&Value> = keys.iter().filter(|key| key["use"] == "x509-svid").collect();
    assert_eq!(of_x509.len(), 1, "{document}");
    assert!(of_x509[0].get("kid").is_none(), "{document}");
    let [certificate] = of_x509[0]["x5c"].as_array().unwrap().as_slice() else { panic!("{document}") };
    use base64::Engine;
    let der = base64::engine::general_purpose::STANDARD.decode(certificate.as_str().unwrap()).unwrap();
    let pem = std::fs::read(programs.path("root.pem")).unwrap();
    use der::Encode;
    let root = x509_cert::Certificate::load_pem_chain(&pem).unwrap().remove(0);
    assert_eq!(der, root.to_der().unwrap());
    for key in keys {
        assert!(["x509-svid", "jwt-svid", "wit-svid"].contains(&key["use"].as_str().unwrap()), "{document}");
    }
}

/// Two identities and one root in what was fetched, and the brief one with another serial number later.
fn must_be_renewed(client: &str, seen: &Value) {
    let serial = |context: &Value| {
        let svids = context["svids"].as_array().unwrap();
        let mut ids: Vec<&str> = svids.iter().map(|svid| svid["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [BATCH, WEB], "{client}: {context}");
        assert!(svids.iter().all(|svid| svid["chain"] == CHAIN), "{client}: {context}");
        assert_eq!(context["bundles"], serde_json::json!({ "example.org": 1 }), "{client}");
        let web = svids.iter().find(|svid| svid["id"] == WEB).unwrap();
        web["serial"].as_str().unwrap().to_owned()
    };
    serial(&seen["fetched"]);
    let updates: Vec<String> = seen["updates"].as_array().unwrap().iter().map(serial).collect();
    assert!(updates.len() >= 2 && updates[0] != updates[1], "{client}: {updates:?}");
}

/// A token for each identity, each judged valid by the client itself and by the agent, and one refused.
fn must_have_tokens(client: &str, seen: &Value) {
    let sorted = |name: &str| {
        let mut ids: Vec<&str> =
            seen[name].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        ids.sort_unstable();
        ids
    };
    for name in ["ids", "verified", "validated"] {
        assert_eq!(sorted(name), [BATCH, WEB], "{client}: {name}: {seen}");
    }
    assert_eq!(seen["one"], *seen["ids"].as_array().unwrap().last().unwrap(), "{client}: {seen}");
    assert!(
        seen["refused"].as_str().unwrap().contains(r#"expected audience in ["other"]"#),
        "{client}: {seen}"
    );
    assert_eq!(seen["keys"], serde_json::json!({ "example.org": 1 }), "{client}: {seen}");
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/python").join(name)
}

async fn run<A: AsRef<OsStr>>(
    programs: &Programs,
    program: PathBuf,
    arguments: impl IntoIterator<Item = A>,
) -> String {
    let name = program.display().to_string();
    let ended = command(programs, program, arguments).output();
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{name} does not end"));
    let ended = ended.unwrap_or_else(|error| panic!("{name}: {error}"));
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    let err = String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.success(),
        "{name} ended with {}:\n{out}\n{err}\n{}",
        ended.status,
        programs.log("agent.log")
    );
    out
}

fn command<A: AsRef<OsStr>>(
    programs: &Programs,
    program: PathBuf,
    arguments: impl IntoIterator<Item = A>,
) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .env("SPIFFE_ENDPOINT_SOCKET", programs.endpoint())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn json(client: &str, text: String) -> Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{client}: {error}: {text}"))
}
