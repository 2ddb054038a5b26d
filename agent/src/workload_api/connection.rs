//! A connection that ends with the process that made it.
//!
//! There are no HTTP/2 pings: the kernel reports the end of a local peer, and a stopped one (a debugger) may go on
//! later. What a client does not read stays within the flow control windows.

use std::{
    collections::HashMap,
    future::{Future, pending},
    io::{self, IoSlice},
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use finial_daemon::{
    clock::Clock,
    listen::{Conn, Connections, Origin, peer::LocalPeer},
};
use futures::{Stream, StreamExt as _, future::ready};
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{
    FILES_PER_CONNECTION, MAX_ATTESTATIONS_PER_USER, MAX_CONNECTIONS_PER_USER, OPENING_LIMIT, caller::Caller,
};

/// The length of the fixed text with which an HTTP/2 client opens (RFC 9113 §3.4).
const PREFACE_LENGTH: usize = 24;

/// A connection under watch. It ends when its process exits, when `cut_off` is cancelled, when the client does not
/// open in time, or when the caller was refused and has been told.
pub(crate) struct Watched {
    conn: Conn,
    caller: Caller,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Bytes of the opening that were read; then the limit for it is off.
    opening: usize,
    opened: CancellationToken,
    /// The last answer has been handed to the system.
    is_last_written: bool,
    is_over: bool,
}

/// A connection's place among those of its user.
pub(crate) struct Seat {
    users: Arc<Users>,
    uid: Option<u32>,
    turns: Arc<Semaphore>,
}

/// Who has how many connections open.
struct Users {
    limit: usize,
    seats: Mutex<HashMap<Option<u32>, Seats>>,
}

struct Seats {
    taken: usize,
    turns: Arc<Semaphore>,
}

/// Puts connections under watch, and drops those of users that have too many.
pub(crate) fn watch(
    connections: Connections,
    cut_off: CancellationToken,
    clock: Clock,
) -> impl Stream<Item = io::Result<Watched>> {
    let users = Arc::new(Users::new(seats_per_user(getrlimit(Resource::Nofile).current)));
    connections.filter_map(move |accepted| {
        let watched = match accepted {
            Ok(conn) => users.seat(&conn.info().origin).map(|seat| {
                let caller = Caller::new(conn.info().origin.clone(), seat);
                Ok(Watched::new(conn, caller, cut_off.clone(), clock.clone()))
            }),
            Err(error) => Some(Err(error)),
        };
        ready(watched)
    })
}

/// No user may take more than a quarter of the file descriptors; `files` is the limit on them, if there is one.
fn seats_per_user(files: Option<u64>) -> usize {
    let fair = files.map(|files| usize::try_from(files).unwrap_or(usize::MAX) / 4 / FILES_PER_CONNECTION);
    fair.map_or(MAX_CONNECTIONS_PER_USER, |fair| fair.clamp(1, MAX_CONNECTIONS_PER_USER))
}

impl Watched {
    fn new(conn: Conn, caller: Caller, cut_off: CancellationToken, clock: Clock) -> Watched {
        let opened = CancellationToken::new();
        let ended = Box::pin(end(caller.process().cloned(), cut_off, opened.clone(), clock));
        Watched { conn, caller, ended, opening: 0, opened, is_last_written: false, is_over: false }
    }
}

impl Connected for Watched {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.caller.is_gone();
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over || self.ended.as_mut().poll(cx).is_ready() {
            self.is_over = true;
            self.caller.is_gone();
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "ended by the agent")));
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.conn).poll_read(cx, buf);
        if self.opening < PREFACE_LENGTH {
            self.opening += buf.filled().len() - before;
            if self.opening >= PREFACE_LENGTH {
                self.opened.cancel();
            }
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let closing = self.caller.is_closing();
        let result = Pin::new(&mut self.conn).poll_write(cx, buf);
        self.is_last_written |= closing && matches!(result, Poll::Ready(Ok(1..)));
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let closing = self.caller.is_closing();
        let result = Pin::new(&mut self.conn).poll_write_vectored(cx, bufs);
        self.is_last_written |= closing && matches!(result, Poll::Ready(Ok(1..)));
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.conn).poll_flush(cx);
        if self.is_last_written && !self.is_over && matches!(result, Poll::Ready(Ok(()))) {
            self.is_over = true;
            // The reader, in the same task, may be waiting for bytes that nobody will send.
            cx.waker().wake_by_ref();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_shutdown(cx)
    }
}

impl Seat {
    /// Waits for the user's turn.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.turns.clone().acquire_owned().await.ok()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.users.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = seats.get_mut(&self.uid) {
            of_user.taken -= 1;
            if of_user.taken == 0 {
                seats.remove(&self.uid);
            }
        }
    }
}

impl Users {
    fn new(limit: usize) -> Users {
        Users { limit, seats: Mutex::default() }
    }

    /// A seat for a connection, if its user has not too many.
    fn seat(self: &Arc<Self>, origin: &Origin) -> Option<Seat> {
        let uid = match origin {
            Origin::Local(peer) => Some(peer.uid()),
            Origin::Tcp(_) | Origin::Memory | Origin::LocalUnknown => None,
        };
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = seats.entry(uid).or_insert_with(|| Seats {
            taken: 0,
            turns: Arc::new(Semaphore::new(MAX_ATTESTATIONS_PER_USER)),
        });
        if of_user.taken >= self.limit {
            tracing::warn!(
                uid,
                limit = self.limit,
                "Connection refused: this user has too many open; look for a client that does not close its own"
            );
            return None;
        }
        of_user.taken += 1;
        Some(Seat { users: self.clone(), uid, turns: of_user.turns.clone() })
    }
}

/// Ready when the connection has to end for a reason that is not on the wire.
async fn end(
    process: Option<Arc<LocalPeer>>,
    cut_off: CancellationToken,
    opened: CancellationToken,
    clock: Clock,
) {
    let exit = async {
        match process {
            Some(process) => exit_of(&process).await,
            None => pending().await,
        }
    };
    let opening_limit = async {
        tokio::select! {
            () = opened.cancelled() => pending().await,
            () = clock.sleep(OPENING_LIMIT) => {}
        }
    };
    tokio::select! {
        () = exit => {}
        () = cut_off.cancelled() => {}
        () = opening_limit => {}
    }
}

/// Waits until the process has exited. For ever, where the kernel cannot tell: then it shows before the next answer.
async fn exit_of(process: &LocalPeer) {
    let pidfd = i32::try_from(process.pid())
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .and_then(|pidfd| watched(pidfd).ok());
    // Alive after the number was used: so the number was still its own.
    if process.is_alive().is_err() {
        return;
    }
    match pidfd {
        Some(pidfd) if pidfd.readable().await.is_ok() => {}
        _ => pending().await,
    }
}

#[allow(
    deprecated,
    reason = "unsound only for descriptors that can be closed under it; the successor is unsafe to call"
)]
fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_seats_and_gets_them_back() {
        let users = Arc::new(Users::new(100));
        let me = Origin::Local(Arc::new(LocalPeer::of_process(std::process::id()).unwrap()));
        let mut seats: Vec<Seat> = (0..100).map(|_| users.seat(&me).unwrap()).collect();
        assert!(users.seat(&me).is_none());
        assert!(users.seat(&Origin::Memory).is_some(), "others are not concerned");
        seats.pop();
        seats.push(users.seat(&me).unwrap());
        assert!(users.seat(&me).is_none());
        drop(seats);
        assert!(users.seats.lock().unwrap().is_empty());
    }

    #[test]
    fn one_user_cannot_take_all_file_descriptors() {
        for (files, seats) in [(None, 2048), (Some(1 << 20), 2048), (Some(4096), 256), (Some(7), 1)] {
            assert_eq!(seats_per_user(files), seats, "{files:?}");
        }
    }
}
