//! Trust bundles, own and federated: table `bundles`.

use std::time::SystemTime;

use finial_identity::bundle::{
    AuthorityEditError, Bundle, JwtAuthority, PruneError, WitAuthority, X509Authority,
};
use finial_identity::trust_domain::TrustDomain;

use super::dialect::{Sql, Value, values};
use super::entries::delete_row;
use super::events::entry_changed;
use super::{Bounds, Change, Page, PageRequest, Store, StoreError, blob};

/// Operations on bundles. From [`Store::bundles`].
#[derive(Clone, Copy, Debug)]
pub struct Bundles<'s> {
    pub(super) store: &'s Store,
}

/// New values of a bundle's fields; `None` leaves the field as it is.
#[derive(Clone, Debug, Default)]
pub struct BundleUpdate {
    pub x509_authorities: Option<Vec<X509Authority>>,
    pub jwt_authorities: Option<Vec<JwtAuthority>>,
    pub wit_authorities: Option<Vec<WitAuthority>>,
    pub refresh_hint: Option<i64>,
    pub sequence_number: Option<u64>,
}

/// What becomes of entries that federate with a bundle's trust domain when the bundle is deleted. The numbers are those
/// of the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeleteMode {
    /// The bundle is not deleted while there are such entries.
    #[default]
    Restrict = 0,
    /// They are deleted too.
    Delete = 1,
    /// They stay, and federate no longer.
    Dissociate = 2,
}

impl DeleteMode {
    /// The mode for its number in the API, if there is one.
    pub fn from_number(number: i32) -> Option<DeleteMode> {
        match number {
            0 => Some(DeleteMode::Restrict),
            1 => Some(DeleteMode::Delete),
            2 => Some(DeleteMode::Dissociate),
            _ => None,
        }
    }
}

impl Bundles<'_> {
    /// The bundle of a trust domain.
    pub async fn get(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        let trust_domain = trust_domain.clone();
        self.store.counted(&["bundle.fetch"]).read(move |sql| bundle_of(sql, &trust_domain)).await
    }

    /// All bundles, the own one too, in order of creation. Rows that are not readable are left out and logged.
    pub async fn list(&self, page: Option<&PageRequest>) -> Result<Page<Bundle>, StoreError> {
        let bounds = Bounds::of(page)?;
        self.store
            .counted(&["bundle.list"]).read(move |sql| {
                let mut query = "SELECT id, trust_domain, data FROM bundles".to_owned();
                let mut values = Vec::new();
                if let Some(bounds) = &bounds {
                    query.push_str(" WHERE id > ? ORDER BY id LIMIT ?");
                    values.extend([Value::Int(bounds.after), Value::Int(bounds.size.into())]);
                } else {
                    query.push_str(" ORDER BY id");
                }
                let rows = sql.rows(&query, &values, |row| {
                    let bundle = blob::read_bundle(row.blob(2)?);
                    if let Err(error) = &bundle {
                        let trust_domain_id = row.str(1)?;
                        tracing::error!(trust_domain_id, %error, "Passing over a bundle that is not readable");
                    }
                    Ok((row.int(0)?, bundle.ok()))
                })?;
                let readable = rows.into_iter().filter_map(|(id, bundle)| Some((id, bundle?)));
                Ok(Page::new(readable.collect(), bounds.as_ref()))
            })
            .await
    }

    /// How many bundles there are, with the own one.
    pub async fn count(&self) -> Result<u64, StoreError> {
        self.store
            .counted(&["bundle.count"])
            .read(|sql| Ok(sql.number("SELECT COUNT(*) FROM bundles", &[])?.unsigned_abs()))
            .await
    }

    /// Stores a new bundle.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`] if the trust domain has one.
    pub async fn create(&self, bundle: Bundle) -> Result<Bundle, StoreError> {
        self.store
            .counted(&["bundle.create"])
            .write(move |sql| {
                insert(sql, &bundle)?;
                Ok(bundle)
            })
            .await
    }

    /// Changes fields of a bundle; the whole bundle as it is now.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn update(
        &self,
        trust_domain: &TrustDomain,
        update: BundleUpdate,
    ) -> Result<Bundle, StoreError> {
        let apply = move |bundle: &mut Bundle| {
            if let Some(authorities) = update.x509_authorities {
                bundle.x509_authorities = authorities;
            }
            if let Some(authorities) = update.jwt_authorities {
                bundle.jwt_authorities = authorities;
            }
            if let Some(authorities) = update.wit_authorities {
                bundle.wit_authorities = authorities;
            }
            bundle.refresh_hint = update.refresh_hint.unwrap_or(bundle.refresh_hint);
            bundle.sequence_number = update.sequence_number.unwrap_or(bundle.sequence_number);
            Ok::<_, StoreError>(())
        };
        Ok(self.edit(trust_domain, apply).await?.1)
    }

    /// Stores a bundle in the place of whatever is there.
    pub async fn set(&self, bundle: Bundle) -> Result<Bundle, StoreError> {
        self.store
            .counted(&["bundle.set"])
            .write(move |sql| {
                put(sql, &bundle)?;
                Ok(bundle)
            })
            .await
    }

    /// Adds the authorities of `bundle` that are not there yet, and raises the sequence number if there were any. A
    /// trust domain without a bundle gets this one. The whole bundle as it is now.
    pub async fn append(&self, bundle: Bundle) -> Result<Bundle, StoreError> {
        self.store
            .counted(&["bundle.append"])
            .write(move |sql| {
                let Some(stored) = find(sql, &bundle.trust_domain)? else {
                    insert(sql, &bundle)?;
                    return Ok(bundle);
                };
                let mut merged = stored.bundle.clone();
                if merged.append(&bundle) {
                    replace(sql, &stored, &merged)?;
                }
                Ok(merged)
            })
            .await
    }

    /// Reads a bundle, lets `edit` change it, and writes it if it did, all in one transaction; what `edit` gave, and the
    /// bundle as it is now. `edit` raises the sequence number itself, as the edits of [`Bundle`] do.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], and those of `edit`, which change nothing.
    pub async fn edit<T, E, F>(&self, trust_domain: &TrustDomain, edit: F) -> Result<(T, Bundle), StoreError>
    where
        F: FnOnce(&mut Bundle) -> Result<T, E> + Clone + Send + 'static,
        T: Send + 'static,
        E: Into<StoreError>,
    {
        self.edit_as(&["bundle.update"], trust_domain, edit).await
    }

    /// The same, counted as one of its kinds.
    async fn edit_as<T, E, F>(
        &self,
        counted: &'static [&'static str],
        trust_domain: &TrustDomain,
        edit: F,
    ) -> Result<(T, Bundle), StoreError>
    where
        F: FnOnce(&mut Bundle) -> Result<T, E> + Clone + Send + 'static,
        T: Send + 'static,
        E: Into<StoreError>,
    {
        let trust_domain = trust_domain.clone();
        self.store
            .counted(counted)
            .write(move |sql| {
                let stored = find(sql, &trust_domain)?.ok_or_else(StoreError::not_found)?;
                let mut bundle = stored.bundle.clone();
                let value = edit(&mut bundle).map_err(Into::into)?;
                if bundle != stored.bundle {
                    replace(sql, &stored, &bundle)?;
                }
                Ok((value, bundle))
            })
            .await
    }

    /// Removes authorities that expired at or before `expired_by`. The bundle as it is now if that changed it.
    ///
    /// # Errors
    ///
    /// [`StoreError::FailedPrecondition`] if nothing would be left (`prune failed: …`).
    pub async fn prune(
        &self,
        trust_domain: &TrustDomain,
        expired_by: SystemTime,
    ) -> Result<Option<Bundle>, StoreError> {
        let edited =
            self.edit_as(&["bundle.prune"], trust_domain, move |bundle| bundle.prune(expired_by)).await;
        match edited {
            Ok((changed, bundle)) => Ok(changed.then_some(bundle)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Marks X.509 authorities as tainted, by subject key ID in lowercase hex.
    pub async fn taint_x509(
        &self,
        trust_domain: &TrustDomain,
        subject_key_id: &str,
    ) -> Result<Bundle, StoreError> {
        let id = subject_key_id.to_owned();
        Ok(self.edit_as(&["bundle.x509.taint"], trust_domain, move |bundle| bundle.taint_x509(&id)).await?.1)
    }

    /// Removes tainted X.509 authorities, by subject key ID in lowercase hex.
    pub async fn revoke_x509(
        &self,
        trust_domain: &TrustDomain,
        subject_key_id: &str,
    ) -> Result<Bundle, StoreError> {
        let id = subject_key_id.to_owned();
        Ok(self
            .edit_as(&["bundle.x509.revoke"], trust_domain, move |bundle| bundle.revoke_x509(&id))
            .await?
            .1)
    }

    /// Marks a JWT key as tainted.
    pub async fn taint_jwt(
        &self,
        trust_domain: &TrustDomain,
        key_id: &str,
    ) -> Result<(JwtAuthority, Bundle), StoreError> {
        let id = key_id.to_owned();
        self.edit_as(&["bundle.jwt.taint"], trust_domain, move |bundle| bundle.taint_jwt(&id)).await
    }

    /// Removes a tainted JWT key.
    pub async fn revoke_jwt(
        &self,
        trust_domain: &TrustDomain,
        key_id: &str,
    ) -> Result<(JwtAuthority, Bundle), StoreError> {
        let id = key_id.to_owned();
        self.edit_as(&["bundle.jwt.revoke"], trust_domain, move |bundle| bundle.revoke_jwt(&id)).await
    }

    /// Deletes a bundle. Entries that federated with its trust domain and stay count as updated.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`]; [`StoreError::FailedPrecondition`] with [`DeleteMode::Restrict`] and such entries.
    pub async fn delete(&self, trust_domain: &TrustDomain, mode: DeleteMode) -> Result<(), StoreError> {
        let id = trust_domain.id();
        self.store
            .counted(&["bundle.delete"]).write(move |sql| {
                let bundle =
                    sql.row("SELECT id FROM bundles WHERE trust_domain = ?", values![id.as_str()], |row| row.int(0))?;
                let bundle = bundle.ok_or_else(StoreError::not_found)?;
                let federated = sql.rows(
                    "SELECT e.id, e.entry_id FROM registered_entries e \
                     JOIN federated_registration_entries f ON f.registered_entry_id = e.id WHERE f.bundle_id = ?",
                    values![bundle],
                    |row| Ok((row.int(0)?, row.text(1)?)),
                )?;
                if mode == DeleteMode::Restrict && !federated.is_empty() {
                    return Err(StoreError::FailedPrecondition(format!(
                        "datastore-sql: cannot delete bundle; federated with {} registration entries",
                        federated.len()
                    )));
                }
                for (row, entry_id) in federated {
                    if mode == DeleteMode::Delete {
                        delete_row(sql, row, &entry_id)?;
                    } else {
                        // Agents compare revisions to see whether they hold the present entry.
                        sql.run(
                            "UPDATE registered_entries SET updated_at = ?, revision_number = revision_number + 1 \
                             WHERE id = ?",
                            values![sql.now(), row],
                        )?;
                        entry_changed(sql, &entry_id)?;
                    }
                }
                sql.run("DELETE FROM federated_registration_entries WHERE bundle_id = ?", values![bundle])?;
                sql.run("DELETE FROM bundles WHERE id = ?", values![bundle])?;
                sql.note(Change::Bundles);
                Ok(())
            })
            .await
    }
}

impl From<AuthorityEditError> for StoreError {
    fn from(error: AuthorityEditError) -> StoreError {
        match &error {
            AuthorityEditError::NoCaToTaint
            | AuthorityEditError::NoCaToRevoke
            | AuthorityEditError::NoKey(_) => StoreError::NotFound(error.to_string()),
            AuthorityEditError::CaAlreadyTainted
            | AuthorityEditError::CaNotTainted
            | AuthorityEditError::KeyAlreadyTainted
            | AuthorityEditError::KeyNotTainted => StoreError::InvalidArgument(error.to_string()),
        }
    }
}

impl From<PruneError> for StoreError {
    fn from(error: PruneError) -> StoreError {
        StoreError::FailedPrecondition(format!("prune failed: {error}"))
    }
}

/// The bundle of a trust domain, within another transaction.
pub(super) fn bundle_of(sql: &Sql<'_>, trust_domain: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
    Ok(find(sql, trust_domain)?.map(|stored| stored.bundle))
}

/// Stores a bundle in the place of whatever is there, within another transaction.
pub(super) fn put(sql: &Sql<'_>, bundle: &Bundle) -> Result<(), StoreError> {
    match find(sql, &bundle.trust_domain)? {
        Some(stored) => replace(sql, &stored, bundle),
        None => insert(sql, bundle),
    }
}

struct Stored {
    id: i64,
    blob: Vec<u8>,
    bundle: Bundle,
}

fn find(sql: &Sql<'_>, trust_domain: &TrustDomain) -> Result<Option<Stored>, StoreError> {
    sql.row(
        "SELECT id, data FROM bundles WHERE trust_domain = ?",
        values![trust_domain.id().as_str()],
        |row| {
            let blob = row.blob(1)?.to_vec();
            let bundle = blob::read_bundle(&blob).map_err(|error| bad(trust_domain, error))?;
            Ok(Stored { id: row.int(0)?, blob, bundle })
        },
    )
}

fn insert(sql: &Sql<'_>, bundle: &Bundle) -> Result<(), StoreError> {
    let blob = blob::write_bundle(bundle, &[]).map_err(|error| bad(&bundle.trust_domain, error))?;
    sql.insert(
        "INSERT INTO bundles (created_at, updated_at, trust_domain, data) VALUES (?, ?, ?, ?)",
        values![sql.now(), sql.now(), bundle.trust_domain.id().as_str(), blob],
    )?;
    sql.note(Change::Bundles);
    Ok(())
}

fn replace(sql: &Sql<'_>, stored: &Stored, bundle: &Bundle) -> Result<(), StoreError> {
    let blob = blob::write_bundle(bundle, &stored.blob).map_err(|error| bad(&bundle.trust_domain, error))?;
    sql.run("UPDATE bundles SET updated_at = ?, data = ? WHERE id = ?", values![sql.now(), blob, stored.id])?;
    sql.note(Change::Bundles);
    Ok(())
}

fn bad(trust_domain: &TrustDomain, error: blob::BlobError) -> StoreError {
    StoreError::bad_row("bundles", trust_domain, error)
}
