//! Asking the web server that an agent says it runs: one request, no redirects, ten seconds, 64 bytes.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{DialError, Dialer};
use finial_daemon::listen::Io;
use http::header::{CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

const LIMIT: Duration = Duration::from_secs(10);
/// The most that is read of an answer.
const MOST_BYTES: usize = 64;
/// The most that the head of an answer may take; hyper takes no less.
const MOST_HEAD_BYTES: usize = 8192;

/// Names that are looked up at one time. Each takes a thread for as long as whoever owns the name is pleased to let the
/// resolver wait, and those threads are few and the store's too.
const LOOKUPS: usize = 64;

/// Who asks, for all agents of a server.
pub struct Fetcher {
    clock: Clock,
    lookups: Arc<Semaphore>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("cannot look up the name: {0}")]
    Name(io::Error),
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

impl Fetcher {
    pub fn new(clock: Clock) -> Fetcher {
        Fetcher { clock, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    /// The beginning of what `http://<host>:<port><path>` answers, whatever its status is.
    pub async fn fetch(&self, host: &str, port: u16, path: &str) -> Result<Vec<u8>, NoAnswer> {
        let asked = async {
            let addresses = self.look_up(host, port).await?;
            ask(dial(&addresses).await?, host, port, path).await
        };
        self.clock.timeout(LIMIT, asked).await.unwrap_or(Err(NoAnswer::TimedOut))
    }

    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NoAnswer> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        // The semaphore is never closed.
        let turn = Arc::clone(&self.lookups).acquire_owned().await;
        let name = (host.to_owned(), port);
        // A task of its own: the thread is busy until the resolver gives up, whether or not somebody waits.
        let found = tokio::spawn(async move {
            let found = tokio::net::lookup_host(name).await.map(Iterator::collect);
            drop(turn);
            found
        });
        found.await.unwrap_or_else(|cut_off| Err(io::Error::other(cut_off))).map_err(NoAnswer::Name)
    }
}

/// A connection to the first address that answers.
async fn dial(addresses: &[SocketAddr]) -> Result<Box<dyn Io>, NoAnswer> {
    let mut fault = NoAnswer::Name(io::ErrorKind::NotFound.into());
    for address in addresses {
        match Dialer::tcp(address.ip().to_string(), address.port()).dial().await {
            Ok(io) => return Ok(io),
            Err(error) => fault = error.into(),
        }
    }
    Err(fault)
}

async fn ask(io: Box<dyn Io>, host: &str, port: u16, path: &str) -> Result<Vec<u8>, NoAnswer> {
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// However many names there are whose owners let nobody know where they are.
    #[tokio::test(start_paused = true)]
    async fn lookups_take_a_few_threads_and_no_more() {
        let clock = Clock::paused(UNIX_EPOCH);
        let fetcher = Fetcher::new(clock.clone());
        let _busy = fetcher.lookups.acquire_many(LOOKUPS as u32).await.unwrap();
        let refused = fetcher.fetch("localhost", 1, "/").await;
        assert!(matches!(refused, Err(NoAnswer::TimedOut)), "{refused:?}");
        assert!(clock.monotonic() >= LIMIT);
    }

    /// Real connections, so in real time.
    #[tokio::test]
    async fn an_address_needs_no_lookup_and_a_name_gives_its_place_back() {
        let fetcher = Fetcher::new(Clock::wall());
        let busy = fetcher.lookups.acquire_many(LOOKUPS as u32).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let web = async {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                // An answer before the question would be none.
                assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
            }
        };
        let ask = async {
            assert_eq!(fetcher.fetch("127.0.0.1", port, "/").await.unwrap(), b"hi", "needs no lookup");
            drop(busy);
            assert_eq!(fetcher.fetch("localhost", port, "/").await.unwrap(), b"hi");
            assert_eq!(fetcher.lookups.available_permits(), LOOKUPS);
        };
        tokio::join!(web, ask);
    }
}
