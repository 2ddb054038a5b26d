//! `sshpop`: the host certificate that an SSH authority gave the machine, and the proof of the host's key.

mod key;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{Section, SettingsError};
use finial_identity::go_json::{Object, encoded};
use finial_identity::possession::{self, NONCE_BYTES, NonceFault};
use finial_identity::ssh::{Certificate, certificate_of_file};
use serde_json::json;
use zeroize::Zeroizing;

use self::key::HostKey;
use super::{Attestation, Given, NodeAttestor, NodeAttestorFault};

pub const NAME: &str = "sshpop";

const DEFAULT_KEY: &str = "/etc/ssh/ssh_host_rsa_key";
const DEFAULT_CERTIFICATE: &str = "/etc/ssh/ssh_host_rsa_key-cert.pub";

/// The attestor: where the files are.
#[derive(Clone)]
struct SshPop {
    key: PathBuf,
    certificate: PathBuf,
}

/// A host certificate and its key.
struct Evidence {
    certificate: Certificate,
    key: HostKey,
}

pub(super) fn configure(section: Section, _given: &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    let path = |key: &str, default: &str| {
        let given = section.string(key).filter(|path| !path.is_empty());
        PathBuf::from(given.as_deref().unwrap_or(default))
    };
    let files = SshPop {
        key: path("host_key_path", DEFAULT_KEY),
        certificate: path("host_cert_path", DEFAULT_CERTIFICATE),
    };
    section.finish()?;
    Ok(Arc::new(files))
}

#[async_trait]
impl NodeAttestor for SshPop {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn begin(&self) -> Result<Box<dyn Attestation>, NodeAttestorFault> {
        let files = self.clone();
        let read = tokio::task::spawn_blocking(move || files.load()).await;
        let evidence = read.unwrap_or_else(|_| Err("reading the certificate was cut off".to_owned()));
        let evidence = evidence.map_err(|text| NodeAttestorFault::NotReady { attestor: NAME, text })?;
        Ok(Box::new(evidence))
    }
}

#[async_trait]
impl Attestation for Evidence {
    fn payload(&self) -> Vec<u8> {
        json!({ "Certificate": encoded(self.certificate.blob()) }).to_string().into_bytes()
    }

    async fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestorFault> {
        let refused = |text: String| NodeAttestorFault::Challenge { attestor: NAME, text };
        let theirs = Object::read(challenge).and_then(|challenge| challenge.bytes("Nonce"));
        let theirs =
            theirs.map_err(|error| refused(format!("failed to unmarshal challenge request: {error}")))?;
        let mut ours = [0; NONCE_BYTES];
        getrandom::fill(&mut ours).map_err(|error| refused(format!("failed to generate nonce: {error}")))?;
        let combined = possession::combine(&theirs, &ours).map_err(|fault| match fault {
            NonceFault::Challenge => refused("failed to combine nonces: invalid challenge nonce size".into()),
            NonceFault::Response => refused("failed to combine nonces: invalid response nonce size".into()),
        })?;
        let signature = self.key.sign(&possession::hash(&combined));
        let signature = signature.ok_or_else(|| refused("failed to sign data".to_owned()))?;
        let signature = json!({ "Format": signature.format, "Blob": encoded(&signature.blob), "Rest": null });
        Ok(json!({ "Nonce": encoded(&ours), "Signature": signature }).to_string().into_bytes())
    }
}

impl SshPop {
    /// Reads both files. Blocking.
    fn load(&self) -> Result<Evidence, String> {
        let SshPop { key, certificate } = self;
        let read = |path: &PathBuf, what: &str| {
            std::fs::read_to_string(path)
                .map_err(|error| format!("failed to read host {what} file: open {}: {error}", path.display()))
        };
        let pem = Zeroizing::new(read(key, "key")?);
        let text = read(certificate, "cert")?;
        let failed = |error: &dyn std::fmt::Display, path: &PathBuf| {
            format!("failed to get cert and signer from pem: {}: {error}", path.display())
        };
        let host_key = HostKey::read(&pem).map_err(|error| failed(&error, key))?;
        let found = certificate_of_file(&text).ok_or_else(|| failed(&"ssh: no key found", certificate))?;
        let found = found.map_err(|error| failed(&error, certificate))?;
        // A certificate for another key would be refused by the server each time, with less to go by.
        const PROBE: &[u8] = b"is this the key of the certificate?";
        let signed =
            host_key.sign(PROBE).is_some_and(|signature| found.key.verify(PROBE, &signature).is_ok());
        if !signed {
            return Err(failed(&format!("it is not for the key in {}", key.display()), certificate));
        }
        Ok(Evidence { certificate: found, key: host_key })
    }
}

#[cfg(test)]
mod tests;
