//! Small pages over HTTP/1.1, with or without TLS: what operators and their tools read from a port.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming as Unread, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::listen::{Incoming, Io, Newest, bind_tcp};

/// How long a client may take for a TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at one time; a further one ends the oldest.
const CONNECTIONS: usize = 64;

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
}

impl Answer {
    /// What is said of a path that nothing is at.
    pub fn not_found() -> Answer {
        Answer {
            status: StatusCode::NOT_FOUND,
            content_type: "text/plain; charset=utf-8",
            body: "404 page not found\n".to_owned(),
        }
    }
}

/// What makes the pages, out of a request's head. It must not wait.
pub type Pages = Arc<dyn Fn(&Parts) -> Answer + Send + Sync>;

/// Listens at the first address of `host`, which may be a name; IPv4 goes first.
pub async fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let host = host.trim_matches(['[', ']']);
    let mut found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    found.sort_by_key(|address| address.is_ipv6());
    let address = found.first().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    bind_tcp(*address).await
}

/// Serves until `stop` or until nobody can connect any more. Connections then end at once.
pub async fn serve(
    mut incoming: Incoming,
    tls: Option<Arc<ServerConfig>>,
    pages: Pages,
    clock: Clock,
    stop: CancellationToken,
) {
    let tls = tls.map(TlsAcceptor::from);
    // Dropping the set ends the connections.
    let mut connections = JoinSet::new();
    let mut newest = Newest::new(CONNECTIONS);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => {}
            next = incoming.next() => match next {
                Some(Ok(accepted)) => {
                    let one = connection(accepted.io, tls.clone(), Arc::clone(&pages), clock.clone());
                    newest.admit(connections.spawn(one));
                }
                Some(Err(error)) => tracing::debug!(%error, "Connection could not be accepted"),
                None => return,
            },
        }
    }
}

async fn connection(io: Box<dyn Io>, tls: Option<TlsAcceptor>, pages: Pages, clock: Clock) {
    let io: Box<dyn Io> = match tls {
        None => io,
        Some(tls) => match clock.timeout(PATIENCE, tls.accept(io)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(error) => return tracing::debug!(%error, "TLS handshake failed"),
        },
    };
    let answer = service_fn(move |request: Request<Unread>| {
        let pages = Arc::clone(&pages);
        async move { Ok::<_, Infallible>(response(pages(&request.into_parts().0))) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(io), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "Connection ended");
    }
}

fn response(answer: Answer) -> Response<Page> {
    let mut response = Response::new(Page(Some(Bytes::from(answer.body))));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}

/// A body that is there already.
struct Page(Option<Bytes>);

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
