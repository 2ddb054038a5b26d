use finial_proto::spire::api::server::agent::v1 as wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::entry::v1 as entry_wire;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use types::permission_denied_details::Reason;

use super::*;
use crate::store::agents::NodeUpdate;

async fn list(server: &Server, filter: wire::list_agents_request::Filter) -> Vec<String> {
    let request = wire::ListAgentsRequest { filter: Some(filter), ..Default::default() };
    let answer = server.agents().list_agents(request).await.unwrap().into_inner();
    answer.agents.iter().map(|agent| uri(agent.id.as_ref().unwrap())).collect()
}

async fn ask(agent: &Agent) -> Result<(), Status> {
    let request = entry_wire::GetAuthorizedEntriesRequest::default();
    EntryClient::new(agent.channel.clone()).get_authorized_entries(request).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn incomplete_attestations_are_named() {
    let server = Server::start().await;
    let data =
        |kind: &str, payload: &str| types::AttestationData { r#type: kind.into(), payload: payload.into() };
    let csr = |csr: &[u8]| Some(wire::AgentX509svidParams { csr: csr.to_vec() });
    let good = csr_for(&[]);
    let params = |data, params| Some(wire::attest_agent_request::Params { data, params });
    for (params, code, text) in [
        (None, Code::InvalidArgument, "malformed param: missing params"),
        (params(None, csr(&good)), Code::InvalidArgument, "malformed param: missing attestation data"),
        (
            params(Some(data("join_token", "x")), None),
            Code::InvalidArgument,
            "malformed param: missing X509-SVID parameters",
        ),
        (
            params(Some(data("join_token", "x")), csr(b"")),
            Code::InvalidArgument,
            "malformed param: missing CSR",
        ),
        (
            params(Some(data("", "x")), csr(&good)),
            Code::InvalidArgument,
            "malformed param: missing attestation data type",
        ),
        (
            params(Some(data("join_token", "")), csr(&good)),
            Code::InvalidArgument,
            "malformed param: missing attestation data payload",
        ),
        (
            params(Some(data("tpm", "x")), csr(&good)),
            Code::FailedPrecondition,
            "error getting node attestor: could not find node attestor type \"tpm\"",
        ),
        (
            params(Some(data("join_token", "never made")), csr(&good)),
            Code::InvalidArgument,
            "failed to attest: join token does not exist or has already been used",
        ),
    ] {
        assert_refused(server.attest_with(params).await, code, text);
    }
    let token = server.token().await;
    assert_refused_with(
        server.attest(&token, b"nonsense".to_vec()).await,
        Code::InvalidArgument,
        "failed to parse CSR: ",
    );
    let used = "failed to attest: join token does not exist or has already been used";
    assert_refused(server.attest(&token, good).await, Code::InvalidArgument, used);
    assert_eq!(list(&server, Default::default()).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn of_two_agents_with_one_token_one_wins() {
    let server = Server::start().await;
    let token = server.token().await;
    let attempts = (0..8).map(|_| server.attest(&token, csr_for(&[])));
    let outcomes = futures::future::join_all(attempts).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let used = "failed to attest: join token does not exist or has already been used";
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        assert_refused(outcome, Code::InvalidArgument, used);
    }
    assert_eq!(
        list(&server, Default::default()).await,
        [format!("spiffe://example.org/spire/agent/join_token/{token}")]
    );
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_used_up() {
    let server = Server::start().await;
    let token = server.token().await;
    server.clock.jump(601);
    assert_refused(server.attest(&token, csr_for(&[])).await, Code::InvalidArgument, "join token expired");
    let used = "failed to attest: join token does not exist or has already been used";
    assert_refused(server.attest(&token, csr_for(&[])).await, Code::InvalidArgument, used);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_checked_before_they_are_made() {
    let server = Server::start().await;
    let request =
        |ttl, token: &str, agent_id| wire::CreateJoinTokenRequest { ttl, token: token.into(), agent_id };
    for (request, text) in [
        (request(0, "", None), "ttl is required, you must provide one"),
        (request(-5, "", None), "ttl is required, you must provide one"),
        (
            request(1, "", id("/spire/agent/x")),
            "invalid agent ID: \"spiffe://example.org/spire/agent/x\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace",
        ),
        (
            request(1, "a b", None),
            "failed to create token: path segment characters are limited to letters, numbers, dots, dashes, and underscores",
        ),
    ] {
        assert_refused(server.agents().create_join_token(request).await, Code::InvalidArgument, text);
    }
    let made =
        server.agents().create_join_token(request(60, "mine", id("/node"))).await.unwrap().into_inner();
    assert_eq!(made, types::JoinToken { value: "mine".into(), expires_at: server.clock.unix() + 60 });
    let again = server.agents().create_join_token(request(60, "mine", None)).await;
    assert_refused_with(again, Code::Internal, "failed to create token: datastore-sql: UNIQUE constraint");

    // The alias has the form that the store deletes with the node.
    let entries = server.entries().list_entries(entry_wire::ListEntriesRequest::default()).await.unwrap();
    let node = "spiffe://example.org/spire/agent/join_token/mine";
    let alias = &entries.into_inner().entries[0];
    assert_eq!((alias.parent_id.clone(), alias.spiffe_id.clone()), (wire_id(node), id("/node")));
    assert_eq!(alias.selectors, [types::Selector { r#type: "spiffe_id".into(), value: node.into() }]);
    server.attest("mine", csr_for(&[])).await.unwrap();
    server.agents().delete_agent(wire::DeleteAgentRequest { id: wire_id(node) }).await.unwrap();
    let count = server.entries().count_entries(entry_wire::CountEntriesRequest::default()).await.unwrap();
    assert_eq!(count.into_inner().count, 0);
}

#[tokio::test(start_paused = true)]
async fn evicted_and_banned_agents_learn_why() {
    let server = Server::start().await;
    let (evicted, banned) = (server.agent().await, server.agent().await);
    ask(&evicted).await.unwrap();
    ask(&banned).await.unwrap();
    server.agents().delete_agent(wire::DeleteAgentRequest { id: wire_id(&evicted.id) }).await.unwrap();
    server.agents().ban_agent(wire::BanAgentRequest { id: wire_id(&banned.id) }).await.unwrap();
    let text = "authorization denied for method /spire.api.server.entry.v1.Entry/GetAuthorizedEntries";
    for (agent, expected) in [(&evicted, Reason::AgentNotAttested), (&banned, Reason::AgentBanned)] {
        let refused = ask(agent).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, text));
        assert_eq!(reason(&refused), Some(expected));
    }
    let get = wire::GetAgentRequest { id: wire_id(&banned.id), output_mask: None };
    let shown = server.agents().get_agent(get).await.unwrap().into_inner();
    assert!(shown.banned && shown.x509svid_serial_number.is_empty());

    // An SVID past its end, on a connection that is older.
    let late = server.agent().await;
    ask(&late).await.unwrap();
    server.clock.jump(3601);
    assert_eq!(reason(&ask(&late).await.unwrap_err()), Some(Reason::AgentExpired));
}

#[tokio::test(start_paused = true)]
async fn agent_ids_are_checked() {
    let server = Server::start().await;
    for (id, code, text) in [
        (None, Code::InvalidArgument, "invalid agent ID: request must specify SPIFFE ID"),
        (
            id(""),
            Code::InvalidArgument,
            "invalid agent ID: \"spiffe://example.org\" is not an agent in trust domain \"example.org\"; path is empty",
        ),
        (
            id("/w"),
            Code::InvalidArgument,
            "invalid agent ID: \"spiffe://example.org/w\" is not an agent in trust domain \"example.org\"; path is not in the agent namespace",
        ),
        (id("/spire/agent/x/y"), Code::NotFound, "agent not found"),
    ] {
        let get = wire::GetAgentRequest { id: id.clone(), output_mask: None };
        assert_refused(server.agents().get_agent(get).await, code, text);
        assert_refused(server.agents().ban_agent(wire::BanAgentRequest { id: id.clone() }).await, code, text);
        assert_refused(server.agents().delete_agent(wire::DeleteAgentRequest { id }).await, code, text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewed_svid_ends_the_old_one_when_it_is_used() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    let csr = key.csr(&spire_subject(), &[]).unwrap();
    let renew = |csr: Option<Vec<u8>>| wire::RenewAgentRequest {
        params: csr.map(|csr| wire::AgentX509svidParams { csr }),
    };
    let mut client = AgentClient::new(agent.channel.clone());
    assert_refused(client.renew_agent(renew(None)).await, Code::InvalidArgument, "params cannot be nil");
    assert_refused(client.renew_agent(renew(Some(vec![]))).await, Code::InvalidArgument, "missing CSR");
    assert_refused_with(
        client.renew_agent(renew(Some(vec![1]))).await,
        Code::InvalidArgument,
        "failed to parse CSR: ",
    );
    let svid = client.renew_agent(renew(Some(csr))).await.unwrap().into_inner().svid.unwrap();
    assert_eq!(uri(svid.id.as_ref().unwrap()), agent.id);
    ask(&agent).await.unwrap();
    let renewed = Agent { id: agent.id.clone(), channel: server.tls(Some(identity(&svid.cert_chain, &key))) };
    ask(&renewed).await.unwrap();
    assert_eq!(reason(&ask(&agent).await.unwrap_err()), Some(Reason::AgentNotActive));

    let update = NodeUpdate { can_reattest: Some(true), ..NodeUpdate::default() };
    let node = finial_identity::spiffe_id::SpiffeId::parse(&agent.id).unwrap();
    server.handles.store.agents().update(&node, update).await.unwrap();
    let mut client = AgentClient::new(renewed.channel.clone());
    let refused = client.renew_agent(renew(Some(csr_for(&[])))).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, "agent must reattest instead of renew")
    );
    assert_eq!(reason(&refused), Some(Reason::AgentMustReattest));
}

#[tokio::test(start_paused = true)]
async fn agents_are_listed_filtered_and_masked() {
    let server = Server::start().await;
    let (one, two) = (server.agent().await, server.agent().await);
    server.agents().ban_agent(wire::BanAgentRequest { id: wire_id(&two.id) }).await.unwrap();
    let post =
        |version: &str| wire::PostStatusRequest { agent_version: version.into(), current_bundle_serial: 0 };
    let mut client = AgentClient::new(one.channel.clone());
    client.post_status(post("1.2.3")).await.unwrap();
    client.post_status(post("")).await.unwrap();
    let long = client.post_status(post(&"v".repeat(256))).await;
    assert_refused(long, Code::InvalidArgument, "agent version is too long (max 255 characters)");

    type Filter = wire::list_agents_request::Filter;
    let both = vec![one.id.clone(), two.id.clone()];
    for (filter, expected) in [
        (Filter::default(), both.clone()),
        (Filter { by_banned: Some(true), ..Default::default() }, vec![two.id.clone()]),
        (Filter { by_banned: Some(false), ..Default::default() }, vec![one.id.clone()]),
        (Filter { by_can_reattest: Some(true), ..Default::default() }, vec![]),
        (Filter { by_attestation_type: "join_token".into(), ..Default::default() }, both.clone()),
        (Filter { by_attestation_type: "x509pop".into(), ..Default::default() }, vec![]),
        (Filter { by_expires_before: "2020-01-01 00:00:00 +0000 +00".into(), ..Default::default() }, vec![]),
        (Filter { by_expires_before: "nonsense".into(), ..Default::default() }, both.clone()),
    ] {
        assert_eq!(list(&server, filter.clone()).await, expected, "{filter:?}");
    }
    let page = wire::ListAgentsRequest { page_size: 1, ..Default::default() };
    let page = server.agents().list_agents(page).await.unwrap().into_inner();
    assert_eq!((page.agents.len(), page.next_page_token.as_str()), (1, "1"));
    let bad = wire::ListAgentsRequest { page_size: 1, page_token: "-".into(), ..Default::default() };
    assert_refused(
        server.agents().list_agents(bad).await,
        Code::Internal,
        "failed to list agents: could not parse token '-'",
    );

    let whole = server
        .agents()
        .get_agent(wire::GetAgentRequest { id: wire_id(&one.id), output_mask: None })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(whole.agent_version, "1.2.3");
    assert_eq!(whole.x509svid_expires_at, server.clock.unix() + 3600);
    let mask = types::AgentMask { agent_version: true, ..Default::default() };
    let get = wire::GetAgentRequest { id: wire_id(&one.id), output_mask: Some(mask) };
    let masked = server.agents().get_agent(get).await.unwrap().into_inner();
    let expected = types::Agent { id: whole.id.clone(), agent_version: "1.2.3".into(), ..Default::default() };
    assert_eq!(masked, expected);
}
