//! Which tokens prove an identity: the cases J01 to J65 (JWT-SVID.md, RFC 7515, 7519; `docs/compatibility.md` says where
//! implementations differ), and laws that hold for all tokens.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

mod pki;

use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use finial_identity::bundle::JwtAuthority;
use finial_identity::jwt_svid::{self, Algorithm, JwtSvid, JwtSvidError, UnverifiedJwtSvid};
use finial_identity::{SpiffeId, SpiffeIdError, TrustDomain};
use pki::{HOUR, NOW, now};
use proptest::prelude::*;
use serde_json::{Value, json};

struct Keys {
    e256: EcdsaKeyPair,
    e256_der: EcdsaKeyPair,
    e384: EcdsaKeyPair,
    e512: EcdsaKeyPair,
    rsa: RsaKeyPair,
    ed25519: Ed25519KeyPair,
    foreign: EcdsaKeyPair,
    example_org: Vec<JwtAuthority>,
    other_test: Vec<JwtAuthority>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let ec = |algorithm| EcdsaKeyPair::generate(algorithm).unwrap();
    let (e256, foreign) =
        (ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING), ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING));
    let pkcs8 = e256.to_pkcs8v1().unwrap();
    let e256_der =
        EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).unwrap();
    let e384 = ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING);
    let e512 = ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING);
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let ed25519 = Ed25519KeyPair::generate().unwrap();
    let example_org = vec![
        authority("e256", e256.public_key()),
        authority("e384", e384.public_key()),
        authority("e512", e512.public_key()),
        authority("rsa", rsa.public_key()),
        authority("ed", ed25519.public_key()),
    ];
    // The same key ID as in the other bundle.
    let other_test = vec![authority("e256", foreign.public_key())];
    Keys { e256, e256_der, e384, e512, rsa, ed25519, foreign, example_org, other_test }
});

fn authority(key_id: &str, key: &impl AsDer<PublicKeyX509Der<'static>>) -> JwtAuthority {
    JwtAuthority {
        key_id: key_id.to_owned(),
        public_key: key.as_der().unwrap().as_ref().to_vec(),
        expires_at: 0,
        tainted: false,
    }
}

fn verify_for(token: &str, audience: &[&str]) -> Result<JwtSvid, JwtSvidError> {
    let authorities_of = |trust_domain: &TrustDomain| match trust_domain.name() {
        "example.org" => Some(KEYS.example_org.as_slice()),
        "other.test" => Some(KEYS.other_test.as_slice()),
        _ => None,
    };
    jwt_svid::verify(token, authorities_of, audience, now())
}

fn verify(token: &str) -> Result<JwtSvid, JwtSvidError> {
    verify_for(token, &["reports"])
}

/// Signs with the key that `kind` names.
fn sign(kind: &str, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let rsa = |padding: &'static dyn signature::RsaEncoding| {
        let mut signature = vec![0; KEYS.rsa.public_modulus_len()];
        KEYS.rsa.sign(padding, &random, message, &mut signature).unwrap();
        signature
    };
    let ec = |key: &EcdsaKeyPair| key.sign(&random, message).unwrap().as_ref().to_vec();
    match kind {
        "ES256" => ec(&KEYS.e256),
        "ES256 in DER" => ec(&KEYS.e256_der),
        "ES384" => ec(&KEYS.e384),
        "ES512" => ec(&KEYS.e512),
        "foreign" => ec(&KEYS.foreign),
        "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
        "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
        "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
        "PS256" => rsa(&signature::RSA_PSS_SHA256),
        "PS384" => rsa(&signature::RSA_PSS_SHA384),
        "PS512" => rsa(&signature::RSA_PSS_SHA512),
        "EdDSA" => KEYS.ed25519.sign(message).as_ref().to_vec(),
        other => panic!("no key {other}"),
    }
}

fn kid_of(algorithm: &str) -> &'static str {
    match algorithm {
        "ES256" => "e256",
        "ES384" => "e384",
        "ES512" => "e512",
        "EdDSA" => "ed",
        _ => "rsa",
    }
}

fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// A token of these texts, signed by this key.
fn of_texts(header: &str, claims: &str, key: &str) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(key, message.as_bytes()));
    format!("{message}.{signature}")
}

fn good_claims() -> Value {
    json!({"sub": "spiffe://example.org/svc", "aud": ["reports"], "exp": NOW + HOUR, "iat": NOW})
}

fn good_header() -> Value {
    json!({"alg": "ES256", "kid": "e256", "typ": "JWT"})
}

/// Sets a member; null in `value` takes it out, `"null"` (a text) sets it to null.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    let members = object.as_object_mut().unwrap();
    match value {
        Value::Null => drop(members.shift_remove(name)),
        Value::String(text) if text == "null" => drop(members.insert(name.to_owned(), Value::Null)),
        value => drop(members.insert(name.to_owned(), value)),
    }
    object
}

fn signed(header: &Value, claims: &Value) -> String {
    of_texts(&header.to_string(), &claims.to_string(), "ES256")
}

fn claim(name: &str, value: Value) -> String {
    signed(&good_header(), &with(good_claims(), name, value))
}

fn header(name: &str, value: Value) -> String {
    signed(&with(good_header(), name, value), &good_claims())
}

fn alg(algorithm: &str) -> String {
    let header = json!({"alg": algorithm, "kid": kid_of(algorithm), "typ": "JWT"});
    of_texts(&header.to_string(), &good_claims().to_string(), algorithm)
}

fn good() -> String {
    signed(&good_header(), &good_claims())
}

/// `good` with its third part replaced by what `change` makes of the signature.
fn resigned(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let token = good();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = change(URL_SAFE_NO_PAD.decode(signature).unwrap());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[derive(Debug)]
enum Expected {
    Accepted,
    Refused(JwtSvidError),
    /// Refused with an error whose text starts so.
    Says(&'static str),
}

use Expected::{Accepted, Refused, Says};

fn table() -> Vec<(&'static str, String, Expected)> {
    use JwtSvidError::*;
    let other_audience = |found: &[&str]| {
        Refused(OtherAudience {
            expected: vec!["reports".into()],
            found: found.iter().map(|found| (*found).to_owned()).collect(),
        })
    };
    let no_fit = |algorithm, key_id: &str| Refused(KeyDoesNotFit { algorithm, key_id: key_id.into() });
    let not_allowed = |name: &str| Refused(AlgorithmNotAllowed(name.into()));
    let bare = |header: Value| signed(&header, &good_claims());
    let token = good();
    let parts: Vec<&str> = token.split('.').collect();
    let (first, second, third) = (parts[0], parts[1], parts[2]);
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"});
    let swapped = encode(&with(good_claims(), "sub", json!("spiffe://example.org/admin")).to_string());
    let attacker = with(with(good_header(), "jwk", jwk.clone()), "kid", json!("e256"));

    vec![
        ("J01", good(), Accepted),
        ("J02", alg("RS256"), Accepted),
        ("J03", alg("RS512"), Accepted),
        ("J04", alg("PS256"), Accepted),
        ("J05", alg("ES384"), Accepted),
        ("J06", alg("ES512"), Accepted),
        ("J07", header("typ", json!("JOSE")), Accepted),
        ("J08", header("typ", Value::Null), Accepted),
        ("J09", header("typ", json!("jwt")), Refused(WrongType)),
        ("J10", header("typ", json!("at+jwt")), Refused(WrongType)),
        ("J11", header("typ", json!("wit+jwt")), Refused(WrongType)),
        ("J12", header("kid", Value::Null), Refused(NoKeyId)),
        (
            "J13",
            header("kid", json!("other")),
            Refused(NoAuthority { key_id: "other".into(), trust_domain: domain("example.org") }),
        ),
        ("J14", header("kid", json!("")), Refused(NoKeyId)),
        ("J15", format!("{}.{second}.", encode(r#"{"alg":"none","kid":"e256"}"#)), not_allowed("none")),
        ("J16", header("alg", json!("HS256")), not_allowed("HS256")),
        ("J17", alg("EdDSA"), not_allowed("EdDSA")),
        (
            "J18",
            of_texts(r#"{"alg":"RS256","kid":"e256"}"#, &good_claims().to_string(), "RS256"),
            no_fit(Algorithm::Rs256, "e256"),
        ),
        ("J19", header("alg", Value::Null), not_allowed("")),
        ("J20", header("alg", json!("es256")), not_allowed("es256")),
        (
            "J21",
            of_texts(r#"{"alg":"ES256","kid":"e384"}"#, &good_claims().to_string(), "ES384"),
            no_fit(Algorithm::Es256, "e384"),
        ),
        (
            "J22",
            json!({"protected": first, "payload": second, "signature": third}).to_string(),
            Refused(NotThreeParts),
        ),
        ("J23", format!("{first}.{second}.{third}.AAAA.AAAA"), Refused(NotThreeParts)),
        ("J24", header("crit", json!(["x"])), Refused(CriticalHeader)),
        (
            "J25",
            bare(json!({
                "alg": "ES256", "kid": "e256", "jku": "https://evil.test/keys", "x5u": "https://evil.test/c", "jwk": jwk,
            })),
            Accepted,
        ),
        (
            "J26",
            of_texts(&attacker.to_string(), &good_claims().to_string(), "foreign"),
            Refused(WrongSignature),
        ),
        ("J27", claim("sub", Value::Null), Refused(NoSubject)),
        ("J28", claim("sub", json!("")), Refused(NoSubject)),
        ("J29", claim("sub", json!("admin")), Refused(WrongSubject(SpiffeIdError::WrongScheme))),
        (
            "J30",
            claim("sub", json!("spiffe://example.org/svc/")),
            Refused(WrongSubject(SpiffeIdError::TrailingSlash)),
        ),
        ("J31", claim("sub", json!("spiffe://example.org")), Accepted),
        ("J32", claim("aud", Value::Null), other_audience(&[])),
        ("J33", claim("aud", json!([])), other_audience(&[])),
        ("J34", claim("aud", json!("reports")), Accepted),
        ("J35", claim("aud", json!(["a", "reports", "b"])), Accepted),
        ("J36", claim("aud", json!(["other"])), other_audience(&["other"])),
        ("J37", claim("aud", json!(["Reports"])), other_audience(&["Reports"])),
        ("J38", claim("aud", json!(7)), Refused(WrongAudience)),
        ("J39", claim("exp", Value::Null), Refused(NoExpiry)),
        ("J40", claim("exp", json!(NOW - HOUR)), Refused(Expired)),
        ("J41", claim("exp", json!(NOW - 20)), Accepted),
        ("J42", claim("exp", json!((NOW + HOUR).to_string())), Refused(WrongDate("exp"))),
        ("J43", claim("exp", json!((NOW + HOUR) as f64 + 0.5)), Accepted),
        ("J44", claim("exp", json!("null")), Refused(NoExpiry)),
        ("J45", claim("exp", json!(-5)), Refused(Expired)),
        ("J46", claim("exp", json!(1e300)), Refused(WrongDate("exp"))),
        ("J47", claim("nbf", json!(NOW + HOUR)), Refused(NotYetValid)),
        ("J48", claim("iat", json!(NOW + HOUR)), Refused(IssuedInTheFuture)),
        (
            "J49",
            resigned(|mut signature| {
                signature[40] ^= 1;
                signature
            }),
            Refused(WrongSignature),
        ),
        ("J50", format!("{first}.{swapped}.{third}"), Refused(WrongSignature)),
        ("J51", format!("{first}.{second}."), Refused(WrongSignature)),
        ("J52", claim("sub", json!("spiffe://other.test/svc")), Refused(WrongSignature)),
        (
            "J53",
            of_texts(
                &good_header().to_string(),
                &with(good_claims(), "sub", json!("spiffe://other.test/svc")).to_string(),
                "foreign",
            ),
            Accepted,
        ),
        ("J54", claim("sub", json!("spiffe://unknown.test/svc")), Refused(NoBundle(domain("unknown.test")))),
        (
            "J55",
            of_texts(&good_header().to_string(), &good_claims().to_string(), "ES256 in DER"),
            Refused(WrongSignature),
        ),
        ("J56", resigned(|signature| vec![0; signature.len()]), Refused(WrongSignature)),
        ("J57", format!("{first}=.{second}.{third}"), Says("unable to parse JWT token: illegal base64 data")),
        (
            "J58",
            format!("{token}\n"),
            Says("unable to parse JWT token: illegal base64 data at input byte 86"),
        ),
        (
            "J59",
            format!("Bearer {token}"),
            Says("unable to parse JWT token: illegal base64 data at input byte 6"),
        ),
        (
            "J60",
            signed(
                &good_header(),
                &with(with(good_claims(), "jti", json!("one")), "role", json!({"a": [1, 2]})),
            ),
            Accepted,
        ),
        (
            "J61",
            // Three bytes that the standard alphabet writes with `+` and `/`.
            format!(
                "{}.{second}.{third}",
                STANDARD_NO_PAD.encode("{\"alg\":\"ES256\",\"k\":\"\u{fb}\u{fe}~?~?>>>???\"}")
            ),
            Says("unable to parse JWT token: illegal base64 data"),
        ),
        ("J62", "..".to_owned(), Says("unable to parse JWT token: header is not a JSON object")),
        ("J63", String::new(), Refused(NotThreeParts)),
        (
            "J64",
            format!("{}.{second}.{third}", encode("alg=ES256")),
            Says("unable to parse JWT token: header is not a JSON object"),
        ),
        (
            "J65",
            of_texts(&good_header().to_string(), "[1]", "ES256"),
            Says("unable to get claims from token: payload is not a JSON object"),
        ),
    ]
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

#[test]
fn the_known_cases_end_as_they_should() {
    let table = table();
    let names: Vec<&str> = table.iter().map(|(name, ..)| *name).collect();
    let all: Vec<String> = (1..=65).map(|number| format!("J{number:02}")).collect();
    assert_eq!(names, all);
    for (name, token, expected) in table {
        match (verify(&token), expected) {
            (Ok(svid), Accepted) => assert_eq!(svid.token(), token),
            (Err(error), Refused(expected)) => assert_eq!(error, expected, "{name}"),
            (Err(error), Says(start)) => {
                assert!(error.to_string().starts_with(start), "{name}: {error}");
            }
            (found, expected) => panic!("{name}: {found:?} is not {expected:?}"),
        }
    }
}

#[test]
fn every_allowed_algorithm_verifies_with_its_own_kind_of_key_alone() {
    let names = ["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
    for name in names {
        let svid = verify(&alg(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((svid.algorithm().name(), svid.key_id()), (name, kid_of(name)));
        assert_eq!(Algorithm::from_name(name), Some(svid.algorithm()));
        for other in names.into_iter().filter(|other| *other != name) {
            let header = json!({"alg": name, "kid": kid_of(other)}).to_string();
            let token = of_texts(&header, &good_claims().to_string(), other);
            let error = verify(&token).expect_err(name);
            let fits = kid_of(name) == kid_of(other);
            assert_eq!(fits, error == JwtSvidError::WrongSignature, "{name} and {other}: {error}");
            assert_eq!(fits, !matches!(error, JwtSvidError::KeyDoesNotFit { .. }), "{name} and {other}");
        }
    }
    let ed25519 = of_texts(r#"{"alg":"ES256","kid":"ed"}"#, &good_claims().to_string(), "ES256");
    assert!(matches!(verify(&ed25519), Err(JwtSvidError::KeyDoesNotFit { .. })));
}

#[test]
fn what_a_token_says_can_be_read() {
    let mut claims = with(good_claims(), "jti", json!("x"));
    claims = with(claims, "aud", json!(["b", "reports", "a"]));
    let token = signed(&good_header(), &claims);
    let svid = verify(&token).unwrap();
    assert_eq!(svid.id(), &SpiffeId::parse("spiffe://example.org/svc").unwrap());
    assert_eq!(svid.audience(), ["b", "reports", "a"]);
    assert_eq!(svid.issued_at(), Some(now()));
    assert_eq!(svid.expires_at(), now() + Duration::from_secs(HOUR as u64));
    assert_eq!(svid.key_id(), "e256");
    let names: Vec<&String> = svid.claims().keys().collect();
    assert_eq!(names, ["sub", "aud", "exp", "iat", "jti"], "in the order of the token");
    assert!(!format!("{svid:?}").contains(&token), "whoever reads a log must not become the workload");

    let unverified = UnverifiedJwtSvid::read(&token).unwrap();
    assert_eq!((unverified.id(), unverified.key_id()), (svid.id(), "e256"));
    assert_eq!((unverified.issued_at(), unverified.expires_at()), (svid.issued_at(), svid.expires_at()));
    assert!(!format!("{unverified:?}").contains(&token));
    let none: [&str; 0] = [];
    assert!(matches!(verify_for(&token, &none), Err(JwtSvidError::OtherAudience { .. })));
}

#[test]
fn clocks_may_differ_by_a_minute() {
    for (name, limit, fault) in [
        ("exp", NOW - 60, JwtSvidError::Expired),
        ("nbf", NOW + 60, JwtSvidError::NotYetValid),
        ("iat", NOW + 60, JwtSvidError::IssuedInTheFuture),
    ] {
        verify(&claim(name, json!(limit))).unwrap_or_else(|error| panic!("{name}: {error}"));
        let beyond = if name == "exp" { limit - 1 } else { limit + 1 };
        assert_eq!(verify(&claim(name, json!(beyond))), Err(fault), "{name}");
    }
    // What is behind the point is cut off.
    assert!(verify(&claim("nbf", json!((NOW + 60) as f64 + 0.9))).is_ok());
    assert_eq!(verify(&claim("nbf", json!(true))), Err(JwtSvidError::WrongDate("nbf")));
    assert_eq!(verify(&claim("iat", json!(-1e15))), Err(JwtSvidError::WrongDate("iat")));
    assert!(verify(&claim("iat", json!("null"))).is_ok_and(|svid| svid.issued_at().is_none()));
}

#[test]
fn ambiguous_tokens_are_refused() {
    let claims = good_claims().to_string();
    let twice =
        |header: &str, claims: &str| verify(&of_texts(header, claims, "ES256")).unwrap_err().to_string();
    let text = twice(r#"{"alg":"ES256","kid":"e256","kid":"e256"}"#, &claims);
    assert!(text.contains("duplicate key \"kid\""), "{text}");
    let text =
        twice(&good_header().to_string(), &claims.replacen('{', r#"{"sub":"spiffe://example.org/a","#, 1));
    assert!(text.contains("duplicate key \"sub\""), "{text}");
    let text = twice(&good_header().to_string(), &claims.replacen('{', r#"{"x":[{"y":1,"y":1}],"#, 1));
    assert!(text.contains("duplicate key \"y\""), "{text}");
    let text = twice(&good_header().to_string(), &format!("{claims} {{}}"));
    assert!(text.starts_with("unable to get claims from token: "), "{text}");
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let text = twice(&good_header().to_string(), &claims.replacen('{', &format!(r#"{{"x":{deep},"#), 1));
    assert!(text.contains("recursion limit"), "{text}");

    // Bits of the last character that stand for nothing: Go's reader lets them be anything.
    let token = good();
    let last = token.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let neighbour = alphabet.as_bytes()[alphabet.find(last).unwrap() ^ 1] as char;
    let changed = format!("{}{neighbour}", &token[..token.len() - 1]);
    assert!(matches!(verify(&changed), Err(JwtSvidError::NotBase64(85))), "{changed}");
}

#[test]
fn headers_and_claims_have_their_types() {
    for (token, expected) in [
        (header("alg", json!(1)), JwtSvidError::HeaderNotText("alg")),
        (header("kid", json!(["e256"])), JwtSvidError::HeaderNotText("kid")),
        (header("kid", json!("null")), JwtSvidError::NoKeyId),
        (header("typ", json!(1)), JwtSvidError::WrongType),
        (header("crit", json!([])), JwtSvidError::CriticalHeader),
        (header("b64", json!(false)), JwtSvidError::CriticalHeader),
        (claim("sub", json!(1)), JwtSvidError::ClaimNotText("sub")),
        (claim("iss", json!(1)), JwtSvidError::ClaimNotText("iss")),
        (claim("jti", json!({})), JwtSvidError::ClaimNotText("jti")),
        (claim("aud", json!(["reports", 1])), JwtSvidError::WrongAudience),
        (claim("aud", json!("null")), JwtSvidError::WrongAudience),
        ("A".repeat(65_537), JwtSvidError::TooLong(65_537)),
    ] {
        assert_eq!(verify(&token), Err(expected));
    }
}

#[test]
fn refusals_read_as_those_of_the_real_agent() {
    for (token, text) in [
        (
            header("alg", json!("HS256")),
            r#"unable to parse JWT token: unexpected signature algorithm "HS256"; expected ["ES256" "ES384" "ES512" "RS256" "RS384" "RS512" "PS256" "PS384" "PS512"]"#,
        ),
        (header("kid", Value::Null), "token header missing key id"),
        (claim("exp", json!(NOW - HOUR)), "token has expired"),
        (claim("sub", Value::Null), "token missing subject claim"),
        (claim("exp", Value::Null), "token missing exp claim"),
        (claim("sub", json!("x")), "token has in invalid subject claim: scheme is missing or invalid"),
        (claim("sub", json!("spiffe://other.org/foo")), r#"no keys found for trust domain "other.org""#),
        (claim("aud", Value::Null), r#"expected audience in ["reports"] (audience=[])"#),
        (claim("aud", json!(["A", "B"])), r#"expected audience in ["reports"] (audience=["A" "B"])"#),
        (
            header("kid", json!("whatever")),
            r#"public key "whatever" not found in trust domain "example.org""#,
        ),
        (
            claim("nbf", json!(NOW + HOUR)),
            "go-jose/go-jose/jwt: validation failed, token not valid yet (nbf)",
        ),
        (format!("{}*", good()), "unable to parse JWT token: illegal base64 data at input byte 86"),
        (
            "a.b".to_owned(),
            "unable to parse JWT token: go-jose/go-jose: compact JWS format must have three parts",
        ),
    ] {
        assert_eq!(verify(&token).unwrap_err().to_string(), text);
    }
}

proptest! {
    #[test]
    fn no_changed_token_is_believed(place in any::<prop::sample::Index>(), bit in 0_u8..7) {
        let mut token = good().into_bytes();
        let place = place.index(token.len());
        token[place] ^= 1 << bit;
        let Ok(token) = String::from_utf8(token) else { return Ok(()) };
        prop_assert!(verify(&token).is_err());
    }

    #[test]
    fn no_text_is_too_strange_to_be_refused(text in any::<String>(), claims in any::<String>()) {
        prop_assert!(UnverifiedJwtSvid::read(&text).is_err());
        let token = of_texts(&good_header().to_string(), &claims, "ES256");
        prop_assert!(verify(&token).is_err());
    }

    #[test]
    fn a_token_is_for_those_it_names(names in prop::collection::vec("[a-c]{1,2}", 1..4), wanted in prop::collection::vec("[a-c]{1,2}", 0..4)) {
        let token = claim("aud", json!(names));
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let is_meant = wanted.iter().any(|one| names.iter().any(|name| name == one));
        prop_assert_eq!(verify_for(&token, &wanted).is_ok(), is_meant);
    }

    #[test]
    fn a_token_is_valid_from_nbf_to_exp(nbf in -200_i64..200, exp in -200_i64..200) {
        let token = signed(&good_header(), &with(with(good_claims(), "nbf", json!(NOW + nbf)), "exp", json!(NOW + exp)));
        prop_assert_eq!(verify(&token).is_ok(), nbf <= 60 && exp >= -60);
    }
}
