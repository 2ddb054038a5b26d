//! Databases that are reached over a network: PostgreSQL and MySQL.
//!
//! An operation is the same blocking closure as on SQLite. It runs on a thread for blocking work, and each of its
//! statements waits there for the driver, so virtual time stands still meanwhile.
//!
//! # Isolation
//!
//! Reads see one state (REPEATABLE READ, read only). Several servers write at once, so a transaction that changes what
//! it has read must not overwrite another's change. PostgreSQL finds that out (REPEATABLE READ) and fails the later one;
//! on MySQL the rows that a write transaction reads are locked (READ COMMITTED and FOR UPDATE, as SPIRE locks them),
//! which may end in a deadlock. Both, and a unique value that somebody else took just now, are answered by running the
//! operation again from its start.

mod link;
mod pool;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::clock::Clock;
use tokio::runtime::Handle;

use super::change::Change;
use crate::store::dialect::{self, Dialect, Row, Sql, Value};
use crate::store::{OpenSettings, StoreError, blocking, migrations};
pub(in crate::store) use link::{Access, Link, Target, rows_at_once};
use pool::{Lease, Permit, Pool};

/// How often an operation runs at most when other servers are in its way.
const ATTEMPTS: u32 = 10;
/// The pause after the first conflict; it grows with each.
const PAUSE: Duration = Duration::from_millis(2);

/// An open database.
pub(in crate::store) struct Database {
    primary: Arc<Pool>,
    replica: Option<Arc<Pool>>,
}

impl Database {
    /// Connects, and brings the schema up under a lock that other Finial servers respect.
    pub(in crate::store) fn open(settings: &OpenSettings) -> Result<Database, StoreError> {
        let runtime = Handle::current();
        let primary = Arc::new(Pool::new(Target::primary(&settings.database)?, settings));
        let replica = Target::replica(&settings.database)?;
        let replica = replica.map(|target| Arc::new(Pool::new(target, settings)));
        tracing::info!(database_type = settings.database.database_type.name(), "Opening SQL database");
        let permit = primary.permit_at_once()?;
        let mut lease = primary.connect(&runtime, permit)?;
        greet(&mut lease, &runtime, settings, false)?;
        let now = settings.clock.now();
        lease.link.begin(&runtime, Access::Migrate)?;
        let brought_up = {
            let transaction = Transaction::new(&mut lease.link, &runtime, Access::Migrate);
            let sql = Sql::new(dialect::Connection::Network(&transaction), now, primary.log_sql);
            migrations::bring_up(&sql, &settings.trust_domain, settings.database.disable_migration)
        };
        match brought_up {
            Ok(()) => lease.link.commit(&runtime, Access::Migrate, &[])?,
            Err(error) => {
                lease.link.roll_back(&runtime, Access::Migrate)?;
                return Err(error);
            }
        }
        primary.give_back(lease, &runtime);
        if let Some(replica) = &replica {
            let permit = replica.permit_at_once()?;
            let mut lease = replica.connect(&runtime, permit)?;
            greet(&mut lease, &runtime, settings, true)?;
            replica.give_back(lease, &runtime);
            replica.opened("The read replica of the database");
        }
        primary.opened("The database");
        Ok(Database { primary, replica })
    }

    pub(in crate::store) fn dialect(&self) -> Dialect {
        self.primary.target.dialect()
    }

    /// The primary, for [`super::postgres::listen`].
    pub(in crate::store) fn target(&self) -> &Target {
        &self.primary.target
    }

    /// The clock that the pools measure by.
    pub(in crate::store) fn clock(&self) -> &Clock {
        &self.primary.clock
    }

    /// Runs `work` in a read transaction. With `stale` it may be on the replica, where what was committed lately may be
    /// missing; a replica that is away is replaced by the primary.
    pub(in crate::store) async fn read<T, F>(
        &self,
        now: SystemTime,
        stale: bool,
        work: F,
    ) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        if let (true, Some(replica)) = (stale, &self.replica) {
            match transact(replica, Access::Read, now, work.clone()).await {
                Err(StoreError::Unavailable(_)) => {}
                read => return read,
            }
        }
        transact(&self.primary, Access::Read, now, work).await
    }

    /// Runs `work` in a write transaction.
    pub(in crate::store) async fn write<T, F>(&self, now: SystemTime, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        transact(&self.primary, Access::Write, now, work).await
    }
}

/// One open transaction, as [`Sql`] uses it.
pub(in crate::store) struct Transaction<'l> {
    link: RefCell<&'l mut Link>,
    runtime: &'l Handle,
    access: Access,
    changes: Cell<[bool; Change::ALL.len()]>,
}

impl<'l> Transaction<'l> {
    fn new(link: &'l mut Link, runtime: &'l Handle, access: Access) -> Transaction<'l> {
        Transaction {
            link: RefCell::new(link),
            runtime,
            access,
            changes: Cell::new([false; Change::ALL.len()]),
        }
    }

    pub(in crate::store) fn dialect(&self) -> Dialect {
        self.link.borrow().dialect()
    }

    /// Notes what other servers are told of when the transaction is committed.
    pub(in crate::store) fn note(&self, change: Change) {
        let mut changes = self.changes.get();
        if let Some(noted) = changes.get_mut(change as usize) {
            *noted = true;
        }
        self.changes.set(changes);
    }

    pub(in crate::store) fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<usize, StoreError> {
        self.link.borrow_mut().run(self.runtime, sql, values)
    }

    pub(in crate::store) fn insert(&self, sql: &str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        self.link.borrow_mut().insert(self.runtime, sql, values)
    }

    pub(in crate::store) fn script(&self, sql: &str) -> Result<(), StoreError> {
        self.link.borrow_mut().script(self.runtime, sql)
    }

    pub(in crate::store) fn rows(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // Read after the borrow has ended, so that `read` may run statements.
        let found = self.link.borrow_mut().rows(self.runtime, sql, values, self.access)?;
        found.each(&mut read)
    }

    fn noted(&self) -> Vec<Change> {
        let changes = self.changes.get();
        Change::ALL.into_iter().zip(changes).filter_map(|(change, noted)| noted.then_some(change)).collect()
    }
}

async fn transact<T, F>(pool: &Arc<Pool>, access: Access, now: SystemTime, work: F) -> Result<T, StoreError>
where
    F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
    T: Send + 'static,
{
    let mut permit = pool.permit().await?;
    let mut again = Again::default();
    loop {
        let (attempt, pool_here) = (work.clone(), Arc::clone(pool));
        let last = again.attempts + 1 >= ATTEMPTS;
        let outcome = blocking(move || Ok(attempt_once(&pool_here, permit, access, now, attempt))).await?;
        permit = match outcome {
            Attempt::Done(value) => return Ok(value),
            Attempt::Ended(error) => return Err(error),
            Attempt::Failed(error, permit) => match again.after(&error) {
                Some(pause) if !last => {
                    pool.clock.sleep(pause).await;
                    permit
                }
                _ => return Err(error),
            },
        };
    }
}

/// What became of one attempt.
enum Attempt<T> {
    Done(T),
    /// Another may do better, with this right to a connection.
    Failed(StoreError, Permit),
    /// No use, or too dangerous, to try again.
    Ended(StoreError),
}

fn attempt_once<T>(
    pool: &Arc<Pool>,
    permit: Permit,
    access: Access,
    now: SystemTime,
    work: impl FnOnce(&Sql<'_>) -> Result<T, StoreError>,
) -> Attempt<T> {
    let runtime = Handle::current();
    let mut lease = match pool.begin(&runtime, permit, access) {
        Ok(lease) => lease,
        Err(error) => return Attempt::Ended(error),
    };
    let (outcome, changes) = {
        let transaction = Transaction::new(&mut lease.link, &runtime, access);
        let outcome = work(&Sql::new(dialect::Connection::Network(&transaction), now, pool.log_sql));
        (outcome, transaction.noted())
    };
    match outcome {
        Ok(value) => match lease.link.commit(&runtime, access, &changes) {
            Ok(()) => {
                pool.give_back(lease, &runtime);
                Attempt::Done(value)
            }
            // Nobody knows whether a write took place, so it is not repeated.
            Err(StoreError::Unavailable(cause)) if access == Access::Write => Attempt::Ended(
                StoreError::Unavailable(format!("{cause}; the write may or may not be stored")),
            ),
            Err(error) => Attempt::Failed(error, lease.discard()),
        },
        Err(error) => {
            // After a failed statement the connection is as good as before, unless it is gone.
            match lease.link.roll_back(&runtime, access) {
                Ok(()) => Attempt::Failed(error, pool.give_back_and_keep(lease, &runtime)),
                Err(_) => Attempt::Failed(error, lease.discard()),
            }
        }
    }
}

/// Whether an operation that failed runs again.
#[derive(Default)]
struct Again {
    attempts: u32,
    taken: bool,
    lost: bool,
}

impl Again {
    /// The pause before the next attempt, if there is to be one.
    fn after(&mut self, error: &StoreError) -> Option<Duration> {
        self.attempts += 1;
        match error {
            StoreError::Contended(_) => {
                let jitter = f64::from(rand::random::<u16>()) / f64::from(u16::MAX) + 0.5;
                Some((PAUSE * self.attempts * self.attempts).mul_f64(jitter))
            }
            // Perhaps taken after this transaction began to look.
            StoreError::AlreadyExists(_) if !self.taken => {
                self.taken = true;
                Some(Duration::ZERO)
            }
            // A database that was restarted leaves connections that fail once.
            StoreError::Unavailable(_) if !self.lost => {
                self.lost = true;
                Some(Duration::ZERO)
            }
            _ => None,
        }
    }
}

fn greet(
    lease: &mut Lease,
    runtime: &Handle,
    settings: &OpenSettings,
    read_only: bool,
) -> Result<(), StoreError> {
    let mut version = String::new();
    let found = lease.link.rows(runtime, lease.link.version_query(), &[], Access::Read)?;
    found.each(&mut |row| {
        version = row.text(0)?;
        Ok(())
    })?;
    tracing::info!(
        r#type = settings.database.database_type.name(),
        version,
        read_only,
        "Connected to SQL database"
    );
    Ok(())
}
