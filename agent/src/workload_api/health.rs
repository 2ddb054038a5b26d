//! grpc.health.v1, told from what the agent knows of itself.

use finial_daemon::ready::Gate;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

pub(super) struct Health {
    ready: Gate,
}

impl Health {
    pub(super) fn new(ready: Gate) -> Health {
        Health { ready }
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let status = match self.ready.awaiting().as_slice() {
            [] => ServingStatus::Serving,
            awaited => {
                tracing::warn!(awaiting = awaited.join(", "), "Health check failed");
                ServingStatus::NotServing
            }
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watching health is not implemented; call Check"))
    }
}
