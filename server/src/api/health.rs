//! `grpc.health.v1.Health`, for the command line and for probes on the admin socket.

use futures::stream::Empty;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::gate::Call;
use crate::api::status::{self, Refusal};
use crate::store::Store;

/// The service.
pub struct Healthy {
    pub store: Store,
}

#[tonic::async_trait]
impl Health for Healthy {
    /// Serving means that the database can be read and holds the own bundle.
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Refusal::invalid("per-service health is not supported").into());
        }
        let status = match self.store.bundles().get(self.store.trust_domain()).await {
            Ok(Some(_)) => ServingStatus::Serving,
            Ok(None) => {
                tracing::warn!(reason = "bundle is missing", "Health check failed");
                ServingStatus::NotServing
            }
            Err(error) => {
                tracing::warn!(reason = "unable to fetch bundle", %error, "Health check failed");
                ServingStatus::NotServing
            }
        };
        Ok(Response::new(HealthCheckResponse { status: status as i32 }))
    }

    type WatchStream = Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::of(&request)?;
        Err(status::not_built(call.granted.method()))
    }
}
