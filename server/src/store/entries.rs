//! Registration entries: tables `registered_entries`, `selectors`, `dns_names`, `federated_registration_entries`.

use std::collections::HashMap;

use finial_identity::entry::{AdditionalAttributes, Entry};
use finial_identity::selector::{Selector, SelectorMatch, sorted};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;

use super::dialect::{Row, Sql, Value, values};
use super::events::entry_changed;
use super::filters::{self, PARENT_OF_FOUND, selector_condition};
use super::{Bounds, Page, PageRequest, Store, StoreError, blob};

/// The longest blob of additional attributes.
const MAX_ATTRIBUTES: usize = 65_535;

/// Operations on entries. From [`Store::entries`].
#[derive(Clone, Copy, Debug)]
pub struct Entries<'s> {
    pub(super) store: &'s Store,
}

/// What [`Entries::create`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub entry: Entry,
    /// The entry is an older one with the same SPIFFE ID, parent and selectors; nothing was created.
    pub existing: bool,
}

/// New values of an entry's fields; `None` leaves the field as it is.
#[derive(Clone, Debug, Default)]
pub struct EntryUpdate {
    pub spiffe_id: Option<SpiffeId>,
    pub parent_id: Option<SpiffeId>,
    pub selectors: Option<Vec<Selector>>,
    pub x509_svid_ttl: Option<i32>,
    pub jwt_svid_ttl: Option<i32>,
    pub federates_with: Option<Vec<TrustDomain>>,
    pub admin: Option<bool>,
    pub downstream: Option<bool>,
    pub expires_at: Option<i64>,
    pub dns_names: Option<Vec<String>>,
    pub store_svid: Option<bool>,
    pub hint: Option<String>,
    /// `Some(None)` removes the attributes. Fields that this release does not know are kept when the new value brings
    /// none of its own.
    pub additional_attributes: Option<Option<AdditionalAttributes>>,
}

impl EntryUpdate {
    /// Every field, as an update without a mask sets them. The ID, revision and creation time of `entry` play no part.
    pub fn all(entry: Entry) -> EntryUpdate {
        EntryUpdate {
            spiffe_id: Some(entry.spiffe_id),
            parent_id: Some(entry.parent_id),
            selectors: Some(entry.selectors),
            x509_svid_ttl: Some(entry.x509_svid_ttl),
            jwt_svid_ttl: Some(entry.jwt_svid_ttl),
            federates_with: Some(entry.federates_with),
            admin: Some(entry.admin),
            downstream: Some(entry.downstream),
            expires_at: Some(entry.expires_at),
            dns_names: Some(entry.dns_names),
            store_svid: Some(entry.store_svid),
            hint: Some(entry.hint),
            additional_attributes: Some(entry.additional_attributes),
        }
    }
}

/// Which entries to list: all that pass every filter that is set.
#[derive(Clone, Debug, Default)]
pub struct ListEntries {
    pub spiffe_id: Option<SpiffeId>,
    pub parent_id: Option<SpiffeId>,
    /// An empty hint filters nothing.
    pub hint: Option<String>,
    /// True gives downstream entries only; false filters nothing.
    pub downstream: bool,
    pub selectors: Option<(SelectorMatch, Vec<Selector>)>,
    pub federates_with: Option<(SelectorMatch, Vec<TrustDomain>)>,
    pub page: Option<PageRequest>,
}

/// Rows in order of creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan<T> {
    pub items: Vec<T>,
    /// Where the next scan starts; `None` at the end.
    pub next: Option<i64>,
}

impl Entries<'_> {
    /// Stores a checked entry, unless there is one with the same SPIFFE ID, parent and exactly the same selectors. An
    /// empty ID is replaced by a new UUID. Revision and creation time are set here.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownBundle`]; [`StoreError::AlreadyExists`] for an ID that is taken and for a selector or DNS
    /// name that is there twice.
    pub async fn create(&self, entry: Entry) -> Result<Created, StoreError> {
        self.store.counted(&["registration_entry.create"]).write(move |sql| create(sql, entry)).await
    }

    /// Changes fields of an entry. Its revision grows by one, whatever changed.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::UnknownBundle`], [`StoreError::InvalidArgument`] for selectors of
    /// different types with `store_svid`.
    pub async fn update(&self, id: impl Into<String>, update: EntryUpdate) -> Result<Entry, StoreError> {
        let id = id.into();
        self.store.counted(&["registration_entry.update"]).write(move |sql| apply(sql, &id, update)).await
    }

    /// Deletes an entry, also one that is not readable.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn delete(&self, id: impl Into<String>) -> Result<(), StoreError> {
        let id = id.into();
        self.store
            .counted(&["registration_entry.delete"])
            .write(move |sql| {
                let row =
                    sql.row("SELECT id FROM registered_entries WHERE entry_id = ?", values![&id], |row| {
                        row.int(0)
                    })?;
                delete_row(sql, row.ok_or_else(StoreError::not_found)?, &id)
            })
            .await
    }

    /// The entry with this ID.
    pub async fn get(&self, id: impl Into<String>) -> Result<Option<Entry>, StoreError> {
        let id = id.into();
        self.store
            .counted(&["registration_entry.fetch"])
            .read(move |sql| {
                let found = load(sql, "e.entry_id = ?", values![&id], None)?.into_iter().next();
                found.map(|(_, entry)| entry).transpose()
            })
            .await
    }

    /// The entries with these IDs, in order of creation. Missing ones are left out.
    pub async fn by_ids(&self, ids: Vec<String>) -> Result<Vec<Entry>, StoreError> {
        self.store
            .counted(&["registration_entry.fetch"])
            .read(move |sql| {
                let mut rows = Vec::new();
                for ids in ids.chunks(MAX_VALUES) {
                    let condition = format!("e.entry_id IN {}", Sql::set(ids.len()));
                    let values: Vec<_> = ids.iter().map(Value::from).collect();
                    rows.extend(readable(load(sql, &condition, &values, None)?));
                }
                rows.sort_unstable_by_key(|(id, _)| *id);
                Ok(rows.into_iter().map(|(_, entry)| entry).collect())
            })
            .await
    }

    /// The entries that pass the filters, in order of creation. Rows that are not readable are left out and logged.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for an empty set to compare with, a page of size 0, and a page token that is not
    /// one (`could not parse token 'x'`).
    pub async fn list(&self, list: &ListEntries) -> Result<Page<Entry>, StoreError> {
        let bounds = Bounds::of(list.page.as_ref())?;
        let (condition, values) = filters::entries(list, self.store.dialect())?;
        self.store
            .counted(&["registration_entry.list"])
            .read(move |sql| {
                let rows = readable(load(sql, &condition, &values, bounds.as_ref())?);
                Ok(Page::new(rows, bounds.as_ref()))
            })
            .await
    }

    /// How many entries pass the filters. The page is not looked at.
    pub async fn count(&self, list: &ListEntries) -> Result<u64, StoreError> {
        let (condition, values) = filters::entries(list, self.store.dialect())?;
        self.store
            .counted(&["registration_entry.count"])
            .read(move |sql| {
                let query = format!("SELECT COUNT(*) FROM registered_entries e WHERE {condition}");
                Ok(sql.number(&query, &values)?.unsigned_abs())
            })
            .await
    }

    /// The entries that give this identity.
    pub async fn with_spiffe_id(&self, spiffe_id: &SpiffeId) -> Result<Vec<Entry>, StoreError> {
        let id = spiffe_id.as_str().to_owned();
        self.store
            .counted(&["registration_entry.list"])
            .read(move |sql| {
                let rows = readable(load(sql, "e.spiffe_id = ?", values![&id], None)?);
                Ok(rows.into_iter().map(|(_, entry)| entry).collect())
            })
            .await
    }

    /// At most `limit` rows after row `after` (0 at the start), for a whole reading in pieces.
    pub async fn scan(&self, after: i64, limit: u32) -> Result<Scan<Entry>, StoreError> {
        self.store
            .counted(&["registration_entry.list"])
            .read(move |sql| {
                let bounds = Bounds { after, size: limit.max(1) };
                let rows = load(sql, "0 = 0", &[], Some(&bounds))?;
                let next =
                    (rows.len() == bounds.size as usize).then(|| rows.last().map(|(id, _)| *id)).flatten();
                Ok(Scan { items: readable(rows).into_iter().map(|(_, entry)| entry).collect(), next })
            })
            .await
    }

    /// Deletes the entries that expired before `now` (unix seconds); their IDs.
    pub async fn prune_expired(&self, now: i64) -> Result<Vec<String>, StoreError> {
        self.store
            .counted(&["registration_entry.prune"]).write(move |sql| {
                let expired = sql.rows(
                    "SELECT id, entry_id, spiffe_id, parent_id FROM registered_entries WHERE expiry <> 0 AND expiry < ?",
                    values![now],
                    |row| Ok((row.int(0)?, row.text(1)?, row.text(2)?, row.text(3)?)),
                )?;
                let mut pruned = Vec::with_capacity(expired.len());
                for (row, entry_id, spiffe_id, parent_id) in expired {
                    delete_row(sql, row, &entry_id)?;
                    tracing::info!(
                        spiffe_id,
                        parent_id,
                        entry_id,
                        "Pruned an expired registration"
                    );
                    pruned.push(entry_id);
                }
                Ok(pruned)
            })
            .await
    }
}

/// The most values that one statement takes, with room for others.
const MAX_VALUES: usize = 1000;

pub(super) fn create(sql: &Sql<'_>, mut entry: Entry) -> Result<Created, StoreError> {
    if let Some(entry) = similar(sql, &entry)? {
        return Ok(Created { entry, existing: true });
    }
    if entry.id.is_empty() {
        entry.id = uuid::Uuid::new_v4().to_string();
    }
    let attributes = entry.additional_attributes.as_ref().map(attributes_blob).transpose()?;
    let row = sql.insert(
        "INSERT INTO registered_entries (created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, admin, \
         downstream, expiry, revision_number, store_svid, hint, jwt_svid_ttl, additional_attributes) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values![
            sql.now(),
            sql.now(),
            &entry.id,
            entry.spiffe_id.as_str(),
            entry.parent_id.as_str(),
            entry.x509_svid_ttl,
            entry.admin,
            entry.downstream,
            entry.expires_at,
            0_i64,
            entry.store_svid,
            &entry.hint,
            entry.jwt_svid_ttl,
            attributes,
        ],
    )?;
    insert_federation(sql, row, &entry.federates_with)?;
    insert_selectors(sql, row, &entry.selectors)?;
    insert_dns_names(sql, row, &entry.dns_names)?;
    entry_changed(sql, &entry.id)?;
    Ok(Created { entry: by_row(sql, row)?, existing: false })
}

/// Deletes a row with all that hangs on it, and writes the event.
pub(super) fn delete_row(sql: &Sql<'_>, row: i64, entry_id: &str) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM federated_registration_entries WHERE registered_entry_id = ?",
        "DELETE FROM selectors WHERE registered_entry_id = ?",
        "DELETE FROM dns_names WHERE registered_entry_id = ?",
        "DELETE FROM registered_entries WHERE id = ?",
    ] {
        sql.run(statement, values![row])?;
    }
    entry_changed(sql, entry_id)
}

const COLUMNS: &str = "e.id, e.entry_id, e.spiffe_id, e.parent_id, e.ttl, e.admin, e.downstream, e.expiry, \
     e.revision_number, e.store_svid, e.hint, e.created_at, e.jwt_svid_ttl, e.additional_attributes";

type Loaded = Vec<(i64, Result<Entry, StoreError>)>;

/// The entries under a condition, by row id: four statements, however many entries.
fn load(
    sql: &Sql<'_>,
    condition: &str,
    values: &[Value<'_>],
    bounds: Option<&Bounds>,
) -> Result<Loaded, StoreError> {
    let mut query = format!("SELECT {COLUMNS} FROM registered_entries e WHERE {condition}");
    let mut values = values.to_vec();
    if let Some(bounds) = bounds {
        query.push_str(" AND e.id > ?");
        values.push(Value::Int(bounds.after));
    }
    query.push_str(" ORDER BY e.id");
    if let Some(bounds) = bounds {
        query.push_str(" LIMIT ?");
        values.push(Value::Int(bounds.size.into()));
    }
    let mut rows = sql.rows(&query, &values, |row| Ok((row.int(0)?, read(row))))?;
    let ids: Vec<i64> = rows.iter().map(|(id, _)| *id).collect();
    if ids.is_empty() {
        return Ok(rows);
    }

    let (near, values) = Sql::near("registered_entry_id", &ids);
    let query = format!("SELECT registered_entry_id, type, value FROM selectors WHERE {near}");
    sql.rows(&query, &values, |row| {
        if let Some(entry) = entry_at(&mut rows, &ids, row.int(0)?) {
            entry.selectors.push(super::selector_at(row, 1)?);
        }
        Ok(())
    })?;
    let query = format!(
        "SELECT registered_entry_id, value FROM dns_names WHERE {near} ORDER BY registered_entry_id, id"
    );
    sql.rows(&query, &values, |row| {
        if let Some(entry) = entry_at(&mut rows, &ids, row.int(0)?) {
            entry.dns_names.push(row.text(1)?);
        }
        Ok(())
    })?;
    let query = format!(
        "SELECT registered_entry_id, trust_domain FROM federated_registration_entries \
         JOIN bundles ON bundles.id = bundle_id WHERE {near}"
    );
    let mut known: HashMap<String, TrustDomain> = HashMap::new();
    sql.rows(&query, &values, |row| {
        let name = row.str(1)?;
        let trust_domain = match known.get(name) {
            Some(trust_domain) => trust_domain.clone(),
            None => {
                let parsed =
                    TrustDomain::parse(name).map_err(|error| StoreError::bad_row("bundles", name, error))?;
                known.insert(name.to_owned(), parsed.clone());
                parsed
            }
        };
        if let Some(entry) = entry_at(&mut rows, &ids, row.int(0)?) {
            entry.federates_with.push(trust_domain);
        }
        Ok(())
    })?;
    for (_, entry) in &mut rows {
        if let Ok(entry) = entry {
            entry.selectors = sorted(std::mem::take(&mut entry.selectors));
            entry.federates_with.sort_unstable();
        }
    }
    Ok(rows)
}

fn entry_at<'r>(rows: &'r mut Loaded, ids: &[i64], id: i64) -> Option<&'r mut Entry> {
    let (_, entry) = rows.get_mut(ids.binary_search(&id).ok()?)?;
    entry.as_mut().ok()
}

fn read(row: &Row<'_>) -> Result<Entry, StoreError> {
    let id = row.text(1)?;
    let bad = |cause: &dyn std::fmt::Display| StoreError::bad_row("registered_entries", &id, cause);
    Ok(Entry {
        spiffe_id: SpiffeId::parse(row.str(2)?).map_err(|error| bad(&error))?,
        parent_id: SpiffeId::parse(row.str(3)?).map_err(|error| bad(&error))?,
        selectors: Vec::new(),
        x509_svid_ttl: row.int32(4).map_err(|error| bad(&error))?,
        jwt_svid_ttl: row.int32(12).map_err(|error| bad(&error))?,
        federates_with: Vec::new(),
        admin: row.bool(5)?,
        downstream: row.bool(6)?,
        expires_at: row.int(7)?,
        dns_names: Vec::new(),
        revision_number: row.int(8)?,
        store_svid: row.bool(9)?,
        hint: row.text(10)?,
        created_at: row.unix_rounded(11)?,
        additional_attributes: blob::read_attributes(row.blob(13)?).map_err(|error| bad(&error))?,
        id,
    })
}

/// Leaves out what is not readable, and says so.
fn readable(rows: Loaded) -> Vec<(i64, Entry)> {
    let entry_or_log = |(row, entry): (i64, Result<Entry, StoreError>)| match entry {
        Ok(entry) => Some((row, entry)),
        Err(error) => {
            tracing::error!(%error, "Passing over an entry that is not readable");
            None
        }
    };
    rows.into_iter().filter_map(entry_or_log).collect()
}

fn by_row(sql: &Sql<'_>, row: i64) -> Result<Entry, StoreError> {
    let found = load(sql, "e.id = ?", values![row], None)?.into_iter().next();
    found.ok_or_else(StoreError::not_found)?.1
}

fn similar(sql: &Sql<'_>, entry: &Entry) -> Result<Option<Entry>, StoreError> {
    let given = sorted(entry.selectors.clone());
    if given.is_empty() {
        return Ok(None);
    }
    let (selectors, of_selectors) = selector_condition(SelectorMatch::Exact, &given, sql.dialect());
    let mut values = vec![Value::from(entry.spiffe_id.as_str()), Value::from(entry.parent_id.as_str())];
    values.extend(of_selectors);
    let condition = format!("e.spiffe_id = ? AND {PARENT_OF_FOUND} = ? AND {selectors}");
    let found = load(sql, &condition, &values, None)?.into_iter().next();
    found.map(|(_, entry)| entry).transpose()
}

fn apply(sql: &Sql<'_>, id: &str, update: EntryUpdate) -> Result<Entry, StoreError> {
    let (row, entry) = load(sql, "e.entry_id = ?", values![id], None)?
        .into_iter()
        .next()
        .ok_or_else(StoreError::not_found)?;
    let old = entry?;
    let attributes = match update.additional_attributes {
        Some(Some(mut new)) => {
            if let (true, Some(old)) = (new.unknown.is_empty(), &old.additional_attributes) {
                new.unknown.clone_from(&old.unknown);
            }
            Some(new)
        }
        Some(None) => None,
        None => old.additional_attributes,
    };
    let attributes = attributes.as_ref().map(attributes_blob).transpose()?;

    let store_svid = update.store_svid.unwrap_or(old.store_svid);
    let selectors = update.selectors.as_deref().unwrap_or(&old.selectors);
    if store_svid && selectors.windows(2).any(|pair| matches!(pair, [a, b] if a.kind != b.kind)) {
        return Err(StoreError::InvalidArgument(
            "datastore-validation: invalid registration entry: selector types must be the same when store SVID is \
             enabled"
                .to_owned(),
        ));
    }

    sql.run(
        "UPDATE registered_entries SET updated_at = ?, spiffe_id = ?, parent_id = ?, ttl = ?, admin = ?, \
         downstream = ?, expiry = ?, revision_number = ?, store_svid = ?, hint = ?, jwt_svid_ttl = ?, \
         additional_attributes = ? WHERE id = ?",
        values![
            sql.now(),
            update.spiffe_id.as_ref().unwrap_or(&old.spiffe_id).as_str(),
            update.parent_id.as_ref().unwrap_or(&old.parent_id).as_str(),
            update.x509_svid_ttl.unwrap_or(old.x509_svid_ttl),
            update.admin.unwrap_or(old.admin),
            update.downstream.unwrap_or(old.downstream),
            update.expires_at.unwrap_or(old.expires_at),
            old.revision_number.saturating_add(1),
            store_svid,
            update.hint.as_ref().unwrap_or(&old.hint),
            update.jwt_svid_ttl.unwrap_or(old.jwt_svid_ttl),
            attributes,
            row,
        ],
    )?;
    if let Some(selectors) = &update.selectors {
        sql.run("DELETE FROM selectors WHERE registered_entry_id = ?", values![row])?;
        insert_selectors(sql, row, selectors)?;
    }
    if let Some(dns_names) = &update.dns_names {
        sql.run("DELETE FROM dns_names WHERE registered_entry_id = ?", values![row])?;
        insert_dns_names(sql, row, dns_names)?;
    }
    if let Some(federates_with) = &update.federates_with {
        sql.run("DELETE FROM federated_registration_entries WHERE registered_entry_id = ?", values![row])?;
        insert_federation(sql, row, federates_with)?;
    }
    entry_changed(sql, id)?;
    by_row(sql, row)
}

fn insert_selectors(sql: &Sql<'_>, row: i64, selectors: &[Selector]) -> Result<(), StoreError> {
    let rows = selectors
        .iter()
        .map(|selector| values![sql.now(), sql.now(), row, &selector.kind, &selector.value].to_vec());
    let columns = "INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value)";
    sql.insert_rows(columns, &rows.collect::<Vec<_>>())
}

fn insert_dns_names(sql: &Sql<'_>, row: i64, names: &[String]) -> Result<(), StoreError> {
    let rows = names.iter().map(|name| values![sql.now(), sql.now(), row, name].to_vec());
    let columns = "INSERT INTO dns_names (created_at, updated_at, registered_entry_id, value)";
    sql.insert_rows(columns, &rows.collect::<Vec<_>>())
}

fn insert_federation(sql: &Sql<'_>, row: i64, trust_domains: &[TrustDomain]) -> Result<(), StoreError> {
    for trust_domain in sorted(trust_domains.to_vec()) {
        let bundle = sql.row(
            "SELECT id FROM bundles WHERE trust_domain = ?",
            values![trust_domain.id().as_str()],
            |row| row.int(0),
        )?;
        let Some(bundle) = bundle else {
            return Err(StoreError::UnknownBundle { trust_domain: trust_domain.name().to_owned() });
        };
        sql.run(
            "INSERT INTO federated_registration_entries (bundle_id, registered_entry_id) VALUES (?, ?)",
            values![bundle, row],
        )?;
    }
    Ok(())
}

fn attributes_blob(attributes: &AdditionalAttributes) -> Result<Vec<u8>, StoreError> {
    let blob = blob::write_attributes(attributes);
    if blob.len() > MAX_ATTRIBUTES {
        return Err(StoreError::InvalidArgument(format!(
            "datastore-validation: invalid registration entry: additional attributes size exceeds the maximum allowed \
             size of {MAX_ATTRIBUTES} bytes"
        )));
    }
    Ok(blob)
}
