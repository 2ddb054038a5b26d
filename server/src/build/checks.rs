//! What `health_checks` looks at, under SPIRE's names.

use std::path::Path;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::health::{Check, State};
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use futures::future::BoxFuture;

use super::Handles;

/// How long a check may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rotations that may fail in a row before somebody has to look.
const FAILURES: u32 = 10;

/// The checks of a server whose admin socket is at `socket`.
pub fn checks(handles: &Handles, socket: &Path, clock: &Clock) -> Vec<Check> {
    let check = |name, key: &'static str, look: Look| {
        let (handles, socket, clock) = (handles.clone(), socket.to_owned(), clock.clone());
        let look = move || -> BoxFuture<'static, State> {
            let found = look(handles.clone(), &socket);
            let clock = clock.clone();
            Box::pin(async move {
                let found = clock.timeout(PATIENCE, found).await;
                State::of(key, found.unwrap_or_else(|late| Err(late.to_string())).err())
            })
        };
        Check { name, look: Box::new(look) }
    };
    vec![
        check("catalog.datastore", "list_bundle_err", |handles, _| Box::pin(list_bundles(handles))),
        check("server", "get_bundle_err", |_, socket| {
            let dialer = Dialer::Unix(socket.to_owned());
            Box::pin(get_bundle(dialer))
        }),
        check("server.ca", "sign_x509_svid_err", |handles, _| Box::pin(sign(handles))),
        check("server.ca.rotator", "rotation_err", |handles, _| {
            Box::pin(std::future::ready(rotation(&handles)))
        }),
    ]
}

type Look = fn(Handles, &Path) -> BoxFuture<'static, Result<(), String>>;

async fn list_bundles(handles: Handles) -> Result<(), String> {
    handles.store.bundles().list(None).await.map(drop).map_err(|error| error.to_string())
}

/// Asks as an administrator does, over the socket.
async fn get_bundle(dialer: Dialer) -> Result<(), String> {
    let mut client = BundleClient::new(dial::channel(dialer, None, "localhost"));
    client
        .get_bundle(GetBundleRequest::default())
        .await
        .map(drop)
        .map_err(|status| status.message().to_owned())
}

/// Signs a certificate for nobody and verifies it as a peer would.
async fn sign(handles: Handles) -> Result<(), String> {
    let bundle = handles.own_bundle.current();
    handles.issuer.prove(&bundle).await.map_err(|error| error.to_string())
}

fn rotation(handles: &Handles) -> Result<(), String> {
    if handles.rotations.iter().any(|failures| failures.in_a_row() > FAILURES) {
        return Err("rotations exceed the threshold number of failures".to_owned());
    }
    Ok(())
}
