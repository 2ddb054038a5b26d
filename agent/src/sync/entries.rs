//! Keeps the cache's entries and bundles as the server has them: pushed by a Finial server, polled from others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::metrics::{self, Metrics};
use finial_daemon::ready::Hold;
use finial_identity::TrustDomain;
use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use futures::StreamExt;
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::{CallError, Client, Listed, Pushed};
use super::{LastSync, cadence};
use crate::bootstrap::FirstTrust;
use crate::cache::{Cache, EntryUpdate};
use crate::own_svid::keep::News;
use crate::own_svid::{Identity, Trust};
use crate::storage::Storage;

/// A look at what the server has.
const FETCH: [&str; 3] = ["manager", "sync", "fetch_entries_updates"];
/// Federated bundles fetched at a time.
const BUNDLES_AT_ONCE: usize = 10;

/// Follows the server's entries and bundles.
pub struct Entries {
    pub client: Client,
    pub cache: Cache,
    pub identity: Identity,
    pub storage: Storage,
    pub clock: Clock,
    pub interval: Duration,
    /// Whether only GetAuthorizedEntries is asked: `use_sync_authorized_entries = false`.
    pub whole_polls: bool,
    pub first_trust: FirstTrust,
    /// Tells the keeper of the agent's own SVID what the server thinks of it, and what to think of the server.
    pub news: mpsc::Sender<News>,
    pub known: Known,
    pub last_sync: LastSync,
    pub metrics: Metrics,
}

/// What the server has told so far.
#[derive(Default)]
pub struct Known {
    entries: HashMap<String, Arc<Entry>>,
    own: Option<Arc<Bundle>>,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Of the last pushed change.
    version: u64,
}

impl Entries {
    /// Runs until stopped. `first` is dropped when the cache has been filled once.
    pub async fn run(mut self, first: Hold, stop: CancellationToken) {
        let mut first = Some(first);
        let mut backoff = cadence::sync_backoff(self.interval);
        let mut push = !self.whole_polls;
        while !stop.is_cancelled() {
            let followed = tokio::select! {
                () = stop.cancelled() => return,
                followed = async {
                    if push { self.follow(&mut first, &mut backoff).await } else { self.poll_counted().await }
                } => followed,
            };
            let wait = match followed {
                Ok(()) => {
                    first.take();
                    cadence::after_sync(&mut backoff, self.cache.stats().x509_svids > 0)
                }
                Err(CallError::Unimplemented(_)) if push => {
                    tracing::debug!("The server does not push changes; polling it");
                    push = false;
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "Synchronize failed");
                    if let Some(news) = News::of(&error, self.clock.now()) {
                        // The keeper ends the program or brings a new SVID; either way it is the one to act.
                        let _ = self.news.send(news).await;
                    }
                    if error.is_unknown_authority() {
                        // Its patience is counted from the first failure: keep trying as often as ever.
                        backoff.reset();
                    }
                    cadence::after_failed_sync(&mut backoff, first.is_none())
                }
            };
            let mut renewed = self.identity.own_changes();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep(wait) => {}
                // After a new attestation there is no point in waiting out the old failure.
                _ = renewed.changed() => {}
            }
        }
    }

    /// Takes over pushed changes until the stream breaks or the agent has a new SVID to present.
    async fn follow(
        &mut self,
        first: &mut Option<Hold>,
        backoff: &mut finial_daemon::backoff::Backoff,
    ) -> Result<(), CallError> {
        loop {
            let mut renewed = self.identity.own_changes();
            let mut changes = self.client.changes(self.known.version).await?;
            let mut following = None;
            loop {
                let pushed = tokio::select! {
                    pushed = changes.next() => pushed?,
                    _ = renewed.changed() => break,
                };
                let call = self.metrics.call(&FETCH);
                self.take_pushed(&pushed).await?;
                call.done(metrics::OK);
                self.known.version = pushed.version;
                changes.acknowledge(&pushed).await;
                if following.is_none() {
                    following = Some(self.last_sync.following());
                    self.believed().await;
                }
                first.take();
                backoff.reset();
            }
        }
    }

    async fn take_pushed(&mut self, pushed: &Pushed) -> Result<(), CallError> {
        let mut federated = if pushed.full { BTreeMap::new() } else { self.known.federated.clone() };
        for gone in &pushed.federated_gone {
            federated.remove(gone);
        }
        for bundle in &pushed.federated {
            federated.insert(bundle.trust_domain.clone(), Arc::new(bundle.clone()));
        }
        let own =
            match &pushed.bundle {
                Some(bundle) => Arc::new(bundle.clone()),
                None => self.known.own.clone().ok_or_else(|| {
                    CallError::Malformed("the first pushed change has no bundle".to_owned())
                })?,
            };
        self.take_bundles(own, federated).await;
        let upserted: Vec<Arc<Entry>> = pushed.upserted.iter().cloned().map(Arc::new).collect();
        self.take_entries(pushed.full, upserted, pushed.deleted.clone());
        Ok(())
    }

    async fn poll_counted(&mut self) -> Result<(), CallError> {
        let call = self.metrics.call(&FETCH);
        let polled = self.poll().await;
        call.done(polled.as_ref().err().map_or(metrics::OK, CallError::code_name));
        polled
    }

    /// Asks for everything once.
    async fn poll(&mut self) -> Result<(), CallError> {
        let known = &self.known.entries;
        let is_known = |id: &str, revision: i64, created_at: i64| {
            known.get(id).is_some_and(|entry| {
                entry.revision_number == revision && (created_at == 0 || entry.created_at == created_at)
            })
        };
        let listed = match self.whole_polls {
            true => Listed::All(self.client.all_entries().await?),
            false => self.client.entries(is_known).await?,
        };
        let own = Arc::new(self.client.bundle().await?);

        let (full, upserted, deleted) = match listed {
            Listed::All(entries) => (true, entries, Vec::new()),
            Listed::Changed { upserted, ids } => {
                let ids: HashSet<String> = ids.into_iter().collect();
                let deleted = self.known.entries.keys().filter(|id| !ids.contains(*id)).cloned().collect();
                (false, upserted, deleted)
            }
        };
        let upserted: Vec<Arc<Entry>> = upserted.into_iter().map(Arc::new).collect();
        let kept = self.known.entries.values().filter(|entry| !full && !deleted.contains(&entry.id));
        let wanted: BTreeSet<TrustDomain> =
            kept.chain(&upserted).flat_map(|entry| entry.federates_with.iter().cloned()).collect();
        let federated = self.federated(wanted, own.trust_domain.clone()).await?;
        self.take_bundles(own, federated).await;
        self.take_entries(full, upserted, deleted);
        self.last_sync.polled();
        self.believed().await;
        Ok(())
    }

    /// Ends the attempts to come to believe the server.
    async fn believed(&self) {
        if let Err(error) = self.first_trust.succeeded().await {
            tracing::error!(%error, "Could not store that the server is believed");
        }
    }

    async fn federated(
        &self,
        wanted: BTreeSet<TrustDomain>,
        own: TrustDomain,
    ) -> Result<BTreeMap<TrustDomain, Arc<Bundle>>, CallError> {
        let fetch = |trust_domain: TrustDomain| async move {
            match self.client.federated_bundle(&trust_domain).await {
                Ok(bundle) => Ok(Some((trust_domain, Arc::new(bundle)))),
                Err(CallError::NotFound(_)) => {
                    tracing::warn!(trust_domain_id = %trust_domain, "Federated bundle not found");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        };
        let fetched: Vec<_> =
            futures::stream::iter(wanted.into_iter().filter(|trust_domain| *trust_domain != own))
                .map(fetch)
                .buffer_unordered(BUNDLES_AT_ONCE)
                .collect()
                .await;
        fetched.into_iter().filter_map(Result::transpose).collect()
    }

    /// Stores, then shows: a bundle that workloads have must be there after a restart too.
    async fn take_bundles(&mut self, own: Arc<Bundle>, federated: BTreeMap<TrustDomain, Arc<Bundle>>) {
        let before = self.known.own.replace(own.clone());
        if before.as_ref() != Some(&own) {
            let authorities =
                own.x509_authorities.iter().map(|authority| CertificateDer::from(authority.der.clone()));
            if let Err(error) = self.storage.store_bundle(authorities.collect()).await {
                tracing::error!(%error, "Could not store bundle");
            }
            if !matches!(self.identity.trust(), Trust::Bundle(trusted) if trusted == own) {
                self.identity.set_trust(Trust::Bundle(own.clone()));
            }
        }
        self.known.federated = federated.clone();
        self.cache.set_bundles(own.clone(), federated);
        self.taint(before.as_deref(), &own).await;
    }

    async fn taint(&self, before: Option<&Bundle>, now: &Bundle) {
        let tainted_before: HashSet<&[u8]> = before
            .iter()
            .flat_map(|bundle| &bundle.x509_authorities)
            .filter(|authority| authority.tainted)
            .map(|authority| authority.der.as_ref())
            .collect();
        let tainted: Vec<Vec<u8>> = now
            .x509_authorities
            .iter()
            .filter(|authority| authority.tainted && !tainted_before.contains(authority.der.as_slice()))
            .map(|authority| authority.der.clone())
            .collect();
        if tainted.is_empty() {
            return;
        }
        let cache = self.cache.clone();
        match tokio::task::spawn_blocking(move || cache.taint(&tainted)).await {
            Ok(count) => tracing::info!(tainted_x509_svids = count, "Tainted X.509 SVIDs"),
            Err(error) => tracing::error!(%error, "Could not look for SVIDs of tainted authorities"),
        }
    }

    fn take_entries(&mut self, full: bool, upserted: Vec<Arc<Entry>>, deleted: Vec<String>) {
        let missing = upserted.iter().filter(|entry| !self.known.entries.contains_key(&entry.id)).count();
        let dropped =
            if full { self.known.entries.len() - (upserted.len() - missing) } else { deleted.len() };
        let stale = if full { 0 } else { upserted.len() - missing };
        if full {
            self.known.entries.clear();
        }
        for id in &deleted {
            self.known.entries.remove(id);
        }
        for entry in &upserted {
            self.known.entries.insert(entry.id.clone(), entry.clone());
        }
        for (what, count) in [
            ("sync_bundles_total", self.known.federated.len() + usize::from(self.known.own.is_some())),
            ("sync_entries_total", self.known.entries.len()),
            ("sync_entries_missing", missing),
            ("sync_entries_stale", stale),
            ("sync_entries_dropped", dropped),
        ] {
            self.metrics.gauge(&[what], count as f64);
        }
        self.cache.apply(EntryUpdate { full, upserted, deleted });
    }
}
