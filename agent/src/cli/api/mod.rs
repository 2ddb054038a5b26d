//! `api`: the Workload API, asked as a workload asks.

mod fetch;
mod show;
mod watch;

use clap::Subcommand;
use finial_proto::workload::X509svidRequest;
use tonic::Request;
use tonic::metadata::MetadataValue;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Fetches SVIDs once; X.509-SVIDs when nothing else is said
    #[command(subcommand)]
    Fetch(Fetch),
    /// Prints X.509-SVIDs again whenever they change
    Watch(watch::Watch),
}

#[derive(Debug, Subcommand)]
pub enum Fetch {
    /// Fetches X.509-SVIDs
    X509(fetch::FetchX509),
}

/// The request with the header that keeps browsers away from the Workload API.
fn x509_request() -> Request<X509svidRequest> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}
