//! The engines that the tests run on: SQLite, and PostgreSQL and MariaDB servers that live as long as this process.

use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, Executor, MySqlConnection, PgConnection, Row as _};

use super::servers::{Relay, mysql, postgres};
use super::*;

/// Runs each of these tests on every engine.
macro_rules! on_every_engine {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            use crate::store::tests::engines::Fresh;
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name(Fresh::SQLITE).await;
            })*
        }
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
pub(super) use on_every_engine;

/// An engine on which new databases can be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fresh {
    pub(super) engine: DatabaseType,
}

impl Fresh {
    pub(super) const SQLITE: Fresh = Fresh { engine: DatabaseType::Sqlite };

    /// `None`, loudly, where PostgreSQL is not installed.
    pub(crate) fn postgres() -> Option<Fresh> {
        postgres().is_some().then_some(Fresh { engine: DatabaseType::Postgres })
    }

    /// `None`, loudly, where MariaDB is not installed.
    pub(crate) fn mysql() -> Option<Fresh> {
        mysql().is_some().then_some(Fresh { engine: DatabaseType::MySql })
    }

    pub(super) fn is_sqlite(self) -> bool {
        self.engine == DatabaseType::Sqlite
    }

    /// A store on a new database.
    pub(super) async fn store(self) -> Store {
        match self.engine {
            DatabaseType::Sqlite => Store::open(settings(":memory:")).await.unwrap(),
            _ => Database::new(self).await.open().await.unwrap(),
        }
    }

    pub(super) async fn with_bundles(self, names: &[&str]) -> Store {
        let store = self.store().await;
        for name in names {
            store.bundles().create(Bundle::new(td(name))).await.unwrap();
        }
        store
    }

    /// How the engine says that a value is taken: SQLite names the columns, the others the index.
    pub(super) fn taken(self, sqlite: &str, postgres: &str, mysql: &str) -> String {
        match self.engine {
            DatabaseType::Sqlite => format!("datastore-sql: UNIQUE constraint failed: {sqlite}"),
            DatabaseType::Postgres => {
                format!(
                    "datastore-sql: pq: duplicate key value violates unique constraint \"{postgres}\" (23505)"
                )
            }
            DatabaseType::MySql => format!("datastore-sql: Error 1062 (23000): Duplicate entry {mysql}"),
        }
    }
}

/// A new database on a server, and another way into it.
pub(crate) struct Database {
    pub(super) fresh: Fresh,
    pub(crate) name: String,
}

impl Database {
    pub(crate) async fn new(fresh: Fresh) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let server = Database { fresh, name: fresh.at_start().to_owned() };
        server.run(&format!("CREATE DATABASE {name}")).await;
        Database { fresh, name }
    }

    pub(crate) fn connection_string(&self) -> String {
        match self.fresh.engine {
            DatabaseType::Postgres => {
                format!("host={} user=finial dbname={}", postgres().unwrap().directory, self.name)
            }
            _ => format!("root@unix({}/sock)/{}?parseTime=true", mysql().unwrap().directory, self.name),
        }
    }

    pub(crate) fn settings(&self) -> OpenSettings {
        let mut settings = settings(&self.connection_string());
        settings.database.database_type = self.fresh.engine;
        settings
    }

    pub(super) async fn open(&self) -> Result<Store, StoreError> {
        Store::open(self.settings()).await
    }

    /// Statements of somebody else.
    pub(super) async fn run(&self, script: &str) {
        let script = sqlx::raw_sql(AssertSqlSafe(script.to_owned()));
        match self.fresh.engine {
            DatabaseType::Postgres => _ = self.pg().await.execute(script).await.unwrap(),
            _ => _ = self.my().await.execute(script).await.unwrap(),
        }
    }

    /// What a query gives, a line for each row.
    pub(super) async fn text(&self, query: &str) -> String {
        let query = sqlx::raw_sql(AssertSqlSafe(query.to_owned()));
        let lines: Vec<String> = match self.fresh.engine {
            DatabaseType::Postgres => {
                let rows = self.pg().await.fetch_all(query).await.unwrap();
                rows.iter().map(|row| row.try_get_unchecked::<String, _>(0).unwrap()).collect()
            }
            _ => {
                let rows = self.my().await.fetch_all(query).await.unwrap();
                rows.iter().map(|row| row.try_get_unchecked::<String, _>(0).unwrap()).collect()
            }
        };
        lines.join("\n")
    }

    /// A way to the server that can be cut, and settings that take it.
    pub(crate) async fn behind_relay(&self) -> (Relay, OpenSettings) {
        let (socket, server) = match self.fresh.engine {
            DatabaseType::Postgres => (".s.PGSQL.5432", postgres().unwrap()),
            _ => ("sock", mysql().unwrap()),
        };
        let relay = Relay::open(server, socket);
        let mut settings = self.settings();
        let string = &mut settings.database.connection_string;
        *string = string.replace(&server.directory, relay.directory());
        (relay, settings)
    }

    async fn pg(&self) -> PgConnection {
        let options = sqlx::postgres::PgConnectOptions::new_without_pgpass();
        let options =
            options.socket(&postgres().unwrap().directory).port(5432).username("finial").database(&self.name);
        PgConnection::connect_with(&options).await.unwrap()
    }

    async fn my(&self) -> MySqlConnection {
        let options = sqlx::mysql::MySqlConnectOptions::new().username("root").database(&self.name);
        let options = options.socket(format!("{}/sock", mysql().unwrap().directory));
        MySqlConnection::connect_with(&options).await.unwrap()
    }
}

impl Fresh {
    /// A database that every server has.
    fn at_start(self) -> &'static str {
        match self.engine {
            DatabaseType::Postgres => "postgres",
            _ => "mysql",
        }
    }
}
