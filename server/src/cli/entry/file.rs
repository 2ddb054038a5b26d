//! Entries and IDs out of JSON files.

use std::io::Read;
use std::path::Path;

use finial_daemon::argv::text;
use finial_identity::TrustDomain;
use finial_proto::json;
use finial_proto::spire::api::server::entry::v1::BatchDeleteEntryRequest;
use finial_proto::spire::api::types::entry::AdditionalAttributes;
use finial_proto::spire::api::types::{Entry, Selector};
use finial_proto::spire::common::{RegistrationEntries, RegistrationEntry};
use prost::{Message, Name};

use crate::cli::matching::id;
use crate::cli::output::{Failure, fail};

/// `{"entries": [{"spiffe_id": "spiffe://…", …}]}`; the path `-` is standard input.
pub fn entries(path: &str) -> Result<Vec<Entry>, Failure> {
    let file: RegistrationEntries = parse(path, &read(path)?)?;
    file.entries.into_iter().map(entry).collect()
}

/// `{"ids": ["…"]}`; the path `-` is standard input.
pub fn ids(path: &str) -> Result<Vec<String>, Failure> {
    parse::<BatchDeleteEntryRequest>(path, &read(path)?).map(|request| request.ids)
}

fn read(path: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match path {
        "-" => std::io::stdin().read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|error| fail(text::file_error("open", Path::new(path), &error)))?;
    Ok(text)
}

fn parse<M: Message + Name + Default>(path: &str, text: &str) -> Result<M, Failure> {
    json::from_json(text).map_err(|error| match error {
        json::Error::Json(error) if error.is_eof() => fail("unexpected end of JSON input"),
        error => fail(format!("cannot read {path}: {error}")),
    })
}

fn entry(file: RegistrationEntry) -> Result<Entry, Failure> {
    let spiffe_id = id(&file.spiffe_id).map_err(|error| fail(format!("invalid SPIFFE ID: {error}")))?;
    let parent_id = id(&file.parent_id).map_err(|error| fail(format!("invalid parent ID: {error}")))?;
    let federates_with = file.federates_with.iter().map(|name| {
        let trust_domain = TrustDomain::parse(name);
        let trust_domain =
            trust_domain.map_err(|error| fail(format!("invalid federated trust domain: {error}")))?;
        Ok(trust_domain.name().to_owned())
    });
    let selectors = file.selectors.into_iter();
    let attributes = file.additional_attributes.map(|attributes| AdditionalAttributes {
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
    });
    Ok(Entry {
        id: file.entry_id,
        spiffe_id: Some(spiffe_id),
        parent_id: Some(parent_id),
        federates_with: federates_with.collect::<Result<_, Failure>>()?,
        selectors: selectors.map(|one| Selector { r#type: one.r#type, value: one.value }).collect(),
        x509_svid_ttl: file.x509_svid_ttl,
        admin: file.admin,
        downstream: file.downstream,
        expires_at: file.entry_expiry,
        dns_names: file.dns_names,
        revision_number: file.revision_number,
        store_svid: file.store_svid,
        jwt_svid_ttl: file.jwt_svid_ttl,
        hint: file.hint,
        created_at: file.created_at,
        additional_attributes: attributes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Result<Vec<Entry>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entries.json");
        std::fs::write(&path, text).unwrap();
        entries(path.to_str().unwrap()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn reads_entries_with_all_fields() {
        let read = from(
            r#"{"entries": [{
                "entry_id": "e", "spiffe_id": "spiffe://example.org/a", "parent_id": "spiffe://example.org/p",
                "selectors": [{"type": "unix", "value": "uid:1"}], "x509_svid_ttl": 1, "jwt_svid_ttl": 2,
                "federates_with": ["spiffe://fed.org", "other.org"], "admin": true, "downstream": true,
                "entryExpiry": 4000000000, "dns_names": ["a.b"], "store_svid": true, "hint": "h",
                "additional_attributes": {"jwt_svid_include_jti": true}, "not_known": 1
            }]}"#,
        );
        let spiffe_id = |path: &str| Some(id(&format!("spiffe://example.org{path}")).unwrap());
        let attributes =
            AdditionalAttributes { disable_x509_svid_prefetch: false, jwt_svid_include_jti: true };
        assert_eq!(
            read,
            Ok(vec![Entry {
                id: "e".into(),
                spiffe_id: spiffe_id("/a"),
                parent_id: spiffe_id("/p"),
                selectors: vec![Selector { r#type: "unix".into(), value: "uid:1".into() }],
                x509_svid_ttl: 1,
                jwt_svid_ttl: 2,
                federates_with: vec!["fed.org".into(), "other.org".into()],
                admin: true,
                downstream: true,
                expires_at: 4_000_000_000,
                dns_names: vec!["a.b".into()],
                store_svid: true,
                hint: "h".into(),
                additional_attributes: Some(attributes),
                ..Entry::default()
            }])
        );
        assert_eq!(from("{}"), Ok(vec![]));
    }

    #[test]
    fn wrong_files_are_told() {
        let one = |fields: &str| from(&format!(r#"{{"entries": [{{{fields}}}]}}"#)).unwrap_err();
        assert_eq!(one(r#""spiffe_id": "nope""#), "Error: invalid SPIFFE ID: scheme is missing or invalid");
        assert_eq!(
            one(r#""spiffe_id": "spiffe://example.org/a", "parent_id": "x""#),
            "Error: invalid parent ID: scheme is missing or invalid"
        );
        assert_eq!(
            one(
                r#""spiffe_id": "spiffe://example.org/a", "parent_id": "spiffe://example.org/b", "federates_with": ["UP"]"#
            ),
            "Error: invalid federated trust domain: trust domain characters are limited to lowercase letters, \
             numbers, dots, dashes, and underscores"
        );
        for text in ["", "{"] {
            assert_eq!(from(text).unwrap_err(), "Error: unexpected end of JSON input");
        }
        for text in ["not json", "[]", r#"{"entries": [{"admin": "x"}]}"#] {
            let error = from(text).unwrap_err();
            assert!(error.starts_with("Error: cannot read /"), "{text}: {error}");
        }
        assert_eq!(
            entries("/nonexist.json").unwrap_err().to_string(),
            "Error: open /nonexist.json: no such file or directory"
        );
    }
}
