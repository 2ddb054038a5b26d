//! The trust domain's database: SPIRE's schema, version 25, with Finial's own tables (`finial_…`) beside it.
//!
//! # Invariants
//!
//! - A changed entry or node and the event row that tells other servers of it are one transaction.
//! - Each operation is one transaction: its reads see one state, and after an error nothing of it is left.
//! - Work on the database happens in `spawn_blocking`, never on a runtime thread; one writer, several readers.
//! - Blobs keep the fields that this release does not know.
//! - A database that this release cannot serve is refused before anything is written to it.
//!
//! Operations are grouped by table: [`Store::entries`], [`Store::agents`], [`Store::bundles`], [`Store::tokens`],
//! [`Store::federation`], [`Store::journal`], [`Store::events`], [`Store::issued`].

pub mod agents;
mod blob;
pub mod bundles;
mod dialect;
mod engine;
pub mod entries;
mod error;
pub mod events;
pub mod federation;
mod filters;
pub mod issued;
pub mod journal;
mod migrations;
mod settings;
pub mod tokens;

use std::panic::resume_unwind;
use std::sync::Arc;

use finial_daemon::clock::Clock;
use finial_daemon::metrics::{self, Metrics};
use finial_identity::selector::Selector;
use finial_identity::trust_domain::TrustDomain;
use tokio::task::{JoinError, spawn_blocking};

use dialect::{Dialect, Row, Sql};
use engine::Engine;
pub use engine::change::Change;
pub use error::StoreError;
pub use migrations::{CODE_VERSION, SCHEMA_VERSION};
pub use settings::{DatabaseSettings, DatabaseType, OpenSettings, TlsFiles};

/// The database, open. Clones share it; the last one closes it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    stale: bool,
}

impl Store {
    /// Opens the database, creates or migrates its schema, and holds it against a second server.
    ///
    /// # Errors
    ///
    /// Refuses, without a change to the file: a newer or too old schema, an incomplete one, a database of another
    /// trust domain, a file that another Finial server has open, and what is no database.
    pub async fn open(settings: OpenSettings) -> Result<Store, StoreError> {
        let inner = blocking(move || {
            let engine = Engine::open(&settings)?;
            Ok(Inner {
                trust_domain: settings.trust_domain,
                clock: settings.clock,
                metrics: settings.metrics,
                engine,
            })
        })
        .await?;
        Ok(Store { inner: Arc::new(inner), stale: false })
    }

    /// The trust domain that the database belongs to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.inner.trust_domain
    }

    /// Where operations are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Registration entries.
    pub fn entries(&self) -> entries::Entries<'_> {
        entries::Entries { store: self }
    }

    /// Attested nodes and their selectors.
    pub fn agents(&self) -> agents::Agents<'_> {
        agents::Agents { store: self }
    }

    /// Trust bundles, own and federated.
    pub fn bundles(&self) -> bundles::Bundles<'_> {
        bundles::Bundles { store: self }
    }

    /// Relationships with other trust domains.
    pub fn federation(&self) -> federation::Federation<'_> {
        federation::Federation { store: self }
    }

    /// Join tokens.
    pub fn tokens(&self) -> tokens::Tokens<'_> {
        tokens::Tokens { store: self }
    }

    /// Journals of the servers' authorities.
    pub fn journal(&self) -> journal::Journals<'_> {
        journal::Journals { store: self }
    }

    /// What has changed, for servers that share the database.
    pub fn events(&self) -> events::Events<'_> {
        events::Events { store: self }
    }

    /// The log of what was issued, for reading. To write, see [`issued::IssuedLog`].
    pub fn issued(&self) -> issued::IssuedRecords<'_> {
        issued::IssuedRecords { store: self }
    }

    /// The same database, for reads that may miss what was committed in the last seconds: they go to the replica, if
    /// one is configured. Writes go where they always go.
    pub fn tolerating_stale(&self) -> Store {
        Store { inner: Arc::clone(&self.inner), stale: true }
    }

    /// Calls `on_change` when another server has changed something, and whenever that may have been missed. Never ends.
    /// Where the engine does not tell (SQLite, MySQL), it is never called.
    pub async fn listen(self, on_change: impl FnMut(Change) + Send) {
        match &self.inner.engine {
            Engine::Network(database) => engine::postgres::listen::listen(database, on_change).await,
            Engine::Sqlite(_) => std::future::pending().await,
        }
    }

    /// The operations that the next read or write is counted as: SPIRE counts some of them separately.
    fn counted(&self, operations: &'static [&'static str]) -> Counted<'_> {
        Counted { store: self, operations }
    }

    fn dialect(&self) -> Dialect {
        self.inner.engine.dialect()
    }

    /// Runs `work` in one read transaction. Where the engine wants it repeated, it runs again from its start.
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        self.inner.engine.read(self.inner.clock.now(), self.stale, work).await
    }

    /// Runs `work` in one write transaction, which is committed when `work` succeeds. Where the engine wants it repeated,
    /// it runs again from its start, and nothing of the first time is left.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        self.inner.engine.write(self.inner.clock.now(), work).await
    }
}

/// A way to the database on which what is done is counted and timed.
struct Counted<'s> {
    store: &'s Store,
    operations: &'static [&'static str],
}

impl Counted<'_> {
    /// As [`Store::read`].
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        self.count(self.store.read(work)).await
    }

    /// As [`Store::write`].
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        self.count(self.store.write(work)).await
    }

    async fn count<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let metrics = self.store.metrics();
        if !metrics.is_heard() {
            return work.await;
        }
        let calls: Vec<_> =
            self.operations.iter().map(|operation| metrics.call(&["datastore", operation])).collect();
        let outcome = work.await;
        for call in calls {
            call.done(outcome.as_ref().err().map_or(metrics::OK, StoreError::code_name));
        }
        outcome
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("trust_domain", &self.inner.trust_domain).finish_non_exhaustive()
    }
}

/// Reads the connection strings of a database, without opening it.
///
/// # Errors
///
/// [`StoreError::ConnectionSetting`] or [`StoreError::ConnectionString`].
pub fn check(settings: &DatabaseSettings) -> Result<(), StoreError> {
    engine::check(settings)
}

/// Which part of a list to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Empty for the first page, else [`Page::next_token`] of the page before.
    pub token: String,
    /// The most items to give; not 0.
    pub size: u32,
}

/// Part of a list, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Empty when no page was asked for, and on an empty page. A page with items always has a token, the last page too:
    /// clients end at an empty token.
    pub next_token: String,
}

struct Inner {
    trust_domain: TrustDomain,
    clock: Clock,
    metrics: Metrics,
    engine: Engine,
}

/// A page's bounds: rows with a greater id than `after`, at most `size` of them.
#[derive(Clone)]
struct Bounds {
    after: i64,
    size: u32,
}

impl Bounds {
    fn of(page: Option<&PageRequest>) -> Result<Option<Bounds>, StoreError> {
        let Some(page) = page else { return Ok(None) };
        if page.size == 0 {
            return Err(StoreError::InvalidArgument("cannot paginate with pagesize = 0".to_owned()));
        }
        let after = match page.token.as_str() {
            "" => 0,
            token if token.bytes().all(|b| b.is_ascii_digit()) => match token.parse::<u64>() {
                Ok(id) => i64::try_from(id).unwrap_or(i64::MAX),
                Err(_) => return Err(bad_token(token)),
            },
            token => return Err(bad_token(token)),
        };
        Ok(Some(Bounds { after, size: page.size }))
    }
}

fn bad_token(token: &str) -> StoreError {
    StoreError::InvalidArgument(format!("could not parse token '{token}'"))
}

impl<T> Page<T> {
    /// A page of items with their row ids, in order of ids.
    fn new(rows: Vec<(i64, T)>, bounds: Option<&Bounds>) -> Page<T> {
        let next_token = match (bounds, rows.last()) {
            (Some(_), Some((id, _))) => id.to_string(),
            _ => String::new(),
        };
        Page { items: rows.into_iter().map(|(_, item)| item).collect(), next_token }
    }
}

/// The columns `type` and `value` of a selector.
fn selector_at(row: &Row<'_>, column: usize) -> Result<Selector, StoreError> {
    Ok(Selector { kind: row.text(column)?, value: row.text(column + 1)? })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => Err(stopped_or_panic(stopped)),
    }
}

fn stopped_or_panic(error: JoinError) -> StoreError {
    match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => StoreError::Closed,
    }
}

#[cfg(test)]
pub(crate) mod tests;
