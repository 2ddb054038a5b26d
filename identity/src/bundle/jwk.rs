//! Public keys between SubjectPublicKeyInfo (DER) and JSON Web Key (RFC 7517, 7518, 8037).

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1, SECP_521_R_1};
use const_oid::db::rfc8410::ID_ED_25519;
use serde_json::{Map, Value};

use crate::certificate::{
    BIT_STRING, INTEGER, Malformed, OBJECT_IDENTIFIER, SEQUENCE, bit_string, elements, fixed, magnitude,
    malformed, object_identifier, whole,
};
use crate::signature::bit_length;

/// A public key that bundles may hold. Equal keys compare equal, however they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    Ec {
        curve: Curve,
        x: Vec<u8>,
        y: Vec<u8>,
    },
    /// Magnitudes without leading zeros.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    Ed25519 {
        x: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyFault {
    /// Of a kind, curve or size that is not known here: readers of a key set go on without it (RFC 7517 §5).
    NotSupported(String),
    /// Of a known kind but wrong.
    Wrong(String),
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo.
    pub fn from_der(der: &[u8]) -> Result<PublicKey, KeyFault> {
        let [algorithm, key] = fixed(whole(der, "public key")?, "public key")?;
        let key = bit_string(key, "public key")?;
        let algorithm = elements(algorithm.is(SEQUENCE, "key algorithm")?)?;
        let (id, parameters) = match algorithm.as_slice() {
            [id] => (object_identifier(*id)?, None),
            [id, parameters] => (object_identifier(*id)?, Some(*parameters)),
            _ => return Err(malformed("key algorithm has a wrong number of parts").into()),
        };
        let public_key = match id {
            RSA_ENCRYPTION => {
                let [n, e] = fixed(whole(key, "RSA key")?, "RSA key")?;
                PublicKey::Rsa {
                    n: magnitude(n.is(INTEGER, "RSA modulus")?, "RSA modulus")?,
                    e: magnitude(e.is(INTEGER, "RSA exponent")?, "RSA exponent")?,
                }
            }
            ID_EC_PUBLIC_KEY => {
                let curve = parameters.filter(|curve| curve.tag == OBJECT_IDENTIFIER).map(object_identifier);
                let curve = curve.transpose()?.and_then(Curve::from_id);
                let curve = curve.ok_or_else(|| not_supported("elliptic curve"))?;
                match key {
                    [4, point @ ..] if point.len() == 2 * curve.bytes() => {
                        let (x, y) = point.split_at(curve.bytes());
                        PublicKey::Ec { curve, x: x.to_vec(), y: y.to_vec() }
                    }
                    _ => return Err(wrong("elliptic curve point is not in uncompressed form")),
                }
            }
            ID_ED_25519 => PublicKey::Ed25519 { x: key.to_vec() },
            _ => return Err(not_supported(&format!("key algorithm {id}"))),
        };
        public_key.check()?;
        Ok(public_key)
    }

    /// Writes a SubjectPublicKeyInfo.
    pub fn to_der(&self) -> Vec<u8> {
        let id = |id: ObjectIdentifier| tlv(OBJECT_IDENTIFIER, id.as_bytes());
        let algorithm = match self {
            PublicKey::Ec { curve, .. } => [id(ID_EC_PUBLIC_KEY), id(curve.id())].concat(),
            PublicKey::Rsa { .. } => [id(RSA_ENCRYPTION), vec![5, 0]].concat(),
            PublicKey::Ed25519 { .. } => id(ID_ED_25519),
        };
        let key = [vec![0], self.key_bytes()].concat();
        tlv(SEQUENCE, &[tlv(SEQUENCE, &algorithm), tlv(BIT_STRING, &key)].concat())
    }

    /// Reads the members of a JSON Web Key.
    pub fn from_jwk(jwk: &Map<String, Value>) -> Result<PublicKey, KeyFault> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let kind = text("kty").ok_or_else(|| not_supported("key without \"kty\""))?;
        if !matches!(kind, "EC" | "RSA" | "OKP") {
            return Err(not_supported(&format!("\"kty\" {kind:?}")));
        }
        if jwk.contains_key("d") {
            return Err(wrong("it holds a private key (\"d\"); whoever publishes it must replace that key"));
        }
        let bytes = |name: &str| {
            let encoded = text(name).ok_or_else(|| wrong(&format!("{name:?} is missing")))?;
            URL_SAFE_NO_PAD
                .decode(encoded)
                .map_err(|_| wrong(&format!("{name:?} is not base64url without padding")))
        };
        let public_key = match kind {
            "RSA" => {
                let strip = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect();
                PublicKey::Rsa { n: strip(bytes("n")?), e: strip(bytes("e")?) }
            }
            "EC" => {
                let curve = text("crv").and_then(Curve::from_name);
                let curve = curve.ok_or_else(|| not_supported("elliptic curve"))?;
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != curve.bytes() || y.len() != curve.bytes() {
                    return Err(wrong("\"x\" or \"y\" is not as long as the curve demands"));
                }
                PublicKey::Ec { curve, x, y }
            }
            _ if text("crv") == Some("Ed25519") => PublicKey::Ed25519 { x: bytes("x")? },
            _ => return Err(not_supported("\"crv\" of \"OKP\" key")),
        };
        public_key.check()?;
        Ok(public_key)
    }

    /// The member "kty".
    pub fn kind(&self) -> &'static str {
        match self {
            PublicKey::Ec { .. } => "EC",
            PublicKey::Rsa { .. } => "RSA",
            PublicKey::Ed25519 { .. } => "OKP",
        }
    }

    /// The members that hold the key itself, in the order in which go-jose writes them.
    pub fn members(&self) -> Vec<(&'static str, String)> {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            PublicKey::Ec { curve, x, y } => {
                vec![("crv", curve.name().to_owned()), ("x", encode(x)), ("y", encode(y))]
            }
            PublicKey::Rsa { n, e } => vec![("n", encode(n)), ("e", encode(e))],
            PublicKey::Ed25519 { x } => vec![("crv", "Ed25519".to_owned()), ("x", encode(x))],
        }
    }

    /// The content of the BIT STRING.
    pub fn key_bytes(&self) -> Vec<u8> {
        match self {
            PublicKey::Ec { x, y, .. } => [&[4], x.as_slice(), y].concat(),
            PublicKey::Rsa { n, e } => tlv(SEQUENCE, &[unsigned(n), unsigned(e)].concat()),
            PublicKey::Ed25519 { x } => x.clone(),
        }
    }

    /// Points must lie on their curve, and RSA keys be of a size that can be verified with.
    fn check(&self) -> Result<(), KeyFault> {
        let algorithm: &'static dyn VerificationAlgorithm = match self {
            PublicKey::Ec { curve: Curve::P256, .. } => &signature::ECDSA_P256_SHA256_ASN1,
            PublicKey::Ec { curve: Curve::P384, .. } => &signature::ECDSA_P384_SHA384_ASN1,
            PublicKey::Ec { curve: Curve::P521, .. } => &signature::ECDSA_P521_SHA512_ASN1,
            PublicKey::Ed25519 { .. } => &signature::ED25519,
            PublicKey::Rsa { n, .. } => {
                let bits = bit_length(n);
                if !(2048..=8192).contains(&bits) {
                    return Err(not_supported(&format!("RSA key of {bits} bits")));
                }
                &signature::RSA_PKCS1_2048_8192_SHA256
            }
        };
        match ParsedPublicKey::new(algorithm, self.key_bytes()) {
            Ok(_) => Ok(()),
            Err(_) => Err(wrong("it is not a valid public key")),
        }
    }
}

impl Curve {
    fn from_id(id: ObjectIdentifier) -> Option<Curve> {
        [Curve::P256, Curve::P384, Curve::P521].into_iter().find(|curve| curve.id() == id)
    }

    fn from_name(name: &str) -> Option<Curve> {
        [Curve::P256, Curve::P384, Curve::P521].into_iter().find(|curve| curve.name() == name)
    }

    fn id(self) -> ObjectIdentifier {
        match self {
            Curve::P256 => SECP_256_R_1,
            Curve::P384 => SECP_384_R_1,
            Curve::P521 => SECP_521_R_1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
            Curve::P521 => "P-521",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }
}

impl From<Malformed> for KeyFault {
    fn from(fault: Malformed) -> KeyFault {
        KeyFault::Wrong(fault.0)
    }
}

fn not_supported(what: &str) -> KeyFault {
    KeyFault::NotSupported(format!("{what} is not supported"))
}

fn wrong(text: &str) -> KeyFault {
    KeyFault::Wrong(text.to_owned())
}

fn unsigned(magnitude: &[u8]) -> Vec<u8> {
    match magnitude {
        [first, ..] if first & 0x80 == 0 => tlv(INTEGER, magnitude),
        _ => tlv(INTEGER, &[&[0], magnitude].concat()),
    }
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut length: Vec<u8> = value.len().to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
    if value.len() < 0x80 {
        length = vec![value.len() as u8];
    } else {
        length.insert(0, 0x80 | length.len() as u8);
    }
    [&[tag], length.as_slice(), value].concat()
}
