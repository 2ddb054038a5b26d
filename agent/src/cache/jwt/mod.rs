//! JWT-SVIDs that workloads asked for, by SPIFFE ID and audience.
//!
//! # Invariants
//!
//! - A token that has expired, whose entry is gone or changed, or whose authority was tainted or revoked, is not served.
//! - The bounds on the number of tokens and on their size are hard: the one used least recently goes first.
//! - What is asked for by several at once is asked of the server once. Tokens that are to be unique are never shared.

mod requests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use finial_identity::{entry::Entry, lifetime, spiffe_id::SpiffeId};

pub(super) use requests::Requests;
pub use requests::{JwtFault, JwtRequest};

/// `jwt_svid_cache_max_size` when it is not set.
pub const DEFAULT_MAX_JWT_SVIDS: usize = 1000;

/// Room for each token that may be held, in bytes, together with what it is found by. Common ones need a quarter; a workload
/// chooses how long its audiences are, and must not choose how much memory the agent needs.
const ROOM_FOR_ONE: usize = 4096;
/// What a name in a list costs beside its letters, in bytes.
const ROOM_FOR_A_NAME: usize = 48;

/// A signed token.
pub struct JwtSvid {
    /// JWS in compact form. Whoever has it is the workload.
    pub token: String,
    /// Whose identity it is.
    pub spiffe_id: SpiffeId,
    /// The authority that signed it (`kid`).
    pub key_id: String,
    /// When it was signed.
    pub issued_at: SystemTime,
    /// The end of its validity.
    pub expires_at: SystemTime,
}

/// What tokens are found by. The order of the audience does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JwtKey {
    spiffe_id: SpiffeId,
    audience: Vec<String>,
}

/// One of a workload's identities, with the token that is held for it.
#[derive(Clone)]
pub struct JwtIdentity {
    /// The entry that grants it.
    pub entry: Arc<Entry>,
    /// What a token for it is found by.
    pub key: Arc<JwtKey>,
    /// A token that has not expired, if there is one.
    pub held: Option<HeldJwt>,
}

impl JwtIdentity {
    /// Whether each token is to have an ID (`jti`) of its own, so that none may be given out twice.
    pub fn is_unique(&self) -> bool {
        self.entry.additional_attributes.as_ref().is_some_and(|more| more.jwt_svid_include_jti)
    }
}

/// A token that may be served.
#[derive(Clone)]
pub struct HeldJwt {
    /// The token.
    pub svid: Arc<JwtSvid>,
    /// Whether it is time to ask for another one, half of its life being over.
    pub due: bool,
}

/// The tokens that are held.
pub(super) struct JwtSvids {
    max: usize,
    held: HashMap<Arc<JwtKey>, Held>,
    /// By the number of the last use.
    by_use: BTreeMap<u64, Arc<JwtKey>>,
    uses: u64,
    /// Of all that are held.
    bytes: usize,
}

struct Held {
    svid: Arc<JwtSvid>,
    renew_at: SystemTime,
    entry_id: String,
    revision: i64,
    last_use: u64,
}

impl JwtKey {
    /// For the tokens of this ID and audience.
    pub fn new(spiffe_id: SpiffeId, audience: &[String]) -> JwtKey {
        let mut audience = audience.to_vec();
        audience.sort_unstable();
        JwtKey { spiffe_id, audience }
    }

    fn bytes(&self) -> usize {
        let names = self.audience.iter().map(|name| name.len() + ROOM_FOR_A_NAME);
        self.spiffe_id.as_str().len() + names.sum::<usize>()
    }
}

impl JwtSvids {
    /// Room for `max` tokens; 0 means [`DEFAULT_MAX_JWT_SVIDS`].
    pub(super) fn new(max: usize) -> JwtSvids {
        let max = if max == 0 { DEFAULT_MAX_JWT_SVIDS } else { max };
        JwtSvids { max, held: HashMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// The token of this key unless it has expired. Counts as a use.
    pub(super) fn get(&mut self, key: &JwtKey, now: SystemTime) -> Option<HeldJwt> {
        let held = self.held.get_mut(key)?;
        if held.svid.expires_at <= now {
            self.remove(key);
            return None;
        }
        self.uses += 1;
        if let Some(key) = self.by_use.remove(&held.last_use) {
            self.by_use.insert(self.uses, key);
        }
        held.last_use = self.uses;
        Some(HeldJwt { svid: held.svid.clone(), due: held.renew_at <= now })
    }

    /// Keeps a token that was signed for this version of the entry. One that is larger than the room for all is kept alone.
    pub(super) fn insert(&mut self, key: Arc<JwtKey>, entry: &Entry, svid: Arc<JwtSvid>, jitter: f64) {
        self.remove(&key);
        let (bytes, room) = (key.bytes() + svid.token.len(), self.max.saturating_mul(ROOM_FOR_ONE));
        while self.held.len() >= self.max || self.bytes + bytes > room {
            let Some(oldest) = self.by_use.values().next().cloned() else { break };
            self.remove(&oldest);
        }
        self.bytes += bytes;
        self.uses += 1;
        self.by_use.insert(self.uses, key.clone());
        let held = Held {
            renew_at: lifetime::renew_at(svid.issued_at, svid.expires_at, jitter),
            svid,
            entry_id: entry.id.clone(),
            revision: entry.revision_number,
            last_use: self.uses,
        };
        self.held.insert(key, held);
    }

    /// A token that is due is not so before this time.
    pub(super) fn postpone(&mut self, key: &JwtKey, until: SystemTime) {
        if let Some(held) = self.held.get_mut(key) {
            held.renew_at = held.renew_at.max(until);
        }
    }

    /// Drops tokens whose entry is gone, or is not what it was when the token was signed.
    pub(super) fn keep_those_of<'a>(&mut self, entry_of: impl Fn(&str) -> Option<&'a Arc<Entry>>) {
        let is_same = |key: &JwtKey, held: &Held| {
            entry_of(&held.entry_id).is_some_and(|entry| {
                entry.revision_number == held.revision && entry.spiffe_id == key.spiffe_id
            })
        };
        self.drop_unless(is_same);
    }

    /// Drops tokens that these authorities signed, and returns how many each had signed.
    pub(super) fn drop_signed_by(&mut self, is_bad: impl Fn(&str) -> bool) -> BTreeMap<String, usize> {
        let mut dropped = BTreeMap::new();
        for held in self.held.values().filter(|held| is_bad(&held.svid.key_id)) {
            *dropped.entry(held.svid.key_id.clone()).or_default() += 1;
        }
        if !dropped.is_empty() {
            self.drop_unless(|_, held| !is_bad(&held.svid.key_id));
        }
        dropped
    }

    fn drop_unless(&mut self, keep: impl Fn(&JwtKey, &Held) -> bool) {
        let (by_use, bytes) = (&mut self.by_use, &mut self.bytes);
        self.held.retain(|key, held| {
            let kept = keep(key, held);
            if !kept {
                by_use.remove(&held.last_use);
                *bytes -= key.bytes() + held.svid.token.len();
            }
            kept
        });
    }

    fn remove(&mut self, key: &JwtKey) {
        if let Some(held) = self.held.remove(key) {
            self.by_use.remove(&held.last_use);
            self.bytes -= key.bytes() + held.svid.token.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::fixture::{entry, now};

    fn svid(name: &str, ttl: u64) -> Arc<JwtSvid> {
        Arc::new(JwtSvid {
            token: name.to_owned(),
            spiffe_id: entry("e", "/e", &[]).spiffe_id,
            key_id: "kid".to_owned(),
            issued_at: now(),
            expires_at: now() + Duration::from_secs(ttl),
        })
    }

    fn key(audience: &[&str]) -> Arc<JwtKey> {
        let audience: Vec<String> = audience.iter().map(|one| (*one).to_owned()).collect();
        Arc::new(JwtKey::new(entry("e", "/e", &[]).spiffe_id, &audience))
    }

    fn token(svids: &mut JwtSvids, audience: &[&str], at: SystemTime) -> Option<(String, bool)> {
        svids.get(&key(audience), at).map(|held| (held.svid.token.clone(), held.due))
    }

    #[test]
    fn a_token_is_due_at_half_its_life_and_gone_at_its_end() {
        let mut svids = JwtSvids::new(0);
        svids.insert(key(&["a", "b"]), &entry("e", "/e", &[]), svid("one", 300), 0.0);
        let at = |seconds| now() + Duration::from_secs(seconds);
        assert_eq!(token(&mut svids, &["b", "a"], at(149)), Some(("one".into(), false)));
        assert_eq!(token(&mut svids, &["a", "b"], at(150)), Some(("one".into(), true)));
        assert_eq!(token(&mut svids, &["a"], at(0)), None);
        assert_eq!(token(&mut svids, &["a", "b", "b"], at(0)), None);
        svids.postpone(&key(&["a", "b"]), at(200));
        assert_eq!(token(&mut svids, &["a", "b"], at(199)), Some(("one".into(), false)));
        assert_eq!(token(&mut svids, &["a", "b"], at(299)), Some(("one".into(), true)));
        assert_eq!(token(&mut svids, &["a", "b"], at(300)), None);
        assert_eq!((svids.len(), svids.by_use.len(), svids.bytes), (0, 0, 0));
    }

    #[test]
    fn tokens_go_with_their_entry_and_with_their_authority() {
        let (first, mut second) = (entry("1", "/e", &[]), entry("2", "/e", &[]));
        let mut svids = JwtSvids::new(0);
        svids.insert(key(&["a"]), &first, svid("a", 300), 0.0);
        svids.insert(key(&["b"]), &second, svid("b", 300), 0.0);
        second.revision_number = 1;
        let (first, second) = (Arc::new(first), Arc::new(second));
        svids.keep_those_of(|id| if id == "1" { Some(&first) } else { Some(&second) });
        assert_eq!((token(&mut svids, &["a"], now()).is_some(), svids.len()), (true, 1));
        assert_eq!(svids.drop_signed_by(|key_id| key_id == "other"), BTreeMap::new());
        assert_eq!(svids.drop_signed_by(|key_id| key_id == "kid"), BTreeMap::from([("kid".to_owned(), 1)]));
        assert_eq!((svids.len(), svids.by_use.len(), svids.bytes), (0, 0, 0));
    }

    #[test]
    fn long_lists_of_audiences_take_the_room_of_many_tokens() {
        let mut svids = JwtSvids::new(10);
        let entry = entry("e", "/e", &[]);
        svids.insert(key(&["a"]), &entry, svid("small", 300), 0.0);
        let names: Vec<String> = (0..200).map(|name| format!("{name}")).collect();
        for first in 0..20 {
            let long: Vec<&str> = names[first..].iter().map(String::as_str).collect();
            svids.insert(key(&long), &entry, svid(&"t".repeat(5_000), 300), 0.0);
            assert!(svids.bytes <= 10 * ROOM_FOR_ONE, "{}", svids.bytes);
        }
        assert_eq!(svids.len(), 2);
        assert_eq!(token(&mut svids, &["a"], now()), None, "used least recently");

        svids.insert(key(&["huge"]), &entry, svid(&"t".repeat(60_000), 300), 0.0);
        assert_eq!(svids.len(), 1, "alone");
        svids.insert(key(&["a"]), &entry, svid("small", 300), 0.0);
        assert_eq!((svids.len(), svids.by_use.len()), (1, 1));
    }

    proptest! {
        /// Against a list in the order of use.
        #[test]
        fn the_least_recently_used_goes_first(uses in prop::collection::vec((0_usize..8, any::<bool>()), 0..60)) {
            let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
            let (mut svids, mut model) = (JwtSvids::new(3), Vec::<usize>::new());
            for (which, is_insert) in uses {
                let known = model.iter().position(|one| *one == which);
                if is_insert {
                    svids.insert(key(&[names[which]]), &entry("e", "/e", &[]), svid(names[which], 300), 0.0);
                    known.map(|at| model.remove(at));
                    model.push(which);
                    if model.len() > 3 {
                        model.remove(0);
                    }
                } else {
                    let found = token(&mut svids, &[names[which]], now());
                    prop_assert_eq!(found, known.map(|_| (names[which].to_owned(), false)));
                    if let Some(at) = known {
                        let one = model.remove(at);
                        model.push(one);
                    }
                }
                prop_assert_eq!(svids.len(), model.len());
                prop_assert_eq!(svids.by_use.len(), model.len());
            }
        }
    }
}
