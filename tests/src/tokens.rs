//! JWT-SVIDs: asked for as a workload asks, judged as a stranger judges, and made by trust domains that do not exist.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use finial_daemon::clock::unix_seconds;
use finial_identity::bundle::Bundle;
use finial_identity::jwt_svid::{self, JwtSvid, JwtSvidError};
use finial_proto::spire::api::server::bundle::v1::BatchSetFederatedBundleRequest;
use finial_proto::spire::api::types;
use finial_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};
use serde_json::{Value, json};
use tonic::{Code, Request, Status, Streaming};

use crate::world::{Workload, World};

/// FetchJWTSVID.
pub async fn fetch(workload: &Workload, audience: &[&str], spiffe_id: &str) -> Result<Vec<Jwtsvid>, Status> {
    let audience = audience.iter().map(|one| (*one).to_owned()).collect();
    let request = JwtsvidRequest { audience, spiffe_id: spiffe_id.to_owned() };
    Ok(workload.client().fetch_jwtsvid(with_header(request)).await?.into_inner().svids)
}

/// The one token that the workload gets for this audience.
pub async fn fetch_one(workload: &Workload, audience: &str) -> String {
    let mut svids = fetch(workload, &[audience], "").await.unwrap();
    assert_eq!(svids.len(), 1);
    svids.remove(0).svid
}

/// ValidateJWTSVID.
pub async fn validate(
    workload: &Workload,
    audience: &str,
    token: &str,
) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
    Ok(workload.client().validate_jwtsvid(with_header(request)).await?.into_inner())
}

/// FetchJWTBundles.
pub async fn follow_bundles(workload: &Workload) -> Result<Streaming<JwtBundlesResponse>, Status> {
    Ok(workload.client().fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await?.into_inner())
}

/// The key IDs of each trust domain in what FetchJWTBundles says first.
pub async fn key_ids(workload: &Workload) -> Result<BTreeMap<String, Vec<String>>, Status> {
    let first = follow_bundles(workload).await?.message().await?;
    Ok(key_ids_of(&first.expect("a first message")))
}

/// The key IDs of each trust domain.
pub fn key_ids_of(message: &JwtBundlesResponse) -> BTreeMap<String, Vec<String>> {
    let of = |jwks: &Bytes| {
        let jwks: Value = serde_json::from_slice(jwks).unwrap();
        let keys = jwks["keys"].as_array().unwrap().iter();
        keys.map(|key| key["kid"].as_str().expect("each key has an ID").to_owned()).collect()
    };
    message.bundles.iter().map(|(name, jwks)| (name.clone(), of(jwks))).collect()
}

/// What somebody says who knows the server's bundle.
pub fn judge(world: &World, token: &str, audience: &str) -> Result<JwtSvid, JwtSvidError> {
    let bundle = world.server().own_bundle.current();
    judge_by(&bundle, token, audience, world.clock.now())
}

/// What somebody says who knows this bundle.
pub fn judge_by(
    bundle: &Bundle,
    token: &str,
    audience: &str,
    now: SystemTime,
) -> Result<JwtSvid, JwtSvidError> {
    jwt_svid::verify(token, |_| Some(bundle.jwt_authorities.as_slice()), &[audience], now)
}

/// Header and claims, unverified.
pub fn parts(token: &str) -> (Value, Value) {
    let part = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    let mut all = token.split('.');
    (part(all.next().unwrap()), part(all.next().unwrap()))
}

/// Another trust domain, of which only the keys are there.
pub struct Stranger {
    pub trust_domain: String,
    key: EcdsaKeyPair,
}

impl Stranger {
    /// The ID of its JWT key.
    pub const KEY_ID: &'static str = "strange";

    /// Nobody knows its key yet.
    pub fn new(trust_domain: &str) -> Stranger {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Stranger { trust_domain: trust_domain.to_owned(), key }
    }

    /// Gives the server the bundle of a new trust domain.
    pub async fn federated(world: &World, trust_domain: &str) -> Stranger {
        let stranger = Stranger::new(trust_domain);
        let bundle = types::Bundle {
            trust_domain: trust_domain.to_owned(),
            jwt_authorities: vec![stranger.jwt_key()],
            ..types::Bundle::default()
        };
        let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        let results = world.bundles().batch_set_federated_bundle(request).await.unwrap().into_inner().results;
        let status = results[0].status.as_ref().unwrap();
        assert_eq!(status.code, Code::Ok as i32, "{}", status.message);
        stranger
    }

    /// Its JWT key as bundles hold it.
    pub fn jwt_key(&self) -> types::JwtKey {
        let public_key =
            AsDer::<PublicKeyX509Der<'_>>::as_der(self.key.public_key()).unwrap().as_ref().to_vec();
        types::JwtKey { public_key, key_id: Stranger::KEY_ID.to_owned(), ..types::JwtKey::default() }
    }

    /// A token of this trust domain that is valid for five minutes, with more claims.
    pub fn sign(&self, path: &str, audience: &[&str], now: SystemTime, more: &[(&str, Value)]) -> String {
        let (id, now) = (format!("spiffe://{}{path}", self.trust_domain), unix_seconds(now));
        let mut claims = json!({"sub": id, "aud": audience, "iat": now, "exp": now + 300});
        for (name, value) in more {
            claims[*name] = value.clone();
        }
        let header = json!({"alg": "ES256", "kid": Stranger::KEY_ID, "typ": "JWT"});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}
