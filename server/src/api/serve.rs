//! The accept loop of both sockets: HTTP/2 connections that end after a while, and a stop that lets calls finish.
//!
//! tonic's own loop gives every connection the same age, so that agents which connected together would all come
//! back together; and it waits for ever when it is told to stop.

use std::pin::pin;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::listen::{Conn, Connections};
use futures::StreamExt;
use http::Request;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::Rng;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::ServiceExt;

use crate::api::gate::Gate;

/// How long calls may go on after the server was told to stop.
pub const GRACE: Duration = Duration::from_secs(10);

/// Flow-control window of a stream and of a connection: a full batch of 500 CSRs travels without a pause.
const WINDOW: u32 = 1024 * 1024;

/// Serves what is behind `gate` on every connection of `incoming` until `stop`, or until `incoming` ends.
///
/// After `age` (give or take a tenth) a connection takes no new calls and closes once the last one has ended.
/// After `stop` the same, and what is not finished within [`GRACE`] is cut off.
pub async fn serve(
    mut incoming: Connections,
    gate: Gate,
    age: Option<Duration>,
    clock: Clock,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let _cut_on_drop = cut.clone().drop_guard();
    while let Some(next) = tokio::select! {
        _ = stop.cancelled() => None,
        next = incoming.next() => next,
    } {
        match next {
            Ok(conn) => {
                let age = age.map(jittered);
                let (gate, clock) = (gate.clone(), clock.clone());
                let (stop, cut) = (stop.clone(), cut.clone());
                connections.spawn(async move {
                    tokio::select! {
                        _ = cut.cancelled() => {}
                        _ = connection(conn, gate, age, clock, stop) => {}
                    }
                });
            }
            Err(error) => tracing::debug!(%error, "Connection refused"),
        }
    }
    // Closes the listening socket, before the wait.
    drop(incoming);
    connections.close();
    tokio::select! {
        _ = connections.wait() => return,
        _ = stop.cancelled() => {}
    }
    tokio::select! {
        _ = connections.wait() => {}
        _ = clock.sleep(GRACE) => tracing::warn!("Calls still running at shutdown are cut off"),
    }
}

async fn connection(conn: Conn, gate: Gate, age: Option<Duration>, clock: Clock, stop: CancellationToken) {
    let caller = gate.door().caller(conn.info());
    let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(caller.clone());
        gate.clone().oneshot(request)
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_connection(TokioIo::new(conn), answer);
    let mut served = pin!(served);
    let old = async {
        match age {
            Some(age) => clock.sleep(age).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = &mut served => ended,
        _ = async { tokio::select! { _ = old => {}, _ = stop.cancelled() => {} } } => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        // As a rule a client that went away without a word.
        tracing::trace!(error = crate::api::status::chain(&error), "Connection ended");
    }
}

fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::rng().random_range(0.9..=1.1))
}
