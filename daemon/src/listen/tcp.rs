//! Connections over TCP.

use std::io;
use std::net::SocketAddr;

use futures::{StreamExt as _, stream};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};

use super::{Accepted, Incoming, Origin, after_accept_error};

/// Seconds of silence after which the kernel asks whether the other side still lives.
const KEEPALIVE_IDLE: u32 = 30;
/// Seconds between such questions.
const KEEPALIVE_INTERVAL: u32 = 10;
/// Unanswered questions after which a connection is dead.
const KEEPALIVE_COUNT: u32 = 3;

/// Listens at `address`. The error names it.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::AddrInUse => "; stop the process that listens there or choose another port",
            io::ErrorKind::AddrNotAvailable => "; bind_address is no address of this machine",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{next}"))
    })
}

/// Accepts the connections of a listener.
pub fn tcp(listener: TcpListener) -> Incoming {
    let name = listener.local_addr().map_or_else(|_| "tcp".to_owned(), |address| address.to_string());
    stream::unfold((listener, name), |(listener, name)| async move {
        let mut failures = 0;
        loop {
            match listener.accept().await {
                Ok((socket, address)) => {
                    prepare(&socket);
                    return Some((Ok(Accepted::new(socket, Origin::Tcp(address))), (listener, name)));
                }
                Err(error) => after_accept_error(&name, &error, failures).await,
            }
            failures += 1;
        }
    })
    .boxed()
}

/// Sets what each TCP socket needs, accepted or dialled: no waiting for more to send (40 ms a call
/// otherwise), and the death of the other side noticed in about a minute.
pub(crate) fn prepare(socket: &TcpStream) {
    let set = socket
        .set_nodelay(true)
        .and_then(|()| setsockopt(socket, sockopt::KeepAlive, &true).map_err(io::Error::from))
        .and_then(|()| setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE).map_err(io::Error::from))
        .and_then(|()| {
            setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL).map_err(io::Error::from)
        })
        .and_then(|()| setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT).map_err(io::Error::from));
    if let Err(error) = set {
        // The connection died at birth; its first read will say so.
        tracing::debug!(%error, "Cannot set options of a TCP socket");
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn accepts_with_nodelay_and_the_peers_address() {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = tcp(listener);
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        assert!(matches!(accepted.origin, Origin::Tcp(from) if from == client.local_addr().unwrap()));
        accepted.io.write_all(b"hi").await.unwrap();
        let mut hi = [0; 2];
        client.read_exact(&mut hi).await.unwrap();
        assert_eq!(&hi, b"hi");
    }

    #[tokio::test]
    async fn prepares_a_socket() {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(!client.nodelay().unwrap());
        prepare(&client);
        assert!(client.nodelay().unwrap());
        assert!(getsockopt(&client, sockopt::KeepAlive).unwrap());
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let first = bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind_tcp(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
        assert!(error.to_string().contains("choose another port"), "{error}");
    }
}
