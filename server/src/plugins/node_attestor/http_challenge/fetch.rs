//! Asking the web server that an agent says it runs: one request, no redirects, ten seconds, 64 bytes.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{DialError, Dialer};
use http::header::{CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

const LIMIT: Duration = Duration::from_secs(10);
/// The most that is read of an answer.
const MOST_BYTES: usize = 64;
/// The most that the head of an answer may take; hyper takes no less.
const MOST_HEAD_BYTES: usize = 8192;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    #[error("http redirects are disabled")]
    Redirect,
    #[error("context deadline exceeded")]
    TimedOut,
}

/// The beginning of what `http://<host>:<port><path>` answers, whatever its status is.
pub async fn fetch(clock: &Clock, host: &str, port: u16, path: &str) -> Result<Vec<u8>, NoAnswer> {
    clock.timeout(LIMIT, ask(host, port, path)).await.unwrap_or(Err(NoAnswer::TimedOut))
}

async fn ask(host: &str, port: u16, path: &str) -> Result<Vec<u8>, NoAnswer> {
    let io = Dialer::tcp(host, port).dial().await?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MOST_HEAD_BYTES).handshake(TokioIo::new(io)).await?;
    let request = Request::get(path)
        .header(HOST, format!("{host}:{port}"))
        .header(USER_AGENT, "finial-server")
        .header(CONNECTION, "close")
        .body(String::new())?;
    let asked = async {
        let answer = sender.send_request(request).await?;
        if is_redirect(&answer) {
            return Err(NoAnswer::Redirect);
        }
        Ok(beginning(answer.into_body()).await?)
    };
    // Both at once: the connection does the work. It may end first, with the answer on its way.
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        ended = connection => {
            ended?;
            asked.await
        }
    }
}

fn is_redirect(answer: &http::Response<Incoming>) -> bool {
    let redirects = matches!(
        answer.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    redirects && answer.headers().contains_key(LOCATION)
}

async fn beginning(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut found = Vec::with_capacity(MOST_BYTES);
    while found.len() < MOST_BYTES {
        let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await else { break };
        if let Ok(data) = frame?.into_data() {
            found.extend_from_slice(&data[..data.len().min(MOST_BYTES - found.len())]);
        }
    }
    Ok(found)
}
