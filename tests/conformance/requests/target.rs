//! A server, prepared for the tables: what they name is there.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use finial_daemon::clock::Clock;
use finial_daemon::dial::Dialer;
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_proto::spire::api::server::agent::v1 as agent;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1 as bundle;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1 as entry;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::localauthority::v1 as localauthority;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::spire::api::server::svid::v1 as svid;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::server::trustdomain::v1 as trustdomain;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::types;
use finial_tests::network::{Identity, connect};
use finial_tests::raw;
use finial_tests::world::{World, id};
use serde_json::Value;
use tonic::transport::Channel;

/// The agent of the tables.
const AGENT: &str = "spire/agent/join_token/agent-1";

pub struct Target {
    channels: BTreeMap<&'static str, Channel>,
    /// Texts that stand for themselves in a table, with `@` before the name: keys and requests in base64.
    values: BTreeMap<String, String>,
}

impl Target {
    pub async fn of(world: &World) -> Target {
        Target::prepare(world.admin(), world.network(), world.clock.clone()).await
    }

    /// Makes what the tables name: an agent, a banned one, join tokens, entries, a federated bundle and a relationship.
    pub async fn prepare(admin: Channel, network: Dialer, clock: Clock) -> Target {
        let own = BundleClient::new(admin.clone()).get_bundle(bundle::GetBundleRequest::default()).await;
        let roots = own.unwrap().into_inner().x509_authorities.into_iter().map(|root| root.asn1).collect();
        let server = Server { admin: admin.clone(), network, roots, clock };
        let agent = server.attest("agent-1").await;
        server.attest("banned").await;
        let ban = agent::BanAgentRequest { id: Some(id("spire/agent/join_token/banned")) };
        AgentClient::new(admin.clone()).ban_agent(ban).await.unwrap();
        for token in ["taken", "banned", "for-nonsense"] {
            server.token(token).await;
        }
        let values: BTreeMap<String, String> = serde_json::from_str(include_str!("values.json")).unwrap();
        server.federate(STANDARD.decode(&values["ca"]).unwrap()).await;
        server.register().await;
        let downstream = server.minted("nested").await;
        let channels = BTreeMap::from([
            ("anyone", server.connect(None)),
            ("agent", server.connect(Some(&agent))),
            ("downstream", server.connect(Some(&downstream))),
            ("admin", admin),
        ]);
        let target = Target { channels, values };
        target.settled().await;
        target
    }

    pub fn channel(&self, who: &str) -> &Channel {
        &self.channels[who]
    }

    /// The request with its values in their places.
    pub fn fill(&self, request: &Value) -> Value {
        match request {
            Value::String(text) => match text.strip_prefix('@') {
                Some(name) => Value::String(self.values[name].clone()),
                None => request.clone(),
            },
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect(),
            Value::Object(members) => {
                members.iter().map(|(name, value)| (name.clone(), self.fill(value))).collect()
            }
            other => other.clone(),
        }
    }

    /// Names the authorities: `active-x509`, `prepared-x509`, `active-jwt`, `prepared-jwt` are the first of their kind.
    pub async fn learn_authorities(&mut self) {
        let mut client = LocalAuthorityClient::new(self.channel("admin").clone());
        let x509 = client
            .get_x509_authority_state(localauthority::GetX509AuthorityStateRequest {})
            .await
            .unwrap()
            .into_inner();
        let jwt = client
            .get_jwt_authority_state(localauthority::GetJwtAuthorityStateRequest {})
            .await
            .unwrap()
            .into_inner();
        for (name, state) in [
            ("active-x509", x509.active),
            ("prepared-x509", x509.prepared),
            ("active-jwt", jwt.active),
            ("prepared-jwt", jwt.prepared),
        ] {
            if let Some(state) = state {
                self.values.entry(name.to_owned()).or_insert(state.authority_id);
            }
        }
    }

    /// What the server holds, as it lists it.
    pub async fn state(&self) -> Vec<Option<Bytes>> {
        let mut state = Vec::new();
        for list in [
            "spire.api.server.agent.v1.Agent/ListAgents",
            "spire.api.server.bundle.v1.Bundle/GetBundle",
            "spire.api.server.bundle.v1.Bundle/ListFederatedBundles",
            "spire.api.server.entry.v1.Entry/ListEntries",
            "spire.api.server.logger.v1.Logger/GetLogger",
            "spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships",
        ] {
            let listed = raw::call(self.channel("admin"), &format!("/{list}"), Bytes::new(), &[]).await;
            state.push(listed.unwrap());
        }
        state
    }

    /// Waits until the agent's entry and the downstream's rights have reached every part of the server.
    async fn settled(&self) {
        loop {
            let mine = EntryClient::new(self.channel("agent").clone())
                .get_authorized_entries(entry::GetAuthorizedEntriesRequest::default())
                .await;
            let key = bundle::PublishJwtAuthorityRequest { jwt_authority: None };
            let downstream =
                BundleClient::new(self.channel("downstream").clone()).publish_jwt_authority(key).await;
            let may = downstream.unwrap_err().code() != tonic::Code::PermissionDenied;
            if may && mine.unwrap().into_inner().entries.iter().any(|entry| entry.id == "mine") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
}

/// A server before it is prepared.
struct Server {
    admin: Channel,
    network: Dialer,
    roots: Vec<Vec<u8>>,
    clock: Clock,
}

impl Server {
    fn connect(&self, identity: Option<&Identity>) -> Channel {
        connect(self.network.clone(), self.roots.clone(), self.clock.clone(), identity)
    }

    async fn token(&self, token: &str) {
        let request = agent::CreateJoinTokenRequest { ttl: 600, token: token.to_owned(), agent_id: None };
        AgentClient::new(self.admin.clone()).create_join_token(request).await.unwrap();
    }

    async fn attest(&self, token: &str) -> Identity {
        self.token(token).await;
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let csr = key.csr(&spire_subject(), &[]).unwrap();
        let data = types::AttestationData { r#type: "join_token".to_owned(), payload: token.into() };
        let params = agent::attest_agent_request::Params {
            data: Some(data),
            params: Some(agent::AgentX509svidParams { csr }),
        };
        let step = Some(agent::attest_agent_request::Step::Params(params));
        let requests = futures::stream::iter([agent::AttestAgentRequest { step }]);
        let answers = AgentClient::new(self.connect(None)).attest_agent(requests).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(agent::attest_agent_response::Step::Result(result)) = answer.step else {
            panic!("a challenge for a join token");
        };
        Identity { chain: result.svid.unwrap().cert_chain, key }
    }

    async fn minted(&self, name: &str) -> Identity {
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let csr = key.csr(&spire_subject(), &[&format!("spiffe://example.org/{name}")]).unwrap();
        let request = svid::MintX509svidRequest { csr, ttl: 0 };
        let minted = SvidClient::new(self.admin.clone()).mint_x509svid(request).await.unwrap();
        Identity { chain: minted.into_inner().svid.unwrap().cert_chain, key }
    }

    async fn federate(&self, root: Vec<u8>) {
        let bundle = types::Bundle {
            trust_domain: "federated.test".to_owned(),
            x509_authorities: vec![types::X509Certificate { asn1: root, tainted: false }],
            ..types::Bundle::default()
        };
        let request = bundle::BatchCreateFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        let created = BundleClient::new(self.admin.clone()).batch_create_federated_bundle(request).await;
        assert_eq!(created.unwrap().into_inner().results[0].status.as_ref().unwrap().message, "OK");
        let relationship = types::FederationRelationship {
            trust_domain: "related.test".to_owned(),
            bundle_endpoint_url: "https://related.test/b".to_owned(),
            bundle_endpoint_profile: Some(types::federation_relationship::BundleEndpointProfile::HttpsWeb(
                types::HttpsWebProfile {},
            )),
            ..types::FederationRelationship::default()
        };
        let request = trustdomain::BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            output_mask: None,
        };
        let created =
            TrustDomainClient::new(self.admin.clone()).batch_create_federation_relationship(request).await;
        assert_eq!(created.unwrap().into_inner().results[0].status.as_ref().unwrap().message, "OK");
    }

    async fn register(&self) {
        let named = |name: &str, parent: &str| types::Entry {
            id: name.to_owned(),
            parent_id: Some(id(parent)),
            spiffe_id: Some(id(name)),
            selectors: vec![types::Selector { r#type: "s".to_owned(), value: "1".to_owned() }],
            ..types::Entry::default()
        };
        let entries = vec![
            named("mine", AGENT),
            named("foreign", "spire/agent/join_token/other"),
            types::Entry { downstream: true, ..named("nested", AGENT) },
            named("plain", "node"),
            types::Entry { federates_with: vec!["federated.test".to_owned()], ..named("federating", "node") },
        ];
        let request = entry::BatchCreateEntryRequest { entries, output_mask: None };
        let created = EntryClient::new(self.admin.clone()).batch_create_entry(request).await.unwrap();
        for result in created.into_inner().results {
            assert_eq!(result.status.unwrap().message, "OK");
        }
    }
}
