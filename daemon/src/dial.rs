//! Connecting: gRPC channels over TCP, Unix sockets and memory, with or without TLS.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::listen::{Io, MemoryDialer, prepare_tcp};

/// How long one address may take to answer; then the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What the server may send on one stream before it waits for us: a sync answer comes in one go.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// The same for all streams together.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
const H2: &[u8] = b"h2";

/// Where to connect to.
#[derive(Clone, Debug)]
pub enum Dialer {
    /// A host name or address; the addresses of a name are used in turn.
    Tcp {
        /// A DNS name, or an IPv4 or IPv6 address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
    /// A listener in this process.
    Memory(MemoryDialer),
}

/// Gives the TLS settings for each new connection, so that a certificate renewed meanwhile is used by the
/// next one. Their ALPN list must be `h2`.
pub type TlsSource = Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

/// Why a connection was not made. The texts hold their cause's.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name could not be resolved.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name has no address.
    #[error("{host} has no address")]
    NoAddress {
        /// The name.
        host: String,
    },
    /// Nothing answered. After several addresses this is about the last of them.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// The address or path.
        to: String,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS handshake failed; a certificate that was refused shows here.
    #[error("TLS handshake with {to} failed: {source}")]
    Tls {
        /// The address or path.
        to: String,
        /// What rustls said.
        source: io::Error,
    },
    /// The other side does not speak HTTP/2 over TLS, so it is no gRPC server.
    #[error("{to} did not negotiate the protocol h2: it is no gRPC server")]
    NotHttp2 {
        /// The address or path.
        to: String,
    },
    /// The name for the TLS handshake is neither a DNS name nor an address.
    #[error("{name:?} is neither a DNS name nor an IP address")]
    BadServerName {
        /// The name.
        name: String,
    },
    /// The connection was made but HTTP/2 did not start on it, or the dial failed in a way only the text
    /// tells.
    #[error("{0}")]
    Channel(String),
}

/// The same TLS settings for every connection.
pub fn fixed(config: Arc<ClientConfig>) -> TlsSource {
    Arc::new(move || config.clone())
}

/// A channel that connects at its first call and again whenever the connection is lost. A call that finds
/// no connection fails with `Unavailable` and the text of the [`DialError`].
///
/// With `tls`, `server_name` is what the handshake names (SNI); whether it must match the server's
/// certificate is the verifier's affair. Must be called within a tokio runtime.
pub fn channel(dialer: Dialer, tls: Option<TlsSource>, server_name: &str) -> Channel {
    let connector = Connector::new(dialer, tls, server_name);
    let endpoint = connector.endpoint();
    endpoint.connect_with_connector_lazy(connector)
}

/// Like [`channel`], connected already.
pub async fn connect(
    dialer: Dialer,
    tls: Option<TlsSource>,
    server_name: &str,
) -> Result<Channel, DialError> {
    let connector = Connector::new(dialer, tls, server_name);
    let endpoint = connector.endpoint();
    endpoint.connect_with_connector(connector).await.map_err(|error| DialError::Channel(innermost(&error)))
}

impl Dialer {
    /// A dialer for TCP.
    pub fn tcp(host: impl Into<String>, port: u16) -> Dialer {
        Dialer::Tcp { host: host.into(), port }
    }

    /// A bare connection, to the first address that answers.
    pub async fn dial(&self) -> Result<Box<dyn Io>, DialError> {
        self.dial_nth(0).await
    }

    /// A bare connection, the addresses tried in turn from the `nth` on.
    async fn dial_nth(&self, nth: usize) -> Result<Box<dyn Io>, DialError> {
        match self {
            Dialer::Tcp { host, port } => Ok(Box::new(dial_tcp(host, *port, nth).await?)),
            Dialer::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(source) => Err(DialError::Connect { to: path.display().to_string(), source }),
            },
            Dialer::Memory(dialer) => match dialer.dial() {
                Ok(stream) => Ok(Box::new(stream)),
                Err(source) => Err(DialError::Connect { to: self.name(), source }),
            },
        }
    }

    fn name(&self) -> String {
        match self {
            Dialer::Tcp { host, port } => host_and_port(host, *port),
            Dialer::Unix(path) => path.display().to_string(),
            Dialer::Memory(_) => "memory".to_owned(),
        }
    }
}

/// Makes the connections of one channel.
#[derive(Clone)]
struct Connector {
    dialer: Dialer,
    tls: Option<TlsSource>,
    server_name: Arc<str>,
    dials: Arc<AtomicUsize>,
}

impl Connector {
    fn new(dialer: Dialer, tls: Option<TlsSource>, server_name: &str) -> Connector {
        Connector { dialer, tls, server_name: server_name.into(), dials: Arc::default() }
    }

    async fn connect(self) -> Result<Box<dyn Io>, DialError> {
        let io = self.dialer.dial_nth(self.dials.fetch_add(1, Ordering::Relaxed)).await?;
        match &self.tls {
            Some(source) => handshake(io, source(), &self.server_name, self.dialer.name()).await,
            None => Ok(io),
        }
    }

    fn endpoint(&self) -> Endpoint {
        // The endpoint's own address only matters to tonic's connector, which is not used.
        Endpoint::from_static("http://localhost")
            .origin(self.origin())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
    }

    /// What requests give as their scheme and authority.
    fn origin(&self) -> Uri {
        let authority = match &self.dialer {
            Dialer::Tcp { host, port } => host_and_port(host, *port),
            Dialer::Unix(_) | Dialer::Memory(_) => "localhost".to_owned(),
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{authority}").parse().unwrap_or_else(|_| Uri::from_static("http://localhost"))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

async fn dial_tcp(host: &str, port: u16, nth: usize) -> Result<TcpStream, DialError> {
    let addresses = tokio::net::lookup_host((host, port))
        .await
        .map_err(|source| DialError::Resolve { host: host.to_owned(), source })?
        .collect();
    dial_first(&in_turn(addresses, nth), host).await
}

/// The addresses of a name in the order the `nth` dial tries them.
fn in_turn(mut addresses: Vec<SocketAddr>, nth: usize) -> Vec<SocketAddr> {
    // Resolvers shuffle; a fixed order makes the turns even.
    addresses.sort_unstable();
    addresses.dedup();
    let first = nth.checked_rem(addresses.len()).unwrap_or(0);
    addresses.rotate_left(first);
    addresses
}

/// A connection to the first of `addresses` that answers.
async fn dial_first(addresses: &[SocketAddr], host: &str) -> Result<TcpStream, DialError> {
    let mut failure = DialError::NoAddress { host: host.to_owned() };
    for address in addresses {
        let source = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                prepare_tcp(&stream);
                return Ok(stream);
            }
            Ok(Err(error)) => error,
            Err(_) => {
                io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}"))
            }
        };
        failure = DialError::Connect { to: address.to_string(), source };
        tracing::debug!(error = %failure, "Address does not answer");
    }
    Err(failure)
}

async fn handshake(
    io: Box<dyn Io>,
    config: Arc<ClientConfig>,
    server_name: &str,
    to: String,
) -> Result<Box<dyn Io>, DialError> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| DialError::BadServerName { name: server_name.to_owned() })?;
    let handshake = TlsConnector::from(config).connect(name, io);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(DialError::Tls { to, source }),
        Err(_) => {
            let text = format!("not finished within {HANDSHAKE_TIMEOUT:?}");
            return Err(DialError::Tls { to, source: io::Error::new(io::ErrorKind::TimedOut, text) });
        }
    };
    if stream.get_ref().1.alpn_protocol() != Some(H2) {
        return Err(DialError::NotHttp2 { to });
    }
    Ok(Box::new(stream))
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The text of the dial error that tonic has wrapped, or of whatever else lies innermost.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut current = error;
    loop {
        if let Some(dial) = current.downcast_ref::<DialError>() {
            return dial.to_string();
        }
        match current.source() {
            Some(source) => current = source,
            None => return current.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
