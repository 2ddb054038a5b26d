//! The challenge: a nonce for the agent, whose key signs the SHA-256 of that and of a nonce of its own.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P521_SHA256_ASN1, RSA_PSS_2048_8192_SHA256,
    RsaPssSaltLength, UnparsedPublicKey, VerificationAlgorithm,
};
use finial_identity::possession::{self, Curve, NONCE_BYTES, NonceFault, PublicKey};
use serde_json::json;

use finial_identity::go_json::{NotReadable, Object, encoded};

/// What a key must prove. Good for one answer.
pub struct Challenge {
    nonce: [u8; NONCE_BYTES],
    key: ProofKey,
}

/// A key that can prove something here.
enum ProofKey {
    /// RSAPublicKey, DER.
    Rsa(Vec<u8>),
    Ecdsa(&'static dyn VerificationAlgorithm, Vec<u8>),
}

/// An agent's answer.
pub struct Answer {
    rsa: Option<RsaAnswer>,
    ecdsa: Option<EcdsaAnswer>,
}

struct RsaAnswer {
    nonce: Vec<u8>,
    signature: Vec<u8>,
}

struct EcdsaAnswer {
    nonce: Vec<u8>,
    r: Vec<u8>,
    s: Vec<u8>,
}

/// Why there is no challenge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoChallenge {
    #[error("certificate not intended for digital signature use")]
    NotForSignatures,
    #[error("unsupported public key type {0}")]
    KeyType(String),
    #[error("unsupported public key: ECDSA on {0}; use P-256, P-384 or P-521")]
    Curve(&'static str),
    #[error("unsupported public key: RSA with {0} bits; use 2048 to 8192")]
    RsaSize(usize),
    #[error("the operating system gave no random numbers")]
    NoRandom,
}

/// Why an answer does not prove anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    #[error("expecting RSA response")]
    NoRsaAnswer,
    #[error("expecting ECDSA response")]
    NoEcdsaAnswer,
    #[error("invalid challenge nonce")]
    ChallengeNonce,
    #[error("invalid response nonce")]
    AnswerNonce,
    #[error("RSA signature verify failed")]
    RsaSignature,
    #[error("ECDSA signature verify failed")]
    EcdsaSignature,
}

impl Challenge {
    /// A new challenge for a key. `for_signatures`: whether its certificate has the key usage digitalSignature.
    pub fn new(key: &PublicKey, for_signatures: bool) -> Result<Challenge, NoChallenge> {
        if !for_signatures {
            return Err(NoChallenge::NotForSignatures);
        }
        let key = match key {
            PublicKey::Rsa { bits, key } if (2048..=8192).contains(bits) => ProofKey::Rsa(key.clone()),
            PublicKey::Rsa { bits, .. } => return Err(NoChallenge::RsaSize(*bits)),
            PublicKey::Ecdsa { curve, point } => {
                let algorithm: &'static dyn VerificationAlgorithm = match curve {
                    Curve::P256 => &ECDSA_P256_SHA256_ASN1,
                    Curve::P384 => &ECDSA_P384_SHA256_ASN1,
                    Curve::P521 => &ECDSA_P521_SHA256_ASN1,
                    Curve::P224 => return Err(NoChallenge::Curve(curve.name())),
                };
                ProofKey::Ecdsa(algorithm, point.clone())
            }
            PublicKey::Ed25519 => return Err(NoChallenge::KeyType("ed25519.PublicKey".to_owned())),
            PublicKey::Other(id) => return Err(NoChallenge::KeyType(id.to_string())),
        };
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| NoChallenge::NoRandom)?;
        Ok(Challenge { nonce, key })
    }

    /// What is sent to the agent.
    pub fn to_json(&self) -> Vec<u8> {
        let nonce = json!({ "nonce": encoded(&self.nonce) });
        let challenge = match self.key {
            ProofKey::Rsa(_) => json!({ "rsa_signature": nonce, "ecdsa_signature": null }),
            ProofKey::Ecdsa(..) => json!({ "rsa_signature": null, "ecdsa_signature": nonce }),
        };
        challenge.to_string().into_bytes()
    }

    /// Whether the answer proves that the agent has the key.
    pub fn verify(self, answer: &Answer) -> Result<(), NotProven> {
        let signed = |nonce: &[u8]| {
            possession::combine(&self.nonce, nonce).map_err(|fault| match fault {
                NonceFault::Challenge => NotProven::ChallengeNonce,
                NonceFault::Response => NotProven::AnswerNonce,
            })
        };
        match &self.key {
            ProofKey::Rsa(key) => {
                let answer = answer.rsa.as_ref().ok_or(NotProven::NoRsaAnswer)?;
                let message = signed(&answer.nonce)?;
                // Go signs with the longest salt the key allows, or, under FIPS 140, with one as long as the hash.
                let longest = const { &RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) };
                let holds = |algorithm: &'static dyn VerificationAlgorithm| {
                    UnparsedPublicKey::new(algorithm, key).verify(&message, &answer.signature).is_ok()
                };
                if holds(longest) || holds(&RSA_PSS_2048_8192_SHA256) {
                    Ok(())
                } else {
                    Err(NotProven::RsaSignature)
                }
            }
            ProofKey::Ecdsa(algorithm, point) => {
                let answer = answer.ecdsa.as_ref().ok_or(NotProven::NoEcdsaAnswer)?;
                let message = signed(&answer.nonce)?;
                let signature = possession::ecdsa_signature(&answer.r, &answer.s);
                UnparsedPublicKey::new(*algorithm, point)
                    .verify(&message, &signature)
                    .map_err(|_| NotProven::EcdsaSignature)
            }
        }
    }
}

impl Answer {
    /// Reads what an agent sent.
    pub fn read(json: &[u8]) -> Result<Answer, NotReadable> {
        let answer = Object::read(json)?;
        let rsa = answer.object("rsa_signature")?;
        let rsa = rsa
            .map(|part| Ok(RsaAnswer { nonce: part.bytes("nonce")?, signature: part.bytes("signature")? }))
            .transpose()?;
        let ecdsa = answer.object("ecdsa_signature")?;
        let ecdsa = ecdsa
            .map(|part| {
                Ok(EcdsaAnswer { nonce: part.bytes("nonce")?, r: part.bytes("r")?, s: part.bytes("s")? })
            })
            .transpose()?;
        Ok(Answer { rsa, ecdsa })
    }
}
