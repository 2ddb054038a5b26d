//! Who calls, and whether it may.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use finial_daemon::listen::{Origin, peer::LocalPeer};
use finial_identity::selector::Selector;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::connection::Seat;
use crate::attest::workload::{AttestError, WorkloadAttestation};

/// Web pages and other clients that can be talked into connecting cannot set this one.
pub(crate) const SECURITY_HEADER: &str = "workload.spiffe.io";

/// A connection and the process behind it. Clones are about the same connection.
#[derive(Clone)]
pub(crate) struct Caller {
    connection: Arc<Connection>,
}

struct Connection {
    origin: Origin,
    seat: Seat,
    closing: AtomicBool,
    gone: CancellationToken,
}

/// Refuses calls without exactly one security header (SPIFFE Workload Endpoint §3).
pub(crate) fn check_security_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(SECURITY_HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == "true" => Ok(request),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}

impl Caller {
    pub(crate) fn new(origin: Origin, seat: Seat) -> Caller {
        let closing = AtomicBool::new(false);
        Caller { connection: Arc::new(Connection { origin, seat, closing, gone: CancellationToken::new() }) }
    }

    /// The caller of a request.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
        request.extensions().get::<Caller>().cloned().ok_or_else(|| {
            tracing::error!("Request came without its connection");
            attestation_failed()
        })
    }

    /// The process, when the connection comes from one of this machine.
    pub(crate) fn process(&self) -> Option<&Arc<LocalPeer>> {
        match &self.connection.origin {
            Origin::Local(peer) => Some(peer),
            Origin::Tcp(_) | Origin::Memory | Origin::LocalUnknown => None,
        }
    }

    /// For logs: 0 when there is no process.
    pub(crate) fn pid(&self) -> u32 {
        self.process().map_or(0, |peer| peer.pid())
    }

    /// The caller's selectors. If it has ended meanwhile, the connection closes after the answer.
    pub(crate) async fn attest(&self, attestation: &WorkloadAttestation) -> Result<Vec<Selector>, Status> {
        let Some(peer) = self.process() else {
            let origin = &self.connection.origin;
            tracing::error!(%origin, error = "no process is known behind the connection", "Workload attestation failed");
            return Err(self.refuse());
        };
        self.attest_in_turn(attestation, peer.clone()).await.map_err(|error| match error {
            Some(AttestError::CallerGone(_)) => self.refuse(),
            // May pass; the caller's other streams go on.
            Some(AttestError::AllFailed(_)) | None => attestation_failed(),
        })
    }

    /// The selectors of another process, in the turn of this caller.
    pub(crate) async fn attest_other(
        &self,
        attestation: &WorkloadAttestation,
        pid: u32,
    ) -> Result<Vec<Selector>, Status> {
        let other = match LocalPeer::of_process(pid) {
            Ok(other) => Arc::new(other),
            Err(error) => {
                tracing::error!(pid, %error, "Workload attestation failed");
                return Err(attestation_failed());
            }
        };
        self.attest_in_turn(attestation, other).await.map_err(|_| attestation_failed())
    }

    async fn attest_in_turn(
        &self,
        attestation: &WorkloadAttestation,
        peer: Arc<LocalPeer>,
    ) -> Result<Vec<Selector>, Option<AttestError>> {
        let turn = self.connection.seat.turn().await;
        let pid = peer.pid();
        let attestation = attestation.clone();
        // A task of its own: what attestors do on other threads goes on when the caller hangs up, and so must the turn.
        let work = tokio::spawn(async move {
            let selectors = attestation.attest(&peer).await;
            drop(turn);
            selectors
        });
        let selectors = work.await.map_err(|error| {
            tracing::error!(pid, %error, "Workload attestation failed");
            None
        })?;
        selectors.map_err(|error| {
            tracing::error!(pid, %error, "Workload attestation failed");
            Some(error)
        })
    }

    /// Fails when the process that connected is not there any more; the connection then closes after the answer.
    pub(crate) fn check_alive(&self) -> Result<(), Status> {
        let Some(peer) = self.process() else { return Err(self.refuse()) };
        peer.is_alive().map_err(|error| {
            tracing::error!(pid = peer.pid(), %error, "Workload attestation failed");
            self.refuse()
        })
    }

    /// Waits for the end of the connection, be it that the process exits.
    pub(crate) async fn gone(&self) {
        self.connection.gone.cancelled().await;
    }

    /// Reports the end of the connection.
    pub(crate) fn is_gone(&self) {
        self.connection.gone.cancel();
    }

    /// Whether the connection is to close once what is to be said has been written.
    pub(crate) fn is_closing(&self) -> bool {
        self.connection.closing.load(Ordering::Acquire)
    }

    /// What a caller is told that cannot be served, and the end of its connection.
    pub(crate) fn refuse(&self) -> Status {
        self.connection.closing.store(true, Ordering::Release);
        attestation_failed()
    }
}

fn attestation_failed() -> Status {
    Status::unavailable("workload attestation failed")
}
/// Whether the caller is this very process, which looks at its own health: what it meets is no workload's trouble.
pub(super) fn is_this_agent(pid: u32) -> bool {
    pid == std::process::id()
}
