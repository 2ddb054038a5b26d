//! How long a server takes to start on a large database, and what it then needs: 100,000 and 1,000,000 entries, on SQLite
//! and, where `FINIAL_BENCH_POSTGRES` names one, on PostgreSQL. Beside it, on tables of its own that were filled in the same
//! way, the reference server.
//!
//! `cargo bench -p finial-server --bench starting`; see [`estate`] for the programs. `FINIAL_BENCH_POSTGRES` is the URL of a
//! server on which databases may be made, without a database name, such as `postgres://postgres@127.0.0.1:5432`.
//! `FINIAL_BENCH_ENTRIES` replaces the numbers of entries. Takes about ten minutes; asserts nothing.

mod estate;

use std::process::ExitCode;
use std::time::Duration;

use estate::table::{self, Row};
use estate::{Estate, Outcome, Programs, TRUST_DOMAIN, Tables};
use finial_daemon::clock::Clock;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

const ENTRIES: [u32; 2] = [100_000, 1_000_000];
const ENTRIES_PER_AGENT: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(900);
/// How long the server runs before its memory is read: two rounds of the reference's reloading.
const SETTLING: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("starting: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn compare() -> Outcome<()> {
    let programs = Programs::all()?;
    let postgres = std::env::var("FINIAL_BENCH_POSTGRES").ok();
    if postgres.is_none() {
        println!("FINIAL_BENCH_POSTGRES is not set: no figures for PostgreSQL");
    }
    let sizes = match std::env::var("FINIAL_BENCH_ENTRIES") {
        Ok(list) => list.split(',').map(|size| Ok(size.trim().parse()?)).collect::<Outcome<Vec<u32>>>()?,
        Err(_) => ENTRIES.to_vec(),
    };
    println!("load before: {}", estate::load());
    let engines: Vec<Engine> =
        [Some(Engine::Sqlite), postgres.map(Engine::Postgres)].into_iter().flatten().collect();
    let mut rows = Vec::new();
    for engine in &engines {
        for &entries in &sizes {
            let mut all = Vec::new();
            for one in &programs {
                println!("{}: {}, {entries} entries", one.name, engine.name());
                all.push(measure(one, engine, entries).await?);
            }
            let column = |value: &dyn Fn(&Figures) -> f64| all.iter().map(value).collect::<Vec<_>>();
            let of = |what: &str| format!("{}, {entries} entries: {what}", engine.name());
            rows.extend([
                Row::new(of("start, s"), 2, column(&|f| f.start.as_secs_f64()), ""),
                Row::new(of("processor time of it, s"), 2, column(&|f| f.cpu.as_secs_f64()), ""),
                Row::new(of("memory, MiB"), 0, column(&|f| f.memory.now), ""),
                Row::new(of("memory at its peak, MiB"), 0, column(&|f| f.memory.peak), ""),
            ]);
        }
    }
    println!("load after: {}", estate::load());
    let names: Vec<&str> = programs.iter().map(|one| one.name).collect();
    table::print("Start of the server until its API answers, and its memory then", &names, &rows);
    Ok(())
}

/// Of one program.
struct Figures {
    start: Duration,
    cpu: Duration,
    memory: estate::Memory,
}

async fn measure(programs: &Programs, engine: &Engine, entries: u32) -> Outcome<Figures> {
    let clock = Clock::wall();
    let dir = estate::new_dir()?;
    let tables = engine.tables(programs, entries, &dir).await?;
    // The program itself makes the tables.
    let dir = Estate::start_in(programs, None, dir, &tables, PATIENCE).await?.stop()?;
    engine.fill(&tables, entries).await?;
    let begun = clock.monotonic();
    let estate = Estate::start_in(programs, None, dir, &tables, PATIENCE).await?;
    let (start, cpu) = (clock.monotonic() - begun, estate.server.cpu()?);
    clock.sleep(SETTLING).await;
    let memory = estate.server.memory()?;
    estate.stop()?;
    engine.clean_up(&tables).await?;
    Ok(Figures { start, cpu, memory })
}

enum Engine {
    Sqlite,
    /// URL without a database name.
    Postgres(String),
}

impl Engine {
    fn name(&self) -> &'static str {
        match self {
            Engine::Sqlite => "SQLite",
            Engine::Postgres(_) => "PostgreSQL",
        }
    }

    async fn tables(&self, programs: &Programs, entries: u32, dir: &TempDir) -> Outcome<Tables> {
        match self {
            Engine::Sqlite => Ok(Tables::sqlite(dir)),
            Engine::Postgres(url) => {
                let name = format!("bench_{}_{entries}", programs.name);
                let mut connection =
                    PgConnection::connect(&format!("{url}/postgres?sslmode=disable")).await?;
                for statement in
                    [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")]
                {
                    run(&mut connection, statement).await?;
                }
                Ok(Tables { kind: "postgres", connection: format!("{url}/{name}?sslmode=disable") })
            }
        }
    }

    async fn fill(&self, tables: &Tables, entries: u32) -> Outcome<()> {
        let script = script(entries);
        match self {
            Engine::Sqlite => Ok(rusqlite::Connection::open(&tables.connection)?.execute_batch(&script)?),
            Engine::Postgres(_) => {
                run(&mut PgConnection::connect(&tables.connection).await?, script + "ANALYZE;").await
            }
        }
    }

    async fn clean_up(&self, tables: &Tables) -> Outcome<()> {
        match (self, tables.connection.rsplit_once('/')) {
            (Engine::Postgres(url), Some((_, rest))) => {
                let name = rest.split('?').next().unwrap_or(rest);
                let mut connection =
                    PgConnection::connect(&format!("{url}/postgres?sslmode=disable")).await?;
                run(&mut connection, format!("DROP DATABASE {name}")).await
            }
            _ => Ok(()),
        }
    }
}

async fn run(connection: &mut PgConnection, statements: String) -> Outcome<()> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(connection).await?;
    Ok(())
}

/// Nodes with `ENTRIES_PER_AGENT` entries each, every entry with two selectors; SQL that both engines speak.
fn script(entries: u32) -> String {
    let agents = entries / ENTRIES_PER_AGENT;
    const NOW: &str = "'2026-01-01 00:00:00+00:00'";
    let agent = format!("'spiffe://{TRUST_DOMAIN}/spire/agent/x509pop/' ");
    format!(
        "BEGIN;
        INSERT INTO attested_node_entries
            (created_at, updated_at, spiffe_id, data_type, serial_number, expires_at, can_reattest)
            WITH RECURSIVE agents(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM agents WHERE n + 1 < {agents})
            SELECT {NOW}, {NOW}, {agent} || n, 'x509pop', '1' || n, '2099-01-01 00:00:00+00:00', true FROM agents;
        INSERT INTO registered_entries
            (created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, admin, downstream, expiry, revision_number,
             store_svid, hint, jwt_svid_ttl)
            WITH RECURSIVE entries(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM entries WHERE n + 1 < {entries})
            SELECT {NOW}, {NOW}, 'entry-' || n, 'spiffe://{TRUST_DOMAIN}/ns/production/sa/service-' || n,
                {agent} || (n % {agents}), 0, false, false, 0, 0, false, '', 0 FROM entries;
        INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value)
            SELECT {NOW}, {NOW}, id, 'k8s', 'ns:production' FROM registered_entries;
        INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value)
            SELECT {NOW}, {NOW}, id, 'k8s', 'sa:' || entry_id FROM registered_entries;
        COMMIT;"
    )
}
