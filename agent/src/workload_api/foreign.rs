//! Another agent's Workload API, asked as a workload asks it.

use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_identity::TrustDomain;
use finial_identity::x509_svid::split_concatenated;
use finial_proto::workload::X509BundlesRequest;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::Request;
use tonic::metadata::MetadataValue;

use super::caller::SECURITY_HEADER;

/// How long the other agent may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The X.509 authorities (DER) of a trust domain, as the other agent tells them; or why there are none.
pub(crate) async fn x509_bundle(
    dialer: Dialer,
    trust_domain: &TrustDomain,
    clock: &Clock,
) -> Result<Vec<Vec<u8>>, String> {
    let mut request = Request::new(X509BundlesRequest {});
    request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    let mut client = SpiffeWorkloadApiClient::new(dial::channel(dialer, None, "localhost"));
    let first = async { client.fetch_x509_bundles(request).await?.into_inner().message().await };
    let answer = clock.timeout(LIMIT, first).await;
    let answer = answer.map_err(|_| format!("no answer within {} s", LIMIT.as_secs()))?;
    let answer =
        answer.map_err(|status| status.message().to_owned())?.ok_or("the stream ended without an answer")?;
    let id = trust_domain.id().to_string();
    let bundle = answer.bundles.get(&id).ok_or_else(|| format!("it has no bundle for trust domain {id}"))?;
    let ders = split_concatenated(bundle).map_err(|error| format!("the bundle can't be read: {error}"))?;
    Ok(ders.into_iter().map(|der| der.to_vec()).collect())
}
