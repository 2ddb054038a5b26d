//! The web server that shows one nonce.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long a caller may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How many callers are served at a time. The server is one; the port is open to everybody.
const MOST_CALLERS: usize = 64;

const AFTER_A_FAILURE: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, path: String, nonce: String) {
    let shown = Arc::new((path, format!("{nonce}\n")));
    let mut callers = JoinSet::new();
    loop {
        while callers.len() >= MOST_CALLERS {
            callers.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    callers.spawn(answer(stream, Arc::clone(&shown)));
                }
                Err(error) => {
                    tracing::debug!(%error, "A caller of the challenge's web server was lost");
                    // Descriptors may be short.
                    tokio::time::sleep(AFTER_A_FAILURE).await;
                }
            },
            Some(_) = callers.join_next() => {}
        }
    }
}

async fn answer(stream: TcpStream, shown: Arc<(String, String)>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (path, nonce) = &*shown;
        let mut response = Response::new(String::new());
        if request.uri().path() == path {
            response.body_mut().clone_from(nonce);
        } else {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    // Whoever is slow or writes nonsense gets nothing.
    let _ = tokio::time::timeout(LIMIT, served).await;
}
