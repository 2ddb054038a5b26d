use finial_proto::spire::api::server::bundle::v1::{
    batch_delete_federated_bundle_response, batch_set_federated_bundle_response,
};
use finial_proto::spire::api::types::{JwtKey, Status};

use super::format::wire_certificate;
use super::*;

/// The CA of a SPIRE 1.15.3 server and its key for JWTs.
const CA: &str = "MIIB/zCCAaWgAwIBAgIQRAfuQgoF1P8g7SdEWHdUZjAKBggqhkjOPQQDAjBPMQswCQYDVQQGEwJVUzEPMA0GA1UEChMGU1BJRkZFMS8wLQYDVQQFEyY5MDQyODY4MjIzNzAzMDMxODc2NTE2NDAwMDk0MDEwNjY2NzExMDAeFw0yNjExMjEyMTMyNTFaFw0yNjExMjIyMTMzMDFaME8xCzAJBgNVBAYTAlVTMQ8wDQYDVQQKEwZTUElGRkUxLzAtBgNVBAUTJjkwNDI4NjgyMjM3MDMwMzE4NzY1MTY0MDAwOTQwMTA2NjY3MTEwMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAERU80AeBbp2b2InUp8S3avVAakT3y4UejhKRznBsZwUHh3msVcNmmgub60qY9aVkp6yqwEErkh3XrY9LwO3FiDaNjMGEwDgYDVR0PAQH/BAQDAgEGMA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0OBBYEFOI7GO4A2aALUUTZXz664y3a4VVtMB8GA1UdEQQYMBaGFHNwaWZmZTovL2V4YW1wbGUub3JnMAoGCCqGSM49BAMCA0gAMEUCIQD3wOEPgpDBl6ChZh31jx5738mnAqE4AcwIp0i12GuZjgIgLrD6PX63HaR4u1VIPa5Ij3V4aMjAY3b2pbW83+wWldY=";
const KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEI6eXiIiXTxLOvC1Jsm0lKygtvZGEQQ74hxR8sLsTGSVlVSANYcZ7qcdrdOTTZF7N/d+pU0JNG7N7gh3/BoVvKw==";

fn decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn bundle(trust_domain: &str) -> WireBundle {
    WireBundle {
        trust_domain: trust_domain.into(),
        x509_authorities: vec![wire_certificate(decode(CA))],
        jwt_authorities: vec![JwtKey {
            public_key: decode(KEY),
            key_id: "ZujYRsnq5ajORcXPqBdXP88RkjeLYzCi".into(),
            expires_at: 1_795_383_181,
            tainted: false,
        }],
        refresh_hint: 0,
        sequence_number: 1,
        wit_authorities: vec![],
    }
}

fn document() -> String {
    format!(
        r#"{{
    "keys": [
        {{
            "use": "x509-svid",
            "kty": "EC",
            "crv": "P-256",
            "x": "RU80AeBbp2b2InUp8S3avVAakT3y4UejhKRznBsZwUE",
            "y": "4d5rFXDZpoLm-tKmPWlZKesqsBBK5Id162PS8DtxYg0",
            "x5c": [
                "{CA}"
            ]
        }},
        {{
            "use": "jwt-svid",
            "kty": "EC",
            "kid": "ZujYRsnq5ajORcXPqBdXP88RkjeLYzCi",
            "crv": "P-256",
            "x": "I6eXiIiXTxLOvC1Jsm0lKygtvZGEQQ74hxR8sLsTGSU",
            "y": "ZVUgDWHGe6nHa3Tk02Rezf3fqVNCTRuze4Id_waFbys"
        }}
    ],
    "spiffe_sequence": 1
}}
"#
    )
}

fn pem() -> String {
    let lines: Vec<&str> = CA.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[test]
fn bundles_are_shown_as_spire_shows_them() {
    let own = bundle("example.org");
    assert_eq!(Format::Pem.show(&own), Ok(pem()));
    assert_eq!(Format::Spiffe.show(&own), Ok(document()));

    let list = |names: &[&str], format: &str| {
        let bundles = names.iter().map(|name| bundle(name)).collect();
        listed(&ListFederatedBundlesResponse { bundles, next_page_token: String::new() }, format)
    };
    let stars = "*".repeat(40);
    assert_eq!(list(&[], "foo"), Ok(Report::default()), "the format is looked at for a bundle");
    assert_eq!(
        list(&["foo.org", "bar.org"], "pem").unwrap().out,
        format!("{stars}\n* foo.org\n{stars}\n{0}\n{stars}\n* bar.org\n{stars}\n{0}", pem())
    );
    assert_eq!(list(&["foo.org"], "foo"), Err(fail("invalid format: \"foo\"")));
}

#[test]
fn files_become_bundles() {
    let (from_pem, _) = Format::Pem.read("spiffe://foo.org", format!("hello\n{}", pem()).as_bytes()).unwrap();
    assert_eq!((from_pem.trust_domain.as_str(), from_pem.x509_authorities.len()), ("spiffe://foo.org", 1));
    assert_eq!(from_pem.x509_authorities[0].asn1, decode(CA));

    let mut expected = bundle("bar.org");
    expected.jwt_authorities[0].expires_at = 0;
    assert_eq!(
        Format::Spiffe.read("spiffe://bar.org", document().as_bytes()),
        Ok((expected.clone(), String::new()))
    );

    let with_more = document().replace("\"keys\": [", "\"keys\": [{\"use\": \"x\"},");
    let (read, warning) = Format::Spiffe.read("bar.org", with_more.as_bytes()).unwrap();
    assert_eq!(read, expected);
    assert!(warning.starts_with("Warning: left out: element 0 of \"keys\": "), "{warning}");
    let (read, warning) = Format::Spiffe.read("bar.org", b"{\"keys\": []}").unwrap();
    assert!(read.x509_authorities.is_empty() && warning.is_empty(), "an empty bundle is one");
}

#[test]
fn wrong_files_are_told_in_spires_words() {
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    for (format, id, file, text) in [
        (Format::Pem, "x.org", "junk".to_owned(), "unable to parse bundle data: no PEM blocks"),
        (Format::Pem, "x.org", String::new(), "unable to parse bundle data: no PEM blocks"),
        (
            Format::Pem,
            "x.org",
            pem() + &block("PRIVATE KEY"),
            "unable to parse bundle data: expected block type \"CERTIFICATE\"; got \"PRIVATE KEY\"",
        ),
        (
            Format::Pem,
            "x.org",
            block("CERTIFICATE"),
            "unable to parse bundle data: unable to parse \"CERTIFICATE\" PEM block 1: x509: malformed certificate",
        ),
        (
            Format::Spiffe,
            "BAD x",
            document(),
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        ),
        (
            Format::Spiffe,
            "x.org",
            "junk".to_owned(),
            "unable to parse to spiffe bundle: spiffebundle: unable to parse JWKS: ",
        ),
        (
            Format::Spiffe,
            "x.org",
            r#"{"keys": [{"use": "x"}]}"#.to_owned(),
            "unable to parse to spiffe bundle: spiffebundle: no authority is understood: element 0 of \"keys\": ",
        ),
        (
            Format::Spiffe,
            "x.org",
            "{}".to_owned(),
            "unable to parse to spiffe bundle: spiffebundle: no authorities found",
        ),
    ] {
        let failure = format.read(id, file.as_bytes()).unwrap_err().to_string();
        assert!(failure.starts_with(&format!("Error: {text}")), "{failure}");
    }
    assert_eq!(
        read(Some("/nonexist")),
        Err(fail("unable to load bundle data: open /nonexist: no such file or directory"))
    );
}

#[test]
fn formats_and_modes_have_names() {
    assert_eq!(Format::parse("SPIFFE"), Ok(Format::Spiffe));
    assert_eq!(Format::parse(""), Ok(Format::Pem));
    assert_eq!(Format::parse("foo"), Err(fail("invalid format: \"foo\"")));
    assert_eq!(mode(""), Ok(Mode::Restrict));
    assert_eq!(mode("dissociate"), Ok(Mode::Dissociate));
    assert_eq!(mode("delete"), Ok(Mode::Delete));
    assert_eq!(mode("foo"), Err(fail("unsupported mode \"foo\"")));
}

#[test]
fn outcomes_are_told() {
    let status = |code: i32, message: &str| Some(Status { code, message: message.into() });
    let set = |status| {
        let result = batch_set_federated_bundle_response::Result { status, bundle: None };
        was_set(&BatchSetFederatedBundleResponse { results: vec![result] })
    };
    assert_eq!(set(status(0, "OK")), Ok(Report::said("bundle set.\n")));
    assert_eq!(set(status(3, "no")), Err(fail("failed to set federated bundle: no")));
    let delete = |status| {
        let result =
            batch_delete_federated_bundle_response::Result { status, trust_domain: "foo.org".into() };
        was_deleted(&BatchDeleteFederatedBundleResponse { results: vec![result] })
    };
    assert_eq!(delete(status(0, "OK")), Ok(Report::said("bundle deleted.\n")));
    assert_eq!(
        delete(status(5, "bundle not found")),
        Err(fail("failed to delete federated bundle \"foo.org\": bundle not found"))
    );
    for (count, text) in [(0, "0 bundles\n"), (1, "1 bundle\n"), (5, "5 bundles\n")] {
        assert_eq!(count_text(&CountBundlesResponse { count }), text);
    }
}
