//! `api`: the Workload API, asked as a workload asks.

mod fetch;
mod jwt;
mod show;
mod watch;

use clap::Subcommand;
use tonic::Request;
use tonic::metadata::MetadataValue;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Fetches SVIDs once; X.509-SVIDs when nothing else is said
    #[command(subcommand)]
    Fetch(Fetch),
    /// Asks the agent to judge what another workload has shown
    #[command(subcommand)]
    Validate(Validate),
    /// Prints X.509-SVIDs again whenever they change
    Watch(watch::Watch),
}

#[derive(Debug, Subcommand)]
pub enum Fetch {
    /// Fetches X.509-SVIDs
    X509(fetch::FetchX509),
    /// Fetches JWT-SVIDs and the JWT keys of trust domains
    Jwt(jwt::FetchJwt),
}

#[derive(Debug, Subcommand)]
pub enum Validate {
    /// Says whether a JWT-SVID is valid
    Jwt(jwt::ValidateJwt),
}

/// The request with the header that keeps browsers away from the Workload API.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}
