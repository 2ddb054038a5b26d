//! Tokens that somebody waits for, between those who wait and whoever asks the server.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use finial_identity::entry::Entry;
use tokio::sync::watch;

use super::{JwtIdentity, JwtKey, JwtSvid};
use crate::cache::Cache;

/// How long a token that is still valid is served after its renewal failed, before the server is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long the queue may become before those who hung up are looked for.
const SWEPT_FROM: usize = 64;

type Answer = Result<Arc<JwtSvid>, JwtFault>;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtFault {
    /// The server does not issue JWT-SVIDs.
    #[error("{0}")]
    NotIssued(String),
    /// The server could not be asked, or refused.
    #[error("{0}")]
    Failed(String),
    /// Nobody asks any more.
    #[error("the agent is stopping")]
    Stopping,
}

/// A token to ask the server for. Dropping it unanswered tells those who wait that the agent is stopping.
pub struct JwtRequest {
    /// The entry to ask for.
    pub entry: Arc<Entry>,
    /// For whom the token is meant, as the first who asked has put it.
    pub audience: Vec<String>,
    key: Arc<JwtKey>,
    is_unique: bool,
    answer: watch::Sender<Option<Answer>>,
}

/// All requests that are not answered yet.
#[derive(Default)]
pub(in crate::cache) struct Requests {
    /// Not taken by anybody yet. Who waited may have hung up meanwhile.
    queue: VecDeque<JwtRequest>,
    /// The length at which the queue is swept; twice what the last sweep left, so that sweeps cost little.
    sweep_at: usize,
    /// What others may wait for too.
    shared: HashMap<Shared, watch::Receiver<Option<Answer>>>,
}

/// A token for one version of one entry.
#[derive(PartialEq, Eq, Hash)]
struct Shared {
    key: Arc<JwtKey>,
    entry_id: String,
    revision: i64,
}

impl Cache {
    /// A token for an identity that this cache gave for this audience: the one that is held, unless it is
    /// due; else a new one. If there is none, or not within `jwt_svid_cache_hit_timeout`, the one that is due and valid.
    pub async fn fetch_jwt(&self, identity: &JwtIdentity, audience: &[String]) -> Answer {
        let held = identity.held.as_ref().filter(|_| !identity.is_unique());
        match held {
            Some(held) if !held.due => Ok(held.svid.clone()),
            None => wait(self.request_jwt(identity, audience)).await,
            Some(held) => {
                let renewed = wait(self.request_jwt(identity, audience));
                let fault = match self.shared.clock.timeout(self.shared.jwt_hit_timeout, renewed).await {
                    Ok(Ok(svid)) => return Ok(svid),
                    Ok(Err(fault)) => fault,
                    Err(_) => JwtFault::Failed("the server did not answer in time".to_owned()),
                };
                if held.svid.expires_at <= self.shared.clock.now() {
                    let id = &identity.entry.spiffe_id;
                    return Err(JwtFault::Failed(format!("unable to renew JWT for \"{id}\" (err={fault})")));
                }
                tracing::warn!(spiffe_id = %identity.entry.spiffe_id, error = %fault, "Unable to renew JWT; returning cached copy");
                Ok(held.svid.clone())
            }
        }
    }

    /// Waits for somebody to ask for a token that is not held. For one waiter.
    pub async fn next_jwt_request(&self) -> JwtRequest {
        loop {
            if let Some(request) = self.state().jwt_requests.pop() {
                return request;
            }
            self.shared.jwt_requested.notified().await;
        }
    }

    /// Tells all who wait for a token what came of it, and keeps the token for others. It is not kept if the entry has
    /// changed or gone meanwhile, nor if its authority is tainted.
    pub fn answer_jwt(&self, request: JwtRequest, answer: Result<JwtSvid, JwtFault>) {
        let JwtRequest { entry, key, is_unique, answer: sender, .. } = request;
        let answer = answer.map(Arc::new);
        let now = self.shared.clock.now();
        if !is_unique {
            let mut state = self.state();
            state.jwt_requests.shared.remove(&Shared::new(key.clone(), &entry));
            match &answer {
                Ok(svid) => state.keep_jwt(key, &entry, svid.clone()),
                Err(_) => state.jwt_svids.postpone(&key, now + RETRY_AFTER),
            }
        }
        sender.send_replace(Some(answer));
    }

    fn request_jwt(&self, identity: &JwtIdentity, audience: &[String]) -> watch::Receiver<Option<Answer>> {
        let JwtIdentity { entry, key, .. } = identity;
        let is_unique = identity.is_unique();
        let now = self.shared.clock.now();
        let mut state = self.state();
        if !is_unique {
            // It may have come since the caller looked.
            if let Some(held) = state.jwt_svids.get(key, now).filter(|held| !held.due) {
                return watch::channel(Some(Ok(held.svid))).1;
            }
            // Whoever took it may have been dropped with it.
            if let Some(running) = state.jwt_requests.shared.get(&Shared::new(key.clone(), entry))
                && running.has_changed().is_ok()
            {
                return running.clone();
            }
        }
        let (answer, receiver) = watch::channel(None);
        if !is_unique {
            state.jwt_requests.shared.insert(Shared::new(key.clone(), entry), receiver.clone());
        }
        state.jwt_requests.push(JwtRequest {
            entry: entry.clone(),
            audience: audience.to_vec(),
            key: key.clone(),
            is_unique,
            answer,
        });
        drop(state);
        self.shared.jwt_requested.notify_one();
        receiver
    }
}

impl Requests {
    /// A workload may call and hang up as fast as it likes: what nobody waits for does not pile up.
    fn push(&mut self, request: JwtRequest) {
        if self.queue.len() >= self.sweep_at.max(SWEPT_FROM) {
            let shared = &mut self.shared;
            self.queue.retain(|request| {
                let is_waited_for = !request.is_abandoned();
                if !is_waited_for {
                    request.forget(shared);
                }
                is_waited_for
            });
            self.sweep_at = self.queue.len() * 2;
        }
        self.queue.push_back(request);
    }

    /// The oldest that somebody waits for.
    fn pop(&mut self) -> Option<JwtRequest> {
        while let Some(request) = self.queue.pop_front() {
            if !request.is_abandoned() {
                return Some(request);
            }
            request.forget(&mut self.shared);
        }
        None
    }
}

impl JwtRequest {
    /// Whether all who waited have hung up. Nobody is added to them without the lock on all requests.
    fn is_abandoned(&self) -> bool {
        // One receiver of those that are shared is kept for those who come.
        self.answer.receiver_count() <= usize::from(!self.is_unique)
    }

    /// Nobody is to join this one any more.
    fn forget(&self, shared: &mut HashMap<Shared, watch::Receiver<Option<Answer>>>) {
        if !self.is_unique {
            shared.remove(&Shared::new(self.key.clone(), &self.entry));
        }
    }
}

impl Shared {
    fn new(key: Arc<JwtKey>, entry: &Entry) -> Shared {
        Shared { key, entry_id: entry.id.clone(), revision: entry.revision_number }
    }
}

async fn wait(mut answer: watch::Receiver<Option<Answer>>) -> Answer {
    let come = answer.wait_for(Option::is_some).await;
    come.ok().and_then(|come| come.clone()).unwrap_or(Err(JwtFault::Stopping))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use finial_daemon::metrics::Metrics;
    use finial_identity::bundle::{Bundle, JwtAuthority};
    use finial_identity::entry::AdditionalAttributes;

    use super::*;
    use crate::cache::fixture::{Authority, TRUST_DOMAIN, clock, entry, now, selectors};
    use crate::cache::{CacheSettings, EntryUpdate};

    const HIT_TIMEOUT: Duration = Duration::from_secs(7);

    struct Fixture {
        cache: Cache,
        authority: Authority,
    }

    impl Fixture {
        fn new() -> Fixture {
            let settings = CacheSettings { jwt_hit_timeout: HIT_TIMEOUT, ..CacheSettings::default() };
            let fixture = Fixture {
                cache: Cache::new(settings, clock(), Metrics::none(clock())),
                authority: Authority::new(TRUST_DOMAIN, "first"),
            };
            fixture.set_keys(&[("kid", false)]);
            fixture.apply(entry("e", "/e", &["test:me".to_owned()]));
            fixture
        }

        fn set_keys(&self, keys: &[(&str, bool)]) {
            let jwt_authorities = keys.iter().map(|(key_id, tainted)| JwtAuthority {
                key_id: (*key_id).to_owned(),
                public_key: Vec::new(),
                expires_at: 0,
                tainted: *tainted,
            });
            let bundle =
                Bundle { jwt_authorities: jwt_authorities.collect(), ..(*self.authority.bundle()).clone() };
            self.cache.set_bundles(Arc::new(bundle), Default::default());
        }

        fn apply(&self, entry: Entry) {
            self.cache.apply(EntryUpdate { upserted: vec![Arc::new(entry)], ..EntryUpdate::default() });
        }

        fn identity(&self) -> JwtIdentity {
            let mut all =
                self.cache.jwt_identities(&selectors(&["test:me".to_owned()]), &audience()).unwrap();
            assert_eq!(all.len(), 1);
            all.remove(0)
        }

        fn held(&self) -> Option<String> {
            self.identity().held.map(|held| held.svid.token.clone())
        }

        /// Fetches, while `server` stands in for the server.
        async fn fetch(&self, server: impl AsyncFnOnce(JwtRequest)) -> Result<String, JwtFault> {
            let identity = self.identity();
            let audience = audience();
            let fetched = self.cache.fetch_jwt(&identity, &audience);
            let served = async { server(self.cache.next_jwt_request().await).await };
            let (fetched, ()) = tokio::join!(fetched, served);
            fetched.map(|svid| svid.token.clone())
        }

        async fn fill(&self, token: &str) {
            let answer =
                self.fetch(async |request| self.cache.answer_jwt(request, Ok(signed(token, now())))).await;
            assert_eq!(answer.as_deref(), Ok(token));
        }
    }

    fn audience() -> Vec<String> {
        vec!["b".to_owned(), "a".to_owned()]
    }

    fn signed(token: &str, at: SystemTime) -> JwtSvid {
        JwtSvid {
            token: token.to_owned(),
            spiffe_id: entry("e", "/e", &[]).spiffe_id,
            key_id: "kid".to_owned(),
            issued_at: at,
            expires_at: at + Duration::from_secs(300),
        }
    }

    fn failed() -> JwtFault {
        JwtFault::Failed("away".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn what_many_ask_for_at_once_is_asked_of_the_server_once() {
        let fixture = Fixture::new();
        let (identity, sorted) = (fixture.identity(), ["a".to_owned(), "b".to_owned()]);
        let fetches = (0..20).map(|_| fixture.cache.fetch_jwt(&identity, &sorted));
        let server = async {
            let request = fixture.cache.next_jwt_request().await;
            assert_eq!(
                (request.entry.id.as_str(), &request.audience),
                ("e", &vec!["a".to_owned(), "b".to_owned()])
            );
            fixture.cache.answer_jwt(request, Ok(signed("one", now())));
        };
        let (all, ()) = tokio::join!(futures::future::join_all(fetches), server);
        assert!(all.into_iter().all(|svid| svid.unwrap().token == "one"));
        // Who looked before it came does not ask again.
        let svid = fixture.cache.fetch_jwt(&identity, &audience()).await.unwrap();
        assert_eq!(svid.token, "one");
        assert_eq!(fixture.held().as_deref(), Some("one"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_renewal_serves_what_is_still_valid_and_is_not_tried_at_once_again() {
        let fixture = Fixture::new();
        let clock = fixture.cache.shared.clock.clone();
        let refuse = async |request| fixture.cache.answer_jwt(request, Err(failed()));
        assert_eq!(fixture.fetch(refuse).await, Err(failed()));
        fixture.fill("one").await;

        clock.jump(200);
        assert_eq!(fixture.fetch(refuse).await.as_deref(), Ok("one"));
        let identity = fixture.identity();
        assert!(!identity.held.clone().unwrap().due);
        assert_eq!(fixture.cache.fetch_jwt(&identity, &audience()).await.unwrap().token, "one");
        clock.jump(5);
        assert_eq!(fixture.fetch(refuse).await.as_deref(), Ok("one"));
        clock.jump(5);
        let renew = async |request| fixture.cache.answer_jwt(request, Ok(signed("two", clock.now())));
        assert_eq!(fixture.fetch(renew).await.as_deref(), Ok("two"));
        assert_eq!(fixture.held().as_deref(), Some("two"));
        clock.jump(300);
        assert_eq!(fixture.fetch(refuse).await, Err(failed()), "nothing valid is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_renewal_is_waited_for_only_so_long() {
        let fixture = Fixture::new();
        fixture.fill("one").await;
        let clock = fixture.cache.shared.clock.clone();
        clock.jump(200);
        let began = clock.monotonic();
        let slow = async |request| {
            clock.sleep(HIT_TIMEOUT * 2).await;
            fixture.cache.answer_jwt(request, Ok(signed("two", clock.now())));
        };
        let identity = fixture.identity();
        let audience = audience();
        let fetched = async {
            let svid = fixture.cache.fetch_jwt(&identity, &audience).await.unwrap();
            assert_eq!((svid.token.as_str(), clock.monotonic() - began), ("one", HIT_TIMEOUT));
        };
        let served = async { slow(fixture.cache.next_jwt_request().await).await };
        tokio::join!(fetched, served);
        assert_eq!(fixture.held().as_deref(), Some("two"), "it is taken over when it comes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_ends_while_its_renewal_fails_is_not_served() {
        let fixture = Fixture::new();
        fixture.fill("one").await;
        let clock = fixture.cache.shared.clock.clone();
        clock.jump(299);
        let late = async |request| {
            clock.sleep(Duration::from_secs(2)).await;
            fixture.cache.answer_jwt(request, Err(failed()));
        };
        let text = r#"unable to renew JWT for "spiffe://example.org/e" (err=away)"#;
        assert_eq!(fixture.fetch(late).await, Err(JwtFault::Failed(text.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_with_an_id_of_their_own_are_never_shared_or_kept() {
        let fixture = Fixture::new();
        fixture.fill("shared").await;
        let unique = AdditionalAttributes { jwt_svid_include_jti: true, ..AdditionalAttributes::default() };
        fixture.apply(Entry {
            additional_attributes: Some(unique),
            revision_number: 1,
            ..entry("e", "/e", &["test:me".to_owned()])
        });
        let identity = fixture.identity();
        let audience = audience();
        let fetches = (0..3).map(|_| fixture.cache.fetch_jwt(&identity, &audience));
        let server = async {
            for token in ["1", "2", "3"] {
                let request = fixture.cache.next_jwt_request().await;
                fixture.cache.answer_jwt(request, Ok(signed(token, now())));
            }
        };
        let (all, ()) = tokio::join!(futures::future::join_all(fetches), server);
        let mut tokens: Vec<String> = all.into_iter().map(|svid| svid.unwrap().token.clone()).collect();
        tokens.sort();
        assert_eq!(tokens, ["1", "2", "3"]);
        assert_eq!(fixture.held(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_entry_or_authority_lost_meanwhile_is_not_kept() {
        let fixture = Fixture::new();
        let changed = Entry { revision_number: 1, ..entry("e", "/e", &["test:me".to_owned()]) };
        let change = async |request| {
            fixture.apply(changed);
            fixture.cache.answer_jwt(request, Ok(signed("old", now())));
        };
        assert_eq!(fixture.fetch(change).await.as_deref(), Ok("old"));
        assert_eq!(fixture.held(), None);
        fixture.set_keys(&[("kid", true), ("next", false)]);
        fixture.fill("tainted").await;
        assert_eq!(fixture.held(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_of_tainted_revoked_and_changed_things_go() {
        let fixture = Fixture::new();
        let fill = async || {
            fixture.fill("one").await;
            assert_eq!(fixture.held().as_deref(), Some("one"));
        };
        fill().await;
        fixture.set_keys(&[("kid", false), ("next", false)]);
        assert!(fixture.held().is_some(), "a key that came says nothing of the others");
        fixture.set_keys(&[("kid", true), ("next", false)]);
        assert_eq!(fixture.held(), None, "tainted");

        fixture.set_keys(&[("kid", false)]);
        fill().await;
        fixture.set_keys(&[("next", false)]);
        assert_eq!(fixture.held(), None, "revoked");
        fill().await;
        fixture.set_keys(&[("next", false), ("third", false)]);
        assert!(fixture.held().is_some(), "a key that the agent has not seen yet may sign");

        fixture.apply(Entry { revision_number: 1, ..entry("e", "/e", &["test:me".to_owned()]) });
        assert_eq!(fixture.held(), None, "changed");
        fill().await;
        assert_eq!(fixture.cache.stats().jwt_svids, 1);
        fixture.cache.apply(EntryUpdate { deleted: vec!["e".to_owned()], ..EntryUpdate::default() });
        assert_eq!(fixture.cache.stats().jwt_svids, 0, "gone");
    }

    /// What a workload asks for and does not wait for is neither kept nor asked for.
    #[tokio::test(start_paused = true)]
    async fn callers_who_hang_up_leave_nothing_behind() {
        use futures::FutureExt as _;
        let fixture = Fixture::new();
        let ask = |name: String| {
            let mine = selectors(&["test:me".to_owned()]);
            let audience = vec![name];
            let cache = fixture.cache.clone();
            async move {
                let identity = cache.jwt_identities(&mine, &audience).unwrap().remove(0);
                cache.fetch_jwt(&identity, &audience).await
            }
        };
        let mut stays = Box::pin(ask("stays".to_owned()));
        assert!(stays.as_mut().now_or_never().is_none());
        for call in 0..10_000 {
            assert!(ask(format!("{call}")).now_or_never().is_none());
            let held = fixture.cache.state().jwt_requests.queue.len();
            assert!(held <= SWEPT_FROM, "{held}");
            assert!(fixture.cache.state().jwt_requests.shared.len() <= SWEPT_FROM);
        }
        let request = fixture.cache.next_jwt_request().await;
        assert_eq!(request.audience, ["stays"]);
        fixture.cache.answer_jwt(request, Ok(signed("one", now())));
        assert_eq!(stays.await.unwrap().token, "one");
        assert!(fixture.cache.next_jwt_request().now_or_never().is_none());
        let state = fixture.cache.state();
        assert_eq!((state.jwt_requests.queue.len(), state.jwt_requests.shared.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_when_nobody_asks_any_more() {
        let fixture = Fixture::new();
        assert_eq!(fixture.fetch(async |request| drop(request)).await, Err(JwtFault::Stopping));
        fixture.fill("one").await;
    }
}
