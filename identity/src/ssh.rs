//! OpenSSH certificates, keys and signatures as bytes on a wire (PROTOCOL.certkeys, RFC 4253 §6.6, RFC 5656, RFC 8032, RFC
//! 8332).
//!
//! Not supported, and refused by name: DSA, security keys (`sk-...`), curves beyond NIST's three.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ED25519,
    RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
    RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::possession::{self, Curve};
use crate::signature::bit_length;

/// Stands in `valid_before` for no end.
pub const FOREVER: u64 = u64::MAX;
/// `cert_type` of a certificate for a host.
pub const HOST: u32 = 2;

/// RSA with SHA-1: what Go's SSH library signs with unless it is told otherwise.
const SSH_RSA: &str = "ssh-rsa";
const CERTIFICATE: &str = "-cert-v01@openssh.com";

/// A certificate, taken apart; nothing is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub nonce: Vec<u8>,
    pub key: PublicKey,
    pub serial: u64,
    /// 1 for users, 2 for hosts.
    pub cert_type: u32,
    pub key_id: String,
    pub principals: Vec<String>,
    /// Seconds since 1970.
    pub valid_after: u64,
    /// The first second in which it is not valid any more.
    pub valid_before: u64,
    pub critical_options: Vec<(String, String)>,
    pub extensions: Vec<(String, String)>,
    pub reserved: Vec<u8>,
    /// Whose key signed.
    pub authority: PublicKey,
    pub signature: Signature,
    blob: Vec<u8>,
    /// How much of the blob is signed.
    signed: usize,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Big-endian magnitudes.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The point, SEC 1.
    Ecdsa {
        curve: Curve,
        point: Vec<u8>,
    },
    Ed25519 {
        point: Vec<u8>,
    },
}

/// A signature and how it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub format: String,
    pub blob: Vec<u8>,
}

/// Why bytes cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("ssh: short read")]
    Short,
    #[error("ssh: trailing junk after {0}")]
    Trailing(&'static str),
    #[error("ssh: {0} is not text")]
    NotText(&'static str),
    #[error("ssh: unknown key algorithm: {0}; use RSA, ECDSA on P-256, P-384 or P-521, or Ed25519")]
    Algorithm(String),
    #[error("ssh: invalid {0}")]
    Number(&'static str),
    #[error("ssh: rsa modulus of {0} bits; use 1024 to 8192")]
    RsaSize(usize),
    #[error("ssh: certificate options are not in lexical order")]
    Unordered,
    #[error("pubkey in response is not a certificate")]
    NotACertificate,
}

/// Why a signature does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    #[error("ssh: signature type {format} for key type {key}")]
    Format { format: String, key: &'static str },
    #[error("ssh: signature did not verify")]
    Wrong,
    #[error(
        "ssh: the certificate was signed with ssh-rsa, which is SHA-1; sign it again with rsa-sha2-256 or rsa-sha2-512"
    )]
    Sha1,
}

impl Certificate {
    /// Reads a certificate as it is in the second column of a `-cert.pub` file.
    pub fn read(blob: &[u8]) -> Result<Certificate, Malformed> {
        let mut reader = Reader::new(blob);
        let algorithm = reader.text("key algorithm")?;
        let Some(algorithm) = algorithm.strip_suffix(CERTIFICATE) else {
            // Names a key type that is not known rather than that it is no certificate.
            PublicKey::read(blob)?;
            return Err(Malformed::NotACertificate);
        };
        let nonce = reader.string()?.to_vec();
        let key = PublicKey { kind: Kind::read(algorithm, &mut reader)? };
        let serial = reader.u64()?;
        let cert_type = reader.u32()?;
        let key_id = reader.text("key ID")?;
        let mut names = Reader::new(reader.string()?);
        let mut principals = Vec::new();
        while !names.rest.is_empty() {
            principals.push(names.text("principal")?);
        }
        let valid_after = reader.u64()?;
        let valid_before = reader.u64()?;
        let critical_options = options(reader.string()?)?;
        let extensions = options(reader.string()?)?;
        let reserved = reader.string()?.to_vec();
        let authority = PublicKey::read(reader.string()?)?;
        let signed = blob.len() - reader.rest.len();
        let mut signature = Reader::new(reader.string()?);
        reader.end("certificate")?;
        let signature = {
            let found =
                Signature { format: signature.text("signature format")?, blob: signature.string()?.to_vec() };
            signature.end("signature")?;
            found
        };
        Ok(Certificate {
            nonce,
            key,
            serial,
            cert_type,
            key_id,
            principals,
            valid_after,
            valid_before,
            critical_options,
            extensions,
            reserved,
            authority,
            signature,
            blob: blob.to_vec(),
            signed,
        })
    }

    /// As it was read.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// Unpadded URL-safe base64 of the SHA-256 of the certificate.
    pub fn fingerprint(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, &self.blob).as_ref())
    }

    /// Whether the key that it names as its authority signed it, and not with SHA-1.
    pub fn check_signature(&self) -> Result<(), NotSigned> {
        if self.signature.format == SSH_RSA {
            return Err(NotSigned::Sha1);
        }
        self.authority.verify(&self.blob[..self.signed], &self.signature)
    }
}

impl PublicKey {
    /// Reads a key as it is in the second column of a `.pub` file.
    pub fn read(blob: &[u8]) -> Result<PublicKey, Malformed> {
        let mut reader = Reader::new(blob);
        let algorithm = reader.text("key algorithm")?;
        let key = PublicKey { kind: Kind::read(&algorithm, &mut reader)? };
        reader.end("key")?;
        Ok(key)
    }

    /// Reads the first key of an `authorized_keys` file or of a `.pub` file: options, algorithm, base64 and comment.
    /// `None`: there is none.
    pub fn read_line(text: &str) -> Option<Result<PublicKey, Malformed>> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.filter_map(column).map(|blob| PublicKey::read(&blob)).next()
    }

    /// Its name on the wire.
    pub fn algorithm(&self) -> &'static str {
        match &self.kind {
            Kind::Rsa { .. } => SSH_RSA,
            Kind::Ecdsa { curve, .. } => match curve {
                Curve::P224 => "ecdsa-sha2-nistp224",
                Curve::P256 => "ecdsa-sha2-nistp256",
                Curve::P384 => "ecdsa-sha2-nistp384",
                Curve::P521 => "ecdsa-sha2-nistp521",
            },
            Kind::Ed25519 { .. } => "ssh-ed25519",
        }
    }

    /// Whether the holder of this key made the signature. RSA signatures may be made with SHA-1 (`ssh-rsa`).
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), NotSigned> {
        let wrong_format = || NotSigned::Format { format: signature.format.clone(), key: self.algorithm() };
        let wrong = |_| NotSigned::Wrong;
        match &self.kind {
            Kind::Rsa { n, e } => {
                let parameters = match signature.format.as_str() {
                    SSH_RSA => &RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
                    "rsa-sha2-256" => &RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
                    "rsa-sha2-512" => &RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
                    _ => return Err(wrong_format()),
                };
                // Some signers leave out leading zeros.
                let missing = n.len().saturating_sub(signature.blob.len());
                let padded = [vec![0; missing], signature.blob.clone()].concat();
                let key = PublicKeyComponents { n: n.as_slice(), e: e.as_slice() };
                key.verify(parameters, message, &padded).map_err(wrong)
            }
            _ if signature.format != self.algorithm() => Err(wrong_format()),
            Kind::Ecdsa { curve, point } => {
                let algorithm: &'static dyn VerificationAlgorithm = match curve {
                    Curve::P256 => &ECDSA_P256_SHA256_ASN1,
                    Curve::P384 => &ECDSA_P384_SHA384_ASN1,
                    Curve::P521 => &ECDSA_P521_SHA512_ASN1,
                    Curve::P224 => return Err(wrong_format()),
                };
                let mut reader = Reader::new(&signature.blob);
                let numbers = reader.magnitude("r").and_then(|r| Ok((r, reader.magnitude("s")?)));
                let (r, s) = numbers.map_err(|_| NotSigned::Wrong)?;
                reader.end("signature").map_err(|_| NotSigned::Wrong)?;
                let signature = possession::ecdsa_signature(&r, &s);
                UnparsedPublicKey::new(algorithm, point).verify(message, &signature).map_err(wrong)
            }
            Kind::Ed25519 { point } => {
                UnparsedPublicKey::new(&ED25519, point).verify(message, &signature.blob).map_err(wrong)
            }
        }
    }
}

impl Kind {
    /// Reads what follows the name of the algorithm.
    fn read(algorithm: &str, reader: &mut Reader<'_>) -> Result<Kind, Malformed> {
        let curve = match algorithm {
            SSH_RSA => {
                let e = reader.magnitude("exponent")?;
                let n = reader.magnitude("modulus")?;
                let bits = bit_length(&n);
                if !(1024..=8192).contains(&bits) {
                    return Err(Malformed::RsaSize(bits));
                }
                // As Go: at least 3, odd, at most 24 bits.
                return match e.as_slice() {
                    [1 | 2] | [] | [_, _, _, _, ..] => Err(Malformed::Number("exponent")),
                    [.., last] if last % 2 == 0 => Err(Malformed::Number("exponent")),
                    _ => Ok(Kind::Rsa { n, e }),
                };
            }
            "ssh-ed25519" => {
                let point = reader.string()?.to_vec();
                return if point.len() == 32 {
                    Ok(Kind::Ed25519 { point })
                } else {
                    Err(Malformed::Number("size for Ed25519 public key"))
                };
            }
            "ecdsa-sha2-nistp256" => Curve::P256,
            "ecdsa-sha2-nistp384" => Curve::P384,
            "ecdsa-sha2-nistp521" => Curve::P521,
            other => return Err(Malformed::Algorithm(other.to_owned())),
        };
        let named = reader.text("curve")?;
        if algorithm.strip_prefix("ecdsa-sha2-") != Some(&named) {
            return Err(Malformed::Number("curve"));
        }
        Ok(Kind::Ecdsa { curve, point: reader.string()?.to_vec() })
    }
}

/// The certificate of a `-cert.pub` file. `None`: there is none.
pub fn certificate_of_file(text: &str) -> Option<Result<Certificate, Malformed>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(column).map(|blob| Certificate::read(&blob)).next()
}

/// Appends a length and the bytes.
pub fn push_string(blob: &mut Vec<u8>, bytes: &[u8]) {
    // What is written here is far shorter.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    blob.extend(length.to_be_bytes());
    blob.extend_from_slice(bytes);
}

/// Appends a non-negative number, big-endian without leading zeros.
pub fn push_magnitude(blob: &mut Vec<u8>, magnitude: &[u8]) {
    match magnitude.first() {
        Some(first) if first & 0x80 != 0 => push_string(blob, &[&[0], magnitude].concat()),
        _ => push_string(blob, magnitude),
    }
}

/// The key material of a line: the base64 that follows the name which it begins with.
fn column(line: &str) -> Option<Vec<u8>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).find_map(|pair| {
        let blob = base64::prelude::BASE64_STANDARD.decode(pair[1]).ok()?;
        let name = Reader::new(&blob).text("key algorithm").ok()?;
        (name == pair[0]).then_some(blob)
    })
}

fn options(bytes: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut found: Vec<(String, String)> = Vec::new();
    while !reader.rest.is_empty() {
        let name = reader.text("option")?;
        if found.last().is_some_and(|(last, _)| name <= *last) {
            return Err(Malformed::Unordered);
        }
        let mut value = Reader::new(reader.string()?);
        let text = if value.rest.is_empty() { String::new() } else { value.text("option value")? };
        value.end("certificate option value")?;
        found.push((name, text));
    }
    Ok(found)
}

/// Reads SSH's binary packets, part by part.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Bytes without a length before them.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed::Short)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed::Short)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Bytes with their length before them.
    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| Malformed::Short)?)
    }

    /// The same as text.
    pub fn text(&mut self, what: &'static str) -> Result<String, Malformed> {
        String::from_utf8(self.string()?.to_vec()).map_err(|_| Malformed::NotText(what))
    }

    /// A number that is not negative, without leading zeros.
    pub fn magnitude(&mut self, what: &'static str) -> Result<Vec<u8>, Malformed> {
        match self.string()? {
            [first, ..] if first & 0x80 != 0 => Err(Malformed::Number(what)),
            bytes => Ok(bytes.iter().copied().skip_while(|byte| *byte == 0).collect()),
        }
    }

    /// Refuses what is left.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing(what)) }
    }
}

#[cfg(test)]
mod tests;
