//! Attesting a workload: what kind of process calls.

use std::sync::Arc;

use finial_daemon::listen::peer::{LocalPeer, PeerGone};
use finial_daemon::metrics::{self, Metrics, UNKNOWN};
use finial_identity::selector::{Selector, sorted};
use futures::future::join_all;

use crate::plugins::workload_attestor::WorkloadAttestor;

/// All workload attestors of this agent. Clones share them.
#[derive(Clone)]
pub struct WorkloadAttestation {
    attestors: Arc<[(String, Arc<dyn WorkloadAttestor>)]>,
    metrics: Metrics,
}

/// Why it cannot be said what kind of process calls.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// There are attestors, and not one of them came to a result. The cause is that of each.
    #[error("{0}")]
    AllFailed(String),
    /// The process ended meanwhile, so that what was found may be said of another one.
    #[error("could not verify existence of the original caller: {0}")]
    CallerGone(#[from] PeerGone),
}

impl WorkloadAttestation {
    /// Attestation by these attestors, given with their names.
    pub fn new(attestors: Vec<(String, Arc<dyn WorkloadAttestor>)>, metrics: Metrics) -> WorkloadAttestation {
        WorkloadAttestation { attestors: attestors.into(), metrics }
    }

    /// The names of the attestors, in the order of the configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.attestors.iter().map(|(name, _)| name.as_str())
    }

    /// Asks all attestors at once and puts together what they found, sorted. One that fails is logged and left
    /// out; if all fail, so does this. Afterwards the caller must still be the process that connected.
    pub async fn attest(&self, caller: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestError> {
        let counted = &["workload_api", "workload_attestation"];
        let selectors = self.metrics.timed(counted, |_| UNKNOWN, self.ask(caller)).await?;
        self.metrics.sample(&["workload_api", "discovered_selectors"], selectors.len() as f64);
        Ok(selectors)
    }

    async fn ask(&self, caller: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestError> {
        let pid = caller.pid();
        let asked = self.attestors.iter().map(|(name, attestor)| async move {
            let mut call = self.metrics.call(&["workload_api", "workload_attestor"]);
            call.label("attestor", name.clone());
            let found = attestor.attest(caller).await;
            call.done(if found.is_ok() { metrics::OK } else { UNKNOWN });
            found
        });
        let results = join_all(asked).await;
        let mut selectors = Vec::new();
        let mut faults = Vec::new();
        for ((name, _), result) in self.attestors.iter().zip(results) {
            match result {
                Ok(found) => selectors.extend(found),
                Err(fault) => {
                    tracing::error!(pid, error = %fault, "workload attestor {name:?} failed");
                    faults.push(format!("workload attestor {name:?} failed: {fault}"));
                }
            }
        }
        if !faults.is_empty() && faults.len() == self.attestors.len() {
            return Err(AttestError::AllFailed(faults.join("; ")));
        }
        caller.is_alive()?;
        let selectors = sorted(selectors);
        tracing::debug!(pid, selectors = selectors.len(), "PID attested to have selectors");
        Ok(selectors)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use async_trait::async_trait;
    use finial_daemon::clock::Clock;

    use super::*;
    use crate::plugins::workload_attestor::AttestorFault;

    /// Finds the given selectors, or fails when there are none.
    struct Finds(&'static [&'static str]);

    #[async_trait]
    impl WorkloadAttestor for Finds {
        async fn attest(&self, _: &Arc<LocalPeer>) -> Result<Vec<Selector>, AttestorFault> {
            if self.0.is_empty() {
                return Err(AttestorFault::Malformed { what: "nothing" });
            }
            Ok(self.0.iter().map(|text| Selector::parse(text).unwrap()).collect())
        }
    }

    fn attestation(found: &[&'static [&'static str]]) -> WorkloadAttestation {
        let attestor = |(i, found): (usize, &&'static [_])| {
            (format!("a{i}"), Arc::new(Finds(found)) as Arc<dyn WorkloadAttestor>)
        };
        WorkloadAttestation::new(
            found.iter().enumerate().map(attestor).collect(),
            Metrics::none(Clock::wall()),
        )
    }

    fn me() -> Arc<LocalPeer> {
        Arc::new(LocalPeer::of_process(std::process::id()).unwrap())
    }

    #[tokio::test]
    async fn puts_together_what_was_found() {
        let all = attestation(&[&["x:2", "x:1"], &["a:1", "x:1"]]);
        let texts: Vec<_> = all.attest(&me()).await.unwrap().iter().map(Selector::to_string).collect();
        assert_eq!(texts, ["a:1", "x:1", "x:2"]);
        assert_eq!(all.names().collect::<Vec<_>>(), ["a0", "a1"]);
    }

    #[tokio::test]
    async fn one_that_fails_is_left_out_and_all_failing_is_an_error() {
        let texts = attestation(&[&[], &["a:1"]]).attest(&me()).await.unwrap();
        assert_eq!(texts, [Selector::parse("a:1").unwrap()]);
        let error = attestation(&[&[], &[]]).attest(&me()).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, AttestError::AllFailed(_)));
        assert!(text.contains("\"a0\"") && text.contains("\"a1\""), "{text}");
    }

    #[tokio::test]
    async fn nothing_is_said_of_a_process_that_has_ended() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let peer = Arc::new(LocalPeer::of_process(child.id()).unwrap());
        let all = attestation(&[&["a:1"]]);
        assert!(all.attest(&peer).await.is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(all.attest(&peer).await, Err(AttestError::CallerGone(_))));
    }
}
