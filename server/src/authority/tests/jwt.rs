use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_daemon::clock::unix_seconds;
use finial_daemon::keys::{Key, KeyManager, KeyType, memory::MemoryKeys};
use finial_identity::bundle::JwtAuthority;
use finial_identity::entry::{AdditionalAttributes, Entry};
use finial_identity::jwt_svid;
use finial_identity::spiffe_id::SpiffeId;
use serde_json::Value;
use tokio::sync::watch;

use super::Machine;
use super::certificates::{authorized, entry, local};
use crate::authority::issue::{ActiveJwtKey, IssueError, IssuedJwt, Issuer};
use crate::authority::profile::{MintJwtIntent, Profiles};
use crate::store::issued::{IssuedKind, IssuedRecord, ListIssued};

const MINT: &str = "/spire.api.server.svid.v1.SVID/MintJWTSVID";
const ID: &str = "spiffe://example.org/web";

struct Tokens {
    machine: Machine,
    issuer: Issuer,
    keys: watch::Sender<Option<Arc<ActiveJwtKey>>>,
}

async fn key(key_type: KeyType) -> Arc<Key> {
    MemoryKeys::new().generate("JWT-Signer-A", key_type).await.unwrap()
}

async fn start() -> Tokens {
    let machine = Machine::new().await;
    let profiles = Arc::new(Profiles::new(machine.settings.clone()));
    let (keys, jwt) = watch::channel(None);
    let (_, no_ca) = watch::channel(None);
    let issuer = Issuer::new(profiles, machine.clock.clone(), no_ca, jwt, machine.issued.clone());
    Tokens { machine, issuer, keys }
}

impl Tokens {
    fn now(&self) -> SystemTime {
        self.machine.clock.now()
    }

    /// Lets this key sign for an hour.
    fn publish(&self, key_id: &str, key: Arc<Key>) {
        let not_after = self.now() + Duration::from_secs(3600);
        self.keys.send_replace(Some(Arc::new(ActiveJwtKey { key, key_id: key_id.to_owned(), not_after })));
    }

    async fn mint(&self, audience: &[&str]) -> Result<IssuedJwt, IssueError> {
        let audience = audience.iter().map(|name| (*name).to_owned()).collect();
        let mint = MintJwtIntent { id: SpiffeId::parse(ID).unwrap(), audience, ttl: Duration::ZERO };
        self.issuer.minted_jwt(&local(MINT, self.now()), mint).await
    }

    fn verify(&self, issued: &IssuedJwt, key_id: &str, key: &Key) -> Result<(), String> {
        let authority = JwtAuthority {
            key_id: key_id.to_owned(),
            public_key: key.public_key_der().to_vec(),
            expires_at: 0,
            tainted: false,
        };
        jwt_svid::verify(&issued.token, |_| Some(std::slice::from_ref(&authority)), &["a"], self.now())
            .map(|svid| assert_eq!(svid.id().as_str(), ID))
            .map_err(|error| error.to_string())
    }

    async fn records(&self) -> Vec<IssuedRecord> {
        self.machine.issued.flush().await.unwrap();
        let rows = self.machine.store.issued().list(&ListIssued::default()).await.unwrap().items;
        rows.into_iter().map(|row| row.record).collect()
    }
}

fn decoded(issued: &IssuedJwt, part: usize) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(issued.token.split('.').nth(part).unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_type_of_key_signs_with_its_algorithm() {
    let tokens = start().await;
    for (key_type, algorithm) in
        [(KeyType::EcP256, "ES256"), (KeyType::EcP384, "ES384"), (KeyType::Rsa2048, "RS256")]
    {
        let key = key(key_type).await;
        let key_id = format!("kid-{algorithm}");
        tokens.publish(&key_id, Arc::clone(&key));
        for issued in [tokens.mint(&["a"]).await.unwrap(), tokens.mint(&["b", "a"]).await.unwrap()] {
            assert_eq!(
                decoded(&issued, 0),
                serde_json::json!({"alg": algorithm, "kid": key_id, "typ": "JWT"})
            );
            assert_eq!(tokens.verify(&issued, &key_id, &key), Ok(()));
            assert!(tokens.verify(&issued, &key_id, &*self::key(key_type).await).is_err());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_workloads_token_is_recorded_with_its_entry_and_agent() {
    let tokens = start().await;
    let key = key(KeyType::EcP256).await;
    tokens.publish("kid", Arc::clone(&key));
    let attributes = AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() };
    let who =
        authorized(Entry { jwt_svid_ttl: 60, additional_attributes: Some(attributes), ..entry(ID, 0, &[]) });
    let issued = tokens.issuer.workload_jwt(&who, vec!["a".into(), String::new()]).await.unwrap();
    assert_eq!(tokens.verify(&issued, "kid", &key), Ok(()));
    let now = unix_seconds(tokens.now());
    let claims = decoded(&issued, 1);
    let jti = claims["jti"].as_str().unwrap();
    let expected = serde_json::json!({"aud": ["a"], "exp": now + 60, "iat": now, "jti": jti, "sub": ID});
    assert_eq!(claims, expected);
    assert_eq!((issued.issued_at, issued.expires_at), (now, now + 60));
    tokens.mint(&["a"]).await.unwrap();

    let common = IssuedRecord {
        spiffe_id: ID.into(),
        authority_id: "kid".into(),
        not_before: now,
        ..IssuedRecord::default()
    };
    let workload = IssuedRecord {
        kind: IssuedKind::Jwt,
        serial: jti.to_owned(),
        entry_id: "entry-1".into(),
        entry_revision: 3,
        agent_id: "spiffe://example.org/spire/agent/join_token/1".into(),
        not_after: now + 60,
        ..common.clone()
    };
    let minted = IssuedRecord { kind: IssuedKind::MintedJwt, not_after: now + 300, ..common };
    assert_eq!(tokens.records().await, [workload, minted]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_signed_without_a_key_or_with_the_permit_for_another_call() {
    let tokens = start().await;
    let text = |result: Result<IssuedJwt, IssueError>| result.err().unwrap().to_string();
    assert_eq!(text(tokens.mint(&["a"]).await), "JWT key is not available for signing");
    let who = authorized(entry(ID, 0, &[]));
    let workload = tokens.issuer.workload_jwt(&who, vec!["a".into()]).await;
    assert_eq!(text(workload), "JWT key is not available for signing");

    tokens.publish("kid", key(KeyType::EcP256).await);
    let other = local("/spire.api.server.svid.v1.SVID/MintX509SVID", tokens.now());
    let mint =
        MintJwtIntent { id: SpiffeId::parse(ID).unwrap(), audience: vec!["a".into()], ttl: Duration::ZERO };
    assert!(text(tokens.issuer.minted_jwt(&other, mint).await).contains("which does not issue this"));
    assert_eq!(text(tokens.mint(&[]).await), "at least one audience is required");
    tokens.machine.clock.jump(3600);
    assert!(text(tokens.mint(&["a"]).await).starts_with("the JWT key ended at "));
    assert_eq!(tokens.records().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_token_ends_with_its_key() {
    let tokens = start().await;
    tokens.publish("kid", key(KeyType::EcP256).await);
    tokens.machine.clock.jump(3590);
    let issued = tokens.mint(&["a"]).await.unwrap();
    assert_eq!(issued.expires_at - issued.issued_at, 10);
}
