//! Connections over TLS.
//!
//! tonic's own TLS settings can neither change a certificate at run time nor take a verifier, and a
//! handshake in its accept loop would let one slow client hold up the others. Here each handshake is a
//! task with a time limit.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1MLKEM768, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{Accepted, Conn, ConnInfo, Connections, Incoming, Newest};
use crate::clock::Clock;

/// Handshakes at one time; a further one ends the oldest.
const MAX_HANDSHAKES: usize = 1024;
/// Connections whose handshake is done and that wait to be served.
const READY_QUEUE: usize = 64;
/// The protocol every gRPC client negotiates.
const H2: &[u8] = b"h2";

/// Serves connections over TLS with `config`, which the caller makes with ALPN `h2` and without session
/// tickets; a certificate resolver in it can change the certificate between handshakes. A client that has
/// not finished its handshake within `handshake_timeout`, or did not negotiate `h2`, is dropped; that is
/// logged at debug and concerns nobody else.
///
/// Must be called within a tokio runtime. The accept loop ends when the returned stream is dropped.
pub fn accept(
    incoming: Incoming,
    config: Arc<ServerConfig>,
    handshake_timeout: Duration,
    clock: Clock,
) -> Connections {
    let (ready, connections) = mpsc::channel(READY_QUEUE);
    let handshake = Handshake { acceptor: TlsAcceptor::from(config), timeout: handshake_timeout, clock };
    tokio::spawn(accept_loop(incoming, handshake, ready));
    ReceiverStream::new(connections).map(Ok).boxed()
}

/// The one cryptography provider, with X25519MLKEM768 offered first. With `require_pq_kem` it has nothing but hybrid
/// post-quantum key exchanges.
pub fn provider(require_pq_kem: bool) -> CryptoProvider {
    let default = aws_lc_rs::default_provider();
    let kx_groups = if require_pq_kem {
        vec![X25519MLKEM768, SECP256R1MLKEM768]
    } else {
        let classic = default.kx_groups.iter().copied().filter(|group| group.name() != X25519MLKEM768.name());
        [X25519MLKEM768].into_iter().chain(classic).collect()
    };
    CryptoProvider { kx_groups, ..default }
}

/// TLS 1.3, and 1.2 unless `require_pq_kem`: 1.2 knows no post-quantum key exchange.
pub fn versions(require_pq_kem: bool) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_13: &[&SupportedProtocolVersion] = &[&version::TLS13];
    if require_pq_kem { ONLY_13 } else { rustls::ALL_VERSIONS }
}

#[derive(Clone)]
struct Handshake {
    acceptor: TlsAcceptor,
    timeout: Duration,
    clock: Clock,
}

#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("not finished within {0:?}")]
    TooSlow(Duration),
    #[error("{0}")]
    Tls(#[from] io::Error),
    #[error("the client did not negotiate the protocol h2")]
    NotHttp2,
}

async fn accept_loop(mut incoming: Incoming, handshake: Handshake, ready: mpsc::Sender<Conn>) {
    // Dropping the set ends the handshakes with the loop.
    let mut handshakes = JoinSet::new();
    let mut newest = Newest::new(MAX_HANDSHAKES);
    loop {
        tokio::select! {
            () = ready.closed() => return,
            Some(ended) = handshakes.join_next() => log_panic(ended),
            next = incoming.next() => match next {
                Some(Ok(accepted)) => {
                    let task = handshakes.spawn(greet(accepted, handshake.clone(), ready.clone()));
                    if newest.admit(task) {
                        tracing::debug!(limit = MAX_HANDSHAKES, "Too many TLS handshakes; ended the oldest");
                    }
                }
                Some(Err(error)) => tracing::debug!(%error, "Connection could not be accepted"),
                None => break,
            },
        }
    }
    while let Some(ended) = handshakes.join_next().await {
        log_panic(ended);
    }
}

async fn greet(accepted: Accepted, handshake: Handshake, ready: mpsc::Sender<Conn>) {
    let origin = accepted.origin.clone();
    match handshake.run(accepted).await {
        // Sending fails only when nobody serves any more.
        Ok(conn) => drop(ready.send(conn).await),
        Err(error) => tracing::debug!(address = %origin, %error, "TLS handshake failed"),
    }
}

impl Handshake {
    async fn run(self, accepted: Accepted) -> Result<Conn, HandshakeError> {
        let handshake = self.acceptor.accept(accepted.io);
        let stream = self
            .clock
            .timeout(self.timeout, handshake)
            .await
            .map_err(|_| HandshakeError::TooSlow(self.timeout))??;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(H2) {
            return Err(HandshakeError::NotHttp2);
        }
        let peer_chain = session.peer_certificates().map(owned_chain);
        let info = ConnInfo::new(accepted.origin, peer_chain);
        Ok(Conn::new(stream, info))
    }
}

fn owned_chain(chain: &[CertificateDer<'_>]) -> Arc<[CertificateDer<'static>]> {
    chain.iter().map(|certificate| certificate.clone().into_owned()).collect()
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "TLS handshake panicked");
    }
}

#[cfg(test)]
mod tests;
