//! The private key that proves a certificate.

use aws_lc_rs::digest::{Digest, SHA384};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA256_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RSA_PSS_SHA256, RsaPssSaltLength,
};
use finial_identity::go_json::{NotReadable, Object, encoded};
use finial_identity::possession::{self, Curve, NonceFault, PublicKey};
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;

/// A key that fits its certificate.
pub enum ProofKey {
    Rsa(rsa::KeyPair),
    Ecdsa(EcdsaKeyPair, Curve),
}

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    #[error("unable to load keypair: the private key cannot be read: {0}")]
    Unreadable(String),
    #[error("unable to load keypair: tls: private key does not match public key")]
    OtherKey,
    #[error(
        "unsupported private key type {0}; use RSA with 2048 to 8192 bits or ECDSA on P-256, P-384 or P-521"
    )]
    KeyType(String),
}

/// Why a challenge can't be answered.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("unable to unmarshal challenge: {0}")]
    Unreadable(#[from] NotReadable),
    #[error("failed to calculate challenge response: expecting RSA challenge")]
    NoRsaChallenge,
    #[error("failed to calculate challenge response: expecting ECDSA challenge")]
    NoEcdsaChallenge,
    #[error("failed to calculate challenge response: invalid challenge nonce")]
    Nonce,
    #[error("failed to calculate challenge response: the key cannot sign")]
    Signing,
}

impl ProofKey {
    /// The private key (PKCS#8, PKCS#1 or SEC 1) of a certificate's public key.
    pub fn new(private: &PrivateKeyDer<'_>, public: &PublicKey) -> Result<ProofKey, KeyFault> {
        let unreadable = |error: aws_lc_rs::error::KeyRejected| KeyFault::Unreadable(error.to_string());
        match public {
            PublicKey::Rsa { bits, key } => {
                if !(2048..=8192).contains(bits) {
                    return Err(KeyFault::KeyType(format!("RSA with {bits} bits")));
                }
                let pair = match private {
                    PrivateKeyDer::Pkcs1(der) => rsa::KeyPair::from_der(der.secret_pkcs1_der()),
                    PrivateKeyDer::Pkcs8(der) => rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()),
                    _ => return Err(KeyFault::OtherKey),
                };
                let pair = pair.map_err(unreadable)?;
                if pair.public_key().as_ref() != key.as_slice() {
                    return Err(KeyFault::OtherKey);
                }
                Ok(ProofKey::Rsa(pair))
            }
            PublicKey::Ecdsa { curve, point } => {
                let algorithm: &'static EcdsaSigningAlgorithm = match curve {
                    Curve::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
                    Curve::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
                    Curve::P521 => &ECDSA_P521_SHA256_ASN1_SIGNING,
                    Curve::P224 => return Err(KeyFault::KeyType(format!("ECDSA on {}", curve.name()))),
                };
                let pair = EcdsaKeyPair::from_private_key_der(algorithm, private.secret_der());
                let pair = pair.map_err(unreadable)?;
                if pair.public_key().as_ref() != point.as_slice() {
                    return Err(KeyFault::OtherKey);
                }
                Ok(ProofKey::Ecdsa(pair, *curve))
            }
            PublicKey::Ed25519 => Err(KeyFault::KeyType("ed25519.PrivateKey".to_owned())),
            PublicKey::Other(id) => Err(KeyFault::KeyType(id.to_string())),
        }
    }

    /// The answer to a challenge, as JSON. `nonce` is this side's.
    pub fn answer(&self, challenge: &[u8], nonce: &[u8]) -> Result<Vec<u8>, NoAnswer> {
        let challenge = Object::read(challenge)?;
        let combined = |part: Object| {
            possession::combine(&part.bytes("nonce")?, nonce).map_err(|fault| match fault {
                NonceFault::Challenge => NoAnswer::Nonce,
                NonceFault::Response => NoAnswer::Signing,
            })
        };
        let answer = match self {
            ProofKey::Rsa(pair) => {
                let part = challenge.object("rsa_signature")?.ok_or(NoAnswer::NoRsaChallenge)?;
                let message = combined(part)?;
                let mut signature = vec![0; pair.public_modulus_len()];
                let longest = const { &RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) };
                pair.sign(longest, &SystemRandom::new(), &message, &mut signature)
                    .map_err(|_| NoAnswer::Signing)?;
                let part = json!({ "nonce": encoded(nonce), "signature": encoded(&signature) });
                json!({ "rsa_signature": part, "ecdsa_signature": null })
            }
            ProofKey::Ecdsa(pair, curve) => {
                let part = challenge.object("ecdsa_signature")?.ok_or(NoAnswer::NoEcdsaChallenge)?;
                let message = combined(part)?;
                let (r, s) = ecdsa(pair, *curve, &message).ok_or(NoAnswer::Signing)?;
                let part = json!({ "nonce": encoded(nonce), "r": encoded(&r), "s": encoded(&s) });
                json!({ "rsa_signature": null, "ecdsa_signature": part })
            }
        };
        Ok(answer.to_string().into_bytes())
    }
}

/// ECDSA over the SHA-256 of the message, whatever the curve.
fn ecdsa(pair: &EcdsaKeyPair, curve: Curve, message: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let signature = match curve {
        // aws-lc-rs signs on P-384 with SHA-384 only. ECDSA takes a hash as a number: a shorter one is the same as one with
        // zeros in front.
        Curve::P384 => {
            let padded = [&[0; 16][..], &possession::hash(message)].concat();
            pair.sign_digest(&Digest::import_less_safe(&padded, &SHA384).ok()?).ok()?
        }
        _ => pair.sign(&SystemRandom::new(), message).ok()?,
    };
    possession::ecdsa_parts(signature.as_ref()).ok()
}
