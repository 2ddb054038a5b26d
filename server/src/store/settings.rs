//! What a store is opened with.

use finial_daemon::clock::Clock;
use finial_identity::trust_domain::TrustDomain;

/// What [`Store::open`](super::Store::open) needs.
#[derive(Clone)]
pub struct OpenSettings {
    /// As in SPIRE's `DataStore "sql"` for `sqlite3`: a path, or a `file:` URI with parameters. `:memory:` and
    /// `mode=memory` give a database that lives as long as the store.
    pub connection_string: String,
    /// The database must belong to this trust domain; a new one will.
    pub trust_domain: TrustDomain,
    pub clock: Clock,
    /// SPIRE's `disable_migration`: an older schema is refused. A new database is created all the same.
    pub disable_migration: bool,
}

impl OpenSettings {
    /// Settings with migrations allowed.
    pub fn new(
        connection_string: impl Into<String>,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> OpenSettings {
        let connection_string = connection_string.into();
        OpenSettings { connection_string, trust_domain, clock, disable_migration: false }
    }
}
