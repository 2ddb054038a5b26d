//! PKCS#10 certificate requests (RFC 2986).

use const_oid::AssociatedOid;
use der::asn1::{Any, BitString, Ia5String, OctetString, PrintableStringRef, SetOfVec};
use der::{Decode, Encode, Sequence};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::attr::{Attribute, AttributeTypeAndValue};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::request::{CertReqInfo, ExtensionReq, Version};

use super::KeyError;

/// The subject that SPIRE writes into its requests: `C=US, O=SPIRE`, both printable strings.
pub fn spire_subject() -> Name {
    let rdn = |oid, text: &str| -> der::Result<RelativeDistinguishedName> {
        let value = Any::encode_from(&PrintableStringRef::new(text)?)?;
        RelativeDistinguishedName::try_from(vec![AttributeTypeAndValue { oid, value }])
    };
    let country = rdn(const_oid::db::rfc4519::COUNTRY_NAME, "US");
    let organization = rdn(const_oid::db::rfc4519::ORGANIZATION_NAME, "SPIRE");
    // Both texts are printable, so neither is ever left out.
    Name::hazmat_from_rdn_sequence(RdnSequence::from(
        [country, organization].into_iter().flatten().collect::<Vec<_>>(),
    ))
}

/// The part of a request that is signed, DER.
pub(super) fn request_info(
    public_key_der: &[u8],
    subject: &Name,
    uris: &[&str],
) -> Result<Vec<u8>, KeyError> {
    let mut attributes = SetOfVec::new();
    if !uris.is_empty() {
        attributes.insert(extension_request(uris)?).map_err(failed)?;
    }
    let info = CertReqInfo {
        version: Version::V1,
        subject: subject.clone(),
        public_key: SubjectPublicKeyInfoOwned::from_der(public_key_der).map_err(failed)?,
        attributes,
    };
    info.to_der().map_err(failed)
}

/// A request made of its signed part and the signature.
pub(super) fn assemble(
    info: &[u8],
    algorithm: &AlgorithmIdentifierOwned,
    signature: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let info = der::asn1::AnyRef::from_der(info).map_err(failed)?;
    let signature = BitString::from_bytes(signature).map_err(failed)?;
    Request { info, algorithm: algorithm.clone(), signature }.to_der().map_err(failed)
}

/// RFC 2986 section 4, with the signed part as it was signed.
#[derive(Sequence)]
struct Request<'a> {
    info: der::asn1::AnyRef<'a>,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

fn extension_request(uris: &[&str]) -> Result<Attribute, KeyError> {
    let mut names = Vec::with_capacity(uris.len());
    for uri in uris {
        let uri =
            Ia5String::new(uri).map_err(|_| KeyError::Request(format!("{uri:?} is not an ASCII URI")))?;
        names.push(GeneralName::UniformResourceIdentifier(uri));
    }
    let extension = Extension {
        extn_id: SubjectAltName::OID,
        critical: false,
        extn_value: OctetString::new(SubjectAltName(names).to_der().map_err(failed)?).map_err(failed)?,
    };
    let mut values = SetOfVec::new();
    values.insert(Any::encode_from(&ExtensionReq(vec![extension])).map_err(failed)?).map_err(failed)?;
    Ok(Attribute { oid: ExtensionReq::OID, values })
}

fn failed(error: der::Error) -> KeyError {
    KeyError::Request(error.to_string())
}
