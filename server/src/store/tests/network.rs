//! What is particular about databases that several servers share.

use finial_identity::bundle::{JwtAuthority, X509Authority};
use finial_identity::selector::SelectorMatch;

use super::agents::node;
use super::engines::Database;
use crate::store::entries::{EntryUpdate, ListEntries};
use crate::store::issued::{Batching, IssuedLog, IssuedRecord};
use crate::store::tests::engines::Fresh;

use super::*;

/// Runs each of these tests on the engines that are reached over a network.
macro_rules! on_network_engines {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            use crate::store::tests::engines::Fresh;
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                if let Some(fresh) = Fresh::postgres() {
                    super::$name(fresh).await;
                }
            })*
        }
        mod on_mysql {
            use crate::store::tests::engines::Fresh;
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                if let Some(fresh) = Fresh::mysql() {
                    super::$name(fresh).await;
                }
            })*
        }
    };
}

on_network_engines!(
    a_new_database_has_the_schema_that_spire_makes,
    older_schemas_are_brought_up,
    what_cannot_be_served_is_refused_and_not_touched,
    a_schema_that_is_one_minor_release_ahead_is_served,
    a_database_of_another_trust_domain_is_refused,
    servers_that_start_at_once_make_one_schema,
    of_many_servers_that_take_a_token_one_gets_it,
    servers_that_add_to_a_bundle_at_once_lose_nothing,
    servers_that_change_an_entry_at_once_lose_nothing,
    servers_that_create_entries_at_once_all_succeed,
    agents_that_attest_at_once_are_recorded_once,
    servers_write_one_chain_of_what_was_issued,
    connections_that_were_cut_are_made_again,
    a_database_that_is_away_is_told_at_once_and_found_again,
    a_pool_of_one_serves_everybody_in_turn,
    reads_that_tolerate_it_go_to_the_replica,
);

fn query(fresh: Fresh) -> (&'static str, &'static str) {
    match fresh.engine {
        DatabaseType::Postgres => {
            (include_str!("schema-postgres.query.sql"), include_str!("schema-postgres.golden"))
        }
        _ => (include_str!("schema-mysql.query.sql"), include_str!("schema-mysql.golden")),
    }
}

async fn schema(database: &Database) -> String {
    database.text(query(database.fresh).0).await
}

fn golden(fresh: Fresh) -> &'static str {
    query(fresh).1.trim_end()
}

const VERSION: &str = "SELECT CONCAT(version, ' ', code_version) FROM migrations";

/// The golden files were taken from databases that SPIRE 1.15.3 made.
async fn a_new_database_has_the_schema_that_spire_makes(fresh: Fresh) {
    let database = Database::new(fresh).await;
    database.open().await.unwrap();
    pretty_assert(&schema(&database).await, golden(fresh));
    assert_eq!(database.text(VERSION).await, "25 1.15.3");
}

fn pretty_assert(found: &str, expected: &str) {
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

async fn older_schemas_are_brought_up(fresh: Fresh) {
    for version in [23, 24] {
        let database = Database::new(fresh).await;
        let store = database.open().await.unwrap();
        let kept = store.entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
        drop(store);
        if version == 23 {
            database.run("ALTER TABLE attested_node_entries DROP COLUMN agent_version").await;
        }
        database.run("ALTER TABLE registered_entries DROP COLUMN additional_attributes").await;
        database.run(&format!("UPDATE migrations SET version = {version}, code_version = '1.14.0'")).await;
        let before = schema(&database).await;

        let mut without = database.settings();
        without.database.disable_migration = true;
        let error = Store::open(without).await.unwrap_err();
        assert!(matches!(error, StoreError::MigrationDisabled { found, needed: 25 } if found == version));
        assert_eq!(schema(&database).await, before);

        let store = database.open().await.unwrap();
        pretty_assert(&schema(&database).await, golden(fresh));
        assert_eq!(database.text(VERSION).await, "25 1.15.3");
        assert_eq!(store.entries().get(&kept.id).await.unwrap(), Some(kept));
    }
}

async fn what_cannot_be_served_is_refused_and_not_touched(fresh: Fresh) {
    for (change, text) in [
        (
            "UPDATE migrations SET version = 26, code_version = '1.17.0'",
            "schema version 26 of SPIRE, and this release knows versions up to 25",
        ),
        (
            "UPDATE finial_meta SET value = '2' WHERE name = 'schema_version'",
            "schema version 2 of Finial, and this release",
        ),
        ("UPDATE migrations SET version = 22", "schema version 22 requires a previous"),
        ("DELETE FROM migrations", "table migrations is empty"),
        ("DROP TABLE migrations", "table migrations is not"),
        ("DROP TABLE join_tokens", "has table join_tokens, the database has not"),
        (
            "ALTER TABLE registered_entries DROP COLUMN additional_attributes",
            "has column registered_entries.additional_attributes, the database has not",
        ),
    ] {
        let database = Database::new(fresh).await;
        drop(database.open().await.unwrap());
        database.run(change).await;
        let before = schema(&database).await;
        let error = database.open().await.unwrap_err().to_string();
        assert!(error.contains(text), "{change}: {error}");
        assert!(error.contains("the database was not changed"), "{error}");
        assert_eq!(schema(&database).await, before, "{change}");
    }
}

async fn a_schema_that_is_one_minor_release_ahead_is_served(fresh: Fresh) {
    let database = Database::new(fresh).await;
    drop(database.open().await.unwrap());
    database.run("UPDATE migrations SET version = 26, code_version = '1.16.2'").await;
    let store = database.open().await.unwrap();
    store.entries().create(entry("/w", &["a:1"])).await.unwrap();
    assert_eq!(database.text(VERSION).await, "26 1.16.2");
}

async fn a_database_of_another_trust_domain_is_refused(fresh: Fresh) {
    let database = Database::new(fresh).await;
    let store =
        Store::open(OpenSettings { trust_domain: td("other.test"), ..database.settings() }).await.unwrap();
    let mut theirs = entry("/w", &["a:1"]);
    theirs.spiffe_id = SpiffeId::parse("spiffe://other.test/w").unwrap();
    store.entries().create(theirs).await.unwrap();
    let by_name = database.open().await.unwrap_err();
    database.run("DROP TABLE finial_meta; DROP TABLE finial_issued").await;
    let by_entries = database.open().await.unwrap_err();
    for error in [by_name, by_entries] {
        assert!(matches!(error, StoreError::WrongTrustDomain { .. }), "{error:?}");
    }
    let tables = "SELECT table_name FROM information_schema.tables WHERE table_name = 'finial_meta' AND ";
    let here = match fresh.engine {
        DatabaseType::Postgres => "table_schema = 'public'".to_owned(),
        _ => "table_schema = DATABASE()".to_owned(),
    };
    assert_eq!(database.text(&(tables.to_owned() + &here)).await, "", "nothing was made");
}

async fn servers_that_start_at_once_make_one_schema(fresh: Fresh) {
    let database = Database::new(fresh).await;
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..6 {
        starting.spawn(Store::open(database.settings()));
    }
    let stores: Vec<Store> = starting.join_all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(database.text("SELECT CONCAT(COUNT(*), '') FROM migrations").await, "1");
    assert_eq!(database.text("SELECT CONCAT(COUNT(*), '') FROM finial_meta").await, "2");
    let made = stores[0].entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    assert_eq!(stores[5].entries().get(&made.id).await.unwrap(), Some(made));
}

/// Several servers on one new database.
async fn servers(fresh: Fresh, count: usize) -> Vec<Store> {
    let database = Database::new(fresh).await;
    let mut stores = Vec::new();
    for _ in 0..count {
        stores.push(database.open().await.unwrap());
    }
    stores
}

async fn of_many_servers_that_take_a_token_one_gets_it(fresh: Fresh) {
    use crate::store::tokens::Taken;
    let stores = servers(fresh, 4).await;
    stores[0].tokens().create("t", NOW, None).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for store in stores.iter().cycle().take(20) {
        let store = store.clone();
        tasks.spawn(async move { store.tokens().take("t", NOW).await.unwrap() });
    }
    let taken = tasks.join_all().await;
    assert_eq!(taken.iter().filter(|taken| **taken == Taken::Valid).count(), 1);
    assert_eq!(taken.iter().filter(|taken| **taken == Taken::Missing).count(), 19);
}

async fn servers_that_add_to_a_bundle_at_once_lose_nothing(fresh: Fresh) {
    let stores = servers(fresh, 4).await;
    let mut tasks = tokio::task::JoinSet::new();
    for (number, store) in stores.iter().cycle().take(16).cloned().enumerate() {
        let mut addition = Bundle::new(own());
        if number % 2 == 0 {
            addition.x509_authorities = vec![X509Authority { der: vec![number as u8], tainted: false }];
        } else {
            let key_id = format!("{number}");
            let key = JwtAuthority { key_id, public_key: vec![1], expires_at: NOW, tainted: false };
            addition.jwt_authorities = vec![key];
        }
        tasks.spawn(async move { store.bundles().append(addition).await.unwrap() });
    }
    tasks.join_all().await;
    let bundle = stores[0].bundles().get(&own()).await.unwrap().unwrap();
    assert_eq!((bundle.x509_authorities.len(), bundle.jwt_authorities.len()), (8, 8));
    assert_eq!(bundle.sequence_number, 15);
}

async fn servers_that_change_an_entry_at_once_lose_nothing(fresh: Fresh) {
    let stores = servers(fresh, 3).await;
    let made = stores[0].entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    let mut tasks = tokio::task::JoinSet::new();
    for (number, store) in stores.iter().cycle().take(12).cloned().enumerate() {
        let id = made.id.clone();
        let update = match number % 2 {
            0 => EntryUpdate { hint: Some(format!("{number}")), ..Default::default() },
            _ => EntryUpdate { selectors: Some(selectors(&["a:1", "b:2"])), ..Default::default() },
        };
        tasks.spawn(async move { store.entries().update(id, update).await.unwrap() });
    }
    tasks.join_all().await;
    let entry = stores[1].entries().get(&made.id).await.unwrap().unwrap();
    assert_eq!(entry.revision_number, 12);
    assert_eq!((entry.hint.is_empty(), entry.selectors.len()), (false, 2));
    assert_eq!(stores[2].events().entries_after(0).await.unwrap().len(), 13);
}

async fn servers_that_create_entries_at_once_all_succeed(fresh: Fresh) {
    let stores = servers(fresh, 3).await;
    let mut tasks = tokio::task::JoinSet::new();
    for (number, store) in stores.iter().cycle().take(48).cloned().enumerate() {
        tasks.spawn(async move {
            let new = entry(&format!("/w{number}"), &["a:1", "b:2"]);
            store.entries().create(new).await.unwrap();
        });
    }
    tasks.join_all().await;
    let list = ListEntries {
        selectors: Some((SelectorMatch::Exact, selectors(&["a:1", "b:2"]))),
        ..ListEntries::default()
    };
    assert_eq!(stores[0].entries().count(&list).await.unwrap(), 48);
}

async fn agents_that_attest_at_once_are_recorded_once(fresh: Fresh) {
    use crate::store::agents::Recorded;
    let stores = servers(fresh, 3).await;
    let mut tasks = tokio::task::JoinSet::new();
    for store in stores.iter().cycle().take(9) {
        let store = store.clone();
        let agent = node("/spire/agent/x");
        tasks.spawn(async move { store.agents().record_attestation(agent, false).await.unwrap() });
    }
    let recorded = tasks.join_all().await;
    assert_eq!(recorded.iter().filter(|recorded| **recorded == Recorded::Created).count(), 1);
    assert_eq!(stores[0].agents().count(&Default::default()).await.unwrap(), 1);
    assert_eq!(stores[0].agents().get(&id("/spire/agent/x")).await.unwrap(), Some(node("/spire/agent/x")));
}

async fn servers_write_one_chain_of_what_was_issued(fresh: Fresh) {
    let stores = servers(fresh, 3).await;
    let mut tasks = tokio::task::JoinSet::new();
    for store in stores.clone() {
        tasks.spawn(async move {
            let (log, task) = IssuedLog::start(store, Batching { rows: 7, ..Default::default() });
            tokio::spawn(task);
            for number in 0..40 {
                log.record(IssuedRecord {
                    serial: format!("{number}"),
                    not_after: NOW,
                    ..Default::default()
                });
            }
            while log.flush().await.is_err() {}
        });
    }
    tasks.join_all().await;
    let verified = stores[0].issued().verify().await.unwrap();
    assert_eq!((verified.rows, verified.last_seq), (120, 120));
}

async fn connections_that_were_cut_are_made_again(fresh: Fresh) {
    let database = Database::new(fresh).await;
    let store = database.open().await.unwrap();
    let made = store.entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    for round in 0..3 {
        let all = match fresh.engine {
            DatabaseType::Postgres => format!(
                "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE datname = '{}' \
                 AND pid <> pg_backend_pid()",
                database.name
            ),
            _ => format!(
                "SELECT GROUP_CONCAT('KILL ', id SEPARATOR '; ') FROM information_schema.processlist \
                 WHERE db = '{}' AND id <> CONNECTION_ID()",
                database.name
            ),
        };
        let cut = database.text(&all).await;
        assert!(!cut.is_empty());
        if fresh.engine == DatabaseType::MySql {
            database.run(&cut).await;
        }
        if round == 0 {
            assert_eq!(store.entries().get(&made.id).await.unwrap(), Some(made.clone()));
        } else {
            store.entries().create(entry(&format!("/w{round}"), &["a:1"])).await.unwrap();
        }
    }
}

async fn a_database_that_is_away_is_told_at_once_and_found_again(fresh: Fresh) {
    let database = Database::new(fresh).await;
    let (mut relay, settings) = database.behind_relay().await;
    let store = Store::open(settings.clone()).await.unwrap();
    let made = store.entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    let (log, task) = IssuedLog::start(store.clone(), Batching::default());
    tokio::spawn(task);

    relay.cut().await;
    for _ in 0..3 {
        let read = store.entries().get(&made.id).await.unwrap_err();
        let write = store.entries().create(entry("/x", &["a:1"])).await.unwrap_err();
        for error in [read, write] {
            assert!(error.is_outage(), "{error:?}");
            assert!(error.to_string().contains("the database cannot be reached"), "{error}");
        }
    }
    assert!(Store::open(settings).await.unwrap_err().is_outage(), "nor can another server start");
    log.record(IssuedRecord::default());
    assert!(log.flush().await.unwrap_err().is_outage());

    relay.restore();
    assert!(store.entries().get(&made.id).await.unwrap_err().is_outage(), "not tried again so soon");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(store.entries().get(&made.id).await.unwrap(), Some(made));
    log.flush().await.unwrap();
    assert_eq!(store.issued().verify().await.unwrap().rows, 1);
}

async fn a_pool_of_one_serves_everybody_in_turn(fresh: Fresh) {
    let database = Database::new(fresh).await;
    let mut settings = database.settings();
    settings.database.max_open_conns = Some(1);
    settings.database.max_idle_conns = Some(0);
    settings.database.conn_max_lifetime = Some(Duration::from_secs(1));
    let store = Store::open(settings).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..10 {
        let store = store.clone();
        tasks.spawn(async move {
            store.entries().create(entry(&format!("/w{number}"), &["a:1"])).await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 10);
}

async fn reads_that_tolerate_it_go_to_the_replica(fresh: Fresh) {
    let (primary, replica) = (Database::new(fresh).await, Database::new(fresh).await);
    let on_replica = replica.open().await.unwrap();
    on_replica.entries().create(entry("/only-there", &["a:1"])).await.unwrap();
    let mut settings = primary.settings();
    settings.database.ro_connection_string = Some(replica.connection_string());
    let store = Store::open(settings).await.unwrap();
    assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 0);
    let stale = store.tolerating_stale();
    assert_eq!(stale.entries().count(&Default::default()).await.unwrap(), 1);
    stale.entries().create(entry("/w", &["a:1"])).await.unwrap();
    assert_eq!(store.entries().count(&Default::default()).await.unwrap(), 1);
    assert_eq!(on_replica.entries().count(&Default::default()).await.unwrap(), 1);
}

/// SPIRE's schema compares text without regard to case there.
#[tokio::test(start_paused = true)]
async fn an_agent_is_not_taken_for_one_whose_id_differs_in_case() {
    let Some(fresh) = Fresh::mysql() else { return };
    let store = fresh.store().await;
    store.agents().create(node("/spire/agent/X")).await.unwrap();
    assert_eq!(store.agents().get(&id("/spire/agent/x")).await.unwrap(), None);
    let refused = store.agents().record_attestation(node("/spire/agent/x"), false).await.unwrap_err();
    assert!(matches!(refused, StoreError::AlreadyExists(_)), "{refused:?}");
    let (ban, delete) =
        (store.agents().ban(&id("/spire/agent/x")).await, store.agents().delete(&id("/spire/agent/x")).await);
    assert!(matches!(ban, Err(StoreError::NotFound(_))), "{ban:?}");
    assert!(matches!(delete, Err(StoreError::NotFound(_))), "{delete:?}");
    assert_eq!(store.agents().get(&id("/spire/agent/X")).await.unwrap(), Some(node("/spire/agent/X")));
}

/// MySQL servers that are not strict cut off what does not fit, and only warn.
#[tokio::test(start_paused = true)]
async fn what_does_not_fit_its_column_is_refused_and_not_cut_off() {
    let Some(fresh) = Fresh::mysql() else { return };
    let database = Database::new(fresh).await;
    let mut settings = database.settings();
    settings.database.connection_string += "&sql_mode=%27%27";
    let store = Store::open(settings).await.unwrap();
    let long = format!("/spire/agent/{}", "x".repeat(255));
    let refused = store.agents().record_attestation(node(&long), false).await.unwrap_err();
    assert!(refused.to_string().contains("Data too long"), "{refused}");
    assert_eq!(store.agents().count(&Default::default()).await.unwrap(), 0);
}

/// Real time: a notification comes when it comes.
#[tokio::test]
async fn a_committed_change_is_told_to_other_servers() {
    let Some(fresh) = Fresh::postgres() else { return };
    let stores = servers(fresh, 2).await;
    let (told, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let listening = tokio::spawn(stores[1].clone().listen(move |change| _ = told.send(change)));
    // Once it listens it names everything.
    for expected in [Change::Rows, Change::Bundles] {
        assert_eq!(changes.recv().await, Some(expected));
    }
    let fails = EntryUpdate { federates_with: Some(vec![td("x")]), ..Default::default() };
    let made = stores[0].entries().create(entry("/w", &["a:1"])).await.unwrap().entry;
    assert_eq!(changes.recv().await, Some(Change::Rows));
    stores[0].entries().update(&made.id, fails).await.unwrap_err();
    stores[0].bundles().append(Bundle::new(own())).await.unwrap();
    assert_eq!(changes.recv().await, Some(Change::Bundles), "what was rolled back is not told");
    listening.abort();
}
