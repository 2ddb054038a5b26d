//! How the agent comes to believe its server: by the bundle of an earlier run, or else by one from a configured source.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::argv::text;
use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::dial::Dialer;
use finial_identity::TrustDomain;
use finial_identity::bundle::document::{self, DocumentError};
use finial_identity::bundle::{Bundle, X509Authority};
use tokio::io::AsyncReadExt;

use crate::own_svid::Trust;
use crate::settings::{Bootstrap, BundleFormat, Endpoint, Settings};
use crate::storage::{Purpose, Storage, StorageError, Trial};
use crate::workload_api::foreign;

/// How long the download of a bundle may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(30);

/// Why there is no first bundle.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("cannot read the trust bundle {}: {source}; check trust_bundle_path", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot fetch the trust bundle from {url}: {text}; check trust_bundle_url")]
    Fetch { url: String, text: String },
    #[error(
        "cannot fetch the trust bundle from the Workload API at {address}: {text}; check trust_bundle_spiffe_workload_api"
    )]
    Ask { address: String, text: String },
    #[error("the trust bundle from {from} can't be used: {source}; check trust_bundle_format")]
    Unusable { from: String, source: DocumentError },
    #[error(
        "the trust bundle from {from} holds no X.509 authority; check that it is the bundle of the server's trust domain"
    )]
    Empty { from: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The source of the first bundle and the state of the attempts, which outlives the program. Clones share the state.
#[derive(Clone)]
pub struct FirstTrust {
    source: Bootstrap,
    trust_domain: TrustDomain,
    server_address: String,
    server_port: u16,
    storage: Storage,
    clock: Clock,
}

impl FirstTrust {
    pub fn new(settings: &Settings, storage: Storage, clock: Clock) -> FirstTrust {
        FirstTrust {
            source: settings.bootstrap.clone(),
            trust_domain: settings.trust_domain.clone(),
            server_address: settings.server_address.clone(),
            server_port: settings.server_port,
            storage,
            clock,
        }
    }

    /// The trust to start with: the stored bundle of an earlier run, or the configured source. Asking the source counts as
    /// an attempt.
    pub async fn get(&self) -> Result<Trust, BootstrapError> {
        let stored = self.storage.bundle();
        if !stored.is_empty() {
            return Ok(Trust::Bundle(Arc::new(self.bundle_of(stored.iter().map(|der| der.to_vec())))));
        }
        let trial = self.count_attempt().await?;
        let (bytes, from, format) = match &self.source {
            Bootstrap::FirstMet => {
                tracing::warn!("Insecure bootstrap enabled; skipping server certificate verification");
                return Ok(Trust::FirstMet);
            }
            Bootstrap::File { path, format } => {
                let bytes = read(path).await;
                let bytes = bytes.map_err(|source| BootstrapError::Read { path: path.clone(), source })?;
                (bytes, path.display().to_string(), *format)
            }
            Bootstrap::Url { url, unix_socket, format } => {
                let full = match unix_socket {
                    Some(_) => self.with_parameters(url, &trial),
                    None => url.clone(),
                };
                let bytes = fetch(&full, unix_socket.as_deref()).await;
                let bytes = bytes.map_err(|text| BootstrapError::Fetch { url: url.clone(), text })?;
                (bytes, url.clone(), *format)
            }
            Bootstrap::WorkloadApi { address, endpoint } => {
                let dialer = match endpoint {
                    Endpoint::Unix(path) => Dialer::Unix(path.clone()),
                    Endpoint::Tcp(socket) => Dialer::tcp(socket.ip().to_string(), socket.port()),
                };
                return self.ask_workload_api(address, dialer).await;
            }
        };
        let bundle = parse(&self.trust_domain, &bytes, format)
            .map_err(|source| BootstrapError::Unusable { from: from.clone(), source })?;
        if bundle.x509_authorities.is_empty() {
            return Err(BootstrapError::Empty { from });
        }
        Ok(Trust::Bundle(Arc::new(bundle)))
    }

    /// Whether the agent has never believed a server yet.
    pub fn is_first(&self) -> bool {
        self.trial().purpose == Some(Purpose::Bootstrap)
    }

    /// Since when the server is not believed: from now on, if it was until now.
    pub async fn failing_since(&self) -> Result<SystemTime, StorageError> {
        let trial = self.trial();
        let since = trial.since.unwrap_or_else(|| self.clock.now());
        self.storage.store_trial(Trial { since: Some(since), ..trial }).await?;
        Ok(since)
    }

    /// The server was believed: the attempts are over.
    pub async fn succeeded(&self) -> Result<(), StorageError> {
        self.storage
            .store_trial(Trial { purpose: Some(Purpose::Rebootstrap), since: None, attempts: 0 })
            .await
    }

    /// Forgets the bundle: the source is asked again.
    pub async fn forget_bundle(&self) -> Result<(), StorageError> {
        self.storage.store_bundle(Vec::new()).await
    }

    /// Forgets the bundle and the agent's SVID: the next start asks the source again and attests anew.
    pub async fn start_over(&self) -> Result<(), StorageError> {
        let since = Some(self.clock.now());
        self.storage.start_over(Trial { purpose: Some(Purpose::Rebootstrap), since, attempts: 0 }).await
    }

    fn trial(&self) -> Trial {
        let trial = self.storage.trial();
        let has_bundle = !self.storage.bundle().is_empty();
        let first = if has_bundle { Purpose::Rebootstrap } else { Purpose::Bootstrap };
        Trial { purpose: trial.purpose.or(Some(first)), ..trial }
    }

    async fn count_attempt(&self) -> Result<Trial, StorageError> {
        let trial = self.trial();
        let since = Some(trial.since.unwrap_or_else(|| self.clock.now()));
        let trial = Trial { since, attempts: trial.attempts.saturating_add(1), ..trial };
        self.storage.store_trial(trial).await?;
        if matches!(self.source, Bootstrap::Url { .. } | Bootstrap::WorkloadApi { .. }) {
            let what =
                if trial.purpose == Some(Purpose::Rebootstrap) { "reattestation" } else { "attestation" };
            let started = since_text(&trial);
            tracing::info!("Server {what} attempt {}. Started {started}.", trial.attempts);
        }
        Ok(trial)
    }

    async fn ask_workload_api(&self, address: &str, dialer: Dialer) -> Result<Trust, BootstrapError> {
        let asked = foreign::x509_bundle(dialer, &self.trust_domain, &self.clock).await;
        let ders = asked.map_err(|text| BootstrapError::Ask { address: address.to_owned(), text })?;
        if ders.is_empty() {
            return Err(BootstrapError::Empty { from: address.to_owned() });
        }
        Ok(Trust::Bundle(Arc::new(self.bundle_of(ders))))
    }

    fn bundle_of(&self, ders: impl IntoIterator<Item = Vec<u8>>) -> Bundle {
        let mut bundle = Bundle::new(self.trust_domain.clone());
        bundle.x509_authorities = ders.into_iter().map(|der| X509Authority { der, tainted: false }).collect();
        bundle
    }

    /// What SPIRE's agent tells a bundle server on a Unix socket.
    fn with_parameters(&self, url: &str, trial: &Trial) -> String {
        let mode = if trial.purpose == Some(Purpose::Rebootstrap) { "rebootstrap" } else { "bootstrap" };
        let parameters = [
            ("spiffe-trust-domain", self.trust_domain.name().to_owned()),
            ("spire-attest-mode", mode.to_owned()),
            ("spire-attest-start-time", since_text(trial)),
            ("spire-connection-attempts", trial.attempts.to_string()),
            ("spire-server-address", self.server_address.clone()),
            ("spire-server-port", self.server_port.to_string()),
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
}

fn since_text(trial: &Trial) -> String {
    trial.since.map(|since| text::rfc3339(unix_seconds(since))).unwrap_or_default()
}

fn parse(trust_domain: &TrustDomain, bytes: &[u8], format: BundleFormat) -> Result<Bundle, DocumentError> {
    match format {
        BundleFormat::Pem => document::from_pem(trust_domain, bytes),
        BundleFormat::Spiffe => {
            let document = document::read(trust_domain, bytes)?;
            for skipped in &document.skipped {
                let (index, reason) = (skipped.index, &skipped.reason);
                tracing::warn!("Element {index} of \"keys\" of the trust bundle is left out: {reason}");
            }
            Ok(document.bundle)
        }
    }
}

/// The file, or one byte more than a document may have: the rest would be refused anyhow.
async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(document::MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
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

    use tokio::io::AsyncWriteExt;
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
        FirstTrust::new(&settings(folder, lines), storage, Clock::paused(UNIX_EPOCH)).get().await
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
