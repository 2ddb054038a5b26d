//! What the tests of attestors have in common.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finial_daemon::clock::Clock;
use finial_daemon::settings::{Section, parse};
use finial_identity::trust_domain::TrustDomain;

use super::{AttestorFault, Code, Evidence, Host, Make, NodeAttestor, exchange};
use crate::store::{OpenSettings, Store};

/// When the tests take place: 2026-01-01.
pub fn today() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

pub fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub async fn host() -> Host {
    let clock = Clock::paused(today());
    let store = Store::open(OpenSettings::new(":memory:", td(), clock.clone())).await.unwrap();
    Host { trust_domain: td(), store, clock }
}

/// Makes an attestor from its `plugin_data`, or returns what is said of it.
pub fn configured(make: Make, data: &str, host: &Host) -> Result<Arc<dyn NodeAttestor>, String> {
    let block = parse(data, "server.conf").unwrap();
    make(Section::named(&block, "plugin_data"), host).map_err(|error| error.to_string())
}

/// One attestation; `respond` plays the agent. Returns the verdict.
pub async fn attest(
    attestor: &dyn NodeAttestor,
    caller: Option<IpAddr>,
    payload: &[u8],
    respond: impl Fn(Vec<u8>) -> Vec<u8>,
) -> Result<Evidence, AttestorFault> {
    let (exchange, mut agent) = exchange::pair();
    let mut exchange = exchange.with_caller(caller);
    let judged = async {
        let verdict = attestor.attest(payload, &mut exchange).await;
        drop(exchange);
        verdict
    };
    let play = async {
        while let Some(challenge) = agent.challenges.recv().await {
            if agent.responses.send(respond(challenge)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(judged, play).0
}

/// The code and text of a refusal.
pub fn refusal(verdict: Result<Evidence, AttestorFault>) -> (Code, String) {
    let fault = verdict.expect_err("must be refused");
    (fault.code, fault.message)
}
