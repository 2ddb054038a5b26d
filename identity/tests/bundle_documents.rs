//! Bundle documents (SPIFFE_Trust_Domain_and_Bundle.md §4, §5): what SPIRE wrote, and what others may send.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

mod pki;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use finial_identity::TrustDomain;
use finial_identity::bundle::document::{self, Content, Document, DocumentError};
use serde_json::{Value, json};

const GOLDEN: &str = include_str!("data/bundle.json");
const GOLDEN_PEM: &str = include_str!("data/bundle.pem");

fn example() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn read(document: &Value) -> Result<Document, DocumentError> {
    document::read(&example(), document.to_string().as_bytes())
}

fn golden() -> Value {
    serde_json::from_str(GOLDEN).unwrap()
}

/// SPIRE's document with its X.509 element changed.
fn with_x509(edit: impl FnOnce(&mut Value)) -> Value {
    let mut document = golden();
    edit(&mut document["keys"][0]);
    document
}

/// SPIRE's X.509 element alone, with another element behind it.
fn x509_and(other: Value) -> Value {
    json!({ "keys": [golden()["keys"][0], other] })
}

#[track_caller]
fn assert_read(document: &Value, x509: usize, jwt: usize, skipped: &[usize]) {
    let read = read(document).unwrap();
    assert_eq!(read.bundle.x509_authorities.len(), x509);
    assert_eq!(read.bundle.jwt_authorities.len(), jwt);
    assert_eq!(read.skipped.iter().map(|skipped| skipped.index).collect::<Vec<_>>(), skipped);
}

#[track_caller]
fn assert_wrong_element(document: &Value, index: usize) {
    let error = read(document).unwrap_err();
    assert!(matches!(error, DocumentError::WrongElement { index: found, .. } if found == index), "{error}");
}

#[test]
fn what_spire_wrote_is_read_and_written_again_to_the_byte() {
    let bundle = document::parse(&example(), GOLDEN.as_bytes()).unwrap();
    assert_eq!(bundle.sequence_number, 1);
    assert_eq!(bundle.refresh_hint, 0);
    assert_eq!(bundle.jwt_authorities[0].key_id, "sddkwPJbx4PabDVgqgyelA8nqW97nAbt");
    assert_eq!(format!("{}\n", document::to_json(&bundle).unwrap()), GOLDEN);

    assert_eq!(document::to_pem(&bundle), GOLDEN_PEM);
    let from_pem = document::from_pem(&example(), GOLDEN_PEM.as_bytes()).unwrap();
    assert_eq!(from_pem.x509_authorities, bundle.x509_authorities);
}

#[test]
fn parts_of_a_bundle_can_be_written() {
    let mut bundle = document::parse(&example(), GOLDEN.as_bytes()).unwrap();
    bundle.refresh_hint = 300;
    let written =
        |content| serde_json::from_str::<Value>(&document::to_json_of(&bundle, content).unwrap()).unwrap();
    let mut whole = golden();
    whole["spiffe_refresh_hint"] = 300.into();
    assert_eq!(written(Content::ALL), whole);
    assert_eq!(written(Content::X509)["keys"], json!([golden()["keys"][0]]));
    assert_eq!(written(Content::JWT)["keys"], json!([golden()["keys"][1]]));
    assert_eq!(written(Content::JWT)["spiffe_refresh_hint"], 300);

    let mut plain_key = golden()["keys"][1].clone();
    plain_key.as_object_mut().unwrap().remove("use");
    assert_eq!(written(Content::PLAIN_JWT), json!({ "keys": [plain_key] }));
    bundle.jwt_authorities.clear();
    assert_eq!(document::to_json_of(&bundle, Content::PLAIN_JWT).unwrap(), "{\n    \"keys\": []\n}");
}

#[test]
fn texts_are_escaped_as_go_does() {
    let mut bundle = document::parse(&example(), GOLDEN.as_bytes()).unwrap();
    bundle.jwt_authorities[0].key_id = "<&>\u{2028}\"\\ü".into();
    let json = document::to_json(&bundle).unwrap();
    assert!(json.contains("\"kid\": \"\\u003c\\u0026\\u003e\\u2028\\\"\\\\ü\""), "{json}");
    assert_eq!(document::parse(&example(), json.as_bytes()).unwrap(), bundle);
}

#[test]
fn members_of_the_document() {
    assert_read(&golden(), 1, 1, &[]);
    let mut more = golden();
    more["another"] = json!({"a": 1});
    assert_read(&more, 1, 1, &[]);
    assert_read(&json!({"keys": []}), 0, 0, &[]);

    let hint =
        |hint: Value| read(&json!({"keys": [], "spiffe_refresh_hint": hint})).map(|d| d.bundle.refresh_hint);
    assert_eq!(hint(0.into()), Ok(0));
    assert_eq!(hint(600.into()), Ok(600));
    assert_eq!(hint(Value::Null), Ok(0));
    for wrong in [json!("60"), json!(1.5), json!(-5), json!(u64::MAX)] {
        assert!(matches!(hint(wrong.clone()), Err(DocumentError::WrongMember { .. })), "{wrong}");
    }
    let sequence = |sequence: Value| {
        read(&json!({"keys": [], "spiffe_sequence": sequence})).map(|d| d.bundle.sequence_number)
    };
    assert_eq!(sequence(u64::MAX.into()), Ok(u64::MAX));
    for wrong in [json!(-1), json!(1.5), json!("1")] {
        assert!(matches!(sequence(wrong.clone()), Err(DocumentError::WrongMember { .. })), "{wrong}");
    }

    assert_eq!(read(&json!({"spiffe_refresh_hint": 10})), Err(DocumentError::NoKeys));
    assert!(matches!(read(&json!({"keys": {}})), Err(DocumentError::WrongMember { name: "keys", .. })));
    assert!(matches!(read(&json!({"keys": null})), Err(DocumentError::WrongMember { name: "keys", .. })));
    assert_wrong_element(&json!({"keys": [1]}), 0);
}

#[test]
fn what_is_not_understood_is_skipped_and_told() {
    assert_read(&x509_and(json!({"kty": "AKP", "use": "jwt-svid", "kid": "a"})), 1, 0, &[1]);
    assert_read(&x509_and(json!({"kty": "oct", "use": "jwt-svid", "kid": "a", "k": "AAAA"})), 1, 0, &[1]);
    assert_read(
        &x509_and(json!({"kty": "EC", "crv": "secp256k1", "use": "jwt-svid", "kid": "a", "x": "", "y": ""})),
        1,
        0,
        &[1],
    );
    assert_read(&x509_and(json!({"use": "jwt-svid", "kid": "a"})), 1, 0, &[1]);
    for key_use in ["foo", "sig", "X509-SVID", ""] {
        let mut other = golden()["keys"][1].clone();
        other["use"] = key_use.into();
        assert_read(&x509_and(other), 1, 0, &[1]);
    }
    assert_read(&x509_and(json!({"kty": "EC"})), 1, 0, &[1]);
    assert_read(&with_x509(|element| drop(element.as_object_mut().unwrap().remove("x5c"))), 0, 1, &[0]);
    assert_read(&with_x509(|element| element["x5c"] = json!([])), 0, 1, &[0]);

    let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
    assert_read(
        &x509_and(json!({"kty": "RSA", "use": "jwt-svid", "kid": "a", "n": short, "e": "AQAB"})),
        1,
        0,
        &[1],
    );

    let nothing = json!({"keys": [{"kty": "AKP"}, {"use": "foo", "kty": "EC"}]});
    assert_read(&nothing, 0, 0, &[0, 1]);
}

#[test]
fn x509_elements() {
    let second = STANDARD.encode(&pki::Ca::root("example.org").der);
    let two = with_x509(|element| element["x5c"].as_array_mut().unwrap().push(second.clone().into()));
    assert_read(&two, 1, 1, &[]);
    assert_eq!(read(&two).unwrap(), read(&golden()).unwrap(), "the first certificate counts");
    assert_read(&with_x509(|element| element["kid"] = "a".into()), 1, 1, &[]);

    let x5c = golden()["keys"][0]["x5c"][0].as_str().unwrap().to_owned();
    let der = STANDARD.decode(&x5c).unwrap();
    for wrong in [
        GOLDEN_PEM.to_owned(),
        URL_SAFE_NO_PAD.encode(&der),
        x5c[..x5c.len() - 4].to_owned(),
        STANDARD.encode([der.clone(), vec![0]].concat()),
        second,
        String::new(),
    ] {
        assert_wrong_element(&with_x509(|element| element["x5c"][0] = wrong.into()), 0);
    }
    assert_wrong_element(&with_x509(|element| element["x5c"] = x5c.into()), 0);

    let twice = json!({"keys": [golden()["keys"][0], golden()["keys"][0]]});
    assert_read(&twice, 1, 0, &[]);
}

#[test]
fn a_leaf_is_no_authority() {
    let key = pki::Signer::new();
    let extensions = pki::leaf_extensions(vec![pki::uri("spiffe://example.org/x")]);
    let draft = pki::Draft::new(pki::name("x"), key.spki(), extensions);
    let der = draft.signed_by(&draft.subject.clone(), &key);
    let point = &key.spki()[key.spki().len() - 64..];
    let element = json!({
        "use": "x509-svid", "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(&point[..32]),
        "y": URL_SAFE_NO_PAD.encode(&point[32..]), "x5c": [STANDARD.encode(&der)],
    });
    assert_wrong_element(&x509_and(element), 1);
}

#[test]
fn keys_for_tokens() {
    let jwt = |edit: fn(&mut Value)| {
        let mut element = golden()["keys"][1].clone();
        edit(&mut element);
        x509_and(element)
    };
    assert_wrong_element(&jwt(|element| drop(element.as_object_mut().unwrap().remove("kid"))), 1);
    assert_wrong_element(&jwt(|element| element["kid"] = "".into()), 1);
    assert_wrong_element(&jwt(|element| element["d"] = "AAAA".into()), 1);
    assert_wrong_element(&jwt(|element| drop(element.as_object_mut().unwrap().remove("n"))), 1);
    assert_wrong_element(&jwt(|element| element["e"] = "AQAB=".into()), 1);

    let key = golden()["keys"][1].clone();
    let mut other = pki_jwk("sddkwPJbx4PabDVgqgyelA8nqW97nAbt");
    assert_read(&json!({"keys": [key, key]}), 0, 1, &[]);
    let ambiguous = DocumentError::AmbiguousKeyId("sddkwPJbx4PabDVgqgyelA8nqW97nAbt".into());
    assert_eq!(read(&json!({"keys": [key, other]})), Err(ambiguous.clone()));
    other["use"] = "wit-svid".into();
    assert_eq!(read(&json!({"keys": [key, other]})), Err(ambiguous.clone()));
    assert_eq!(read(&json!({"keys": [other, key]})), Err(ambiguous));
    other["kid"] = "another".into();
    assert_eq!(read(&json!({"keys": [key, other]})).unwrap().bundle.wit_authorities.len(), 1);
}

#[test]
fn points_must_be_whole_and_on_their_curve() {
    let mut short = pki_jwk("a");
    let x = URL_SAFE_NO_PAD.decode(short["x"].as_str().unwrap()).unwrap();
    short["x"] = URL_SAFE_NO_PAD.encode(&x[1..]).into();
    assert_wrong_element(&x509_and(short), 1);
    let mut off_curve = pki_jwk("a");
    let mut moved = x;
    moved[31] ^= 1;
    off_curve["x"] = URL_SAFE_NO_PAD.encode(&moved).into();
    assert_wrong_element(&x509_and(off_curve), 1);
    assert_wrong_element(
        &x509_and(json!({"kty": "OKP", "crv": "Ed25519", "use": "jwt-svid", "kid": "a", "x": "AAAA"})),
        1,
    );
}

#[test]
fn what_is_no_document_is_refused() {
    let utf16: Vec<u8> = GOLDEN.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let trailing = format!("{GOLDEN}x");
    for wrong in [b"".as_slice(), b"[]", b"{", b"null", b"{\"keys\":[]}{}", trailing.as_bytes(), &utf16] {
        let error = document::read(&example(), wrong).unwrap_err();
        assert!(matches!(error, DocumentError::NotJson(_)), "{error}");
    }
    let huge = vec![b' '; 50_000_000];
    assert_eq!(document::read(&example(), &huge), Err(DocumentError::TooLong(50_000_000)));
    assert_eq!(document::from_pem(&example(), &huge), Err(DocumentError::TooLong(50_000_000)));
    let deep = format!("{{\"keys\":{}", "[".repeat(100_000));
    assert!(matches!(document::read(&example(), deep.as_bytes()), Err(DocumentError::NotJson(_))));
}

#[test]
fn bundle_maps() {
    let map = |text: &str| document::read_map(text.as_bytes());
    assert_eq!(map(r#"{"trust_domains":{}}"#), Ok(vec![]));
    let two =
        map(&json!({"trust_domains": {"b.test": golden(), "a.test": {"keys": []}}}).to_string()).unwrap();
    let names: Vec<_> = two.iter().map(|document| document.bundle.trust_domain.name()).collect();
    assert_eq!(names, ["b.test", "a.test"]);
    assert_eq!(two[0].bundle.x509_authorities.len(), 1);

    assert!(matches!(map("{}"), Err(DocumentError::NotJson(_))));
    for name in ["Example.org", "spiffe://x", ""] {
        let error = map(&json!({"trust_domains": {name: {"keys": []}}}).to_string()).unwrap_err();
        assert!(matches!(error, DocumentError::WrongTrustDomain { .. }), "{error}");
    }
    assert_eq!(
        map(r#"{"trust_domains":{"a.test":{"keys":[]},"a.test":{"keys":[]}}}"#),
        Err(DocumentError::TrustDomainTwice("a.test".into()))
    );
    assert_eq!(map(r#"{"trust_domains":{"a.test":{}}}"#), Err(DocumentError::NoKeys));
}

#[test]
fn pem_may_hold_other_things_but_needs_a_certificate() {
    let around = format!("subject=x\n{GOLDEN_PEM}\n-----BEGIN X-----\nAAAA\n-----END X-----\n{GOLDEN_PEM}");
    assert_eq!(document::from_pem(&example(), around.as_bytes()).unwrap().x509_authorities.len(), 1);
    assert_eq!(document::from_pem(&example(), b""), Err(DocumentError::NoPem));
    assert_eq!(document::from_pem(&example(), GOLDEN.as_bytes()), Err(DocumentError::NoPem));
    let broken = GOLDEN_PEM.replacen("MII", "MI!", 1);
    assert!(matches!(document::from_pem(&example(), broken.as_bytes()), Err(DocumentError::WrongPem(_))));
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(
        document::from_pem(&example(), no_certificate.as_bytes()),
        Err(DocumentError::WrongPem(_))
    ));
}

/// A key for JWT-SVIDs on P-256.
fn pki_jwk(key_id: &str) -> Value {
    let spki = pki::Signer::new().spki();
    let point = &spki[spki.len() - 64..];
    json!({
        "use": "jwt-svid", "kty": "EC", "kid": key_id, "crv": "P-256",
        "x": URL_SAFE_NO_PAD.encode(&point[..32]), "y": URL_SAFE_NO_PAD.encode(&point[32..]),
    })
}
