//! The engines that a database may run on, and how a transaction runs on each.

pub(super) mod sqlite;

use std::time::SystemTime;

use super::dialect::{Dialect, Sql};
use super::{OpenSettings, StoreError};

/// An open database.
pub(super) enum Engine {
    Sqlite(sqlite::Database),
}

impl Engine {
    /// Opens the database and brings its schema up.
    pub(super) fn open(settings: &OpenSettings) -> Result<Engine, StoreError> {
        Ok(Engine::Sqlite(sqlite::open(settings)?))
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Engine::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Runs `work` in one read transaction.
    pub(super) async fn read<T, F>(&self, now: SystemTime, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        match self {
            Engine::Sqlite(database) => database.read(now, work).await,
        }
    }

    /// Runs `work` in one write transaction, which is committed when `work` succeeds.
    pub(super) async fn write<T, F>(&self, now: SystemTime, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Sql<'_>) -> Result<T, StoreError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        match self {
            Engine::Sqlite(database) => database.write(now, work).await,
        }
    }
}
