//! `spire.api.server.debug.v1.Debug`: what the server says about itself on the admin socket.

use std::sync::Arc;
use std::time::Duration;

use der::Decode;
use der::asn1::ObjectIdentifier;
use finial_daemon::clock::{Clock, unix_seconds};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509_svid::AuthorityCertificate;
use finial_proto::spire::api::server::debug::v1 as wire;
use finial_proto::spire::api::server::debug::v1::debug_server::Debug;
use tokio::sync::{Mutex, watch};
use tonic::{Code, Request, Response, Status};
use x509_cert::name::Name;

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
        const WHAT: &str = "failed verification against bundle";
        let svid = Arc::clone(&self.server_svid.borrow());
        let mut chain = Vec::new();
        for der in svid.svid.chain() {
            let certificate = AuthorityCertificate::read(der);
            chain.push(certificate.map_err(|e| Refusal::shown(Code::Internal, WHAT, &e))?);
        }
        let authorities = &self.own_bundle.current().x509_authorities;
        let roots = authorities.iter().filter_map(|a| AuthorityCertificate::read(&a.der).ok());
        let root = chain.last().and_then(|last| roots.into_iter().find(|root| last.was_signed_by(root)));
        let root = root.ok_or_else(|| Refusal::with_code(Code::Internal, WHAT))?;
        Ok(chain.iter().chain([&root]).map(describe).collect())
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
        subject: Name::from_der(certificate.subject_der()).map(|name| go_name(&name)).unwrap_or_default(),
    }
}

/// A distinguished name as Go prints it: the last part first, short names in capitals.
fn go_name(name: &Name) -> String {
    let parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes: Vec<String> = rdn
                .iter()
                .map(|attribute| {
                    let value = String::from_utf8_lossy(attribute.value.value());
                    format!("{}={}", short_name(&attribute.oid), escaped(&value))
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn short_name(oid: &ObjectIdentifier) -> String {
    let text = oid.to_string();
    let short = match text.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "SERIALNUMBER",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.17" => "POSTALCODE",
        _ => return text,
    };
    short.to_owned()
}

fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let special = match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            ' ' => i == 0 || i == last,
            '#' => i == 0,
            _ => false,
        };
        if special {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn names_look_like_gos() {
        let name = Name::from_str("serialNumber=17,O=SPIFFE\\, Inc,C=US").unwrap();
        assert_eq!(go_name(&name), "SERIALNUMBER=17,O=SPIFFE\\, Inc,C=US");
        assert_eq!(escaped("#a b "), "\\#a b\\ ");
    }
}
