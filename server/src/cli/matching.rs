//! Filters that several nouns share: selectors and how they match.

use finial_daemon::argv::text;
use finial_proto::spire::api::types::selector_match::MatchBehavior;
use finial_proto::spire::api::types::{Selector, Spiffeid};

use super::output::{Failure, fail};
use finial_identity::{SpiffeId, SpiffeIdError};

/// `type:value`; the value may hold colons.
pub fn selector(given: &str) -> Result<Selector, Failure> {
    match given.split_once(':') {
        Some((kind, value)) => Ok(Selector { r#type: kind.to_owned(), value: value.to_owned() }),
        None => Err(fail(format!("selector \"{given}\" must be formatted as type:value"))),
    }
}

/// The name of a match mode.
pub fn behavior(given: &str) -> Option<MatchBehavior> {
    match given {
        "exact" => Some(MatchBehavior::MatchExact),
        "any" => Some(MatchBehavior::MatchAny),
        "superset" => Some(MatchBehavior::MatchSuperset),
        "subset" => Some(MatchBehavior::MatchSubset),
        _ => None,
    }
}

/// What entries say to a match mode that is none.
pub fn unknown_behavior(given: &str) -> Failure {
    fail(format!("match behavior {} unknown", text::quote(given)))
}

/// A SPIFFE ID for the wire.
pub fn id(given: &str) -> Result<Spiffeid, SpiffeIdError> {
    let id = SpiffeId::parse(given)?;
    Ok(Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() })
}

/// A text flag that is not empty.
pub fn given(flag: &Option<String>) -> Option<&str> {
    flag.as_deref().filter(|text| !text.is_empty())
}

/// The wire's 32 bits for a number flag.
pub fn int32(what: &str, value: i64) -> Result<i32, Failure> {
    i32::try_from(value)
        .map_err(|_| fail(format!("invalid value for {what}: overflow converting int({value}) to int32")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_split_at_the_first_colon() {
        let selector_of = |text| selector(text).map(|selector| (selector.r#type, selector.value));
        assert_eq!(selector_of("unix:uid:1"), Ok(("unix".into(), "uid:1".into())));
        assert_eq!(selector_of("a:"), Ok(("a".into(), String::new())));
        assert_eq!(
            selector_of("ab").unwrap_err().to_string(),
            "Error: selector \"ab\" must be formatted as type:value"
        );
    }

    #[test]
    fn numbers_must_fit_the_wire() {
        assert_eq!(int32("TTL", -5), Ok(-5));
        assert_eq!(
            int32("TTL", 99_999_999_999).unwrap_err().to_string(),
            "Error: invalid value for TTL: overflow converting int(99999999999) to int32"
        );
    }
}
