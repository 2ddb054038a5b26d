//! Checking signatures over DER structures with the key of a SubjectPublicKeyInfo.

use rustls_pki_types::{SignatureVerificationAlgorithm, alg_id};
use webpki::aws_lc_rs as algorithms;

use crate::certificate::{INTEGER, bit_string, fixed, magnitude, whole};

/// What may sign certificates and signing requests: RSA of 2048 to 8192 bits (PKCS#1 v1.5 and PSS), the NIST curves
/// and Ed25519, with SHA-2 only.
pub(crate) static ACCEPTED: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P384_SHA512,
    algorithms::ECDSA_P521_SHA256,
    algorithms::ECDSA_P521_SHA384,
    algorithms::ECDSA_P521_SHA512,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
    algorithms::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
    algorithms::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Why a signature does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    #[error(
        "the signature algorithm is not accepted; use SHA-256, SHA-384 or SHA-512 with RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521), or Ed25519"
    )]
    AlgorithmNotAccepted,
    #[error("the signature algorithm does not fit the public key")]
    AlgorithmDoesNotFitKey,
    #[error("the public key is malformed")]
    MalformedKey,
    #[error("the RSA key has {0} bits; use 2048 to 8192")]
    RsaKeySize(usize),
    #[error("the signature was not made over this content with this key")]
    Wrong,
}

/// Checks `signature` over `message`. `public_key` is a SubjectPublicKeyInfo, `algorithm` an AlgorithmIdentifier, both
/// DER with their headers.
pub(crate) fn verify(
    public_key: &[u8],
    algorithm: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureFault> {
    let key = |bytes| {
        let [key_algorithm, key] = fixed(whole(bytes, "public key")?, "public key")?;
        Ok::<_, crate::certificate::Malformed>((key_algorithm, bit_string(key, "public key")?))
    };
    let (key_algorithm, key) = key(public_key).map_err(|_| SignatureFault::MalformedKey)?;
    let algorithm =
        whole(algorithm, "signature algorithm").map_err(|_| SignatureFault::AlgorithmNotAccepted)?;

    let mut known =
        ACCEPTED.iter().filter(|known| known.signature_alg_id().as_ref() == algorithm.value).peekable();
    if known.peek().is_none() {
        return Err(SignatureFault::AlgorithmNotAccepted);
    }
    let fitting = known
        .find(|known| known.public_key_alg_id().as_ref() == key_algorithm.value)
        .ok_or(SignatureFault::AlgorithmDoesNotFitKey)?;
    if let Some(bits) = rsa_bits(key_algorithm.value, key)
        && !(2048..=8192).contains(&bits)
    {
        return Err(SignatureFault::RsaKeySize(bits));
    }
    fitting.verify_signature(key, message, signature).map_err(|_| SignatureFault::Wrong)
}

/// The length of an RSA modulus; nothing for other keys and for those that cannot be read.
fn rsa_bits(algorithm: &[u8], key: &[u8]) -> Option<usize> {
    if algorithm != alg_id::RSA_ENCRYPTION.as_ref() {
        return None;
    }
    let [modulus, _exponent] = fixed(whole(key, "RSA key").ok()?, "RSA key").ok()?;
    let modulus = magnitude(modulus.is(INTEGER, "RSA modulus").ok()?, "RSA modulus").ok()?;
    Some(bit_length(&modulus))
}

/// The bits of a big-endian magnitude without leading zeros.
pub(crate) fn bit_length(magnitude: &[u8]) -> usize {
    magnitude.len() * 8 - magnitude.first().map_or(0, |byte| byte.leading_zeros() as usize)
}
