use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::from_unix_seconds;
use finial_identity::peer;
use finial_identity::x509_svid::AuthorityCertificate;

use super::pki::{self, Pki};
use super::{Machine, today, trust_domain};
use crate::authority::chain;
use crate::authority::drive::{Driver, Progress};
use crate::authority::issue::ActiveJwtKey;
use crate::authority::jwt_keys::JwtKeys;
use crate::authority::x509_cas::X509Cas;
use crate::bundles::own::OwnBundle;

const HOUR: i64 = 3600;

fn active_id(driver: &Driver<X509Cas>) -> Option<String> {
    driver.active().borrow().as_ref().map(|ca| ca.authority_id().to_owned())
}

/// Whatever happened: what signs is valid and is held up by what the store says of the bundle.
async fn assert_sound(machine: &Machine, driver: &Driver<X509Cas>, when: &str) {
    let Some(ca) = driver.active().borrow().clone() else { return };
    let roots = machine.roots().await;
    let own = std::slice::from_ref(ca.der());
    let chain = if ca.above().is_empty() { own } else { ca.above() };
    let anchored = chain::check(chain, &roots, 0, machine.clock.now())
        .unwrap_or_else(|fault| panic!("{when}: what signs is not in the bundle: {fault}"));
    assert_eq!(anchored.ends, ca.ends(), "{when}");
}

/// Steps until nothing is due; how many steps it took.
async fn settle(machine: &Machine, driver: &mut Driver<X509Cas>) -> usize {
    for steps in 0..40 {
        let progress = driver.step().await.unwrap();
        assert_sound(machine, driver, &format!("after {progress:?}")).await;
        if let Progress::Waiting(until) = progress {
            assert!(until > machine.clock.now());
            return steps;
        }
    }
    panic!("40 steps and still not at rest: {:?}", driver.slots);
}

fn enterprise() -> Pki {
    let pki = Pki::new();
    pki.root("root", pki::RSA, "/C=DE/O=Big Corp/CN=Root", 3650, pki::CA);
    pki.below("issuing", "root", pki::P384, "/C=DE/O=Big Corp/OU=one/OU=two/CN=Issuing", 1825, pki::CA);
    pki
}

#[tokio::test(start_paused = true)]
async fn the_first_start_takes_each_step_once_and_in_order() {
    use crate::authority::rotate::SlotId::A;
    let machine = Machine::new().await;
    let mut driver = machine.driver().await;
    let mut seen = Vec::new();
    loop {
        match driver.step().await.unwrap() {
            Progress::Waiting(until) => {
                let waited = until.duration_since(machine.clock.now()).unwrap();
                assert!(
                    waited <= Duration::from_secs(12 * 3600) && waited > Duration::from_secs(12 * 3600 - 2)
                );
                break;
            }
            progress => seen.push(progress),
        }
    }
    let expected = [
        Progress::KeyMade(A),
        Progress::IntentJournaled(A),
        Progress::Made(A),
        Progress::PreparationJournaled(A),
        Progress::Prepared(A),
        Progress::ActivationJournaled(A),
        Progress::Activated(A),
    ];
    assert_eq!(seen, expected);
    assert_eq!(machine.roots().await.len(), 1);
}

/// The table: killed once after each possible step of a first start and two rotations.
async fn survives_a_kill_after_every_step(make: impl AsyncFn() -> Machine, roots_at_most: usize) {
    let mut kill_after = 1;
    loop {
        let machine = make().await;
        let (mut driver, mut steps, mut killed) = (machine.driver().await, 0, None);
        let mut signed_before = None;
        for hours in [0, 12, 8, 4, 8, 4, 8] {
            machine.clock.jump(hours * HOUR);
            // Bounded, so that a driver that never rests fails instead of hanging.
            for _ in 0..40 {
                let progress = driver.step().await.unwrap();
                let when = format!("kill after step {kill_after} ({killed:?}), now {progress:?}");
                assert_sound(&machine, &driver, &when).await;
                if signed_before.is_some() {
                    assert!(
                        active_id(&driver).is_some(),
                        "{when}: something signed before, nothing does now"
                    );
                }
                if matches!(progress, Progress::Waiting(_)) {
                    break;
                }
                steps += 1;
                if steps == kill_after {
                    let before = active_id(&driver);
                    drop(driver);
                    driver = machine.driver().await;
                    killed = Some(progress);
                    assert_sound(&machine, &driver, &format!("restart after {progress:?}")).await;
                    match progress {
                        // Written down, not yet done: the restart does it.
                        Progress::ActivationJournaled(_) => assert!(active_id(&driver).is_some()),
                        _ => assert_eq!(active_id(&driver), before, "restart after {progress:?}"),
                    }
                }
                signed_before = active_id(&driver).or(signed_before);
            }
            assert!(matches!(driver.step().await.unwrap(), Progress::Waiting(_)), "{:?}", driver.slots);
        }
        let journals = machine.store.journal().list().await.unwrap();
        let mine =
            journals.iter().filter(|row| Some(&row.active_x509_authority_id) == active_id(&driver).as_ref());
        assert_eq!(mine.count(), 1, "killed after {killed:?}");
        assert!(
            machine.roots().await.len() <= roots_at_most,
            "killed after {killed:?}: stray roots in the bundle"
        );
        if killed.is_none() {
            assert!(kill_after > 20, "the table is too short: {kill_after}");
            return;
        }
        kill_after += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_self_signed_ca_survives_a_kill_after_every_step() {
    // Prepared at 0, 12, 24 and 36 hours; a kill right after one was put into the bundle wastes none.
    survives_a_kill_after_every_step(Machine::new, 4).await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_ca_survives_a_kill_after_every_step() {
    let pki = enterprise();
    let make = async || {
        let mut machine = Machine::new().await;
        machine.upstream =
            Some(pki.upstream("issuing.pem", "issuing.key", Some("root.pem"), machine.clock.clone()));
        machine
    };
    survives_a_kill_after_every_step(make, 1).await;
}

/// The key that signs is the one that the store's bundle has under its ID.
async fn assert_published(machine: &Machine, key: Option<Arc<ActiveJwtKey>>, when: &str) {
    let Some(key) = key else { return };
    let bundle = machine.store.bundles().get(&trust_domain()).await.unwrap().unwrap();
    let known =
        bundle.jwt_authority(&key.key_id).unwrap_or_else(|| panic!("{when}: it is not in the bundle"));
    assert_eq!(known.public_key, key.key.public_key_der(), "{when}");
    assert_eq!(from_unix_seconds(known.expires_at), key.not_after, "{when}");
}

/// Both machines beside each other, which share the journal's row: killed once after each possible step of the JWT key's.
#[tokio::test(start_paused = true)]
async fn a_jwt_key_survives_a_kill_after_every_step() {
    let key_id = |driver: &Driver<JwtKeys>| driver.active().borrow().as_ref().map(|key| key.key_id.clone());
    let mut kill_after = 1;
    loop {
        let machine = Machine::new().await;
        let parts = machine.parts().await;
        let (mut cas, mut keys) = (machine.x509_driver(parts.clone()).await, machine.jwt_driver(parts).await);
        let (mut steps, mut killed, mut signed_before) = (0, None, None);
        for hours in [0, 12, 8, 4, 8, 4, 8] {
            machine.clock.jump(hours * HOUR);
            settle(&machine, &mut cas).await;
            for _ in 0..40 {
                let progress = keys.step().await.unwrap();
                let when = format!("kill after step {kill_after} ({killed:?}), now {progress:?}");
                assert_published(&machine, keys.active().borrow().clone(), &when).await;
                assert!(
                    signed_before.is_none() || key_id(&keys).is_some(),
                    "{when}: something signed before, nothing does now"
                );
                if matches!(progress, Progress::Waiting(_)) {
                    break;
                }
                steps += 1;
                if steps == kill_after {
                    let (before, ca_before) = (key_id(&keys), active_id(&cas));
                    let parts = machine.parts().await;
                    cas = machine.x509_driver(parts.clone()).await;
                    keys = machine.jwt_driver(parts).await;
                    killed = Some(progress);
                    assert_eq!(active_id(&cas), ca_before, "{when}: the other machine is not touched");
                    assert_published(&machine, keys.active().borrow().clone(), &when).await;
                    match progress {
                        Progress::ActivationJournaled(_) => assert!(key_id(&keys).is_some(), "{when}"),
                        _ => assert_eq!(key_id(&keys), before, "restart after {progress:?}"),
                    }
                }
                signed_before = key_id(&keys).or(signed_before);
            }
            assert!(matches!(keys.step().await.unwrap(), Progress::Waiting(_)), "{:?}", keys.slots);
        }
        let bundle = machine.store.bundles().get(&trust_domain()).await.unwrap().unwrap();
        assert!(bundle.jwt_authorities.len() <= 4, "killed after {killed:?}: stray keys in the bundle");
        assert_eq!(machine.store.journal().list().await.unwrap().len(), 1, "killed after {killed:?}");
        if killed.is_none() {
            assert!(kill_after > 20, "the table is too short: {kill_after}");
            return;
        }
        kill_after += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_jwt_key_that_was_taken_out_of_the_bundle_does_not_come_back() {
    let machine = Machine::new().await;
    let parts = machine.parts().await;
    machine.x509_driver(parts.clone()).await.start().await.unwrap();
    let mut keys = machine.jwt_driver(parts).await;
    keys.start().await.unwrap();
    let first = keys.active().borrow().clone().unwrap();
    let again = machine.jwt_driver(machine.parts().await).await.active().borrow().clone().unwrap();
    assert_eq!((&again.key_id, again.not_after), (&first.key_id, first.not_after));

    machine.store.bundles().taint_jwt(&trust_domain(), &first.key_id).await.unwrap();
    machine.store.bundles().revoke_jwt(&trust_domain(), &first.key_id).await.unwrap();
    let mut keys = machine.jwt_driver(machine.parts().await).await;
    assert!(keys.active().borrow().is_none());
    keys.start().await.unwrap();
    let next = keys.active().borrow().clone();
    assert_ne!(next.as_ref().unwrap().key_id, first.key_id);
    assert_published(&machine, next, "after a new start").await;
}

#[tokio::test(start_paused = true)]
async fn the_bundle_holds_a_new_root_hours_before_it_signs() {
    let machine = Machine::new().await;
    let mut driver = machine.driver().await;
    settle(&machine, &mut driver).await;
    let first = active_id(&driver);
    machine.clock.jump(12 * HOUR);
    settle(&machine, &mut driver).await;
    assert_eq!(machine.roots().await.len(), 2);
    assert_eq!(active_id(&driver), first);
    machine.clock.jump(8 * HOUR - 60);
    settle(&machine, &mut driver).await;
    assert_eq!(active_id(&driver), first);
    machine.clock.jump(120);
    settle(&machine, &mut driver).await;
    assert_ne!(active_id(&driver), first);
}

#[tokio::test(start_paused = true)]
async fn broken_upstream_files_leave_the_running_ca_in_use() {
    let pki = enterprise();
    let mut machine = Machine::new().await;
    machine.upstream =
        Some(pki.upstream("issuing.pem", "issuing.key", Some("root.pem"), machine.clock.clone()));
    let mut driver = machine.driver().await;
    settle(&machine, &mut driver).await;
    let first = active_id(&driver);
    let ca = driver.active().borrow().clone().unwrap();
    assert_eq!(ca.above().len(), 2, "our CA and the enterprise's issuing CA, not the root");
    assert_eq!(machine.roots().await, [pki.der("root.pem").to_vec()]);

    machine.clock.jump(13 * HOUR);
    std::fs::rename(pki.path("issuing.key"), pki.path("gone.key")).unwrap();
    let mut text = String::new();
    for _ in 0..8 {
        match driver.step().await {
            Ok(progress) => assert!(!matches!(progress, Progress::Waiting(_)), "{progress:?}"),
            Err(error) => text = error.to_string(),
        }
    }
    assert!(text.contains("issuing.key can not be read"), "{text}");
    assert_eq!(active_id(&driver), first);
    assert_sound(&machine, &driver, "with broken files").await;

    // A restart meanwhile serves on with the CA it has, and does not insist on the files.
    let mut driver = machine.driver().await;
    driver.start().await.unwrap();
    assert_eq!(active_id(&driver), first);

    std::fs::rename(pki.path("gone.key"), pki.path("issuing.key")).unwrap();
    settle(&machine, &mut driver).await;
    machine.clock.jump(8 * HOUR);
    settle(&machine, &mut driver).await;
    assert_ne!(active_id(&driver), first);
}

#[tokio::test(start_paused = true)]
async fn without_a_ca_a_start_fails_with_the_cause() {
    let pki = enterprise();
    let mut machine = Machine::new().await;
    machine.upstream =
        Some(pki.upstream("issuing.pem", "nowhere.key", Some("root.pem"), machine.clock.clone()));
    let error = machine.driver().await.start().await.unwrap_err().to_string();
    assert!(error.contains("nowhere.key can not be read") && error.contains("make it readable"), "{error}");
    assert!(machine.roots().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_would_gain_nothing_is_refused_until_the_parent_is_renewed() {
    let pki = Pki::new();
    pki.root("root", pki::P256, "/O=Big Corp/CN=Root", 3650, pki::CA);
    pki.below("issuing", "root", pki::P256, "/O=Big Corp/CN=Issuing", 1, pki::CA);
    let mut machine = Machine::new().await;
    machine.upstream =
        Some(pki.upstream("issuing.pem", "issuing.key", Some("root.pem"), machine.clock.clone()));
    let mut driver = machine.driver().await;
    settle(&machine, &mut driver).await;
    let first = active_id(&driver);
    let ends = driver.active().borrow().as_ref().unwrap().ends();
    let parent = AuthorityCertificate::read(&pki.der("issuing.pem")).unwrap();
    assert_eq!(from_unix_seconds(ends), parent.not_after(), "capped by the enterprise's certificate");

    machine.clock.jump(13 * HOUR);
    let mut errors = Vec::new();
    for _ in 0..8 {
        errors.extend(driver.step().await.err().map(|error| error.to_string()));
    }
    assert!(errors.iter().all(|text| text.contains("no later than the one in use")), "{errors:?}");
    assert!(errors.len() > 3, "{errors:?}");
    assert_eq!(active_id(&driver), first);

    pki.certify("issuing", "root", "/O=Big Corp/CN=Issuing", 365, pki::CA);
    settle(&machine, &mut driver).await;
    assert!(driver.slots.prepared().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_was_taken_out_of_the_bundle_does_not_come_back() {
    let machine = Machine::new().await;
    let mut driver = machine.driver().await;
    settle(&machine, &mut driver).await;
    let first = active_id(&driver).unwrap();
    drop(driver);
    machine.store.bundles().taint_x509(&trust_domain(), &first).await.unwrap();
    machine.store.bundles().revoke_x509(&trust_domain(), &first).await.unwrap();
    let mut driver = machine.driver().await;
    assert_eq!(active_id(&driver), None);
    driver.start().await.unwrap();
    assert_ne!(active_id(&driver), Some(first));
    assert_sound(&machine, &driver, "after a new start").await;
}

#[tokio::test(start_paused = true)]
async fn two_servers_on_one_database_each_find_their_own_journal() {
    let here = Machine::new().await;
    let there = Machine {
        clock: here.clock.clone(),
        store: here.store.clone(),
        issued: here.issued.clone(),
        ..Machine::new().await
    };
    let (mut one, mut two) = (here.driver().await, there.driver().await);
    one.start().await.unwrap();
    two.start().await.unwrap();
    assert_ne!(active_id(&one), active_id(&two));
    assert_eq!(here.roots().await.len(), 2);
    let (again, other) = (here.driver().await, there.driver().await);
    assert_eq!(active_id(&again), active_id(&one));
    assert_eq!(active_id(&other), active_id(&two));
}

/// A year with every part running as in the server: at any time the server's SVID verifies with the bundle that agents
/// were given hours before.
#[tokio::test(start_paused = true)]
async fn a_year_passes_without_a_gap() {
    let machine = Machine::new().await;
    let bundle = OwnBundle::load(machine.store.clone()).await.unwrap();
    let authority = machine.authority(&bundle).await;
    let end = today() + Duration::from_secs(365 * 24 * 3600);
    tokio::spawn(authority.turning.run());
    tokio::spawn(bundle.clone().run(machine.clock.clone(), Duration::from_secs(3600)));

    let mut an_agents_bundle = bundle.current();
    let (mut authorities, mut svids) = (HashSet::new(), HashSet::new());
    let mut jwt_keys = HashSet::new();
    while machine.clock.now() < end {
        machine.clock.sleep(Duration::from_secs(2 * 3600 + 7)).await;
        let now = machine.clock.now();
        let shown = Arc::clone(&authority.server_svid.borrow());
        peer::verify_svid(&shown.svid, &an_agents_bundle.x509_authorities, now)
            .unwrap_or_else(|error| panic!("an agent that was away for two hours: {error}"));
        let key = authority.issuer.active_jwt().unwrap();
        let known = an_agents_bundle.jwt_authority(&key.key_id);
        assert_eq!(known.map(|known| known.public_key.as_slice()), Some(key.key.public_key_der()));
        assert!(key.not_after > now);
        jwt_keys.insert(key.key_id.clone());
        an_agents_bundle = bundle.current();
        assert!((1..=6).contains(&an_agents_bundle.jwt_authorities.len()), "expired keys are pruned");
        assert!((1..=6).contains(&an_agents_bundle.x509_authorities.len()), "expired authorities are pruned");
        authorities.insert(authority.issuer.active().unwrap().authority_id().to_owned());
        svids.insert(shown.svid.serial_decimal());
    }
    assert!((700..760).contains(&authorities.len()), "a new CA every 12 hours: {}", authorities.len());
    assert!((700..760).contains(&jwt_keys.len()), "a new JWT key every 12 hours: {}", jwt_keys.len());
    assert!(svids.len() > 4000, "a new SVID by each look: {}", svids.len());
    assert_eq!(machine.store.journal().list().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_svid_of_a_tainted_authority_is_replaced_at_once() {
    let mut machine = Machine::new().await;
    machine.settings.x509_svid_ttl = Duration::from_secs(4 * 3600);
    let bundle = OwnBundle::load(machine.store.clone()).await.unwrap();
    let authority = machine.authority(&bundle).await;
    tokio::spawn(authority.turning.run());
    let first = authority.server_svid.borrow().authority_id.clone();
    machine.clock.sleep(Duration::from_secs(20 * 3600 + 30)).await;
    assert_ne!(authority.issuer.active().unwrap().authority_id(), first, "the next CA signs");
    assert_eq!(
        authority.server_svid.borrow().authority_id,
        first,
        "the SVID is half an hour or so old and stays"
    );

    machine.store.bundles().taint_x509(&trust_domain(), &first).await.unwrap();
    bundle.refresh().await.unwrap();
    machine.clock.sleep(Duration::from_secs(1)).await;
    let second = authority.issuer.active().unwrap().authority_id().to_owned();
    assert_eq!(authority.server_svid.borrow().authority_id, second);

    // Tainting the one that signs now must not make it sign again and again.
    machine.store.bundles().taint_x509(&trust_domain(), &second).await.unwrap();
    bundle.refresh().await.unwrap();
    let serial = authority.server_svid.borrow().svid.serial_decimal();
    machine.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(authority.server_svid.borrow().svid.serial_decimal(), serial);
}

/// The driver would refuse a CA that ends no later than the one in use; an operator may want it all the same.
#[tokio::test(start_paused = true)]
async fn an_order_is_carried_out_between_two_steps_and_not_tried_again() {
    let pki = Pki::new();
    pki.root("root", pki::P256, "/O=Big Corp/CN=Root", 3650, pki::CA);
    pki.below("issuing", "root", pki::P256, "/O=Big Corp/CN=Issuing", 1, pki::CA);
    let mut machine = Machine::new().await;
    machine.upstream =
        Some(pki.upstream("issuing.pem", "issuing.key", Some("root.pem"), machine.clock.clone()));
    let mut driver = machine.driver().await;
    driver.start().await.unwrap();
    let (orders, active) = (driver.orders(), driver.active());
    tokio::spawn(driver.run());
    let first = orders.show().await.unwrap().active.unwrap();
    machine.clock.sleep(Duration::from_secs(60)).await;

    let gone = pki.path("gone.key");
    std::fs::rename(pki.path("issuing.key"), &gone).unwrap();
    let text = orders.prepare().await.unwrap_err().to_string();
    assert!(text.contains("issuing.key can not be read"), "{text}");
    std::fs::rename(&gone, pki.path("issuing.key")).unwrap();
    machine.clock.sleep(Duration::from_secs(600)).await;
    let standings = orders.show().await.unwrap();
    assert_eq!((standings.active.as_ref(), &standings.next), (Some(&first), &None), "nobody tried it again");

    let prepared = orders.prepare().await.unwrap().prepared().unwrap().clone();
    assert_eq!(prepared.expires_at, first.expires_at, "both end with the enterprise's certificate");
    let standings = orders.activate(&prepared.authority_id).await.unwrap();
    assert_eq!((standings.active.as_ref(), standings.old()), (Some(&prepared), Some(&first)));
    assert_eq!(active.borrow().as_ref().unwrap().authority_id(), prepared.authority_id);
    let again = machine.driver().await;
    assert_eq!(active_id(&again), Some(prepared.authority_id), "a start goes on with it");
}
