//! The tables of valid and invalid SPIFFE IDs (SPIFFE-ID.md §2).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use finial_identity::spiffe_id::{MAX_ID_BYTES, SpiffeIdError};
use finial_identity::{SpiffeId, TrustDomain};

const VALID: &[(&str, &str, &str)] = &[
    ("spiffe://example.org", "example.org", ""),
    ("spiffe://example.org/a", "example.org", "/a"),
    ("spiffe://example.org/ns/staging/sa/default", "example.org", "/ns/staging/sa/default"),
    (
        "spiffe://example.org/9eebccd2-12bf-40a6-b262-65fe0487d453",
        "example.org",
        "/9eebccd2-12bf-40a6-b262-65fe0487d453",
    ),
    ("spiffe://example.org/A/b/C", "example.org", "/A/b/C"),
    ("spiffe://example.org/.hidden", "example.org", "/.hidden"),
    ("spiffe://example.org/..foo", "example.org", "/..foo"),
    ("spiffe://example.org/...", "example.org", "/..."),
    ("spiffe://example.org/a..b", "example.org", "/a..b"),
    ("spiffe://example.org/foo.", "example.org", "/foo."),
    ("spiffe://example.org/_", "example.org", "/_"),
    ("spiffe://example.org/-", "example.org", "/-"),
    ("spiffe://example.org/a_b-c.d", "example.org", "/a_b-c.d"),
    ("spiffe://example.org/0", "example.org", "/0"),
    ("spiffe://1.2.3.4/svc", "1.2.3.4", "/svc"),
    ("spiffe://trust_domain", "trust_domain", ""),
    ("spiffe://_/x", "_", "/x"),
    ("spiffe://-/x", "-", "/x"),
    ("spiffe://./x", ".", "/x"),
    ("spiffe://../x", "..", "/x"),
    ("spiffe://a..b/x", "a..b", "/x"),
    ("spiffe://example.org./x", "example.org.", "/x"),
    ("spiffe://-example-/x", "-example-", "/x"),
    ("spiffe://1/x", "1", "/x"),
    ("spiffe://td/spiffe", "td", "/spiffe"),
    ("spiffe://localhost/x", "localhost", "/x"),
    ("spiffe://999.999.999.999/x", "999.999.999.999", "/x"),
    ("spiffe://xn--bcher-kva.example/x", "xn--bcher-kva.example", "/x"),
    ("spiffe://example.org/spire/agent/join_token/abc", "example.org", "/spire/agent/join_token/abc"),
];

#[test]
fn valid_ids_are_taken_apart_and_printed_as_given() {
    for (text, trust_domain, path) in VALID {
        let id = SpiffeId::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(id.as_str(), *text);
        assert_eq!(id.to_string(), *text);
        assert_eq!(id.trust_domain_name(), *trust_domain);
        assert_eq!(id.path(), *path);
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        assert_eq!(id.trust_domain(), trust_domain);
        assert_eq!(SpiffeId::from_parts(&trust_domain, path).unwrap(), id);
        assert_eq!(TrustDomain::parse(text).unwrap(), trust_domain, "a trust domain is taken from any ID");
    }
}

#[test]
fn ids_up_to_the_limits_are_handled_whole() {
    let widest_name = format!("spiffe://{}/x", "a".repeat(255));
    assert_eq!(SpiffeId::parse(&widest_name).unwrap().trust_domain_name().len(), 255);

    let longest = format!("spiffe://example.org/{}", "p".repeat(2027));
    assert_eq!(longest.len(), MAX_ID_BYTES);
    let id = SpiffeId::parse(&longest).unwrap();
    assert_eq!(id.as_str(), longest);
    assert_eq!(SpiffeId::from_parts(&id.trust_domain(), id.path()).unwrap(), id);
}

#[test]
fn ids_beyond_the_limits_are_refused_everywhere() {
    let too_long = format!("spiffe://example.org/{}", "p".repeat(2028));
    assert_eq!(SpiffeId::parse(&too_long), Err(SpiffeIdError::TooLong));
    let example = TrustDomain::parse("example.org").unwrap();
    let path = format!("/{}", "p".repeat(2028));
    assert_eq!(SpiffeId::from_parts(&example, &path), Err(SpiffeIdError::TooLong));
    assert_eq!(example.agent_id(&path), Err(SpiffeIdError::TooLong));

    let too_wide = "a".repeat(256);
    assert_eq!(TrustDomain::parse(&too_wide), Err(SpiffeIdError::TrustDomainTooLong));
    assert_eq!(SpiffeId::parse(&format!("spiffe://{too_wide}/x")), Err(SpiffeIdError::TrustDomainTooLong));
}

#[test]
fn upper_case_in_scheme_or_trust_domain_is_refused_and_not_lowered() {
    use SpiffeIdError::{BadTrustDomainCharacter, WrongScheme};
    for (text, error) in [
        ("SPIFFE://example.org/x", WrongScheme),
        ("Spiffe://example.org/x", WrongScheme),
        ("spiffe://EXAMPLE.org/x", BadTrustDomainCharacter),
        ("spiffe://Example.Org", BadTrustDomainCharacter),
    ] {
        assert_eq!(SpiffeId::parse(text), Err(error), "{text}");
    }
    assert_eq!(TrustDomain::parse("Example.Org"), Err(BadTrustDomainCharacter));
    let [upper, lower] = ["spiffe://td/A", "spiffe://td/a"].map(|text| SpiffeId::parse(text).unwrap());
    assert_ne!(upper, lower, "paths differ by case");
}

#[test]
fn invalid_ids_are_refused_with_the_sentence_of_their_fault() {
    use SpiffeIdError as E;
    let cases: &[(&str, E)] = &[
        ("", E::Empty),
        ("spiffe", E::WrongScheme),
        ("spiffe:", E::WrongScheme),
        ("spiffe:/", E::WrongScheme),
        ("spiffe://", E::MissingTrustDomain),
        ("spiffe:///", E::MissingTrustDomain),
        ("spiffe:///path", E::MissingTrustDomain),
        ("spiffe:example.org/x", E::WrongScheme),
        ("spiffe:/example.org/x", E::WrongScheme),
        ("://example.org/x", E::WrongScheme),
        ("//example.org/x", E::WrongScheme),
        ("example.org/x", E::WrongScheme),
        ("https://example.org/x", E::WrongScheme),
        ("spiffes://example.org/x", E::WrongScheme),
        ("spiff://example.org/x", E::WrongScheme),
        ("spiffe ://example.org/x", E::WrongScheme),
        (" spiffe://example.org/x", E::WrongScheme),
        ("spiffe://example.org/x ", E::BadPathCharacter),
        ("spiffe://example.org/x\n", E::BadPathCharacter),
        ("\u{feff}spiffe://example.org/x", E::WrongScheme),
        ("spiffe://example.org/", E::TrailingSlash),
        ("spiffe://example.org//", E::EmptySegment),
        ("spiffe://example.org//x", E::EmptySegment),
        ("spiffe://example.org/x/", E::TrailingSlash),
        ("spiffe://example.org/x//y", E::EmptySegment),
        ("spiffe://example.org/.", E::DotSegment),
        ("spiffe://example.org/..", E::DotSegment),
        ("spiffe://example.org/./x", E::DotSegment),
        ("spiffe://example.org/../x", E::DotSegment),
        ("spiffe://example.org/x/.", E::DotSegment),
        ("spiffe://example.org/x/..", E::DotSegment),
        ("spiffe://example.org/x/./y", E::DotSegment),
        ("spiffe://example.org/x/../y", E::DotSegment),
        ("spiffe://example.org?q=1", E::BadTrustDomainCharacter),
        ("spiffe://example.org/x?q=1", E::BadPathCharacter),
        ("spiffe://example.org/x?", E::BadPathCharacter),
        ("spiffe://example.org#f", E::BadTrustDomainCharacter),
        ("spiffe://example.org/x#f", E::BadPathCharacter),
        ("spiffe://example.org/x#", E::BadPathCharacter),
        ("spiffe://user@example.org/x", E::BadTrustDomainCharacter),
        ("spiffe://user:pw@example.org/x", E::BadTrustDomainCharacter),
        ("spiffe://@example.org/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org:8443/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org:/x", E::BadTrustDomainCharacter),
        ("spiffe://[::1]/x", E::BadTrustDomainCharacter),
        ("spiffe://[2001:db8::1]:80/x", E::BadTrustDomainCharacter),
        ("spiffe://example%2eorg/x", E::BadTrustDomainCharacter),
        ("spiffe://%65xample.org/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org/%61", E::BadPathCharacter),
        ("spiffe://example.org/a%2Fb", E::BadPathCharacter),
        ("spiffe://example.org/%2e%2e/x", E::BadPathCharacter),
        ("spiffe://example.org/x%", E::BadPathCharacter),
        ("spiffe://exam ple.org/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org/a b", E::BadPathCharacter),
        ("spiffe://example.org/a+b", E::BadPathCharacter),
        ("spiffe://example.org/a:b", E::BadPathCharacter),
        ("spiffe://example.org/a@b", E::BadPathCharacter),
        ("spiffe://example.org/a~b", E::BadPathCharacter),
        ("spiffe://example.org/a!b", E::BadPathCharacter),
        ("spiffe://example.org/a$b", E::BadPathCharacter),
        ("spiffe://example.org/a*b", E::BadPathCharacter),
        ("spiffe://example.org/a,b;c=d", E::BadPathCharacter),
        ("spiffe://example.org/(a)", E::BadPathCharacter),
        ("spiffe://example.org/a'b", E::BadPathCharacter),
        ("spiffe://example.org/a\\b", E::BadPathCharacter),
        ("spiffe://example.org\\x", E::BadTrustDomainCharacter),
        ("spiffe:\\\\example.org\\x", E::WrongScheme),
        ("spiffe://example.org/a\"b", E::BadPathCharacter),
        ("spiffe://example.org/{a}", E::BadPathCharacter),
        ("spiffe://example.org/<a>", E::BadPathCharacter),
        ("spiffe://example.org/a|b", E::BadPathCharacter),
        ("spiffe://example.org/a^b", E::BadPathCharacter),
        ("spiffe://example.org/a`b", E::BadPathCharacter),
        ("spiffe://example.org/a[0]", E::BadPathCharacter),
        ("spiffe://example.org/a\0b", E::BadPathCharacter),
        ("spiffe://example.org\0.evil.com/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org/a\tb", E::BadPathCharacter),
        ("spiffe://example.org/\u{e9}", E::BadPathCharacter),
        ("spiffe://ex\u{e4}mple.org/x", E::BadTrustDomainCharacter),
        ("spiffe://b\u{fc}cher.example/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org/\u{2215}", E::BadPathCharacter),
        ("spiffe://example\u{3002}org/x", E::BadTrustDomainCharacter),
        ("spiffe://ex!ample.org/x", E::BadTrustDomainCharacter),
        ("spiffe://example~org/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org,other.org/x", E::BadTrustDomainCharacter),
        ("spiffe://*.example.org/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org/*", E::BadPathCharacter),
        ("spiffe://example.org/\u{1f92f}", E::BadPathCharacter),
        ("spiffe://example.org;v=1/x", E::BadTrustDomainCharacter),
        ("spiffe://$td/x", E::BadTrustDomainCharacter),
        ("spiffe://example.org/a/b/../../../c", E::DotSegment),
        ("spiffe://example.org&/x", E::BadTrustDomainCharacter),
    ];
    assert_eq!(cases.len(), 92);
    for (text, error) in cases {
        assert_eq!(SpiffeId::parse(text), Err(*error), "{text:?}");
        assert!(TrustDomain::parse(text).is_err() || !text.contains(":/"), "{text:?}");
    }
}

#[test]
fn trust_domains_are_read_from_names_and_from_ids() {
    assert_eq!(TrustDomain::parse("spiffe://example.org/any/path").unwrap().name(), "example.org");
    assert_eq!(TrustDomain::parse("").unwrap_err().to_string(), "trust domain is missing");
    assert_eq!(TrustDomain::parse("spiffe:/x").unwrap_err().to_string(), "scheme is missing or invalid");
    assert_eq!(TrustDomain::parse("example.org/x"), Err(SpiffeIdError::BadTrustDomainCharacter));
    assert_eq!(TrustDomain::parse("https://example.org"), Err(SpiffeIdError::WrongScheme));

    let example = TrustDomain::parse("example.org").unwrap();
    assert_eq!(example.id().as_str(), "spiffe://example.org");
    assert_eq!(example.server_id().as_str(), "spiffe://example.org/spire/server");
    assert_eq!(
        example.agent_id("/join_token/t").unwrap().as_str(),
        "spiffe://example.org/spire/agent/join_token/t"
    );
    assert_eq!(example.agent_id("join_token"), Err(SpiffeIdError::NoLeadingSlash));
}

#[test]
fn membership_is_refused_in_the_words_that_clients_know() {
    let example = TrustDomain::parse("example.org").unwrap();
    let text = |result: Result<(), _>| {
        result.map_err(|error: finial_identity::spiffe_id::MembershipError| error.to_string())
    };
    let id = |text: &str| SpiffeId::parse(text).unwrap();

    let foreign = id("spiffe://other.org/x");
    let refusal = Err("\"spiffe://other.org/x\" is not a member of trust domain \"example.org\"".to_owned());
    assert_eq!(text(foreign.member_of(&example)), refusal);
    assert_eq!(text(foreign.workload_in(&example)), refusal);
    assert_eq!(text(foreign.agent_in(&example)), refusal);
    assert!(!id("spiffe://example.org.evil/x").is_member_of(&example));

    let domain = id("spiffe://example.org");
    assert!(domain.is_member_of(&example));
    let no_path = |what: &str| {
        Err(format!("\"spiffe://example.org\" is not {what} trust domain \"example.org\"; path is empty"))
    };
    assert_eq!(text(domain.member_of(&example)), no_path("a member of"));
    assert_eq!(text(domain.workload_in(&example)), no_path("a workload in"));
    assert_eq!(text(domain.agent_in(&example)), no_path("an agent in"));

    for reserved in ["/spire", "/spire/server", "/spire/agent/x"] {
        let reserved = SpiffeId::from_parts(&example, reserved).unwrap();
        assert!(reserved.is_reserved());
        assert_eq!(text(reserved.member_of(&example)), Ok(()));
        assert!(
            text(reserved.workload_in(&example))
                .unwrap_err()
                .ends_with("; path is in the reserved namespace")
        );
    }
    for free in ["/spires", "/spirea/b", "/a/spire"] {
        let free = SpiffeId::from_parts(&example, free).unwrap();
        assert!(!free.is_reserved());
        assert_eq!(text(free.workload_in(&example)), Ok(()));
    }
    assert_eq!(text(id("spiffe://example.org/spire/agent/x").agent_in(&example)), Ok(()));
    assert!(
        text(id("spiffe://example.org/spire/agent").agent_in(&example))
            .unwrap_err()
            .ends_with("; path is not in the agent namespace")
    );
}
