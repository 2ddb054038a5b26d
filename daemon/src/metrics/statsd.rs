//! Numbers pushed as they come, over UDP or a Unix socket: Statsd, where labels are part of the name, and DogStatsd, where
//! they are tags.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::{UdpSocket, UnixDatagram};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{MetricsError, Point, Value};
use crate::clock::Clock;

/// Lines that wait to be sent; more are dropped.
const QUEUE: usize = 4096;
/// Bytes in one datagram: less than any network's limit.
const DATAGRAM: usize = 1400;
/// How long a line waits for others to share a datagram with.
const FLUSH: Duration = Duration::from_millis(100);
/// How long nothing is sent after sending failed.
const PAUSE: Duration = Duration::from_secs(5);
/// The port of a DogStatsd address without one.
const DOG_PORT: u16 = 8125;

/// A way to the receiver.
pub(super) struct Push {
    lines: mpsc::Sender<String>,
}

#[derive(Clone)]
enum Receiver {
    Udp(String),
    Unix(std::path::PathBuf),
}

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

/// What sends the lines.
pub(super) struct Pusher {
    receiver: Receiver,
    queue: mpsc::Receiver<String>,
}

impl Push {
    /// To a Statsd at `host:port`.
    pub(super) fn plain(address: &str) -> (Push, Pusher) {
        Push::to(Receiver::Udp(address.to_owned()))
    }

    /// To a DogStatsd at `host[:port]` or `unix:///path`.
    pub(super) fn dog(address: &str) -> (Push, Pusher) {
        if let Some(path) = address.strip_prefix("unix://") {
            return Push::to(Receiver::Unix(path.into()));
        }
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Push::to(Receiver::Udp(if has_port { address.to_owned() } else { format!("{address}:{DOG_PORT}") }))
    }

    /// Sends a line if there is room.
    pub(super) fn send(&self, line: String) {
        // Full, or nobody sends any more: numbers are not worth waiting for.
        let _ = self.lines.try_send(line);
    }

    fn to(receiver: Receiver) -> (Push, Pusher) {
        let (lines, queue) = mpsc::channel(QUEUE);
        (Push { lines }, Pusher { receiver, queue })
    }
}

impl Pusher {
    /// An address that is none, or that does not resolve now, is an operator's mistake.
    pub(super) async fn check(&self) -> Result<(), MetricsError> {
        let Receiver::Udp(address) = &self.receiver else { return Ok(()) };
        let found = tokio::net::lookup_host(address).await;
        found.map(drop).map_err(|source| MetricsError::Address { address: address.clone(), source })
    }

    /// Until `stop`. While sending fails, lines are dropped.
    pub(super) async fn run(self, clock: Clock, stop: CancellationToken) {
        let Pusher { receiver, mut queue } = self;
        loop {
            let sent = tokio::select! {
                () = stop.cancelled() => return last_words(&receiver, &mut queue).await,
                sent = send_all(&receiver, &mut queue, &clock) => sent,
            };
            match sent {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, address = %receiver, "Error writing to statsd"),
            }
            // Old numbers, sent late, would be counted as new.
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep(PAUSE) => {}
                () = async { while queue.recv().await.is_some() {} } => return,
            }
        }
    }
}

/// `name.of.it.labelvalue:1.000000|c`
pub(super) fn line(point: &Point<'_>) -> String {
    let mut name = point.key.join(".");
    for (_, value) in point.labels {
        name.push('.');
        name.push_str(value);
    }
    let (value, kind) = match point.value {
        Value::Gauge(value) => (value, "g"),
        Value::Count(by) => (by as f64, "c"),
        Value::Sample(value) => (value, "ms"),
    };
    format!("{}:{value:.6}|{kind}\n", plain(&name))
}

/// `name.of.it:1|c|#label:value,other:value`
pub(super) fn dog_line(point: &Point<'_>) -> String {
    let mut line = plain(&point.key.join("."));
    match point.value {
        Value::Gauge(value) => line.push_str(&format!(":{value}|g")),
        Value::Count(by) => line.push_str(&format!(":{by}|c")),
        Value::Sample(value) => line.push_str(&format!(":{value:.6}|ms")),
    }
    for (index, (name, value)) in point.labels.iter().enumerate() {
        line.push_str(if index == 0 { "|#" } else { "," });
        line.push_str(&plain(name));
        if !value.is_empty() {
            line.push(':');
            line.push_str(&plain(value));
        }
    }
    line.push('\n');
    line
}

fn plain(name: &str) -> String {
    name.replace([':', ' '], "_").replace('\n', "")
}

/// Until nobody has anything to say any more.
async fn send_all(receiver: &Receiver, queue: &mut mpsc::Receiver<String>, clock: &Clock) -> io::Result<()> {
    let socket = receiver.connect().await?;
    let mut datagram = String::new();
    while let Some(line) = queue.recv().await {
        datagram.push_str(&line);
        let gather = async {
            while let Some(line) = queue.recv().await {
                if datagram.len() + line.len() > DATAGRAM {
                    let full = std::mem::replace(&mut datagram, line);
                    socket.send(full.as_bytes()).await?;
                } else {
                    datagram.push_str(&line);
                }
            }
            Ok::<(), io::Error>(())
        };
        match clock.timeout(FLUSH, gather).await {
            Ok(result) => result?,
            Err(_deadline) => {}
        }
        socket.send(std::mem::take(&mut datagram).as_bytes()).await?;
    }
    Ok(())
}

/// What was said just before the end.
async fn last_words(receiver: &Receiver, queue: &mut mpsc::Receiver<String>) {
    let Ok(socket) = receiver.connect().await else { return };
    while let Ok(line) = queue.try_recv() {
        if socket.send(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Receiver {
    async fn connect(&self) -> io::Result<Socket> {
        match self {
            Receiver::Udp(address) => {
                let mut found = tokio::net::lookup_host(address).await?;
                let to = found.next().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(from).await?;
                socket.connect(to).await?;
                Ok(Socket::Udp(socket))
            }
            Receiver::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path as &Path)?;
                Ok(Socket::Unix(socket))
            }
        }
    }
}

impl std::fmt::Display for Receiver {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Receiver::Udp(address) => out.write_str(address),
            Receiver::Unix(path) => write!(out, "unix://{}", path.display()),
        }
    }
}

impl Socket {
    async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Udp(socket) => socket.send(bytes).await,
            Socket::Unix(socket) => socket.send(bytes).await,
        }
    }
}
