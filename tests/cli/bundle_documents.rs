//! Bundle documents T01 to T28 of the conformance checklist, at every place where one comes in: `bundle set`, the
//! relationships of `federation create` (as a file and within JSON), the agent's `trust_bundle_path` and
//! `trust_bundle_url`, and, where the case is one of authorities and not of JSON, `BatchSetFederatedBundle`.

use std::path::Path;
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use finial_agent::bootstrap::FirstTrust;
use finial_agent::own_svid::Trust;
use finial_agent::settings::{Flags, Settings};
use finial_agent::storage::Storage;
use finial_daemon::clock::Clock;
use finial_identity::bundle::document::{self, MAX_DOCUMENT_BYTES};
use finial_identity::trust_domain::TrustDomain;
use finial_proto::spire::api::server::bundle::v1 as wire;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::types;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stage::{Programs, ServerStage, Stage, Whose};

/// What must come of a document.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    /// So many authorities for X.509 and JWT are taken.
    Taken(usize, usize),
    /// Nothing in it is understood: as a bundle it takes all trust away, so nobody sets it by a mistake of its maker.
    NotUnderstood,
    /// Refused, with a text that holds this.
    Refused(&'static str),
}
use Expected::{NotUnderstood, Refused, Taken};

struct Case {
    id: &'static str,
    document: Vec<u8>,
    expected: Expected,
}

#[test]
fn documents_are_taken_and_refused_alike_wherever_they_come_in() {
    let programs = Programs::chosen();
    if programs.whose == Whose::Reference {
        return;
    }
    let folder = TempDir::new().unwrap();
    let stage = ServerStage::start(&programs, folder.path());
    let place = Place { program: programs.path("server"), stage: &stage, folder: folder.path() };
    let mut faults = Vec::new();
    for (number, case) in cases().iter().enumerate() {
        let file = folder.path().join("document.json");
        std::fs::write(&file, &case.document).unwrap();
        let outcomes = [
            ("bundle set", place.set(&format!("set{number}.org"))),
            ("federation create -trustDomainBundlePath", place.relate(&format!("path{number}.org"))),
            ("federation create -data", place.relate_with_data(&format!("data{number}.org"), &case.document)),
            ("trust_bundle_path", believed(folder.path(), &format!("trust_bundle_path = {file:?}"))),
            ("trust_bundle_url", fetched(folder.path(), &case.document)),
        ];
        for (place, outcome) in outcomes {
            let fine = match (&outcome, case.expected) {
                (None, _) => true,
                (Some(Ok((x509, jwt))), Taken(of_x509, of_jwt)) => {
                    *x509 == of_x509 && jwt.is_none_or(|jwt| jwt == of_jwt)
                }
                // An agent does not start without an authority to know its server by.
                (Some(Err(text)), Taken(0, _)) => {
                    place.starts_with("trust_bundle") && text.contains("no X.509 authority")
                }
                (Some(Err(text)), NotUnderstood) => {
                    text.contains("no authority is understood") || text.contains("no X.509 authority")
                }
                (Some(Err(text)), Refused(part)) => text.contains(part),
                _ => false,
            };
            if !fine {
                faults.push(format!("{} at {place}: {outcome:?}, expected {:?}", case.id, case.expected));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// T24 to T26: bundle maps. Nothing takes one in yet; this is what will read them.
#[test]
fn bundle_maps() {
    let ca = Ca::new(true);
    let one = json!({"keys": [ca.element()]}).to_string();
    for (id, text, count) in [
        ("T24", r#"{"trust_domains": {}}"#.to_owned(), Some(0)),
        ("T24 with one", format!(r#"{{"trust_domains": {{"a.org": {one}}}}}"#), Some(1)),
        ("T25 without trust_domains", "{}".to_owned(), None),
        ("T25 Example.org", format!(r#"{{"trust_domains": {{"Example.org": {one}}}}}"#), None),
        ("T25 spiffe://x", format!(r#"{{"trust_domains": {{"spiffe://x": {one}}}}}"#), None),
        ("T26", format!(r#"{{"trust_domains": {{"a.org": {one}, "a.org": {one}}}}}"#), None),
    ] {
        assert_eq!(document::read_map(text.as_bytes()).ok().map(|found| found.len()), count, "{id}");
    }
}

/// The cases that are about authorities, sent as messages.
#[test]
fn authorities_in_messages() {
    let programs = Programs::chosen();
    if programs.whose == Whose::Reference {
        return;
    }
    let folder = TempDir::new().unwrap();
    let stage = ServerStage::start(&programs, folder.path());
    let ca = Ca::new(true);
    let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let x509 = |der: &[u8]| types::X509Certificate { asn1: der.to_vec(), tainted: false };
    let jwt = |key_id: &str, der: &[u8]| types::JwtKey {
        key_id: key_id.to_owned(),
        public_key: der.to_vec(),
        ..types::JwtKey::default()
    };
    let (key, other) = (one.subject_public_key_info(), other.subject_public_key_info());
    let refused = "failed to convert bundle: unable to parse ";
    for (id, x509_authorities, jwt_authorities, expected) in [
        ("T01", vec![x509(&ca.der)], vec![jwt("k", &key)], Ok((1, 1))),
        ("T03", vec![], vec![], Ok((0, 0))),
        ("T15 truncated", vec![x509(&ca.der[..ca.der.len() - 1])], vec![], Err("X.509 authority: ")),
        ("T15 not DER", vec![x509(b"-----BEGIN")], vec![], Err("X.509 authority: ")),
        ("T19", vec![], vec![jwt("", &key)], Err("JWT authority: missing key ID")),
        ("T20", vec![], vec![jwt("k", &key), jwt("k", &other)], Err("JWT authority: two different keys")),
        ("T20 the same key", vec![], vec![jwt("k", &key), jwt("k", &key)], Ok((0, 1))),
        ("T22", vec![], vec![jwt("k", b"secret")], Err("JWT authority: ")),
        ("T28", vec![x509(&ca.der), x509(&ca.der)], vec![], Ok((1, 0))),
    ] {
        let bundle = types::Bundle {
            trust_domain: "other.org".to_owned(),
            x509_authorities,
            jwt_authorities,
            ..types::Bundle::default()
        };
        let request = wire::BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        let answer = stage.call(|channel| async move {
            BundleClient::new(channel).batch_set_federated_bundle(request).await.unwrap().into_inner()
        });
        let result = answer.results.into_iter().next().unwrap();
        let status = result.status.unwrap();
        let found = match status.code {
            0 => {
                let bundle = result.bundle.unwrap();
                Ok((bundle.x509_authorities.len(), bundle.jwt_authorities.len()))
            }
            _ => Err(status.message),
        };
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{id}"),
            (Err(text), Err(part)) => assert!(text.starts_with(&format!("{refused}{part}")), "{id}: {text}"),
            _ => panic!("{id}: {found:?}, expected {expected:?}"),
        }
    }
}

/// Each document, and what must come of it.
fn cases() -> Vec<Case> {
    let ca = Ca::new(true);
    let leaf = Ca::new(false);
    let other = Ca::new(true);
    let x509 = ca.element();
    let jwt = jwt_element("k", &KeyPair::generate().unwrap());
    let with = |keys: Value| json!({ "keys": keys });
    let changed = |element: &Value, edit: &dyn Fn(&mut Value)| {
        let mut element = element.clone();
        edit(&mut element);
        element
    };
    let without = |name: &str| changed(&x509, &|element| drop(element.as_object_mut().unwrap().remove(name)));
    let set = |name: &str, value: Value| changed(&x509, &|element| element[name] = value.clone());
    let top = |name: &str, value: &str| format!(r#"{{"keys": [{x509}], "{name}": {value}}}"#).into_bytes();
    let text = |value: Value| value.to_string().into_bytes();
    let beside = |element: Value| text(with(json!([x509, element])));
    let alone = |element: Value| text(with(json!([element])));
    let octets = json!({"kty": "oct", "k": "AAAA", "use": "jwt-svid", "kid": "o"});
    let akp = json!({"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA", "use": "x509-svid"});
    let wit = changed(&jwt, &|element| element["use"] = json!("wit-svid"));
    let short = short_element();
    let off_curve = changed(&jwt, &|element| element["y"] = element["x"].clone());
    let private = changed(&jwt, &|element| element["d"] = json!("AAAA"));
    let pem = document::certificate_pem(&ca.der);
    let whole = text(json!({"keys": [x509, jwt], "spiffe_sequence": 7, "spiffe_refresh_hint": 60}));
    let utf16: Vec<u8> = String::from_utf8_lossy(&whole).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let trailing = [whole.as_slice(), b"x"].concat();
    let large = [whole.as_slice(), &vec![b' '; 50_000_000]].concat();
    let case = |id, document, expected| Case { id, document, expected };
    vec![
        case("T01", whole.clone(), Taken(1, 1)),
        case("T02", text(json!({"keys": [x509], "colour": "blue"})), Taken(1, 0)),
        case("T03", text(with(json!([]))), Taken(0, 0)),
        case("T04 absent", text(with(json!([x509]))), Taken(1, 0)),
        case("T04 0", top("spiffe_refresh_hint", "0"), Taken(1, 0)),
        case("T04 text", top("spiffe_refresh_hint", "\"60\""), Refused("spiffe_refresh_hint")),
        case("T04 fraction", top("spiffe_refresh_hint", "1.5"), Refused("spiffe_refresh_hint")),
        case("T04 negative", top("spiffe_refresh_hint", "-5"), Refused("spiffe_refresh_hint")),
        case("T05", top("spiffe_sequence", "18446744073709551615"), Taken(1, 0)),
        case("T05 negative", top("spiffe_sequence", "-1"), Refused("spiffe_sequence")),
        case("T05 fraction", top("spiffe_sequence", "1.5"), Refused("spiffe_sequence")),
        case("T06", b"{}".to_vec(), Refused("no ")),
        case("T07", alone(octets.clone()), NotUnderstood),
        case("T08", beside(akp), Taken(1, 0)),
        case("T09 foo", beside(set("use", json!("foo"))), Taken(1, 0)),
        case("T09 sig", beside(set("use", json!("sig"))), Taken(1, 0)),
        case("T10", beside(without("kty")), Taken(1, 0)),
        case("T11 absent", beside(without("use")), Taken(1, 0)),
        case("T11 capitals", beside(set("use", json!("X509-SVID"))), Taken(1, 0)),
        case("T12", beside(without("x5c")), Taken(1, 0)),
        case("T13", beside(set("x5c", json!([]))), Taken(1, 0)),
        case(
            "T14",
            alone(set("x5c", json!([STANDARD.encode(&ca.der), STANDARD.encode(&other.der)]))),
            Taken(1, 0),
        ),
        case("T15 PEM", alone(set("x5c", json!([pem]))), Refused("x5c")),
        case(
            "T15 base64url",
            alone(set("x5c", json!([format!("{}-_", URL_SAFE_NO_PAD.encode(&ca.der))]))),
            Refused("x5c"),
        ),
        case(
            "T15 truncated",
            alone(set("x5c", json!([STANDARD.encode(&ca.der[..ca.der.len() / 2])]))),
            Refused("x5c"),
        ),
        case("T16", alone(set("x5c", json!([STANDARD.encode(&other.der)]))), Refused("x5c")),
        case("T17", alone(set("kid", json!("x"))), Taken(1, 0)),
        case("T18", alone(leaf.element()), Refused("not a CA's")),
        case(
            "T19",
            beside(changed(&jwt, &|element| drop(element.as_object_mut().unwrap().remove("kid")))),
            Refused("kid"),
        ),
        case(
            "T20",
            text(with(json!([jwt, jwt_element("k", &KeyPair::generate().unwrap())]))),
            Refused("key ID"),
        ),
        case("T21", text(with(json!([jwt, wit]))), Refused("key ID")),
        case("T22 oct", beside(octets), Taken(1, 0)),
        case("T22 d", beside(private), Refused("private")),
        case("T23 stripped", beside(short), Refused("element 1")),
        case("T23 off curve", beside(off_curve), Refused("element 1")),
        case("T27 no JSON", b"junk".to_vec(), Refused("JSON")),
        case("T27 array", b"[]".to_vec(), Refused("JSON")),
        case("T27 trailing", trailing, Refused("trailing")),
        case("T27 UTF-16", utf16, Refused("JSON")),
        case("T27 50 MB", large, Refused("bytes")),
        case("T28", text(with(json!([x509, x509]))), Taken(1, 0)),
    ]
}

/// A self-signed certificate.
struct Ca {
    der: Vec<u8>,
    key: KeyPair,
}

impl Ca {
    fn new(is_ca: bool) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Ca { der, key }
    }

    fn element(&self) -> Value {
        let (x, y) = coordinates(&self.key);
        let x5c = [STANDARD.encode(&self.der)];
        json!({"use": "x509-svid", "kty": "EC", "crv": "P-256", "x": encode(&x), "y": encode(&y), "x5c": x5c})
    }
}

fn jwt_element(key_id: &str, key: &KeyPair) -> Value {
    let (x, y) = coordinates(key);
    json!({"use": "jwt-svid", "kty": "EC", "kid": key_id, "crv": "P-256", "x": encode(&x), "y": encode(&y)})
}

/// An element whose `x` begins with a zero that is left away.
fn short_element() -> Value {
    loop {
        let key = KeyPair::generate().unwrap();
        let (x, y) = coordinates(&key);
        if let [0, rest @ ..] = x.as_slice() {
            return json!({"use": "jwt-svid", "kty": "EC", "kid": "s", "crv": "P-256", "x": encode(rest), "y": encode(&y)});
        }
    }
}

fn coordinates(key: &KeyPair) -> (Vec<u8>, Vec<u8>) {
    // An uncompressed point behind the byte 4.
    let point = &key.public_key_raw()[1..];
    (point[..32].to_vec(), point[32..].to_vec())
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// How many X.509 authorities came in, and how many JWT keys where that can be seen, or what was said; `None` where the
/// document cannot be put at all.
type Outcome = Option<Result<(usize, Option<usize>), String>>;

/// A running server and its command line.
struct Place<'a> {
    program: std::path::PathBuf,
    stage: &'a ServerStage,
    folder: &'a Path,
}

impl Place<'_> {
    fn set(&self, name: &str) -> Outcome {
        let set = self.run(&["bundle", "set", "-id", name, "-path", "document.json", "-format", "spiffe"]);
        Some(self.stored(name, &set))
    }

    fn relate(&self, name: &str) -> Outcome {
        let file = ["-trustDomainBundlePath", "document.json", "-trustDomainBundleFormat", "spiffe"];
        let endpoint = ["-bundleEndpointURL", "https://h", "-bundleEndpointProfile", "https_web"];
        let words = [&["federation", "create", "-trustDomain", name], &file[..], &endpoint[..]].concat();
        let created = self.run(&words);
        Some(self.stored(name, &created))
    }

    fn relate_with_data(&self, name: &str, document: &[u8]) -> Outcome {
        // Only what is JSON can be put there.
        let value: Value =
            serde_json::from_slice(document).ok().filter(|_| document.len() < MAX_DOCUMENT_BYTES)?;
        let relationship = json!({
            "trustDomain": name, "bundleEndpointURL": "https://h", "bundleEndpointProfile": "https_web",
            "trustDomainBundle": value, "trustDomainBundleFormat": "spiffe",
        });
        let data = json!({ "federationRelationships": [relationship] }).to_string();
        std::fs::write(self.folder.join("data.json"), data).unwrap();
        let created = self.run(&["federation", "create", "-data", "data.json"]);
        Some(self.stored(name, &created))
    }

    /// What the server has of it after a command.
    fn stored(&self, name: &str, command: &Output) -> Result<(usize, Option<usize>), String> {
        let shown = self.run(&["bundle", "list", "-id", name, "-output", "json"]);
        if !command.status.success() {
            assert!(!shown.status.success(), "refused, and there is a bundle of {name} all the same");
            return Err(String::from_utf8_lossy(&command.stderr).into_owned());
        }
        let bundle: Value = serde_json::from_slice(&shown.stdout).unwrap();
        let count = |member: &str| bundle[member].as_array().unwrap().len();
        Ok((count("x509_authorities"), Some(count("jwt_authorities"))))
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(self.folder).envs(self.stage.environment()).output().unwrap()
    }
}

/// What a new agent believes by these lines of its configuration.
fn believed(folder: &Path, lines: &str) -> Outcome {
    let data_dir = TempDir::new_in(folder).unwrap();
    let text = format!(
        r#"agent {{
            trust_domain = "example.org"
            server_address = "server.example"
            server_port = 8081
            data_dir = {:?}
            trust_bundle_format = "spiffe"
            {lines}
        }}
        plugins {{
            NodeAttestor "join_token" {{ plugin_data {{}} }}
            KeyManager "memory" {{ plugin_data {{}} }}
            WorkloadAttestor "unix" {{ plugin_data {{}} }}
        }}"#,
        data_dir.path()
    );
    let file = finial_daemon::settings::parse(&text, "agent.conf").unwrap();
    let settings = Settings::read(&file, &Flags::default()).unwrap();
    let storage = Storage::open(data_dir.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let trust = runtime.block_on(FirstTrust::new(&settings, storage, Clock::wall()).get());
    Some(match trust {
        Ok(Trust::Bundle(bundle)) => {
            assert_eq!(bundle.trust_domain, TrustDomain::parse("example.org").unwrap());
            Ok((bundle.x509_authorities.len(), None))
        }
        Ok(Trust::FirstMet) => panic!("the first met server would be believed"),
        Err(error) => Err(error.to_string()),
    })
}

/// What a new agent believes that has the document from a socket.
fn fetched(folder: &Path, document: &[u8]) -> Outcome {
    let socket = folder.join("bundle.sock");
    // There from the case before.
    let _ = std::fs::remove_file(&socket);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", document.len());
    let answer = [head.as_bytes(), document].concat();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            // A client that has read enough hangs up.
            let _ = stream.write_all(&answer).await;
        });
    });
    let lines =
        format!("trust_bundle_url = \"http://localhost/bundle\"\ntrust_bundle_unix_socket = {socket:?}");
    let outcome = believed(folder, &lines);
    server.join().unwrap();
    outcome
}
