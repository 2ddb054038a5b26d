//! `finial.watch.v1.Watch`: the server tells an agent of each change to what it may serve, in place of being asked.
//!
//! A stream starts with everything, or with nothing but the bundles where the agent already holds the entries of this
//! moment. After that each [`wire::Change`] carries what is different. A slow agent gets several changes in one. A stream
//! ends with the agent's standing: at once where an operator of this server ends it, with the feed where it was done
//! elsewhere, and when the SVID that opened it runs out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use finial_daemon::clock::Clock;
use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use finial_proto::finial::watch::v1 as wire;
use finial_proto::finial::watch::v1::watch_server::Watch;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::access::audit::Subject;
use crate::access::caller::Caller;
use crate::agents::standing::{Standing, Standings};
use crate::api::convert;
use crate::api::gate::Call;
use crate::api::status::Refusal;
use crate::bundles::federated::{Federated, FederatedBundles};
use crate::bundles::own::OwnBundle;
use crate::entries::authorized::{self, AuthorizedSet, Delta, Reach};
use crate::entries::feed::Feed;
use crate::entries::snapshot::Snapshot;

/// The service.
pub struct Watching {
    pub parts: Arc<Parts>,
}

/// What all streams work with.
pub struct Parts {
    pub standings: Standings,
    pub feed: Feed,
    pub own_bundle: OwnBundle,
    pub federated: FederatedBundles,
    /// Agents that were deleted or banned.
    pub cut_off: broadcast::Sender<SpiffeId>,
    /// Tells versions of this process from those of another.
    pub epoch: u32,
    pub clock: Clock,
    pub stop: CancellationToken,
}

type Answers = mpsc::Sender<Result<wire::Change, Status>>;

#[tonic::async_trait]
impl Watch for Watching {
    type AuthorizedStream = ReceiverStream<Result<wire::Change, Status>>;

    async fn authorized(
        &self,
        request: Request<Streaming<wire::Held>>,
    ) -> Result<Response<Self::AuthorizedStream>, Status> {
        let call = Call::of(&request)?;
        let agent_id = call.agent_id()?;
        let held = request.into_inner();
        let (answers, stream) = mpsc::channel(1);
        let parts = Arc::clone(&self.parts);
        let work = async move {
            let ended = follow(&parts, &agent_id, call.granted.caller(), held, &answers).await;
            call.audit_stream(&ended, Subject::default);
            if let Err(refusal) = ended {
                // Fails when the agent is gone.
                let _ = answers.send(Err(refusal.into())).await;
            }
        };
        tokio::spawn(work.in_current_span());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Until the agent, the server or the agent's standing ends it.
async fn follow(
    parts: &Parts,
    agent_id: &SpiffeId,
    caller: &Caller,
    mut held: Streaming<wire::Held>,
    answers: &Answers,
) -> Result<(), Refusal> {
    let mut cut_off = parts.cut_off.subscribe();
    let mut sources = Sources {
        snapshots: parts.feed.subscribe(),
        own: parts.own_bundle.subscribe(),
        federated: parts.federated.subscribe(),
    };
    let first = match held.message().await {
        Ok(Some(first)) => first,
        Ok(None) => return Ok(()),
        Err(status) => return Err(Refusal::from_stream(status)),
    };
    let (mut view, change) = View::start(parts.epoch, agent_id, &mut sources, first.version);
    if answers.send(Ok(change)).await.is_err() {
        return Ok(());
    }
    // An SVID's last second still counts.
    let runs_out = caller.svid().map_or(UNIX_EPOCH, |svid| svid.not_after()) + Duration::from_secs(1);
    loop {
        let event = tokio::select! {
            changed = sources.changed() => match changed {
                Ok(()) => Event::Changed,
                // The sources end with the server.
                Err(_) => return Ok(()),
            },
            message = held.message() => match message {
                // The agent says what it holds; nothing depends on it yet.
                Ok(Some(_)) => continue,
                _ => return Ok(()),
            },
            gone = cut_off.recv() => match gone {
                Ok(id) if id != *agent_id => continue,
                // Or too many went to have noticed each.
                _ => Event::Check,
            },
            () = parts.clock.sleep_until(runs_out) => Event::Check,
            () = parts.stop.cancelled() => return Ok(()),
        };
        let change = match event {
            Event::Changed => match view.next(&mut sources) {
                Seen { change: None, agent_changed: false } => continue,
                Seen { change, .. } => change,
            },
            Event::Check => None,
        };
        if !still_stands(parts, caller).await? {
            return Ok(());
        }
        if let Some(change) = change
            && answers.send(Ok(change)).await.is_err()
        {
            return Ok(());
        }
    }
}

enum Event {
    Changed,
    /// Time to see whether the agent still stands.
    Check,
}

/// False ends the stream without a refusal: the agent has a newer SVID, or needs one, and comes back with it.
async fn still_stands(parts: &Parts, caller: &Caller) -> Result<bool, Refusal> {
    const WHAT: &str = "agent is no longer authorized";
    let Some(svid) = caller.svid() else { return Ok(false) };
    match parts.standings.of(svid).await {
        Ok(Standing::Active) => Ok(true),
        Ok(Standing::NotActive { .. } | Standing::Expired) => Ok(false),
        Ok(Standing::NotAttested) => Err(Refusal::denied(WHAT, Reason::AgentNotAttested)),
        Ok(Standing::Banned) => Err(Refusal::denied(WHAT, Reason::AgentBanned)),
        Err(error) => Err(Refusal::internal("unable to look up agent information", &error)),
    }
}

struct Sources {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    own: watch::Receiver<Arc<Bundle>>,
    federated: watch::Receiver<Arc<Federated>>,
}

impl Sources {
    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        tokio::select! {
            changed = self.snapshots.changed() => changed,
            changed = self.own.changed() => changed,
            changed = self.federated.changed() => changed,
        }
    }
}

/// What a look at the sources found.
struct Seen {
    change: Option<wire::Change>,
    /// Something was written about the agent itself: it may have lost its standing.
    agent_changed: bool,
}

/// What an agent holds once it has applied everything that was sent.
struct View {
    epoch: u32,
    set: AuthorizedSet,
    reach: Reach,
    /// Up to here the snapshots are known not to concern the agent, or are sent.
    seen: u64,
    own: Arc<Bundle>,
    federated: Federated,
}

impl View {
    fn start(epoch: u32, agent_id: &SpiffeId, sources: &mut Sources, held: u64) -> (View, wire::Change) {
        let snapshot = Arc::clone(&sources.snapshots.borrow_and_update());
        let own = Arc::clone(&sources.own.borrow_and_update());
        let all = Arc::clone(&sources.federated.borrow_and_update());
        let set = authorized::for_agent(&snapshot, agent_id);
        let reach = set.reach();
        let federated = wanted(&set, &all);
        let unchanged = split_version(held)
            .filter(|(of, _)| *of == epoch)
            .and_then(|(_, version)| snapshot.changes_since(version))
            .is_some_and(|mut changes| !changes.any(|change| reach.is_concerned_by(&snapshot, change)));
        let missing = federates_with(&set).into_iter().filter(|td| !federated.contains_key(td));
        let change = wire::Change {
            version: join_version(epoch, snapshot.version()),
            snapshot: !unchanged,
            upserted: if unchanged { Vec::new() } else { whole(&set) },
            deleted: Vec::new(),
            bundle: Some(convert::bundle(&own, None)),
            federated_bundles: federated.values().map(|bundle| convert::bundle(bundle, None)).collect(),
            federated_bundles_removed: missing.map(|td| td.name().to_owned()).collect(),
        };
        let view = View { epoch, seen: snapshot.version(), set, reach, own, federated };
        (view, change)
    }

    /// The difference to now, if there is one.
    fn next(&mut self, sources: &mut Sources) -> Seen {
        let snapshot = Arc::clone(&sources.snapshots.borrow_and_update());
        let own = Arc::clone(&sources.own.borrow_and_update());
        let all = Arc::clone(&sources.federated.borrow_and_update());

        let agent_changed = self.agent_changed(&snapshot);
        let delta = self.advance(&snapshot);
        let bundle = (self.own != own).then(|| convert::bundle(&own, None));
        self.own = own;
        let federated = wanted(&self.set, &all);
        let fresh = federated
            .iter()
            .filter(|(td, bundle)| !self.federated.get(*td).is_some_and(|held| Arc::ptr_eq(held, bundle)));
        let federated_bundles: Vec<_> = fresh.map(|(_, bundle)| convert::bundle(bundle, None)).collect();
        let gone = self.federated.keys().filter(|td| !federated.contains_key(*td));
        let federated_bundles_removed: Vec<_> = gone.map(|td| td.name().to_owned()).collect();
        self.federated = federated;

        let nothing = delta == Delta::default()
            && bundle.is_none()
            && federated_bundles.is_empty()
            && federated_bundles_removed.is_empty();
        let change = (!nothing).then(|| wire::Change {
            version: join_version(self.epoch, self.seen),
            snapshot: false,
            upserted: delta.upserted.iter().map(|entry| convert::entry(entry, None)).collect(),
            deleted: delta.deleted,
            bundle,
            federated_bundles,
            federated_bundles_removed,
        });
        Seen { change, agent_changed }
    }

    fn agent_changed(&self, snapshot: &Snapshot) -> bool {
        match snapshot.changes_since(self.seen) {
            Some(mut changes) => changes.any(|change| change.agents().contains(self.set.agent_id())),
            None => true,
        }
    }

    fn advance(&mut self, snapshot: &Snapshot) -> Delta {
        let concerned = match snapshot.changes_since(self.seen) {
            Some(mut changes) => changes.any(|change| self.reach.is_concerned_by(snapshot, change)),
            None => true,
        };
        self.seen = snapshot.version();
        if !concerned {
            return Delta::default();
        }
        let set = authorized::for_agent(snapshot, self.set.agent_id());
        let delta = authorized::delta(&self.set, &set);
        self.reach = set.reach();
        self.set = set;
        delta
    }
}

fn whole(set: &AuthorizedSet) -> Vec<finial_proto::spire::api::types::Entry> {
    set.entries().iter().map(|entry| convert::entry(entry, None)).collect()
}

/// The stored bundles of the trust domains that the agent's entries federate with.
fn wanted(set: &AuthorizedSet, all: &Federated) -> Federated {
    let domains = federates_with(set).into_iter();
    domains.filter_map(|td| all.get(td).map(|bundle| (td.clone(), Arc::clone(bundle)))).collect()
}

fn federates_with(set: &AuthorizedSet) -> BTreeSet<&TrustDomain> {
    set.entries().iter().flat_map(|entry| &entry.federates_with).collect()
}

/// An epoch is never 0, so neither is a version.
fn join_version(epoch: u32, snapshot: u64) -> u64 {
    u64::from(epoch) << 32 | (snapshot & u64::from(u32::MAX))
}

fn split_version(version: u64) -> Option<(u32, u64)> {
    let epoch = u32::try_from(version >> 32).ok()?;
    (epoch != 0).then_some((epoch, version & u64::from(u32::MAX)))
}

/// A new epoch for a process.
pub fn epoch() -> u32 {
    rand::random_range(1..=u32::MAX)
}
