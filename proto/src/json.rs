//! JSON as SPIRE's command line prints and reads it.
//!
//! Out: names as in the `.proto` file and sorted, fields that are not set printed with their zero value, 64-bit
//! integers as strings, bytes in base64, enum values by name. A message or `oneof` that is not set is left out.
//!
//! In: the same, with the liberties that Go's reader takes: unknown fields are skipped, letter case of names does
//! not matter, 64-bit integers may be numbers.

use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::descriptors;

/// Why a message could not be turned into JSON or back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message type belongs to another crate.
    #[error("{0} is not in the descriptor set")]
    UnknownMessage(String),
    /// The text is not JSON, or does not have the message's shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A generated type and its descriptor disagree.
    #[error("{0}")]
    Wire(#[from] prost::DecodeError),
}

/// The message as a JSON object with sorted names.
pub fn to_json<M: Message + Name>(message: &M) -> Result<Value, Error> {
    let message = DynamicMessage::decode(descriptor::<M>()?, message.encode_to_vec().as_slice())?;
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
    let mut value = message.serialize_with_options(serde_json::value::Serializer, &options)?;
    tidy(&mut value);
    Ok(value)
}

/// One line of output for one message (an object) or for several (an array), without the line feed.
///
/// Escapes what Go escapes, so that scripts which compare text see no difference.
pub fn to_line(messages: &[Value]) -> String {
    let text = match messages {
        [one] => one.to_string(),
        many => Value::from(many).to_string(),
    };
    // These five can only stand inside strings.
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line
}

/// Reads a message from JSON text, for example [`crate::spire::common::RegistrationEntries`].
pub fn from_json<M: Message + Name + Default>(text: &str) -> Result<M, Error> {
    let descriptor = descriptor::<M>()?;
    let mut value: Value = serde_json::from_str(text)?;
    rename(&descriptor, &mut value);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor, value, &options)?;
    Ok(M::decode(message.encode_to_vec().as_slice())?)
}

fn descriptor<M: Name>() -> Result<MessageDescriptor, Error> {
    let name = M::full_name();
    descriptors().get_message_by_name(&name).ok_or(Error::UnknownMessage(name))
}

/// Up to here floats hold whole numbers exactly.
const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// Sorts names, drops nulls and writes whole numbers as such, at every depth.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            let mut fields: Vec<_> =
                std::mem::take(object).into_iter().filter(|(_, v)| !v.is_null()).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            fields.iter_mut().for_each(|(_, v)| tidy(v));
            object.extend(fields);
        }
        Value::Array(items) => {
            items.retain(|v| !v.is_null());
            items.iter_mut().for_each(tidy);
        }
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= LARGEST_WHOLE);
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
        }
        _ => {}
    }
}

/// Gives each field the spelling of the `.proto` file when it differs only in letter case.
fn rename(message: &MessageDescriptor, value: &mut Value) {
    // Well-known types have a JSON form of their own.
    if message.package_name() == "google.protobuf" {
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| rename(message, item)),
        Value::Object(object) => {
            for (name, mut value) in std::mem::take(object) {
                let field = message
                    .get_field_by_name(&name)
                    .or_else(|| message.get_field_by_json_name(&name))
                    .or_else(|| message.fields().find(|f| f.name().eq_ignore_ascii_case(&name)));
                if let Some(field) = &field
                    && !field.is_map()
                    && let Kind::Message(inner) = field.kind()
                {
                    rename(&inner, &mut value);
                }
                object.insert(field.map_or(name, |f| f.name().to_owned()), value);
            }
        }
        _ => {}
    }
}
