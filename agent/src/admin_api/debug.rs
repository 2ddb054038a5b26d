//! `spire.agent.debug.v1.Debug`: what the agent says about itself.

use std::time::Duration;

use finial_daemon::clock::{Clock, unix_seconds};
use finial_identity::x509_svid::AuthorityCertificate;
use finial_identity::{SpiffeId, peer};
use finial_proto::spire::agent::debug::v1 as wire;
use finial_proto::spire::agent::debug::v1::debug_server::Debug;
use finial_proto::spire::api::types;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::AdminApi;
use crate::cache::Cache;
use crate::own_svid::{Identity, Trust};
use crate::sync::LastSync;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(5);

/// The service.
pub(super) struct Debugger {
    cache: Cache,
    identity: Identity,
    last_sync: LastSync,
    clock: Clock,
    started: Duration,
    /// The last answer and when it was made.
    last: Mutex<Option<(Duration, wire::GetInfoResponse)>>,
}

impl Debugger {
    /// The uptime counts from here.
    pub(super) fn new(api: &AdminApi) -> Debugger {
        Debugger {
            cache: api.cache.clone(),
            identity: api.identity.clone(),
            last_sync: api.last_sync.clone(),
            clock: api.clock.clone(),
            started: api.clock.monotonic(),
            last: Mutex::new(None),
        }
    }

    fn info(&self) -> Result<wire::GetInfoResponse, Status> {
        let small = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let uptime = self.clock.monotonic().saturating_sub(self.started).as_secs();
        let stats = self.cache.stats();
        let x509_svids = small(stats.x509_svids);
        #[allow(deprecated, reason = "svids_count is what older clients read")]
        Ok(wire::GetInfoResponse {
            svid_chain: self.chain()?,
            uptime: i32::try_from(uptime).unwrap_or(i32::MAX),
            svids_count: x509_svids,
            last_sync_success: self.last_sync.success().map_or(0, unix_seconds),
            cached_x509_svids_count: x509_svids,
            cached_jwt_svids_count: small(stats.jwt_svids),
            cached_svidstore_x509_svids_count: 0,
        })
    }

    /// The agent's certificates up to the root in the bundle.
    fn chain(&self) -> Result<Vec<wire::get_info_response::Cert>, Status> {
        let Some(own) = self.identity.own() else {
            return Err(Status::unavailable("the agent is not attested yet"));
        };
        let authorities: Vec<Vec<u8>> = match self.identity.trust() {
            Trust::Bundle(bundle) => bundle.x509_authorities.iter().map(|a| a.der.clone()).collect(),
            Trust::FirstMet => Vec::new(),
        };
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "Failed to verify agent SVID");
            Status::internal(format!("failed to verify agent SVID: {error}"))
        };
        peer::verify_svid(&own.svid, &authorities, self.clock.now()).map_err(|error| failed(&error))?;
        let path = peer::path(&own.svid, &authorities);
        let path = path.ok_or_else(|| failed(&"its chain leads to no authority of the bundle"))?;
        Ok(path.iter().map(describe).collect())
    }
}

#[tonic::async_trait]
impl Debug for Debugger {
    async fn get_info(
        &self,
        _: Request<wire::GetInfoRequest>,
    ) -> Result<Response<wire::GetInfoResponse>, Status> {
        let mut last = self.last.lock().await;
        let now = self.clock.monotonic();
        if let Some((at, info)) = &*last
            && now.saturating_sub(*at) < FRESH
        {
            return Ok(Response::new(info.clone()));
        }
        let info = self.info()?;
        *last = Some((now, info.clone()));
        Ok(Response::new(info))
    }
}

fn describe(certificate: &AuthorityCertificate) -> wire::get_info_response::Cert {
    let id = certificate.uri().and_then(|uri| SpiffeId::parse(uri).ok());
    wire::get_info_response::Cert {
        id: id.map(|id| types::Spiffeid {
            trust_domain: id.trust_domain_name().to_owned(),
            path: id.path().to_owned(),
        }),
        expires_at: unix_seconds(certificate.not_after()),
        subject: certificate.subject_text(),
    }
}
