//! Certificates and callers for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::listen::{ConnInfo, Origin};
use finial_identity::bundle::{Bundle, X509Authority};
use finial_identity::trust_domain::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::caller::Caller;

/// When tests take place.
pub(crate) fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

/// The X.509 authority of a trust domain.
pub(crate) struct Authority {
    pub(crate) td: TrustDomain,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate to ask for.
pub(crate) struct Wish {
    pub(crate) uris: Vec<String>,
    pub(crate) serial: u64,
    /// After [`noon`]; the certificate starts an hour before.
    pub(crate) lifetime: i64,
    pub(crate) is_ca: bool,
}

/// A chain, leaf first, with its key.
pub(crate) struct Bearer {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new(td: &str) -> Authority {
        let td = TrustDomain::parse(td).unwrap();
        let mut params =
            params(&Wish { uris: vec![td.id().to_string()], serial: 1, lifetime: 86_400, is_ca: true });
        params.distinguished_name.push(rcgen::DnType::CommonName, td.name());
        Authority { td, issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle {
            trust_domain: self.td.clone(),
            x509_authorities: vec![X509Authority { der: self.issuer.der().to_vec(), tainted: false }],
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 1,
        }
    }

    pub(crate) fn issue(&self, wish: &Wish) -> Bearer {
        let key = KeyPair::generate().unwrap();
        let leaf = params(wish).signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Bearer { chain: vec![leaf.der().clone()], key }
    }

    /// An SVID for a path of this trust domain (or a whole ID), for an hour.
    pub(crate) fn svid(&self, path: &str, serial: u64) -> Bearer {
        self.issue(&Wish::id(&self.uri(path), serial))
    }

    pub(crate) fn uri(&self, path: &str) -> String {
        if path.starts_with("spiffe:") { path.to_owned() } else { format!("{}{path}", self.td.id()) }
    }
}

impl Wish {
    pub(crate) fn id(uri: &str, serial: u64) -> Wish {
        Wish { uris: vec![uri.to_owned()], serial, lifetime: 3600, is_ca: false }
    }
}

impl Bearer {
    /// The caller that shows this chain.
    pub(crate) fn caller(&self) -> Caller {
        let address = Origin::Tcp("192.0.2.1:4711".parse().unwrap());
        Caller::from_network(&ConnInfo::new(address, Some(Arc::from(self.chain.clone())))).unwrap()
    }
}

pub(crate) fn anonymous() -> Caller {
    Caller::from_network(&ConnInfo::new(Origin::Tcp("192.0.2.2:4712".parse().unwrap()), None)).unwrap()
}

pub(crate) fn local() -> Caller {
    Caller::from_socket(&ConnInfo::new(Origin::LocalUnknown, None))
}

fn params(wish: &Wish) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (noon() - Duration::from_secs(3600)).into();
    params.not_after = time::OffsetDateTime::from(noon()) + time::Duration::seconds(wish.lifetime);
    params.serial_number = Some(SerialNumber::from(wish.serial));
    params.subject_alt_names =
        wish.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    if wish.is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    params
}
