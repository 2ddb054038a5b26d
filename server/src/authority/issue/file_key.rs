//! A signing key from a PEM file: what an enterprise gives us beside its CA certificate.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const ECDSA_SHA512: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04];
const RSA_SHA256: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

/// A private key that was read from a file. It leaves this file only as signatures.
pub struct FileKey {
    pair: Pair,
    algorithm: &'static [u8],
    public_key: Vec<u8>,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// Why a file holds no key that can sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileKeyFault {
    #[error("it holds no PEM block of an unencrypted private key (PKCS#8, PKCS#1 or SEC1)")]
    NoKey,
    #[error(
        "its private key is of an unknown kind; RSA (2048 to 8192 bits), P-256, P-384, P-521 and Ed25519 are known"
    )]
    UnknownKind,
    #[error("its public key can not be derived")]
    NoPublicKey,
}

/// The cryptographic library could not sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key from the file could not sign")]
pub struct SignFault;

impl FileKey {
    /// Reads the first private key of a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<FileKey, FileKeyFault> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| FileKeyFault::NoKey)?;
        let (pair, algorithm) = match &der {
            PrivateKeyDer::Pkcs1(key) => {
                (RsaKeyPair::from_der(key.secret_pkcs1_der()).ok().map(Pair::Rsa), RSA_SHA256)
            }
            PrivateKeyDer::Sec1(key) => ecdsa(key.secret_sec1_der()),
            PrivateKeyDer::Pkcs8(key) => pkcs8(key.secret_pkcs8_der()),
            _ => (None, RSA_SHA256),
        };
        let pair = pair.ok_or(FileKeyFault::UnknownKind)?;
        let public_key = pair.public_key().ok_or(FileKeyFault::NoPublicKey)?;
        Ok(FileKey { pair, algorithm, public_key })
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn public_key_der(&self) -> &[u8] {
        &self.public_key
    }

    /// AlgorithmIdentifier of its signatures, DER.
    pub(super) fn algorithm(&self) -> &'static [u8] {
        self.algorithm
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(|_| SignFault)?;
                Ok(signature)
            }
            Pair::Ecdsa(key) => Ok(key.sign(&random, message).map_err(|_| SignFault)?.as_ref().to_vec()),
            Pair::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        }
    }
}

impl Pair {
    fn public_key(&self) -> Option<Vec<u8>> {
        let der: PublicKeyX509Der<'_> = match self {
            Pair::Rsa(key) => key.public_key().as_der(),
            Pair::Ecdsa(key) => key.public_key().as_der(),
            Pair::Ed25519(key) => key.public_key().as_der(),
        }
        .ok()?;
        Some(der.as_ref().to_vec())
    }
}

fn pkcs8(der: &[u8]) -> (Option<Pair>, &'static [u8]) {
    if let Ok(key) = RsaKeyPair::from_pkcs8(der) {
        return (Some(Pair::Rsa(key)), RSA_SHA256);
    }
    if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return (Some(Pair::Ed25519(key)), ED25519);
    }
    ecdsa(der)
}

/// The curve is written in the key; one that names another is refused by the library.
fn ecdsa(der: &[u8]) -> (Option<Pair>, &'static [u8]) {
    let curves: [(&'static EcdsaSigningAlgorithm, &'static [u8]); 3] = [
        (&ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_SHA256),
        (&ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_SHA384),
        (&ECDSA_P521_SHA512_ASN1_SIGNING, ECDSA_SHA512),
    ];
    for (curve, algorithm) in curves {
        if let Ok(key) = EcdsaKeyPair::from_private_key_der(curve, der) {
            return (Some(Pair::Ecdsa(key)), algorithm);
        }
    }
    (None, ECDSA_SHA256)
}
