//! The first bundle: what a new agent believes its server by.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_identity::TrustDomain;
use finial_identity::bundle::document::{self, DocumentError};
use finial_identity::bundle::{Bundle, X509Authority};

use crate::own_svid::Trust;
use crate::settings::{Bootstrap, BundleFormat, Settings};
use crate::storage::Storage;

/// How long the download of a bundle may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(30);

/// Why there is no first bundle.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("cannot read the trust bundle {}: {source}; check trust_bundle_path", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot fetch the trust bundle from {url}: {text}; check trust_bundle_url")]
    Fetch { url: String, text: String },
    #[error("the trust bundle from {from} can't be used: {source}; check trust_bundle_format")]
    Unusable { from: String, source: DocumentError },
    #[error(
        "the trust bundle from {from} holds no X.509 authority; check that it is the bundle of the server's trust domain"
    )]
    Empty { from: String },
}

/// The trust to start with: the stored bundle of an earlier run, or the configured source.
pub async fn trust(settings: &Settings, storage: &Storage, clock: &Clock) -> Result<Trust, BootstrapError> {
    let stored = storage.bundle();
    if !stored.is_empty() {
        let mut bundle = Bundle::new(settings.trust_domain.clone());
        bundle.x509_authorities =
            stored.iter().map(|der| X509Authority { der: der.to_vec(), tainted: false }).collect();
        return Ok(Trust::Bundle(Arc::new(bundle)));
    }
    let (bytes, from, format) = match &settings.bootstrap {
        Bootstrap::FirstMet => {
            tracing::warn!("Insecure bootstrap enabled; skipping server certificate verification");
            return Ok(Trust::FirstMet);
        }
        Bootstrap::File { path, format } => {
            let bytes = tokio::fs::read(path).await;
            let bytes = bytes.map_err(|source| BootstrapError::Read { path: path.clone(), source })?;
            (bytes, path.display().to_string(), *format)
        }
        Bootstrap::Url { url, unix_socket, format } => {
            let full = match unix_socket {
                Some(_) => with_parameters(url, settings, clock),
                None => url.clone(),
            };
            let bytes = fetch(&full, unix_socket.as_deref()).await;
            let bytes = bytes.map_err(|text| BootstrapError::Fetch { url: url.clone(), text })?;
            (bytes, url.clone(), *format)
        }
    };
    let bundle = parse(&settings.trust_domain, &bytes, format)
        .map_err(|source| BootstrapError::Unusable { from: from.clone(), source })?;
    if bundle.x509_authorities.is_empty() {
        return Err(BootstrapError::Empty { from });
    }
    Ok(Trust::Bundle(Arc::new(bundle)))
}

fn parse(trust_domain: &TrustDomain, bytes: &[u8], format: BundleFormat) -> Result<Bundle, DocumentError> {
    match format {
        BundleFormat::Pem => document::from_pem(trust_domain, bytes),
        BundleFormat::Spiffe => document::parse(trust_domain, bytes),
    }
}

/// What SPIRE's agent tells a bundle server on a Unix socket.
fn with_parameters(url: &str, settings: &Settings, clock: &Clock) -> String {
    let start = time::OffsetDateTime::from(clock.now());
    let start = start.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    let parameters = [
        ("spiffe-trust-domain", settings.trust_domain.name().to_owned()),
        ("spire-attest-mode", "bootstrap".to_owned()),
        ("spire-attest-start-time", start),
        ("spire-connection-attempts", "1".to_owned()),
        ("spire-server-address", settings.server_address.clone()),
        ("spire-server-port", settings.server_port.to_string()),
    ];
    let mut full = url.to_owned();
    for (name, value) in parameters {
        full.push(if full.contains('?') { '&' } else { '?' });
        full.push_str(name);
        full.push('=');
        full.push_str(&value.replace(':', "%3A").replace('+', "%2B"));
    }
    full
}

async fn fetch(url: &str, unix_socket: Option<&Path>) -> Result<Vec<u8>, String> {
    let mut client =
        reqwest::Client::builder().timeout(DOWNLOAD_LIMIT).redirect(reqwest::redirect::Policy::none());
    if let Some(socket) = unix_socket {
        client = client.unix_socket(socket);
    }
    let client = client.build().map_err(|error| with_causes(&error))?;
    let mut answer = client.get(url).send().await.map_err(|error| with_causes(&error))?;
    if !answer.status().is_success() {
        return Err(format!("the answer was {}", answer.status()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| with_causes(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > document::MAX_DOCUMENT_BYTES {
            return Err(format!("it is larger than {} bytes", document::MAX_DOCUMENT_BYTES));
        }
    }
    Ok(bytes)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
