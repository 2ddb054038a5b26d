//! Everything rotates by itself, over a long time.

use std::collections::BTreeSet;
use std::time::Duration;

use finial_identity::x509_svid::AuthorityCertificate;
use finial_tests::world::{Shape, World, my_uid};

const DAY: i64 = 24 * 3600;

/// A workload keeps its stream open for a year. Whatever happens to CA, agent and SVID, each message verifies, each
/// key is new, no SVID ever runs out, and no leaf comes before its root.
#[tokio::test(start_paused = true)]
async fn a_year_of_rotations() {
    let server = r#"ca_ttl = "168h"
                    default_x509_svid_ttl = "24h"
                    agent_ttl = "24h"
                    # Nobody else writes to this database; looking for that every 5 s makes for six million looks a year.
                    experimental { cache_reload_interval = "1h" }"#;
    let world = World::of(Shape { server: server.to_owned(), ..Shape::default() }).await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;

    let mut updates = node.me().open().await;
    let mut serials = BTreeSet::new();
    let mut issuers = BTreeSet::new();
    let mut known_roots: BTreeSet<String> = BTreeSet::new();
    let mut ends = None;
    let end = world.clock.unix() + 365 * DAY;
    while world.clock.unix() < end {
        // The stream verifies each message at the time when it comes.
        let context = updates.next(&world.clock).await;
        let svid = context.svid("web");
        if let Some(ends) = ends {
            assert!(world.clock.now() < ends, "the SVID before had run out when the next one came");
        }
        ends = Some(svid.not_after());
        serials.insert(svid.serial_decimal());
        let issuer = svid.authority_key_id().unwrap();
        if issuers.insert(issuer.clone()) && issuers.len() > 1 {
            assert!(known_roots.contains(&issuer), "a leaf came before the root that it leads to");
        }
        known_roots = context
            .bundle
            .iter()
            .map(|der| AuthorityCertificate::read(der).unwrap().authority_id())
            .collect();
        assert!(known_roots.len() <= 4, "roots pile up: {}", known_roots.len());
    }
    // SVIDs renew at half of 24 h with up to a tenth of scatter. A CA is prepared at half of the life of the one
    // before, and its own life begins then: every 84 h.
    assert!((600..900).contains(&serials.len()), "{} SVIDs in a year", serials.len());
    assert!((95..115).contains(&issuers.len()), "{} CAs in a year", issuers.len());
    assert_eq!(world.attested().await.len(), 1);
}

/// With the defaults: 24 h CA, 1 h SVIDs.
#[tokio::test(start_paused = true)]
async fn two_days_with_the_defaults() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let mut serials = BTreeSet::new();
    let end = world.clock.unix() + 2 * DAY;
    while world.clock.unix() < end {
        serials.insert(updates.next(&world.clock).await.svid("web").serial_decimal());
    }
    assert!((80..115).contains(&serials.len()), "{} SVIDs in two days", serials.len());
}

/// What was issued is on record, each signature once, in a chain that verifies.
#[tokio::test(start_paused = true)]
async fn every_signature_is_on_record() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let serial = node.me().fetch(&world.clock).await.svid("web").serial_decimal();
    world.clock.sleep(Duration::from_secs(2)).await;
    world.server().issued.flush().await.unwrap();
    let recorded = rusqlite_serials(&world);
    assert_eq!(recorded.iter().filter(|recorded| **recorded == serial).count(), 1, "{recorded:?}");
}

fn rusqlite_serials(world: &World) -> Vec<String> {
    let database = rusqlite::Connection::open(world.folder.path().join("datastore.sqlite3")).unwrap();
    let mut statement = database.prepare("SELECT serial FROM finial_issued").unwrap();
    let serials = statement.query_map([], |row| row.get(0)).unwrap();
    serials.collect::<Result<_, _>>().unwrap()
}
