//! A JWT-SVID before it is signed.
//!
//! Claims and form are SPIRE's: `aud` is always a list, `iss` is there when `jwt_issuer` is set, `jti` when the entry
//! asks for it, never `nbf`. Members are sorted by name and texts escaped as Go's encoder does it.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_daemon::clock::unix_seconds;
use finial_daemon::keys::KeyType;
use finial_identity::entry::Entry;
use finial_identity::jwt_svid::MAX_TOKEN_BYTES;
use finial_identity::spiffe_id::SpiffeId;
use uuid::Uuid;

use super::{ProfileError, Profiles, positive_seconds};

/// The default of `default_jwt_svid_ttl`.
pub const DEFAULT_JWT_SVID_TTL: Duration = Duration::from_secs(300);

/// A dot and 512 bytes in base64.
const LONGEST_SIGNATURE: usize = 1 + 683;

/// A token that an administrator asks for.
#[derive(Clone, Debug)]
pub struct MintJwtIntent {
    pub id: SpiffeId,
    pub audience: Vec<String>,
    /// Zero: `default_jwt_svid_ttl`.
    pub ttl: Duration,
}

/// What a token takes from its key.
#[derive(Clone, Copy, Debug)]
pub struct JwtParent<'a> {
    pub key_type: KeyType,
    pub key_id: &'a str,
    /// Nothing that the key signs lasts longer.
    pub not_after: SystemTime,
}

/// A token as we mean it. Only this file makes one, so an ID that is foreign, reserved or without a path never reaches
/// a key.
#[derive(Clone, Debug)]
pub struct JwtIntent {
    pub(in crate::authority) algorithm: &'static str,
    pub(in crate::authority) key_id: String,
    pub(in crate::authority) id: SpiffeId,
    /// Not empty, and no text in it is.
    pub(in crate::authority) audience: Vec<String>,
    pub(in crate::authority) issuer: Option<String>,
    /// Unix seconds.
    pub(in crate::authority) issued_at: i64,
    /// Unix seconds.
    pub(in crate::authority) expires_at: i64,
    pub(in crate::authority) jti: Option<String>,
}

impl Profiles {
    /// A workload's token: ID, lifetime and whether it has a `jti` come from the entry.
    pub fn workload_jwt(
        &self,
        entry: &Entry,
        audience: Vec<String>,
        parent: JwtParent<'_>,
        now: SystemTime,
    ) -> Result<JwtIntent, ProfileError> {
        let with_jti = entry.additional_attributes.as_ref().is_some_and(|a| a.jwt_svid_include_jti);
        let ttl = positive_seconds(entry.jwt_svid_ttl).unwrap_or(self.settings.jwt_svid_ttl);
        let intent = self.jwt(&entry.spiffe_id, audience, ttl, parent, now)?;
        Ok(JwtIntent { jti: with_jti.then(new_jti), ..intent })
    }

    pub fn minted_jwt(
        &self,
        mint: MintJwtIntent,
        parent: JwtParent<'_>,
        now: SystemTime,
    ) -> Result<JwtIntent, ProfileError> {
        let ttl = if mint.ttl.is_zero() { self.settings.jwt_svid_ttl } else { mint.ttl };
        self.jwt(&mint.id, mint.audience, ttl, parent, now)
    }

    fn jwt(
        &self,
        id: &SpiffeId,
        mut audience: Vec<String>,
        ttl: Duration,
        parent: JwtParent<'_>,
        now: SystemTime,
    ) -> Result<JwtIntent, ProfileError> {
        id.workload_in(&self.settings.trust_domain).map_err(ProfileError::JwtId)?;
        audience.retain(|name| !name.is_empty());
        if audience.is_empty() {
            return Err(ProfileError::NoAudience);
        }
        let ends = unix_seconds(parent.not_after);
        let issued_at = unix_seconds(now);
        if ends <= issued_at {
            return Err(ProfileError::JwtKeyExpired(ends));
        }
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        Ok(JwtIntent {
            algorithm: algorithm(parent.key_type),
            key_id: parent.key_id.to_owned(),
            id: id.clone(),
            audience,
            issuer: self.settings.jwt_issuer.clone(),
            issued_at,
            expires_at: issued_at.saturating_add(ttl).min(ends),
            jti: None,
        })
    }
}

impl JwtIntent {
    /// What is signed (RFC 7515 section 5.1): the header and the claims.
    pub(in crate::authority) fn signing_input(&self) -> Result<String, ProfileError> {
        let mut input = URL_SAFE_NO_PAD.encode(self.header());
        input.push('.');
        URL_SAFE_NO_PAD.encode_string(self.claims(), &mut input);
        if input.len() > MAX_TOKEN_BYTES - LONGEST_SIGNATURE {
            return Err(ProfileError::LongAudience);
        }
        Ok(input)
    }

    fn header(&self) -> String {
        let mut json = String::from("{\"alg\":");
        push_text(&mut json, self.algorithm);
        json.push_str(",\"kid\":");
        push_text(&mut json, &self.key_id);
        json.push_str(",\"typ\":\"JWT\"}");
        json
    }

    fn claims(&self) -> String {
        let mut json = String::from("{\"aud\":[");
        for (index, name) in self.audience.iter().enumerate() {
            if index > 0 {
                json.push(',');
            }
            push_text(&mut json, name);
        }
        json.push_str(&format!("],\"exp\":{},\"iat\":{}", self.expires_at, self.issued_at));
        if let Some(issuer) = &self.issuer {
            json.push_str(",\"iss\":");
            push_text(&mut json, issuer);
        }
        if let Some(jti) = &self.jti {
            json.push_str(",\"jti\":");
            push_text(&mut json, jti);
        }
        json.push_str(",\"sub\":");
        push_text(&mut json, self.id.as_str());
        json.push('}');
        json
    }
}

/// The bytes of a random UUID.
fn new_jti() -> String {
    URL_SAFE_NO_PAD.encode(Uuid::new_v4().as_bytes())
}

/// RFC 7518 section 3.1.
fn algorithm(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::EcP256 => "ES256",
        KeyType::EcP384 => "ES384",
        KeyType::Rsa2048 | KeyType::Rsa4096 => "RS256",
    }
}

/// A JSON text as go-jose writes it.
fn push_text(json: &mut String, text: &str) {
    json.push('"');
    for char in text.chars() {
        match char {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..' ' => {
                json.push_str(&format!("\\u{:04x}", u32::from(char)));
            }
            char => json.push(char),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use finial_identity::entry::AdditionalAttributes;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::ProfileSettings;
    use super::*;
    use crate::authority::tests::trust_domain;

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn parent(lifetime: u64) -> JwtParent<'static> {
        JwtParent {
            key_type: KeyType::EcP256,
            key_id: "Kid",
            not_after: noon() + Duration::from_secs(lifetime),
        }
    }

    fn workload() -> SpiffeId {
        SpiffeId::parse("spiffe://example.org/web").unwrap()
    }

    fn mint(audience: &[&str], ttl: u64) -> MintJwtIntent {
        let audience = audience.iter().map(|name| (*name).to_owned()).collect();
        MintJwtIntent { id: workload(), audience, ttl: Duration::from_secs(ttl) }
    }

    fn profiles(settings: ProfileSettings) -> Profiles {
        Profiles::new(settings)
    }

    /// What SPIRE 1.15.3 signed for the same request, decoded.
    #[test]
    fn header_and_claims_are_written_as_spire_writes_them() {
        let profiles =
            profiles(ProfileSettings { jwt_issuer: Some("https://i.example".into()), ..default_settings() });
        let audience = ["a<&>\u{2028}\u{8}\"\\\n\u{7f}é", "b"];
        let intent = profiles.minted_jwt(mint(&audience, 60), parent(3600), noon()).unwrap();
        assert_eq!(intent.header(), r#"{"alg":"ES256","kid":"Kid","typ":"JWT"}"#);
        assert_eq!(
            intent.claims(),
            "{\"aud\":[\"a\\u003c\\u0026\\u003e\\u2028\\u0008\\\"\\\\\\n\u{7f}é\",\"b\"],\"exp\":1790000060,\
             \"iat\":1790000000,\"iss\":\"https://i.example\",\"sub\":\"spiffe://example.org/web\"}"
        );
    }

    fn default_settings() -> ProfileSettings {
        ProfileSettings::new(trust_domain())
    }

    #[test]
    fn lifetimes_come_from_the_entry_or_the_default_and_end_with_the_key() {
        let profiles = profiles(default_settings());
        let lifetime = |ttl: i32, key: u64| {
            let entry = Entry { spiffe_id: workload(), jwt_svid_ttl: ttl, ..entry() };
            let intent = profiles.workload_jwt(&entry, vec!["a".into()], parent(key), noon()).unwrap();
            assert_eq!(intent.jti, None);
            intent.expires_at - intent.issued_at
        };
        assert_eq!(lifetime(0, 3600), 300);
        assert_eq!(lifetime(-1, 3600), 300);
        assert_eq!(lifetime(i32::MAX, 3600), 3600);
        assert_eq!(lifetime(60, 3600), 60);
        assert_eq!(lifetime(60, 59), 59);
        let minted = |ttl| profiles.minted_jwt(mint(&["a"], ttl), parent(3600), noon()).unwrap().expires_at;
        assert_eq!((minted(0), minted(7), minted(u64::MAX)), (1_790_000_300, 1_790_000_007, 1_790_003_600));
    }

    #[test]
    fn an_entry_may_ask_for_an_id_of_each_token() {
        let profiles = profiles(default_settings());
        let attributes = AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() };
        let entry = Entry { additional_attributes: Some(attributes), ..entry() };
        let jti = || {
            let intent = profiles.workload_jwt(&entry, vec!["a".into()], parent(60), noon()).unwrap();
            let claims: Value = serde_json::from_str(&intent.claims()).unwrap();
            claims["jti"].as_str().unwrap().to_owned()
        };
        let first = jti();
        let bytes: [u8; 16] = URL_SAFE_NO_PAD.decode(&first).unwrap().try_into().unwrap();
        assert_eq!(Uuid::from_bytes(bytes).get_version_num(), 4);
        assert_ne!(first, jti());
    }

    #[test]
    fn nothing_is_meant_for_nobody_or_by_a_key_that_ended() {
        let profiles = profiles(default_settings());
        let text = |mint, key| profiles.minted_jwt(mint, parent(key), noon()).unwrap_err().to_string();
        assert_eq!(text(mint(&[], 1), 60), "at least one audience is required");
        assert_eq!(text(mint(&["", ""], 1), 60), "at least one audience is required");
        assert_eq!(
            text(mint(&["a"], 1), 0),
            "the JWT key ended at 2026-09-21T14:13:20Z; it has to be renewed first"
        );
        let long = "<".repeat(9000);
        let intent = profiles.minted_jwt(mint(&[&long], 1), parent(60), noon()).unwrap();
        let text_of_long = intent.signing_input().unwrap_err().to_string();
        assert!(text_of_long.starts_with("a token for this audience would be longer"), "{text_of_long}");
        for id in ["spiffe://other.org/web", "spiffe://example.org/spire/agent/x", "spiffe://example.org"] {
            let mint = MintJwtIntent { id: SpiffeId::parse(id).unwrap(), ..mint(&["a"], 1) };
            assert!(text(mint, 60).starts_with("invalid JWT-SVID ID: "), "{id}");
        }
    }

    fn entry() -> Entry {
        let parent = SpiffeId::parse("spiffe://example.org/agent").unwrap();
        Entry { id: "e".into(), ..Entry::plain(workload(), parent, Vec::new()) }
    }

    proptest! {
        #[test]
        fn every_audience_survives(audience in proptest::collection::vec("\\PC*|[\\x00-\\x7f]*", 1..4)) {
            let given: Vec<&str> = audience.iter().map(String::as_str).collect();
            let profiles = profiles(default_settings());
            let intent = profiles.minted_jwt(mint(&given, 60), parent(3600), noon());
            let kept: Vec<&str> = given.into_iter().filter(|name| !name.is_empty()).collect();
            prop_assert_eq!(intent.is_ok(), !kept.is_empty());
            if let Ok(intent) = intent {
                let claims: Value = serde_json::from_str(&intent.claims()).unwrap();
                prop_assert_eq!(&claims["aud"], &serde_json::json!(kept));
            }
        }
    }
}
