//! From a view to Envoy's secrets.

use std::collections::BTreeSet;
use std::sync::Arc;

use finial_identity::bundle::document;
use finial_identity::x509_svid::split_concatenated;
use finial_proto::envoy::config::core::v3::data_source::Specifier;
use finial_proto::envoy::config::core::v3::node::UserAgentVersionType;
use finial_proto::envoy::config::core::v3::{DataSource, Node, TypedExtensionConfig};
use finial_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
    spiffe_cert_validator_config::TrustDomain,
};
use finial_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::{Message, Name};
use prost_types::Any;
use prost_types::value::Kind;
use tonic::Status;

use crate::cache::{Identity, TrustBundle, View};

/// Envoy's name for its validator by SPIFFE's rules.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// By which an Envoy says in its node's metadata that it has no use for that validator.
const DISABLED: &str = "disable_spiffe_cert_validation";

/// `sds`: what secrets are called that have no name of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// `default_svid_name`: the first identity.
    pub default_svid: String,
    /// `default_bundle_name`: the own trust domain's bundle.
    pub default_bundle: String,
    /// `default_all_bundles_name`: all bundles.
    pub default_all_bundles: String,
    /// `disable_spiffe_cert_validation`: bundles are plain lists of authorities, unless a node asks otherwise.
    pub disable_spiffe_cert_validation: bool,
}

impl Default for Names {
    fn default() -> Names {
        Names {
            default_svid: "default".to_owned(),
            default_bundle: "ROOTCA".to_owned(),
            default_all_bundles: "ALL".to_owned(),
            disable_spiffe_cert_validation: false,
        }
    }
}

/// How bundles are told.
#[derive(Clone, Copy)]
enum Validation {
    /// For Envoy's validator by SPIFFE's rules: each trust domain has authorities of its own.
    Spiffe,
    /// A list of authorities, all of which vouch for everybody.
    Authorities,
}

/// The secrets that are asked for, without version and nonce. InvalidArgument when there is one that the view does not
/// have.
pub(super) fn response(
    names: &Names,
    request: &DiscoveryRequest,
    view: &View,
) -> Result<DiscoveryResponse, Status> {
    let mut wanted: BTreeSet<&str> =
        request.resource_names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    let all = wanted.is_empty();
    let validation = validation(names, request.node.as_ref());
    let mut resources = Vec::new();

    // One of the three, as in SPIRE: Envoy asks for each secret on a stream of its own.
    if let Some(own) = &view.bundle {
        if all || wanted.remove(own.id.as_str()) {
            resources.push(one_bundle(&own.id, own, validation));
        } else if wanted.remove(names.default_bundle.as_str()) {
            resources.push(one_bundle(&names.default_bundle, own, validation));
        } else if wanted.remove(names.default_all_bundles.as_str()) {
            let bundles = std::iter::once(own).chain(&view.federated);
            resources.push(all_bundles(&names.default_all_bundles, bundles, validation)?);
        }
    }
    for bundle in &view.federated {
        if all || wanted.remove(bundle.id.as_str()) {
            resources.push(one_bundle(&bundle.id, bundle, validation));
        }
    }
    for (place, identity) in view.identities.iter().enumerate() {
        let id = identity.svid.spiffe_id.as_str();
        if all || wanted.remove(id) {
            resources.push(certificate(id, identity)?);
        } else if place == 0 && wanted.remove(names.default_svid.as_str()) {
            resources.push(certificate(&names.default_svid, identity)?);
        }
    }
    if !wanted.is_empty() {
        let unknown: Vec<String> = wanted.iter().map(|name| format!("{name:?}")).collect();
        return Err(Status::invalid_argument(format!(
            "workload is not authorized for the requested identities [{}]",
            unknown.join(" ")
        )));
    }
    Ok(DiscoveryResponse { resources, type_url: request.type_url.clone(), ..DiscoveryResponse::default() })
}

fn validation(names: &Names, node: Option<&Node>) -> Validation {
    let metadata = node.and_then(|node| node.metadata.as_ref());
    let said = metadata.and_then(|metadata| match metadata.fields.get(DISABLED)?.kind.as_ref()? {
        Kind::BoolValue(disabled) => Some(*disabled),
        Kind::StringValue(text) => go_bool(text),
        _ => None,
    });
    let disabled = said.unwrap_or(names.disable_spiffe_cert_validation);
    if disabled || !has_validator(node) { Validation::Authorities } else { Validation::Spiffe }
}

/// Whether this Envoy has the validator: from 1.18 on, and where it does not tell its version.
fn has_validator(node: Option<&Node>) -> bool {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) =
        node.and_then(|node| node.user_agent_version_type.as_ref())
    else {
        return true;
    };
    let version = build.version.unwrap_or_default();
    (version.major_number == 1 && version.minor_number > 17) || version.major_number > 1
}

fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn one_bundle(name: &str, bundle: &Arc<TrustBundle>, validation: Validation) -> Any {
    let context = match validation {
        Validation::Spiffe => spiffe_validator(vec![trust_domain(bundle)]),
        Validation::Authorities => CertificateValidationContext {
            trusted_ca: Some(inline(authorities(bundle).into_bytes())),
            ..CertificateValidationContext::default()
        },
    };
    secret(name, secret::Type::ValidationContext(context))
}

fn all_bundles<'a>(
    name: &str,
    bundles: impl Iterator<Item = &'a Arc<TrustBundle>>,
    validation: Validation,
) -> Result<Any, Status> {
    let Validation::Spiffe = validation else {
        return Err(Status::internal("unable to use \"SPIFFE validator\" on Envoy below 1.17"));
    };
    let mut trust_domains: Vec<TrustDomain> = bundles.map(trust_domain).collect();
    trust_domains.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(secret(name, secret::Type::ValidationContext(spiffe_validator(trust_domains))))
}

fn spiffe_validator(trust_domains: Vec<TrustDomain>) -> CertificateValidationContext {
    let config = SpiffeCertValidatorConfig { trust_domains };
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: SPIFFE_VALIDATOR.to_owned(),
            typed_config: Some(packed(&config)),
        }),
        ..CertificateValidationContext::default()
    }
}

fn trust_domain(bundle: &Arc<TrustBundle>) -> TrustDomain {
    TrustDomain {
        name: bundle.source.trust_domain.name().to_owned(),
        trust_bundle: Some(inline(authorities(bundle).into_bytes())),
    }
}

fn authorities(bundle: &TrustBundle) -> String {
    bundle.source.x509_authorities.iter().map(|authority| document::certificate_pem(&authority.der)).collect()
}

fn certificate(name: &str, identity: &Identity) -> Result<Any, Status> {
    let chain = split_concatenated(&identity.svid.chain).map_err(|error| {
        tracing::error!(%error, "The chain of an SVID can't be taken apart");
        Status::internal("could not serialize response")
    })?;
    let chain: String = chain.iter().map(|der| document::certificate_pem(der)).collect();
    let key = document::certificate_pem(&identity.svid.key).replace("CERTIFICATE-----", "PRIVATE KEY-----");
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(chain.into_bytes())),
        private_key: Some(inline(key.into_bytes())),
    };
    Ok(secret(name, secret::Type::TlsCertificate(certificate)))
}

fn secret(name: &str, kind: secret::Type) -> Any {
    packed(&Secret { name: name.to_owned(), r#type: Some(kind) })
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}

fn packed<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}
