//! JWT-SVIDs: reading and verifying them (JWT-SVID.md, RFC 7515, 7518, 7519).
//!
//! What is accepted is what go-spiffe and SPIRE accept, with three things fewer: a token is taken as it stands (Go's
//! base64 skips line ends and unused bits), `typ` must be `JWT` or `JOSE` if it is there (SPIRE's agent does not look),
//! and `b64` or any `crit` is refused. Unknown headers are ignored; keys in headers are never used. A token without
//! `kid` is refused, as by every known implementation, though the specification makes it optional.

mod json;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::bundle::JwtAuthority;
use crate::bundle::jwk::{Curve, PublicKey};
use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use crate::trust_domain::TrustDomain;

/// The longest token that is read, in bytes.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// How far the clocks of issuer and verifier may differ: go-jose's value.
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The last second of the year 9999, behind which no date of a token may lie.
const LAST_DATE: f64 = 253_402_300_799.0;

/// A token that was issued to a SPIFFE ID, verified by [`verify`] or [`UnverifiedJwtSvid::verify`].
#[derive(Clone, PartialEq)]
pub struct JwtSvid {
    token: String,
    id: SpiffeId,
    key_id: String,
    algorithm: Algorithm,
    audience: Vec<String>,
    not_before: Option<i64>,
    issued_at: Option<i64>,
    expires_at: i64,
    claims: Map<String, Value>,
}

/// A token that has the form of a JWT-SVID. Who signed it, for whom and whether it is still valid is not known.
#[derive(Clone)]
pub struct UnverifiedJwtSvid {
    svid: JwtSvid,
    signed_bytes: usize,
    signature: Vec<u8>,
}

/// What may sign a JWT-SVID (JWT-SVID.md §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    Es384,
    Es512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
}

/// Why a token is not believed. The texts are those that clients of SPIRE's agent see, as far as it has them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtSvidError {
    #[error("unable to parse JWT token: it has {0} bytes; at most 65536 are read")]
    TooLong(usize),
    #[error("unable to parse JWT token: go-jose/go-jose: compact JWS format must have three parts")]
    NotThreeParts,
    #[error("unable to parse JWT token: illegal base64 data at input byte {0}")]
    NotBase64(usize),
    #[error("unable to parse JWT token: header is not a JSON object without repeated names: {0}")]
    HeaderNotJson(String),
    #[error("unable to parse JWT token: header {0:?} is not a text")]
    HeaderNotText(&'static str),
    #[error(
        "unable to parse JWT token: unexpected signature algorithm {0:?}; expected [\"ES256\" \"ES384\" \"ES512\" \"RS256\" \"RS384\" \"RS512\" \"PS256\" \"PS384\" \"PS512\"]"
    )]
    AlgorithmNotAllowed(String),
    #[error("token header type not equal to either JWT or JOSE")]
    WrongType,
    #[error("go-jose/go-jose: unsupported critical header")]
    CriticalHeader,
    #[error("token header missing key id")]
    NoKeyId,
    #[error("unable to get claims from token: payload is not a JSON object without repeated names: {0}")]
    ClaimsNotJson(String),
    #[error("unable to get claims from token: claim {0:?} is not a text")]
    ClaimNotText(&'static str),
    #[error("go-jose/go-jose/jwt: expected string or array value to unmarshal to Audience")]
    WrongAudience,
    #[error("go-jose/go-jose/jwt: expected number value to unmarshal NumericDate")]
    WrongDate(&'static str),
    #[error("token missing subject claim")]
    NoSubject,
    #[error("token missing exp claim")]
    NoExpiry,
    /// The slip of the pen is SPIRE's.
    #[error("token has in invalid subject claim: {0}")]
    WrongSubject(#[from] SpiffeIdError),
    #[error("no keys found for trust domain \"{0}\"")]
    NoBundle(TrustDomain),
    #[error("public key {key_id:?} not found in trust domain \"{trust_domain}\"")]
    NoAuthority { key_id: String, trust_domain: TrustDomain },
    #[error("go-jose/go-jose: error in cryptographic primitive: {algorithm} does not fit the key {key_id:?}")]
    KeyDoesNotFit { algorithm: Algorithm, key_id: String },
    #[error("go-jose/go-jose: error in cryptographic primitive")]
    WrongSignature,
    #[error("expected audience in {} (audience={})", quoted(.expected), quoted(.found))]
    OtherAudience { expected: Vec<String>, found: Vec<String> },
    #[error("go-jose/go-jose/jwt: validation failed, token not valid yet (nbf)")]
    NotYetValid,
    #[error("token has expired")]
    Expired,
    #[error("go-jose/go-jose/jwt: validation field, token issued in the future (iat)")]
    IssuedInTheFuture,
}

/// Reads a token in the compact serialisation and verifies it: signed by an authority of its subject's trust domain, meant
/// for one of `audience`, valid now give or take [`LEEWAY`].
///
/// `authorities_of` gives the JWT authorities of a trust domain; nothing if its bundle is not known. An empty `audience`
/// fits no token.
pub fn verify<'a, A: AsRef<str>>(
    token: &str,
    authorities_of: impl FnOnce(&TrustDomain) -> Option<&'a [JwtAuthority]>,
    audience: &[A],
    now: SystemTime,
) -> Result<JwtSvid, JwtSvidError> {
    let unverified = UnverifiedJwtSvid::read(token)?;
    let trust_domain = unverified.id().trust_domain();
    let authorities = authorities_of(&trust_domain).ok_or(JwtSvidError::NoBundle(trust_domain))?;
    unverified.verify(authorities, audience, now)
}

impl UnverifiedJwtSvid {
    /// Reads a token in the compact serialisation; nothing is trimmed. Checks headers and the form of the claims.
    pub fn read(token: &str) -> Result<UnverifiedJwtSvid, JwtSvidError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtSvidError::TooLong(token.len()));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtSvidError::NotThreeParts);
        };
        let signed_bytes = header.len() + 1 + payload.len();
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);

        let (algorithm, key_id) = read_header(&header)?;
        let claims =
            json::object(&payload).map_err(|error| JwtSvidError::ClaimsNotJson(error.to_string()))?;
        for name in ["iss", "jti"] {
            text(&claims, name).map_err(|()| JwtSvidError::ClaimNotText(name))?;
        }
        let subject = text(&claims, "sub").map_err(|()| JwtSvidError::ClaimNotText("sub"))?;
        let audience = audience_of(&claims)?;
        let not_before = date(&claims, "nbf")?;
        let issued_at = date(&claims, "iat")?;
        let expires_at = date(&claims, "exp")?;
        let subject = subject.filter(|subject| !subject.is_empty()).ok_or(JwtSvidError::NoSubject)?;
        let expires_at = expires_at.ok_or(JwtSvidError::NoExpiry)?;
        let id = SpiffeId::parse(subject)?;

        let token = token.to_owned();
        let svid =
            JwtSvid { token, id, key_id, algorithm, audience, not_before, issued_at, expires_at, claims };
        Ok(UnverifiedJwtSvid { svid, signed_bytes, signature })
    }

    /// Whom the token says it was issued to.
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// The authority that the token says it was signed by: `kid`, never empty.
    pub fn key_id(&self) -> &str {
        &self.svid.key_id
    }

    /// When the token says it was issued (`iat`).
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.svid.issued_at()
    }

    /// When the token says it expires (`exp`).
    pub fn expires_at(&self) -> SystemTime {
        self.svid.expires_at()
    }

    /// Verifies the token with the JWT authorities of *its subject's* trust domain. See [`verify`].
    pub fn verify<A: AsRef<str>>(
        self,
        authorities: &[JwtAuthority],
        audience: &[A],
        now: SystemTime,
    ) -> Result<JwtSvid, JwtSvidError> {
        let svid = &self.svid;
        let authority = authorities.iter().find(|authority| authority.key_id == svid.key_id);
        let authority = authority.ok_or_else(|| JwtSvidError::NoAuthority {
            key_id: svid.key_id.clone(),
            trust_domain: svid.id.trust_domain(),
        })?;
        let key = PublicKey::from_der(&authority.public_key).ok();
        let (key, verification) =
            key.and_then(|key| Some((key.key_bytes(), svid.algorithm.verification(&key)?))).ok_or_else(
                || JwtSvidError::KeyDoesNotFit { algorithm: svid.algorithm, key_id: svid.key_id.clone() },
            )?;
        UnparsedPublicKey::new(verification, key)
            .verify(&svid.token.as_bytes()[..self.signed_bytes], &self.signature)
            .map_err(|_| JwtSvidError::WrongSignature)?;

        if !svid.audience.iter().any(|found| audience.iter().any(|wanted| wanted.as_ref() == found)) {
            return Err(JwtSvidError::OtherAudience {
                expected: audience.iter().map(|wanted| wanted.as_ref().to_owned()).collect(),
                found: self.svid.audience,
            });
        }
        // In Go's order, so that a token with several faults is refused for the same one.
        if svid.not_before.is_some_and(|not_before| instant(not_before) > now + LEEWAY) {
            return Err(JwtSvidError::NotYetValid);
        }
        if svid.expires_at() + LEEWAY < now {
            return Err(JwtSvidError::Expired);
        }
        if svid.issued_at.is_some_and(|issued_at| instant(issued_at) > now + LEEWAY) {
            return Err(JwtSvidError::IssuedInTheFuture);
        }
        Ok(self.svid)
    }
}

impl JwtSvid {
    /// The token as it came.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whom it was issued to (`sub`).
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The authority that signed it (`kid`).
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// How it was signed (`alg`).
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whom it is meant for (`aud`), in the order of the token.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// When it was issued (`iat`), to the second.
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at.map(instant)
    }

    /// When it expires (`exp`), to the second.
    pub fn expires_at(&self) -> SystemTime {
        instant(self.expires_at)
    }

    /// All claims, in the order and with the types of the token: `aud` may be a text or a list.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

impl Algorithm {
    const ALL: [Algorithm; 9] = [
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::Es512,
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Ps256,
        Algorithm::Ps384,
        Algorithm::Ps512,
    ];

    /// The name in the header (`alg`), as in `ES256`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
            Algorithm::Es512 => "ES512",
            Algorithm::Rs256 => "RS256",
            Algorithm::Rs384 => "RS384",
            Algorithm::Rs512 => "RS512",
            Algorithm::Ps256 => "PS256",
            Algorithm::Ps384 => "PS384",
            Algorithm::Ps512 => "PS512",
        }
    }

    /// The algorithm of this name; names are case-sensitive.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// How to check signatures with a key; nothing if the key is not for this algorithm (RFC 7518 §3.3 to 3.5).
    fn verification(self, key: &PublicKey) -> Option<&'static dyn VerificationAlgorithm> {
        use Algorithm::*;
        Some(match (self, key) {
            (Es256, PublicKey::Ec { curve: Curve::P256, .. }) => &signature::ECDSA_P256_SHA256_FIXED,
            (Es384, PublicKey::Ec { curve: Curve::P384, .. }) => &signature::ECDSA_P384_SHA384_FIXED,
            (Es512, PublicKey::Ec { curve: Curve::P521, .. }) => &signature::ECDSA_P521_SHA512_FIXED,
            (Rs256, PublicKey::Rsa { .. }) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (Rs384, PublicKey::Rsa { .. }) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (Rs512, PublicKey::Rsa { .. }) => &signature::RSA_PKCS1_2048_8192_SHA512,
            (Ps256, PublicKey::Rsa { .. }) => &signature::RSA_PSS_2048_8192_SHA256,
            (Ps384, PublicKey::Rsa { .. }) => &signature::RSA_PSS_2048_8192_SHA384,
            (Ps512, PublicKey::Rsa { .. }) => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Without the token: whoever holds that is its subject.
impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("id", &self.id)
            .field("key_id", &self.key_id)
            .field("audience", &self.audience)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for UnverifiedJwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnverifiedJwtSvid").field(&self.svid).finish()
    }
}

fn decode(part: &str) -> Result<Vec<u8>, JwtSvidError> {
    use base64::DecodeError::{InvalidByte, InvalidLastSymbol, InvalidLength, InvalidPadding};
    URL_SAFE_NO_PAD.decode(part).map_err(|error| {
        JwtSvidError::NotBase64(match error {
            InvalidByte(place, _) | InvalidLastSymbol(place, _) => place,
            // One letter too many.
            InvalidLength(_) => part.len().saturating_sub(1),
            InvalidPadding => part.len(),
        })
    })
}

fn read_header(header: &[u8]) -> Result<(Algorithm, String), JwtSvidError> {
    let header = json::object(header).map_err(|error| JwtSvidError::HeaderNotJson(error.to_string()))?;
    let name = text(&header, "alg").map_err(|()| JwtSvidError::HeaderNotText("alg"))?.unwrap_or_default();
    let algorithm =
        Algorithm::from_name(name).ok_or_else(|| JwtSvidError::AlgorithmNotAllowed(name.to_owned()))?;
    let key_id = text(&header, "kid").map_err(|()| JwtSvidError::HeaderNotText("kid"))?;
    if header.get("typ").is_some_and(|kind| kind != "JWT" && kind != "JOSE") {
        return Err(JwtSvidError::WrongType);
    }
    // `b64` changes what is signed, whether or not `crit` names it (RFC 7797 §6).
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(JwtSvidError::CriticalHeader);
    }
    let key_id = key_id.filter(|key_id| !key_id.is_empty()).ok_or(JwtSvidError::NoKeyId)?;
    Ok((algorithm, key_id.to_owned()))
}

/// A member that is a text, absent or null.
fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, ()> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(()),
    }
}

fn audience_of(claims: &Map<String, Value>) -> Result<Vec<String>, JwtSvidError> {
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(several)) => several
            .iter()
            .map(|one| one.as_str().map(str::to_owned).ok_or(JwtSvidError::WrongAudience))
            .collect(),
        Some(_) => Err(JwtSvidError::WrongAudience),
    }
}

/// A NumericDate (RFC 7519 §2), in whole Unix seconds; what is behind the point is cut off, as by go-jose.
fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, JwtSvidError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .filter(|seconds| seconds.abs() <= LAST_DATE)
            .map(|seconds| Some(seconds as i64))
            .ok_or(JwtSvidError::WrongDate(name)),
    }
}

fn instant(unix_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(unix_seconds.unsigned_abs());
    let instant =
        if unix_seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    // Dates behind the year 9999 are refused on reading, and everything up to it is a SystemTime.
    instant.unwrap_or(UNIX_EPOCH)
}

/// Texts as Go prints a slice of them with `%q`.
fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", texts.join(" "))
}
