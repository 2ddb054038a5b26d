//! The schema: what a database must look like, how a new one is made and an older one brought up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use finial_identity::trust_domain::TrustDomain;
use rusqlite::Connection;

use super::StoreError;
use super::dialect::{self, Sql, values};

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
const ADDED_COLUMNS: &[(i64, &str, &str, &str)] = &[
    (24, "attested_node_entries", "agent_version", "varchar(255)"),
    (25, "registered_entries", "additional_attributes", "blob"),
];

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
        0 => {
            tracing::info!("Initializing new database");
            sql.script(SPIRE_TABLES)?;
            sql.insert(
                "INSERT INTO migrations (created_at, updated_at, version, code_version) VALUES (?, ?, ?, ?)",
                values![sql.now(), sql.now(), SCHEMA_VERSION, CODE_VERSION],
            )?;
        }
        version => {
            for (added_in, table, column, kind) in ADDED_COLUMNS {
                if version < *added_in {
                    tracing::info!(version_info = added_in - 1, "Migrating version");
                    sql.script(&format!("ALTER TABLE \"{table}\" ADD \"{column}\" {kind}"))?;
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
        sql.script(OWN_TABLES)?;
        set_meta(sql, "schema_version", &OWN_VERSION.to_string())?;
        set_meta(sql, "trust_domain", trust_domain.name())?;
    }
    Ok(())
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
            return Err(StoreError::NewerSchema { owner: "SPIRE", found: version, known: SCHEMA_VERSION });
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
    let pairs = sql.rows(
        "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table'",
        &[],
        |row| Ok((row.text(0)?, row.text(1)?)),
    )?;
    let mut columns = Columns::new();
    for (table, column) in pairs {
        columns.entry(table).or_default().insert(column);
    }
    Ok(columns)
}

/// The columns that [`SPIRE_TABLES`] makes.
fn reference_columns() -> Result<Columns, StoreError> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch(SPIRE_TABLES)?;
    let mut columns = columns(&Sql::new(dialect::Connection::Sqlite(&connection), SystemTime::UNIX_EPOCH))?;
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

/// SPIRE's schema 25 on SQLite, as its object mapper makes it.
const SPIRE_TABLES: &str = r#"
CREATE TABLE "federated_registration_entries" ("bundle_id" integer,"registered_entry_id" integer, PRIMARY KEY ("bundle_id","registered_entry_id"));
CREATE TABLE "bundles" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"data" blob );
CREATE UNIQUE INDEX uix_bundles_trust_domain ON "bundles"(trust_domain) ;
CREATE TABLE "attested_node_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"data_type" varchar(255),"serial_number" varchar(255),"expires_at" datetime,"new_serial_number" varchar(255),"new_expires_at" datetime,"can_reattest" bool,"agent_version" varchar(255) );
CREATE INDEX idx_attested_node_entries_expires_at ON "attested_node_entries"(expires_at) ;
CREATE UNIQUE INDEX uix_attested_node_entries_spiffe_id ON "attested_node_entries"(spiffe_id) ;
CREATE TABLE "attested_node_entries_events" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255) );
CREATE TABLE "node_resolver_map_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"type" varchar(255),"value" varchar(255) );
CREATE UNIQUE INDEX idx_node_resolver_map ON "node_resolver_map_entries"(spiffe_id, "type", "value") ;
CREATE TABLE "registered_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255),"spiffe_id" varchar(255),"parent_id" varchar(255),"ttl" integer,"admin" bool,"downstream" bool,"expiry" bigint,"revision_number" bigint,"store_svid" bool,"hint" varchar(255),"jwt_svid_ttl" integer,"additional_attributes" blob );
CREATE INDEX idx_registered_entries_spiffe_id ON "registered_entries"(spiffe_id) ;
CREATE INDEX idx_registered_entries_parent_id ON "registered_entries"(parent_id) ;
CREATE INDEX idx_registered_entries_expiry ON "registered_entries"("expiry") ;
CREATE INDEX idx_registered_entries_hint ON "registered_entries"("hint") ;
CREATE UNIQUE INDEX uix_registered_entries_entry_id ON "registered_entries"(entry_id) ;
CREATE TABLE "registered_entries_events" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255) );
CREATE TABLE "join_tokens" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"token" varchar(255),"expiry" bigint );
CREATE UNIQUE INDEX uix_join_tokens_token ON "join_tokens"("token") ;
CREATE TABLE "selectors" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"registered_entry_id" integer,"type" varchar(255),"value" varchar(255) );
CREATE INDEX idx_selectors_type_value ON "selectors"("type", "value") ;
CREATE UNIQUE INDEX idx_selector_entry ON "selectors"(registered_entry_id, "type", "value") ;
CREATE TABLE "migrations" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"version" integer,"code_version" varchar(255) );
CREATE TABLE "dns_names" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"registered_entry_id" integer,"value" varchar(255) );
CREATE UNIQUE INDEX idx_dns_entry ON "dns_names"(registered_entry_id, "value") ;
CREATE TABLE "federated_trust_domains" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"bundle_endpoint_url" varchar(255),"bundle_endpoint_profile" varchar(255),"endpoint_spiffe_id" varchar(255),"implicit" bool );
CREATE UNIQUE INDEX uix_federated_trust_domains_trust_domain ON "federated_trust_domains"(trust_domain) ;
CREATE TABLE "ca_journals" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"data" blob,"active_x509_authority_id" varchar(255),"active_jwt_authority_id" varchar(255) );
CREATE INDEX idx_ca_journals_active_x509_authority_id ON "ca_journals"(active_x509_authority_id) ;
CREATE INDEX idx_ca_journals_active_jwt_authority_id ON "ca_journals"(active_jwt_authority_id) ;
CREATE INDEX idx_federated_registration_entries_registered_entry_id ON "federated_registration_entries"(registered_entry_id) ;
"#;

/// Finial's own tables. SPIRE passes over them.
const OWN_TABLES: &str = r#"
CREATE TABLE "finial_meta" ("name" varchar(255) NOT NULL PRIMARY KEY, "value" varchar(255) NOT NULL);
CREATE TABLE "finial_issued" ("seq" integer NOT NULL PRIMARY KEY, "serial" varchar(255) NOT NULL, "spiffe_id" varchar(2048) NOT NULL, "entry_id" varchar(255) NOT NULL, "entry_revision" bigint NOT NULL, "agent_id" varchar(2048) NOT NULL, "authority_id" varchar(255) NOT NULL, "not_before" bigint NOT NULL, "not_after" bigint NOT NULL, "key_fingerprint" varchar(64) NOT NULL, "kind" varchar(32) NOT NULL, "hash" varchar(64) NOT NULL);
CREATE INDEX "idx_finial_issued_not_after" ON "finial_issued"("not_after");
CREATE INDEX "idx_finial_issued_serial" ON "finial_issued"("serial");
"#;

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
