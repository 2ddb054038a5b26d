//! Who this agent is, and whom it believes to be its server.
//!
//! [`Identity`] holds both and shows each change at once to whoever dials or signs; [`keep`] makes the SVID,
//! renews it and stores it.

pub mod keep;
mod tls;

use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::clock::Clock;
use finial_daemon::dial::TlsSource;
use finial_daemon::keys::Key;
use finial_identity::bundle::Bundle;
use finial_identity::x509_svid::X509Svid;
use finial_identity::{TrustDomain, peer};
use tokio::sync::watch;

/// The agent's own SVID and the key it was signed for.
pub struct OwnSvid {
    /// Leaf and intermediates.
    pub svid: X509Svid,
    /// Stays with the key manager.
    pub key: Arc<Key>,
    /// Whether the node attests again when this one ages, instead of renewing it.
    pub reattestable: bool,
}

/// What the server is believed by.
#[derive(Clone)]
pub enum Trust {
    /// A server whose SVID these authorities of the trust domain vouch for.
    Bundle(Arc<Bundle>),
    /// Whatever server answers first and calls itself `spiffe://<trust domain>/spire/server`: `insecure_bootstrap`.
    FirstMet,
}

/// The agent's own SVID and its trust in the server, as they are at this moment. Clones share them.
#[derive(Clone)]
pub struct Identity {
    trust_domain: TrustDomain,
    clock: Clock,
    own: Arc<watch::Sender<Option<Arc<OwnSvid>>>>,
    trust: Arc<watch::Sender<Trust>>,
    require_pq_kem: bool,
}

impl Identity {
    /// An agent without an SVID yet, that believes nobody.
    pub fn new(trust_domain: TrustDomain, clock: Clock) -> Identity {
        let nobody = Trust::Bundle(Arc::new(Bundle::new(trust_domain.clone())));
        let (own, trust) = (Arc::new(watch::Sender::new(None)), Arc::new(watch::Sender::new(nobody)));
        Identity { trust_domain, clock, own, trust, require_pq_kem: false }
    }

    /// Whether servers must exchange keys in a way that withstands quantum computers.
    pub fn require_pq_kem(self, require_pq_kem: bool) -> Identity {
        Identity { require_pq_kem, ..self }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The SVID in use; None before the first attestation.
    pub fn own(&self) -> Option<Arc<OwnSvid>> {
        self.own.borrow().clone()
    }

    /// Follows the SVID.
    pub fn own_changes(&self) -> watch::Receiver<Option<Arc<OwnSvid>>> {
        self.own.subscribe()
    }

    /// What the server is believed by now.
    pub fn trust(&self) -> Trust {
        self.trust.borrow().clone()
    }

    /// Follows the trust.
    pub fn trust_changes(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    /// Believes servers by this from now on.
    pub fn set_trust(&self, trust: Trust) {
        self.trust.send_replace(trust);
    }

    /// Whether an authority that is tainted vouches for the SVID in use: then it is to be replaced at once.
    pub fn is_tainted(&self, now: SystemTime) -> bool {
        let (Some(own), Trust::Bundle(bundle)) = (self.own(), self.trust()) else { return false };
        let tainted: Vec<&[u8]> = bundle
            .x509_authorities
            .iter()
            .filter(|authority| authority.tainted)
            .map(|authority| authority.der.as_ref())
            .collect();
        !tainted.is_empty() && peer::verify_svid(&own.svid, &tainted, now).is_ok()
    }

    /// TLS settings that present the SVID in use, and believe the server by the trust of the moment of each dial.
    pub fn presenting(&self) -> TlsSource {
        let identity = self.clone();
        Arc::new(move || tls::client_config(&identity, identity.own()))
    }

    /// The same without a client certificate: for attestation.
    pub fn anonymous(&self) -> TlsSource {
        let identity = self.clone();
        Arc::new(move || tls::client_config(&identity, None))
    }

    pub(crate) fn set_own(&self, own: OwnSvid) {
        self.own.send_replace(Some(Arc::new(own)));
    }
}
