//! Private keys: making them, keeping them, signing with them.
//!
//! A [`Key`] never shows its secret; it signs. The one key that must be handed out, because the Workload API
//! does so, is a [`exportable::WorkloadKey`].

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use spki::AlgorithmIdentifierOwned;
use x509_cert::name::Name;

#[cfg(test)]
mod contract;
pub mod counted;
mod csr;
pub mod disk;
pub mod exportable;
mod local;
pub mod memory;
mod tls;

pub use csr::spire_subject;
pub use exportable::WorkloadKey;
pub use tls::rustls_key;

use local::KeyPair;

/// The kinds of key that SPIRE's configuration can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyType {
    EcP256,
    EcP384,
    Rsa2048,
    Rsa4096,
}

impl KeyType {
    pub const ALL: [KeyType; 4] = [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048, KeyType::Rsa4096];

    /// The name in configuration files: `ec-p256`, ...
    pub fn name(self) -> &'static str {
        match self {
            KeyType::EcP256 => "ec-p256",
            KeyType::EcP384 => "ec-p384",
            KeyType::Rsa2048 => "rsa-2048",
            KeyType::Rsa4096 => "rsa-4096",
        }
    }

    /// The one algorithm that keys of this type sign with: ECDSA with SHA-256 on P-256, with SHA-384 on
    /// P-384, RSA PKCS#1 v1.5 with SHA-256; as in SPIRE (Go's `x509` defaults).
    pub fn signature_algorithm(self) -> AlgorithmIdentifierOwned {
        local::signature_algorithm(self)
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// A key type that is none of the four.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key type {0:?} is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]")]
pub struct UnknownKeyType(pub String);

impl FromStr for KeyType {
    type Err = UnknownKeyType;

    fn from_str(text: &str) -> Result<KeyType, UnknownKeyType> {
        let lower = text.to_lowercase();
        KeyType::ALL
            .into_iter()
            .find(|known| known.name() == lower)
            .ok_or_else(|| UnknownKeyType(text.to_string()))
    }
}

/// What can go wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot generate a {0} key: the cryptographic library failed")]
    Generate(KeyType),
    #[error("cannot sign with the {0} key {1:?}: the cryptographic library failed")]
    Sign(KeyType, String),
    #[error("cannot encode the private key: the cryptographic library failed")]
    Encode,
    #[error("the private key is not usable PKCS#8: {0}")]
    NotAKey(String),
    #[error("cannot build the certificate request: {0}")]
    Request(String),
    #[error("a key id must not be empty")]
    EmptyId,
    #[error("cannot read the keys in {}: {source}; check the path and its permissions", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write the keys to {}: {source}; the old keys stay in use", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the key file {} is damaged: {text}; restore it from a backup, or remove it to start with new keys",
        path.display())]
    Damaged { path: PathBuf, text: String },
    #[error("the task that worked on the key was cut off")]
    CutOff,
}

/// A private key that signs. Neither its `Debug` nor any method shows the secret.
pub struct Key {
    id: String,
    pair: Arc<KeyPair>,
}

impl Key {
    /// The id it was generated under, such as `x509-CA-A`.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn key_type(&self) -> KeyType {
        self.pair.key_type()
    }

    /// The public key as SubjectPublicKeyInfo, DER.
    pub fn public_key_der(&self) -> &[u8] {
        self.pair.public_key_der()
    }

    /// What [`Key::sign`] signs with; for certificates and requests.
    pub fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        self.key_type().signature_algorithm()
    }

    /// Signs a message (not its hash) with [`Key::signature_algorithm`]. ECDSA signatures are DER.
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        if self.key_type() == KeyType::Rsa4096 {
            // Milliseconds: too long for a thread that serves others.
            let (pair, message) = (Arc::clone(&self.pair), message.to_vec());
            return tokio::task::spawn_blocking(move || pair.sign(&message))
                .await
                .map_err(|_| KeyError::CutOff)?
                .map_err(|_| self.failed());
        }
        self.pair.sign(message).map_err(|_| self.failed())
    }

    /// Signs a message whose SHA-256 (SHA-384 for P-384) goes into a JSON web signature: ECDSA signatures are
    /// the two numbers side by side (RFC 7518 section 3.4), RSA ones are as from [`Key::sign`].
    pub async fn sign_jose(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.sign(message).await?;
        local::jose_signature(self.key_type(), signature).ok_or_else(|| self.failed())
    }

    fn new(id: &str, pair: KeyPair) -> Key {
        Key { id: id.to_string(), pair: Arc::new(pair) }
    }

    fn failed(&self) -> KeyError {
        KeyError::Sign(self.key_type(), self.id.clone())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Key")
            .field("id", &self.id)
            .field("key_type", &self.key_type())
            .finish_non_exhaustive()
    }
}

/// Keeps keys by id. A plugin boundary: `memory` and `disk` are built in.
#[async_trait]
pub trait KeyManager: Send + Sync {
    /// Makes a new key and puts it in the place of the one with this id, if there is one. When this fails the
    /// old key stays. Whoever holds the old key may go on signing with it.
    async fn generate(&self, id: &str, key_type: KeyType) -> Result<Arc<Key>, KeyError>;

    /// The key with this id.
    async fn get(&self, id: &str) -> Result<Option<Arc<Key>>, KeyError>;

    /// All keys, ordered by id.
    async fn list(&self) -> Result<Vec<Arc<Key>>, KeyError>;
}

/// A PKCS#10 certificate request for the key, DER: the subject, and a subject alternative name extension
/// when there are URIs.
pub async fn csr(key: &Key, subject: &Name, uris: &[&str]) -> Result<Vec<u8>, KeyError> {
    let info = csr::request_info(key.public_key_der(), subject, uris)?;
    let signature = key.sign(&info).await?;
    csr::assemble(&info, &key.signature_algorithm(), &signature)
}

/// Generates off the runtime's threads: an RSA key takes up to seconds.
async fn generate_pair(key_type: KeyType) -> Result<KeyPair, KeyError> {
    tokio::task::spawn_blocking(move || KeyPair::generate(key_type)).await.map_err(|_| KeyError::CutOff)?
}

#[cfg(test)]
mod tests;
