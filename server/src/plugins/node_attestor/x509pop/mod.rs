//! `x509pop`: a certificate of an existing PKI, or an SVID of this trust domain, and the proof of its key.

mod challenge;
mod leaf;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use finial_daemon::settings::{Section, SettingsError};
use finial_identity::chain::{self, Link};
use finial_identity::possession::PublicKey;
use finial_identity::selector::Selector;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use self::challenge::{Answer, Challenge};
use self::leaf::{Leaf, fingerprint};
use super::agent_path::AgentPath;
use super::{AttestorFault, Code, Evidence, Exchange, Host, NodeAttestor};
use finial_identity::go_json::Object;

pub const NAME: &str = "x509pop";

const DEFAULT_PATH: &str = "/{{ .PluginName }}/{{ .Fingerprint }}";
const DEFAULT_SPIFFE_PATH: &str = "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}";
const DEFAULT_SPIFFE_PREFIX: &str = "/spire-exchange/";
const DEFAULT_MAX_INTERMEDIATES: i64 = 4;
/// Also the most that can be verified.
const DEFAULT_MAX_RSA_KEY_SIZE: i64 = 8192;

/// The attestor.
pub struct X509Pop {
    host: Host,
    mode: Mode,
    agent_path: AgentPath,
    max_intermediates: usize,
    max_rsa_key_size: usize,
    verify_client_ip: bool,
}

enum Mode {
    /// The certificates of `ca_bundle_path` or `ca_bundle_paths`.
    ExternalPki(Arc<[Link]>),
    /// SVIDs of this trust domain, below a path that ends in a slash.
    Spiffe { prefix: String },
}

/// For the plugin table. Blocking: reads the CA files.
pub fn make(section: Section, host: &Host) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    let mode = section.string("mode").filter(|mode| !mode.is_empty());
    let path = section.string("ca_bundle_path").filter(|path| !path.is_empty());
    let paths = section.list("ca_bundle_paths").unwrap_or_default();
    let prefix = section.string("spiffe_prefix");
    let (mode, default_path) = match mode.as_deref() {
        None | Some("external_pki") => {
            let roots = external_roots(&section, path, paths);
            (Mode::ExternalPki(roots.into()), DEFAULT_PATH)
        }
        Some(other) => {
            if other != "spiffe" {
                section.problem("mode", "mode can only be either spiffe or external_pki");
            } else if path.is_some() || !paths.is_empty() {
                section.problem_here("you can not use ca_bundle_path or ca_bundle_paths in spiffe mode");
            }
            let mut prefix = prefix.unwrap_or_else(|| DEFAULT_SPIFFE_PREFIX.to_owned());
            if !prefix.ends_with('/') {
                prefix.push('/');
            }
            (Mode::Spiffe { prefix }, DEFAULT_SPIFFE_PATH)
        }
    };
    let agent_path = AgentPath::read(&section, default_path);
    let positive = |key: &str, default: i64| {
        let number = section.int(key).unwrap_or(default);
        if number <= 0 {
            section.problem(key, format_args!("{key} must be greater than 0"));
        }
        usize::try_from(number).unwrap_or(0)
    };
    let max_intermediates = positive("max_intermediates", DEFAULT_MAX_INTERMEDIATES);
    let max_rsa_key_size = positive("max_rsa_key_size", DEFAULT_MAX_RSA_KEY_SIZE);
    if max_rsa_key_size as i64 > DEFAULT_MAX_RSA_KEY_SIZE {
        let text = "RSA keys of more than 8192 bits are not supported; set max_rsa_key_size to 8192 or less";
        section.problem("max_rsa_key_size", text);
    }
    let verify_client_ip = section.bool("verify_client_ip").unwrap_or(false);
    section.finish()?;
    let agent_path = agent_path?;
    let host = host.clone();
    Ok(Arc::new(X509Pop { host, mode, agent_path, max_intermediates, max_rsa_key_size, verify_client_ip }))
}

fn external_roots(section: &Section, path: Option<String>, paths: Vec<String>) -> Vec<Link> {
    let paths = match path {
        Some(path) => {
            if !paths.is_empty() {
                section.problem_here(
                    "only one of ca_bundle_path or ca_bundle_paths can be configured, not both",
                );
            }
            vec![path]
        }
        None => paths,
    };
    if paths.is_empty() {
        section.problem_here("one of ca_bundle_path or ca_bundle_paths must be configured");
    }
    let mut roots = Vec::new();
    for path in &paths {
        match load_certificates(Path::new(path)) {
            Ok(found) => roots.extend(found),
            Err(error) => section.problem_here(format!("unable to load trust bundle {path:?}: {error}")),
        }
    }
    roots
}

/// The certificates of a PEM file; at least one.
fn load_certificates(path: &Path) -> Result<Vec<Link>, String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for (number, der) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let der = der.map_err(|error| format!("it is not well-formed PEM: {error}"))?;
        let link = Link::read(&der);
        found.push(link.map_err(|error| format!("unable to parse certificate in block {number}: {error}"))?);
    }
    if found.is_empty() { Err("no certificates found in file".to_owned()) } else { Ok(found) }
}

#[async_trait]
impl NodeAttestor for X509Pop {
    async fn attest(&self, payload: &[u8], exchange: &mut Exchange) -> Result<Evidence, AttestorFault> {
        let (leaf, intermediates) = self.read(payload)?;
        let roots = self.roots().await?;
        let (leaf, issuers) = verified(leaf, intermediates, roots, self.host.clock.now()).await?;
        if self.verify_client_ip {
            check_client_ip(exchange.caller(), &leaf)?;
        }

        let challenge = Challenge::new(&leaf.key, leaf.is_for_signatures()).map_err(|error| {
            AttestorFault::new(Code::Internal, format!("unable to generate challenge: {error}"))
        })?;
        let answer = exchange.ask(challenge.to_json()).await?;
        let answer = Answer::read(&answer)
            .map_err(|error| refused(format!("unable to unmarshal challenge response: {error}")))?;
        challenge
            .verify(&answer)
            .map_err(|error| denied(format!("challenge response verification failed: {error}")))?;

        self.evidence(&leaf, &issuers)
    }
}

impl X509Pop {
    /// Reads what the agent sent. Limits come before whatever costs time.
    fn read(&self, payload: &[u8]) -> Result<(Leaf, Vec<Link>), AttestorFault> {
        let data =
            Object::read(payload).map_err(|error| refused(format!("failed to unmarshal data: {error}")))?;
        let certificates = data.list_of_bytes("certificates");
        let certificates =
            certificates.map_err(|error| refused(format!("failed to unmarshal data: {error}")))?;
        let Some((leaf, intermediates)) = certificates.split_first() else {
            return Err(refused("no certificate to attest"));
        };
        if intermediates.len() > self.max_intermediates {
            return Err(refused("too many intermediate certificates"));
        }
        let leaf = Leaf::read(leaf)
            .map_err(|error| refused(format!("unable to parse leaf certificate: {error}")))?;
        if self.is_too_large(&leaf.key) {
            return Err(refused("leaf certificate key size too large"));
        }
        let mut links = Vec::with_capacity(intermediates.len());
        for (number, der) in intermediates.iter().enumerate() {
            let unreadable = |error: &dyn std::fmt::Display| {
                refused(format!("unable to parse intermediate certificate {number}: {error}"))
            };
            let link = Link::read(der).map_err(|error| unreadable(&error))?;
            let key = PublicKey::read(link.certificate().public_key_der());
            if self.is_too_large(&key.map_err(|error| unreadable(&error))?) {
                return Err(refused(format!("intermediate certificate {number} key size too large")));
            }
            links.push(link);
        }
        Ok((leaf, links))
    }

    fn is_too_large(&self, key: &PublicKey) -> bool {
        matches!(key, PublicKey::Rsa { bits, .. } if *bits > self.max_rsa_key_size)
    }

    async fn roots(&self) -> Result<Arc<[Link]>, AttestorFault> {
        let failed = |error: &dyn std::fmt::Display| {
            AttestorFault::new(Code::Internal, format!("failed to get trust bundle: {error}"))
        };
        match &self.mode {
            Mode::ExternalPki(roots) => Ok(Arc::clone(roots)),
            Mode::Spiffe { .. } => {
                let bundle = self.host.store.bundles().get(&self.host.trust_domain).await;
                let authorities = bundle
                    .map_err(|error| AttestorFault::of_store("failed to get trust bundle", &error))?
                    .map_or(Vec::new(), |found| found.x509_authorities);
                let links = authorities.iter().map(|authority| Link::read(&authority.der));
                links.collect::<Result<_, _>>().map_err(|error| failed(&error))
            }
        }
    }

    fn evidence(&self, leaf: &Leaf, issuers: &[String]) -> Result<Evidence, AttestorFault> {
        let trust_domain = &self.host.trust_domain;
        let svid_path = match &self.mode {
            Mode::ExternalPki(_) => String::new(),
            Mode::Spiffe { prefix } => trimmed_svid_path(leaf, trust_domain.name(), prefix)?,
        };
        let uri_selectors = leaf
            .uri_selectors(trust_domain.name())
            .map_err(|error| refused(format!("unable to parse leaf certificate: {error}")))?;

        let mut fields = leaf.template_fields();
        let certificate = Value::Object(fields.clone());
        let named = uri_selectors.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        fields.insert("Certificate".to_owned(), certificate);
        fields.insert("SerialNumberHex".to_owned(), json!(leaf.serial_hex()));
        fields.insert("Fingerprint".to_owned(), json!(leaf.fingerprint()));
        fields.insert("PluginName".to_owned(), json!(NAME));
        fields.insert("TrustDomain".to_owned(), json!(trust_domain.name()));
        fields.insert("SVIDPathTrimmed".to_owned(), json!(svid_path));
        fields.insert("URISanSelectors".to_owned(), Value::Object(named));
        let agent_id = self.agent_path.agent_id(trust_domain, &Value::Object(fields)).map_err(|error| {
            AttestorFault::new(Code::Internal, format!("failed to make spiffe id: {error}"))
        })?;

        let mut values = Vec::new();
        let common_name = leaf.common_name();
        if !common_name.is_empty() {
            values.push(format!("subject:cn:{common_name}"));
        }
        values.extend(issuers.iter().map(|fingerprint| format!("ca:fingerprint:{fingerprint}")));
        values.push(format!("serialnumber:{}", leaf.serial_hex()));
        values.extend(uri_selectors.iter().map(|(key, value)| format!("san:{key}:{value}")));
        let selectors = values.into_iter().map(|value| Selector { kind: NAME.to_owned(), value }).collect();
        Ok(Evidence { agent_id, selectors, can_reattest: true, first_use_only: false })
    }
}

/// Has the chain judged, away from the threads that serve: a hundred RSA signatures take a while. Returns the fingerprints of
/// all certificates above the leaf too, each once.
async fn verified(
    leaf: Leaf,
    intermediates: Vec<Link>,
    roots: Arc<[Link]>,
    now: SystemTime,
) -> Result<(Leaf, Vec<String>), AttestorFault> {
    let judged = tokio::task::spawn_blocking(move || {
        let paths = chain::verify(&leaf.link, &intermediates, &roots, now)?;
        let mut issuers: Vec<String> = Vec::new();
        for link in paths.into_iter().flatten() {
            let fingerprint = fingerprint(link.der());
            if !issuers.contains(&fingerprint) {
                issuers.push(fingerprint);
            }
        }
        Ok((leaf, issuers))
    });
    match judged.await {
        Ok(Ok(verified)) => Ok(verified),
        Ok(Err(error)) => {
            let error: chain::ChainError = error;
            Err(denied(format!("certificate verification failed: {error}")))
        }
        Err(_) => Err(AttestorFault::new(Code::Internal, "certificate verification was cut off")),
    }
}

fn check_client_ip(caller: Option<IpAddr>, leaf: &Leaf) -> Result<(), AttestorFault> {
    let Some(caller) = caller.map(|caller| caller.to_canonical()) else {
        return Err(AttestorFault::new(Code::Internal, "client IP not available for verification"));
    };
    if leaf.addresses.iter().any(|address| address.to_canonical() == caller) {
        return Ok(());
    }
    Err(denied(format!("client IP {caller} does not match any certificate IP SAN")))
}

/// What follows the prefix in the path of the SVID.
fn trimmed_svid_path(leaf: &Leaf, trust_domain: &str, prefix: &str) -> Result<String, AttestorFault> {
    let mut ids = leaf.uris.iter().filter_map(|uri| uri.strip_prefix("spiffe://"));
    let id = ids.next().ok_or_else(|| denied("valid SVID x509 cert not found"))?;
    let path = id.strip_prefix(trust_domain).filter(|path| path.starts_with('/'));
    let path = path.ok_or_else(|| denied("valid SVID x509 cert not found"))?;
    let trimmed = path.strip_prefix(prefix).ok_or_else(|| denied("x509 cert doesnt match SVID prefix"))?;
    Ok(trimmed.to_owned())
}

fn refused(text: impl Into<String>) -> AttestorFault {
    AttestorFault::new(Code::InvalidArgument, text)
}

fn denied(text: impl Into<String>) -> AttestorFault {
    AttestorFault::new(Code::PermissionDenied, text)
}

#[cfg(test)]
mod tests;
