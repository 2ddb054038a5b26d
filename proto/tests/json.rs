//! JSON as the command line shows it and as `entry create -data` reads it.

use finial_proto::{
    json::{Error, from_json, to_json, to_line},
    spire::{
        api::{
            server::{agent::v1::CountAgentsResponse, trustdomain::v1::ListFederationRelationshipsResponse},
            types,
        },
        common::{RegistrationEntries, registration_entry::AdditionalAttributes},
    },
    workload,
};
use serde_json::json;

#[test]
fn fields_that_are_not_set_are_printed_unless_they_are_messages() {
    assert_eq!(
        to_line(&[to_json(&types::Entry::default()).unwrap()]),
        r#"{"admin":false,"created_at":"0","dns_names":[],"downstream":false,"expires_at":"0","federates_with":[],"hint":"","id":"","jwt_svid_ttl":0,"revision_number":"0","selectors":[],"store_svid":false,"x509_svid_ttl":0}"#
    );
}

#[test]
fn integers_bytes_and_enums_take_their_protojson_form() {
    let bundle = types::Bundle {
        trust_domain: "example.org".into(),
        x509_authorities: vec![types::X509Certificate { asn1: vec![0xfb, 0xff], tainted: true }],
        sequence_number: u64::MAX,
        refresh_hint: -1,
        ..Default::default()
    };
    assert_eq!(
        to_json(&bundle).unwrap(),
        json!({
            "trust_domain": "example.org",
            "x509_authorities": [{"asn1": "+/8=", "tainted": true}],
            "jwt_authorities": [],
            "wit_authorities": [],
            "sequence_number": "18446744073709551615",
            "refresh_hint": "-1",
        })
    );
    let logger = types::Logger {
        current_level: types::LogLevel::Debug.into(),
        launch_level: types::LogLevel::Info.into(),
    };
    assert_eq!(to_json(&logger).unwrap(), json!({"current_level": "DEBUG", "launch_level": "INFO"}));
}

#[test]
fn a_oneof_shows_only_the_chosen_arm() {
    let mut relationship = types::FederationRelationship {
        trust_domain: "example.org".into(),
        bundle_endpoint_url: "https://example.org/bundle".into(),
        ..Default::default()
    };
    let list = |r: &types::FederationRelationship| ListFederationRelationshipsResponse {
        federation_relationships: vec![r.clone()],
        next_page_token: String::new(),
    };
    assert_eq!(
        to_line(&[to_json(&list(&relationship)).unwrap()]),
        r#"{"federation_relationships":[{"bundle_endpoint_url":"https://example.org/bundle","trust_domain":"example.org"}],"next_page_token":""}"#
    );
    relationship.bundle_endpoint_profile = Some(
        types::federation_relationship::BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile::default()),
    );
    assert_eq!(
        to_line(&[to_json(&relationship).unwrap()]),
        r#"{"bundle_endpoint_url":"https://example.org/bundle","https_web":{},"trust_domain":"example.org"}"#
    );
}

#[test]
fn lines_are_those_of_go() {
    let count = to_json(&CountAgentsResponse { count: 42 }).unwrap();
    assert_eq!(to_line(std::slice::from_ref(&count)), r#"{"count":42}"#);
    assert_eq!(to_line(&[count.clone(), count]), r#"[{"count":42},{"count":42}]"#);
    let selector = types::Selector { r#type: "a<b>".into(), value: "c&d\u{2028}\"".into() };
    assert_eq!(
        to_line(&[to_json(&selector).unwrap()]),
        r#"{"type":"a\u003cb\u003e","value":"c\u0026d\u2028\""}"#
    );
}

#[test]
fn what_was_written_can_be_read() {
    let mut entry = types::Entry {
        id: "e".into(),
        spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".into(), path: "/w".into() }),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
        x509_svid_ttl: 60,
        expires_at: i64::MAX,
        ..Default::default()
    };
    assert_eq!(from_json::<types::Entry>(&to_json(&entry).unwrap().to_string()).unwrap(), entry);
    entry.additional_attributes = Some(Default::default());
    assert_eq!(from_json::<types::Entry>(&to_json(&entry).unwrap().to_string()).unwrap(), entry);

    let mut reply = workload::X509BundlesResponse::default();
    reply.bundles.insert("spiffe://example.org".into(), vec![1, 2, 3].into());
    assert_eq!(
        from_json::<workload::X509BundlesResponse>(&to_json(&reply).unwrap().to_string()).unwrap(),
        reply
    );
}

#[test]
fn entry_data_is_read_as_go_reads_it() {
    let entries: RegistrationEntries = from_json(
        r#"{"entries": [{
            "selectors": [{"type": "unix", "Value": "uid:1000"}],
            "SPIFFE_ID": "spiffe://example.org/w",
            "parent_id": "spiffe://example.org/n",
            "x509_svid_ttl": 200,
            "entryExpiry": 1552410266,
            "entryexpiry_is_not_a_field": [1],
            "dns_names": null,
            "federates_with": ["spiffe://other.org"],
            "admin": true,
            "additional_attributes": {"disable_x509_svid_prefetch": true}
        }]}"#,
    )
    .unwrap();
    let [entry] = entries.entries.as_slice() else { panic!("one entry") };
    assert_eq!(entry.spiffe_id, "spiffe://example.org/w");
    assert_eq!(entry.selectors[0].value, "uid:1000");
    assert_eq!((entry.x509_svid_ttl, entry.entry_expiry, entry.admin), (200, 1_552_410_266, true));
    assert_eq!(entry.federates_with, ["spiffe://other.org"]);
    assert!(entry.dns_names.is_empty());
    assert_eq!(
        entry.additional_attributes,
        Some(AdditionalAttributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: false })
    );
}

#[test]
fn bad_text_is_an_error() {
    for text in ["", "[]", "null", "{", r#"{"entries": 1}"#, r#"{"entries": [{"admin": "yes"}]}"#] {
        assert!(matches!(from_json::<RegistrationEntries>(text), Err(Error::Json(_))), "{text}");
    }
}
