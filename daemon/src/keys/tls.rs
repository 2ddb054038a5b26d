//! Keys as TLS wants them.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};

use super::local::KeyPair;
use super::{Key, KeyType};

/// The key for TLS handshakes: PSS first for RSA, which TLS 1.3 demands (RFC 8446 section 4.2.3).
pub fn rustls_key(key: &Arc<Key>) -> Arc<dyn SigningKey> {
    Arc::new(TlsKey { key: Arc::clone(key) })
}

struct TlsKey {
    key: Arc<Key>,
}

struct TlsSigner {
    pair: Arc<KeyPair>,
    scheme: SignatureScheme,
    /// `None` for ECDSA.
    padding: Option<&'static dyn RsaEncoding>,
}

const RSA: [(SignatureScheme, &dyn RsaEncoding); 6] = [
    (SignatureScheme::RSA_PSS_SHA256, &RSA_PSS_SHA256),
    (SignatureScheme::RSA_PSS_SHA384, &RSA_PSS_SHA384),
    (SignatureScheme::RSA_PSS_SHA512, &RSA_PSS_SHA512),
    (SignatureScheme::RSA_PKCS1_SHA256, &RSA_PKCS1_SHA256),
    (SignatureScheme::RSA_PKCS1_SHA384, &RSA_PKCS1_SHA384),
    (SignatureScheme::RSA_PKCS1_SHA512, &RSA_PKCS1_SHA512),
];

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let pair = &self.key.pair;
        let (scheme, padding) = match self.key.key_type() {
            KeyType::EcP256 => (SignatureScheme::ECDSA_NISTP256_SHA256, None),
            KeyType::EcP384 => (SignatureScheme::ECDSA_NISTP384_SHA384, None),
            KeyType::Rsa2048 | KeyType::Rsa4096 => {
                let (scheme, padding) = RSA.into_iter().find(|(scheme, _)| offered.contains(scheme))?;
                (scheme, Some(padding))
            }
        };
        offered
            .contains(&scheme)
            .then(|| -> Box<dyn Signer> { Box::new(TlsSigner { pair: Arc::clone(pair), scheme, padding }) })
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.key.public_key_der()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.key.key_type() {
            KeyType::EcP256 | KeyType::EcP384 => SignatureAlgorithm::ECDSA,
            KeyType::Rsa2048 | KeyType::Rsa4096 => SignatureAlgorithm::RSA,
        }
    }
}

impl Signer for TlsSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = match self.padding {
            None => self.pair.sign(message),
            Some(padding) => self.pair.sign_rsa(padding, message),
        };
        signature.map_err(|_| Error::General("signing failed".to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsKey").field("key", &self.key).finish()
    }
}

impl fmt::Debug for TlsSigner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsSigner").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}
