//! Accepting connections: from TCP, from Unix sockets whose peers are pinned, from memory.
//!
//! A listener gives an [`Incoming`] stream of bare connections. [`tls::accept`] or [`plain`] turns it into
//! the stream of [`Conn`]s that tonic serves; a request then carries [`ConnInfo`] in its extensions.

mod authority;
mod hpack;
mod memory;
mod newest;
pub mod peer;
mod plain;
mod proxied;
mod tcp;
pub mod tls;
mod unix;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

pub use memory::{MemoryDialer, memory};
pub use newest::Newest;
pub use plain::plain;
pub use proxied::{Network, NoNetwork, proxied};
pub use tcp::{bind_tcp, tcp};
pub use unix::{SocketMode, unix, unix_by_permission};

pub(crate) use tcp::prepare as prepare_tcp;

use peer::LocalPeer;

/// A byte stream both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection as a listener accepted it.
pub struct Accepted {
    /// The bytes.
    pub io: Box<dyn Io>,
    /// Where they come from.
    pub origin: Origin,
}

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The peer's address.
    Tcp(SocketAddr),
    /// A process of this machine.
    Local(Arc<LocalPeer>),
    /// A process of this machine that cannot be identified; the socket's permissions let it in. Only from
    /// [`unix_by_permission`].
    LocalUnknown,
    /// This process.
    Memory,
}

/// Accepted connections. Ends when nobody can connect any more; a failure to accept one connection is not
/// an item of it.
pub type Incoming = BoxStream<'static, io::Result<Accepted>>;

/// Connections as tonic's `serve_with_incoming` takes them.
pub type Connections = BoxStream<'static, io::Result<Conn>>;

/// What is known of a connection; tonic puts it into each request's extensions.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Where the connection comes from.
    pub origin: Origin,
    /// The certificates the peer proved itself with, leaf first; what they are worth was decided by the
    /// verifier of the TLS settings. Absent without TLS or when the peer showed none.
    pub peer_chain: Option<Arc<[CertificateDer<'static>]>>,
    hang_up: CancellationToken,
}

/// A connection ready to be served.
pub struct Conn {
    io: Box<dyn Io>,
    info: ConnInfo,
    hung_up: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Accepted {
    /// A connection over `io`.
    pub fn new(io: impl Io, origin: Origin) -> Accepted {
        Accepted { io: Box::new(io), origin }
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Tcp(address) => address.fmt(f),
            Origin::Local(peer) => write!(f, "pid:{}", peer.pid()),
            Origin::LocalUnknown => f.write_str("local"),
            Origin::Memory => f.write_str("memory"),
        }
    }
}

impl ConnInfo {
    /// What is known of a connection.
    pub fn new(origin: Origin, peer_chain: Option<Arc<[CertificateDer<'static>]>>) -> ConnInfo {
        ConnInfo { origin, peer_chain, hang_up: CancellationToken::new() }
    }

    /// Ends the connection with all calls on it, as soon as it is polled next. Answers not written by then
    /// are lost.
    pub fn hang_up(&self) {
        self.hang_up.cancel();
    }
}

impl Conn {
    /// A connection over `io`.
    pub fn new(io: impl Io, info: ConnInfo) -> Conn {
        Conn::over(Box::new(io), info)
    }

    /// What is known of the connection.
    pub fn info(&self) -> &ConnInfo {
        &self.info
    }

    fn over(io: Box<dyn Io>, info: ConnInfo) -> Conn {
        let hung_up = Box::pin(info.hang_up.clone().cancelled_owned());
        Conn { io, info, hung_up }
    }

    fn check_hung_up(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.hung_up.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "hung up on this side")),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Conn {
    type ConnectInfo = ConnInfo;

    fn connect_info(&self) -> ConnInfo {
        self.info.clone()
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("info", &self.info).finish_non_exhaustive()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_hung_up(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What a failure to accept means for the accept loop.
///
/// A connection that died in the queue is passed over; anything else (no file descriptors, no memory) will
/// not get better by trying at once, so the loop waits.
async fn after_accept_error(listener: &str, error: &io::Error, failures: u32) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::debug!(listener, %error, "Connection was gone before it was accepted");
        return;
    }
    let wait = Duration::from_millis(5 << failures.min(8)).min(Duration::from_secs(1));
    tracing::warn!(listener, %error, "Cannot accept connections for now; check the limit on open files");
    tokio::time::sleep(wait).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn hanging_up_wakes_a_reader_that_waits() {
        let (near, mut far) = tokio::io::duplex(64);
        let info = ConnInfo::new(Origin::Memory, None);
        let mut conn = Conn::new(near, info.clone());
        far.write_all(b"hello").await.unwrap();
        let mut five = [0; 5];
        conn.read_exact(&mut five).await.unwrap();
        let reading = tokio::spawn(async move { conn.read_u8().await });
        tokio::task::yield_now().await;
        assert!(!reading.is_finished());
        info.hang_up();
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(far.read(&mut five).await.unwrap(), 0, "the other side sees the end");
    }

    #[tokio::test(start_paused = true)]
    async fn accept_errors_back_off_unless_they_concern_one_connection() {
        let clock = crate::clock::Clock::paused(std::time::UNIX_EPOCH);
        after_accept_error("test", &io::Error::from(io::ErrorKind::ConnectionAborted), 0).await;
        assert_eq!(clock.monotonic(), Duration::ZERO);
        let too_many_files = io::Error::from_raw_os_error(nix::libc::EMFILE);
        let mut before = Duration::ZERO;
        for failures in 0..12 {
            after_accept_error("test", &too_many_files, failures).await;
            let waited = clock.monotonic() - before;
            assert!(
                waited >= Duration::from_millis(5) && waited <= Duration::from_millis(1001),
                "{waited:?}"
            );
            before = clock.monotonic();
        }
        assert!(before > Duration::from_secs(4), "the waits grow");
    }
}
