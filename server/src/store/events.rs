//! The event tables: which entries and nodes changed, for servers that share the database.
//!
//! An event names a row, not what happened to it: the reader looks the row up, and a missing one was deleted.

use super::dialect::{Dialect, Sql, values};
use super::{Change, Store, StoreError};

/// Events, for reading. From [`Store::events`].
#[derive(Clone, Copy, Debug)]
pub struct Events<'s> {
    pub(super) store: &'s Store,
}

/// The greatest event IDs; 0 where there was no event yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatestEvents {
    pub entry_event: i64,
    pub node_event: i64,
}

/// An entry was created, updated or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryEvent {
    pub id: i64,
    pub entry_id: String,
}

/// A node was attested, changed or deleted. The ID is as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    pub id: i64,
    pub spiffe_id: String,
}

/// Which events to read.
#[derive(Clone, Debug, Default)]
pub struct EventsWanted {
    /// Entry events with a greater ID.
    pub entries_after: i64,
    /// And those with one of these IDs.
    pub entry_ids: Vec<i64>,
    /// Node events with a greater ID.
    pub nodes_after: i64,
    /// And those with one of these IDs.
    pub node_ids: Vec<i64>,
}

/// Events in ascending order of their IDs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventsFound {
    pub entries: Vec<EntryEvent>,
    pub nodes: Vec<NodeEvent>,
}

impl Events<'_> {
    /// The greatest IDs of both tables, of one moment. IDs are never used again, even after pruning. On PostgreSQL and
    /// MySQL a table of which all is pruned counts as one without events; the next has a greater ID all the same.
    pub async fn latest(&self) -> Result<LatestEvents, StoreError> {
        self.store
            .counted(&["registration_entry_event.list", "node_event.list"])
            .read(|sql| {
                let entry_event = latest_id(sql, "registered_entries_events")?;
                Ok(LatestEvents { entry_event, node_event: latest_id(sql, "attested_node_entries_events")? })
            })
            .await
    }

    /// Reads both tables at one moment.
    pub async fn read(&self, wanted: EventsWanted) -> Result<EventsFound, StoreError> {
        self.store
            .counted(&["registration_entry_event.list", "node_event.list"])
            .read(move |sql| {
                let entries = events(
                    sql,
                    "registered_entries_events",
                    "entry_id",
                    wanted.entries_after,
                    wanted.entry_ids,
                    |id, entry_id| EntryEvent { id, entry_id },
                )?;
                let nodes = events(
                    sql,
                    "attested_node_entries_events",
                    "spiffe_id",
                    wanted.nodes_after,
                    wanted.node_ids,
                    |id, spiffe_id| NodeEvent { id, spiffe_id },
                )?;
                Ok(EventsFound { entries, nodes })
            })
            .await
    }

    /// Entry events with a greater ID than `after`.
    pub async fn entries_after(&self, after: i64) -> Result<Vec<EntryEvent>, StoreError> {
        let wanted = EventsWanted { entries_after: after, nodes_after: i64::MAX, ..Default::default() };
        Ok(self.read(wanted).await?.entries)
    }

    /// Node events with a greater ID than `after`.
    pub async fn nodes_after(&self, after: i64) -> Result<Vec<NodeEvent>, StoreError> {
        let wanted = EventsWanted { nodes_after: after, entries_after: i64::MAX, ..Default::default() };
        Ok(self.read(wanted).await?.nodes)
    }

    /// Deletes events from before `before` (unix seconds); how many.
    pub async fn prune(&self, before: i64) -> Result<usize, StoreError> {
        self.store
            .counted(&["registration_entry_event.prune", "node_event.prune"])
            .write(move |sql| {
                let earlier = sql.dialect().earlier_than("created_at");
                let mut pruned = 0;
                for table in ["registered_entries_events", "attested_node_entries_events"] {
                    pruned += sql.run(
                        &format!("DELETE FROM {table} WHERE {earlier}"),
                        &sql.dialect().earlier(before),
                    )?;
                }
                Ok(pruned)
            })
            .await
    }
}

/// Writes the event of a changed entry, in the transaction that changes it.
pub(super) fn entry_changed(sql: &Sql<'_>, entry_id: &str) -> Result<(), StoreError> {
    sql.insert(
        "INSERT INTO registered_entries_events (created_at, updated_at, entry_id) VALUES (?, ?, ?)",
        values![sql.now(), sql.now(), entry_id],
    )?;
    sql.note(Change::Rows);
    Ok(())
}

/// Writes the event of a changed node, in the transaction that changes it.
pub(super) fn node_changed(sql: &Sql<'_>, spiffe_id: &str) -> Result<(), StoreError> {
    sql.insert(
        "INSERT INTO attested_node_entries_events (created_at, updated_at, spiffe_id) VALUES (?, ?, ?)",
        values![sql.now(), sql.now(), spiffe_id],
    )?;
    sql.note(Change::Rows);
    Ok(())
}

fn latest_id(sql: &Sql<'_>, table: &str) -> Result<i64, StoreError> {
    let present = sql.number(&format!("SELECT MAX(id) FROM {table}"), &[])?;
    match sql.dialect() {
        // Where all rows are pruned, the counter knows what was given out.
        Dialect::Sqlite => {
            let counted = sql.number("SELECT seq FROM sqlite_sequence WHERE name = ?", values![table])?;
            Ok(present.max(counted))
        }
        // Their counters run ahead of transactions that are not committed yet.
        Dialect::Postgres | Dialect::MySql => Ok(present),
    }
}

fn events<T>(
    sql: &Sql<'_>,
    table: &str,
    column: &str,
    after: i64,
    mut ids: Vec<i64>,
    make: impl Fn(i64, String) -> T,
) -> Result<Vec<T>, StoreError> {
    ids.retain(|id| *id <= after);
    ids.sort_unstable();
    ids.dedup();
    let mut found = Vec::new();
    if !ids.is_empty() {
        let (near, values) = Sql::near("id", &ids);
        let query = format!("SELECT id, {column} FROM {table} WHERE {near} ORDER BY id");
        let rows = sql.rows(&query, &values, |row| Ok((row.int(0)?, row.text(1)?)))?;
        found.extend(rows.into_iter().filter(|(id, _)| ids.binary_search(id).is_ok()));
    }
    let query = format!("SELECT id, {column} FROM {table} WHERE id > ? ORDER BY id");
    found.extend(sql.rows(&query, values![after], |row| Ok((row.int(0)?, row.text(1)?)))?);
    Ok(found.into_iter().map(|(id, key)| make(id, key)).collect())
}
