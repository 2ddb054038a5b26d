//! Being told of changes: `LISTEN` on a connection of its own.
//!
//! SPIRE's servers do not tell, and a notification may be lost with its connection, so the tables are polled all the same.

use std::time::Duration;

use sqlx::Error;
use sqlx::postgres::{PgListener, PgPoolOptions};

use super::CHANNEL;
use crate::store::engine::change::Change;
use crate::store::engine::network::{Database, Target};

/// The pause before the next try to connect.
const PAUSE: Duration = Duration::from_secs(5);

const SLOW: Duration = Duration::from_secs(24 * 3600);

/// Calls `on_change` for each notification, and for everything once a connection is made. Never ends.
pub(in crate::store) async fn listen(database: &Database, mut on_change: impl FnMut(Change) + Send) {
    let Target::Postgres(options) = database.target() else { return std::future::pending().await };
    for host in options.hosts.iter().cycle() {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            // The database may be away for long, which the store itself tells.
            .acquire_slow_threshold(SLOW)
            .connect_lazy_with(host.clone());
        if let Err(error) = follow(&pool, &mut on_change).await {
            tracing::debug!(%error, "Not listening for changes in the database; they are polled for");
        }
        pool.close().await;
        database.clock().sleep(PAUSE).await;
    }
}

async fn follow(pool: &sqlx::PgPool, on_change: &mut (impl FnMut(Change) + Send)) -> Result<(), Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    // What happened before is not told.
    Change::ALL.into_iter().for_each(&mut *on_change);
    // Ends with the connection, to make the next one after a pause.
    while let Some(notification) = listener.try_recv().await? {
        let named = Change::ALL.into_iter().find(|change| change.name() == notification.payload());
        named.into_iter().for_each(&mut *on_change);
    }
    Ok(())
}
