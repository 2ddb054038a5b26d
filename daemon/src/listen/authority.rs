//! The repair of `:authority`.
//!
//! On a Unix socket gRPC's C core (Python, C++, Ruby), grpc-java and Swift send the socket's path as the
//! `:authority` of each request, some percent-encoded. That is no authority, and h2 resets such streams, so
//! these clients could not talk to us at all. Here the header blocks on their way in are decoded, and where
//! the authority is not one, `localhost` takes its place. Until a connection needs this its bytes pass
//! unchanged; from then on every header block of it is written anew, as the client's dynamic table and
//! h2's have parted.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hpack::{self, DEFAULT_TABLE_SIZE, Decoder, Field, HpackError};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_LEN: usize = 9;
/// The longest frame anybody must take (RFC 9113, 6.5.2).
const MAX_FRAME: usize = 16_384;
/// The longest header block taken, encoded with its frames as well as decoded.
const MAX_BLOCK: usize = 64 * 1024;
const READ_CHUNK: usize = 8 * 1024;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_LEN: usize = 5;

/// The server's side of a connection, its requests' authority repaired. Writes pass untouched.
pub(super) struct AuthorityRepair<I> {
    io: I,
    repair: Repair,
    /// Repaired bytes not read yet: those from `given` on.
    repaired: Vec<u8>,
    given: usize,
    chunk: Box<[u8]>,
    failed: Option<Malformed>,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a frame came between those of a header block")]
    Interleaved,
    #[error("the header block is too large")]
    BlockTooLarge,
    #[error("a HEADERS frame is shorter than its padding and priority")]
    BadHeaders,
    #[error("{0}")]
    Hpack(#[from] HpackError),
}

/// The repair itself: bytes in, bytes out.
pub(super) struct Repair {
    state: State,
    head: Vec<u8>,
    /// The frame being collected, with its head.
    frame: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder,
    rewriting: bool,
}

enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// Waiting for the head of a frame.
    Head,
    /// So many bytes of the frame are left; they pass.
    Pass(usize),
    /// So many bytes of the frame are left; they are collected.
    Collect(usize),
    /// Not HTTP/2: the server will say so.
    Opaque,
}

/// A header block of which END_HEADERS has not come yet.
struct Block {
    stream: [u8; 4],
    flags: u8,
    priority: Vec<u8>,
    fragment: Vec<u8>,
    /// Its frames as they came.
    raw: Vec<u8>,
}

impl Repair {
    pub(super) fn new() -> Repair {
        Repair {
            state: State::Preface(0),
            head: Vec::with_capacity(HEAD_LEN),
            frame: Vec::new(),
            block: None,
            decoder: Decoder::new(DEFAULT_TABLE_SIZE),
            rewriting: false,
        }
    }

    /// Takes what the client sent and appends what the server shall read. After a failure the connection
    /// is of no more use; what was appended before is still good.
    pub(super) fn feed(&mut self, mut input: &[u8], output: &mut Vec<u8>) -> Result<(), Malformed> {
        while !input.is_empty() {
            match self.state {
                State::Opaque => output.extend_from_slice(take(&mut input, usize::MAX)),
                State::Preface(come) => {
                    let bytes = take(&mut input, PREFACE.len() - come);
                    output.extend_from_slice(bytes);
                    self.state = match come + bytes.len() {
                        _ if !PREFACE[come..].starts_with(bytes) => State::Opaque,
                        all if all == PREFACE.len() => State::Head,
                        come => State::Preface(come),
                    };
                }
                State::Pass(left) => {
                    let bytes = take(&mut input, left);
                    output.extend_from_slice(bytes);
                    self.state =
                        if bytes.len() == left { State::Head } else { State::Pass(left - bytes.len()) };
                }
                State::Head => {
                    self.head.extend_from_slice(take(&mut input, HEAD_LEN - self.head.len()));
                    if self.head.len() == HEAD_LEN {
                        self.begin_frame(output)?;
                    }
                }
                State::Collect(left) => {
                    let bytes = take(&mut input, left);
                    self.frame.extend_from_slice(bytes);
                    if bytes.len() == left {
                        self.end_frame(output)?;
                    } else {
                        self.state = State::Collect(left - bytes.len());
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_frame(&mut self, output: &mut Vec<u8>) -> Result<(), Malformed> {
        let head = &self.head;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let kind = head[3];
        let collected = match &self.block {
            Some(block) if kind != CONTINUATION || head[5..] != block.stream => {
                return Err(Malformed::Interleaved);
            }
            Some(block) => block.raw.len(),
            None if kind == HEADERS => 0,
            None => {
                output.append(&mut self.head);
                self.state = if length == 0 { State::Head } else { State::Pass(length) };
                return Ok(());
            }
        };
        if collected + HEAD_LEN + length > MAX_BLOCK {
            return Err(Malformed::BlockTooLarge);
        }
        self.frame.clear();
        self.frame.append(&mut self.head);
        if length == 0 {
            return self.end_frame(output);
        }
        self.state = State::Collect(length);
        Ok(())
    }

    fn end_frame(&mut self, output: &mut Vec<u8>) -> Result<(), Malformed> {
        self.state = State::Head;
        let flags = self.frame[4];
        let payload = &self.frame[HEAD_LEN..];
        let mut block = match self.block.take() {
            Some(mut block) => {
                block.fragment.extend_from_slice(payload);
                block
            }
            None => {
                let (priority, fragment) = split_headers(flags, payload).ok_or(Malformed::BadHeaders)?;
                Block {
                    stream: [self.frame[5], self.frame[6], self.frame[7], self.frame[8]],
                    flags,
                    priority: priority.to_vec(),
                    fragment: fragment.to_vec(),
                    raw: Vec::new(),
                }
            }
        };
        block.raw.extend_from_slice(&self.frame);
        if flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let mut fields = self.decoder.decode(&block.fragment, MAX_BLOCK)?;
        self.rewriting |= repair_fields(&mut fields);
        if self.rewriting {
            block.write(&fields, output);
        } else {
            output.extend_from_slice(&block.raw);
        }
        Ok(())
    }
}

impl Block {
    /// Writes the block with other fields: without padding, in as many frames as it takes.
    fn write(&self, fields: &[Field], output: &mut Vec<u8>) {
        let mut payload = self.priority.clone();
        hpack::encode(fields, &mut payload);
        let mut kind = HEADERS;
        let mut flags = self.flags & (END_STREAM | PRIORITY);
        let mut rest = payload.as_slice();
        loop {
            let part = take(&mut rest, MAX_FRAME);
            if rest.is_empty() {
                flags |= END_HEADERS;
            }
            output.extend_from_slice(&(part.len() as u32).to_be_bytes()[1..]);
            output.extend_from_slice(&[kind, flags]);
            output.extend_from_slice(&self.stream);
            output.extend_from_slice(part);
            if rest.is_empty() {
                return;
            }
            kind = CONTINUATION;
            flags = 0;
        }
    }
}

/// Puts `localhost` where an authority should be and is not. True when that was needed.
fn repair_fields(fields: &mut [Field]) -> bool {
    let mut repaired = false;
    for field in fields {
        if field.name == ":authority".as_bytes() && Authority::try_from(&*field.value).is_err() {
            field.value = Bytes::from_static(b"localhost");
            repaired = true;
        }
    }
    repaired
}

/// The priority (empty or five bytes) and the header block fragment of a HEADERS frame.
fn split_headers(flags: u8, payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first().map(|(padding, rest)| (usize::from(*padding), rest))?,
    };
    let priority = if flags & PRIORITY == 0 { 0 } else { PRIORITY_LEN };
    let (priority, rest) = rest.split_at_checked(priority)?;
    Some((priority, &rest[..rest.len().checked_sub(padding)?]))
}

/// Cuts up to `limit` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], limit: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(input.len().min(limit));
    *input = rest;
    taken
}

impl<I> AuthorityRepair<I> {
    pub(super) fn new(io: I) -> AuthorityRepair<I> {
        AuthorityRepair {
            io,
            repair: Repair::new(),
            repaired: Vec::new(),
            given: 0,
            chunk: vec![0; READ_CHUNK].into_boxed_slice(),
            failed: None,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for AuthorityRepair<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut left = &this.repaired[this.given..];
            if !left.is_empty() {
                let part = take(&mut left, buf.remaining());
                buf.put_slice(part);
                this.given += part.len();
                return Poll::Ready(Ok(()));
            }
            this.repaired.clear();
            this.given = 0;
            if let Some(failure) = this.failed {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failure)));
            }
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(failure) = this.repair.feed(chunk.filled(), &mut this.repaired) {
                tracing::debug!(error = %failure, "Connection closed for a malformed request");
                this.failed = Some(failure);
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for AuthorityRepair<I> {
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
mod tests;
