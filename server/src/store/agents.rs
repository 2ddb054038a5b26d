//! Attested nodes and their selectors: tables `attested_node_entries`, `node_resolver_map_entries`.

use finial_identity::selector::{Selector, SelectorMatch, sorted};
use finial_identity::spiffe_id::SpiffeId;

use super::dialect::{Dialect, Row, Sql, Value, values};
use super::entries::{self, Scan};
use super::events::node_changed;
use super::filters::{Relation, match_condition, selector_values};
use super::{Bounds, Page, PageRequest, Store, StoreError, selector_at};

/// Operations on nodes. From [`Store::agents`].
#[derive(Clone, Copy, Debug)]
pub struct Agents<'s> {
    pub(super) store: &'s Store,
}

/// An agent that was attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestedNode {
    pub spiffe_id: SpiffeId,
    /// The node attestor's name.
    pub attestation_type: String,
    /// Of the SVID in use, in decimal. Empty means that the agent is banned.
    pub serial_number: String,
    /// Of the SVID in use, unix seconds.
    pub expires_at: i64,
    /// Of an SVID that was handed out at a renewal and not used yet; empty if there is none.
    pub new_serial_number: String,
    /// Unix seconds; 0 if there is none.
    pub new_expires_at: i64,
    /// The agent attests again instead of having its SVID renewed.
    pub can_reattest: bool,
    pub agent_version: String,
    /// Sorted and without repetitions.
    pub selectors: Vec<Selector>,
}

impl AttestedNode {
    /// Whether the agent is banned: its row is kept, without a serial number.
    pub fn is_banned(&self) -> bool {
        self.serial_number.is_empty()
    }
}

/// New values of a node's fields; `None` leaves the field as it is.
#[derive(Clone, Debug, Default)]
pub struct NodeUpdate {
    pub serial_number: Option<String>,
    pub expires_at: Option<i64>,
    pub new_serial_number: Option<String>,
    /// 0 removes it.
    pub new_expires_at: Option<i64>,
    pub can_reattest: Option<bool>,
    pub agent_version: Option<String>,
}

/// What [`Agents::record_attestation`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    Created,
    /// The node was there already and has attested again.
    Updated,
    /// The node was there already, and what it brought is good for the first time only; nothing was changed.
    NotFirst,
    /// The node is banned; nothing was changed.
    Banned,
}

/// Which nodes to list: all that pass every filter that is set.
#[derive(Clone, Debug, Default)]
pub struct ListAgents {
    /// An empty type filters nothing.
    pub attestation_type: Option<String>,
    pub banned: Option<bool>,
    pub can_reattest: Option<bool>,
    pub selectors: Option<(SelectorMatch, Vec<Selector>)>,
    /// Unix seconds.
    pub expires_before: Option<i64>,
    pub page: Option<PageRequest>,
}

impl Agents<'_> {
    /// Records a successful attestation in one step: the selectors are replaced; a new node is created; one that is
    /// there gets the serial number, the expiry and `can_reattest`, and loses a pending SVID, unless `first_use_only`. Its
    /// attestation type and version stay.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`] where the database takes the ID for another node's.
    pub async fn record_attestation(
        &self,
        node: AttestedNode,
        first_use_only: bool,
    ) -> Result<Recorded, StoreError> {
        self.store
            .counted(&["node.create", "node.selectors.set"])
            .write(move |sql| {
                let id = node.spiffe_id.as_str();
                let present = sql.row(
                    "SELECT id, COALESCE(serial_number, '') = '', spiffe_id FROM attested_node_entries \
                     WHERE spiffe_id = ?",
                    values![id],
                    |row| Ok((row.int(0)?, row.bool(1)?, row.text(2)?)),
                )?;
                let recorded = match present {
                    // MySQL compares without regard to case; the other node keeps its SVID and its selectors.
                    Some((_, _, known)) if known != id => {
                        let text = format!("{known} is known, and the database cannot tell {id} from it");
                        return Err(StoreError::AlreadyExists(text));
                    }
                    Some(_) if first_use_only => return Ok(Recorded::NotFirst),
                    Some((_, true, _)) => return Ok(Recorded::Banned),
                    Some((row, false, _)) => {
                        let update = NodeUpdate {
                            serial_number: Some(node.serial_number.clone()),
                            expires_at: Some(node.expires_at),
                            new_serial_number: Some(String::new()),
                            new_expires_at: Some(0),
                            can_reattest: Some(node.can_reattest),
                            agent_version: None,
                        };
                        apply(sql, row, &update)?;
                        Recorded::Updated
                    }
                    None => {
                        insert(sql, &node)?;
                        Recorded::Created
                    }
                };
                replace_selectors(sql, id, &node.selectors)?;
                node_changed(sql, id)?;
                Ok(recorded)
            })
            .await
    }

    /// Stores a new node with its selectors.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`].
    pub async fn create(&self, node: AttestedNode) -> Result<AttestedNode, StoreError> {
        self.store
            .counted(&["node.create"])
            .write(move |sql| {
                insert(sql, &node)?;
                replace_selectors(sql, node.spiffe_id.as_str(), &node.selectors)?;
                node_changed(sql, node.spiffe_id.as_str())?;
                required(sql, node.spiffe_id.as_str())
            })
            .await
    }

    /// Changes fields of a node.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn update(&self, id: &SpiffeId, update: NodeUpdate) -> Result<AttestedNode, StoreError> {
        let id = id.clone();
        self.store
            .counted(&["node.update"])
            .write(move |sql| {
                let row = row_of(sql, id.as_str())?;
                apply(sql, row, &update)?;
                node_changed(sql, id.as_str())?;
                required(sql, id.as_str())
            })
            .await
    }

    /// Replaces a node's selectors.
    pub async fn set_selectors(&self, id: &SpiffeId, selectors: Vec<Selector>) -> Result<(), StoreError> {
        let id = id.clone();
        self.store
            .counted(&["node.selectors.set"])
            .write(move |sql| {
                replace_selectors(sql, id.as_str(), &selectors)?;
                node_changed(sql, id.as_str())
            })
            .await
    }

    /// Keeps the SVID of a renewal as pending; one that was pending before is forgotten. The node as it is now.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn set_pending(
        &self,
        id: &SpiffeId,
        serial_number: impl Into<String>,
        expires_at: i64,
    ) -> Result<AttestedNode, StoreError> {
        let update = NodeUpdate {
            new_serial_number: Some(serial_number.into()),
            new_expires_at: Some(expires_at),
            ..NodeUpdate::default()
        };
        self.update(id, update).await
    }

    /// Makes the pending SVID the one in use, if `serial_number` is its serial number; the node as it is now. `None` if
    /// it is not pending (any more), or there is no such node.
    pub async fn promote(
        &self,
        id: &SpiffeId,
        serial_number: impl Into<String>,
    ) -> Result<Option<AttestedNode>, StoreError> {
        let (id, serial_number) = (id.clone(), serial_number.into());
        self.store
            .counted(&["node.update"])
            .write(move |sql| {
                if serial_number.is_empty() {
                    return Ok(None);
                }
                let promoted = sql.run(
                    "UPDATE attested_node_entries SET updated_at = ?, serial_number = new_serial_number, \
                     expires_at = new_expires_at, new_serial_number = '', new_expires_at = NULL \
                     WHERE spiffe_id = ? AND new_serial_number = ? AND serial_number <> ''",
                    values![sql.now(), id.as_str(), &serial_number],
                )?;
                if promoted == 0 {
                    return Ok(None);
                }
                node_changed(sql, id.as_str())?;
                required(sql, id.as_str()).map(Some)
            })
            .await
    }

    /// Bans a node: both serial numbers are emptied, so no SVID of it is valid, and it cannot attest again.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn ban(&self, id: &SpiffeId) -> Result<(), StoreError> {
        let update = NodeUpdate {
            serial_number: Some(String::new()),
            new_serial_number: Some(String::new()),
            ..NodeUpdate::default()
        };
        self.update(id, update).await.map(drop)
    }

    /// Deletes a node and its selectors; for one that used a join token, also the entry that the token came with.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn delete(&self, id: &SpiffeId) -> Result<(), StoreError> {
        let id = id.clone();
        self.store
            .counted(&["node.delete"])
            .write(move |sql| {
                let row = row_of(sql, id.as_str())?;
                delete_row(sql, row, id.as_str())
            })
            .await
    }

    /// The node with this ID.
    pub async fn get(&self, id: &SpiffeId) -> Result<Option<AttestedNode>, StoreError> {
        let id = id.clone();
        self.store
            .counted(&["node.fetch", "node.selectors.fetch"])
            .read(move |sql| find(sql, id.as_str()))
            .await
    }

    /// The nodes with these IDs, in order of creation. Missing ones are left out.
    pub async fn by_ids(&self, ids: Vec<SpiffeId>) -> Result<Vec<AttestedNode>, StoreError> {
        self.store
            .counted(&["node.fetch", "node.selectors.fetch"])
            .read(move |sql| {
                let mut rows = Vec::new();
                for ids in ids.chunks(1000) {
                    let condition = format!("n.spiffe_id IN {}", Sql::set(ids.len()));
                    let values: Vec<_> = ids.iter().map(|id| Value::from(id.as_str())).collect();
                    rows.extend(readable(load(sql, &condition, &values, None)?));
                }
                rows.sort_unstable_by_key(|(id, _)| *id);
                Ok(rows.into_iter().map(|(_, node)| node).collect())
            })
            .await
    }

    /// The nodes that pass the filters, in order of creation. Rows that are not readable are left out and logged.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] as for [`entries::Entries::list`].
    pub async fn list(&self, list: &ListAgents) -> Result<Page<AttestedNode>, StoreError> {
        let bounds = Bounds::of(list.page.as_ref())?;
        let (condition, values) = filter(list, self.store.dialect())?;
        self.store
            .counted(&["node.list"])
            .read(move |sql| {
                let rows = readable(load(sql, &condition, &values, bounds.as_ref())?);
                Ok(Page::new(rows, bounds.as_ref()))
            })
            .await
    }

    /// How many nodes pass the filters. The page is not looked at.
    pub async fn count(&self, list: &ListAgents) -> Result<u64, StoreError> {
        let (condition, values) = filter(list, self.store.dialect())?;
        self.store
            .counted(&["node.count"])
            .read(move |sql| {
                let query = format!("SELECT COUNT(*) FROM attested_node_entries n WHERE {condition}");
                Ok(sql.number(&query, &values)?.unsigned_abs())
            })
            .await
    }

    /// At most `limit` rows after row `after` (0 at the start), for a whole reading in pieces.
    pub async fn scan(&self, after: i64, limit: u32) -> Result<Scan<AttestedNode>, StoreError> {
        self.store
            .counted(&["node.list", "node.selectors.list"])
            .read(move |sql| {
                let bounds = Bounds { after, size: limit.max(1) };
                let rows = load(sql, "0 = 0", &[], Some(&bounds))?;
                let next =
                    (rows.len() == bounds.size as usize).then(|| rows.last().map(|(id, _)| *id)).flatten();
                Ok(Scan { items: readable(rows).into_iter().map(|(_, node)| node).collect(), next })
            })
            .await
    }

    /// Deletes up to `limit` nodes whose SVID expired before `expired_before` (unix seconds), as [`Agents::delete`]
    /// does; their IDs as stored. Banned nodes stay, and those that cannot attest again unless `include_non_reattestable`.
    pub async fn prune(
        &self,
        expired_before: i64,
        include_non_reattestable: bool,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        self.store
            .counted(&["node.prune"])
            .write(move |sql| {
                let earlier = sql.dialect().earlier_than("expires_at");
                let reattestable = if include_non_reattestable { "0 = 0" } else { "can_reattest = true" };
                let query = format!(
                    "SELECT id, spiffe_id FROM attested_node_entries \
                     WHERE {earlier} AND serial_number <> '' AND {reattestable} LIMIT ?"
                );
                let mut values = sql.dialect().earlier(expired_before);
                values.push(Value::Int(limit.into()));
                let expired = sql.rows(&query, &values, |row| Ok((row.int(0)?, row.text(1)?)))?;
                for (row, id) in &expired {
                    delete_row(sql, *row, id)?;
                }
                tracing::info!(count = expired.len(), "Pruned expired agents");
                Ok(expired.into_iter().map(|(_, id)| id).collect())
            })
            .await
    }
}

const COLUMNS: &str = "n.id, n.spiffe_id, n.data_type, n.serial_number, n.expires_at, n.new_serial_number, \
     n.new_expires_at, n.can_reattest, n.agent_version";

type Loaded = Vec<(i64, Result<AttestedNode, StoreError>)>;

/// The nodes under a condition, by row id: two statements, however many nodes.
fn load(
    sql: &Sql<'_>,
    condition: &str,
    values: &[Value<'_>],
    bounds: Option<&Bounds>,
) -> Result<Loaded, StoreError> {
    let mut query = format!("SELECT {COLUMNS} FROM attested_node_entries n WHERE {condition}");
    let mut values = values.to_vec();
    if let Some(bounds) = bounds {
        query.push_str(" AND n.id > ?");
        values.push(Value::Int(bounds.after));
    }
    query.push_str(" ORDER BY n.id");
    if let Some(bounds) = bounds {
        query.push_str(" LIMIT ?");
        values.push(Value::Int(bounds.size.into()));
    }
    let mut rows = sql.rows(&query, &values, |row| Ok((row.int(0)?, read(row))))?;
    let ids: Vec<i64> = rows.iter().map(|(id, _)| *id).collect();
    if ids.is_empty() {
        return Ok(rows);
    }
    let (near, values) = Sql::near("n.id", &ids);
    let query = format!(
        "SELECT n.id, s.type, s.value FROM attested_node_entries n \
         JOIN node_resolver_map_entries s ON s.spiffe_id = n.spiffe_id WHERE {near}"
    );
    sql.rows(&query, &values, |row| {
        let at = ids.binary_search(&row.int(0)?).ok();
        if let Some((_, Ok(node))) = at.and_then(|at| rows.get_mut(at)) {
            node.selectors.push(selector_at(row, 1)?);
        }
        Ok(())
    })?;
    for (_, node) in &mut rows {
        if let Ok(node) = node {
            node.selectors = sorted(std::mem::take(&mut node.selectors));
        }
    }
    Ok(rows)
}

fn read(row: &Row<'_>) -> Result<AttestedNode, StoreError> {
    let id = row.str(1)?;
    Ok(AttestedNode {
        spiffe_id: SpiffeId::parse(id)
            .map_err(|error| StoreError::bad_row("attested_node_entries", id, error))?,
        attestation_type: row.text(2)?,
        serial_number: row.text(3)?,
        expires_at: row.unix(4)?,
        new_serial_number: row.text(5)?,
        new_expires_at: row.unix(6)?,
        can_reattest: row.bool(7)?,
        agent_version: row.text(8)?,
        selectors: Vec::new(),
    })
}

/// Leaves out what is not readable, and says so.
fn readable(rows: Loaded) -> Vec<(i64, AttestedNode)> {
    let node_or_log = |(row, node): (i64, Result<AttestedNode, StoreError>)| match node {
        Ok(node) => Some((row, node)),
        Err(error) => {
            tracing::error!(%error, "Passing over a node that is not readable");
            None
        }
    };
    rows.into_iter().filter_map(node_or_log).collect()
}

fn find(sql: &Sql<'_>, id: &str) -> Result<Option<AttestedNode>, StoreError> {
    let found = load(sql, "n.spiffe_id = ?", values![id], None)?.into_iter().next();
    let found = found.map(|(_, node)| node).transpose()?;
    // MySQL compares without regard to case; an agent's ID is not to be taken for another's.
    Ok(found.filter(|node| node.spiffe_id.as_str() == id))
}

fn required(sql: &Sql<'_>, id: &str) -> Result<AttestedNode, StoreError> {
    find(sql, id)?.ok_or_else(StoreError::not_found)
}

fn row_of(sql: &Sql<'_>, id: &str) -> Result<i64, StoreError> {
    let query = "SELECT id, spiffe_id FROM attested_node_entries WHERE spiffe_id = ?";
    let row = sql.row(query, values![id], |row| Ok((row.int(0)?, row.text(1)?)))?;
    // See `find`.
    row.filter(|(_, known)| known == id).map(|(row, _)| row).ok_or_else(StoreError::not_found)
}

fn insert(sql: &Sql<'_>, node: &AttestedNode) -> Result<(), StoreError> {
    sql.insert(
        "INSERT INTO attested_node_entries (created_at, updated_at, spiffe_id, data_type, serial_number, \
         expires_at, new_serial_number, new_expires_at, can_reattest, agent_version) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values![
            sql.now(),
            sql.now(),
            node.spiffe_id.as_str(),
            &node.attestation_type,
            &node.serial_number,
            Value::unix_time(node.expires_at),
            &node.new_serial_number,
            time_or_null(node.new_expires_at),
            node.can_reattest,
            &node.agent_version,
        ],
    )?;
    Ok(())
}

fn apply(sql: &Sql<'_>, row: i64, update: &NodeUpdate) -> Result<(), StoreError> {
    let mut assignments = vec!["updated_at = ?"];
    let mut values = vec![sql.now()];
    let mut set = |assignment, value: Option<Value<'static>>| {
        if let Some(value) = value {
            assignments.push(assignment);
            values.push(value);
        }
    };
    set("serial_number = ?", update.serial_number.clone().map(Value::from));
    set("expires_at = ?", update.expires_at.map(Value::unix_time));
    set("new_serial_number = ?", update.new_serial_number.clone().map(Value::from));
    set("new_expires_at = ?", update.new_expires_at.map(time_or_null));
    set("can_reattest = ?", update.can_reattest.map(Value::from));
    set("agent_version = ?", update.agent_version.clone().map(Value::from));
    values.push(Value::Int(row));
    sql.run(&format!("UPDATE attested_node_entries SET {} WHERE id = ?", assignments.join(", ")), &values)?;
    Ok(())
}

fn time_or_null(unix: i64) -> Value<'static> {
    match unix {
        0 => Value::Null,
        unix => Value::unix_time(unix),
    }
}

fn replace_selectors(sql: &Sql<'_>, id: &str, selectors: &[Selector]) -> Result<(), StoreError> {
    sql.run("DELETE FROM node_resolver_map_entries WHERE spiffe_id = ?", values![id])?;
    let selectors = sorted(selectors.to_vec());
    let rows = selectors
        .iter()
        .map(|selector| values![sql.now(), sql.now(), id, &selector.kind, &selector.value].to_vec());
    let columns = "INSERT INTO node_resolver_map_entries (created_at, updated_at, spiffe_id, type, value)";
    sql.insert_rows(columns, &rows.collect::<Vec<_>>())
}

fn delete_row(sql: &Sql<'_>, row: i64, id: &str) -> Result<(), StoreError> {
    let kind =
        sql.row("SELECT data_type FROM attested_node_entries WHERE id = ?", values![row], |row| row.text(0))?;
    if kind.as_deref() == Some("join_token") {
        delete_alias(sql, id)?;
    }
    sql.run("DELETE FROM node_resolver_map_entries WHERE spiffe_id = ?", values![id])?;
    sql.run("DELETE FROM attested_node_entries WHERE id = ?", values![row])?;
    node_changed(sql, id)
}

/// Deletes the entry that a join token with an agent ID came with: parented by the agent, with the one selector
/// `spiffe_id:<agent>`. Other entries of that parent are an operator's.
fn delete_alias(sql: &Sql<'_>, id: &str) -> Result<(), StoreError> {
    let aliases = sql.rows(
        "SELECT e.id, e.entry_id, e.spiffe_id FROM registered_entries e \
         JOIN selectors s ON s.registered_entry_id = e.id \
         WHERE e.parent_id = ? AND s.type = 'spiffe_id' AND s.value = ? \
         AND (SELECT COUNT(*) FROM selectors o WHERE o.registered_entry_id = e.id) = 1",
        values![id, id],
        |row| Ok((row.int(0)?, row.text(1)?, row.text(2)?)),
    )?;
    for (row, entry_id, spiffe_id) in aliases {
        entries::delete_row(sql, row, &entry_id)?;
        tracing::info!(
            spiffe_id,
            parent_id = id,
            entry_id,
            "Cascade-deleted registration entry on attested node deletion"
        );
    }
    Ok(())
}

/// The condition of a list, on `attested_node_entries n`, and its values.
fn filter(list: &ListAgents, dialect: Dialect) -> Result<(String, Vec<Value<'static>>), StoreError> {
    let mut conditions = vec!["0 = 0".to_owned()];
    let mut values = Vec::new();
    if let Some(kind) = list.attestation_type.as_ref().filter(|kind| !kind.is_empty()) {
        conditions.push("n.data_type = ?".to_owned());
        values.push(Value::from(kind.clone()));
    }
    match list.banned {
        Some(true) => conditions.push("n.serial_number = ''".to_owned()),
        Some(false) => conditions.push("n.serial_number <> ''".to_owned()),
        None => {}
    }
    if let Some(can_reattest) = list.can_reattest {
        conditions.push("n.can_reattest = ?".to_owned());
        values.push(Value::Bool(can_reattest));
    }
    if let Some(expires_before) = list.expires_before {
        conditions.push(dialect.earlier_than("n.expires_at"));
        values.extend(dialect.earlier(expires_before));
    }
    if let Some((mode, selectors)) = &list.selectors {
        let given = sorted(selectors.clone());
        if given.is_empty() {
            return Err(StoreError::InvalidArgument("cannot list by empty selectors set".to_owned()));
        }
        let relation = Relation {
            owner: "n.spiffe_id",
            key: "node_resolver_map_entries.spiffe_id",
            from: "node_resolver_map_entries",
            member: "(type, value)",
            set: dialect.pairs(given.len()),
        };
        conditions.push(match_condition(*mode, &relation, given.len()));
        values.extend(selector_values(*mode, &given));
    }
    Ok((conditions.join(" AND "), values))
}
