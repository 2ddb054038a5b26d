//! `spire.api.server.debug.v1.Debug`: what the server says about itself on the admin socket.

use std::sync::Arc;
use std::time::Duration;

use finial_daemon::clock::{Clock, unix_seconds};
use finial_identity::peer;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509_svid::AuthorityCertificate;
use finial_proto::spire::api::server::debug::v1 as wire;
use finial_proto::spire::api::server::debug::v1::debug_server::Debug;
use tokio::sync::{Mutex, watch};
use tonic::{Code, Request, Response, Status};

use crate::access::audit::Subject;
use crate::api::convert;
use crate::api::gate::Call;
use crate::api::status::Refusal;
use crate::authority::server_svid::ServerSvid;
use crate::bundles::own::OwnBundle;
use crate::store::Store;
use crate::store::agents::ListAgents;
use crate::store::entries::ListEntries;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(5);

/// The service.
pub struct Debugger {
    store: Store,
    own_bundle: OwnBundle,
    server_svid: watch::Receiver<Arc<ServerSvid>>,
    clock: Clock,
    started: Duration,
    /// The last answer and when it was made.
    last: Mutex<Option<(Duration, wire::GetInfoResponse)>>,
}

impl Debugger {
    /// The uptime counts from here.
    pub fn new(
        store: Store,
        own_bundle: OwnBundle,
        server_svid: watch::Receiver<Arc<ServerSvid>>,
        clock: Clock,
    ) -> Debugger {
        let started = clock.monotonic();
        Debugger { store, own_bundle, server_svid, clock, started, last: Mutex::new(None) }
    }

    async fn info(&self) -> Result<wire::GetInfoResponse, Refusal> {
        let agents = self.store.agents().count(&ListAgents::default()).await;
        let agents = agents.map_err(|e| Refusal::shown(Code::Internal, "failed to count agents", &e))?;
        let entries = self.store.entries().count(&ListEntries::default()).await;
        let entries = entries.map_err(|e| Refusal::shown(Code::Internal, "failed to count entries", &e))?;
        let bundles = self.store.bundles().count().await;
        let bundles = bundles.map_err(|e| Refusal::shown(Code::Internal, "failed to count bundles", &e))?;
        let small = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
        let uptime = self.clock.monotonic().saturating_sub(self.started).as_secs();
        Ok(wire::GetInfoResponse {
            svid_chain: self.chain()?,
            uptime: small(uptime),
            agents_count: small(agents),
            // Our own one counts too, as in SPIRE.
            federated_bundles_count: small(bundles),
            entries_count: small(entries),
        })
    }

    /// The server's certificates up to the root in the bundle.
    fn chain(&self) -> Result<Vec<wire::get_info_response::Cert>, Refusal> {
        let svid = Arc::clone(&self.server_svid.borrow());
        let authorities: Vec<_> =
            self.own_bundle.current().x509_authorities.iter().map(|a| a.der.clone()).collect();
        let path = peer::path(&svid.svid, &authorities);
        let path =
            path.ok_or_else(|| Refusal::with_code(Code::Internal, "failed verification against bundle"))?;
        Ok(path.iter().map(describe).collect())
    }
}

#[tonic::async_trait]
impl Debug for Debugger {
    async fn get_info(
        &self,
        request: Request<wire::GetInfoRequest>,
    ) -> Result<Response<wire::GetInfoResponse>, Status> {
        let call = Call::of(&request)?;
        let work = async {
            let mut last = self.last.lock().await;
            let now = self.clock.monotonic();
            if let Some((at, info)) = &*last
                && now.saturating_sub(*at) < FRESH
            {
                return Ok(info.clone());
            }
            let info = self.info().await?;
            *last = Some((now, info.clone()));
            Ok(info)
        };
        call.answer(Subject::default, work).await
    }
}

fn describe(certificate: &AuthorityCertificate) -> wire::get_info_response::Cert {
    let id = certificate.uri().and_then(|uri| SpiffeId::parse(uri).ok());
    wire::get_info_response::Cert {
        id: id.as_ref().map(convert::id),
        expires_at: unix_seconds(certificate.not_after()),
        subject: certificate.subject_text(),
    }
}
