use clap::Parser;
use finial_proto::spire::api::server::entry::v1::{
    batch_create_entry_response, batch_delete_entry_response, list_entries_request,
};
use finial_proto::spire::api::types::entry::AdditionalAttributes;
use finial_proto::spire::api::types::{Selector, Spiffeid};

use super::*;

#[derive(Parser)]
struct Program {
    #[command(subcommand)]
    verb: Verb,
}

fn parse(line: &[&str]) -> Verb {
    let line = std::iter::once("x").chain(line.iter().copied()).map(std::ffi::OsString::from);
    finial_daemon::argv::parse::<Program>(line).unwrap().verb
}

fn new_entry(line: &[&str]) -> Result<Entry, String> {
    match parse(&[&["create"], line].concat()) {
        Verb::Create(create) => {
            create.entries().map(|mut entries| entries.remove(0)).map_err(|f| f.to_string())
        }
        _ => panic!("not create"),
    }
}

fn replacement(line: &[&str]) -> Result<Entry, String> {
    match parse(&[&["update"], line].concat()) {
        Verb::Update(update) => update.fields.replacement(given(&update.entry_id)).map_err(|f| f.to_string()),
        _ => panic!("not update"),
    }
}

fn id(path: &str) -> Option<Spiffeid> {
    Some(Spiffeid { trust_domain: "example.org".into(), path: path.into() })
}

fn selector(kind: &str, value: &str) -> Selector {
    Selector { r#type: kind.into(), value: value.into() }
}

const IDS: [&str; 4] = ["-parentID", "spiffe://example.org/node", "-spiffeID", "spiffe://example.org/y"];

#[test]
fn flags_become_an_entry() {
    let entry = new_entry(&[
        "--parentID=spiffe://example.org/node",
        "-spiffeID",
        "spiffe://example.org/full",
        "-selector",
        "unix:uid:1",
        "--selector=unix:gid:2",
        "-x509SVIDTTL",
        "0x3c",
        "-jwtSVIDTTL=61",
        "-admin",
        "-downstream=true",
        "-storeSVID=false",
        "-entryExpiry",
        "4000000000",
        "-dns",
        "a.b",
        "-dns",
        "c.d",
        "-hint",
        "first",
        "-hint",
        "h",
        "-disableX509SVIDPrefetch",
        "-jwtSVIDIncludeJTI=false",
        "-entryID",
        "e-2",
        "-federatesWith",
        "foo.org",
    ]);
    assert_eq!(
        entry,
        Ok(Entry {
            id: "e-2".into(),
            spiffe_id: id("/full"),
            parent_id: id("/node"),
            selectors: vec![selector("unix", "uid:1"), selector("unix", "gid:2")],
            x509_svid_ttl: 60,
            federates_with: vec!["foo.org".into()],
            admin: true,
            downstream: true,
            expires_at: 4_000_000_000,
            dns_names: vec!["a.b".into(), "c.d".into()],
            jwt_svid_ttl: 61,
            hint: "h".into(),
            additional_attributes: Some(AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: false
            }),
            ..Entry::default()
        })
    );
    let alias = new_entry(&["-node", "-spiffeID", "spiffe://example.org/alias", "-selector", "a:b"]).unwrap();
    assert_eq!((alias.parent_id, alias.additional_attributes), (id("/spire/server"), None));
}

#[test]
fn entries_to_create_are_checked_in_spires_order_and_words() {
    let a = ["-selector", "a:b"];
    for (line, text) in [
        (vec![], "at least one selector is required"),
        (vec!["-node", "-federatesWith", "x", "-selector", "a:b"], "node entries can not federate"),
        (a.to_vec(), "a parent ID is required if the node flag is not set"),
        ([&a[..], &["-parentID", "x"]].concat(), "a SPIFFE ID is required"),
        ([&a[..], &["-parentID", "x", "-spiffeID", "y"]].concat(), "scheme is missing or invalid"),
        ([&a[..], &IDS, &["-x509SVIDTTL", "-1"]].concat(), "a positive x509-SVID TTL is required"),
        ([&a[..], &IDS, &["-jwtSVIDTTL", "-1"]].concat(), "a positive JWT-SVID TTL is required"),
        (
            [&a[..], &IDS, &["-x509SVIDTTL", "99999999999"]].concat(),
            "invalid value for X509 SVID TTL: overflow converting int(99999999999) to int32",
        ),
        (
            [&a[..], &IDS, &["-jwtSVIDTTL", "99999999999"]].concat(),
            "invalid value for JWT SVID TTL: overflow converting int(99999999999) to int32",
        ),
        ([&["-selector", "ab"], &IDS[..]].concat(), "selector \"ab\" must be formatted as type:value"),
    ] {
        assert_eq!(new_entry(&line), Err(format!("Error: {text}")), "{line:?}");
    }
}

#[test]
fn entries_to_update_are_checked_in_spires_order_and_words() {
    let e = ["-entryID", "e-1"];
    for (line, text) in [
        (vec![], "entry ID is required"),
        (e.to_vec(), "at least one selector is required"),
        ([&e[..], &["-selector", "a:b"]].concat(), "a parent ID is required"),
        ([&e[..], &["-selector", "a:b", "-parentID", "x"]].concat(), "a SPIFFE ID is required"),
        ([&e[..], &["-selector", "ab"], &IDS].concat(), "selector \"ab\" must be formatted as type:value"),
    ] {
        assert_eq!(replacement(&line), Err(format!("Error: {text}")), "{line:?}");
    }
}

#[test]
fn an_update_keeps_the_attributes_that_no_flag_names() {
    let merged = |flags: &[&str], known: Option<AdditionalAttributes>| {
        let Verb::Update(update) = parse(&[&["update"], flags].concat()) else { panic!("not update") };
        let mut entry = Entry::default();
        assert_eq!(update.fields.names_attributes(), !flags.is_empty());
        update
            .fields
            .merge_attributes(&mut entry, &Entry { additional_attributes: known, ..Entry::default() });
        entry.additional_attributes.map(|a| (a.disable_x509_svid_prefetch, a.jwt_svid_include_jti))
    };
    let known = |disable_x509_svid_prefetch, jwt_svid_include_jti| {
        Some(AdditionalAttributes { disable_x509_svid_prefetch, jwt_svid_include_jti })
    };
    assert_eq!(merged(&["-jwtSVIDIncludeJTI"], known(true, false)), Some((true, true)));
    assert_eq!(merged(&["-jwtSVIDIncludeJTI"], None), Some((false, true)));
    assert_eq!(merged(&["-disableX509SVIDPrefetch=false"], known(true, true)), Some((false, true)));
    assert_eq!(merged(&[], known(true, true)), Some((true, true)));
}

fn status(code: i32, message: &str) -> Option<Status> {
    Some(Status { code, message: message.into() })
}

#[test]
fn created_and_refused_entries_are_told_apart() {
    let result = |status: Option<Status>, entry_id: &str| batch_create_entry_response::Result {
        status,
        entry: Some(Entry { id: entry_id.into(), ..Entry::default() }),
    };
    let text = |entry_id: &str| {
        let mut text = String::new();
        show::entry(&mut text, &Entry { id: entry_id.into(), ..Entry::default() });
        text
    };
    let mut response = BatchCreateEntryResponse { results: vec![result(status(0, "OK"), "one")] };
    assert_eq!(created(&response), Report::said(text("one")));
    response.results.insert(0, result(status(6, "similar entry already exists"), ""));
    assert_eq!(
        created(&response),
        Report {
            out: text("one"),
            err: format!(
                "Failed to create the following entry (code: AlreadyExists, msg: \"similar entry already exists\"):\n{}",
                text("")
            ),
            failure: Some(fail("failed to create one or more entries")),
        }
    );
    assert_eq!(created(&BatchCreateEntryResponse::default()), Report::default());
}

#[test]
fn deleted_entries_are_summed_up() {
    let ok = |id: &str| batch_delete_entry_response::Result { status: status(0, "OK"), id: id.into() };
    let no = |id: &str| batch_delete_entry_response::Result {
        status: status(5, "entry not found"),
        id: id.into(),
    };
    let report = |results: Vec<_>| deleted(&BatchDeleteEntryResponse { results });
    let failure = Some(fail("failed to delete one or more entries"));
    assert_eq!(report(vec![]), Report::said("Deleted 0 entries successfully"));
    assert_eq!(
        report(vec![ok("d-1")]),
        Report::said("Deleted entry with ID: d-1\n\n\nDeleted 1 entries successfully")
    );
    let missing = "Failed to delete entry with ID nope (code: NotFound, msg: \"entry not found\")\n";
    assert_eq!(
        report(vec![no("nope")]),
        Report {
            out: "\n\nFailed to delete 1 entries".into(),
            err: missing.into(),
            failure: failure.clone()
        }
    );
    assert_eq!(
        report(vec![ok("d-1"), no("nope"), ok("d-2")]),
        Report {
            out: "Deleted entry with ID: d-1\nDeleted entry with ID: d-2\n\n\n\n\n\
                  Deleted 2 entries successfully, but failed to delete 1 entries"
                .into(),
            err: missing.into(),
            failure,
        }
    );
}

#[test]
fn entries_are_counted() {
    for (count, text) in [(0, "0 registration entries\n"), (1, "1 registration entry\n")] {
        assert_eq!(count_text(&CountEntriesResponse { count }), text);
    }
}

fn listing(line: &[&str]) -> Result<list_entries_request::Filter, String> {
    match parse(&[&["show"], line].concat()) {
        Verb::Show(show) => show.filter.listing().map_err(|failure| failure.to_string()),
        _ => panic!("not show"),
    }
}

#[test]
fn flags_become_a_filter() {
    let nothing = list_entries_request::Filter { by_downstream: Some(false), ..Default::default() };
    assert_eq!(listing(&["-matchSelectorsOn", "foo", "-matchFederatesWithOn", "foo"]), Ok(nothing));
    let filter = listing(&[
        "-parentID",
        "spiffe://example.org/p",
        "-spiffeID",
        "spiffe://example.org/a",
        "-downstream",
        "-hint",
        "h",
        "-selector",
        "a:b",
        "-selector",
        "c:d",
        "-matchSelectorsOn",
        "subset",
        "-federatesWith",
        "foo.org",
        "-matchFederatesWithOn",
        "exact",
    ])
    .unwrap();
    assert_eq!((filter.by_parent_id, filter.by_spiffe_id), (id("/p"), id("/a")));
    assert_eq!((filter.by_downstream, filter.by_hint.as_deref()), (Some(true), Some("h")));
    let by_selectors = filter.by_selectors.unwrap();
    assert_eq!(by_selectors.selectors, [selector("a", "b"), selector("c", "d")]);
    assert_eq!(by_selectors.r#match, 1);
    let by_federates_with = filter.by_federates_with.unwrap();
    assert_eq!((by_federates_with.trust_domains, by_federates_with.r#match), (vec!["foo.org".to_owned()], 0));
}

#[test]
fn wrong_filters_are_refused_in_spires_words() {
    for (line, text) in [
        (&["-parentID", "nope"][..], "error parsing parent ID \"nope\": scheme is missing or invalid"),
        (&["-spiffeID", "nope"][..], "error parsing SPIFFE ID \"nope\": scheme is missing or invalid"),
        (
            &["-selector", "zz"][..],
            "error parsing selectors: selector \"zz\" must be formatted as type:value",
        ),
        (&["-selector", "a:b", "-matchSelectorsOn", "foo"][..], "match behavior \"foo\" unknown"),
        (&["-federatesWith", "x", "-matchFederatesWithOn", "foo"][..], "match behavior \"foo\" unknown"),
    ] {
        assert_eq!(listing(line), Err(format!("Error: {text}")), "{line:?}");
    }
}
