//! Entries, authorities and SVIDs for tests.

use std::{sync::Arc, time::Duration, time::SystemTime};

use finial_daemon::keys::{KeyType, exportable::WorkloadKey};
use finial_identity::{
    SpiffeId, TrustDomain,
    bundle::{Bundle, X509Authority},
    entry::Entry,
    selector::{Selector, sorted},
    x509_svid::X509Svid,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, string::Ia5String,
};

pub(crate) const TRUST_DOMAIN: &str = "example.org";

/// A moment that all tests take as now.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Lets a virtual clock start at [`now`].
pub(crate) fn clock() -> finial_daemon::clock::Clock {
    finial_daemon::clock::Clock::paused(now())
}

pub(crate) fn selectors(texts: &[String]) -> Vec<Selector> {
    sorted(texts.iter().map(|text| Selector::parse(text).unwrap()).collect())
}

/// An entry for the ID with this path.
pub(crate) fn entry(id: &str, path: &str, selector_texts: &[String]) -> Entry {
    let td = TrustDomain::parse(TRUST_DOMAIN).unwrap();
    let spiffe_id = SpiffeId::from_parts(&td, path).unwrap();
    Entry {
        id: id.to_owned(),
        ..Entry::plain(spiffe_id, td.agent_id("/a").unwrap(), selectors(selector_texts))
    }
}

/// An authority that signs SVIDs of its trust domain.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) trust_domain: TrustDomain,
}

impl Authority {
    pub(crate) fn new(trust_domain: &str, name: &str) -> Authority {
        let mut params = params(&format!("spiffe://{trust_domain}"), now() + Duration::from_secs(86_400));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer, trust_domain: TrustDomain::parse(trust_domain).unwrap() }
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    pub(crate) fn bundle(&self) -> Arc<Bundle> {
        Arc::new(Bundle {
            trust_domain: self.trust_domain.clone(),
            x509_authorities: vec![X509Authority { der: self.der(), tainted: false }],
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 1,
        })
    }

    /// An SVID for the entry that began ten seconds before [`now`] and lasts for `ttl` seconds from then.
    pub(crate) fn sign(&self, entry: &Entry, ttl: u64) -> (X509Svid, WorkloadKey) {
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let mut params = params(entry.spiffe_id.as_str(), now() + Duration::from_secs(ttl));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::try_from(key.pkcs8().as_slice()).unwrap();
        let leaf = params.signed_by(&pair, &self.issuer).unwrap();
        (X509Svid::read(vec![leaf.der().clone()]).unwrap(), key)
    }
}

fn params(uri: &str, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
    params.not_before = (now() - Duration::from_secs(10)).into();
    params.not_after = not_after.into();
    params
}
