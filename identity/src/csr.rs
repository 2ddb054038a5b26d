//! Certificate signing requests (PKCS#10) from strangers.

use const_oid::db::rfc5912::ID_EXTENSION_REQ;
use der::Decode;
use x509_cert::name::Name;

use crate::certificate::{
    Extensions, Malformed, SEQUENCE, SET, bit_string, elements, fixed, malformed, object_identifier, whole,
};
use crate::signature;
pub use crate::signature::SignatureFault;

/// A signing request whose signature holds: whoever made it has the private key.
///
/// The key is kept byte for byte as it stands in the request, since that is what was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedCsr {
    public_key: Vec<u8>,
    subject: Name,
    subject_der: Vec<u8>,
    uris: Vec<String>,
    dns_names: Vec<String>,
    other_names: usize,
}

/// Why a signing request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("malformed CSR: {0}")]
    Malformed(#[from] Malformed),
    #[error("invalid CSR signature: {0}")]
    BadSignature(#[from] SignatureFault),
}

impl VerifiedCsr {
    /// Reads a DER request and checks its signature: RSA (PKCS#1 v1.5, PSS), ECDSA on P-256, P-384 or P-521, each with
    /// SHA-256, SHA-384 or SHA-512, or Ed25519.
    pub fn from_der(der: &[u8]) -> Result<VerifiedCsr, CsrError> {
        let [info, algorithm, signature] = fixed(whole(der, "request")?, "request")?;
        let parts = elements(info.is(SEQUENCE, "request body")?)?;
        let [_version, subject, public_key, attributes @ ..] = parts.as_slice() else {
            return Err(malformed("request body has too few parts").into());
        };
        let subject_der = subject.sequence("subject")?;
        let public_key = public_key.sequence("public key")?;
        signature::verify(
            public_key,
            algorithm.sequence("signature algorithm")?,
            info.raw,
            bit_string(signature, "signature")?,
        )?;

        let names = match attributes {
            [attributes] if attributes.tag == 0xa0 => requested_extensions(attributes.value)?,
            [] => Extensions::default(),
            _ => return Err(malformed("request body has unknown parts").into()),
        }
        .subject_alt_name
        .unwrap_or_default();
        Ok(VerifiedCsr {
            public_key: public_key.to_vec(),
            subject: Name::from_der(subject_der).map_err(|e| malformed(&format!("subject: {e}")))?,
            subject_der: subject_der.to_vec(),
            uris: names.uris,
            dns_names: names.dns_names,
            other_names: names.others,
        })
    }

    /// The SubjectPublicKeyInfo, DER, byte for byte.
    pub fn public_key_der(&self) -> &[u8] {
        &self.public_key
    }

    /// The subject that is asked for.
    pub fn subject(&self) -> &Name {
        &self.subject
    }

    /// The subject, DER, byte for byte.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject_der
    }

    /// The URI names that are asked for.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The DNS names that are asked for.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// How many names of other kinds are asked for.
    pub fn other_names(&self) -> usize {
        self.other_names
    }
}

/// The extensions in the extensionRequest attribute. Other attributes are skipped.
fn requested_extensions(attributes: &[u8]) -> Result<Extensions, Malformed> {
    for attribute in elements(attributes)? {
        let [id, values] = fixed(attribute, "attribute")?;
        if object_identifier(id)? != ID_EXTENSION_REQ {
            continue;
        }
        let values = elements(values.is(SET, "extension request")?)?;
        return match values.as_slice() {
            [list] => Extensions::read(list.is(SEQUENCE, "extension request")?),
            _ => Err(malformed("extension request does not have exactly one value")),
        };
    }
    Ok(Extensions::default())
}
