//! How often those who look alike may call: `experimental.ratelimit`.
//!
//! One bucket for each method and set of selectors. It holds as many calls as are allowed in a second, and is asked when
//! a call or a stream begins. The agent's own process is not limited.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_identity::selector::Selector;
use tonic::Status;

use super::caller::is_this_agent;

/// How often full buckets are looked for, to forget them.
const SWEEP: Duration = Duration::from_secs(60);

/// Calls in a second for each set of selectors; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    pub fetch_x509_svid: u32,
    pub fetch_jwt_svid: u32,
    pub fetch_x509_bundles: u32,
    pub fetch_jwt_bundles: u32,
    pub stream_secrets: u32,
    pub fetch_secrets: u32,
}

/// A method that can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Method {
    FetchX509Svid,
    FetchX509Bundles,
    FetchJwtSvid,
    FetchJwtBundles,
    StreamSecrets,
    FetchSecrets,
}

/// The buckets. Clones share them.
#[derive(Clone)]
pub(crate) struct Limits {
    rates: RateLimits,
    clock: Clock,
    buckets: Arc<Mutex<Buckets>>,
}

#[derive(Default)]
struct Buckets {
    /// When each bucket will be full again, on the monotonic clock.
    full_at: HashMap<(Method, Vec<Selector>), Duration>,
    swept: Duration,
}

impl Limits {
    pub(crate) fn new(rates: RateLimits, clock: Clock) -> Limits {
        Limits { rates, clock, buckets: Arc::default() }
    }

    /// Counts a call of the process `pid`, whose selectors (sorted) these are.
    pub(crate) fn take(&self, method: Method, pid: u32, selectors: &[Selector]) -> Result<(), Status> {
        let rate = self.rate(method);
        if rate == 0 || is_this_agent(pid) {
            return Ok(());
        }
        let now = self.clock.monotonic();
        let each = Duration::from_secs(1) / rate;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(buckets.swept) >= SWEEP {
            buckets.full_at.retain(|_, full_at| *full_at > now);
            buckets.swept = now;
        }
        let full_at = buckets.full_at.entry((method, selectors.to_vec())).or_insert(now);
        let next = (*full_at).max(now) + each;
        if next - now > each * rate {
            return Err(Status::unavailable(format!("rate limit exceeded for {}", method.path())));
        }
        *full_at = next;
        Ok(())
    }

    fn rate(&self, method: Method) -> u32 {
        match method {
            Method::FetchX509Svid => self.rates.fetch_x509_svid,
            Method::FetchX509Bundles => self.rates.fetch_x509_bundles,
            Method::FetchJwtSvid => self.rates.fetch_jwt_svid,
            Method::FetchJwtBundles => self.rates.fetch_jwt_bundles,
            Method::StreamSecrets => self.rates.stream_secrets,
            Method::FetchSecrets => self.rates.fetch_secrets,
        }
    }
}

impl Method {
    fn path(self) -> &'static str {
        match self {
            Method::FetchX509Svid => "/SpiffeWorkloadAPI/FetchX509SVID",
            Method::FetchX509Bundles => "/SpiffeWorkloadAPI/FetchX509Bundles",
            Method::FetchJwtSvid => "/SpiffeWorkloadAPI/FetchJWTSVID",
            Method::FetchJwtBundles => "/SpiffeWorkloadAPI/FetchJWTBundles",
            Method::StreamSecrets => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            Method::FetchSecrets => "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fixture::{clock, selectors};

    #[tokio::test(start_paused = true)]
    async fn each_set_of_selectors_has_a_bucket_of_one_second() {
        let clock = clock();
        let limits = Limits::new(RateLimits { fetch_x509_svid: 3, ..RateLimits::default() }, clock.clone());
        let (one, two) = (selectors(&["a:1".into()]), selectors(&["a:1".into(), "a:2".into()]));
        let take = |who: &[Selector]| limits.take(Method::FetchX509Svid, 1, who);
        for _ in 0..3 {
            take(&one).unwrap();
        }
        let refused = take(&one).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        assert_eq!(refused.message(), "rate limit exceeded for /SpiffeWorkloadAPI/FetchX509SVID");
        take(&two).unwrap();
        limits.take(Method::FetchX509Bundles, 1, &one).unwrap();
        limits.take(Method::FetchX509Svid, std::process::id(), &one).unwrap();

        clock.sleep(Duration::from_millis(334)).await;
        take(&one).unwrap();
        take(&one).unwrap_err();
        clock.sleep(Duration::from_secs(100)).await;
        for _ in 0..3 {
            take(&one).unwrap();
        }
        take(&one).unwrap_err();
        assert_eq!(limits.buckets.lock().unwrap().full_at.len(), 1, "what is full is forgotten");
    }
}
