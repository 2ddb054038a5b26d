//! Proving that one holds a private key: each side gives a nonce, and the holder signs the SHA-256 of both, the
//! verifier's first. This is the shape of SPIRE's `x509pop` and `sshpop`.

use aws_lc_rs::digest::{SHA256, digest};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{
    ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_224_R_1, SECP_256_R_1, SECP_384_R_1, SECP_521_R_1,
};
use const_oid::db::rfc8410::ID_ED_25519;

use crate::certificate::{
    INTEGER, Malformed, OBJECT_IDENTIFIER, bit_string, elements, fixed, magnitude, malformed,
    object_identifier, whole,
};
use crate::signature::bit_length;

/// How long the nonce of either side is.
pub const NONCE_BYTES: usize = 32;

/// Which of the two nonces is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceFault {
    Challenge,
    Response,
}

/// What a SubjectPublicKeyInfo holds, as far as proofs are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    Rsa {
        bits: usize,
        /// RSAPublicKey, DER.
        key: Vec<u8>,
    },
    Ecdsa {
        curve: Curve,
        /// The point, SEC 1.
        point: Vec<u8>,
    },
    Ed25519,
    Other(ObjectIdentifier),
}

/// The curves that Go knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    P224,
    P256,
    P384,
    P521,
}

/// Both nonces, one after the other: what is hashed and signed.
pub fn combine(challenge: &[u8], response: &[u8]) -> Result<Vec<u8>, NonceFault> {
    if challenge.len() != NONCE_BYTES {
        return Err(NonceFault::Challenge);
    }
    if response.len() != NONCE_BYTES {
        return Err(NonceFault::Response);
    }
    Ok([challenge, response].concat())
}

/// The SHA-256 of both nonces.
pub fn hash(combined: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, combined).as_ref());
    hash
}

/// An ECDSA signature in DER from two big-endian magnitudes, which may have leading zeros.
pub fn ecdsa_signature(r: &[u8], s: &[u8]) -> Vec<u8> {
    let mut integers = Vec::with_capacity(r.len() + s.len() + 8);
    for number in [r, s] {
        let mut number: &[u8] = number;
        while let [0, rest @ ..] = number {
            number = rest;
        }
        let padded = number.first().is_none_or(|first| first & 0x80 != 0);
        integers.push(INTEGER);
        push_length(&mut integers, number.len() + usize::from(padded));
        if padded {
            integers.push(0);
        }
        integers.extend_from_slice(number);
    }
    let mut signature = vec![crate::certificate::SEQUENCE];
    push_length(&mut signature, integers.len());
    signature.extend(integers);
    signature
}

/// The two numbers of an ECDSA signature in DER: big-endian, without leading zeros.
pub fn ecdsa_parts(signature: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
    let what = "ECDSA signature";
    let [r, s] = fixed(whole(signature, what)?, what)?;
    Ok((magnitude(r.is(INTEGER, what)?, what)?, magnitude(s.is(INTEGER, what)?, what)?))
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo, DER.
    pub fn read(spki: &[u8]) -> Result<PublicKey, Malformed> {
        let what = "public key";
        let [algorithm, key] = fixed(whole(spki, what)?, what)?;
        let key = bit_string(key, what)?;
        let algorithm = elements(algorithm.is(crate::certificate::SEQUENCE, what)?)?;
        let (id, parameters) = match algorithm.as_slice() {
            [id] => (object_identifier(*id)?, None),
            [id, parameters] => (object_identifier(*id)?, Some(parameters)),
            _ => return Err(malformed("public key algorithm has a wrong number of parts")),
        };
        match id {
            RSA_ENCRYPTION => {
                let [modulus, _exponent] = fixed(whole(key, "RSA key")?, "RSA key")?;
                let modulus = magnitude(modulus.is(INTEGER, "RSA modulus")?, "RSA modulus")?;
                Ok(PublicKey::Rsa { bits: bit_length(&modulus), key: key.to_vec() })
            }
            ID_EC_PUBLIC_KEY => {
                let curve = parameters.filter(|parameters| parameters.tag == OBJECT_IDENTIFIER);
                let curve = curve.map(|curve| object_identifier(*curve)).transpose()?;
                let curve = match curve {
                    Some(SECP_224_R_1) => Curve::P224,
                    Some(SECP_256_R_1) => Curve::P256,
                    Some(SECP_384_R_1) => Curve::P384,
                    Some(SECP_521_R_1) => Curve::P521,
                    _ => return Err(malformed("x509: unsupported elliptic curve")),
                };
                Ok(PublicKey::Ecdsa { curve, point: key.to_vec() })
            }
            ID_ED_25519 => Ok(PublicKey::Ed25519),
            other => Ok(PublicKey::Other(other)),
        }
    }
}

impl Curve {
    /// As Go and NIST call it.
    pub fn name(self) -> &'static str {
        match self {
            Curve::P224 => "P-224",
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
            Curve::P521 => "P-521",
        }
    }
}

fn push_length(der: &mut Vec<u8>, length: usize) {
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => der.push(short),
        Ok(byte) => der.extend([0x81, byte]),
        // Lengths above belong to no signature; two bytes are enough to be refused.
        Err(_) => der.extend([0x82, (length >> 8) as u8, length as u8]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn signatures_come_apart_and_together(r in prop::collection::vec(any::<u8>(), 0..70), s in prop::collection::vec(any::<u8>(), 0..70)) {
            let strip = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
            let der = ecdsa_signature(&r, &s);
            prop_assert_eq!(ecdsa_parts(&der), Ok((strip(&r), strip(&s))));
        }
    }

    #[test]
    fn nonces_have_one_length() {
        assert_eq!(combine(&[0; 31], &[0; 32]), Err(NonceFault::Challenge));
        assert_eq!(combine(&[0; 32], &[]), Err(NonceFault::Response));
        let both = combine(&[1; 32], &[2; 32]).unwrap();
        assert_eq!((both.len(), both[31], both[32]), (64, 1, 2));
    }

    #[test]
    fn keys_are_told_apart() {
        let of = |algorithm| {
            use rcgen::PublicKeyData;
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            PublicKey::read(&key.subject_public_key_info()).unwrap()
        };
        assert!(
            matches!(of(&rcgen::PKCS_ECDSA_P256_SHA256), PublicKey::Ecdsa { curve: Curve::P256, point } if point.len() == 65)
        );
        assert!(matches!(of(&rcgen::PKCS_ECDSA_P384_SHA384), PublicKey::Ecdsa { curve: Curve::P384, .. }));
        assert_eq!(of(&rcgen::PKCS_ED25519), PublicKey::Ed25519);
        assert!(matches!(of(&rcgen::PKCS_RSA_SHA256), PublicKey::Rsa { bits: 2048, .. }));
        assert!(PublicKey::read(b"\x30\x00").is_err());
    }
}
