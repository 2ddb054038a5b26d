use finial_proto::spire::api::types::Selector;

use super::*;

fn agent() -> Agent {
    let path = "/spire/agent/join_token/cdd95d58".to_owned();
    Agent {
        id: Some(Spiffeid { trust_domain: "example.org".into(), path }),
        attestation_type: "join_token".into(),
        x509svid_serial_number: "292038296885866347989842850883701273332".into(),
        x509svid_expires_at: 1_795_300_384,
        selectors: vec![],
        banned: false,
        can_reattest: false,
        agent_version: "1.15.3".into(),
    }
}

/// The time is printed in the zone of whoever runs the test.
fn block_of(serial: &str, version: &str) -> String {
    format!(
        "SPIFFE ID         : spiffe://example.org/spire/agent/join_token/cdd95d58
Attestation type  : join_token
Expiration time   : {}
{serial}
Can re-attest     : false
{version}
",
        text::local_time(1_795_300_384)
    )
}

#[test]
fn agents_are_listed_as_spire_lists_them() {
    assert_eq!(listed(&[]), "No attested agents found\n");
    let serial = "Serial number     : 292038296885866347989842850883701273332";
    let one = block_of(serial, "Agent version     : 1.15.3\n");
    assert_eq!(listed(&[agent()]), format!("Found 1 attested agent:\n\n{one}"));
    let banned = Agent { banned: true, agent_version: String::new(), ..agent() };
    let other = block_of("Banned            : true", "");
    assert_eq!(listed(&[agent(), banned]), format!("Found 2 attested agents:\n\n{one}{other}"));
}

#[test]
fn one_agent_is_shown_with_its_selectors() {
    let selector = |value: &str| Selector { r#type: "k8s".into(), value: value.into() };
    let agent = Agent { selectors: vec![selector("a"), selector("b:c")], ..agent() };
    let text = shown(&agent);
    assert!(
        text.starts_with("Found an attested agent given its SPIFFE ID\n\nSPIFFE ID         : "),
        "{text}"
    );
    assert!(
        text.ends_with(
            "Agent version     : 1.15.3\n\nSelectors         : k8s:a\nSelectors         : k8s:b:c\n"
        ),
        "{text}"
    );
}

#[test]
fn agents_are_counted() {
    for (count, text) in [(0, "0 attested agents\n"), (1, "1 attested agent\n"), (2, "2 attested agents\n")] {
        assert_eq!(count_text(&CountAgentsResponse { count }), text);
    }
}

#[test]
fn purged_agents_are_told() {
    let one = |name: &str, error: Option<&str>| Expired {
        id: format!("spiffe://example.org/spire/agent/{name}"),
        deleted: error.is_none(),
        error: error.map(str::to_owned),
    };
    assert_eq!(purged(&[], true), "No agents to purge.\n");
    assert_eq!(
        purged(&[one("a", None), one("b", None)], true),
        "Found 2 expired agents\n\n\nAgents that can be purged:
SPIFFE ID         : spiffe://example.org/spire/agent/a
SPIFFE ID         : spiffe://example.org/spire/agent/b
"
    );
    let mixed = [one("a", None), one("b", Some("rpc error: code = Internal desc = no"))];
    assert_eq!(
        purged(&mixed, false),
        "Found 2 expired agents\n
Agents purged:
SPIFFE ID         : spiffe://example.org/spire/agent/a
Agents not purged:
SPIFFE ID         : spiffe://example.org/spire/agent/b
Error             : rpc error: code = Internal desc = no
"
    );
    assert_eq!(purged(&mixed[..1], false).lines().next(), Some("Found 1 expired agent"));
    assert_eq!(
        json_line(purged_json(&mixed)).out,
        "{\"expired_agents\":[{\"agent_id\":\"spiffe://example.org/spire/agent/a\",\"deleted\":true},\
         {\"agent_id\":\"spiffe://example.org/spire/agent/b\",\"deleted\":false,\
         \"error\":\"rpc error: code = Internal desc = no\"}]}\n"
    );
    assert_eq!(json_line(purged_json(&[])).out, "{\"expired_agents\":[]}\n");
}

fn list_flags(line: &[&str]) -> List {
    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        list: List,
    }
    let line = std::iter::once("x").chain(line.iter().copied()).map(std::ffi::OsString::from);
    finial_daemon::argv::parse::<Program>(line).unwrap().list
}

#[test]
fn flags_become_a_filter() {
    let filter = list_flags(&[
        "-selector",
        "a:b",
        "-selector",
        "c:d:e",
        "-matchSelectorsOn",
        "any",
        "-attestationType",
        "join_token",
        "-banned",
        "true",
        "-canReattest=false",
        "-expiresBefore",
        "2030-01-02 15:04:05 +0000 +00",
    ])
    .filter()
    .unwrap();
    let by_selectors = filter.by_selector_match.unwrap();
    let selectors: Vec<_> =
        by_selectors.selectors.iter().map(|s| format!("{}|{}", s.r#type, s.value)).collect();
    assert_eq!((selectors.join(" ").as_str(), by_selectors.r#match), ("a|b c|d:e", 3));
    assert_eq!(filter.by_attestation_type, "join_token");
    assert_eq!((filter.by_banned, filter.by_can_reattest), (Some(true), Some(false)));
    assert_eq!(filter.by_expires_before, "2030-01-02 15:04:05 +0000 +00");

    let empty = list_flags(&["-banned", "zz", "-matchSelectorsOn", "foo"]).filter().unwrap();
    assert_eq!(
        empty,
        list_agents_request::Filter::default(),
        "a match mode without selectors is not looked at"
    );
}

#[test]
fn wrong_filters_are_refused_in_spires_words() {
    for (line, text) in [
        (
            &["-selector", "ab"][..],
            "error parsing selector \"ab\": selector \"ab\" must be formatted as type:value",
        ),
        (&["-selector", "a:b", "-matchSelectorsOn", "foo"][..], "unsupported match behavior"),
    ] {
        assert_eq!(list_flags(line).filter().unwrap_err(), fail(text));
    }
}
