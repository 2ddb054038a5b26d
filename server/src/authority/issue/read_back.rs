//! What was signed, read as a stranger reads it and compared with what was meant.
//!
//! Every field of every certificate is compared, always. The signature is verified for CA certificates, and for the first
//! leaf of each CA before anybody gets one ([`prove`]). For further leaves it is not: verifying costs twice as much as
//! signing (85 µs beside 25 µs on P-256), a key of this process that has signed correctly once and then signs wrongly is a
//! machine that fails elsewhere too, and whoever receives the SVID verifies it anyway.

use std::time::SystemTime;

use finial_identity::peer::{self, PeerError};
use finial_identity::trust_domain::TrustDomain;
use finial_identity::x509_svid::{
    AuthorityCertificate, AuthorityFault, IssuerFault, Malformed, X509Svid, X509SvidError,
};
use rustls_pki_types::CertificateDer;

use crate::authority::der::{DerFault, RawCertificate};
use crate::authority::profile::Intent;

/// How a certificate differs from what was meant. It is given to nobody.
#[derive(Debug, thiserror::Error)]
pub enum ReadBackFault {
    #[error("it is no X509-SVID: {0}")]
    NotAnSvid(#[from] X509SvidError),
    #[error("it breaks a rule for issuers: {0}")]
    Issuer(IssuerFault),
    #[error("it can not be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("it can not be read: {0}")]
    Der(#[from] DerFault),
    #[error("it may not sign for the trust domain: {0}")]
    NotAnAuthority(#[from] AuthorityFault),
    #[error("its {0} is not what was meant")]
    Field(&'static str),
    #[error("the signature does not verify with the key of its signer")]
    Signature,
}

/// A leaf and the certificates above it.
pub(super) fn leaf(
    leaf: CertificateDer<'static>,
    above: &[CertificateDer<'static>],
    intent: &Intent,
) -> Result<X509Svid, ReadBackFault> {
    fields(&leaf, intent)?;
    let mut chain = Vec::with_capacity(1 + above.len());
    chain.push(leaf);
    chain.extend_from_slice(above);
    let svid = X509Svid::read(chain)?;
    if svid.id() != &intent.uri {
        return Err(ReadBackFault::Field("SPIFFE ID"));
    }
    if svid.dns_names() != intent.dns_names {
        return Err(ReadBackFault::Field("list of DNS names"));
    }
    match svid.issuer_faults().first() {
        Some(fault) => Err(ReadBackFault::Issuer(*fault)),
        None => Ok(svid),
    }
}

/// A CA certificate and the one that signed it; `None`: its own key.
pub(super) fn authority(
    der: &[u8],
    intent: &Intent,
    trust_domain: &TrustDomain,
    signer: Option<&AuthorityCertificate>,
) -> Result<AuthorityCertificate, ReadBackFault> {
    fields(der, intent)?;
    let certificate = AuthorityCertificate::read(der)?;
    certificate.check_for(trust_domain)?;
    if certificate.uris() != [intent.uri.as_str()] {
        return Err(ReadBackFault::Field("URI"));
    }
    if !certificate.was_signed_by(signer.unwrap_or(&certificate)) {
        return Err(ReadBackFault::Signature);
    }
    Ok(certificate)
}

/// The first leaf of a CA, verified up to `roots` as a peer verifies it.
pub(super) fn prove(svid: &X509Svid, roots: &[impl AsRef<[u8]>], now: SystemTime) -> Result<(), PeerError> {
    peer::verify_svid(svid, roots, now)
}

fn fields(der: &[u8], intent: &Intent) -> Result<(), ReadBackFault> {
    let read = RawCertificate::read(der)?;
    let serial = intent.serial.integer();
    let compared: [(&'static str, bool); 8] = [
        ("serial number", read.serial == serial),
        ("signature algorithm", read.algorithm == intent.algorithm),
        ("issuer", read.issuer == intent.issuer),
        ("start", read.not_before == intent.not_before),
        ("end", read.not_after == intent.not_after),
        ("subject", read.subject == intent.subject),
        ("public key", read.public_key == intent.public_key),
        ("list of extensions", read.extensions == intent.extensions),
    ];
    match compared.iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(ReadBackFault::Field(field)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use finial_daemon::keys::{KeyManager, KeyType, memory::MemoryKeys};

    use super::*;
    use crate::authority::issue::{algorithm, occasion_at, self_signed_ca};
    use crate::authority::profile::{ProfileSettings, Profiles};
    use crate::authority::tests::{today, trust_domain};

    /// A CA certificate with any byte changed never passes as what was meant.
    #[tokio::test]
    async fn no_changed_byte_goes_unnoticed() {
        let profiles = Profiles::new(ProfileSettings::new(trust_domain()));
        let key = MemoryKeys::new().generate("k", KeyType::EcP256).await.unwrap();
        let now = today();
        let intent = profiles
            .self_signed(key.public_key_der(), algorithm(&key).unwrap(), occasion_at(now).unwrap())
            .unwrap();
        let tbs = intent.tbs().unwrap();
        let signature = key.sign(&tbs).await.unwrap();
        let der = crate::authority::issue::assemble(&tbs, &intent, &signature);
        authority(&der, &intent, &trust_domain(), None).unwrap();
        for index in 0..der.len() {
            let mut changed = der.to_vec();
            changed[index] ^= 0x10;
            assert!(authority(&changed, &intent, &trust_domain(), None).is_err(), "byte {index}");
        }
        let other = self_signed_ca(&profiles, &key, now).await.unwrap();
        assert!(
            authority(&other, &intent, &trust_domain(), None).is_err(),
            "another certificate of the same key"
        );
    }
}
