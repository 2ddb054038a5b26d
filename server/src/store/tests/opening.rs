use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const TABLES: &str = "SELECT m.name || ': ' || group_concat(c.name || ' ' || c.type || CASE c.\"notnull\" WHEN 1 THEN \
     ' not null' ELSE '' END || CASE c.pk WHEN 0 THEN '' ELSE ' pk' || c.pk END, ', ') FROM sqlite_master m, \
     pragma_table_info(m.name) c WHERE m.type='table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE 'finial_%' \
     GROUP BY m.name ORDER BY m.name";
const INDEXES: &str = "SELECT m.tbl_name || '.' || m.name || CASE i.\"unique\" WHEN 1 THEN ' unique' ELSE '' END || ': ' \
     || (SELECT group_concat(name, ', ') FROM pragma_index_info(m.name)) FROM sqlite_master m, \
     pragma_index_list(m.tbl_name) i WHERE m.type='index' AND i.name = m.name AND m.tbl_name NOT LIKE 'finial_%' \
     ORDER BY m.tbl_name, m.name";

/// Tables, columns and indexes in one text.
fn schema(disk: &Disk) -> String {
    let other = disk.other();
    let mut text = String::new();
    for query in [TABLES, INDEXES] {
        let mut statement = other.prepare(query).unwrap();
        let lines = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        lines.for_each(|line| text.push_str(&(line.unwrap() + "\n")));
    }
    text
}

/// What is in the file, but for what SQLite keeps beside it.
fn contents(disk: &Disk) -> Vec<u8> {
    fs::read(disk.path()).unwrap()
}

async fn refused(disk: &Disk) -> StoreError {
    disk.open().await.err().unwrap()
}

/// schema.golden was taken from a database that SPIRE 1.15.3 made.
#[tokio::test(start_paused = true)]
async fn a_new_database_has_the_schema_that_spire_makes() {
    let disk = Disk::new();
    disk.open().await.unwrap();
    assert_eq!(schema(&disk), include_str!("schema.golden"));
    assert_eq!(disk.text("SELECT version || ' ' || code_version FROM migrations"), "25 1.15.3");
    assert_eq!(disk.text("SELECT COUNT(*) FROM migrations"), "1");
    assert_eq!(disk.text("SELECT created_at FROM migrations"), "2027-01-15 08:00:00+00:00");
    assert_eq!(disk.text("PRAGMA journal_mode"), "wal");
    assert_eq!(fs::metadata(disk.path()).unwrap().permissions().mode() & 0o777, 0o640);
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_is_there_after_a_restart() {
    let disk = Disk::new();
    let store = disk.open().await.unwrap();
    let created = store.entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    drop(store);
    let store = disk.open().await.unwrap();
    assert_eq!(store.entries().get(&created.id).await.unwrap(), Some(created));
    assert_eq!(store.trust_domain(), &own());
}

#[tokio::test(start_paused = true)]
async fn a_file_uri_with_parameters_opens_the_same_file() {
    let disk = Disk::new();
    let uri = format!("file:{}?_busy_timeout=100&cache=shared", disk.connection_string());
    drop(Store::open(settings(&uri)).await.unwrap());
    assert!(disk.path().exists());
}

#[tokio::test(start_paused = true)]
async fn the_code_version_is_raised_and_never_lowered() {
    let disk = Disk::new();
    for (stored, expected) in
        [("1.15.0", "1.15.3"), ("1.15.3-dev-unk", "1.15.3"), ("", "1.15.3"), ("1.16.2", "1.16.2")]
    {
        drop(disk.open().await.unwrap());
        disk.run(&format!("UPDATE migrations SET code_version = '{stored}'"));
        drop(disk.open().await.unwrap());
        assert_eq!(disk.text("SELECT code_version FROM migrations"), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn older_schemas_are_brought_up() {
    for version in [23, 24] {
        let disk = Disk::new();
        let store = disk.open().await.unwrap();
        let kept = store.entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
        drop(store);
        let added_later: &[_] = match version {
            23 => &[
                "attested_node_entries DROP COLUMN agent_version",
                "registered_entries DROP COLUMN additional_attributes",
            ],
            _ => &["registered_entries DROP COLUMN additional_attributes"],
        };
        for change in added_later {
            disk.run(&format!("ALTER TABLE {change}"));
        }
        disk.run(&format!("UPDATE migrations SET version = {version}, code_version = '1.14.0'"));
        let before = contents(&disk);

        let mut without = settings(&disk.connection_string());
        without.database.disable_migration = true;
        let error = Store::open(without).await.unwrap_err();
        assert!(matches!(error, StoreError::MigrationDisabled { found, needed: 25 } if found == version));
        assert_eq!(contents(&disk), before);

        let store = disk.open().await.unwrap();
        assert_eq!(schema(&disk), include_str!("schema.golden"));
        assert_eq!(disk.text("SELECT version || ' ' || code_version FROM migrations"), "25 1.15.3");
        assert_eq!(store.entries().get(&kept.id).await.unwrap(), Some(kept));
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_is_refused_and_not_touched() {
    type Check = fn(&StoreError) -> bool;
    let cases: &[(&str, &str, Check)] = &[
        (
            "UPDATE migrations SET version = 26, code_version = '1.17.0'",
            "schema version 26 of SPIRE, and this release knows versions up to 25",
            |error| matches!(error, StoreError::NewerSchema { found: 26, known: 25, .. }),
        ),
        (
            "UPDATE finial_meta SET value = '2' WHERE name = 'schema_version'",
            "schema version 2 of Finial",
            |error| matches!(error, StoreError::NewerSchema { found: 2, .. }),
        ),
        ("UPDATE migrations SET version = 22", "schema version 22 requires a previous", |error| {
            matches!(error, StoreError::OlderSchema { found: 22 })
        }),
        ("DELETE FROM migrations", "table migrations is empty", |error| {
            matches!(error, StoreError::HalfMigrated { .. })
        }),
        ("DROP TABLE migrations", "table migrations is not", |error| {
            matches!(error, StoreError::HalfMigrated { .. })
        }),
        ("DROP TABLE join_tokens", "has table join_tokens, the database has not", |error| {
            matches!(error, StoreError::HalfMigrated { .. })
        }),
        (
            "ALTER TABLE registered_entries DROP COLUMN additional_attributes",
            "has column registered_entries.additional_attributes, the database has not",
            |error| matches!(error, StoreError::HalfMigrated { .. }),
        ),
        ("DELETE FROM finial_meta", "finial_meta names no schema version", |error| {
            matches!(error, StoreError::HalfMigrated { .. })
        }),
    ];
    for (change, text, check) in cases {
        let disk = Disk::new();
        drop(disk.open().await.unwrap());
        disk.run(change);
        let before = contents(&disk);
        let error = refused(&disk).await;
        assert!(check(&error), "{change}: {error:?}");
        assert!(error.to_string().contains(text), "{change}: {error}");
        assert_eq!(contents(&disk), before, "{change}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_of_another_trust_domain_is_refused() {
    let disk = Disk::new();
    let mut foreign = settings(&disk.connection_string());
    foreign.trust_domain = td("other.test");
    let store = Store::open(foreign).await.unwrap();
    let mut theirs = entry("/w", &["a:1"]);
    theirs.spiffe_id = SpiffeId::parse("spiffe://other.test/w").unwrap();
    store.entries().create(theirs).await.unwrap();
    drop(store);

    let before = contents(&disk);
    let by_name = refused(&disk).await;
    assert_eq!(contents(&disk), before);
    // As SPIRE leaves a database: nothing but the entries tells whose it is.
    disk.run("DROP TABLE finial_meta; DROP TABLE finial_issued");
    let by_entries = refused(&disk).await;
    for error in [by_name, by_entries] {
        assert!(matches!(error, StoreError::WrongTrustDomain { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("'other.test'") && text.contains("'example.org'"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_of_spire_without_our_tables_is_taken_over() {
    let disk = Disk::new();
    drop(disk.open().await.unwrap());
    disk.run("DROP TABLE finial_meta; DROP TABLE finial_issued");
    drop(disk.open().await.unwrap());
    assert_eq!(disk.text("SELECT value FROM finial_meta WHERE name = 'trust_domain'"), "example.org");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_a_database_is_refused_and_not_touched() {
    let disk = Disk::new();
    let noise: Vec<u8> = (0..20_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    fs::write(disk.path(), &noise).unwrap();
    let error = refused(&disk).await;
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
    assert_eq!(contents(&disk), noise);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_database_is_named_as_such() {
    let disk = Disk::new();
    let store = disk.open().await.unwrap();
    for i in 0..200 {
        store.entries().create(entry(&format!("/w{i}"), &["a:1"])).await.unwrap();
    }
    drop(store);
    disk.run("PRAGMA wal_checkpoint(TRUNCATE)");
    let mut bytes = contents(&disk);
    bytes.iter_mut().skip(4096).for_each(|byte| *byte = 0xa5);
    fs::write(disk.path(), bytes).unwrap();
    let error = refused(&disk).await;
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_second_server_on_the_same_file_is_refused_by_name() {
    let disk = Disk::new();
    let first = disk.open().await.unwrap();
    let link = disk.dir.path().join("link");
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    for path in [disk.path(), link] {
        let error = Store::open(settings(path.to_str().unwrap())).await.unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    }
    drop(first);
    disk.open().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_not_there_is_named() {
    let disk = Disk::new();
    let path = disk.dir.path().join("missing/x.db");
    let error = Store::open(settings(path.to_str().unwrap())).await.unwrap_err();
    assert!(matches!(error, StoreError::Io(_)), "{error:?}");
    assert!(error.to_string().contains("missing/x.db"), "{error}");
}
