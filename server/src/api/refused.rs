//! SPIRE's services that are not built yet: every method answers UNIMPLEMENTED and says its name.
//!
//! The gate stands before them as before all others, so a caller without the right learns nothing.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::api::status;

/// `spire.api.server.localauthority.v1.LocalAuthority`: rotation by hand.
#[derive(Clone)]
pub struct LocalAuthority;

impl NamedService for LocalAuthority {
    const NAME: &'static str =
        finial_proto::spire::api::server::localauthority::v1::local_authority_server::SERVICE_NAME;
}

macro_rules! refuse_all {
    ($service:ty) => {
        impl Service<Request<Body>> for $service {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Ready<Result<Response<Body>, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Self::Future {
                ready(Ok(status::not_built(request.uri().path()).into_http()))
            }
        }
    };
}

refuse_all!(LocalAuthority);
