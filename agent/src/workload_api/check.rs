//! What `health_checks` looks at: whether the agent serves workloads, asked as a workload asks.

use std::path::PathBuf;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::health::{Check, State};
use finial_daemon::ready::Gate;
use finial_proto::workload::X509BundlesRequest;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use futures::future::BoxFuture;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Request};

/// How long the agent may take to answer itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// The check of an agent whose public socket is at `socket`; without one, to have started is to be well. Until `ready` it
/// has not started.
pub fn check(socket: Option<PathBuf>, ready: &Gate, clock: &Clock) -> Check {
    let (ready, clock) = (ready.clone(), clock.clone());
    let look = move || -> BoxFuture<'static, State> {
        let (socket, ready, clock) = (socket.clone(), ready.clone(), clock.clone());
        Box::pin(async move {
            let answered = match socket {
                Some(socket) => clock.timeout(PATIENCE, answers(Dialer::Unix(socket))).await.unwrap_or(false),
                None => ready.is_ready(),
            };
            let fault = (!answered).then(|| "workload api is unavailable".to_owned());
            let found = State::of("make_new_x509_err", fault);
            if ready.is_ready() {
                return found;
            }
            State { started: false, live: true, live_details: Default::default(), ..found }
        })
    };
    Check { name: "agent", look: Box::new(look) }
}

/// Any answer will do but that the agent cannot serve now: that it has nothing for this process is one.
async fn answers(dialer: Dialer) -> bool {
    let mut client = SpiffeWorkloadApiClient::new(dial::channel(dialer, None, "localhost"));
    let mut request = Request::new(X509BundlesRequest {});
    request.metadata_mut().insert("workload.spiffe.io", AsciiMetadataValue::from_static("true"));
    let outcome = match client.fetch_x509_bundles(request).await {
        Ok(mut answer) => answer.get_mut().message().await.map(drop),
        Err(status) => Err(status),
    };
    outcome.err().is_none_or(|status| status.code() != Code::Unavailable)
}
