//! One JSON object as Go's `encoding/json` reads it into a struct: members are found whatever their case, the last of a
//! name counts, members that nobody asks for are passed over, and null is the same as an absent member.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

/// Standard base64 with padding; Go does not look at the bits behind the last byte.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// What was sent, or a part of it.
pub struct Object {
    members: serde_json::Map<String, Value>,
}

/// Why a message cannot be read, in words for whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReadable(String);

impl Object {
    /// Reads one message.
    pub fn read(json: &[u8]) -> Result<Object, NotReadable> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(members)) => Ok(Object { members }),
            Ok(Value::Null) => Ok(Object { members: serde_json::Map::new() }),
            Ok(other) => Err(NotReadable(format!("json: cannot unmarshal {} into an object", kind(&other)))),
            Err(error) => Err(NotReadable(error.to_string())),
        }
    }

    /// Bytes; empty when absent.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, NotReadable> {
        self.member(name).map_or(Ok(Vec::new()), |value| bytes(name, value))
    }

    /// A list of bytes; empty when absent.
    pub fn list_of_bytes(&self, name: &str) -> Result<Vec<Vec<u8>>, NotReadable> {
        match self.member(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(elements)) => elements
                .iter()
                .map(|element| if element.is_null() { Ok(Vec::new()) } else { bytes(name, element) })
                .collect(),
            Some(other) => Err(wrong(name, other, "a list")),
        }
    }

    /// A text; empty when absent.
    pub fn text(&self, name: &str) -> Result<String, NotReadable> {
        match self.member(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(wrong(name, other, "a string")),
        }
    }

    /// A whole number; 0 when absent.
    pub fn number(&self, name: &str) -> Result<i64, NotReadable> {
        match self.member(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| wrong(name, value, "a whole number")),
        }
    }

    /// An object within; `None` when absent.
    pub fn object(&self, name: &str) -> Result<Option<Object>, NotReadable> {
        match self.member(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(Object { members: members.clone() })),
            Some(other) => Err(wrong(name, other, "an object")),
        }
    }

    fn member(&self, name: &str) -> Option<&Value> {
        let mut named = self.members.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next_back().map(|(_, value)| value).filter(|value| !value.is_null())
    }
}

/// Bytes as Go writes them.
pub fn encoded(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn bytes(name: &str, value: &Value) -> Result<Vec<u8>, NotReadable> {
    let Value::String(text) = value else { return Err(wrong(name, value, "base64")) };
    let decoded = if text.contains(['\r', '\n']) {
        BASE64.decode(text.replace(['\r', '\n'], ""))
    } else {
        BASE64.decode(text)
    };
    decoded.map_err(|error| NotReadable(format!("{name}: illegal base64 data: {error}")))
}

fn wrong(name: &str, found: &Value, wanted: &str) -> NotReadable {
    NotReadable(format!("json: cannot unmarshal {} into {name}, which is {wanted}", kind(found)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_as_go_finds_them() {
        let object =
            Object::read(br#" {"NONCE":"AAEC","port":22,"x":[1],"Port":null,"inner":{"R":"/w=="}} "#)
                .unwrap();
        assert_eq!(object.bytes("nonce"), Ok(vec![0, 1, 2]));
        assert_eq!(object.number("port"), Ok(0), "the last one counts");
        assert_eq!(object.object("inner").unwrap().unwrap().bytes("r"), Ok(vec![0xff]));
        assert_eq!(object.text("absent"), Ok(String::new()));
        assert!(object.object("absent").unwrap().is_none());
        assert_eq!(Object::read(b"null").unwrap().list_of_bytes("certificates"), Ok(Vec::new()));
        let list = Object::read(br#"{"certificates":["AA==",null,"AQ\n=="]}"#).unwrap();
        assert_eq!(list.list_of_bytes("certificates"), Ok(vec![vec![0], vec![], vec![1]]));
        assert_eq!(
            Object::read(br#"{"a":"AR=="}"#).unwrap().bytes("a"),
            Ok(vec![1]),
            "bits behind the last byte"
        );
    }

    #[test]
    fn what_is_something_else_is_refused() {
        for json in [&b""[..], b"[]", b"7", b"\"x\"", b"{", b"{}{}", b"{\"a\":}", b"\xff"] {
            assert!(Object::read(json).is_err(), "{json:?}");
        }
        let object = Object::read(br#"{"a":7,"b":"not base64","c":[7],"d":1.5,"e":"AQ"}"#).unwrap();
        assert!(object.bytes("a").is_err() && object.bytes("b").is_err() && object.bytes("e").is_err());
        assert!(object.list_of_bytes("c").is_err() && object.list_of_bytes("a").is_err());
        assert!(object.text("a").is_err() && object.number("d").is_err() && object.object("a").is_err());
    }
}
