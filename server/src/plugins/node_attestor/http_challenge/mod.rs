//! `http_challenge`: whoever can answer on a name's web server is that name.

mod fetch;

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE;
use finial_daemon::settings::{Section, SettingsError};
use finial_identity::go_json::{NotReadable, Object};
use finial_identity::possession::NONCE_BYTES;
use finial_identity::selector::Selector;
use regex::Regex;
use serde_json::json;

use self::fetch::{Fetcher, NoAnswer};
use super::{AttestorFault, Code, Evidence, Exchange, Host, NodeAttestor};

pub const NAME: &str = "http_challenge";

/// Ports from here on are open to every process of a machine.
const FIRST_OPEN_PORT: i64 = 1024;
const MOST_NAME_BYTES: usize = 32;

/// The attestor.
pub struct HttpChallenge {
    host: Host,
    fetcher: Fetcher,
    /// Empty: every name is allowed.
    allowed: Vec<Regex>,
    required_port: Option<i64>,
    allow_non_root_ports: bool,
    first_use_only: bool,
}

/// What an agent says of itself.
struct Claim {
    hostname: String,
    agent_name: String,
    port: i64,
}

/// For the plugin table.
pub fn make(section: Section, host: &Host) -> Result<Arc<dyn NodeAttestor>, SettingsError> {
    let mut allowed = Vec::new();
    for pattern in section.list("allowed_dns_patterns").unwrap_or_default() {
        match Regex::new(&pattern) {
            Ok(regex) => allowed.push(regex),
            Err(error) => section.problem(
                "allowed_dns_patterns",
                format_args!("cannot compile allowed_dns_pattern: {pattern:?}, {error}"),
            ),
        }
    }
    let required_port = section.int("required_port");
    let non_root_ports = section.bool("allow_non_root_ports");
    let first_use_only = section.bool("tofu").unwrap_or(true);
    let any_process_may_answer = match (required_port, non_root_ports) {
        (Some(port), _) => port >= FIRST_OPEN_PORT,
        (None, allowed) => allowed.unwrap_or(true),
    };
    if !first_use_only && any_process_may_answer {
        section
            .problem_here("you can not turn off trust on first use (TOFU) when non-root ports are allowed");
    }
    section.finish()?;
    Ok(Arc::new(HttpChallenge {
        host: host.clone(),
        fetcher: Fetcher::new(host.clock.clone()),
        allowed,
        required_port,
        allow_non_root_ports: non_root_ports.unwrap_or(true),
        first_use_only,
    }))
}

#[async_trait]
impl NodeAttestor for HttpChallenge {
    async fn attest(&self, payload: &[u8], exchange: &mut Exchange) -> Result<Evidence, AttestorFault> {
        let claim =
            Claim::read(payload).map_err(|error| refused(format!("failed to unmarshal data: {error}")))?;
        self.check(&claim)?;

        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| internal("unable to generate challenge"))?;
        let nonce = BASE64_URL_SAFE.encode(nonce);
        // The answer only says that the agent is ready.
        exchange.ask(json!({ "nonce": nonce }).to_string().into_bytes()).await?;
        tracing::debug!(hostname = claim.hostname, "Verifying challenge");
        self.verify(&claim, &nonce)
            .await
            .map_err(|error| denied(format!("challenge verification failed: {error}")))?;

        let agent_id = self.host.trust_domain.agent_id(&format!("/{NAME}/{}", claim.hostname));
        let agent_id = agent_id.map_err(|error| internal(format!("failed to make spiffe id: {error}")))?;
        let selector = Selector { kind: NAME.to_owned(), value: format!("hostname:{}", claim.hostname) };
        Ok(Evidence {
            agent_id,
            selectors: vec![selector],
            can_reattest: !self.first_use_only,
            first_use_only: self.first_use_only,
        })
    }
}

impl HttpChallenge {
    /// What may be asked for at all.
    fn check(&self, claim: &Claim) -> Result<(), AttestorFault> {
        let port = claim.port;
        if self.required_port.is_some_and(|required| required != port) {
            return Err(refused(format!("port {port} is not allowed to be used by this server")));
        }
        if !self.allow_non_root_ports && port >= FIRST_OPEN_PORT {
            return Err(refused(format!("port {port} is not allowed to be >= 1024")));
        }
        if !is_agent_name(&claim.agent_name) {
            return Err(refused("agent name is not valid"));
        }
        if is_localhost(&claim.hostname) {
            return Err(denied("you can not use localhost as a hostname"));
        }
        if !self.allowed.is_empty() && !self.allowed.iter().any(|allowed| allowed.is_match(&claim.hostname)) {
            return Err(denied("the requested hostname is not allowed to connect"));
        }
        Ok(())
    }

    /// Whether the nonce is found where the agent must have put it.
    async fn verify(&self, claim: &Claim, nonce: &str) -> Result<(), String> {
        let Claim { hostname, agent_name, port } = claim;
        if hostname.is_empty() {
            return Err("hostname must be set".to_owned());
        }
        let port = match u16::try_from(*port) {
            Ok(port) if port > 0 => port,
            _ => return Err("port is invalid".to_owned()),
        };
        // What goes into an address must be a name or an IPv4 address, and nothing that an address is made of.
        if let Some(bad) = hostname.chars().find(|c| !c.is_ascii_alphanumeric() && !"-._".contains(*c)) {
            return Err(match bad {
                '/' => "hostname can not contain a slash".to_owned(),
                ':' => "hostname can not contain a colon".to_owned(),
                other => format!("hostname can not contain {other:?}"),
            });
        }
        let path = format!("/.well-known/spiffe/nodeattestor/http_challenge/{agent_name}/challenge");
        let answer = self.fetcher.fetch(hostname, port, &path).await;
        let answer = answer.map_err(|error| {
            tracing::warn!(%error, hostname, port, "Cannot ask the web server of an agent");
            match error {
                NoAnswer::Redirect | NoAnswer::TimedOut => error.to_string(),
                // What is open in this network, and how names resolve here, is no stranger's business.
                _ => "the web server at the given name and port gives no answer".to_owned(),
            }
        })?;
        if String::from_utf8_lossy(&answer).trim() != nonce {
            return Err("expected nonce was not found in HTTP response".to_owned());
        }
        Ok(())
    }
}

impl Claim {
    fn read(payload: &[u8]) -> Result<Claim, NotReadable> {
        let data = Object::read(payload)?;
        Ok(Claim {
            hostname: data.text("hostname")?,
            agent_name: data.text("agentname")?,
            port: data.number("port")?,
        })
    }
}

fn is_agent_name(name: &str) -> bool {
    name.len() <= MOST_NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Any spelling of it; SPIRE knows one.
fn is_localhost(hostname: &str) -> bool {
    let name = hostname.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn refused(text: impl Into<String>) -> AttestorFault {
    AttestorFault::new(Code::InvalidArgument, text)
}

fn denied(text: impl Into<String>) -> AttestorFault {
    AttestorFault::new(Code::PermissionDenied, text)
}

fn internal(text: impl Into<String>) -> AttestorFault {
    AttestorFault::new(Code::Internal, text)
}

#[cfg(test)]
mod tests;
