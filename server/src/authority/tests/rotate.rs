use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;

use crate::authority::rotate::{Held, SlotId, Slots, Standing, Step, next};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn held(id: &str, issued: u64, ends: u64, standing: Standing) -> Held {
    Held { authority_id: id.into(), issued_at: at(issued), not_after: at(ends), standing }
}

#[test]
fn a_day_of_life_turns_at_12_and_20_hours() {
    let mut slots = Slots::default();
    assert_eq!(next(&slots, at(0)), Step::Prepare(SlotId::A));
    slots = slots.with(SlotId::A, held("1", 0, DAY, Standing::Prepared));
    assert_eq!(
        next(&slots, at(0)),
        Step::Activate(SlotId::A),
        "nothing signs yet, so there is nothing to wait for"
    );
    slots = slots.activated(SlotId::A);
    assert_eq!(next(&slots, at(0)), Step::Wait(at(12 * HOUR)));
    assert_eq!(next(&slots, at(12 * HOUR)), Step::Prepare(SlotId::B));
    slots = slots.with(SlotId::B, held("2", 12 * HOUR, 36 * HOUR, Standing::Prepared));
    assert_eq!(next(&slots, at(12 * HOUR)), Step::Wait(at(20 * HOUR)));
    assert_eq!(next(&slots, at(20 * HOUR)), Step::Activate(SlotId::B));
    slots = slots.activated(SlotId::B);
    assert_eq!(slots.get(SlotId::A).unwrap().standing, Standing::Old);
    assert_eq!(next(&slots, at(20 * HOUR)), Step::Wait(at(DAY)));
    assert_eq!(next(&slots, at(DAY)), Step::Retire(SlotId::A));
    slots = slots.without(SlotId::A);
    assert_eq!(next(&slots, at(DAY)), Step::Prepare(SlotId::A));
}

#[test]
fn long_lives_turn_30_and_7_days_before_their_end() {
    let year = 365 * DAY;
    let slots = Slots::default().with(SlotId::B, held("1", 0, year, Standing::Active));
    assert_eq!(next(&slots, at(0)), Step::Wait(at(year - 30 * DAY)));
    let slots = slots.with(SlotId::A, held("2", year - 30 * DAY, 2 * year, Standing::Prepared));
    assert_eq!(next(&slots, at(year - 30 * DAY)), Step::Wait(at(year - 7 * DAY)));
}

#[test]
fn an_old_authority_makes_room_before_its_end() {
    let slots = Slots::default()
        .with(SlotId::A, held("1", 0, 20 * DAY, Standing::Old))
        .with(SlotId::B, held("2", 0, DAY, Standing::Active));
    assert_eq!(next(&slots, at(12 * HOUR)), Step::Prepare(SlotId::A));
}

#[test]
fn after_a_long_sleep_what_is_prepared_or_made_anew_signs_at_once() {
    let expired = Slots::default().with(SlotId::A, held("1", 0, DAY, Standing::Active));
    assert_eq!(next(&expired, at(9 * DAY)), Step::Prepare(SlotId::B));
    let both = expired.clone().with(SlotId::B, held("2", 12 * HOUR, 36 * HOUR, Standing::Prepared));
    assert_eq!(next(&both, at(30 * HOUR)), Step::Activate(SlotId::B));
    assert_eq!(next(&both, at(9 * DAY)), Step::Retire(SlotId::B), "a prepared one that expired never signs");
}

#[derive(Clone, Debug)]
enum Event {
    /// Seconds pass.
    Pass(u64),
    /// What is due is tried, and works or does not.
    Try { works: bool },
    /// The lifetime that new authorities get changes, in seconds.
    Lifetime(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1..3 * DAY).prop_map(Event::Pass),
        8 => prop::bool::weighted(0.8).prop_map(|works| Event::Try { works }),
        1 => (HOUR..400 * DAY).prop_map(Event::Lifetime),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Years of random steps, with the driver's order: bundle first, then slots.
    #[test]
    fn at_most_one_signs_it_is_in_the_bundle_and_stays_until_there_is_another(
        events in prop::collection::vec(event(), 1..1200)
    ) {
        let (mut slots, mut bundle, mut now, mut lifetime, mut made) =
            (Slots::default(), HashSet::new(), 0, DAY, 0);
        for event in events {
            let signing = slots.active().and_then(|slot| slots.get(slot)).cloned();
            match event {
                Event::Pass(seconds) => now += seconds,
                Event::Lifetime(seconds) => lifetime = seconds,
                Event::Try { works: false } => {}
                Event::Try { works: true } => match next(&slots, at(now)) {
                    Step::Wait(until) => prop_assert!(until > at(now), "waiting for what has passed"),
                    Step::Prepare(slot) => {
                        prop_assert_ne!(Some(slot), slots.active(), "a slot that signs is never overwritten");
                        prop_assert_eq!(slots.prepared(), None, "what is prepared is never thrown away");
                        made += 1;
                        bundle.insert(made.to_string());
                        slots = slots.with(slot, held(&made.to_string(), now, now + lifetime, Standing::Prepared));
                    }
                    Step::Activate(slot) => {
                        let incoming = slots.get(slot).cloned().unwrap();
                        prop_assert_eq!(incoming.standing, Standing::Prepared);
                        prop_assert!(incoming.not_after > at(now), "an expired authority never starts to sign");
                        slots = slots.activated(slot);
                    }
                    Step::Retire(slot) => {
                        let outgoing = slots.get(slot).unwrap();
                        prop_assert!(outgoing.not_after <= at(now));
                        prop_assert_ne!(outgoing.standing, Standing::Active);
                        slots = slots.without(slot);
                    }
                },
            }
            let standings: Vec<_> = [SlotId::A, SlotId::B].iter().filter_map(|slot| slots.get(*slot)).collect();
            let count = |wanted| standings.iter().filter(|held| held.standing == wanted).count();
            prop_assert!(count(Standing::Active) <= 1);
            prop_assert!(count(Standing::Prepared) <= 1);
            prop_assert!(standings.iter().all(|held| bundle.contains(&held.authority_id)));
            if signing.is_some() {
                prop_assert_eq!(count(Standing::Active), 1, "once there is one that signs, there always is");
            }
        }
        // Left alone, it comes to rest within a few steps with one that signs and is valid.
        for _ in 0..6 {
            match next(&slots, at(now)) {
                Step::Prepare(slot) => {
                    slots = slots.with(slot, held("last", now, now + lifetime, Standing::Prepared));
                }
                Step::Activate(slot) => slots = slots.activated(slot),
                Step::Retire(slot) => slots = slots.without(slot),
                Step::Wait(_) => break,
            }
        }
        prop_assert!(matches!(next(&slots, at(now)), Step::Wait(_)));
        let active = slots.active().and_then(|slot| slots.get(slot)).unwrap();
        prop_assert!(active.not_after > at(now));
    }
}
