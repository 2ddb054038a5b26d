//! Who is calling, as proven by the connection.
//!
//! A caller from the network is what the TLS handshake proved ([`super::handshake`]): the bearer of an X509-SVID, or
//! nobody in particular. A caller on the admin socket is local; the file mode of the socket is what let it in.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::listen::peer::LocalPeer;
use finial_daemon::listen::{ConnInfo, Origin};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509_svid::{X509Svid, X509SvidError};

/// The other end of a connection. Only this file makes one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    kind: Kind,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Kind {
    /// From the network, without a certificate.
    Anonymous,
    Local,
    Svid(Arc<Shown>),
}

#[derive(Debug)]
struct Shown {
    svid: X509Svid,
    /// In decimal, as the store has it.
    serial: String,
}

/// `UNAUTHENTICATED`. The handshake verified the certificate, so this is seen only if it let one pass that it should
/// not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("client certificate is not an X509-SVID: {0}")]
pub struct CallerError(#[from] X509SvidError);

impl Caller {
    /// The caller on a connection that the TLS listener accepted. Its settings must be those of
    /// [`super::handshake::server_config`]: the certificates are taken as verified.
    pub fn from_network(connection: &ConnInfo) -> Result<Caller, CallerError> {
        let kind = match connection.peer_chain.as_deref() {
            None | Some([]) => Kind::Anonymous,
            Some(chain) => {
                let svid = X509Svid::read(chain.to_vec())?;
                Kind::Svid(Arc::new(Shown { serial: svid.serial_decimal(), svid }))
            }
        };
        Ok(Caller { kind, origin: connection.origin.clone() })
    }

    /// The caller on a connection that the admin socket's listener accepted.
    pub fn from_socket(connection: &ConnInfo) -> Caller {
        Caller { kind: Kind::Local, origin: connection.origin.clone() }
    }

    pub fn is_local(&self) -> bool {
        matches!(self.kind, Kind::Local)
    }

    pub fn is_anonymous(&self) -> bool {
        matches!(self.kind, Kind::Anonymous)
    }

    /// The SVID that the caller proved itself with.
    pub fn svid(&self) -> Option<&X509Svid> {
        self.shown().map(|shown| &shown.svid)
    }

    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.shown().map(|shown| shown.svid.id())
    }

    /// The serial number of the SVID, in decimal.
    pub fn serial(&self) -> Option<&str> {
        self.shown().map(|shown| shown.serial.as_str())
    }

    /// Whether the SVID has expired. Connections outlive certificates.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.shown().is_some_and(|shown| now > shown.svid.not_after())
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn address(&self) -> Option<SocketAddr> {
        match self.origin {
            Origin::Tcp(address) => Some(address),
            Origin::Local(_) | Origin::LocalUnknown | Origin::Memory => None,
        }
    }

    /// What rate limits count by.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address().map(|address| address.ip())
    }

    /// The process at the other end of the admin socket.
    pub fn process(&self) -> Option<&Arc<LocalPeer>> {
        match &self.origin {
            Origin::Local(peer) if self.is_local() => Some(peer),
            _ => None,
        }
    }

    fn shown(&self) -> Option<&Shown> {
        match &self.kind {
            Kind::Svid(shown) => Some(shown),
            Kind::Anonymous | Kind::Local => None,
        }
    }
}
