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
    // Whole seconds, as Go writes RFC 3339.
    let start = time::OffsetDateTime::from(clock.now()).truncate_to_second();
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::settings::Flags;

    fn settings(folder: &Path, lines: &str) -> Settings {
        let folder = folder.display();
        let text = format!(
            r#"agent {{
                trust_domain = "example.org"
                server_address = "server.example"
                server_port = 8081
                data_dir = "{folder}"
                {lines}
            }}
            plugins {{
                NodeAttestor "join_token" {{ plugin_data {{}} }}
                KeyManager "memory" {{ plugin_data {{}} }}
                WorkloadAttestor "unix" {{ plugin_data {{}} }}
            }}"#
        );
        let file = finial_daemon::settings::parse(&text, "agent.conf").unwrap();
        Settings::read(&file, &Flags::default()).unwrap()
    }

    async fn ask(folder: &Path, lines: &str) -> Result<Trust, BootstrapError> {
        let storage = Storage::open(folder).unwrap();
        trust(&settings(folder, lines), &storage, &Clock::paused(UNIX_EPOCH)).await
    }

    fn authority() -> (String, Vec<u8>) {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let authority = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        (authority.pem(), authority.der().to_vec())
    }

    fn authorities(trust: Trust) -> Vec<Vec<u8>> {
        match trust {
            Trust::Bundle(bundle) => {
                bundle.x509_authorities.iter().map(|authority| authority.der.clone()).collect()
            }
            Trust::FirstMet => panic!("the first met server would be trusted"),
        }
    }

    #[tokio::test]
    async fn a_file_is_believed_and_a_wrong_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (pem, der) = authority();
        let path = folder.path().join("bundle.pem");
        let lines = format!("trust_bundle_path = {:?}", path.display().to_string());
        let missing = ask(folder.path(), &lines).await.err().unwrap().to_string();
        assert!(missing.contains("bundle.pem") && missing.contains("check trust_bundle_path"), "{missing}");
        std::fs::write(&path, "nothing").unwrap();
        let empty = ask(folder.path(), &lines).await.err().unwrap().to_string();
        assert!(empty.contains("bundle.pem"), "{empty}");
        std::fs::write(&path, &pem).unwrap();
        assert_eq!(authorities(ask(folder.path(), &lines).await.unwrap()), [der]);
    }

    #[tokio::test]
    async fn what_was_stored_goes_before_the_configured_source() {
        let folder = tempfile::tempdir().unwrap();
        let (_, stored) = authority();
        Storage::open(folder.path()).unwrap().store_bundle(vec![stored.clone().into()]).await.unwrap();
        assert_eq!(authorities(ask(folder.path(), "insecure_bootstrap = true").await.unwrap()), [stored]);
    }

    #[tokio::test]
    async fn a_url_on_a_socket_is_told_who_asks() {
        let folder = tempfile::tempdir().unwrap();
        let (pem, der) = authority();
        let socket = folder.path().join("bundles.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in [
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{pem}", pem.len()),
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                asked.push(String::from_utf8(head).unwrap());
            }
            asked
        });
        let lines = format!(
            "trust_bundle_url = \"http://localhost/bundle?x=1\"\ntrust_bundle_unix_socket = {:?}",
            socket.display().to_string()
        );
        assert_eq!(authorities(ask(folder.path(), &lines).await.unwrap()), [der]);
        let refused = ask(folder.path(), &lines).await.err().unwrap().to_string();
        assert!(refused.contains("404") && refused.contains("check trust_bundle_url"), "{refused}");
        let asked = served.await.unwrap();
        let request = asked[0].lines().next().unwrap();
        assert_eq!(
            request,
            "GET /bundle?x=1&spiffe-trust-domain=example.org&spire-attest-mode=bootstrap\
             &spire-attest-start-time=1970-01-01T00%3A00%3A00Z&spire-connection-attempts=1\
             &spire-server-address=server.example&spire-server-port=8081 HTTP/1.1"
        );
    }

    #[tokio::test]
    async fn a_url_needs_web_pki() {
        // Nobody listens there; what counts is that it is TLS that is tried, and that the error says what to check.
        let folder = tempfile::tempdir().unwrap();
        let error = ask(folder.path(), "trust_bundle_url = \"https://127.0.0.1:1/\"")
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("https://127.0.0.1:1/") && error.contains("check trust_bundle_url"),
            "{error}"
        );
    }
}
