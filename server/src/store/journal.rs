//! Journals of the servers' authorities: table `ca_journals`, one row for each server that shares the database.
//!
//! What a journal says is read and written by [`entries`]; what it means is the business of `authority/journal`.

pub mod entries;

use finial_proto::journal;
use prost::Message;

use super::dialect::{Row, Sql, values};
use super::{Store, StoreError};

/// Operations on journals. From [`Store::journal`].
#[derive(Clone, Copy, Debug)]
pub struct Journals<'s> {
    pub(super) store: &'s Store,
}

/// One server's journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalRow {
    /// The row; 0 for a journal that is not stored yet.
    pub id: i64,
    /// [`entries::Entries`], written.
    pub data: Vec<u8>,
    /// Subject key ID (lowercase hex) of the X.509 authority that the server signs with; empty if there is none yet.
    pub active_x509_authority_id: String,
}

impl Journals<'_> {
    /// The first journal whose active X.509 authority is one of these.
    pub async fn fetch(
        &self,
        active_x509_authority_ids: &[String],
    ) -> Result<Option<JournalRow>, StoreError> {
        let ids = active_x509_authority_ids.to_vec();
        self.store
            .counted(&["ca_journal.fetch"])
            .read(move |sql| {
                for id in ids.iter().filter(|id| !id.is_empty()) {
                    let query = format!("{SELECT} WHERE active_x509_authority_id = ? ORDER BY id");
                    if let Some(found) = sql.row(&query, values![id], read)? {
                        return Ok(Some(found));
                    }
                }
                Ok(None)
            })
            .await
    }

    /// All journals, in order of creation.
    pub async fn list(&self) -> Result<Vec<JournalRow>, StoreError> {
        self.store
            .counted(&["ca_journal.fetch"])
            .read(|sql| sql.rows(&format!("{SELECT} ORDER BY id"), &[], read))
            .await
    }

    /// Stores a journal: with ID 0 as a new row, else in the place of that row. The ID of the row.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`] if the row is gone.
    pub async fn set(&self, row: JournalRow) -> Result<i64, StoreError> {
        self.store.counted(&["ca_journal.set"]).write(move |sql| write(sql, &row)).await
    }

    /// Deletes journals all of whose authorities expired at or before `expired_by` (unix seconds); how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadRow`] if a journal is not readable; then none is deleted.
    pub async fn prune(&self, expired_by: i64) -> Result<usize, StoreError> {
        self.store
            .counted(&["ca_journal.prune"])
            .write(move |sql| {
                let mut pruned = 0;
                for row in sql.rows(SELECT, &[], read)? {
                    let entries = journal::Entries::decode(row.data.as_slice())
                        .map_err(|error| StoreError::bad_row("ca_journals", row.id, error))?;
                    let ends = entries.x509_c_as.iter().map(|entry| entry.not_after);
                    let ends = ends.chain(entries.jwt_keys.iter().map(|entry| entry.not_after));
                    let mut ends = ends.chain(entries.wit_keys.iter().map(|entry| entry.not_after));
                    if ends.all(|not_after| not_after <= expired_by) {
                        sql.run("DELETE FROM ca_journals WHERE id = ?", values![row.id])?;
                        tracing::info!(ca_journal_id = row.id, "Pruned stale CA journal record");
                        pruned += 1;
                    }
                }
                Ok(pruned)
            })
            .await
    }
}

const SELECT: &str = "SELECT id, data, active_x509_authority_id FROM ca_journals";

fn read(row: &Row<'_>) -> Result<JournalRow, StoreError> {
    Ok(JournalRow { id: row.int(0)?, data: row.blob(1)?.to_vec(), active_x509_authority_id: row.text(2)? })
}

fn write(sql: &Sql<'_>, row: &JournalRow) -> Result<i64, StoreError> {
    if row.id == 0 {
        return sql.insert(
            "INSERT INTO ca_journals (created_at, updated_at, data, active_x509_authority_id, \
             active_jwt_authority_id) VALUES (?, ?, ?, ?, '')",
            values![sql.now(), sql.now(), row.data.as_slice(), &row.active_x509_authority_id],
        );
    }
    let changed = sql.run(
        "UPDATE ca_journals SET updated_at = ?, data = ?, active_x509_authority_id = ? WHERE id = ?",
        values![sql.now(), row.data.as_slice(), &row.active_x509_authority_id, row.id],
    )?;
    if changed == 0 { Err(StoreError::not_found()) } else { Ok(row.id) }
}
