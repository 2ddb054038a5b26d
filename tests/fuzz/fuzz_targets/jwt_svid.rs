//! JWT-SVIDs: nothing but what was signed is believed, and what is read is what the text says.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_identity::bundle::JwtAuthority;
use finial_identity::jwt_svid::{self, MAX_TOKEN_BYTES, UnverifiedJwtSvid};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

/// The token in `seeds/jwt_svid/verified` and the key that signed it. Its private key is not kept.
const TOKEN: &str = include_str!("../seeds/jwt_svid/verified");
const KEY: &str = include_str!("../examples/jwt_key.pem");

fuzz_target!(|data: &[u8]| {
    let Ok(token) = std::str::from_utf8(data) else { return };
    reads(token);

    // What fuzzing cannot find by itself: a well-formed token around a payload and a header of its making.
    if let Some((header, payload)) = token.split_once('\n') {
        let token = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        reads(&token);
    }
});

fn reads(token: &str) {
    let authorities = [JwtAuthority {
        key_id: "fuzz".to_owned(),
        public_key: pem_content(KEY),
        expires_at: 0,
        tainted: false,
    }];
    let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    let believed = jwt_svid::verify(token, |_| Some(&authorities), &["reports"], now);
    assert_eq!(believed.is_ok(), token == TOKEN, "{token}");

    let Ok(svid) = UnverifiedJwtSvid::read(token) else { return };
    assert!(token.len() <= MAX_TOKEN_BYTES);
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("{token}") };
    for part in [header, payload, signature] {
        let decoded = URL_SAFE_NO_PAD.decode(part).unwrap_or_else(|error| panic!("{error} in {token}"));
        assert_eq!(URL_SAFE_NO_PAD.encode(decoded), part, "one token has one text");
    }
    assert_eq!(member(header, "kid"), svid.key_id());
    assert_eq!(member(payload, "sub"), svid.id().as_str());
    let _ = (svid.issued_at(), svid.expires_at());
}

fn member(part: &str, name: &str) -> String {
    let json = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
    let members: Map<String, Value> = serde_json::from_slice(&json).unwrap_or_default();
    members.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn pem_content(pem: &str) -> Vec<u8> {
    let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(lines).unwrap_or_default()
}
