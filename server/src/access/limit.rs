//! Rate limits for callers from the network: token buckets, one set for each [`Limit`], one bucket for each IP address.
//!
//! Whoever asks for too much waits; a call is refused only if it could never be served (more tokens than a bucket
//! holds) or not before its own deadline. Callers of one address are served in the order in which they came. Callers
//! without an IP address (the admin socket) are never limited.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use finial_daemon::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::permit::Limit;

/// A bucket that nobody used for one to two of these is dropped; it would be full by then.
const TURN: Duration = Duration::from_secs(60);

const ATTEST_PER_SECOND: NonZeroU32 = rate(1);
const SIGN_PER_SECOND: NonZeroU32 = rate(500);
const PUBLISH_PER_SECOND: NonZeroU32 = rate(500);
const STATUS_PER_SECOND: NonZeroU32 = rate(10);

const fn rate(per_second: u32) -> NonZeroU32 {
    match NonZeroU32::new(per_second) {
        Some(rate) => rate,
        None => NonZeroU32::MIN,
    }
}

/// The setting `ratelimit`. Publishing keys and posting status are always limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    pub attestation: bool,
    pub signing: bool,
}

/// All buckets of a server. Clones share them.
#[derive(Clone)]
pub struct Limits {
    clock: Clock,
    sets: Arc<HashMap<Limit, Addresses>>,
}

/// `RESOURCE_EXHAUSTED`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitFault {
    #[error("rate ({count}) exceeds burst size ({burst})")]
    ExceedsBurst { count: usize, burst: u32 },
    #[error("rate: Wait(n={count}) would exceed context deadline")]
    WouldExceedDeadline { count: u32 },
}

impl Default for Switches {
    fn default() -> Switches {
        Switches { attestation: true, signing: true }
    }
}

impl Limits {
    pub fn new(clock: Clock, switches: Switches) -> Limits {
        let mut rates = vec![(Limit::PublishKey, PUBLISH_PER_SECOND), (Limit::PostStatus, STATUS_PER_SECOND)];
        if switches.attestation {
            rates.push((Limit::Attest, ATTEST_PER_SECOND));
        }
        if switches.signing {
            rates.extend(
                [Limit::SignX509, Limit::SignJwt, Limit::SignWit].map(|limit| (limit, SIGN_PER_SECOND)),
            );
        }
        let sets = rates.into_iter().map(|(limit, rate)| (limit, Addresses::new(rate))).collect();
        Limits { clock, sets: Arc::new(sets) }
    }

    /// Waits until `count` tokens are there for `address` and takes them. `patience` is how long the caller would wait
    /// (its remaining deadline). Dropping the future takes nothing.
    pub async fn take(
        &self,
        limit: Limit,
        address: Option<IpAddr>,
        count: usize,
        patience: Option<Duration>,
    ) -> Result<(), LimitFault> {
        let (Some(set), Some(address)) = (self.sets.get(&limit), address) else { return Ok(()) };
        let burst = set.rate.get();
        let tokens = u32::try_from(count).ok().filter(|tokens| *tokens <= burst);
        let Some(tokens) = tokens else { return Err(LimitFault::ExceedsBurst { count, burst }) };
        let Some(tokens) = NonZeroU32::new(tokens) else { return Ok(()) };
        set.bucket(address.to_canonical(), &self.clock).take(tokens, patience, &self.clock).await
    }
}

/// The buckets of one limit. Those of `older` were not used since the last turn.
struct Addresses {
    rate: NonZeroU32,
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    current: HashMap<IpAddr, Arc<Bucket>>,
    older: HashMap<IpAddr, Arc<Bucket>>,
    turned: Duration,
}

struct Bucket {
    tokens: RateLimiter<NotKeyed, InMemoryState, Running, NoOpMiddleware<Duration>>,
    rate: NonZeroU32,
    /// Held by the caller whose turn it is; tokio's mutex serves in order of arrival.
    turn: tokio::sync::Mutex<()>,
    /// Tokens that callers in the queue want.
    queued: AtomicU64,
}

impl Addresses {
    fn new(rate: NonZeroU32) -> Addresses {
        Addresses { rate, buckets: Mutex::default() }
    }

    fn bucket(&self, address: IpAddr, clock: &Clock) -> Arc<Bucket> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.monotonic();
        if now.saturating_sub(buckets.turned) >= TURN {
            let current = std::mem::take(&mut buckets.current);
            // What nobody used for two turns goes; what somebody still waits for stays alive in his hands.
            let long_idle = now.saturating_sub(buckets.turned) >= 2 * TURN;
            buckets.older = if long_idle { HashMap::new() } else { current };
            buckets.turned = now;
        }
        if let Some(bucket) = buckets.current.get(&address) {
            return Arc::clone(bucket);
        }
        let bucket =
            buckets.older.remove(&address).unwrap_or_else(|| Arc::new(Bucket::new(self.rate, clock)));
        buckets.current.insert(address, Arc::clone(&bucket));
        bucket
    }
}

impl Bucket {
    fn new(rate: NonZeroU32, clock: &Clock) -> Bucket {
        Bucket {
            tokens: RateLimiter::direct_with_clock(Quota::per_second(rate), Running(clock.clone())),
            rate,
            turn: tokio::sync::Mutex::new(()),
            queued: AtomicU64::new(0),
        }
    }

    async fn take(
        &self,
        count: NonZeroU32,
        patience: Option<Duration>,
        clock: &Clock,
    ) -> Result<(), LimitFault> {
        let too_late = LimitFault::WouldExceedDeadline { count: count.get() };
        let last_moment = patience.map(|patience| clock.monotonic().saturating_add(patience));
        let ahead = self.queued.load(Ordering::Relaxed);
        let for_those_ahead = Duration::from_secs(1).mul_f64(ahead as f64 / f64::from(self.rate.get()));
        if patience.is_some_and(|patience| for_those_ahead > patience) {
            return Err(too_late);
        }
        let _queued = Queued::new(&self.queued, count);
        let _turn = self.turn.lock().await;
        loop {
            let wait = match self.tokens.check_n(count) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(not_until)) => not_until.wait_time_from(clock.monotonic()),
                // The caller of this function has compared `count` with the rate.
                Err(insufficient) => {
                    return Err(LimitFault::ExceedsBurst {
                        count: count.get() as usize,
                        burst: insufficient.0,
                    });
                }
            };
            if last_moment.is_some_and(|last| clock.monotonic().saturating_add(wait) > last) {
                return Err(too_late);
            }
            clock.sleep(wait).await;
        }
    }
}

/// Counts as queued while it lives.
struct Queued<'a> {
    queued: &'a AtomicU64,
    count: u64,
}

impl<'a> Queued<'a> {
    fn new(queued: &'a AtomicU64, count: NonZeroU32) -> Queued<'a> {
        let count = u64::from(count.get());
        queued.fetch_add(count, Ordering::Relaxed);
        Queued { queued, count }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Running time, for the token buckets.
#[derive(Clone)]
struct Running(Clock);

impl governor::clock::Clock for Running {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const HOST: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    fn limits(switches: Switches) -> (Clock, Limits) {
        let clock = Clock::paused(SystemTime::UNIX_EPOCH);
        (clock.clone(), Limits::new(clock, switches))
    }

    /// Within the granularity of tokio's timer, for each of `waits` waits.
    fn assert_took(clock: &Clock, seconds: f64, waits: u32) {
        let took = clock.monotonic().as_secs_f64();
        let slack = 0.002 * f64::from(waits.max(1));
        assert!((took - seconds).abs() <= slack, "took {took} s, expected {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn attestation_is_once_a_second_for_each_address() {
        let (clock, limits) = limits(Switches::default());
        for _ in 0..4 {
            limits.take(Limit::Attest, HOST, 1, None).await.unwrap();
        }
        assert_took(&clock, 3.0, 3);
        let other = Some("2001:db8::1".parse().unwrap());
        limits.take(Limit::Attest, other, 1, None).await.unwrap();
        assert_took(&clock, 3.0, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_counts_its_items_and_a_mapped_address_is_the_same_host() {
        let (clock, limits) = limits(Switches::default());
        limits.take(Limit::SignX509, HOST, 500, None).await.unwrap();
        assert_took(&clock, 0.0, 0);
        let mapped = Some("::ffff:192.0.2.1".parse().unwrap());
        limits.take(Limit::SignX509, mapped, 250, None).await.unwrap();
        assert_took(&clock, 0.5, 1);
        // Another set of buckets.
        limits.take(Limit::SignJwt, HOST, 500, None).await.unwrap();
        assert_took(&clock, 0.5, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_can_never_be_served_is_refused() {
        let (clock, limits) = limits(Switches::default());
        for (limit, count, burst) in
            [(Limit::Attest, 2, 1), (Limit::SignX509, 501, 500), (Limit::PostStatus, 11, 10)]
        {
            let fault = limits.take(limit, HOST, count, None).await.unwrap_err();
            assert_eq!(fault.to_string(), format!("rate ({count}) exceeds burst size ({burst})"));
        }
        let fault = limits.take(Limit::SignX509, HOST, usize::MAX, None).await.unwrap_err();
        assert_eq!(fault, LimitFault::ExceedsBurst { count: usize::MAX, burst: 500 });
        limits.take(Limit::SignX509, HOST, 0, None).await.unwrap();
        assert_took(&clock, 0.0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_whose_deadline_comes_first_is_told_at_once() {
        let (clock, limits) = limits(Switches::default());
        limits.take(Limit::Attest, HOST, 1, None).await.unwrap();
        let fault = limits.take(Limit::Attest, HOST, 1, Some(Duration::from_millis(400))).await.unwrap_err();
        assert_eq!(fault.to_string(), "rate: Wait(n=1) would exceed context deadline");
        assert_took(&clock, 0.0, 0);

        let queue: Vec<_> = (0..5)
            .map(|_| {
                let limits = limits.clone();
                tokio::spawn(async move { limits.take(Limit::Attest, HOST, 1, None).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let fault = limits.take(Limit::Attest, HOST, 1, Some(Duration::from_secs(4))).await.unwrap_err();
        assert_eq!(fault, LimitFault::WouldExceedDeadline { count: 1 });
        assert_took(&clock, 0.0, 0);
        for waiter in queue {
            waiter.await.unwrap().unwrap();
        }
        assert_took(&clock, 5.0, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_served_in_order_and_who_gives_up_takes_nothing() {
        let (clock, limits) = limits(Switches::default());
        limits.take(Limit::Attest, HOST, 1, None).await.unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for number in 0..4 {
            let (limits, served) = (limits.clone(), Arc::clone(&served));
            waiters.push(tokio::spawn(async move {
                limits.take(Limit::Attest, HOST, 1, None).await.unwrap();
                served.lock().unwrap().push(number);
            }));
            tokio::task::yield_now().await;
        }
        waiters.remove(1).abort();
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), [0, 2, 3]);
        assert_took(&clock, 3.0, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn small_calls_do_not_starve_a_large_one() {
        let (clock, limits) = limits(Switches::default());
        limits.take(Limit::SignX509, HOST, 500, None).await.unwrap();
        let large = tokio::spawn({
            let (limits, clock) = (limits.clone(), clock.clone());
            async move {
                limits.take(Limit::SignX509, HOST, 500, None).await.unwrap();
                clock.monotonic()
            }
        });
        tokio::task::yield_now().await;
        for _ in 0..10 {
            limits.take(Limit::SignX509, HOST, 1, None).await.unwrap();
        }
        let served = large.await.unwrap();
        assert!(served <= Duration::from_millis(1002), "served after {served:?}");
        assert!(clock.monotonic() > served);
    }

    #[tokio::test(start_paused = true)]
    async fn switches_and_the_admin_socket_are_free() {
        let (clock, limits) = limits(Switches { attestation: false, signing: false });
        for limit in [Limit::None, Limit::Attest, Limit::SignX509, Limit::SignJwt, Limit::SignWit] {
            limits.take(limit, HOST, 100_000, None).await.unwrap();
        }
        for limit in [Limit::PublishKey, Limit::PostStatus] {
            limits.take(limit, None, 100_000, None).await.unwrap();
            limits.take(limit, HOST, 100_000, None).await.unwrap_err();
        }
        assert_took(&clock, 0.0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_buckets_are_dropped() {
        let (_clock, limits) = limits(Switches::default());
        let count = |limits: &Limits| {
            let buckets = limits.sets[&Limit::PostStatus].buckets.lock().unwrap();
            buckets.current.len() + buckets.older.len()
        };
        for host in 0..200_u8 {
            let address = Some(IpAddr::from([198, 51, 100, host]));
            limits.take(Limit::PostStatus, address, 1, None).await.unwrap();
        }
        assert_eq!(count(&limits), 200);
        tokio::time::advance(TURN).await;
        limits.take(Limit::PostStatus, HOST, 1, None).await.unwrap();
        assert_eq!(count(&limits), 201);
        tokio::time::advance(TURN).await;
        limits.take(Limit::PostStatus, Some(IpAddr::from([198, 51, 100, 7])), 1, None).await.unwrap();
        assert_eq!(count(&limits), 2, "the rest was not used for two turns");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_in_use_survives_the_turns() {
        let (clock, limits) = limits(Switches::default());
        for _ in 0..180 {
            limits.take(Limit::Attest, HOST, 1, None).await.unwrap();
        }
        assert_took(&clock, 179.0, 179);
    }
}
