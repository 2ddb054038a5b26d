//! `http_challenge`: this machine answers for its name on a web server of its own, for as long as the attestation takes.

mod serve;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use async_trait::async_trait;
use finial_daemon::settings::{Section, SettingsError};
use finial_identity::go_json::Object;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{Attestation, Given, NodeAttestor, NodeAttestorFault};

pub const NAME: &str = "http_challenge";

const KERNEL_HOSTNAME: &str = "/proc/sys/kernel/hostname";
const DEFAULT_AGENT_NAME: &str = "default";

/// The attestor.
struct HttpChallenge {
    hostname: String,
    agent_name: String,
    /// 0: any.
    port: u16,
    /// Where the server finds the port, when that is another one: behind a forwarding.
    advertised_port: Option<u16>,
}

/// An attestation whose port is open.
struct Open {
    payload: Vec<u8>,
    /// Where the nonce is asked for.
    path: String,
    /// Until there is a nonce to serve.
    listener: Option<TcpListener>,
    serving: Option<AbortOnDropHandle<()>>,
}

pub(super) fn configure(section: Section, _given: &Given) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    let text = |key: &str| section.string(key).filter(|text| !text.is_empty());
    let hostname = text("hostname").unwrap_or_else(|| match std::fs::read_to_string(KERNEL_HOSTNAME) {
        Ok(name) => name.trim().to_owned(),
        Err(error) => {
            section.problem_here(format!("unable to fetch hostname: {error}; set hostname"));
            String::new()
        }
    });
    let agent_name = text("agentname").unwrap_or_else(|| DEFAULT_AGENT_NAME.to_owned());
    let is_segment = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !agent_name.chars().all(is_segment) {
        section.problem(
            "agentname",
            "agentname may hold letters, digits and '-' only: the server refuses others",
        );
    }
    let port = section.number::<u16>("port").unwrap_or(0);
    let advertised_port = section.number::<u16>("advertised_port").filter(|port| *port != 0);
    section.finish()?;
    Ok(Arc::new(HttpChallenge { hostname, agent_name, port, advertised_port }))
}

#[async_trait]
impl NodeAttestor for HttpChallenge {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn begin(&self) -> Result<Box<dyn Attestation>, NodeAttestorFault> {
        let failed = |error: std::io::Error| NodeAttestorFault::NotReady {
            attestor: NAME,
            text: format!("could not listen on port {}: {error}", self.port),
        };
        // Of both families; a machine may have been told to have only one.
        let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.port)).await.map_err(failed)?,
        };
        let bound = listener.local_addr().map_err(failed)?.port();
        let port = self.advertised_port.unwrap_or(bound);
        let payload = json!({ "hostname": self.hostname, "agentname": self.agent_name, "port": port });
        let path = format!("/.well-known/spiffe/nodeattestor/http_challenge/{}/challenge", self.agent_name);
        let payload = payload.to_string().into_bytes();
        Ok(Box::new(Open { payload, path, listener: Some(listener), serving: None }))
    }
}

#[async_trait]
impl Attestation for Open {
    fn payload(&self) -> Vec<u8> {
        self.payload.clone()
    }

    async fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestorFault> {
        let refused = |text: String| NodeAttestorFault::Challenge { attestor: NAME, text };
        let nonce = Object::read(challenge).and_then(|challenge| challenge.text("nonce"));
        let nonce = nonce.map_err(|error| refused(format!("unable to unmarshal challenge: {error}")))?;
        let listener = self.listener.take();
        let listener = listener.ok_or_else(|| refused("the server sent a second challenge".to_owned()))?;
        tracing::debug!(path = self.path, "Setting up nonce handler");
        let serving = tokio::spawn(serve::serve(listener, self.path.clone(), nonce));
        self.serving = Some(AbortOnDropHandle::new(serving));
        // Says that the nonce is there; an answer may not be empty.
        Ok(b"\n".to_vec())
    }
}

#[cfg(test)]
mod tests;
