//! What this server knows of its own authorities: one row of `ca_journals`, which bears the ID of the active X.509 CA. A
//! server finds its row by the keys that it holds.

use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::clock::unix_seconds;
use tokio::sync::Mutex;

use super::rotate::SlotId;
use crate::store::journal::JournalRow;
use crate::store::journal::entries::{Entries, List, Record, Unreadable, status};
use crate::store::{Store, StoreError};

/// How many records of a kind are kept.
const KEPT: usize = 10;

/// Why the journal can not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the CA journal can not be stored or loaded: {0}")]
    Store(#[from] StoreError),
    #[error(
        "the CA journal of authority {authority_id} in table ca_journals is damaged: {cause}; restore the database from a \
         backup, or delete that row to start with a new CA"
    )]
    Damaged { authority_id: String, cause: Unreadable },
}

/// The journal of this server; clones are the same journal. What is in memory is what the store holds: a change that can
/// not be stored does not happen.
#[derive(Clone)]
pub(super) struct Journal {
    /// Held over each write, since the kinds of authority turn independently and share the row.
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    store: Store,
    /// 0: not stored yet.
    row: i64,
    entries: Entries,
    /// The X.509 authority by which the row is found.
    found_by: String,
}

impl Journal {
    /// Finds the row that one of these X.509 authorities (IDs from the keys that we hold) is the active one of.
    pub(super) async fn load(store: Store, ours: &[String]) -> Result<Journal, JournalError> {
        let inner = match store.journal().fetch(ours).await? {
            None => {
                tracing::info!(
                    "There is not a CA journal record that matches any of the local X509 authority IDs"
                );
                Inner { store, row: 0, entries: Entries::default(), found_by: String::new() }
            }
            Some(found) => {
                let found_by = found.active_x509_authority_id;
                let entries = Entries::read(&found.data)
                    .map_err(|cause| JournalError::Damaged { authority_id: found_by.clone(), cause })?;
                Inner { store, row: found.id, entries, found_by }
            }
        };
        tracing::info!(
            x509_cas = inner.entries.list(List::X509Cas).len(),
            jwt_keys = inner.entries.list(List::JwtKeys).len(),
            "Journal loaded"
        );
        Ok(Journal { inner: Arc::new(Mutex::new(inner)) })
    }

    /// The records of a list, oldest first.
    pub(super) async fn records(&self, list: List) -> Vec<Record> {
        self.inner.lock().await.entries.list(list).to_vec()
    }

    /// A key was made in `slot` and will become an authority: what the slot held is gone.
    pub(super) async fn intend(
        &self,
        list: List,
        slot: SlotId,
        authority_id: &str,
        now: SystemTime,
    ) -> Result<(), JournalError> {
        let record = Record::intended(list, slot.name(), authority_id, unix_seconds(now));
        self.inner.lock().await.put(list, record).await
    }

    /// The authority exists. Takes the place of the intention.
    pub(super) async fn prepared(&self, list: List, record: Record) -> Result<(), JournalError> {
        self.inner.lock().await.put(list, record).await
    }

    /// One authority begins to sign and the one before ends, in one write.
    pub(super) async fn activated(&self, list: List, authority_id: &str) -> Result<(), JournalError> {
        let mut inner = self.inner.lock().await;
        let mut entries = inner.entries.clone();
        for record in entries.list_mut(list) {
            if record.authority_id == authority_id {
                record.status = status::ACTIVE;
            } else if record.status == status::ACTIVE {
                record.status = status::OLD;
            }
        }
        let found_by = match list {
            List::X509Cas => authority_id.to_owned(),
            List::JwtKeys => inner.found_by.clone(),
        };
        inner.save(entries, found_by).await
    }
}

impl Inner {
    async fn put(&mut self, list: List, record: Record) -> Result<(), JournalError> {
        let mut entries = self.entries.clone();
        let records = entries.list_mut(list);
        records.retain(|other| other.authority_id != record.authority_id && other.status != status::INTENDED);
        // The row is found by a key that is still there: the active CA's, or until there is one that of the next.
        let still_there = list == List::JwtKeys
            || records.iter().any(|other| {
                other.authority_id == self.found_by
                    && other.status == status::ACTIVE
                    && other.slot != record.slot
            });
        let found_by = if still_there { self.found_by.clone() } else { record.authority_id.clone() };
        records.push(record);
        let excess = records.len().saturating_sub(KEPT);
        records.drain(..excess);
        self.save(entries, found_by).await
    }

    async fn save(&mut self, entries: Entries, found_by: String) -> Result<(), JournalError> {
        let row =
            JournalRow { id: self.row, data: entries.write(), active_x509_authority_id: found_by.clone() };
        self.row = self.store.journal().set(row).await?;
        self.entries = entries;
        self.found_by = found_by;
        Ok(())
    }
}
