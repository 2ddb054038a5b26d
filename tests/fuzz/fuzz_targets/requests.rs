//! Every request message of every service. The generated types and the descriptor set agree on what is a message, and
//! bytes and JSON of a message read back to it.
//!
//! The first byte of the input chooses the message.
#![no_main]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use finial_proto::json::{from_json, to_json};
use finial_proto::{descriptors, finial, spire, workload};
use libfuzzer_sys::fuzz_target;
use prost::{Message, Name};
use prost_reflect::DynamicMessage;
use spire::api::agent::{delegatedidentity::v1 as delegated, logger::v1 as agent_logger};
use spire::api::server::{
    agent::v1 as agent, bundle::v1 as bundle, debug::v1 as debug, entry::v1 as entry,
    localauthority::v1 as local, logger::v1 as logger, svid::v1 as svid, trustdomain::v1 as domain,
};

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let (_, check) = REQUESTS[usize::from(*choice) % REQUESTS.len()];
    LazyLock::force(&COMPLETE);
    check(bytes);
});

macro_rules! requests {
    ($($message:ty),* $(,)?) => {
        &[$((<$message as Name>::full_name, check::<$message>)),*]
    };
}

type Row = (fn() -> String, fn(&[u8]));

/// Rows are only ever added at the end: a saved input names its message by its place.
const REQUESTS: &[Row] = requests![
    entry::BatchCreateEntryRequest,
    entry::BatchUpdateEntryRequest,
    entry::BatchDeleteEntryRequest,
    entry::CountEntriesRequest,
    entry::ListEntriesRequest,
    entry::GetEntryRequest,
    entry::GetAuthorizedEntriesRequest,
    entry::SyncAuthorizedEntriesRequest,
    agent::CountAgentsRequest,
    agent::ListAgentsRequest,
    agent::GetAgentRequest,
    agent::DeleteAgentRequest,
    agent::BanAgentRequest,
    agent::AttestAgentRequest,
    agent::RenewAgentRequest,
    agent::CreateJoinTokenRequest,
    agent::PostStatusRequest,
    bundle::CountBundlesRequest,
    bundle::GetBundleRequest,
    bundle::AppendBundleRequest,
    bundle::PublishJwtAuthorityRequest,
    bundle::PublishWitAuthorityRequest,
    bundle::ListFederatedBundlesRequest,
    bundle::GetFederatedBundleRequest,
    bundle::BatchCreateFederatedBundleRequest,
    bundle::BatchUpdateFederatedBundleRequest,
    bundle::BatchSetFederatedBundleRequest,
    bundle::BatchDeleteFederatedBundleRequest,
    svid::MintX509svidRequest,
    svid::MintJwtsvidRequest,
    svid::MintWitsvidRequest,
    svid::BatchNewX509svidRequest,
    svid::NewJwtsvidRequest,
    svid::BatchNewWitsvidRequest,
    svid::NewDownstreamX509caRequest,
    debug::GetInfoRequest,
    logger::GetLoggerRequest,
    logger::SetLogLevelRequest,
    logger::ResetLogLevelRequest,
    local::GetJwtAuthorityStateRequest,
    local::PrepareJwtAuthorityRequest,
    local::ActivateJwtAuthorityRequest,
    local::TaintJwtAuthorityRequest,
    local::RevokeJwtAuthorityRequest,
    local::GetX509AuthorityStateRequest,
    local::PrepareX509AuthorityRequest,
    local::ActivateX509AuthorityRequest,
    local::TaintX509AuthorityRequest,
    local::TaintX509UpstreamAuthorityRequest,
    local::RevokeX509AuthorityRequest,
    local::RevokeX509UpstreamAuthorityRequest,
    local::GetWitAuthorityStateRequest,
    local::PrepareWitAuthorityRequest,
    local::ActivateWitAuthorityRequest,
    local::TaintWitAuthorityRequest,
    local::RevokeWitAuthorityRequest,
    domain::ListFederationRelationshipsRequest,
    domain::GetFederationRelationshipRequest,
    domain::BatchCreateFederationRelationshipRequest,
    domain::BatchUpdateFederationRelationshipRequest,
    domain::BatchDeleteFederationRelationshipRequest,
    domain::RefreshBundleRequest,
    spire::agent::debug::v1::GetInfoRequest,
    agent_logger::GetLoggerRequest,
    agent_logger::SetLogLevelRequest,
    agent_logger::ResetLogLevelRequest,
    delegated::SubscribeToX509sviDsRequest,
    delegated::SubscribeToX509BundlesRequest,
    delegated::FetchJwtsviDsRequest,
    delegated::SubscribeToJwtBundlesRequest,
    workload::X509svidRequest,
    workload::X509BundlesRequest,
    workload::JwtsvidRequest,
    workload::JwtBundlesRequest,
    workload::ValidateJwtsvidRequest,
    workload::WitsvidRequest,
    workload::WitBundlesRequest,
    finial::watch::v1::Held,
];

/// A method whose request has no row stops the target at once. Envoy's requests are left out: they carry any structure there
/// is, and one with a number that is none does not equal itself.
static COMPLETE: LazyLock<()> = LazyLock::new(|| {
    let asked: BTreeSet<String> = descriptors()
        .services()
        .filter(|service| !service.full_name().starts_with("envoy."))
        .flat_map(|service| service.methods().map(|m| m.input().full_name().to_owned()).collect::<Vec<_>>())
        .collect();
    let listed: BTreeSet<String> = REQUESTS.iter().map(|(name, _)| name()).collect();
    assert_eq!(listed, asked);
    assert_eq!(listed.len(), REQUESTS.len(), "a row is there twice");
});

fn check<M: Message + Name + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let name = M::full_name();
    let descriptor = descriptors().get_message_by_name(&name).expect("COMPLETE has seen it");
    let typed = M::decode(bytes);
    let dynamic = DynamicMessage::decode(descriptor.clone(), bytes);
    assert_eq!(typed.is_ok(), dynamic.is_ok(), "{name}: {:?} / {:?}", typed.err(), dynamic.err());
    let (Ok(message), Ok(dynamic)) = (typed, dynamic) else { return };

    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    assert_eq!(M::decode(encoded.as_slice()).as_ref(), Ok(&message));
    assert_eq!(M::decode(dynamic.encode_to_vec().as_slice()).as_ref(), Ok(&message));

    if let Ok(json) = to_json(&message) {
        match from_json::<M>(&json.to_string()) {
            Ok(read) => assert_eq!(read, message, "{name}: {json}"),
            Err(error) => panic!("{name}: {error}: {json}"),
        }
    }
}
