//! The schema: what a database must look like, how a new one is made and an older one brought up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use finial_identity::trust_domain::TrustDomain;
use rusqlite::Connection;

use super::StoreError;
use super::dialect::{self, Dialect, Sql, values};

/// The version of SPIRE's schema that this release reads and writes.
pub const SCHEMA_VERSION: i64 = 25;

/// The SPIRE release that we are compatible with, as it stands in `migrations.code_version`.
pub const CODE_VERSION: &str = "1.15.3";

/// The oldest schema that [`bring_up`] migrates.
const OLDEST_SCHEMA_VERSION: i64 = 23;

/// The version of Finial's own tables.
const OWN_VERSION: i64 = 1;

/// What SPIRE looks at to tell whose database it is.
const ENTRIES_LOOKED_AT: i64 = 20;

/// Columns that were added after the oldest schema: the version that has them first, table, column, type.
const ADDED_COLUMNS: &[(i64, &str, &str, Kind)] = &[
    (24, "attested_node_entries", "agent_version", Kind::Text),
    (25, "registered_entries", "additional_attributes", Kind::Bytes),
];

enum Kind {
    Text,
    Bytes,
}

impl Kind {
    fn name(&self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            (Kind::Text, Dialect::Postgres) => "text",
            (Kind::Text, Dialect::Sqlite | Dialect::MySql) => "varchar(255)",
            (Kind::Bytes, Dialect::Sqlite) => "blob",
            (Kind::Bytes, Dialect::Postgres) => "bytea",
            (Kind::Bytes, Dialect::MySql) => "longblob",
        }
    }
}

/// Tells whether this release can serve the database. Writes nothing.
pub(super) fn inspect(
    sql: &Sql<'_>,
    trust_domain: &TrustDomain,
    disable_migration: bool,
) -> Result<(), StoreError> {
    let found = Found::in_database(sql)?;
    if found.version != 0 && found.version < SCHEMA_VERSION && disable_migration {
        return Err(StoreError::MigrationDisabled { found: found.version, needed: SCHEMA_VERSION });
    }
    if found.version != 0 {
        check_entries(sql, trust_domain)?;
    }
    if found.own_version != 0 {
        check_meta(sql, trust_domain)?;
    }
    Ok(())
}

/// Creates what is missing and brings an older schema up. Refuses what [`inspect`] refuses.
pub(super) fn bring_up(
    sql: &Sql<'_>,
    trust_domain: &TrustDomain,
    disable_migration: bool,
) -> Result<(), StoreError> {
    inspect(sql, trust_domain, disable_migration)?;
    let found = Found::in_database(sql)?;
    match found.version {
        ahead if ahead > SCHEMA_VERSION => {}
        0 => {
            tracing::info!("Initializing new database");
            sql.script(match sql.dialect() {
                Dialect::Sqlite => SQLITE_TABLES,
                Dialect::Postgres => POSTGRES_TABLES,
                Dialect::MySql => MYSQL_TABLES,
            })?;
            sql.insert(
                "INSERT INTO migrations (created_at, updated_at, version, code_version) VALUES (?, ?, ?, ?)",
                values![sql.now(), sql.now(), SCHEMA_VERSION, CODE_VERSION],
            )?;
        }
        version => {
            for (added_in, table, column, kind) in ADDED_COLUMNS {
                if version < *added_in {
                    tracing::info!(version_info = added_in - 1, "Migrating version");
                    add_column(sql, table, column, kind)?;
                }
            }
            // An operator who goes back to SPIRE finds the version of whoever is newer.
            if version < SCHEMA_VERSION || release(CODE_VERSION) > release(&found.code_version) {
                sql.run(
                    "UPDATE migrations SET updated_at = ?, version = ?, code_version = ?",
                    values![sql.now(), SCHEMA_VERSION, CODE_VERSION],
                )?;
            }
        }
    }
    if found.own_version == 0 {
        sql.script(match sql.dialect() {
            Dialect::Sqlite => SQLITE_OWN_TABLES,
            Dialect::Postgres => POSTGRES_OWN_TABLES,
            Dialect::MySql => MYSQL_OWN_TABLES,
        })?;
        set_meta(sql, "schema_version", &OWN_VERSION.to_string())?;
        set_meta(sql, "trust_domain", trust_domain.name())?;
    }
    Ok(())
}

fn add_column(sql: &Sql<'_>, table: &str, column: &str, kind: &Kind) -> Result<(), StoreError> {
    let kind = kind.name(sql.dialect());
    match sql.dialect() {
        Dialect::Sqlite => sql.script(&format!("ALTER TABLE \"{table}\" ADD \"{column}\" {kind}")),
        Dialect::Postgres => sql.script(&format!("ALTER TABLE {table} ADD {column} {kind}")),
        // There it cannot be undone, so a migration that was interrupted may have added it.
        Dialect::MySql if columns(sql)?.get(table).is_some_and(|present| present.contains(column)) => Ok(()),
        Dialect::MySql => sql.script(&format!("ALTER TABLE {table} ADD {column} {kind}")),
    }
}

/// A value of `finial_meta`.
pub(super) fn meta(sql: &Sql<'_>, name: &str) -> Result<Option<String>, StoreError> {
    sql.row("SELECT value FROM finial_meta WHERE name = ?", values![name], |row| row.text(0))
}

/// Sets a value of `finial_meta`.
pub(super) fn set_meta(sql: &Sql<'_>, name: &str, value: &str) -> Result<(), StoreError> {
    if sql.run("UPDATE finial_meta SET value = ? WHERE name = ?", values![value, name])? == 0 {
        sql.run("INSERT INTO finial_meta (name, value) VALUES (?, ?)", values![name, value])?;
    }
    Ok(())
}

/// The versions of a database; 0 where there are no such tables.
struct Found {
    version: i64,
    code_version: String,
    own_version: i64,
}

impl Found {
    fn in_database(sql: &Sql<'_>) -> Result<Found, StoreError> {
        let columns = columns(sql)?;
        let own_version = match columns.contains_key("finial_meta") {
            true => own_version(sql)?,
            false => 0,
        };
        if !columns.contains_key("migrations") {
            let reference = reference_columns()?;
            if let Some(table) = columns.keys().find(|table| reference.contains_key(*table)) {
                let detail = format!("table {table} is there, table migrations is not");
                return Err(StoreError::HalfMigrated { detail });
            }
            return Ok(Found { version: 0, code_version: String::new(), own_version });
        }
        let rows =
            sql.rows("SELECT version, COALESCE(code_version, '') FROM migrations ORDER BY id", &[], |row| {
                Ok((row.int(0)?, row.text(1)?))
            })?;
        let Some((version, code_version)) = rows.into_iter().next() else {
            return Err(StoreError::HalfMigrated { detail: "table migrations is empty".to_owned() });
        };
        if version > SCHEMA_VERSION {
            // SPIRE promises that a release works on the schema of the next minor one, for upgrades server by server. Who
            // else has made a newer schema is unknown.
            if !is_next_minor(&code_version) {
                return Err(StoreError::NewerSchema {
                    owner: "SPIRE",
                    found: version,
                    known: SCHEMA_VERSION,
                });
            }
            tracing::warn!(
                schema = version,
                version_info = code_version,
                "DB schema is ahead of code version, upgrading SPIRE Server is recommended"
            );
        }
        if version < OLDEST_SCHEMA_VERSION {
            return Err(StoreError::OlderSchema { found: version });
        }
        if let Some(missing) = missing(&columns, &reference_columns()?, version) {
            let detail = format!("schema version {version} has {missing}, the database has not");
            return Err(StoreError::HalfMigrated { detail });
        }
        Ok(Found { version, code_version, own_version })
    }
}

fn own_version(sql: &Sql<'_>) -> Result<i64, StoreError> {
    let version = meta(sql, "schema_version")?.and_then(|version| version.parse().ok());
    match version {
        Some(found) if found > OWN_VERSION => {
            Err(StoreError::NewerSchema { owner: "Finial", found, known: OWN_VERSION })
        }
        Some(found @ 1..) => Ok(found),
        _ => Err(StoreError::HalfMigrated { detail: "table finial_meta names no schema version".to_owned() }),
    }
}

/// A table or column of `version` that is not in the database.
fn missing(columns: &Columns, reference: &Columns, version: i64) -> Option<String> {
    for (table, expected) in reference {
        let Some(present) = columns.get(table) else {
            return Some(format!("table {table}"));
        };
        for column in expected {
            let later = ADDED_COLUMNS.iter().any(|(added_in, in_table, added, _)| {
                in_table == table && added == column && version < *added_in
            });
            if !later && !present.contains(column) {
                return Some(format!("column {table}.{column}"));
            }
        }
    }
    None
}

type Columns = BTreeMap<String, BTreeSet<String>>;

/// The columns of every table in the database.
fn columns(sql: &Sql<'_>) -> Result<Columns, StoreError> {
    let query = match sql.dialect() {
        Dialect::Sqlite => {
            "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table'"
        }
        Dialect::Postgres => {
            "SELECT c.relname::text, a.attname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
             WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND pg_table_is_visible(c.oid) \
             AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
        }
        Dialect::MySql => {
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = DATABASE()"
        }
    };
    let pairs = sql.rows(query, &[], |row| Ok((row.text(0)?, row.text(1)?)))?;
    let mut columns = Columns::new();
    for (table, column) in pairs {
        columns.entry(table).or_default().insert(column);
    }
    Ok(columns)
}

/// The columns of SPIRE's schema; they have the same names on every engine.
fn reference_columns() -> Result<Columns, StoreError> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch(SQLITE_TABLES)?;
    let mut columns =
        columns(&Sql::new(dialect::Connection::Sqlite(&connection), SystemTime::UNIX_EPOCH, false))?;
    columns.remove("sqlite_sequence");
    Ok(columns)
}

fn check_entries(sql: &Sql<'_>, trust_domain: &TrustDomain) -> Result<(), StoreError> {
    let ids = sql.rows(
        "SELECT spiffe_id FROM registered_entries ORDER BY id LIMIT ?",
        values![ENTRIES_LOOKED_AT],
        |row| row.text(0),
    )?;
    let foreign = ids.iter().find_map(|id| {
        let rest = id.strip_prefix("spiffe://")?;
        let name = rest.split('/').next()?;
        (name != trust_domain.name()).then(|| name.to_owned())
    });
    foreign.map_or(Ok(()), |found| Err(wrong_trust_domain(found, trust_domain)))
}

fn check_meta(sql: &Sql<'_>, trust_domain: &TrustDomain) -> Result<(), StoreError> {
    match meta(sql, "trust_domain")? {
        Some(found) if found != trust_domain.name() => Err(wrong_trust_domain(found, trust_domain)),
        _ => Ok(()),
    }
}

fn wrong_trust_domain(found: String, trust_domain: &TrustDomain) -> StoreError {
    StoreError::WrongTrustDomain { found, configured: trust_domain.name().to_owned() }
}

/// Whether a release is of the minor version after that of [`CODE_VERSION`].
fn is_next_minor(code_version: &str) -> bool {
    match (release(code_version), release(CODE_VERSION)) {
        (Some((major, minor, ..)), Some((our_major, our_minor, ..))) => {
            major == our_major && minor == our_minor + 1
        }
        _ => false,
    }
}

/// A release for comparison: its numbers, then whether it is final (`1.15.3-dev` comes before `1.15.3`). What is not a
/// release comes before all.
fn release(text: &str) -> Option<(u64, u64, u64, bool)> {
    let (numbers, last) = match text.split_once('-') {
        Some((numbers, _)) => (numbers, false),
        None => (text.split('+').next()?, true),
    };
    let mut numbers = numbers.splitn(3, '.').map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next()?, last))
}

/// SPIRE's schema 25, as its object mapper makes it on each engine.
const SQLITE_TABLES: &str = include_str!("schema/sqlite.sql");
const POSTGRES_TABLES: &str = include_str!("schema/postgres.sql");
const MYSQL_TABLES: &str = include_str!("schema/mysql.sql");

/// Finial's own tables. SPIRE passes over them.
const SQLITE_OWN_TABLES: &str = include_str!("schema/sqlite_own.sql");
const POSTGRES_OWN_TABLES: &str = include_str!("schema/postgres_own.sql");
const MYSQL_OWN_TABLES: &str = include_str!("schema/mysql_own.sql");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_as_numbers() {
        assert!(release("1.15.3") > release("1.9.6"));
        assert!(release("1.15.3") > release("1.15.3-dev-unk"));
        assert!(release("1.15.4") > release(CODE_VERSION));
        assert!(release("0.0.0") > release(""));
        assert_eq!(release("main"), None);
    }
}
