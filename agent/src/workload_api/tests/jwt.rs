//! FetchJWTSVID, FetchJWTBundles and ValidateJWTSVID, with this test in the server's place.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_identity::bundle::{Bundle, JwtAuthority};
use finial_identity::{SpiffeId, TrustDomain};
use finial_proto::workload::{JwtBundlesResponse, JwtsvidResponse, ValidateJwtsvidResponse};
use prost_types::value::Kind;
use serde_json::{Value, json};

use super::*;
use crate::cache::fixture::now;
use crate::cache::{JwtFault, JwtRequest, JwtSvid};

const FOREIGN: &str = "other.test";

/// Entry IDs and audiences, as they were asked for.
type Asked = Arc<Mutex<Vec<(String, Vec<String>)>>>;

/// A key that signs tokens of one trust domain.
struct Signer {
    key: EcdsaKeyPair,
    key_id: &'static str,
}

impl Signer {
    fn new(key_id: &'static str) -> Signer {
        Signer { key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), key_id }
    }

    fn authority(&self) -> JwtAuthority {
        let public_key = AsDer::<PublicKeyX509Der<'_>>::as_der(self.key.public_key()).unwrap();
        JwtAuthority {
            key_id: self.key_id.to_owned(),
            public_key: public_key.as_ref().to_vec(),
            expires_at: 0,
            tainted: false,
        }
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

fn claims(spiffe_id: &str, audience: Value) -> Value {
    let exp = now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 300;
    json!({"sub": spiffe_id, "aud": audience, "exp": exp, "iat": exp - 300})
}

impl Running {
    /// Gives the own trust domain these JWT keys, and the other one its.
    fn set_jwt_keys(&self, own: &[&Signer], foreign: Option<&Signer>) {
        let keys = |signers: &[&Signer]| signers.iter().map(|signer| signer.authority()).collect();
        let own = Bundle { jwt_authorities: keys(own), ..(*self.authority.bundle()).clone() };
        let foreign = foreign.map(|signer| {
            let trust_domain = TrustDomain::parse(FOREIGN).unwrap();
            let jwt_authorities = keys(&[signer]);
            (trust_domain.clone(), Arc::new(Bundle { jwt_authorities, ..Bundle::new(trust_domain) }))
        });
        self.cache.set_bundles(Arc::new(own), foreign.into_iter().collect());
    }

    /// Stands in for the server: signs what is asked for, and counts it.
    fn sign_with(&self, signer: Signer) -> Asked {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (cache, log) = (self.cache.clone(), asked.clone());
        tokio::spawn(async move {
            loop {
                let request = cache.next_jwt_request().await;
                log.lock().unwrap().push((request.entry.id.clone(), request.audience.clone()));
                let svid = signed(&signer, &request);
                cache.answer_jwt(request, Ok(svid));
            }
        });
        asked
    }
}

fn signed(signer: &Signer, request: &JwtRequest) -> JwtSvid {
    let spiffe_id = request.entry.spiffe_id.clone();
    JwtSvid {
        token: signer.sign(&claims(spiffe_id.as_str(), json!(request.audience))),
        spiffe_id,
        key_id: signer.key_id.to_owned(),
        issued_at: now(),
        expires_at: now() + Duration::from_secs(300),
    }
}

async fn fetch(client: &mut Client, audience: &[&str], spiffe_id: &str) -> Result<JwtsvidResponse, Status> {
    let audience = audience.iter().map(|one| (*one).to_owned()).collect();
    let request = JwtsvidRequest { audience, spiffe_id: spiffe_id.to_owned() };
    client.fetch_jwtsvid(with_header(request)).await.map(tonic::Response::into_inner)
}

async fn validate(
    client: &mut Client,
    audience: &str,
    token: &str,
) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
    client.validate_jwtsvid(with_header(request)).await.map(tonic::Response::into_inner)
}

#[track_caller]
fn must_be<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, text: &str) {
    let status = outcome.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn a_workload_gets_a_token_for_each_of_its_identities() {
    let running = Running::start();
    let (a, b) = (running.register("a"), running.register("b"));
    let asked = running.sign_with(Signer::new("k"));
    let mut client = running.client().await;

    let both = fetch(&mut client, &["y", "x"], "").await.unwrap();
    let ids: Vec<&str> = both.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids, [a.spiffe_id.as_str(), b.spiffe_id.as_str()]);
    let one = fetch(&mut client, &["x", "y"], b.spiffe_id.as_str()).await.unwrap();
    assert_eq!(one.svids, both.svids[1..], "the order of the audience does not matter");
    let audience = vec!["y".to_owned(), "x".to_owned()];
    assert_eq!(*asked.lock().unwrap(), [("a".to_owned(), audience.clone()), ("b".to_owned(), audience)]);

    fetch(&mut client, &["", "z"], b.spiffe_id.as_str()).await.unwrap();
    assert_eq!(asked.lock().unwrap().last(), Some(&("b".to_owned(), vec!["z".to_owned()])));
}

#[tokio::test]
async fn requests_for_tokens_are_refused_in_spires_words() {
    let running = Running::start();
    let mut client = running.client().await;
    let none = "no identity issued";
    must_be(fetch(&mut client, &["x"], "").await, Code::PermissionDenied, none);
    running.register("a");
    for audience in [&[][..], &[""], &["", ""]] {
        let text = "audience must be specified";
        must_be(fetch(&mut client, audience, "").await, Code::InvalidArgument, text);
    }
    let text = "invalid requested SPIFFE ID: scheme is missing or invalid";
    must_be(fetch(&mut client, &["x"], "foo").await, Code::InvalidArgument, text);
    must_be(fetch(&mut client, &["x"], "spiffe://example.org/c").await, Code::PermissionDenied, none);
    must_be(fetch(&mut client, &["x"], "spiffe://other.test/a").await, Code::PermissionDenied, none);

    running.attestor.fails.store(true, Ordering::Relaxed);
    let text = "workload attestation failed";
    must_be(fetch(&mut client, &["x"], "").await, Code::Unavailable, text);
}

#[tokio::test]
async fn of_entries_with_one_hint_the_oldest_is_served() {
    let running = Running::start();
    for (id, hint, created_at) in [("a", "in", 5), ("b", "in", 3), ("c", "in", 3), ("d", "", 0)] {
        let new = entry(id, &format!("/{id}"), &["test:me".to_owned()]);
        let new = Entry { hint: hint.to_owned(), created_at, ..new };
        running.cache.apply(EntryUpdate { upserted: vec![Arc::new(new)], ..EntryUpdate::default() });
    }
    running.sign_with(Signer::new("k"));
    let mut client = running.client().await;
    let served = fetch(&mut client, &["x"], "").await.unwrap().svids;
    let served: Vec<(&str, &str)> =
        served.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(served, [("spiffe://example.org/b", "in"), ("spiffe://example.org/d", "")]);
    // The hint counts before the wish.
    let outcome = fetch(&mut client, &["x"], "spiffe://example.org/a").await;
    must_be(outcome, Code::PermissionDenied, "no identity issued");
}

#[tokio::test]
async fn what_the_server_refuses_is_told() {
    let running = Running::start();
    running.register("a");
    let mut client = running.client().await;
    let faults = [
        (JwtFault::Failed("why".into()), Code::Unavailable, "could not fetch JWT-SVID: why"),
        (JwtFault::NotIssued("off".into()), Code::Unimplemented, "could not fetch JWT-SVID: off"),
    ];
    for (fault, code, text) in faults {
        let server = async {
            let request = running.cache.next_jwt_request().await;
            running.cache.answer_jwt(request, Err(fault.clone()));
        };
        let (outcome, ()) = tokio::join!(fetch(&mut client, &["x"], ""), server);
        must_be(outcome, code, text);
    }
}

#[tokio::test]
async fn bundles_are_sent_again_only_when_a_jwt_key_changed() {
    let running = Running::start();
    let (first, second, foreign) = (Signer::new("1"), Signer::new("2"), Signer::new("f"));
    running.set_jwt_keys(&[&first], None);
    let open = async |client: &mut Client| client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await;
    let mut client = running.client().await;
    must_be(
        open(&mut client).await.unwrap().into_inner().message().await,
        Code::PermissionDenied,
        "no identity issued",
    );

    let mut entry = running.register("a");
    let mut stream = open(&mut client).await.unwrap().into_inner();
    assert_eq!(key_ids(&next(&mut stream).await), [("spiffe://example.org", vec!["1"])]);

    // Neither an SVID nor an X.509 authority is of interest here.
    running.register("b");
    let x509 = Authority::new(TRUST_DOMAIN, "second").bundle();
    let bundle = Bundle { jwt_authorities: vec![first.authority()], ..(*x509).clone() };
    running.cache.set_bundles(Arc::new(bundle), BTreeMap::new());
    running.set_jwt_keys(&[&first, &second], Some(&foreign));
    assert_eq!(key_ids(&next(&mut stream).await), [("spiffe://example.org", vec!["1", "2"])]);

    entry.federates_with = vec![TrustDomain::parse(FOREIGN).unwrap()];
    entry.revision_number = 1;
    running.cache.apply(EntryUpdate { upserted: vec![Arc::new(entry)], ..EntryUpdate::default() });
    let message = next(&mut stream).await;
    let both = [("spiffe://example.org", vec!["1", "2"]), ("spiffe://other.test", vec!["f"])];
    assert_eq!(key_ids(&message), both);
    let jwks: Value = serde_json::from_slice(&message.bundles["spiffe://other.test"]).unwrap();
    let key = jwks["keys"][0].as_object().unwrap();
    assert_eq!(key.keys().collect::<Vec<_>>(), ["kty", "kid", "crv", "x", "y"]);
    assert_eq!(jwks.as_object().unwrap().len(), 1, "a JWK Set and nothing of the SPIFFE format");

    running.delete("a");
    assert_eq!(key_ids(&next(&mut stream).await), both[..1]);
    running.delete("b");
    must_be(stream.message().await, Code::PermissionDenied, "no identity issued");
}

#[tokio::test]
async fn unauthenticated_verifiers_get_the_own_bundle_if_allowed() {
    let running = Running::start_with(true);
    let (own, foreign) = (Signer::new("1"), Signer::new("f"));
    running.set_jwt_keys(&[&own], Some(&foreign));
    let mut client = running.client().await;
    let mut stream = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    assert_eq!(key_ids(&next(&mut stream).await), [("spiffe://example.org", vec!["1"])]);
    must_be(fetch(&mut client, &["x"], "").await, Code::PermissionDenied, "no identity issued");
}

fn key_ids(message: &JwtBundlesResponse) -> Vec<(&str, Vec<&str>)> {
    let of = |jwks: &[u8]| {
        let text = std::str::from_utf8(jwks).unwrap();
        ["1", "2", "f"].into_iter().filter(|id| text.contains(&format!("\"kid\": \"{id}\""))).collect()
    };
    message.bundles.iter().map(|(name, jwks)| (name.as_str(), of(jwks))).collect()
}

#[tokio::test]
async fn tokens_are_judged_without_an_identity() {
    let running = Running::start();
    let own = Signer::new("1");
    running.set_jwt_keys(&[&own], None);
    let mut client = running.client().await;
    must_be(validate(&mut client, "", "x").await, Code::InvalidArgument, "audience must be specified");
    must_be(validate(&mut client, "x", "").await, Code::InvalidArgument, "svid must be specified");

    let id = "spiffe://example.org/web";
    let mut told = claims(id, json!("x"));
    told["role"] = json!({"a": [1.5, null, true, "t"]});
    let token = own.sign(&told);
    let valid = validate(&mut client, "x", &token).await.unwrap();
    assert_eq!(valid.spiffe_id, id);
    told["aud"] = json!(["x"]);
    assert_eq!(json(Kind::StructValue(valid.claims.unwrap())), told);

    let text = r#"expected audience in ["y"] (audience=["x"])"#;
    must_be(validate(&mut client, "y", &token).await, Code::InvalidArgument, text);
    let (message, _) = token.rsplit_once('.').unwrap();
    let text = "go-jose/go-jose: error in cryptographic primitive";
    must_be(validate(&mut client, "x", &format!("{message}.AAAA")).await, Code::InvalidArgument, text);
}

#[tokio::test]
async fn of_foreign_tokens_only_the_allowed_claims_are_told() {
    let running = Running::start();
    let foreign = Signer::new("f");
    running.set_jwt_keys(&[&Signer::new("1")], Some(&foreign));
    let mut all = claims("spiffe://other.test/x", json!(["x", "y"]));
    for (name, value) in [("role", json!("admin")), ("secret", json!(1))] {
        all[name] = value;
    }
    let token = foreign.sign(&all);
    let mut client = running.client().await;
    let text = r#"no keys found for trust domain "other.test""#;
    must_be(validate(&mut client, "x", &token).await, Code::InvalidArgument, text);

    let federated = Entry {
        federates_with: vec![TrustDomain::parse(FOREIGN).unwrap()],
        ..entry("a", "/a", &["test:me".to_owned()])
    };
    running.cache.apply(EntryUpdate { upserted: vec![Arc::new(federated)], ..EntryUpdate::default() });
    let valid = validate(&mut client, "x", &token).await.unwrap();
    assert_eq!(SpiffeId::parse(&valid.spiffe_id).unwrap().trust_domain_name(), FOREIGN);
    for name in ["iat", "secret"] {
        all.as_object_mut().unwrap().shift_remove(name);
    }
    assert_eq!(
        json(Kind::StructValue(valid.claims.unwrap())),
        all,
        "the agent was told to let \"role\" pass"
    );
}

/// As JSON; whole numbers as such.
fn json(kind: Kind) -> Value {
    let of = |value: prost_types::Value| json(value.kind.unwrap());
    match kind {
        Kind::NullValue(_) => Value::Null,
        Kind::NumberValue(number) if number.fract() == 0.0 => json!(number as u64),
        Kind::NumberValue(number) => json!(number),
        Kind::StringValue(text) => json!(text),
        Kind::BoolValue(value) => json!(value),
        Kind::ListValue(list) => Value::Array(list.values.into_iter().map(of).collect()),
        Kind::StructValue(members) => {
            Value::Object(members.fields.into_iter().map(|(name, value)| (name, of(value))).collect())
        }
    }
}
