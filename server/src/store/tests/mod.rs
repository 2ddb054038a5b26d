use std::time::{Duration, SystemTime};

use finial_daemon::clock::Clock;
use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::selector::{Selector, sorted};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use rusqlite::Connection;

use super::*;

mod agents;
mod bundles;
pub(crate) mod engines;
mod entries;
mod federation;
mod issued;
mod network;
mod opening;
mod others;
pub(crate) mod servers;
mod trouble;

const NOW: i64 = 1_800_000_000;

fn clock() -> Clock {
    Clock::paused(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs()))
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn own() -> TrustDomain {
    td("example.org")
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts(&own(), path).unwrap()
}

fn selectors(texts: &[&str]) -> Vec<Selector> {
    sorted(texts.iter().map(|text| Selector::parse(text).unwrap()).collect())
}

fn entry(path: &str, selector_texts: &[&str]) -> Entry {
    Entry::plain(id(path), id("/spire/agent/a"), selectors(selector_texts))
}

fn settings(connection_string: &str) -> OpenSettings {
    OpenSettings::new(connection_string, own(), clock())
}

/// A directory with a database file, and another way into it.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        Disk { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("datastore.sqlite3")
    }

    fn connection_string(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    async fn open(&self) -> Result<Store, StoreError> {
        Store::open(settings(&self.connection_string())).await
    }

    /// A connection of somebody else.
    fn other(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    fn run(&self, sql: &str) {
        self.other().execute_batch(sql).unwrap();
    }

    fn text(&self, sql: &str) -> String {
        let value: rusqlite::types::Value = self.other().query_row(sql, [], |row| row.get(0)).unwrap();
        match value {
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Integer(number) => number.to_string(),
            other => format!("{other:?}"),
        }
    }
}
