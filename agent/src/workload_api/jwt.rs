//! What the Workload API says about JWT-SVIDs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::clock::Clock;
use finial_identity::jwt_svid::{self, JwtSvid};
use finial_identity::selector::Selector;
use finial_identity::{SpiffeId, TrustDomain};
use finial_proto::workload::{
    JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;
use tonic::Status;

use super::WorkloadApi;
use super::workload::{no_identity, not_ready};
use crate::cache::{Cache, JwtFault, JwtIdentity, JwtSvid as CachedJwt, View};

/// Claims of tokens of other trust domains that are always told.
const ALWAYS_TOLD: [&str; 3] = ["sub", "exp", "aud"];

/// Identities of one caller whose tokens are asked for at a time.
const IDENTITIES_AT_ONCE: usize = 16;

/// A request for tokens, checked.
pub(super) struct Wish {
    audience: Vec<String>,
    spiffe_id: Option<SpiffeId>,
}

/// A request to judge a token, checked.
pub(super) struct Doubt {
    audience: String,
    token: String,
}

impl Wish {
    /// Empty names of audiences are left out, as the server would do.
    pub(super) fn read(request: JwtsvidRequest) -> Result<Wish, Status> {
        let mut audience = request.audience;
        audience.retain(|name| !name.is_empty());
        if audience.is_empty() {
            tracing::error!("Missing required audience parameter");
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let wanted = Some(request.spiffe_id.as_str()).filter(|id| !id.is_empty());
        let spiffe_id = wanted.map(SpiffeId::parse).transpose().map_err(|error| {
            tracing::error!(spiffe_id = request.spiffe_id, %error, "Invalid requested SPIFFE ID");
            Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
        })?;
        Ok(Wish { audience, spiffe_id })
    }

    /// A token for each identity of whoever has these selectors; all of them, or none.
    pub(super) async fn grant(
        self,
        api: &WorkloadApi,
        selectors: &[Selector],
    ) -> Result<JwtsvidResponse, Status> {
        let identities = api.cache.jwt_identities(selectors, &self.audience).ok_or_else(not_ready)?;
        let is_wanted = |identity: &JwtIdentity| {
            self.spiffe_id.as_ref().is_none_or(|wanted| *wanted == identity.entry.spiffe_id)
        };
        let wanted: Vec<JwtIdentity> = identities.into_iter().filter(is_wanted).collect();
        if wanted.is_empty() {
            return Err(no_identity());
        }
        let svids = stream::iter(wanted)
            .map(|identity| self.fetch(api, identity))
            .buffered(IDENTITIES_AT_ONCE)
            .try_collect()
            .await?;
        Ok(JwtsvidResponse { svids })
    }

    async fn fetch(&self, api: &WorkloadApi, identity: JwtIdentity) -> Result<Jwtsvid, Status> {
        let svid = fetch(&api.cache, &api.clock, &identity, &self.audience).await?;
        Ok(Jwtsvid {
            spiffe_id: identity.entry.spiffe_id.to_string(),
            svid: svid.token.clone(),
            hint: identity.entry.hint.clone(),
        })
    }
}

impl Doubt {
    pub(super) fn read(request: ValidateJwtsvidRequest) -> Result<Doubt, Status> {
        let ValidateJwtsvidRequest { audience, svid: token } = request;
        for (name, value) in [("audience", &audience), ("svid", &token)] {
            if value.is_empty() {
                tracing::error!("Missing required {name} parameter");
                return Err(Status::invalid_argument(format!("{name} must be specified")));
            }
        }
        Ok(Doubt { audience, token })
    }

    /// The judgement by the bundles that whoever has these selectors gets. An identity is not needed.
    pub(super) fn judge(
        self,
        api: &WorkloadApi,
        selectors: &[Selector],
        now: SystemTime,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        let bundles = api.cache.bundles_of(selectors).ok_or_else(not_ready)?;
        let own = bundles.first().map(|own| own.source.trust_domain.clone());
        let authorities_of = |trust_domain: &TrustDomain| {
            let bundle = bundles.iter().find(|bundle| bundle.source.trust_domain == *trust_domain)?;
            Some(bundle.source.jwt_authorities.as_slice())
        };
        let audience = [&self.audience];
        let svid = jwt_svid::verify(&self.token, authorities_of, &audience, now).map_err(|error| {
            tracing::warn!(audience = self.audience, %error, "Failed to validate JWT");
            Status::invalid_argument(error.to_string())
        })?;
        tracing::debug!(audience = self.audience, spiffe_id = %svid.id(), "Successfully validated JWT");
        let is_foreign = own.as_ref() != Some(&svid.id().trust_domain());
        let claims = claims(&svid, is_foreign.then_some(&api.allowed_foreign_jwt_claims));
        Ok(ValidateJwtsvidResponse { spiffe_id: svid.id().to_string(), claims: Some(claims) })
    }
}

/// A token for an identity that the cache gave for this audience.
pub(crate) async fn fetch(
    cache: &Cache,
    clock: &Clock,
    identity: &JwtIdentity,
    audience: &[String],
) -> Result<Arc<CachedJwt>, Status> {
    let spiffe_id = &identity.entry.spiffe_id;
    let svid = cache.fetch_jwt(identity, audience).await.map_err(|fault| {
        tracing::error!(%spiffe_id, error = %fault, "Could not fetch JWT-SVID");
        let text = format!("could not fetch JWT-SVID: {fault}");
        match fault {
            JwtFault::NotIssued(_) => Status::unimplemented(text),
            JwtFault::Failed(_) | JwtFault::Stopping => Status::unavailable(text),
        }
    })?;
    let ttl = svid.expires_at.duration_since(clock.now()).unwrap_or_default();
    tracing::debug!(%spiffe_id, ttl = ttl.as_secs_f64(), "Fetched JWT SVID");
    Ok(svid)
}

/// All that a workload gets with FetchJWTBundles: JWK Sets by trust domain ID.
pub(super) fn bundles(view: &View) -> JwtBundlesResponse {
    let known = view.bundle.iter().chain(&view.federated);
    JwtBundlesResponse { bundles: known.map(|bundle| (bundle.id.clone(), bundle.jwks.clone())).collect() }
}

/// The claims, `aud` always as a list. `allowed`: of a token of another trust domain only these are told, and those that
/// every token has.
fn claims(svid: &JwtSvid, allowed: Option<&Arc<BTreeSet<String>>>) -> Struct {
    let is_told =
        |name: &str| allowed.is_none_or(|allowed| ALWAYS_TOLD.contains(&name) || allowed.contains(name));
    let told = svid.claims().iter().filter(|(name, _)| is_told(name));
    let fields = told.map(|(name, value)| {
        let value = match value {
            Json::String(one) if name == "aud" => Json::Array(vec![Json::String(one.clone())]),
            other => other.clone(),
        };
        (name.clone(), protobuf(value))
    });
    Struct { fields: fields.collect() }
}

fn protobuf(value: Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // The wire knows no other numbers. Those that a float cannot hold were refused on reading.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(protobuf).collect() })
        }
        Json::Object(members) => Kind::StructValue(Struct {
            fields: members.into_iter().map(|(name, value)| (name, protobuf(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}
