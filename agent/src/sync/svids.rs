//! Gets signed what the cache wants, and lets time do its work on what it holds.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use finial_daemon::argv::text;
use finial_daemon::backoff::Backoff;
use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::keys::{KeyError, KeyType, WorkloadKey, spire_subject};
use finial_daemon::metrics::Metrics;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cadence::{self, Batch};
use super::client::{CallError, Client, SigningRequest};
use crate::cache::{Cache, NewSvid, Wanted};
use crate::own_svid::keep::News;

/// Signs for the cache.
pub struct Svids {
    pub client: Client,
    pub cache: Cache,
    pub clock: Clock,
    pub key_type: KeyType,
    pub metrics: Metrics,
    /// Tells the keeper of the agent's own SVID what the server thinks of it.
    pub news: mpsc::Sender<News>,
}

/// An entry whose signature the server refused: asked for again later, without keeping others waiting.
struct Refused {
    again_at: SystemTime,
    backoff: Backoff,
}

struct Round {
    new: Vec<NewSvid>,
    refused: Vec<String>,
}

impl Svids {
    /// Runs until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut batch = Batch::default();
        let mut backoff = cadence::signing_backoff();
        let mut refused: HashMap<String, Refused> = HashMap::new();
        loop {
            let mut wake_at = self.cache.due();
            let now = self.clock.now();
            let mut wanted = self.cache.wanted();
            wanted
                .retain(|wanted| refused.get(&wanted.entry.id).is_none_or(|refused| refused.again_at <= now));
            wanted.truncate(batch.size());
            if wanted.is_empty() {
                let again = refused.values().map(|refused| refused.again_at).filter(|at| *at > now).min();
                wake_at = wake_at.into_iter().chain(again).min();
                let time = async {
                    match wake_at {
                        Some(at) => self.clock.sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.cache.wanted_changed() => {}
                    () = time => {}
                }
                continue;
            }
            let signed = tokio::select! {
                () = stop.cancelled() => return,
                signed = self.sign(wanted) => signed,
            };
            match signed {
                Ok(round) => {
                    batch.succeeded();
                    backoff.reset();
                    let new: Vec<String> = round.new.iter().map(|svid| svid.entry_id.clone()).collect();
                    self.cache.install_all(round.new);
                    // What the cache would not have, or has to ask for again already, waits its turn too.
                    let (again, done): (Vec<_>, Vec<_>) = {
                        let wanted: HashSet<String> =
                            self.cache.wanted().into_iter().map(|wanted| wanted.entry.id.clone()).collect();
                        new.into_iter().partition(|id| wanted.contains(id))
                    };
                    for id in done {
                        refused.remove(&id);
                    }
                    for id in round.refused.into_iter().chain(again) {
                        let refused = refused.entry(id).or_insert_with(|| Refused {
                            again_at: now,
                            backoff: cadence::signing_backoff(),
                        });
                        refused.again_at = now + refused.backoff.next();
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "Failed to fetch updated SVIDs");
                    batch.failed();
                    if let Some(news) = error.denial().map(News::Denied) {
                        // The keeper is the one to act.
                        let _ = self.news.send(news).await;
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = self.clock.sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }

    async fn sign(&self, wanted: Vec<Wanted>) -> Result<Round, CallError> {
        self.metrics.sample(&["cache_manager", "expiring_svids"], wanted.len() as f64);
        let counted = ["manager", "sync", "fetch_svids_updates"];
        self.metrics.timed(&counted, CallError::code_name, self.ask(wanted)).await
    }

    async fn ask(&self, wanted: Vec<Wanted>) -> Result<Round, CallError> {
        for Wanted { entry, expires_at, .. } in &wanted {
            let (entry_id, spiffe_id) = (&entry.id, &entry.spiffe_id);
            match expires_at {
                None => tracing::info!(entry_id, %spiffe_id, "Creating X509-SVID"),
                Some(at) => {
                    let expires_at = text::rfc3339(unix_seconds(*at));
                    tracing::info!(entry_id, %spiffe_id, expires_at, "Renewing X509-SVID");
                }
            }
        }
        let key_type = self.key_type;
        let make =
            move || wanted.into_iter().map(|wanted| request(wanted, key_type)).collect::<Result<Vec<_>, _>>();
        let made =
            tokio::task::spawn_blocking(make).await.map_err(|_| KeyError::CutOff).and_then(|made| made);
        // A key that can't be made is a defect of this machine; asking again later is all there is to do.
        let made = made.map_err(|error| CallError::Malformed(error.to_string()))?;
        let mut keys = Vec::with_capacity(made.len());
        let mut requests = Vec::with_capacity(made.len());
        for (wanted, key, request) in made {
            keys.push((wanted, key));
            requests.push(request);
        }
        let answers = self.client.sign(requests).await?;
        let mut round = Round { new: Vec::with_capacity(keys.len()), refused: Vec::new() };
        for ((wanted, key), answer) in keys.into_iter().zip(answers) {
            let entry = wanted.entry;
            match answer {
                Ok(svid) => {
                    let entry_id = entry.id.clone();
                    round.new.push(NewSvid { entry_id, revision: entry.revision_number, svid, key });
                }
                Err(error) => {
                    tracing::error!(entry_id = entry.id, spiffe_id = %entry.spiffe_id, error, "Failed to fetch X509 SVID");
                    round.refused.push(entry.id.clone());
                }
            }
        }
        Ok(round)
    }
}

fn request(wanted: Wanted, key_type: KeyType) -> Result<(Wanted, WorkloadKey, SigningRequest), KeyError> {
    let key = WorkloadKey::generate(key_type)?;
    let csr = key.csr(&spire_subject(), &[wanted.entry.spiffe_id.as_str()])?;
    let entry_id = wanted.entry.id.clone();
    Ok((wanted, key, SigningRequest { entry_id, csr }))
}
