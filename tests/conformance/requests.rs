//! Requests that are refused, with code and text. The texts are those that SPIRE's clients and operators know.
//!
//! The server's own tests hold most of the table beside the services; here are the rows that need several services, a
//! caller from the network, or that repeat a rule at another door.

use finial_proto::spire::api::server::agent::v1 as agent;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1 as bundle;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1 as entry;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;
use finial_tests::world::{World, id};
use tonic::transport::Channel;
use tonic::{Code, Status};

const TRUST_DOMAIN_CHARACTERS: &str =
    "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores";

/// Code and text of a refusal.
type Refusal = (Code, String);

/// What came of one element of a batch.
fn of_item(status: Option<types::Status>) -> Refusal {
    let status = status.expect("every element of a batch has a status");
    (Code::from(status.code), status.message)
}

fn of_call<T>(answer: Result<T, Status>) -> Refusal {
    match answer {
        Ok(_) => (Code::Ok, "OK".to_owned()),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

/// A text that ends with `…` is how the refusal begins; what follows is another library's.
#[track_caller]
fn must_be((code, text): &Refusal, expected: Code, expected_text: &str) {
    assert_eq!(*code, expected, "{text:?} where {expected_text:?} is expected");
    match expected_text.strip_suffix('…') {
        Some(start) => assert!(text.starts_with(start), "{text:?} does not begin with {start:?}"),
        None => assert_eq!(text, expected_text),
    }
}

fn spiffe_id(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() })
}

fn good() -> types::Entry {
    types::Entry {
        spiffe_id: Some(id("w")),
        parent_id: Some(id("node")),
        selectors: vec![selector("unix", "uid:1")],
        ..types::Entry::default()
    }
}

fn selector(kind: &str, value: &str) -> types::Selector {
    types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
}

/// Section 6.2 of the wire facts, at both doors of an entry.
#[tokio::test(start_paused = true)]
async fn entries() {
    let world = World::new().await;
    entries_are_refused(world.admin()).await;
}

async fn entries_are_refused(admin: Channel) {
    let mut client = EntryClient::new(admin);
    let request = entry::BatchCreateEntryRequest { entries: vec![good()], output_mask: None };
    let created = client.batch_create_entry(request).await.unwrap().into_inner().results.remove(0);
    let created = created.entry.unwrap();
    let stored = || types::Entry { id: created.id.clone(), ..good() };

    // What both doors refuse in the same words.
    type Edit = fn(&mut types::Entry);
    let faults: [(Edit, String); 15] = [
        (|e| e.parent_id = spiffe_id("", "/x"), "invalid parent ID: trust domain is missing".into()),
        (|e| e.parent_id = spiffe_id("Example.org", "/x"), format!("invalid parent ID: {TRUST_DOMAIN_CHARACTERS}")),
        (|e| e.parent_id = spiffe_id("example.org", "x"), "invalid parent ID: path must have a leading slash".into()),
        (
            |e| e.spiffe_id = spiffe_id("other.org", "/w"),
            "invalid spiffe ID: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\"".into(),
        ),
        (
            |e| e.spiffe_id = spiffe_id("example.org", ""),
            "invalid spiffe ID: \"spiffe://example.org\" is not a workload in trust domain \"example.org\"; path is empty".into(),
        ),
        (
            |e| e.spiffe_id = spiffe_id("example.org", "/spire"),
            "invalid spiffe ID: \"spiffe://example.org/spire\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace".into(),
        ),
        (|e| e.dns_names = vec![String::new()], "invalid DNS name: …".into()),
        (|e| e.dns_names = vec!["fine.example".into(), "-a.example".into()], "invalid DNS name: …".into()),
        (|e| e.dns_names = vec!["*.*.example".into()], "invalid DNS name: …".into()),
        (|e| e.dns_names = vec!["example.".into()], "invalid DNS name: …".into()),
        (|e| e.federates_with = vec![String::new()], "invalid federated trust domain: trust domain is missing".into()),
        (
            |e| e.federates_with = vec!["spiffe://Other".into()],
            format!("invalid federated trust domain: {TRUST_DOMAIN_CHARACTERS}"),
        ),
        (|e| e.selectors.push(selector("unix", "")), "missing selector value".into()),
        (|e| e.selectors.push(selector("", "x")), "missing selector type".into()),
        (|e| e.hint = "h".repeat(1025), "hint is too long, max length is 1024 characters".into()),
    ];
    for (edit, text) in faults {
        let text = format!("failed to convert entry: {text}");
        let mut draft = good();
        edit(&mut draft);
        let request = entry::BatchCreateEntryRequest { entries: vec![draft], output_mask: None };
        let result = client.batch_create_entry(request).await.unwrap().into_inner().results.remove(0);
        must_be(&of_item(result.status), Code::InvalidArgument, &text);
        assert_eq!(result.entry, None);

        let mut draft = stored();
        edit(&mut draft);
        let request =
            entry::BatchUpdateEntryRequest { entries: vec![draft], input_mask: None, output_mask: None };
        let result = client.batch_update_entry(request).await.unwrap().into_inner().results.remove(0);
        must_be(&of_item(result.status), Code::InvalidArgument, &text);
        assert_eq!(result.entry, None);
    }

    let attributes = types::entry::AdditionalAttributes {
        disable_x509_svid_prefetch: true,
        ..types::entry::AdditionalAttributes::default()
    };
    let stored_svid = types::Entry { store_svid: true, additional_attributes: Some(attributes), ..good() };
    let twice = types::Entry {
        spiffe_id: Some(id("twice")),
        dns_names: vec!["a.example".into(), "a.example".into()],
        ..good()
    };
    for (draft, code, text) in [
        (
            types::Entry { spiffe_id: Some(id("stored")), ..stored_svid },
            Code::InvalidArgument,
            "failed to create entry: datastore-validation: specifying cache behaviour is incompatible with storable SVIDs",
        ),
        (twice, Code::AlreadyExists, "failed to create entry: datastore-sql: UNIQUE constraint failed: …"),
    ] {
        let request = entry::BatchCreateEntryRequest { entries: vec![draft], output_mask: None };
        let result = client.batch_create_entry(request).await.unwrap().into_inner().results.remove(0);
        must_be(&of_item(result.status), code, text);
        assert_eq!(result.entry, None);
    }
    let nameless = types::Entry { id: String::new(), ..good() };
    let request =
        entry::BatchUpdateEntryRequest { entries: vec![nameless], input_mask: None, output_mask: None };
    let result = client.batch_update_entry(request).await.unwrap().into_inner().results.remove(0);
    must_be(&of_item(result.status), Code::NotFound, "failed to update entry");

    // A mask leaves out what is wrong.
    let mask = types::EntryMask { hint: true, ..types::EntryMask::default() };
    let draft = types::Entry {
        dns_names: vec!["a..b".into()],
        hint: "new".into(),
        parent_id: spiffe_id("", "?"),
        ..stored()
    };
    let request =
        entry::BatchUpdateEntryRequest { entries: vec![draft], input_mask: Some(mask), output_mask: None };
    let result = client.batch_update_entry(request).await.unwrap().into_inner().results.remove(0);
    assert_eq!(of_item(result.status), (Code::Ok, "OK".to_owned()));
    let expected = types::Entry { hint: "new".into(), revision_number: 1, ..created };
    assert_eq!(result.entry.unwrap(), expected, "the refused updates changed nothing");
}

/// Section 6.3: counting has the filters of listing, and refuses what that refuses.
#[tokio::test(start_paused = true)]
async fn filters() {
    let world = World::new().await;
    filters_are_refused(world.admin()).await;
}

async fn filters_are_refused(admin: Channel) {
    type Filter = entry::count_entries_request::Filter;
    let selectors = |selectors| Some(types::SelectorMatch { selectors, r#match: 0 });
    let federates = |names: &[&str]| {
        let trust_domains = names.iter().map(|name| (*name).to_owned()).collect();
        Some(types::FederatesWithMatch { trust_domains, r#match: 0 })
    };
    for (filter, text) in [
        (
            Filter { by_selectors: selectors(vec![]), ..Filter::default() },
            "malformed selectors filter: empty selector set",
        ),
        (
            Filter { by_selectors: selectors(vec![selector("", "x")]), ..Filter::default() },
            "malformed selectors filter: missing selector type",
        ),
        (
            Filter { by_selectors: selectors(vec![selector("a:b", "x")]), ..Filter::default() },
            "malformed selectors filter: selector type contains ':'",
        ),
        (
            Filter { by_federates_with: federates(&[]), ..Filter::default() },
            "malformed federates with filter: empty trust domain set",
        ),
        (
            Filter { by_federates_with: federates(&["other.org", ""]), ..Filter::default() },
            "malformed federates with filter: trust domain is missing",
        ),
        (
            Filter { by_spiffe_id: spiffe_id("other.org", "/w"), ..Filter::default() },
            "malformed SPIFFE ID filter: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\"",
        ),
        (
            Filter { by_parent_id: spiffe_id("other.org", "/w"), ..Filter::default() },
            "malformed parent ID filter: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\"",
        ),
    ] {
        let mut client = EntryClient::new(admin.clone());
        let listed = entry::list_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id.clone(),
            by_parent_id: filter.by_parent_id.clone(),
            by_selectors: filter.by_selectors.clone(),
            by_federates_with: filter.by_federates_with.clone(),
            ..entry::list_entries_request::Filter::default()
        };
        let list = entry::ListEntriesRequest { filter: Some(listed), ..entry::ListEntriesRequest::default() };
        let count = entry::CountEntriesRequest { filter: Some(filter) };
        must_be(&of_call(client.count_entries(count).await), Code::InvalidArgument, text);
        must_be(&of_call(client.list_entries(list).await), Code::InvalidArgument, text);
    }

    let bad = || Some(types::SelectorMatch { selectors: vec![selector("", "x")], r#match: 0 });
    let mut client = AgentClient::new(admin.clone());
    let text = "failed to parse selectors: missing selector type";
    let filter = agent::list_agents_request::Filter { by_selector_match: bad(), ..Default::default() };
    let list = agent::ListAgentsRequest { filter: Some(filter), ..Default::default() };
    must_be(&of_call(client.list_agents(list).await), Code::InvalidArgument, text);
    let filter = agent::count_agents_request::Filter { by_selector_match: bad(), ..Default::default() };
    let count = agent::CountAgentsRequest { filter: Some(filter) };
    must_be(&of_call(client.count_agents(count).await), Code::InvalidArgument, text);

    let list =
        bundle::ListFederatedBundlesRequest { page_size: 1, page_token: "x".into(), output_mask: None };
    let refused = of_call(BundleClient::new(admin).list_federated_bundles(list).await);
    must_be(&refused, Code::Internal, "failed to list bundles: could not parse token 'x'");
}

/// Sections 2.3 and 6.4: agents by ID, and the node's own name in a join token.
#[tokio::test(start_paused = true)]
async fn agents() {
    let world = World::new().await;
    agents_are_refused(world.admin()).await;
}

async fn agents_are_refused(admin: Channel) {
    let mut client = AgentClient::new(admin);
    for (id, text) in [
        (
            spiffe_id("other.org", "/spire/agent/x"),
            "\"spiffe://other.org/spire/agent/x\" is not a member of trust domain \"example.org\"".to_owned(),
        ),
        (
            spiffe_id("example.org", "/spire/server"),
            "\"spiffe://example.org/spire/server\" is not an agent in trust domain \"example.org\"; path is not in the agent namespace".to_owned(),
        ),
        (spiffe_id("Example.org", "/spire/agent/x"), TRUST_DOMAIN_CHARACTERS.to_owned()),
        (spiffe_id("", "/spire/agent/x"), "trust domain is missing".to_owned()),
        (spiffe_id("example.org", "/spire/agent//x"), "path cannot contain empty segments".to_owned()),
    ] {
        let text = format!("invalid agent ID: {text}");
        let get = agent::GetAgentRequest { id: id.clone(), output_mask: None };
        must_be(&of_call(client.get_agent(get).await), Code::InvalidArgument, &text);
        let ban = agent::BanAgentRequest { id: id.clone() };
        must_be(&of_call(client.ban_agent(ban).await), Code::InvalidArgument, &text);
        let delete = agent::DeleteAgentRequest { id };
        must_be(&of_call(client.delete_agent(delete).await), Code::InvalidArgument, &text);
    }
    for (agent_id, text) in [
        (
            spiffe_id("other.org", "/node"),
            "invalid agent ID: \"spiffe://other.org/node\" is not a member of trust domain \"example.org\"",
        ),
        (
            spiffe_id("example.org", ""),
            "invalid agent ID: \"spiffe://example.org\" is not a workload in trust domain \"example.org\"; path is empty",
        ),
    ] {
        let request = agent::CreateJoinTokenRequest { ttl: 60, token: String::new(), agent_id };
        must_be(&of_call(client.create_join_token(request).await), Code::InvalidArgument, text);
    }
}

/// Section 6.5: every call about another trust domain's bundle, with each kind of wrong name and content.
#[tokio::test(start_paused = true)]
async fn bundles() {
    let world = World::new().await;
    bundles_are_refused(world.admin()).await;
}

async fn bundles_are_refused(admin: Channel) {
    let mut client = BundleClient::new(admin);
    let own = "a federated bundle for the server's own trust domain is not allowed";
    let invalid = |text: &str| format!("trust domain argument is not valid: {text}");
    for (name, create, set, update) in [
        ("example.org", format!("creating {own}"), format!("setting {own}"), format!("updating {own}")),
        (
            "spiffe://example.org/x",
            format!("creating {own}"),
            format!("setting {own}"),
            format!("updating {own}"),
        ),
        (
            "",
            invalid("trust domain is missing"),
            invalid("trust domain is missing"),
            invalid("trust domain is missing"),
        ),
        (
            "Other.org",
            invalid(TRUST_DOMAIN_CHARACTERS),
            invalid(TRUST_DOMAIN_CHARACTERS),
            invalid(TRUST_DOMAIN_CHARACTERS),
        ),
    ] {
        let one = || types::Bundle { trust_domain: name.to_owned(), ..types::Bundle::default() };
        for (refused, text) in [
            (creating(&mut client, one()).await, create),
            (setting(&mut client, one()).await, set),
            (updating(&mut client, one()).await, update),
        ] {
            must_be(&refused, Code::InvalidArgument, &text);
        }
    }
    for (name, code, text) in [
        ("Other.org", Code::InvalidArgument, invalid(TRUST_DOMAIN_CHARACTERS)),
        (
            "spiffe://example.org",
            Code::InvalidArgument,
            "removing the bundle for the server trust domain is not allowed".to_owned(),
        ),
        ("other.org", Code::NotFound, "bundle not found".to_owned()),
    ] {
        let request =
            bundle::BatchDeleteFederatedBundleRequest { trust_domains: vec![name.to_owned()], mode: 0 };
        let result =
            client.batch_delete_federated_bundle(request).await.unwrap().into_inner().results.remove(0);
        must_be(&of_item(result.status), code, &text);
    }

    let key = |key_id: &str, public_key: &[u8]| types::JwtKey {
        key_id: key_id.to_owned(),
        public_key: public_key.to_vec(),
        ..types::JwtKey::default()
    };
    let contents: [(types::Bundle, &str); 3] = [
        (
            types::Bundle {
                x509_authorities: vec![types::X509Certificate { asn1: b"nonsense".to_vec(), tainted: false }],
                ..types::Bundle::default()
            },
            "failed to convert bundle: unable to parse X.509 authority: …",
        ),
        (
            types::Bundle { jwt_authorities: vec![key("k", b"nonsense")], ..types::Bundle::default() },
            "failed to convert bundle: unable to parse JWT authority: …",
        ),
        (
            types::Bundle { jwt_authorities: vec![key("", P256_KEY)], ..types::Bundle::default() },
            "failed to convert bundle: unable to parse JWT authority: missing key ID",
        ),
    ];
    for (content, text) in contents {
        let one = || types::Bundle { trust_domain: "other.org".to_owned(), ..content.clone() };
        for refused in [
            creating(&mut client, one()).await,
            setting(&mut client, one()).await,
            updating(&mut client, one()).await,
        ] {
            must_be(&refused, Code::InvalidArgument, text);
        }
    }
    let count = client.count_bundles(bundle::CountBundlesRequest {}).await.unwrap().into_inner().count;
    assert_eq!(count, 1, "nothing was stored");
}

/// A public key, PKIX DER.
const P256_KEY: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42,
    0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40, 0xf2, 0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0,
    0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2, 0x96, 0x4f, 0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e,
    0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce, 0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb, 0xb6,
    0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5,
];

async fn creating(client: &mut BundleClient<Channel>, one: types::Bundle) -> Refusal {
    let request = bundle::BatchCreateFederatedBundleRequest { bundle: vec![one], output_mask: None };
    let answer = client.batch_create_federated_bundle(request).await.unwrap().into_inner();
    of_item(answer.results.into_iter().next().unwrap().status)
}

async fn setting(client: &mut BundleClient<Channel>, one: types::Bundle) -> Refusal {
    let request = bundle::BatchSetFederatedBundleRequest { bundle: vec![one], output_mask: None };
    let answer = client.batch_set_federated_bundle(request).await.unwrap().into_inner();
    of_item(answer.results.into_iter().next().unwrap().status)
}

async fn updating(client: &mut BundleClient<Channel>, one: types::Bundle) -> Refusal {
    let request =
        bundle::BatchUpdateFederatedBundleRequest { bundle: vec![one], input_mask: None, output_mask: None };
    let answer = client.batch_update_federated_bundle(request).await.unwrap().into_inner();
    of_item(answer.results.into_iter().next().unwrap().status)
}

/// What a downstream server publishes.
#[tokio::test(start_paused = true)]
async fn published_keys() {
    let world = World::new().await;
    world.register_as(types::Entry { spiffe_id: Some(id("nested")), downstream: true, ..good() }).await;
    let mut client = BundleClient::new(world.showing(&world.minted("nested").await));
    let mut publish = async |jwt_authority| {
        of_call(client.publish_jwt_authority(bundle::PublishJwtAuthorityRequest { jwt_authority }).await)
    };
    let key = |key_id: &str, public_key: &[u8]| {
        let (key_id, public_key) = (key_id.to_owned(), public_key.to_vec());
        Some(types::JwtKey { key_id, public_key, ..types::JwtKey::default() })
    };
    must_be(&publish(None).await, Code::InvalidArgument, "missing JWT authority");
    must_be(
        &publish(key("", P256_KEY)).await,
        Code::InvalidArgument,
        "invalid JWT authority: missing key ID",
    );
    must_be(&publish(key("k", b"nonsense")).await, Code::InvalidArgument, "invalid JWT authority: …");
    must_be(&publish(key("k", P256_KEY)).await, Code::Ok, "OK");
    assert_eq!(world.server().own_bundle.current().jwt_authorities.len(), 2, "the own key and this one");
}
