//! Clocks jump.

use finial_tests::world::{World, my_uid};

/// A suspended machine wakes up when its SVIDs, the agent's own and the workload's, are long due: a new one comes at
/// once, and before the old one ends.
#[tokio::test(start_paused = true)]
async fn after_a_jump_ahead_the_next_svid_comes_at_once() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let first = updates.next(&world.clock).await;
    let serial = first.svid("web").serial_decimal();

    // Of an hour: well past the half at which it is due, and short of the end.
    world.clock.jump(50 * 60);
    let started = world.clock.unix();
    loop {
        let context = updates.next(&world.clock).await;
        assert!(context.svid("web").not_after() > world.clock.now());
        if context.svid("web").serial_decimal() != serial {
            break;
        }
    }
    assert!(world.clock.unix() - started < 60, "it took {} s", world.clock.unix() - started);
}

/// A clock that is set back a little, within what SVIDs are backdated by, does not hold up the renewals after it.
#[tokio::test(start_paused = true)]
async fn a_jump_back_does_not_stop_renewal() {
    let world = World::new().await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let first = updates.next(&world.clock).await;
    world.clock.jump(-5);
    let end = world.clock.unix() + 2 * 3600;
    let mut last = first.svid("web").serial_decimal();
    let mut renewals = 0;
    while world.clock.unix() < end {
        let serial = updates.next(&world.clock).await.svid("web").serial_decimal();
        renewals += i32::from(serial != last);
        last = serial;
    }
    assert!(renewals >= 3, "{renewals} renewals in two hours");
}
