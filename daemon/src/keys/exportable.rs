//! The keys of workloads, which the Workload API hands out together with their certificates.

use std::fmt;

use spki::AlgorithmIdentifierOwned;
use x509_cert::name::Name;
use zeroize::Zeroizing;

use super::local::KeyPair;
use super::{KeyError, KeyType, csr};

/// A private key that may leave the process. Wiped from memory when dropped.
pub struct WorkloadKey {
    pair: KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl WorkloadKey {
    /// Makes a key: about 15 µs for P-256, up to seconds for RSA (use `spawn_blocking`).
    pub fn generate(key_type: KeyType) -> Result<WorkloadKey, KeyError> {
        let pair = KeyPair::generate(key_type)?;
        let pkcs8 = pair.to_pkcs8()?;
        Ok(WorkloadKey { pair, pkcs8 })
    }

    /// Reads unencrypted PKCS#8, DER. [`WorkloadKey::pkcs8`] gives back the same bytes.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<WorkloadKey, KeyError> {
        Ok(WorkloadKey { pair: KeyPair::from_pkcs8(pkcs8)?, pkcs8: Zeroizing::new(pkcs8.to_vec()) })
    }

    /// The private key as unencrypted PKCS#8, DER (X509-SVID's form in the Workload API). Copies belong in
    /// `Zeroizing`.
    pub fn pkcs8(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }

    /// The public key as SubjectPublicKeyInfo, DER.
    pub fn public_key_der(&self) -> &[u8] {
        self.pair.public_key_der()
    }

    pub fn key_type(&self) -> KeyType {
        self.pair.key_type()
    }

    /// What [`WorkloadKey::sign`] signs with.
    pub fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        self.key_type().signature_algorithm()
    }

    /// Signs a message (not its hash).
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.pair.sign(message).map_err(|_| KeyError::Sign(self.key_type(), "workload".to_string()))
    }

    /// A PKCS#10 certificate request for the key, DER; see [`super::csr()`].
    pub fn csr(&self, subject: &Name, uris: &[&str]) -> Result<Vec<u8>, KeyError> {
        let info = csr::request_info(self.public_key_der(), subject, uris)?;
        let signature = self.sign(&info)?;
        csr::assemble(&info, &self.signature_algorithm(), &signature)
    }
}

impl fmt::Debug for WorkloadKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("WorkloadKey").field("key_type", &self.key_type()).finish_non_exhaustive()
    }
}
