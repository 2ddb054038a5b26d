use std::time::Duration;

use finial_proto::finial::watch::v1 as wire;
use finial_proto::finial::watch::v1::watch_client::WatchClient;
use finial_proto::spire::api::server::agent::v1 as agent_wire;
use finial_proto::spire::api::server::bundle::v1 as bundle_wire;
use finial_proto::spire::api::server::entry::v1 as entry_wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use types::permission_denied_details::Reason;

use super::*;
use crate::access::fixture::Authority;

struct Stream {
    held: mpsc::Sender<wire::Held>,
    changes: Streaming<wire::Change>,
}

impl Stream {
    async fn open(agent: &Agent, version: u64) -> Stream {
        let (held, requests) = mpsc::channel(4);
        held.send(wire::Held { version }).await.unwrap();
        let answer = WatchClient::new(agent.channel.clone()).authorized(ReceiverStream::new(requests)).await;
        Stream { held, changes: answer.unwrap().into_inner() }
    }

    async fn next(&mut self) -> wire::Change {
        let change = self.changes.message().await.unwrap().unwrap();
        self.held.send(wire::Held { version: change.version }).await.unwrap();
        change
    }
}

fn path(agent: &Agent) -> &str {
    agent.id.strip_prefix("spiffe://example.org").unwrap()
}

fn federated(td: &str) -> bundle_wire::BatchSetFederatedBundleRequest {
    let asn1 = Authority::new(td).bundle().x509_authorities.remove(0).der;
    let x509_authorities = vec![types::X509Certificate { asn1, tainted: false }];
    let bundle = types::Bundle { trust_domain: td.into(), x509_authorities, ..Default::default() };
    bundle_wire::BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None }
}

#[tokio::test(start_paused = true)]
async fn each_change_is_told_once_to_those_it_concerns() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let mut stream = Stream::open(&agent, 0).await;
    let first = stream.next().await;
    assert!(first.snapshot && first.upserted.is_empty());
    assert_eq!(first.bundle.as_ref().unwrap().trust_domain, "example.org");

    // Somebody else's entry, then one of ours: only the second is told.
    server.create(vec![entry("/spire/agent/other", "/theirs", &["s:1"])]).await;
    let created = server.create(vec![entry(path(&agent), "/mine", &["s:1"])]).await.remove(0);
    let change = stream.next().await;
    assert_eq!(change.upserted, std::slice::from_ref(&created));
    assert!(!change.snapshot && change.deleted.is_empty() && change.bundle.is_none());
    assert!(change.version > first.version);

    let update = types::Entry { hint: "h".into(), ..created.clone() };
    let update =
        entry_wire::BatchUpdateEntryRequest { entries: vec![update], input_mask: None, output_mask: None };
    server.entries().batch_update_entry(update).await.unwrap();
    let change = stream.next().await;
    assert_eq!((change.upserted[0].hint.as_str(), change.upserted[0].revision_number), ("h", 1));

    let delete = entry_wire::BatchDeleteEntryRequest { ids: vec![created.id.clone()] };
    server.entries().batch_delete_entry(delete).await.unwrap();
    let change = stream.next().await;
    assert_eq!((change.upserted.len(), change.deleted), (0, vec![created.id]));
}

#[tokio::test(start_paused = true)]
async fn bundles_are_told_with_the_entries_that_need_them() {
    let server = Server::start().await;
    let agent = server.agent().await;
    server.bundles().batch_set_federated_bundle(federated("other.org")).await.unwrap();
    let mut stream = Stream::open(&agent, 0).await;
    assert!(stream.next().await.federated_bundles.is_empty(), "no entry needs it yet");

    let federating =
        types::Entry { federates_with: vec!["other.org".into()], ..entry(path(&agent), "/w", &["s:1"]) };
    server.create(vec![federating]).await;
    let change = stream.next().await;
    assert_eq!(change.upserted.len(), 1);
    assert_eq!(change.federated_bundles[0].trust_domain, "other.org");

    server.bundles().batch_set_federated_bundle(federated("other.org")).await.unwrap();
    let again = stream.next().await;
    assert!(again.upserted.is_empty());
    assert_ne!(again.federated_bundles, change.federated_bundles);

    let append = bundle_wire::AppendBundleRequest {
        x509_authorities: federated("example.org").bundle.remove(0).x509_authorities,
        ..Default::default()
    };
    server.bundles().append_bundle(append).await.unwrap();
    let change = stream.next().await;
    assert_eq!(change.bundle.unwrap().x509_authorities.len(), 2);

    let delete =
        bundle_wire::BatchDeleteFederatedBundleRequest { trust_domains: vec!["other.org".into()], mode: 2 };
    server.bundles().batch_delete_federated_bundle(delete).await.unwrap();
    let mut removed = stream.next().await;
    if removed.federated_bundles_removed.is_empty() {
        removed = stream.next().await;
    }
    assert_eq!(removed.federated_bundles_removed, ["other.org"]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_is_not_told_what_it_holds() {
    let server = Server::start().await;
    let agent = server.agent().await;
    server.create(vec![entry(path(&agent), "/w", &["s:1"])]).await;
    let first = Stream::open(&agent, 0).await.next().await;
    assert_eq!(first.upserted.len(), 1);
    server.create(vec![entry("/spire/agent/other", "/theirs", &["s:1"])]).await;
    let again = Stream::open(&agent, first.version).await.next().await;
    assert!(!again.snapshot && again.upserted.is_empty() && again.bundle.is_some());

    server.create(vec![entry(path(&agent), "/v", &["s:1"])]).await;
    let changed = Stream::open(&agent, again.version).await.next().await;
    assert!(changed.snapshot && changed.upserted.len() == 2);
    // A version of another process, or of none.
    for version in [7, again.version ^ (1 << 40), u64::MAX] {
        let other = Stream::open(&agent, version).await.next().await;
        assert!(other.snapshot && other.upserted.len() == 2, "{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_the_agents_standing() {
    let server = Server::start().await;
    let (banned, evicted, elsewhere) = (server.agent().await, server.agent().await, server.agent().await);
    let mut streams = Vec::new();
    for agent in [&banned, &evicted, &elsewhere] {
        let mut stream = Stream::open(agent, 0).await;
        stream.next().await;
        streams.push(stream);
    }
    let before = server.clock.monotonic();
    server.agents().ban_agent(agent_wire::BanAgentRequest { id: wire_id(&banned.id) }).await.unwrap();
    server.agents().delete_agent(agent_wire::DeleteAgentRequest { id: wire_id(&evicted.id) }).await.unwrap();
    let refused = streams[0].changes.message().await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::AgentBanned));
    let refused = streams[1].changes.message().await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::AgentNotAttested));
    assert!(server.clock.monotonic() - before < Duration::from_secs(1), "at once");

    // Another server on the same database says nothing to this one.
    let id = finial_identity::spiffe_id::SpiffeId::parse(&elsewhere.id).unwrap();
    server.handles.store.agents().ban(&id).await.unwrap();
    let refused = streams[2].changes.message().await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::AgentBanned));
    assert!(server.clock.monotonic() - before < Duration::from_secs(40));
}
