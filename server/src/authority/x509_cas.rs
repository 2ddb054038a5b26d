//! X.509 CAs, as the driver turns them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::clock::{from_unix_seconds, unix_seconds};
use finial_daemon::keys::{Key, KeyType};
use finial_identity::bundle::{Bundle, X509Authority};
use finial_identity::x509_svid::AuthorityCertificate;
use rustls_pki_types::CertificateDer;

use super::NewCa;
use super::chain::{self, ChainFault};
use super::drive::{DriveError, Facts, Kind, Made, Unusable, Words};
use super::issue::{ActiveCa, IssueError};
use super::profile::{self, Profiles};
use super::rotate::Held;
use super::self_signed;
use super::upstream;
use crate::bundles::own::Authorities;
use crate::plugins::upstream_authority::UpstreamAuthority;
use crate::store::issued::IssuedLog;
use crate::store::journal::entries::{Content, List, Record};

/// How X.509 CAs are made.
pub(super) struct X509Cas {
    /// `ca_key_type`.
    pub(super) key_type: KeyType,
    /// `None`: our CA signs itself.
    pub(super) upstream: Option<Arc<dyn UpstreamAuthority>>,
    pub(super) profiles: Arc<Profiles>,
    pub(super) issued: IssuedLog,
}

impl Kind for X509Cas {
    type Signer = ActiveCa;

    const NAME: &'static str = "X509 CA";
    const LIST: List = List::X509Cas;
    const KEYS: &'static str = "x509-CA";
    const WORDS: Words = Words {
        prepare: &["ca", "manager", "x509_ca", "prepare"],
        activate: &["ca", "manager", "x509_ca", "activate"],
        expiration: &["manager", "x509_ca", "rotate", "expiration"],
        ttl: &["manager", "x509_ca", "rotate", "ttl"],
    };

    fn key_type(&self) -> KeyType {
        self.key_type
    }

    fn authority_id(&self, key: &Key) -> Result<String, DriveError> {
        Ok(profile::authority_id(key.public_key_der())
            .map_err(profile::ProfileError::PublicKey)
            .map_err(IssueError::from)?)
    }

    /// A certificate from above or from itself, checked to the end: the chain rule by rule, and a first SVID as a peer
    /// would see it.
    async fn make(
        &self,
        key: Arc<Key>,
        _: &str,
        in_use: Option<&Held>,
        now: SystemTime,
    ) -> Result<Made<ActiveCa>, DriveError> {
        let NewCa { der, above, roots, ends } = match &self.upstream {
            Some(authority) => upstream::mint(authority.as_ref(), &self.profiles, &key, now).await?,
            None => self_signed::make(&self.profiles, &key, now).await?,
        };
        let ca = ActiveCa::new(key, der, above, ends)?;
        self.refuse_no_gain(&ca, in_use, now)?;
        ca.prove(&self.profiles, &roots, now).await?;
        self.issued.record(ca.own_record());
        let x509 = roots.iter().map(|der| X509Authority { der: der.to_vec(), tainted: false }).collect();
        Ok(Made { signer: Arc::new(ca), addition: Authorities { x509, jwt: Vec::new() }, issued_at: now })
    }

    async fn revive(
        &self,
        key: Arc<Key>,
        record: &Record,
        bundle: &Bundle,
        now: SystemTime,
    ) -> Result<ActiveCa, Unusable> {
        let Content::X509Ca { certificate, upstream_chain, .. } = &record.content else {
            return Err(Unusable("it is not an X509 CA".to_owned()));
        };
        let parsed = AuthorityCertificate::read(certificate).map_err(|fault| Unusable(fault.to_string()))?;
        if key.public_key_der() != parsed.public_key_der() {
            return Err(Unusable::other_key());
        }
        let der = CertificateDer::from(certificate.clone());
        let above: Vec<_> = upstream_chain.iter().cloned().map(CertificateDer::from).collect();
        let chain = if above.is_empty() { std::slice::from_ref(&der) } else { above.as_slice() };
        let anchored = chain::check(chain, &bundle.x509_authorities, 0, now)?;
        let ca = ActiveCa::new(key, der, above, anchored.ends)?;
        ca.prove(&self.profiles, &bundle.x509_authorities, now).await?;
        Ok(ca)
    }

    fn facts(ca: &ActiveCa) -> Facts {
        Facts {
            authority_id: ca.authority_id().to_owned(),
            not_after: ca.certificate().not_after(),
            ends: from_unix_seconds(ca.ends()),
            upstream_authority_id: ca.upstream_authority_id(),
        }
    }

    fn content(ca: &ActiveCa) -> Content {
        Content::X509Ca {
            certificate: ca.der().to_vec(),
            upstream_chain: ca.above().iter().map(|der| der.to_vec()).collect(),
            upstream_authority_id: ca.upstream_authority_id(),
        }
    }
}

impl X509Cas {
    /// Below a certificate that is about to end, each new CA would last half as long as the one before, faster and faster.
    fn refuse_no_gain(
        &self,
        ca: &ActiveCa,
        in_use: Option<&Held>,
        now: SystemTime,
    ) -> Result<(), DriveError> {
        let ends = from_unix_seconds(ca.ends());
        let was_capped = ends < now + self.profiles.ca_ttl() - Duration::from_secs(1);
        match in_use {
            Some(held) if was_capped && now < held.not_after && ends <= held.not_after => {
                Err(DriveError::NoGain { ends: unix_seconds(ends) })
            }
            _ => Ok(()),
        }
    }
}

impl From<ChainFault> for Unusable {
    fn from(fault: ChainFault) -> Self {
        Unusable(fault.to_string())
    }
}

impl From<IssueError> for Unusable {
    fn from(error: IssueError) -> Self {
        Unusable(error.to_string())
    }
}
