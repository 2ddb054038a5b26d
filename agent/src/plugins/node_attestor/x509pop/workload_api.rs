//! The SVID of another agent's Workload API, for which this agent is a workload.

use std::path::PathBuf;
use std::time::Duration;

use finial_daemon::dial::{self, Dialer};
use finial_identity::x509_svid::split_concatenated;
use finial_proto::workload::X509svidRequest;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::Request;
use tonic::metadata::MetadataValue;

use super::Evidence;

/// How long the other agent may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where the other agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(String, u16),
}

impl Endpoint {
    /// Reads `unix:///path`, `unix:/path` or `tcp://address:port`, as the SPIFFE Workload Endpoint standard writes them.
    pub fn parse(text: &str) -> Result<Endpoint, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Endpoint::Unix(PathBuf::from(path)))
            } else {
                Err("a unix endpoint needs an absolute path: unix:///path")
            };
        }
        let address = text.strip_prefix("tcp://").ok_or("it must begin with unix:// or tcp://")?;
        match address.parse::<std::net::SocketAddr>() {
            Ok(address) => Ok(Endpoint::Tcp(address.ip().to_string(), address.port())),
            Err(_) => Err("a tcp endpoint needs an IP address and a port: tcp://127.0.0.1:8000"),
        }
    }

    /// The first SVID that the other agent has for this process.
    ///
    /// # Errors
    ///
    /// In words.
    pub async fn fetch(&self) -> Result<Evidence, String> {
        let dialer = match self.clone() {
            Endpoint::Unix(path) => Dialer::Unix(path),
            Endpoint::Tcp(host, port) => Dialer::tcp(host, port),
        };
        let mut client = SpiffeWorkloadApiClient::new(dial::channel(dialer, None, "localhost"));
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let asked = async {
            let mut answers = client.fetch_x509svid(request).await?.into_inner();
            answers.message().await
        };
        let answer = tokio::time::timeout(LIMIT, asked).await;
        let answer = answer.map_err(|_| format!("no answer within {} s", LIMIT.as_secs()))?;
        let answer = answer.map_err(|status| status.message().to_owned())?;
        let svid = answer.and_then(|answer| answer.svids.into_iter().next());
        let svid = svid.ok_or_else(|| "there were no SVIDs in the response".to_owned())?;
        let chain = split_concatenated(&svid.x509_svid).map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&*svid.x509_svid_key));
        Evidence::new(chain.into_iter().map(|der| der.to_vec()).collect(), &key)
            .map_err(|error| error.to_string())
    }
}
