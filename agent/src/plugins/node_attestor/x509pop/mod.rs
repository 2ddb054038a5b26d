//! `x509pop`: a certificate of an existing PKI, or the SVID of another agent, and the proof of its key.

mod key;
mod workload_api;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{Section, SettingsError};
use finial_identity::chain::Link;
use finial_identity::go_json::encoded;
use finial_identity::possession::{NONCE_BYTES, PublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use self::key::{KeyFault, ProofKey};
use self::workload_api::Endpoint;
use super::{Attestation, Given, NodeAttestor, NodeAttestorFault};

pub const NAME: &str = "x509pop";

/// The attestor.
struct X509Pop {
    source: Source,
}

/// Where certificate and key come from.
enum Source {
    Files(Files),
    WorkloadApi(Endpoint),
}

/// Paths of PEM files.
#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    intermediates: Option<PathBuf>,
}

/// A certificate with what stands above it, and its key.
struct Evidence {
    /// DER, the certificate first.
    chain: Vec<Vec<u8>>,
    key: ProofKey,
}

pub(super) fn configure(section: Section, _given: &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    let text = |key: &str| section.string(key).filter(|text| !text.trim().is_empty());
    let key = text("private_key_path");
    let certificate = text("certificate_path");
    let intermediates = text("intermediates_path");
    let mut source = None;
    if let Some(endpoint) = text("spiffe_endpoint_socket") {
        match Endpoint::parse(&endpoint) {
            Ok(endpoint) => source = Some(Source::WorkloadApi(endpoint)),
            Err(error) => section.problem("spiffe_endpoint_socket", format_args!("{endpoint:?}: {error}")),
        }
    } else {
        for (key, value) in [("private_key_path", &key), ("certificate_path", &certificate)] {
            if value.is_none() {
                section.problem_here(format!("{key} is required"));
            }
        }
        if let (Some(key), Some(certificate)) = (key, certificate) {
            source = Some(Source::Files(Files {
                certificate: certificate.into(),
                key: key.into(),
                intermediates: intermediates.map(PathBuf::from),
            }));
        }
    }
    let missing =
        SettingsError::at(&section.source().file, section.source().at, "x509pop has no certificate");
    section.finish()?;
    Ok(Arc::new(X509Pop { source: source.ok_or(missing)? }))
}

#[async_trait]
impl NodeAttestor for X509Pop {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn begin(&self) -> Result<Box<dyn Attestation>, NodeAttestorFault> {
        let evidence = match &self.source {
            Source::WorkloadApi(endpoint) => endpoint
                .fetch()
                .await
                .map_err(|error| format!("unable to fetch SVID from workload API: {error}")),
            Source::Files(files) => {
                let files = files.clone();
                let read = tokio::task::spawn_blocking(move || files.load());
                read.await.unwrap_or_else(|_| Err("reading the certificate was cut off".to_owned()))
            }
        };
        let evidence = evidence.map_err(|text| NodeAttestorFault::NotReady { attestor: NAME, text })?;
        Ok(Box::new(evidence))
    }
}

#[async_trait]
impl Attestation for Evidence {
    fn payload(&self) -> Vec<u8> {
        let certificates: Vec<String> = self.chain.iter().map(|der| encoded(der)).collect();
        json!({ "certificates": certificates }).to_string().into_bytes()
    }

    async fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestorFault> {
        let refused = |text: String| NodeAttestorFault::Challenge { attestor: NAME, text };
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| refused(format!("failed to generate nonce: {error}")))?;
        self.key.answer(challenge, &nonce).map_err(|error| refused(error.to_string()))
    }
}

impl Evidence {
    /// Refuses a key that is not the certificate's.
    fn new(chain: Vec<Vec<u8>>, key: &PrivateKeyDer<'_>) -> Result<Evidence, KeyFault> {
        let unreadable = |text: String| KeyFault::Unreadable(text);
        let leaf = chain.first().ok_or_else(|| unreadable("there is no certificate".to_owned()))?;
        let leaf = Link::read(leaf).map_err(|error| unreadable(format!("of the certificate: {error}")))?;
        let public = PublicKey::read(leaf.certificate().public_key_der());
        let public = public.map_err(|error| unreadable(format!("of the certificate: {error}")))?;
        Ok(Evidence { key: ProofKey::new(key, &public)?, chain })
    }
}

impl Files {
    /// Reads them. Blocking.
    fn load(&self) -> Result<Evidence, String> {
        let Files { certificate, key, intermediates } = self;
        let read = |path: &PathBuf, what: &str| {
            std::fs::read(path)
                .map_err(|error| format!("unable to load {what}: open {}: {error}", path.display()))
        };
        let mut chain = certificates(&read(certificate, "keypair")?)
            .map_err(|error| format!("unable to load keypair: {}: {error}", certificate.display()))?;
        let pem = zeroize::Zeroizing::new(read(key, "keypair")?);
        let private = PrivateKeyDer::pem_slice_iter(&pem).next();
        let private = private.ok_or_else(|| {
            format!("unable to load keypair: {}: no unencrypted private key in PEM", key.display())
        })?;
        let private =
            private.map_err(|error| format!("unable to load keypair: {}: {error}", key.display()))?;
        if let Some(path) = intermediates {
            let more = certificates(&read(path, "intermediate certificates")?);
            chain.extend(more.map_err(|error| {
                format!("unable to load intermediate certificates: {}: {error}", path.display())
            })?);
        }
        Evidence::new(chain, &private).map_err(|error| error.to_string())
    }
}

/// The certificates of a PEM file, DER; at least one.
fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| format!("it is not well-formed PEM: {error}"))?;
    if found.is_empty() {
        return Err("no certificates found in file".to_owned());
    }
    Ok(found.into_iter().map(|der| der.to_vec()).collect())
}

#[cfg(test)]
mod tests;
