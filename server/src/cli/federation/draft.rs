//! Relationships as they are given: by flags, or in a JSON file.

use std::io::Read;
use std::path::Path;

use finial_daemon::argv::text;
use finial_identity::SpiffeId;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use finial_proto::spire::api::types::{Bundle, FederationRelationship, HttpsWebProfile, HttpsspiffeProfile};
use serde_json::{Map, Value};

use crate::cli::bundle::format::{Format, read_at_most};
use crate::cli::matching::given;
use crate::cli::output::{Failure, fail};

/// The flags of `federation create` and `update`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Draft {
    /// A file with relationships in JSON; - is standard input
    #[arg(long = "data")]
    data: Option<String>,
    /// The other trust domain
    #[arg(long = "trustDomain")]
    trust_domain: Option<String>,
    /// The https URL where the other trust domain serves its bundle
    #[arg(long = "bundleEndpointURL")]
    endpoint_url: Option<String>,
    /// How that endpoint proves who it is: https_web (a certificate for its host) or https_spiffe (an X.509-SVID)
    #[arg(long = "bundleEndpointProfile")]
    profile: Option<String>,
    /// With https_spiffe: the SPIFFE ID of the endpoint
    #[arg(long = "endpointSpiffeID")]
    endpoint_id: Option<String>,
    /// A file with the bundle of the other trust domain
    #[arg(long = "trustDomainBundlePath")]
    bundle_path: Option<String>,
    /// What that file holds: pem or spiffe (JSON)
    #[arg(long = "trustDomainBundleFormat", default_value = PEM)]
    bundle_format: String,
}

const PEM: &str = "pem";
const SPIFFE: &str = "spiffe";

impl Draft {
    /// The relationships, and what the operator should know of their bundles.
    pub fn relationships(&self) -> Result<(Vec<FederationRelationship>, String), Failure> {
        let Some(path) = given(&self.data) else {
            let (relationship, warnings) = self.by_flags().read()?;
            return Ok((vec![relationship], warnings));
        };
        let others =
            [&self.trust_domain, &self.endpoint_url, &self.profile, &self.endpoint_id, &self.bundle_path];
        if others.into_iter().any(|flag| given(flag).is_some()) || self.bundle_format != PEM {
            return Err(fail(
                "cannot use other flags to specify relationship fields when 'data' flag is set",
            ));
        }
        from_json(&read(path)?)
    }

    fn by_flags(&self) -> Fields {
        let text = |flag: &Option<String>| flag.clone().unwrap_or_default();
        Fields {
            trust_domain: text(&self.trust_domain),
            endpoint_url: text(&self.endpoint_url),
            profile: text(&self.profile),
            endpoint_id: text(&self.endpoint_id),
            bundle: match given(&self.bundle_path) {
                None => BundleGiven::None,
                Some(path) => BundleGiven::File(path.to_owned()),
            },
            bundle_format: self.bundle_format.clone(),
        }
    }
}

/// One relationship, not looked at yet.
#[derive(Debug, Default)]
struct Fields {
    trust_domain: String,
    endpoint_url: String,
    profile: String,
    endpoint_id: String,
    bundle: BundleGiven,
    bundle_format: String,
}

#[derive(Debug, Default)]
enum BundleGiven {
    #[default]
    None,
    File(String),
    /// In the JSON: PEM as a text, or the document itself.
    Here(Value),
}

impl Fields {
    fn read(self) -> Result<(FederationRelationship, String), Failure> {
        if self.trust_domain.is_empty() {
            return Err(fail("trust domain is required"));
        }
        if self.endpoint_url.is_empty() {
            return Err(fail("bundle endpoint URL is required"));
        }
        // SPIRE takes the bundle for that of the endpoint's trust domain.
        let (profile, bundle_of) = match self.profile.as_str() {
            "https_web" => (BundleEndpointProfile::HttpsWeb(HttpsWebProfile {}), self.trust_domain.clone()),
            "https_spiffe" if self.endpoint_id.is_empty() => {
                return Err(fail("endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set"));
            }
            "https_spiffe" => {
                let id = SpiffeId::parse(&self.endpoint_id);
                let id = id.map_err(|e| fail(format!("cannot parse bundle endpoint SPIFFE ID: {e}")))?;
                let profile = HttpsspiffeProfile { endpoint_spiffe_id: self.endpoint_id.clone() };
                (BundleEndpointProfile::HttpsSpiffe(profile), id.trust_domain_name().to_owned())
            }
            other => {
                let other = text::quote(other);
                return Err(fail(format!("unknown bundle endpoint profile type: {other}")));
            }
        };
        let (bundle, warnings) = self.bundle.read(&self.bundle_format, &bundle_of)?.unzip();
        let relationship = FederationRelationship {
            trust_domain: self.trust_domain,
            bundle_endpoint_url: self.endpoint_url,
            bundle_endpoint_profile: Some(profile),
            trust_domain_bundle: bundle,
        };
        Ok((relationship, warnings.unwrap_or_default()))
    }
}

impl BundleGiven {
    fn read(self, format: &str, of: &str) -> Result<Option<(Bundle, String)>, Failure> {
        match self {
            BundleGiven::None => Ok(None),
            BundleGiven::File(path) => {
                let bytes = std::fs::File::open(&path).and_then(read_at_most).map_err(|error| {
                    let cause = text::file_error("open", Path::new(&path), &error);
                    fail(format!("cannot read bundle file: {cause}"))
                })?;
                // Everything but the one word is the other format, as in SPIRE.
                let format = if format == PEM { Format::Pem } else { Format::Spiffe };
                within("cannot parse bundle file", format.read(of, &bytes)).map(Some)
            }
            BundleGiven::Here(value) => {
                let read = match (format, value) {
                    (PEM, Value::String(pem)) => Format::Pem.read(of, pem.as_bytes()),
                    (PEM, _) => Err(fail("a bundle in PEM must be a JSON string")),
                    (SPIFFE, document) => Format::Spiffe.read(of, document.to_string().as_bytes()),
                    (other, _) => Err(fail(format!("bundle format {} is unsupported", text::quote(other)))),
                };
                within("cannot parse bundle raw message", read).map(Some)
            }
        }
    }
}

/// `{"federationRelationships": [{"trustDomain": …}]}`, names in any case.
fn from_json(text: &str) -> Result<(Vec<FederationRelationship>, String), Failure> {
    let wrong = |cause: String| fail(format!("failed to parse JSON: {cause}"));
    let file: Value = serde_json::from_str(text).map_err(|error| {
        wrong(if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() })
    })?;
    let Value::Object(file) = file else {
        return Err(wrong(
            "the file must be an object with the member \"federationRelationships\"".to_owned(),
        ));
    };
    let items = match member(&file, "federationRelationships") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.clone(),
        Some(_) => return Err(wrong("\"federationRelationships\" is not an array".to_owned())),
    };
    let fields: Result<Vec<Fields>, Failure> =
        items.iter().enumerate().map(|(index, item)| fields(index, item).map_err(wrong)).collect();
    let mut relationships = Vec::new();
    let mut all_warnings = String::new();
    for (index, fields) in fields?.into_iter().enumerate() {
        let (relationship, warnings) = within(&format!("could not parse item {index}"), fields.read())?;
        relationships.push(relationship);
        all_warnings += &warnings;
    }
    Ok((relationships, all_warnings))
}

fn fields(index: usize, item: &Value) -> Result<Fields, String> {
    let empty = Map::new();
    let item = match item {
        Value::Object(item) => item,
        Value::Null => &empty,
        _ => return Err(format!("item {index} of \"federationRelationships\" is not an object")),
    };
    let text = |name: &str| match member(item, name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{name:?} of item {index} is not a string")),
    };
    Ok(Fields {
        trust_domain: text("trustDomain")?,
        endpoint_url: text("bundleEndpointURL")?,
        profile: text("bundleEndpointProfile")?,
        endpoint_id: text("endpointSPIFFEID")?,
        bundle: match member(item, "trustDomainBundle") {
            None => BundleGiven::None,
            Some(value) => BundleGiven::Here(value.clone()),
        },
        bundle_format: text("trustDomainBundleFormat")?,
    })
}

/// The last member of that name, in whatever case.
fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let mut found = object.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
    found.next_back().map(|(_, value)| value)
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

fn within<T>(what: &str, result: Result<T, Failure>) -> Result<T, Failure> {
    result.map_err(|failure| match failure {
        Failure::Told(cause) => fail(format!("{what}: {cause}")),
        flag @ Failure::Flag(_) => flag,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_go_reads_them() {
        let (read, warnings) = from_json(
            r#"{"federationrelationships": [
                {"TRUSTDOMAIN": "a.org", "bundleendpointurl": "https://h", "bundleEndpointProfile": "https_web", "x": 1},
                {"trustDomain": "b.org", "bundleEndpointURL": "https://b", "bundleEndpointProfile": "https_spiffe",
                 "endpointSPIFFEID": "spiffe://b.org/x", "trustDomainBundleFormat": "spiffe",
                 "trustDomainBundle": {"keys": [], "spiffe_sequence": 18446744073709551615}}]}"#,
        )
        .unwrap();
        assert_eq!(warnings, "");
        assert_eq!(read[0].trust_domain, "a.org");
        assert_eq!(
            read[0].bundle_endpoint_profile,
            Some(BundleEndpointProfile::HttpsWeb(HttpsWebProfile {}))
        );
        let bundle = read[1].trust_domain_bundle.as_ref().unwrap();
        assert_eq!((bundle.trust_domain.as_str(), bundle.sequence_number), ("b.org", u64::MAX));
        assert_eq!(from_json("{}"), Ok((vec![], String::new())));
    }

    #[test]
    fn wrong_files_are_told() {
        let item = |more: &str| {
            format!(
                r#"{{"federationRelationships": [{{"trustDomain": "f.org", "bundleEndpointURL": "https://h",
                "bundleEndpointProfile": "https_web"{more}}}]}}"#
            )
        };
        for (json, text) in [
            (String::new(), "failed to parse JSON: unexpected end of JSON input"),
            ("{".to_owned(), "failed to parse JSON: unexpected end of JSON input"),
            ("x".to_owned(), "failed to parse JSON: expected value at line 1 column 1"),
            ("{} x".to_owned(), "failed to parse JSON: trailing characters at line 1 column 4"),
            (
                "[]".to_owned(),
                "failed to parse JSON: the file must be an object with the member \"federationRelationships\"",
            ),
            (
                r#"{"federationRelationships": "x"}"#.to_owned(),
                "failed to parse JSON: \"federationRelationships\" is not an array",
            ),
            (
                r#"{"federationRelationships": [{"trustDomain": 1}]}"#.to_owned(),
                "failed to parse JSON: \"trustDomain\" of item 0 is not a string",
            ),
            (
                r#"{"federationRelationships": [null]}"#.to_owned(),
                "could not parse item 0: trust domain is required",
            ),
            (
                r#"{"federationRelationships": [{"trustDomain": "a"}]}"#.to_owned(),
                "could not parse item 0: bundle endpoint URL is required",
            ),
            (
                item(r#", "trustDomainBundle": "x""#),
                "could not parse item 0: cannot parse bundle raw message: bundle format \"\" is unsupported",
            ),
            (
                item(r#", "trustDomainBundle": "x", "trustDomainBundleFormat": "pem""#),
                "could not parse item 0: cannot parse bundle raw message: unable to parse bundle data: no PEM blocks",
            ),
            (
                item(r#", "trustDomainBundle": {}, "trustDomainBundleFormat": "pem""#),
                "could not parse item 0: cannot parse bundle raw message: a bundle in PEM must be a JSON string",
            ),
        ] {
            assert_eq!(from_json(&json), Err(fail(text)), "{json}");
        }
    }

    #[test]
    fn flags_and_a_file_exclude_each_other() {
        let data =
            Draft { data: Some("x.json".to_owned()), bundle_format: PEM.to_owned(), ..Draft::default() };
        for draft in [
            Draft { trust_domain: Some("a.org".to_owned()), ..data.clone() },
            Draft { bundle_format: SPIFFE.to_owned(), ..data },
        ] {
            let text = "cannot use other flags to specify relationship fields when 'data' flag is set";
            assert_eq!(draft.relationships(), Err(fail(text)));
        }
    }
}
