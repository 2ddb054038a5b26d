//! Connections that are kept open, and what is known about the database's being there.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use finial_daemon::clock::Clock;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::link::{Access, Link, Target};
use crate::store::{OpenSettings, StoreError};

/// SPIRE's limit on open connections, and on idle ones.
const CONNECTIONS: usize = 100;
/// How long a connection stays open without use, as in SPIRE.
const IDLE: Duration = Duration::from_secs(30);
/// How long an operation waits for a connection that others use.
const PATIENCE: Duration = Duration::from_secs(10);
/// While the database is away, how often somebody finds out whether it still is. The others fail at once.
const RETRY: Duration = Duration::from_secs(1);

/// Connections to one database server.
pub(super) struct Pool {
    pub(super) target: Target,
    pub(super) clock: Clock,
    pub(super) log_sql: bool,
    permits: Arc<Semaphore>,
    most: usize,
    most_idle: usize,
    lifetime: Option<Duration>,
    idle: Mutex<Vec<Idle>>,
    away: Mutex<Option<Away>>,
    /// What the log calls it, once the store is open. Until then whoever opens it tells what is wrong.
    name: OnceLock<&'static str>,
}

/// The right to one connection.
pub(super) struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// A connection in use. Dropped instead of given back, it closes.
pub(super) struct Lease {
    pub(super) link: Link,
    made: Duration,
    /// It was used before, so its failing says nothing of the database.
    used: bool,
    permit: Permit,
}

impl Lease {
    /// Closes the connection and keeps the right to another.
    pub(super) fn discard(self) -> Permit {
        self.permit
    }
}

struct Idle {
    link: Link,
    made: Duration,
    since: Duration,
}

struct Away {
    tried: Duration,
    cause: String,
}

impl Pool {
    pub(super) fn new(target: Target, settings: &OpenSettings) -> Pool {
        // As in SPIRE's driver: no limit at 0 and below for open ones, none at all for idle ones.
        let most = settings.database.max_open_conns.map_or(CONNECTIONS, |most| match usize::try_from(most) {
            Ok(most @ 1..) => most.min(Semaphore::MAX_PERMITS),
            _ => Semaphore::MAX_PERMITS,
        });
        let most_idle =
            settings.database.max_idle_conns.map_or(CONNECTIONS, |most| usize::try_from(most).unwrap_or(0));
        Pool {
            target,
            clock: settings.clock.clone(),
            log_sql: settings.database.log_sql,
            permits: Arc::new(Semaphore::new(most)),
            most,
            most_idle: most_idle.min(most),
            lifetime: settings.database.conn_max_lifetime.filter(|lifetime| !lifetime.is_zero()),
            idle: Mutex::default(),
            away: Mutex::default(),
            name: OnceLock::new(),
        }
    }

    /// From now on the log is told when the server is away, under this name.
    pub(super) fn opened(&self, name: &'static str) {
        self.name.get_or_init(|| name);
    }

    /// Waits until a connection may be used, but not for ever.
    pub(super) async fn permit(&self) -> Result<Permit, StoreError> {
        self.fail_fast()?;
        let permit = Arc::clone(&self.permits).acquire_owned();
        tokio::select! {
            biased;
            permit = permit => Ok(Permit { _permit: permit.map_err(|_closed| StoreError::Closed)? }),
            () = self.clock.sleep(PATIENCE) => Err(StoreError::Unavailable(format!(
                "all {} connections were in use for {} s; raise max_open_conns",
                self.most,
                PATIENCE.as_secs()
            ))),
        }
    }

    /// A permit while nobody else uses the pool.
    pub(super) fn permit_at_once(&self) -> Result<Permit, StoreError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        permit.map(|permit| Permit { _permit: permit }).map_err(|_closed| StoreError::Closed)
    }

    /// A connection with a transaction begun on it.
    pub(super) fn begin(
        &self,
        runtime: &Handle,
        mut permit: Permit,
        access: Access,
    ) -> Result<Lease, StoreError> {
        loop {
            let mut lease = match self.take(runtime) {
                Some((link, made)) => Lease { link, made, used: true, permit },
                None => self.connect(runtime, permit)?,
            };
            match lease.link.begin(runtime, access) {
                Ok(()) => {
                    self.is_here();
                    return Ok(lease);
                }
                // It died while it was idle, and so did the others.
                Err(StoreError::Unavailable(_)) if lease.used => {
                    self.idle().clear();
                    permit = lease.discard();
                }
                Err(error) => return Err(self.is_away(error)),
            }
        }
    }

    /// A new connection.
    pub(super) fn connect(&self, runtime: &Handle, permit: Permit) -> Result<Lease, StoreError> {
        self.may_try()?;
        let link = self.target.connect(runtime).map_err(|error| self.is_away(error))?;
        Ok(Lease { link, made: self.clock.monotonic(), used: false, permit })
    }

    /// Keeps a connection for the next user.
    pub(super) fn give_back(&self, lease: Lease, runtime: &Handle) {
        drop(self.give_back_and_keep(lease, runtime));
    }

    /// Keeps a connection for the next user, and the right to one for this one.
    pub(super) fn give_back_and_keep(&self, lease: Lease, runtime: &Handle) -> Permit {
        let Lease { link, made, permit, .. } = lease;
        let since = self.clock.monotonic();
        let too_old = self.lifetime.is_some_and(|lifetime| since.saturating_sub(made) >= lifetime);
        let mut idle = self.idle();
        if too_old || idle.len() >= self.most_idle {
            drop(idle);
            link.close(runtime);
        } else {
            idle.push(Idle { link, made, since });
        }
        permit
    }

    /// The connection that was used last. Those that are past their time are closed.
    fn take(&self, runtime: &Handle) -> Option<(Link, Duration)> {
        let now = self.clock.monotonic();
        let mut idle = self.idle();
        let (kept, past): (Vec<_>, Vec<_>) = idle.drain(..).partition(|idle| {
            now.saturating_sub(idle.since) < IDLE
                && self.lifetime.is_none_or(|lifetime| now.saturating_sub(idle.made) < lifetime)
        });
        *idle = kept;
        let taken = idle.pop();
        drop(idle);
        past.into_iter().for_each(|idle| idle.link.close(runtime));
        taken.map(|idle| (idle.link, idle.made))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While the database is away, only one in each [`RETRY`] tries it.
    fn may_try(&self) -> Result<(), StoreError> {
        let mut away = self.away();
        let Some(away) = away.as_mut() else { return Ok(()) };
        let now = self.clock.monotonic();
        if now.saturating_sub(away.tried) < RETRY {
            return Err(StoreError::Unavailable(away.cause.clone()));
        }
        away.tried = now;
        Ok(())
    }

    fn fail_fast(&self) -> Result<(), StoreError> {
        match self.away().as_ref() {
            Some(away) if self.clock.monotonic().saturating_sub(away.tried) < RETRY => {
                Err(StoreError::Unavailable(away.cause.clone()))
            }
            _ => Ok(()),
        }
    }

    fn away(&self) -> std::sync::MutexGuard<'_, Option<Away>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once that the database is away.
    fn is_away(&self, error: StoreError) -> StoreError {
        let StoreError::Unavailable(cause) = error else {
            return error;
        };
        let mut away = self.away();
        if let (None, Some(name)) = (away.as_ref(), self.name.get()) {
            tracing::error!(error = cause, "{name} cannot be reached; it is tried again each second");
        }
        *away = Some(Away { tried: self.clock.monotonic(), cause: cause.clone() });
        StoreError::Unavailable(cause)
    }

    fn is_here(&self) {
        let mut away = self.away();
        if let (Some(_), Some(name)) = (away.take(), self.name.get()) {
            tracing::info!("{name} can be reached again");
        }
    }
}
