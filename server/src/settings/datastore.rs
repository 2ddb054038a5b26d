//! `DataStore "sql"`.

use finial_daemon::settings::{PluginStanza, Section, SettingsError};

use super::unbuilt::refuse_as;
use crate::store::{self, DatabaseSettings, DatabaseType, TlsFiles};

/// SQLite connections that the store opens at most: one writer and its readers. A limit of SPIRE's that lies below would
/// be promised in vain.
const SQLITE_CONNECTIONS: i64 = 9;

pub(super) fn read(stanza: &PluginStanza) -> Result<DatabaseSettings, SettingsError> {
    let configuration = stanza.configuration()?;
    let section = Section::named(&configuration, &stanza.data_name());
    let database_type = database_type(&section);
    let connection_string = section.require_string("connection_string");
    let only_mysql = ["root_ca_path", "client_cert_path", "client_key_path"];
    match database_type {
        Some(DatabaseType::Sqlite) => {
            refuse_as(&section, &only_mysql, "only for mysql; remove the key");
            refuse_as(&section, &["conn_max_lifetime"], "sqlite3 has no such connections; remove the key");
            for key in ["max_open_conns", "max_idle_conns"] {
                if section.int(key).is_some_and(|most| most != 0 && most < SQLITE_CONNECTIONS) {
                    section.problem(
                        key,
                        format!(
                            "this store opens up to {SQLITE_CONNECTIONS} connections; a lower limit is not built yet, \
                             remove the key"
                        ),
                    );
                }
            }
        }
        Some(DatabaseType::Postgres) => {
            let reason = "only for mysql; write sslrootcert, sslcert and sslkey into connection_string";
            refuse_as(&section, &only_mysql, reason);
        }
        Some(DatabaseType::MySql) | None => {}
    }
    let path = |key| section.string(key).filter(|path: &String| !path.is_empty());
    let settings = DatabaseSettings {
        database_type: database_type.unwrap_or_default(),
        connection_string,
        ro_connection_string: path("ro_connection_string"),
        tls: TlsFiles {
            root_ca_path: path("root_ca_path"),
            client_cert_path: path("client_cert_path"),
            client_key_path: path("client_key_path"),
        },
        max_open_conns: section.int("max_open_conns"),
        max_idle_conns: section.int("max_idle_conns"),
        conn_max_lifetime: section.duration("conn_max_lifetime"),
        disable_migration: section.bool("disable_migration").unwrap_or(false),
        log_sql: section.bool("log_sql").unwrap_or(false),
    };
    if database_type.is_some()
        && !settings.connection_string.is_empty()
        && let Err(error) = store::check(&settings)
    {
        section.problem("connection_string", error);
    }
    section.finish()?;
    Ok(settings)
}

/// `None` with a problem noted, or where the key is missing, which is noted too.
fn database_type(section: &Section) -> Option<DatabaseType> {
    if section.is_block("database_type") {
        let text = "aws_postgres and aws_mysql are not built; use \"postgres\" or \"mysql\" with a user that has a \
                    password";
        section.problem("database_type", text);
        return None;
    }
    let name = section.require_string("database_type");
    let known = DatabaseType::from_name(&name);
    if known.is_none() && !name.is_empty() {
        let text = format!("unsupported database_type: {name:?}; it must be sqlite3, postgres or mysql");
        section.problem("database_type", text);
    }
    known
}
