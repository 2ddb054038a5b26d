//! The calls an agent makes to its server. Wire messages stop here.
//!
//! One connection is shared by all calls; it is given up after a failed call and when the agent has a new SVID,
//! and made again by the next call.

mod attest;
mod jwt;
mod watch;
mod wire;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use finial_daemon::argv::text::code_name;
use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_identity::TrustDomain;
use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::x509_svid::{X509Svid, X509SvidError};
use finial_proto::spire::api::server::{agent, bundle, entry, svid};
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use prost::Message;
use rustls_pki_types::CertificateDer;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::own_svid::Identity;

pub use attest::{Anonymous, Proved};
pub use jwt::SignedJwt;
pub use watch::{Changes, Pushed};

/// The time a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// What the verifier of the server's chain says then (`finial_identity::peer`), and Go's.
const UNKNOWN_AUTHORITY: &str = "x509: certificate signed by unknown authority";

/// How large an answer may be: an unpaged list of entries from a stock server has no bound of its own.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// The server's verdict on this agent, as it told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The agent's SVID is not accepted (it expired, was evicted, replaced, or renewal is not for this node): the node
    /// must prove itself anew.
    MustAttest(&'static str),
    /// The node is banned.
    Banned,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server will not have this agent.
    #[error("the server refused this agent: {text}")]
    Denied { denial: Denial, text: String },
    /// The server does not know the method.
    #[error("the server does not have {0}")]
    Unimplemented(String),
    /// The thing asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// No answer came in time.
    #[error("the server did not answer within {} s", CALL_LIMIT.as_secs())]
    TimedOut,
    /// No connection, or the server can't serve now.
    #[error(
        "the server can't be reached: {0}; check server_address, server_port and whether the server runs"
    )]
    Unavailable(String),
    /// The server refused the call.
    #[error("the server refused: {text} ({code:?})")]
    Refused { code: Code, text: String },
    /// The answer is not what it should be.
    #[error("the server's answer can't be used: {0}; check that the server is of a supported version")]
    Malformed(String),
}

impl CallError {
    /// The name of the gRPC code that stands for it.
    pub fn code_name(&self) -> &'static str {
        code_name(match self {
            CallError::Denied { .. } => Code::PermissionDenied,
            CallError::Unimplemented(_) => Code::Unimplemented,
            CallError::NotFound(_) => Code::NotFound,
            CallError::TimedOut => Code::DeadlineExceeded,
            CallError::Unavailable(_) => Code::Unavailable,
            CallError::Refused { code, .. } => *code,
            CallError::Malformed(_) => Code::Unknown,
        })
    }

    /// Whether another connection would not have helped.
    fn is_about_the_request(&self) -> bool {
        match self {
            CallError::NotFound(_) | CallError::Unimplemented(_) => true,
            CallError::Refused { code, .. } => {
                matches!(code, Code::InvalidArgument | Code::FailedPrecondition)
            }
            _ => false,
        }
    }

    /// The server's verdict on this agent, if it is one.
    pub fn denial(&self) -> Option<Denial> {
        match self {
            CallError::Denied { denial, .. } => Some(*denial),
            _ => None,
        }
    }

    /// Whether the server showed a certificate that no authority of the bundle vouches for.
    pub fn is_unknown_authority(&self) -> bool {
        matches!(self, CallError::Unavailable(text) if text.contains(UNKNOWN_AUTHORITY))
    }
}

/// One signature to ask for.
pub struct SigningRequest {
    pub entry_id: String,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

/// The server's answer to a [`SigningRequest`].
pub type Signed = Result<X509Svid, String>;

/// The entries' versions, or, from a server with few of them, the entries.
pub enum Listed {
    /// All entries of this node.
    All(Vec<Entry>),
    /// What has changed, compared with what the caller knew.
    Changed {
        /// New entries and new versions of entries.
        upserted: Vec<Entry>,
        /// IDs of all entries of this node.
        ids: Vec<String>,
    },
}

/// A handle on the server. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    dialer: Dialer,
    server_name: String,
    clock: Clock,
    identity: Identity,
    channel: Mutex<Option<Channel>>,
}

impl Client {
    /// Nothing is dialled before the first call.
    pub fn new(dialer: Dialer, identity: Identity, clock: Clock) -> Client {
        let server_name = match &dialer {
            Dialer::Tcp { host, .. } => host.clone(),
            Dialer::Unix(_) | Dialer::Memory(_) => "localhost".to_owned(),
        };
        Client {
            shared: Arc::new(Shared { dialer, server_name, clock, identity, channel: Mutex::new(None) }),
        }
    }

    /// Gives the connection up, so that the next call presents the agent's newest SVID.
    pub fn hang_up(&self) {
        *self.shared.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A connection that presents no SVID, for attestation.
    pub fn anonymous(&self) -> Anonymous {
        let shared = &self.shared;
        let channel =
            dial::channel(shared.dialer.clone(), Some(shared.identity.anonymous()), &shared.server_name);
        Anonymous::new(channel, shared.clock.clone())
    }

    /// The own trust domain's bundle.
    pub async fn bundle(&self) -> Result<Bundle, CallError> {
        let answer = self
            .call("GetBundle", |channel| async move {
                bundles(channel).get_bundle(bundle::v1::GetBundleRequest::default()).await
            })
            .await?;
        wire::bundle(answer).map_err(|error| CallError::Malformed(format!("bundle: {error}")))
    }

    /// The bundle of another trust domain; NotFound when the server has none.
    pub async fn federated_bundle(&self, trust_domain: &TrustDomain) -> Result<Bundle, CallError> {
        let request = bundle::v1::GetFederatedBundleRequest {
            trust_domain: trust_domain.name().to_owned(),
            output_mask: None,
        };
        let answer = self
            .call("GetFederatedBundle", |channel| {
                let request = request.clone();
                async move { bundles(channel).get_federated_bundle(request).await }
            })
            .await?;
        wire::bundle(answer)
            .map_err(|error| CallError::Malformed(format!("bundle of {trust_domain}: {error}")))
    }

    /// The entries of this node; `is_known` tells whether a version (entry ID, revision, time of creation) is held
    /// already.
    pub async fn entries(&self, is_known: impl Fn(&str, i64, i64) -> bool) -> Result<Listed, CallError> {
        match self.limited("SyncAuthorizedEntries", self.sync_entries(is_known)).await {
            Err(CallError::Unimplemented(_)) => self.all_entries().await.map(Listed::All),
            listed => listed,
        }
    }

    /// Asks for signatures, at most as many as the server takes in one call; the answers are in the same order.
    pub async fn sign(&self, requests: Vec<SigningRequest>) -> Result<Vec<Signed>, CallError> {
        let asked = requests.len();
        let params = requests
            .into_iter()
            .map(|request| svid::v1::NewX509svidParams { entry_id: request.entry_id, csr: request.csr })
            .collect();
        let request = svid::v1::BatchNewX509svidRequest { params };
        let answer = self
            .call("BatchNewX509SVID", |channel| {
                let request = request.clone();
                async move {
                    svid::v1::svid_client::SvidClient::new(channel)
                        .max_decoding_message_size(MAX_ANSWER)
                        .batch_new_x509svid(request)
                        .await
                }
            })
            .await?;
        if answer.results.len() != asked {
            let text = format!("{} results for {asked} signing requests", answer.results.len());
            return Err(CallError::Malformed(text));
        }
        Ok(answer.results.into_iter().map(signed).collect())
    }

    /// A new SVID for the agent itself (PKCS#10, DER). The present one stays valid until the new one is first used.
    pub async fn renew(&self, csr: Vec<u8>) -> Result<X509Svid, CallError> {
        let request = agent::v1::RenewAgentRequest { params: Some(agent::v1::AgentX509svidParams { csr }) };
        let answer = self
            .call("RenewAgent", |channel| {
                let request = request.clone();
                async move { agents(channel).renew_agent(request).await }
            })
            .await?;
        let svid =
            answer.svid.ok_or_else(|| CallError::Malformed("no SVID came with the renewal".to_owned()))?;
        read_svid(svid).map_err(|error| CallError::Malformed(format!("renewed SVID: {error}")))
    }

    /// Tells the server this agent's version.
    pub async fn post_status(&self, agent_version: &str) -> Result<(), CallError> {
        let request =
            agent::v1::PostStatusRequest { agent_version: agent_version.to_owned(), ..Default::default() };
        self.call("PostStatus", |channel| {
            let request = request.clone();
            async move { agents(channel).post_status(request).await }
        })
        .await
        .map(drop)
    }

    /// The entries of this node by the one call that all servers have.
    pub async fn all_entries(&self) -> Result<Vec<Entry>, CallError> {
        let request = entry::v1::GetAuthorizedEntriesRequest { output_mask: Some(wire::entry_mask()) };
        let answer = self
            .call("GetAuthorizedEntries", |channel| async move {
                entry_client(channel).get_authorized_entries(request).await
            })
            .await?;
        Ok(wire::entries(answer.entries))
    }

    async fn sync_entries(&self, is_known: impl Fn(&str, i64, i64) -> bool) -> Result<Listed, CallError> {
        let (ask, asked) = tokio::sync::mpsc::channel(1);
        let first = entry::v1::SyncAuthorizedEntriesRequest {
            output_mask: Some(wire::entry_mask()),
            ids: Vec::new(),
        };
        // The channel has room for one.
        let _ = ask.try_send(first);
        let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
        let mut answers = entry_client(self.channel())
            .sync_authorized_entries(requests)
            .await
            .map_err(failed)?
            .into_inner();
        let mut page = next_page(&mut answers).await?;
        if page.entry_revisions.is_empty() {
            return Ok(Listed::All(wire::entries(page.entries)));
        }

        let chunk = page.entry_revisions.len();
        let (mut ids, mut missing) = (Vec::new(), Vec::new());
        loop {
            for revision in page.entry_revisions {
                if !is_known(&revision.id, revision.revision_number, revision.created_at) {
                    missing.push(revision.id.clone());
                }
                ids.push(revision.id);
            }
            if !page.more {
                break;
            }
            page = next_page(&mut answers).await?;
        }

        missing.sort_unstable();
        let mut upserted = Vec::with_capacity(missing.len());
        for chunk in missing.chunks(chunk) {
            let request = entry::v1::SyncAuthorizedEntriesRequest { output_mask: None, ids: chunk.to_vec() };
            if ask.send(request).await.is_err() {
                return Err(CallError::Malformed("the entry stream ended early".to_owned()));
            }
            loop {
                let page = next_page(&mut answers).await?;
                upserted.extend(wire::entries(page.entries));
                if !page.more {
                    break;
                }
            }
        }
        Ok(Listed::Changed { upserted, ids })
    }

    /// Makes a call, on another connection if the server ended the one there was before the call was sent.
    async fn call<T, F>(&self, name: &'static str, call: impl Fn(Channel) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let attempts = async {
            let answer = match call(self.channel()).await {
                Err(status) if was_never_sent(&status) => {
                    self.hang_up();
                    call(self.channel()).await
                }
                answer => answer,
            };
            answer.map(Response::into_inner).map_err(failed)
        };
        self.limited(name, attempts).await
    }

    async fn limited<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let result = self.shared.clock.timeout(CALL_LIMIT, call).await.unwrap_or(Err(CallError::TimedOut));
        if let Err(error) = &result {
            tracing::debug!(method = name, %error, "Call failed");
            if !error.is_about_the_request() {
                self.hang_up();
            }
        }
        result
    }

    fn channel(&self) -> Channel {
        let shared = &self.shared;
        let mut channel = shared.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel
            .get_or_insert_with(|| {
                dial::channel(shared.dialer.clone(), Some(shared.identity.presenting()), &shared.server_name)
            })
            .clone()
    }
}

fn bundles(channel: Channel) -> bundle::v1::bundle_client::BundleClient<Channel> {
    bundle::v1::bundle_client::BundleClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

fn agents(channel: Channel) -> agent::v1::agent_client::AgentClient<Channel> {
    agent::v1::agent_client::AgentClient::new(channel)
}

fn entry_client(channel: Channel) -> entry::v1::entry_client::EntryClient<Channel> {
    entry::v1::entry_client::EntryClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

async fn next_page(
    answers: &mut Streaming<entry::v1::SyncAuthorizedEntriesResponse>,
) -> Result<entry::v1::SyncAuthorizedEntriesResponse, CallError> {
    let page = answers.message().await.map_err(failed)?;
    page.ok_or_else(|| CallError::Malformed("the entry stream ended early".to_owned()))
}

fn signed(result: svid::v1::batch_new_x509svid_response::Result) -> Signed {
    let status = result.status.unwrap_or_default();
    if status.code != Code::Ok as i32 {
        return Err(format!("{} (code {})", status.message, status.code));
    }
    let svid = result.svid.ok_or("the server sent no SVID")?;
    read_svid(svid).map_err(|error| error.to_string())
}

fn read_svid(wire: types::X509svid) -> Result<X509Svid, X509SvidError> {
    X509Svid::read(wire.cert_chain.into_iter().map(CertificateDer::from).collect())
}

/// Whether a call came to a connection that takes no more of them. Servers say so (GOAWAY) to connections of some age; where
/// a stream keeps such a one open, the HTTP library finds out with the next call, and gives it back unsent.
fn was_never_sent(status: &Status) -> bool {
    // A status from the server has no source.
    status.code() == Code::Cancelled && std::error::Error::source(status).is_some()
}

/// What a status says to an agent. The detail of a refusal decides, its text does not.
fn failed(status: Status) -> CallError {
    let text = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied => match denial(&status) {
            Some(denial) => CallError::Denied { denial, text },
            None => CallError::Refused { code: Code::PermissionDenied, text },
        },
        Code::Unimplemented => CallError::Unimplemented(text),
        Code::NotFound => CallError::NotFound(text),
        Code::DeadlineExceeded => CallError::TimedOut,
        Code::Unavailable => CallError::Unavailable(text),
        code => CallError::Refused { code, text },
    }
}

fn denial(status: &Status) -> Option<Denial> {
    let whole = RpcStatus::decode(status.details()).ok()?;
    let detail = whole
        .details
        .iter()
        .find(|detail| detail.type_url.ends_with("/spire.api.types.PermissionDeniedDetails"))?;
    let detail = types::PermissionDeniedDetails::decode(detail.value.as_slice()).ok()?;
    match detail.reason() {
        Reason::AgentExpired => Some(Denial::MustAttest("its SVID has expired")),
        Reason::AgentNotAttested => Some(Denial::MustAttest("it is not attested; it was evicted")),
        Reason::AgentNotActive => Some(Denial::MustAttest("its SVID was replaced by a newer one")),
        Reason::AgentMustReattest => Some(Denial::MustAttest("it must attest again instead of renewing")),
        Reason::AgentBanned => Some(Denial::Banned),
        Reason::Unknown => None,
    }
}

/// `google.rpc.Status`, as far as it is read here: gRPC carries it in the trailer grpc-status-details-bin.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}
