//! TLS of the network listener: whom it believes, and who it says it is.
//!
//! A client may come without a certificate (a new agent has none yet). If it shows one, the handshake fails unless the
//! certificate is an X509-SVID that chains to the bundle of its own trust domain, and its ID is a member of the server's
//! trust domain or is listed in `admin_ids`.
//!
//! rustls asks in the middle of a handshake, where nothing can wait. So the server's own bundle is read from a watch, and
//! the bundles of foreign administrators are kept at hand by a task ([`ForeignBundles::follow`]).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use finial_daemon::clock::Clock;
use finial_daemon::listen::tls;
use finial_identity::bundle::{Bundle, X509Authority};
use finial_identity::peer::{self, PeerError};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use finial_identity::x509_svid::{X509SvidError, leaf_id};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::store::{Store, StoreError};

/// The one protocol that is spoken; gRPC clients give up when none is agreed on.
const ALPN: &[u8] = b"h2";
/// How old a foreign bundle may be.
const FOREIGN_REFRESH: Duration = Duration::from_secs(1);
/// A missing foreign bundle is an operator's mistake that lasts: one line a minute will do.
const MISSING_LOG_EVERY: Duration = Duration::from_secs(60);

/// The server's current SVID with its key; `None` until there is one, and no handshake succeeds until then. Handshakes
/// use the value of their moment, so a rotation needs no restart.
pub type ServerSvid = watch::Receiver<Option<Arc<CertifiedKey>>>;

/// Whose certificates are believed.
#[derive(Clone)]
pub struct Trust {
    pub own: watch::Receiver<Arc<Bundle>>,
    pub foreign: ForeignBundles,
    pub admin_ids: Arc<[SpiffeId]>,
    pub clock: Clock,
}

/// The bundles of the trust domains that some of the `admin_ids` come from. Clones share them.
#[derive(Clone)]
pub struct ForeignBundles {
    wanted: Arc<[TrustDomain]>,
    held: Arc<ArcSwap<HashMap<TrustDomain, Arc<[X509Authority]>>>>,
}

/// Why a client certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    #[error(transparent)]
    NotAnSvid(#[from] X509SvidError),
    #[error(transparent)]
    NotBelieved(#[from] PeerError),
    #[error("unexpected trust domain in ID \"{0}\"")]
    UnexpectedTrustDomain(SpiffeId),
    #[error("no bundle found for trust domain \"{0}\"")]
    NoBundle(TrustDomain),
}

/// Settings for TLS 1.2 and 1.3, ALPN `h2`, a client certificate asked for but not required, and no resumption of any kind:
/// every connection proves itself anew. With `require_pq_kem` only TLS 1.3 with a hybrid post-quantum key exchange.
pub fn server_config(
    server_svid: ServerSvid,
    trust: Trust,
    require_pq_kem: bool,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(tls::provider(require_pq_kem));
    let verifier = SvidVerifier { algorithms: provider.signature_verification_algorithms, trust };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(tls::versions(require_pq_kem))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(CurrentSvid(server_svid)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

impl Trust {
    /// Decides about a chain (DER, leaf first).
    pub fn check(&self, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, ClientCertificateError> {
        let leaf = chain.first().ok_or(X509SvidError::Empty)?;
        let id = leaf_id(leaf)?;
        let own = Arc::clone(&self.own.borrow());
        let now = self.clock.now();
        if id.is_member_of(&own.trust_domain) {
            peer::verify(chain, &ders(&own.x509_authorities), now)?;
            return Ok(id);
        }
        if !self.admin_ids.contains(&id) {
            return Err(ClientCertificateError::UnexpectedTrustDomain(id));
        }
        let foreign = self.foreign.held.load();
        let trust_domain = id.trust_domain();
        let Some(authorities) = foreign.get(&trust_domain) else {
            return Err(ClientCertificateError::NoBundle(trust_domain));
        };
        peer::verify(chain, &ders(authorities), now)?;
        Ok(id)
    }
}

impl ForeignBundles {
    /// For the `admin_ids` outside of the trust domain `own`. Empty until [`refresh`](Self::refresh)ed.
    pub fn new(admin_ids: &[SpiffeId], own: &TrustDomain) -> ForeignBundles {
        let foreign = admin_ids.iter().filter(|id| !id.is_member_of(own)).map(SpiffeId::trust_domain);
        let mut wanted: Vec<TrustDomain> = foreign.collect();
        wanted.sort();
        wanted.dedup();
        ForeignBundles { wanted: wanted.into(), held: Arc::default() }
    }

    /// Whether there is anything to follow.
    pub fn is_needed(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Reads the bundles again.
    pub async fn refresh(&self, store: &Store) -> Result<(), StoreError> {
        let mut held = HashMap::new();
        for trust_domain in self.wanted.iter() {
            if let Some(bundle) = store.bundles().get(trust_domain).await? {
                held.insert(trust_domain.clone(), bundle.x509_authorities.into());
            }
        }
        self.held.store(Arc::new(held));
        Ok(())
    }

    /// Keeps the bundles at most a second old, until dropped. Returns at once when no administrator is foreign. While the
    /// store cannot be read, the last known bundles stay in use.
    pub async fn follow(self, store: Store, clock: Clock) {
        if !self.is_needed() {
            return;
        }
        let mut told: BTreeMap<TrustDomain, Duration> = BTreeMap::new();
        loop {
            match self.refresh(&store).await {
                Ok(()) => self.tell_of_missing(&mut told, clock.monotonic()),
                Err(error) if error.is_outage() => {}
                Err(error) => tracing::warn!(%error, "Unable to read the bundles of foreign administrators"),
            }
            clock.sleep(FOREIGN_REFRESH).await;
        }
    }

    fn tell_of_missing(&self, told: &mut BTreeMap<TrustDomain, Duration>, now: Duration) {
        let held = self.held.load();
        for trust_domain in self.wanted.iter() {
            let due =
                told.get(trust_domain).is_none_or(|last| now.saturating_sub(*last) >= MISSING_LOG_EVERY);
            if held.contains_key(trust_domain) || !due {
                continue;
            }
            told.insert(trust_domain.clone(), now);
            tracing::warn!(
                trust_domain = %trust_domain,
                "No bundle found for foreign admin trust domain; admins from this trust domain will not be able to \
                 connect. Make sure this trust domain is correctly federated."
            );
        }
    }
}

fn ders(authorities: &[X509Authority]) -> Vec<&[u8]> {
    authorities.iter().map(|authority| authority.der.as_slice()).collect()
}

struct SvidVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    trust: Trust,
}

impl ClientCertVerifier for SvidVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: clients send whatever they have.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> = [end_entity].into_iter().chain(intermediates).cloned().collect();
        match self.trust.check(&chain) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => {
                tracing::debug!(%error, "Client certificate refused");
                Err(CertificateError::Other(OtherError(Arc::new(error))).into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier").finish_non_exhaustive()
    }
}

struct CurrentSvid(ServerSvid);

impl ResolvesServerCert for CurrentSvid {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}

impl fmt::Debug for CurrentSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentSvid").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
