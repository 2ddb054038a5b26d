//! WIT-SVIDs. SPIRE 1.15 has them behind a feature flag; here are its answers without the flag.

use der::Decode;
use der::asn1::ObjectIdentifier;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::spire::api::server::svid::v1 as wire;
use spki::SubjectPublicKeyInfoRef;
use tonic::Code;

use crate::api::status::Refusal;
use crate::entries::authorized;
use crate::entries::snapshot::Snapshot;

/// The answer to MintWITSVID.
pub(super) fn disabled() -> Refusal {
    Refusal::with_code(Code::Unimplemented, "WIT functionality is disabled")
}

/// The answer to one element of BatchNewWITSVID: there is no key that could sign it.
pub(super) fn refuse_new(
    snapshot: &Snapshot,
    agent_id: &SpiffeId,
    params: &wire::NewWitsvidParams,
) -> Refusal {
    if params.entry_id.is_empty() {
        return Refusal::invalid("missing entry ID");
    }
    if params.public_key.is_empty() {
        return Refusal::invalid("missing public key");
    }
    if authorized::one_for_agent(snapshot, agent_id, &params.entry_id).is_none() {
        return Refusal::not_found("entry not found or not authorized");
    }
    let key = match SubjectPublicKeyInfoRef::from_der(&params.public_key) {
        Ok(key) => key,
        Err(error) => return Refusal::invalid_because("malformed public key", &error),
    };
    if let Err(fault) = check_algorithm(&key, &params.signing_algorithm) {
        return Refusal::invalid_because("invalid signing algorithm or key type", &fault);
    }
    Refusal::with_code(Code::Internal, "failed to sign WIT-SVID: WIT key is not available for signing")
}

/// Why a key cannot be put into a WIT-SVID.
#[derive(Debug, thiserror::Error)]
enum AlgorithmFault {
    #[error("unsupported signing algorithm for {kind} key: {algorithm}")]
    Unsupported { kind: &'static str, algorithm: String },
    #[error("unsupported key type '{0}'")]
    KeyType(ObjectIdentifier),
}

fn check_algorithm(key: &SubjectPublicKeyInfoRef<'_>, algorithm: &str) -> Result<(), AlgorithmFault> {
    use const_oid::db::rfc5912::{
        ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1, SECP_521_R_1,
    };
    let (kind, fitting): (_, &[&str]) = match (key.algorithm.oid, key.algorithm.parameters_oid()) {
        (RSA_ENCRYPTION, _) => ("RSA", &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (ID_EC_PUBLIC_KEY, Ok(SECP_256_R_1)) => ("ec-p256", &["ES256"]),
        (ID_EC_PUBLIC_KEY, Ok(SECP_384_R_1)) => ("ec-p384", &["ES384"]),
        (ID_EC_PUBLIC_KEY, Ok(SECP_521_R_1)) => ("ec-p521", &["ES512"]),
        (other, _) => return Err(AlgorithmFault::KeyType(other)),
    };
    if fitting.contains(&algorithm) {
        return Ok(());
    }
    Err(AlgorithmFault::Unsupported { kind, algorithm: algorithm.to_owned() })
}
