//! Connections within this process, for tests of whole systems: no sockets, so time can be virtual.

use std::io;
use std::sync::Arc;

use futures::StreamExt as _;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::peer::LocalPeer;
use super::{Accepted, Incoming, Origin};

/// Bytes each direction holds before the writer waits.
const PIPE_CAPACITY: usize = 256 * 1024;

/// A listener without an address, and the dialer that alone can reach it.
pub fn memory() -> (MemoryDialer, Incoming) {
    let (queue, accepted) = mpsc::unbounded_channel();
    let incoming = UnboundedReceiverStream::new(accepted).map(Ok).boxed();
    (MemoryDialer { queue, origin: Origin::Memory }, incoming)
}

/// Connects to the listener it was made with. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct MemoryDialer {
    queue: mpsc::UnboundedSender<Accepted>,
    origin: Origin,
}

impl MemoryDialer {
    /// A new connection. `ConnectionRefused` when the listener is gone.
    pub fn dial(&self) -> io::Result<DuplexStream> {
        self.connect(self.origin.clone())
    }

    /// A new connection that the listener sees come from the process `peer`.
    pub fn dial_as(&self, peer: Arc<LocalPeer>) -> io::Result<DuplexStream> {
        self.connect(Origin::Local(peer))
    }

    /// A dialer all of whose connections come from the process `peer`.
    pub fn acting_as(&self, peer: Arc<LocalPeer>) -> MemoryDialer {
        MemoryDialer { queue: self.queue.clone(), origin: Origin::Local(peer) }
    }

    /// A dialer all of whose connections come from `origin`.
    pub fn coming_from(&self, origin: Origin) -> MemoryDialer {
        MemoryDialer { queue: self.queue.clone(), origin }
    }

    fn connect(&self, origin: Origin) -> io::Result<DuplexStream> {
        let (near, far) = tokio::io::duplex(PIPE_CAPACITY);
        self.queue.send(Accepted::new(far, origin)).map_err(|_| {
            io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "nothing listens on this in-memory wire any more",
            )
        })?;
        Ok(near)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn carries_bytes_both_ways_and_names_the_peer() {
        let (dialer, mut incoming) = memory();
        let mut near = dialer.dial().unwrap();
        let mut far = incoming.next().await.unwrap().unwrap();
        assert!(matches!(far.origin, Origin::Memory));
        near.write_all(b"ping").await.unwrap();
        let mut four = [0; 4];
        far.io.read_exact(&mut four).await.unwrap();
        far.io.write_all(b"pong").await.unwrap();
        near.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"pong");

        let me = Arc::new(LocalPeer::of_process(std::process::id()).unwrap());
        let _near = dialer.dial_as(me.clone()).unwrap();
        let far = incoming.next().await.unwrap().unwrap();
        assert!(matches!(far.origin, Origin::Local(peer) if peer.pid() == std::process::id()));
        let _near = dialer.acting_as(me).dial().unwrap();
        let far = incoming.next().await.unwrap().unwrap();
        assert!(matches!(far.origin, Origin::Local(peer) if peer.pid() == std::process::id()));
    }

    #[tokio::test]
    async fn refuses_when_the_listener_is_gone_and_ends_when_all_dialers_are() {
        let (dialer, incoming) = memory();
        drop(incoming);
        assert_eq!(dialer.dial().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let (dialer, mut incoming) = memory();
        drop(dialer);
        assert!(incoming.next().await.is_none());
    }
}
