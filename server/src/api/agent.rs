//! `spire.api.server.agent.v1.Agent`: node attestation and what operators do with nodes.

use finial_daemon::clock::Clock;
use finial_identity::entry::Entry;
use finial_identity::selector::{Selector, SelectorMatch};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use finial_proto::spire::api::server::agent::v1 as wire;
use finial_proto::spire::api::server::agent::v1::agent_server::Agent;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::access::audit::Subject;
use crate::agents::attest::{self, AttestFault, AttestationData, ParamsDraft};
use crate::agents::renew::{self, RenewFault};
use crate::api::convert;
use crate::api::gate::Call;
use crate::api::status::{self, Refusal};
use crate::authority::issue::Issuer;
use crate::entries::feed::Feed;
use crate::plugins::node_attestor::{self, NodeAttestors, exchange, join_token};
use crate::store::agents::{ListAgents, NodeUpdate};
use crate::store::{Store, StoreError};

/// The longest `agent_version`, in bytes.
const MAX_VERSION_BYTES: usize = 255;

/// The service.
#[derive(Clone)]
pub struct Agents {
    pub trust_domain: TrustDomain,
    pub store: Store,
    pub feed: Feed,
    pub issuer: Issuer,
    pub attestors: NodeAttestors,
    /// The setting `agent_spiffe_id_as_selector`.
    pub id_as_selector: bool,
    /// Told of agents that lost their standing, so that open streams end at once.
    pub cut_off: broadcast::Sender<SpiffeId>,
    pub clock: Clock,
}

type AttestRequests = Streaming<wire::AttestAgentRequest>;
type AttestAnswers = mpsc::Sender<Result<wire::AttestAgentResponse, Status>>;

#[tonic::async_trait]
impl Agent for Agents {
    async fn count_agents(
        &self,
        request: Request<wire::CountAgentsRequest>,
    ) -> Result<Response<wire::CountAgentsResponse>, Status> {
        let call = Call::of(&request)?;
        let filter = request.into_inner().filter.map(|f| wire::list_agents_request::Filter {
            by_attestation_type: f.by_attestation_type,
            by_selector_match: f.by_selector_match,
            by_banned: f.by_banned,
            by_can_reattest: f.by_can_reattest,
            by_expires_before: f.by_expires_before,
        });
        let subject = filter_subject(filter.as_ref());
        let work = async {
            let filter = read_filter(filter)?;
            let count = self.store.agents().count(&filter).await;
            let count = count.map_err(|e| Refusal::shown(Code::Internal, "failed to count agents", &e))?;
            Ok(wire::CountAgentsResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
        };
        call.answer(|| subject, work).await
    }

    async fn list_agents(
        &self,
        request: Request<wire::ListAgentsRequest>,
    ) -> Result<Response<wire::ListAgentsResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let subject = filter_subject(request.filter.as_ref());
        let work = async {
            let mut list = read_filter(request.filter)?;
            list.page = convert::read_page(request.page_size, request.page_token);
            let page = self.store.agents().list(&list).await;
            let page = page.map_err(|e| Refusal::shown(Code::Internal, "failed to list agents", &e))?;
            let mask = request.output_mask.as_ref();
            let agents = page.items.iter().map(|node| convert::agent(node, mask)).collect();
            Ok(wire::ListAgentsResponse { agents, next_page_token: page.next_token })
        };
        call.answer(|| subject, work).await
    }

    async fn get_agent(
        &self,
        request: Request<wire::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        let call = Call::of(&request)?;
        let wire::GetAgentRequest { id, output_mask } = request.into_inner();
        let subject = agent_subject(id.as_ref());
        let work = async {
            let id = self.read_id(id)?;
            let node = self.store.agents().get(&id).await;
            let node = node.map_err(|e| Refusal::shown(Code::Internal, "failed to fetch agent", &e))?;
            let node = node.ok_or_else(|| Refusal::not_found("agent not found"))?;
            Ok(convert::agent(&node, output_mask.as_ref()))
        };
        call.answer(|| subject, work).await
    }

    async fn delete_agent(&self, request: Request<wire::DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().id;
        let subject = agent_subject(id.as_ref());
        let work = async {
            let id = self.read_id(id)?;
            let deleted = self.store.agents().delete(&id).await;
            deleted.map_err(|error| missing_or("failed to remove agent", &error))?;
            tracing::info!(spiffe_id = %id, "Agent deleted");
            self.left(id).await;
            Ok(())
        };
        call.answer(|| subject, work).await
    }

    async fn ban_agent(&self, request: Request<wire::BanAgentRequest>) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let id = request.into_inner().id;
        let subject = agent_subject(id.as_ref());
        let work = async {
            let id = self.read_id(id)?;
            let banned = self.store.agents().ban(&id).await;
            banned.map_err(|error| missing_or("failed to ban agent", &error))?;
            tracing::info!(spiffe_id = %id, "Agent banned");
            self.left(id).await;
            Ok(())
        };
        call.answer(|| subject, work).await
    }

    type AttestAgentStream = ReceiverStream<Result<wire::AttestAgentResponse, Status>>;

    async fn attest_agent(
        &self,
        request: Request<AttestRequests>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let call = Call::of(&request)?;
        let requests = request.into_inner();
        let (answers, stream) = mpsc::channel(1);
        let service = self.clone();
        let work = async move {
            let mut subject = Subject::default();
            let ended = service.attest(&call, requests, &answers, &mut subject).await;
            let ended = ended.map_err(|refusal| refusal.about(&subject));
            call.audit_stream(&ended, || subject);
            if let Err(refusal) = ended {
                // Fails when the agent is gone.
                let _ = answers.send(Err(refusal.into())).await;
            }
        };
        tokio::spawn(work.in_current_span());
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew_agent(
        &self,
        request: Request<wire::RenewAgentRequest>,
    ) -> Result<Response<wire::RenewAgentResponse>, Status> {
        let call = Call::of(&request)?;
        let csr = request.into_inner().params.map(|params| params.csr);
        let subject = || Subject { csr: csr.as_deref().map(convert::sha256_hex), ..Subject::default() };
        let work = async {
            call.limit(1, "rejecting request due to renew agent rate limiting").await?;
            let agent_id = call.agent_id()?;
            let (renewable, csr) =
                renew::check(&self.store, &agent_id, csr.as_deref()).await.map_err(not_renewed)?;
            tracing::info!("Renewing agent SVID");
            let issued = self.issuer.agent_x509(&renewable, &csr).await;
            let issued = issued.map_err(|e| Refusal::internal("failed to sign X509 SVID", &e))?;
            let (serial, not_after) = (issued.svid.serial_decimal(), issued.svid.not_after());
            renew::record(&self.store, &renewable, &serial, not_after).await.map_err(not_renewed)?;
            Ok(wire::RenewAgentResponse { svid: Some(convert::svid(&issued.svid)) })
        };
        call.answer(subject, work).await
    }

    async fn create_join_token(
        &self,
        request: Request<wire::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let call = Call::of(&request)?;
        let wire::CreateJoinTokenRequest { ttl, token, agent_id } = request.into_inner();
        let mut subject = agent_subject(agent_id.as_ref());
        if ttl > 0 {
            subject.others.add("ttl", ttl);
        }
        let work = async {
            if ttl < 1 {
                return Err(Refusal::invalid("ttl is required, you must provide one"));
            }
            let alias = agent_id.map(|id| convert::read_workload(Some(id), &self.trust_domain)).transpose();
            let alias = alias.map_err(|e| Refusal::invalid_because("invalid agent ID", &e))?;
            let token = if token.is_empty() { uuid::Uuid::new_v4().to_string() } else { token };
            let node = self.trust_domain.agent_id(&format!("/{}/{token}", join_token::NAME));
            let node = node.map_err(|e| Refusal::invalid_because("failed to create token", &e))?;
            let expires_at = self.clock.unix().saturating_add(i64::from(ttl));
            let alias = alias.map(|id| self.alias(id, node));
            let created = self.store.tokens().create(token.as_str(), expires_at, alias).await;
            created.map_err(|e| Refusal::shown(Code::Internal, "failed to create token", &e))?;
            self.feed.changed().await;
            Ok(types::JoinToken { value: token, expires_at })
        };
        call.answer(|| subject, work).await
    }

    async fn post_status(
        &self,
        request: Request<wire::PostStatusRequest>,
    ) -> Result<Response<wire::PostStatusResponse>, Status> {
        let call = Call::of(&request)?;
        let version = request.into_inner().agent_version;
        let mut subject =
            Subject { spiffe_id: call.agent_id().ok().map(|id| id.to_string()), ..Subject::default() };
        if !version.is_empty() && version.len() <= MAX_VERSION_BYTES {
            subject.others.add("agent_version", &version);
        }
        let work = async {
            call.limit(1, "rejecting request due to post status rate limiting").await?;
            let agent_id = call.agent_id()?;
            if version.is_empty() {
                return Ok(wire::PostStatusResponse {});
            }
            if version.len() > MAX_VERSION_BYTES {
                return Err(Refusal::invalid("agent version is too long (max 255 characters)"));
            }
            let update = NodeUpdate { agent_version: Some(version.clone()), ..NodeUpdate::default() };
            let updated = self.store.agents().update(&agent_id, update).await;
            updated.map_err(|error| match error {
                StoreError::NotFound(_) => Refusal::not_found("agent not found"),
                error => Refusal::internal("failed to update agent", &error),
            })?;
            tracing::debug!(agent_version = version, "Agent status updated");
            Ok(wire::PostStatusResponse {})
        };
        call.answer(|| subject, work).await
    }
}

impl Agents {
    fn read_id(&self, id: Option<types::Spiffeid>) -> Result<SpiffeId, Refusal> {
        convert::read_agent(id, &self.trust_domain)
            .map_err(|e| Refusal::invalid_because("invalid agent ID", &e))
    }

    /// After a node was deleted or banned.
    async fn left(&self, id: SpiffeId) {
        self.feed.changed().await;
        // Fails when no stream is open.
        let _ = self.cut_off.send(id);
    }

    async fn attest(
        &self,
        call: &Call,
        mut requests: AttestRequests,
        answers: &AttestAnswers,
        subject: &mut Subject,
    ) -> Result<(), Refusal> {
        tokio::select! {
            limited = call.limit(1, "rejecting request due to attest agent rate limiting") => limited?,
            // Those behind would have to wait for somebody who is not there any more.
            () = answers.closed() => return Err(Refusal::gone()),
        }
        let first = match requests.message().await {
            Ok(Some(first)) => first,
            Ok(None) => return Err(Refusal::invalid("failed to receive request from stream: EOF")),
            Err(status) => return Err(Refusal::from_stream(status)),
        };
        let draft = match first.step {
            Some(wire::attest_agent_request::Step::Params(params)) => Some(read_params(params)),
            _ => None,
        };
        let params = attest::check_params(draft).map_err(not_attested)?;
        subject.node_attestor_type = Some(params.data.kind.clone());

        let (attestor_end, agent_end) = exchange::pair();
        let mut attestor_end = attestor_end.with_caller(call.granted.caller().ip());
        let proving = async {
            let proven =
                attest::prove(&self.attestors, &self.store, self.id_as_selector, &params, &mut attestor_end)
                    .await;
            // Ends the relay.
            drop(attestor_end);
            proven
        };
        let (proven, ()) = tokio::join!(proving, relay(agent_end, requests, answers));
        let (attested, csr) = proven.map_err(not_attested)?;
        subject.agent_id = Some(attested.agent_id().to_string());

        let issued = self.issuer.agent_x509(&attested, &csr).await;
        let issued = issued.map_err(|e| Refusal::internal("failed to sign X509 SVID", &e))?;
        let (serial, not_after) = (issued.svid.serial_decimal(), issued.svid.not_after());
        attest::record(&self.store, &attested, &serial, not_after).await.map_err(not_attested)?;
        self.feed.changed().await;
        tracing::info!(
            agent_id = %attested.agent_id(),
            node_attestor_type = params.data.kind,
            address = call.granted.caller().address().map(tracing::field::display),
            "Agent attestation request completed"
        );
        let result = wire::attest_agent_response::Result {
            svid: Some(convert::svid(&issued.svid)),
            reattestable: attested.can_reattest(),
        };
        let step = Some(wire::attest_agent_response::Step::Result(result));
        // Fails when the agent is gone.
        let _ = answers.send(Ok(wire::AttestAgentResponse { step })).await;
        Ok(())
    }

    /// The entry that gives a node which joins with a token another identity. The store knows this shape: it deletes the
    /// entry with the node.
    fn alias(&self, id: SpiffeId, node: SpiffeId) -> Entry {
        let selectors = vec![Selector { kind: "spiffe_id".to_owned(), value: node.to_string() }];
        Entry { created_at: self.clock.unix(), ..Entry::plain(id, node, selectors) }
    }
}

/// Carries challenges to the agent and its answers back, until one of the two has had enough.
async fn relay(mut agent: exchange::AgentEnd, mut requests: AttestRequests, answers: &AttestAnswers) {
    while let Some(challenge) = agent.challenges.recv().await {
        let step = Some(wire::attest_agent_response::Step::Challenge(challenge));
        if answers.send(Ok(wire::AttestAgentResponse { step })).await.is_err() {
            return;
        }
        let Ok(Some(request)) = requests.message().await else { return };
        let response = match request.step {
            Some(wire::attest_agent_request::Step::ChallengeResponse(response)) => response,
            _ => Vec::new(),
        };
        if agent.responses.send(response).await.is_err() {
            return;
        }
    }
}

fn read_params(params: wire::attest_agent_request::Params) -> ParamsDraft {
    ParamsDraft {
        data: params.data.map(|data| AttestationData { kind: data.r#type, payload: data.payload }),
        csr: params.params.map(|params| params.csr),
    }
}

fn not_attested(fault: AttestFault) -> Refusal {
    let code = match fault.code() {
        node_attestor::Code::InvalidArgument => Code::InvalidArgument,
        node_attestor::Code::NotFound => Code::NotFound,
        node_attestor::Code::PermissionDenied => Code::PermissionDenied,
        node_attestor::Code::FailedPrecondition => Code::FailedPrecondition,
        node_attestor::Code::Unavailable => Code::Unavailable,
        node_attestor::Code::Internal => Code::Internal,
        node_attestor::Code::Other(number) => Code::from(number),
    };
    match &fault {
        AttestFault::Store { step, error } => Refusal::internal(step, error),
        _ => Refusal::with_code(code, &fault.to_string()),
    }
}

fn not_renewed(fault: RenewFault) -> Refusal {
    match &fault {
        RenewFault::NotFound => Refusal::not_found("agent not found"),
        RenewFault::MustReattest => Refusal::denied(&fault.to_string(), Reason::AgentMustReattest),
        RenewFault::NoParams | RenewFault::NoCsr | RenewFault::Csr(_) => Refusal::invalid(&fault.to_string()),
        RenewFault::Fetch(error) => Refusal::internal("failed to fetch agent", error),
        RenewFault::Update(error) => Refusal::internal("failed to update agent", error),
    }
}

fn missing_or(what: &str, error: &StoreError) -> Refusal {
    match status::code_of(error) {
        Code::NotFound => Refusal::not_found("agent not found"),
        _ => Refusal::shown(Code::Internal, what, error),
    }
}

fn read_filter(filter: Option<wire::list_agents_request::Filter>) -> Result<ListAgents, Refusal> {
    let Some(filter) = filter else { return Ok(ListAgents::default()) };
    Ok(ListAgents {
        attestation_type: Some(filter.by_attestation_type).filter(|kind| !kind.is_empty()),
        banned: filter.by_banned,
        can_reattest: filter.by_can_reattest,
        selectors: filter.by_selector_match.map(read_selector_filter).transpose()?,
        expires_before: read_instant(&filter.by_expires_before),
        page: None,
    })
}

fn read_selector_filter(filter: types::SelectorMatch) -> Result<(SelectorMatch, Vec<Selector>), Refusal> {
    const WHAT: &str = "failed to parse selectors";
    let selectors = convert::read_selectors(filter.selectors);
    let selectors = selectors.map_err(|e| Refusal::invalid_because(WHAT, &e))?;
    let matching = convert::read_match(filter.r#match).map_err(|e| Refusal::invalid_because(WHAT, &e))?;
    Ok((matching, selectors))
}

/// `2021-01-02 15:04:05 -0700 -07`, in unix seconds. What does not have this form filters nothing, as in SPIRE.
fn read_instant(text: &str) -> Option<i64> {
    let format = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    let (instant, zone) = text.rsplit_once(' ')?;
    let digits = zone.strip_prefix(['+', '-'])?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(OffsetDateTime::parse(instant, format).ok()?.unix_timestamp())
}

fn filter_subject(filter: Option<&wire::list_agents_request::Filter>) -> Subject {
    let mut subject = Subject::default();
    let Some(filter) = filter else { return subject };
    subject.node_attestor_type = Some(filter.by_attestation_type.clone()).filter(|kind| !kind.is_empty());
    if let Some(by) = &filter.by_selector_match {
        subject.others.add("by_selector_match", by.r#match().as_str_name());
        subject.others.add("by_selectors", convert::selectors_text(&by.selectors));
    }
    if let Some(banned) = filter.by_banned {
        subject.others.add("by_banned", banned);
    }
    if let Some(can_reattest) = filter.by_can_reattest {
        subject.others.add("by_can_reattest", can_reattest);
    }
    subject
}

fn agent_subject(id: Option<&types::Spiffeid>) -> Subject {
    Subject { spiffe_id: id.map(convert::id_text), ..Subject::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_gos_layout_and_nothing_else() {
        assert_eq!(read_instant("1970-01-02 00:00:00 +0000 +00"), Some(86_400));
        assert_eq!(read_instant("1970-01-02 02:00:00 +0200 +02"), Some(86_400));
        assert_eq!(read_instant("1970-01-01 17:00:00 -0700 -07"), Some(86_400));
        for other in ["", "1970-01-02", "1970-01-02 00:00:00 +0000 UTC", "1970-01-02 00:00:00 +0000", "x y"] {
            assert_eq!(read_instant(other), None, "{other}");
        }
    }
}
