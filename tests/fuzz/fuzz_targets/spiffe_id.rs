//! SPIFFE IDs and trust domain names: accepted if and only if the grammar of SPIFFE-ID.md §2 says so, and kept as written.
#![no_main]

use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{MAX_ID_BYTES, MAX_TRUST_DOMAIN_BYTES};
use finial_identity::{SpiffeId, TrustDomain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };

    let parsed = SpiffeId::parse(text);
    assert_eq!(parsed.is_ok(), is_spiffe_id(text), "{text:?}: {parsed:?}");
    if let Ok(id) = parsed {
        assert_eq!(id.to_string(), text);
        let trust_domain = id.trust_domain();
        assert_eq!(SpiffeId::from_parts(&trust_domain, id.path()).as_ref(), Ok(&id));
        assert_eq!(format!("spiffe://{}{}", trust_domain.name(), id.path()), text);
        assert!(id.is_member_of(&trust_domain));
        if id.workload_in(&trust_domain).is_ok() {
            assert!(!id.path().is_empty() && !id.is_reserved() && !id.is_agent());
        }
    }

    match TrustDomain::parse(text) {
        Ok(trust_domain) => {
            assert!(is_trust_domain(trust_domain.name()), "{text:?}");
            assert_eq!(TrustDomain::parse(trust_domain.name()).as_ref(), Ok(&trust_domain));
            assert_eq!(trust_domain.id().trust_domain(), trust_domain);
            assert!(text == trust_domain.name() || is_spiffe_id(text));
        }
        Err(_) => assert!(!is_trust_domain(text) && !is_spiffe_id(text), "{text:?}"),
    }

    if let Ok(selector) = Selector::parse(text) {
        assert_eq!(selector.to_string(), text);
    }
});

/// SPIFFE-ID.md §2, written down a second time.
fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    text.len() <= MAX_ID_BYTES && parts.next().is_some_and(is_trust_domain) && parts.all(is_segment)
}

fn is_trust_domain(name: &str) -> bool {
    (1..=MAX_TRUST_DOMAIN_BYTES).contains(&name.len())
        && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_'))
}

fn is_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.chars().all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
}
