//! Key pairs in this process's memory. Parsed once; signing parses nothing.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RsaEncoding,
};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1,
    SHA_256_WITH_RSA_ENCRYPTION,
};
use der::asn1::UintRef;
use der::{Decode, Sequence};
use spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef};
use zeroize::Zeroizing;

use super::{KeyError, KeyType};

pub(super) struct KeyPair {
    key_type: KeyType,
    pair: Pair,
    public_key_der: Vec<u8>,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl KeyPair {
    /// Makes a key. Seconds of computing for RSA.
    pub(super) fn generate(key_type: KeyType) -> Result<KeyPair, KeyError> {
        let pair = match key_type {
            KeyType::EcP256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Pair::Ec),
            KeyType::EcP384 => EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).map(Pair::Ec),
            KeyType::Rsa2048 => RsaKeyPair::generate(KeySize::Rsa2048).map(Pair::Rsa),
            KeyType::Rsa4096 => RsaKeyPair::generate(KeySize::Rsa4096).map(Pair::Rsa),
        };
        KeyPair::of(key_type, pair.map_err(|_| KeyError::Generate(key_type))?)
    }

    /// Reads unencrypted PKCS#8, DER (RFC 5208), with or without the public key.
    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<KeyPair, KeyError> {
        let info = PrivateKeyInfo::from_der(pkcs8).map_err(|error| KeyError::NotAKey(error.to_string()))?;
        let rejected = |error: aws_lc_rs::error::KeyRejected| KeyError::NotAKey(error.to_string());
        let (key_type, pair) = match info.algorithm.oid {
            ID_EC_PUBLIC_KEY => {
                let curve =
                    info.algorithm.parameters_oid().map_err(|error| KeyError::NotAKey(error.to_string()))?;
                let (key_type, algorithm) = match curve {
                    SECP_256_R_1 => (KeyType::EcP256, &ECDSA_P256_SHA256_ASN1_SIGNING),
                    SECP_384_R_1 => (KeyType::EcP384, &ECDSA_P384_SHA384_ASN1_SIGNING),
                    other => return Err(unknown_kind("an elliptic curve key on curve", other)),
                };
                (key_type, Pair::Ec(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8).map_err(rejected)?))
            }
            RSA_ENCRYPTION => {
                let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(rejected)?;
                let key_type = match pair.public_modulus_len() {
                    256 => KeyType::Rsa2048,
                    512 => KeyType::Rsa4096,
                    bytes => {
                        let text =
                            format!("an RSA key of {} bits, where 2048 and 4096 are supported", bytes * 8);
                        return Err(KeyError::NotAKey(text));
                    }
                };
                (key_type, Pair::Rsa(pair))
            }
            other => return Err(unknown_kind("a key of algorithm", other)),
        };
        KeyPair::of(key_type, pair)
    }

    /// Unencrypted PKCS#8 version 1, DER; for `EC` with the public key inside, as Go writes it.
    pub(super) fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match &self.pair {
            Pair::Ec(pair) => {
                let document = pair.to_pkcs8v1().map_err(|_| KeyError::Encode)?;
                Ok(Zeroizing::new(document.as_ref().to_vec()))
            }
            Pair::Rsa(pair) => {
                let document: Pkcs8V1Der<'static> = pair.as_der().map_err(|_| KeyError::Encode)?;
                Ok(Zeroizing::new(document.as_ref().to_vec()))
            }
        }
    }

    pub(super) fn key_type(&self) -> KeyType {
        self.key_type
    }

    pub(super) fn public_key_der(&self) -> &[u8] {
        &self.public_key_der
    }

    /// Signs with the algorithm of [`signature_algorithm`].
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        match &self.pair {
            Pair::Ec(pair) => Ok(pair.sign(&SystemRandom::new(), message)?.as_ref().to_vec()),
            Pair::Rsa(_) => self.sign_rsa(&RSA_PKCS1_SHA256, message),
        }
    }

    /// Signs with an RSA padding of the caller's choice; fails for other keys.
    pub(super) fn sign_rsa(
        &self,
        padding: &'static dyn RsaEncoding,
        message: &[u8],
    ) -> Result<Vec<u8>, Unspecified> {
        match &self.pair {
            Pair::Ec(_) => Err(Unspecified),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), message, &mut signature)?;
                Ok(signature)
            }
        }
    }

    fn of(key_type: KeyType, pair: Pair) -> Result<KeyPair, KeyError> {
        let der: Result<PublicKeyX509Der<'static>, Unspecified> = match &pair {
            Pair::Ec(pair) => pair.public_key().as_der(),
            Pair::Rsa(pair) => pair.public_key().as_der(),
        };
        let public_key_der = der.map_err(|_| KeyError::Encode)?.as_ref().to_vec();
        Ok(KeyPair { key_type, pair, public_key_der })
    }
}

pub(super) fn signature_algorithm(key_type: KeyType) -> AlgorithmIdentifierOwned {
    match key_type {
        KeyType::EcP256 => AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None },
        KeyType::EcP384 => AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_384, parameters: None },
        KeyType::Rsa2048 | KeyType::Rsa4096 => {
            AlgorithmIdentifierOwned { oid: SHA_256_WITH_RSA_ENCRYPTION, parameters: Some(der::Any::null()) }
        }
    }
}

/// Turns a signature into the form of RFC 7518 section 3.4.
pub(super) fn jose_signature(key_type: KeyType, signature: Vec<u8>) -> Option<Vec<u8>> {
    let width = match key_type {
        KeyType::EcP256 => 32,
        KeyType::EcP384 => 48,
        KeyType::Rsa2048 | KeyType::Rsa4096 => return Some(signature),
    };
    let parsed = EcdsaSignature::from_der(&signature).ok()?;
    let mut joined = Vec::with_capacity(2 * width);
    for number in [parsed.r, parsed.s] {
        let bytes = number.as_bytes();
        joined.resize(joined.len() + width.checked_sub(bytes.len())?, 0);
        joined.extend_from_slice(bytes);
    }
    Some(joined)
}

/// RFC 3279 section 2.2.3.
#[derive(Sequence)]
struct EcdsaSignature<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

/// The head of a PKCS#8 key, which names its algorithm (RFC 5208 section 5, RFC 5958 section 2).
struct PrivateKeyInfo<'a> {
    algorithm: AlgorithmIdentifierRef<'a>,
}

impl<'a> der::DecodeValue<'a> for PrivateKeyInfo<'a> {
    type Error = der::Error;

    fn decode_value<R: der::Reader<'a>>(reader: &mut R, header: der::Header) -> der::Result<Self> {
        let _ = header;
        let _version = u8::decode(reader)?;
        let algorithm = AlgorithmIdentifierRef::decode(reader)?;
        // The key itself and what may follow are for the cryptographic library to read.
        while !reader.is_finished() {
            der::asn1::AnyRef::decode(reader)?;
        }
        Ok(PrivateKeyInfo { algorithm })
    }
}

impl der::FixedTag for PrivateKeyInfo<'_> {
    const TAG: der::Tag = der::Tag::Sequence;
}

fn unknown_kind(what: &str, oid: ObjectIdentifier) -> KeyError {
    KeyError::NotAKey(format!("{what} {oid}, where P-256, P-384, RSA 2048 and RSA 4096 are supported"))
}
