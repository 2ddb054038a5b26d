//! Connections that come through a load balancer which says, in front of the first byte, where they come from: the PROXY
//! protocol, versions 1 and 2 (haproxy's `send-proxy` and `send-proxy-v2`).

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::{Accepted, Incoming, Io, Newest, Origin};
use crate::clock::Clock;

/// How long a balancer may take for the header.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections whose header is awaited; a further one ends the oldest.
const AWAITED: usize = 1024;
/// Connections that wait to be served.
const READY_QUEUE: usize = 64;

const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a version 1 header at most.
const V1_LONGEST: usize = 107;
/// Bytes behind the first 16 of a version 2 header at most: addresses and some extensions.
const V2_LONGEST: usize = 4096;

/// A range of addresses in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Text that is no such range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct NoNetwork(String);

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Network, NoNetwork> {
        let network = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let digits = prefix.bytes().all(|digit| digit.is_ascii_digit());
            let prefix: u8 = prefix.parse().ok().filter(|prefix| digits && *prefix <= longest)?;
            Some(Network { address, prefix })
        };
        network().ok_or_else(|| NoNetwork(text.to_owned()))
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// Whether the address is in it; an IPv4 address that is written as an IPv6 one is an IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// Connections from `trusted` networks have the origin that their header names, if they begin with one. A header from
/// elsewhere is left where it is: no protocol behind this understands it, and the connection ends.
///
/// Must be called within a tokio runtime. Accepting ends when the returned stream is dropped.
pub fn proxied(incoming: Incoming, trusted: Vec<Network>, clock: Clock) -> Incoming {
    let (ready, connections) = mpsc::channel(READY_QUEUE);
    tokio::spawn(accept_loop(incoming, trusted, clock, ready));
    ReceiverStream::new(connections).boxed()
}

type Ready = mpsc::Sender<io::Result<Accepted>>;

async fn accept_loop(mut incoming: Incoming, trusted: Vec<Network>, clock: Clock, ready: Ready) {
    // Dropping the set ends the waiting with the loop.
    let mut awaited = JoinSet::new();
    let mut newest = Newest::new(AWAITED);
    loop {
        let accepted = tokio::select! {
            () = ready.closed() => return,
            Some(_) = awaited.join_next() => continue,
            next = incoming.next() => match next {
                Some(accepted) => accepted,
                None => break,
            },
        };
        match accepted {
            Ok(Accepted { io, origin: Origin::Tcp(balancer) })
                if trusted.iter().any(|network| network.contains(balancer.ip())) =>
            {
                let accepted = Accepted { io, origin: Origin::Tcp(balancer) };
                let task = awaited.spawn(wait(accepted, balancer, clock.clone(), ready.clone()));
                if newest.admit(task) {
                    tracing::debug!(limit = AWAITED, "Too many PROXY headers are awaited; ended the oldest");
                }
            }
            // Sending fails only when nobody serves any more.
            direct => {
                if ready.send(direct).await.is_err() {
                    return;
                }
            }
        }
    }
    while awaited.join_next().await.is_some() {}
}

async fn wait(accepted: Accepted, balancer: SocketAddr, clock: Clock, ready: Ready) {
    match clock.timeout(PATIENCE, unwrap(accepted)).await {
        Ok(Ok(accepted)) => {
            let _ = ready.send(Ok(accepted)).await;
        }
        Ok(Err(error)) => tracing::debug!(address = %balancer, %error, "PROXY header cannot be used"),
        Err(error) => tracing::debug!(address = %balancer, %error, "PROXY header did not come"),
    }
}

/// Reads the header, if there is one, and not more than what came with it.
async fn unwrap(accepted: Accepted) -> io::Result<Accepted> {
    let Accepted { mut io, origin } = accepted;
    let mut read = Vec::with_capacity(V1_LONGEST);
    loop {
        match parse(&read) {
            Parsed::Not => return Ok(Accepted { io: Box::new(Replayed::new(read, io)), origin }),
            Parsed::Header { length, source } => {
                let rest = read.split_off(length);
                let origin = source.map_or(origin, Origin::Tcp);
                return Ok(Accepted { io: Box::new(Replayed::new(rest, io)), origin });
            }
            Parsed::Broken(what) => return Err(io::Error::new(io::ErrorKind::InvalidData, what)),
            Parsed::Unfinished => {
                if io.read_buf(&mut read).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// What a client says that speaks for itself.
    Not,
    Unfinished,
    /// `source` is absent where the balancer speaks for itself, or does not know.
    Header {
        length: usize,
        source: Option<SocketAddr>,
    },
    Broken(&'static str),
}

fn parse(bytes: &[u8]) -> Parsed {
    if bytes.starts_with(V1) {
        parse_v1(bytes)
    } else if bytes.starts_with(V2) {
        parse_v2(bytes)
    } else if V1.starts_with(bytes) || V2.starts_with(bytes) {
        Parsed::Unfinished
    } else {
        Parsed::Not
    }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let end = bytes.iter().take(V1_LONGEST).position(|byte| *byte == b'\n');
    let Some(end) = end else {
        return if bytes.len() < V1_LONGEST { Parsed::Unfinished } else { Parsed::Broken("no end of line") };
    };
    let line = bytes[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let Some(line) = line else { return Parsed::Broken("the line does not end with CR LF") };
    let length = end + 1;
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["PROXY", "UNKNOWN", ..] => Parsed::Header { length, source: None },
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, port, to_port] => {
            let address = |text: &str| -> Option<IpAddr> {
                match family {
                    "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
                    _ => text.parse::<Ipv6Addr>().ok().map(|address| IpAddr::V6(address).to_canonical()),
                }
            };
            let (Some(source), Some(_)) = (address(source), address(destination)) else {
                return Parsed::Broken("an address is malformed");
            };
            let (Ok(port), Ok(_)) = (port.parse(), to_port.parse::<u16>()) else {
                return Parsed::Broken("a port is malformed");
            };
            Parsed::Header { length, source: Some(SocketAddr::new(source, port)) }
        }
        _ => Parsed::Broken("unknown transport protocol"),
    }
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some((fixed, rest)) = bytes[V2.len()..].split_first_chunk::<4>() else { return Parsed::Unfinished };
    let [command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > V2_LONGEST {
        return Parsed::Broken("the header is too long");
    }
    if rest.len() < length {
        return Parsed::Unfinished;
    }
    let (content, whole) = (&rest[..length], V2.len() + 4 + length);
    match (command, family) {
        // The balancer's own connection, such as a health check.
        (0x20, _) => Parsed::Header { length: whole, source: None },
        (0x21, 0x11) => match content.first_chunk::<12>() {
            Some(&[a, b, c, d, _, _, _, _, high, low, _, _]) => {
                let address = SocketAddr::new([a, b, c, d].into(), u16::from_be_bytes([high, low]));
                Parsed::Header { length: whole, source: Some(address) }
            }
            None => Parsed::Broken("the addresses are cut off"),
        },
        (0x21, 0x21) => match (content.first_chunk::<16>(), content.get(32..34)) {
            (Some(source), Some(&[high, low])) if content.len() >= 36 => {
                let address = IpAddr::from(*source).to_canonical();
                let address = SocketAddr::new(address, u16::from_be_bytes([high, low]));
                Parsed::Header { length: whole, source: Some(address) }
            }
            _ => Parsed::Broken("the addresses are cut off"),
        },
        (0x21, _) => Parsed::Broken("unknown transport protocol"),
        _ => Parsed::Broken("unknown version or command"),
    }
}

/// A connection of which something was read already.
struct Replayed {
    read: io::Cursor<Vec<u8>>,
    io: Box<dyn Io>,
}

impl Replayed {
    fn new(read: Vec<u8>, io: Box<dyn Io>) -> Replayed {
        Replayed { read: io::Cursor::new(read), io }
    }
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let replayed = Pin::new(&mut self.read).poll_read(cx, buf);
        if buf.filled().len() > before || buf.remaining() == 0 {
            return replayed;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn source(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn v2(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, content].concat()
    }

    #[test]
    fn networks_are_cidr() {
        let contains = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.255.1.2") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && contains("::/0", "2001:db8::1"));
        assert!(contains("127.0.0.1/32", "::ffff:127.0.0.1") && !contains("127.0.0.1/32", "127.0.0.2"));
        assert!(contains("2001:db8::/32", "2001:db8:1::") && !contains("2001:db8::/32", "2001:db9::"));
        assert!(!contains("::/0", "1.2.3.4"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/+8", "10.0.0.0/", ""] {
            let error = bad.parse::<Network>().unwrap_err();
            assert_eq!(error.to_string(), format!("invalid CIDR address: {bad}"));
        }
    }

    #[test]
    fn both_versions_are_read() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n";
        let header = Parsed::Header { length: line.len(), source: source("192.0.2.1:56324") };
        assert_eq!(parse(&[&line[..], b"\x16\x03"].concat()), header);
        let line = b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n";
        assert_eq!(parse(line), Parsed::Header { length: line.len(), source: source("[2001:db8::1]:1") });
        let line = b"PROXY UNKNOWN whatever\r\n";
        assert_eq!(parse(line), Parsed::Header { length: line.len(), source: None });

        let four = v2(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0x1f, 0x90, 0, 1]);
        assert_eq!(parse(&four), Parsed::Header { length: four.len(), source: source("192.0.2.1:8080") });
        let mut six = vec![0; 36];
        (six[0], six[1], six[15], six[33]) = (0x20, 1, 1, 9);
        six.extend([1, 2, 3]);
        let six = v2(0x21, 0x21, &six);
        assert_eq!(parse(&six), Parsed::Header { length: six.len(), source: source("[2001::1]:9") });
        let local = v2(0x20, 0, &[]);
        assert_eq!(parse(&local), Parsed::Header { length: 16, source: None });
    }

    #[test]
    fn what_is_not_a_header_is_told_from_what_is_a_bad_one() {
        assert_eq!(parse(b"\x16\x03\x01"), Parsed::Not);
        assert_eq!(parse(b"PRI * HTTP/2.0"), Parsed::Not);
        for begun in [&b""[..], b"PROX", b"PROXY TCP4 1.2.3.4", b"\r\n\r", &v2(0x21, 0x11, &[0; 12])[..20]] {
            assert_eq!(parse(begun), Parsed::Unfinished, "{begun:?}");
        }
        for bad in [
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n"[..],
            b"PROXY TCP4 ::1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 443\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            &[b"PROXY ", &[b'x'; 200][..]].concat(),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x00, &[]),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; V2_LONGEST + 1]),
        ] {
            assert!(matches!(parse(bad), Parsed::Broken(_)), "{bad:?}");
        }
    }

    /// A connection from `from` on which `said` comes; what is seen of it behind the headers.
    async fn seen(trusted: &[&str], from: &str, said: &[u8]) -> Option<(String, Vec<u8>)> {
        let (mut client, server) = tokio::io::duplex(1000);
        client.write_all(said).await.unwrap();
        drop(client);
        let accepted = Accepted::new(server, Origin::Tcp(from.parse().unwrap()));
        let trusted = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let clock = Clock::paused(std::time::UNIX_EPOCH);
        let mut through = proxied(futures::stream::iter([Ok(accepted)]).boxed(), trusted, clock);
        let mut accepted = through.next().await?.unwrap();
        let mut rest = Vec::new();
        accepted.io.read_to_end(&mut rest).await.unwrap();
        Some((accepted.origin.to_string(), rest))
    }

    #[tokio::test(start_paused = true)]
    async fn only_trusted_networks_say_where_a_connection_comes_from() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nhello";
        let through = seen(&["10.0.0.0/8"], "10.1.1.1:5", line).await.unwrap();
        assert_eq!(through, ("192.0.2.1:56324".to_owned(), b"hello".to_vec()));
        let through = seen(&["10.0.0.0/8"], "10.1.1.1:5", b"hello").await.unwrap();
        assert_eq!(through, ("10.1.1.1:5".to_owned(), b"hello".to_vec()));
        let through = seen(&["10.0.0.0/8"], "11.1.1.1:5", line).await.unwrap();
        assert_eq!(through, ("11.1.1.1:5".to_owned(), line.to_vec()), "as if nothing was said about headers");
        assert_eq!(seen(&["10.0.0.0/8"], "10.1.1.1:5", b"PROXY what\r\n").await, None);
        assert_eq!(seen(&["10.0.0.0/8"], "10.1.1.1:5", b"PROX").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_balancer_that_says_nothing_holds_up_nobody() {
        let (_silent, server) = tokio::io::duplex(1000);
        let silent = Accepted::new(server, Origin::Tcp("10.1.1.1:5".parse().unwrap()));
        let (mut client, server) = tokio::io::duplex(1000);
        client.write_all(b"hello").await.unwrap();
        let other = Accepted::new(server, Origin::Tcp("10.1.1.1:6".parse().unwrap()));
        let clock = Clock::paused(std::time::UNIX_EPOCH);
        let incoming = futures::stream::iter([Ok(silent), Ok(other)]).boxed();
        let mut through = proxied(incoming, vec!["10.0.0.0/8".parse().unwrap()], clock.clone());
        assert_eq!(through.next().await.unwrap().unwrap().origin.to_string(), "10.1.1.1:6");
        assert_eq!(clock.monotonic(), Duration::ZERO);
        assert!(through.next().await.is_none());
        assert!(clock.monotonic() >= PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_say_nothing_cannot_keep_others_out() {
        let from = |port: u16| Origin::Tcp(SocketAddr::from(([10, 1, 1, 1], port)));
        let (mut silent, mut incoming) = (Vec::new(), Vec::new());
        for _ in 0..AWAITED {
            let (client, server) = tokio::io::duplex(10);
            silent.push(client);
            incoming.push(Ok(Accepted::new(server, from(5))));
        }
        let (mut client, server) = tokio::io::duplex(1000);
        client.write_all(b"hello").await.unwrap();
        incoming.push(Ok(Accepted::new(server, from(6))));
        let clock = Clock::paused(std::time::UNIX_EPOCH);
        let incoming = futures::stream::iter(incoming).boxed();
        let mut through = proxied(incoming, vec!["10.0.0.0/8".parse().unwrap()], clock.clone());
        assert_eq!(through.next().await.unwrap().unwrap().origin.to_string(), "10.1.1.1:6");
        assert_eq!(clock.monotonic(), Duration::ZERO);
    }
}
