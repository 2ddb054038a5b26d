//! The accept loop of both sockets: HTTP/2 connections that end after a while, and a stop that lets calls finish.
//!
//! tonic's own loop gives every connection the same age, so that agents which connected together would all come
//! back together; and it waits for ever when it is told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::listen::{Conn, Connections, Newest};
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

use crate::access::caller::{Caller, CallerError};
use crate::api::gate::Gate;
use crate::api::status;

/// How long calls may go on after the server was told to stop.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long a connection may be open before the first call on it.
const FIRST_CALL: Duration = Duration::from_secs(20);
/// How long a connection that was told to end may begin calls: the client has to hear of it first.
const LAST_CALL: Duration = Duration::from_secs(10);
/// How long calls of a client without an identity may go on after its connection was told to end.
const STRANGERS_GRACE: Duration = Duration::from_secs(5 * 60);

/// Flow-control window of a stream and of a connection: a full batch of 500 CSRs travels without a pause.
const WINDOW: u32 = 1024 * 1024;
/// Calls that one connection may have open.
const STREAMS: u32 = 200;
/// The same for clients without an identity.
const STRANGERS_WINDOW: u32 = 64 * 1024;
const STRANGERS_STREAMS: u32 = 8;
/// Connections of clients without an identity; a further one ends the oldest.
const STRANGERS: usize = 2048;

/// Serves what is behind `gate` on every connection of `incoming` until `stop`, or until `incoming` ends.
///
/// After `age` (give or take a tenth) a connection takes no new calls and closes once the last one has ended; it is cut
/// off with the SVID that opened it, or after [`STRANGERS_GRACE`] where there was none. A client cannot put any of this off.
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
    let mut strangers = Newest::new(STRANGERS);
    while let Some(next) = tokio::select! {
        _ = stop.cancelled() => None,
        next = incoming.next() => next,
    } {
        match next {
            Ok(conn) => {
                let caller = gate.door().caller(conn.info());
                let is_stranger =
                    !caller.as_ref().is_ok_and(|caller| caller.is_local() || caller.svid().is_some());
                let age = age.map(jittered);
                let (gate, clock) = (gate.clone(), clock.clone());
                let (stop, cut) = (stop.clone(), cut.clone());
                let task = connections.spawn(async move {
                    tokio::select! {
                        _ = cut.cancelled() => {}
                        _ = connection(conn, caller, gate, age, clock, stop) => {}
                    }
                });
                if is_stranger && strangers.admit(task.abort_handle()) {
                    tracing::warn!(
                        limit = STRANGERS,
                        "Too many connections without a client certificate; ended the oldest"
                    );
                }
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

async fn connection(
    conn: Conn,
    caller: Result<Caller, CallerError>,
    gate: Gate,
    age: Option<Duration>,
    clock: Clock,
    stop: CancellationToken,
) {
    let expires_at = caller.as_ref().ok().and_then(Caller::svid).map(|svid| svid.not_after());
    let is_local = caller.as_ref().is_ok_and(Caller::is_local);
    let (window, streams) = match expires_at {
        None if !is_local => (STRANGERS_WINDOW, STRANGERS_STREAMS),
        _ => (WINDOW, STREAMS),
    };
    let course = Arc::new(Course::default());
    let answer = {
        let course = Arc::clone(&course);
        service_fn(move |request: Request<hyper::body::Incoming>| {
            course.called.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(caller.clone());
            let gate = gate.clone();
            let is_over = course.over.load(Ordering::Relaxed);
            async move {
                if is_over { Ok(status::connection_over().into_http()) } else { gate.oneshot(request).await }
            }
        })
    };
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .max_concurrent_streams(streams)
        .serve_connection(TokioIo::new(conn), answer);
    let mut served = pin!(served);

    let told_to_end = async {
        let Some(age) = age else { return stop.cancelled().await };
        tokio::select! {
            () = stop.cancelled() => {}
            () = clock.sleep(age) => {}
            () = course.no_call(&clock) => {}
        }
    };
    // GOAWAY asks the client to end it. One that does not read, or does not acknowledge, has no say in it.
    let cut_off = async {
        clock.sleep(LAST_CALL).await;
        course.over.store(true, Ordering::Relaxed);
        match (age, expires_at) {
            _ if !course.called.load(Ordering::Relaxed) => {}
            (None, _) => std::future::pending().await,
            (Some(_), None) => clock.sleep(STRANGERS_GRACE).await,
            (Some(_), Some(at)) => {
                clock.sleep_until(at).await;
                clock.sleep(LAST_CALL).await;
            }
        }
    };
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = told_to_end => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = &mut served => ended,
                () = cut_off => return tracing::trace!("Connection cut off"),
            }
        }
    };
    if let Err(error) = ended {
        // As a rule a client that went away without a word.
        tracing::trace!(error = status::chain(&error), "Connection ended");
    }
}

/// What has happened on a connection so far.
#[derive(Default)]
struct Course {
    called: AtomicBool,
    /// No call begins any more.
    over: AtomicBool,
}

impl Course {
    /// Ends when the time for a first call is over and there was none.
    async fn no_call(&self, clock: &Clock) {
        clock.sleep(FIRST_CALL).await;
        if self.called.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::rng().random_range(0.9..=1.1))
}
