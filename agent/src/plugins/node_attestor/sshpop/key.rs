//! The host's private key, which signs the challenge.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::rsa::{KeyPairComponents, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, RSA_PKCS1_SHA512,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use finial_identity::possession;
use finial_identity::ssh::{Reader, Signature, push_magnitude};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// A key that signs as SSH does.
pub enum HostKey {
    Rsa(rsa::KeyPair),
    /// With the name of the key type.
    Ecdsa(EcdsaKeyPair, &'static str),
    Ed25519(Ed25519KeyPair),
}

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    #[error("ssh: no key found")]
    None,
    #[error("ssh: this private key is passphrase protected; give the host a key without one")]
    Protected,
    #[error("ssh: unsupported key type {0}; use RSA, ECDSA on P-256, P-384 or P-521, or Ed25519")]
    KeyType(String),
    #[error("ssh: the key cannot be read: {0}")]
    Unreadable(String),
}

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";

type Curve = (&'static str, &'static EcdsaSigningAlgorithm);
const P256: Curve = ("ecdsa-sha2-nistp256", &ECDSA_P256_SHA256_ASN1_SIGNING);
const P384: Curve = ("ecdsa-sha2-nistp384", &ECDSA_P384_SHA384_ASN1_SIGNING);
const P521: Curve = ("ecdsa-sha2-nistp521", &ECDSA_P521_SHA512_ASN1_SIGNING);

impl HostKey {
    /// Reads a file of OpenSSH's own form, PKCS#8, PKCS#1 or SEC 1, each in PEM.
    pub fn read(pem: &str) -> Result<HostKey, KeyFault> {
        if pem.contains(BEGIN) {
            return from_openssh(pem);
        }
        if pem.contains("Proc-Type: 4,ENCRYPTED") || pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
            return Err(KeyFault::Protected);
        }
        if pem.contains("-----BEGIN DSA PRIVATE KEY-----") {
            return Err(KeyFault::KeyType("ssh-dss".to_owned()));
        }
        let key = PrivateKeyDer::pem_slice_iter(pem.as_bytes()).next().ok_or(KeyFault::None)?;
        let key = key.map_err(|error| KeyFault::Unreadable(error.to_string()))?;
        if let PrivateKeyDer::Pkcs1(der) = &key {
            return rsa::KeyPair::from_der(der.secret_pkcs1_der()).map(HostKey::Rsa).map_err(unreadable);
        }
        for (name, algorithm) in [P256, P384, P521] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, key.secret_der()) {
                return Ok(HostKey::Ecdsa(pair, name));
            }
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_der()) {
            return Ok(HostKey::Ed25519(pair));
        }
        rsa::KeyPair::from_pkcs8(key.secret_der())
            .map(HostKey::Rsa)
            .map_err(|error| KeyFault::KeyType(error.to_string()))
    }

    /// Signs a message. `None`: the key cannot sign.
    pub fn sign(&self, message: &[u8]) -> Option<Signature> {
        let random = SystemRandom::new();
        match self {
            HostKey::Rsa(pair) => {
                let mut blob = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA512, &random, message, &mut blob).ok()?;
                Some(Signature { format: "rsa-sha2-512".to_owned(), blob })
            }
            HostKey::Ecdsa(pair, name) => {
                let signature = pair.sign(&random, message).ok()?;
                let (r, s) = possession::ecdsa_parts(signature.as_ref()).ok()?;
                let mut blob = Vec::new();
                push_magnitude(&mut blob, &r);
                push_magnitude(&mut blob, &s);
                Some(Signature { format: (*name).to_owned(), blob })
            }
            HostKey::Ed25519(pair) => {
                let blob = pair.sign(message).as_ref().to_vec();
                Some(Signature { format: "ssh-ed25519".to_owned(), blob })
            }
        }
    }
}

/// OpenSSH's own form (PROTOCOL.key).
fn from_openssh(pem: &str) -> Result<HostKey, KeyFault> {
    let body = pem.split(BEGIN).nth(1).and_then(|rest| rest.split(END).next()).ok_or(KeyFault::None)?;
    let body: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
    let body = Zeroizing::new(BASE64_STANDARD.decode(body.as_bytes()).map_err(unreadable)?);
    let inner = body.strip_prefix(b"openssh-key-v1\0").ok_or_else(|| unreadable("it has no header"))?;
    let mut outer = Reader::new(inner);
    let cipher = outer.text("cipher").map_err(unreadable)?;
    outer.string().map_err(unreadable)?;
    outer.string().map_err(unreadable)?;
    if cipher != "none" {
        return Err(KeyFault::Protected);
    }
    if outer.u32().map_err(unreadable)? != 1 {
        return Err(unreadable("it holds several keys"));
    }
    outer.string().map_err(unreadable)?;
    let mut reader = Reader::new(outer.string().map_err(unreadable)?);
    if reader.u32().map_err(unreadable)? != reader.u32().map_err(unreadable)? {
        return Err(unreadable("its two check numbers differ"));
    }
    let algorithm = reader.text("key type").map_err(unreadable)?;
    let curve = [P256, P384, P521].into_iter().find(|(name, _)| *name == algorithm);
    match (algorithm.as_str(), curve) {
        (_, Some((name, algorithm))) => {
            reader.string().map_err(unreadable)?;
            let public = reader.string().map_err(unreadable)?;
            let private = number(&mut reader)?;
            // Numbers have no leading zeros; AWS-LC wants all digits.
            let length = public.len() / 2;
            let padded =
                Zeroizing::new([vec![0; length.saturating_sub(private.len())], private.to_vec()].concat());
            EcdsaKeyPair::from_private_key_and_public_key(algorithm, &padded, public)
                .map(|pair| HostKey::Ecdsa(pair, name))
                .map_err(unreadable)
        }
        ("ssh-ed25519", _) => {
            let public = reader.string().map_err(unreadable)?;
            let both = reader.string().map_err(unreadable)?;
            let seed = both.get(..32).ok_or_else(|| unreadable("the key is too short"))?;
            Ed25519KeyPair::from_seed_and_public_key(seed, public).map(HostKey::Ed25519).map_err(unreadable)
        }
        ("ssh-rsa", _) => from_rsa(&mut reader),
        _ => Err(KeyFault::KeyType(algorithm)),
    }
}

/// OpenSSH leaves out two numbers, which are made of the others.
fn from_rsa(reader: &mut Reader<'_>) -> Result<HostKey, KeyFault> {
    let (n, e, d) = (number(reader)?, number(reader)?, number(reader)?);
    let (q_inverse, p, q) = (number(reader)?, number(reader)?, number(reader)?);
    if [&n, &p, &q].iter().any(|number| number.len() < 2) {
        return Err(unreadable("a number is too short"));
    }
    let (d_p, d_q) = (remainder(&d, &less_one(&p)), remainder(&d, &less_one(&q)));
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n: n.as_slice(), e: e.as_slice() },
        d: d.as_slice(),
        p: p.as_slice(),
        q: q.as_slice(),
        dP: d_p.as_slice(),
        dQ: d_q.as_slice(),
        qInv: q_inverse.as_slice(),
    };
    rsa::KeyPair::from_components(&components).map(HostKey::Rsa).map_err(unreadable)
}

fn number(reader: &mut Reader<'_>) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    reader.magnitude("number").map(Zeroizing::new).map_err(unreadable)
}

/// An odd number less one.
fn less_one(odd: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut even = Zeroizing::new(odd.to_vec());
    if let Some(last) = even.last_mut() {
        *last &= 0xfe;
    }
    even
}

/// `number` modulo `modulus`, both big-endian, bit by bit and in the same steps whatever the bits are.
fn remainder(number: &[u8], modulus: &[u8]) -> Zeroizing<Vec<u8>> {
    // One byte more than the modulus, for what is shifted out before it is taken off.
    let mut rest = Zeroizing::new(vec![0_u8; modulus.len() + 1]);
    let mut less = Zeroizing::new(vec![0_u8; modulus.len() + 1]);
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            let shifted = *byte << 1 | carry;
            carry = *byte >> 7;
            *byte = shifted;
        }
        let mut borrow = 0_i16;
        for at in (0..rest.len()).rev() {
            let subtracted = if at == 0 { 0 } else { i16::from(modulus[at - 1]) };
            let difference = i16::from(rest[at]) - subtracted - borrow;
            borrow = difference >> 8 & 1;
            less[at] = difference as u8;
        }
        // All ones when it was too small to take the modulus off.
        let keep = 0_u8.wrapping_sub(borrow as u8);
        for (byte, lesser) in rest.iter_mut().zip(less.iter()) {
            *byte = (*byte & keep) | (lesser & !keep);
        }
    }
    rest.remove(0);
    rest
}

fn unreadable(error: impl std::fmt::Display) -> KeyFault {
    KeyFault::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_right() {
        let check = |number: u64, modulus: u64| {
            let strip =
                |n: u64| n.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
            let found = remainder(&strip(number), &strip(modulus));
            let found = found.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
            assert_eq!(found, number % modulus, "{number} % {modulus}");
        };
        let mut state = 1_u64;
        for _ in 0..5000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (number, modulus) = (state, (state >> (state % 63)).max(2));
            check(number, modulus);
            check(number, state.rotate_left(17).max(2));
            check(number >> 40, modulus);
        }
        check(0, 7);
        check(u64::MAX, 255);
        check(u64::MAX, 256);
    }
}
