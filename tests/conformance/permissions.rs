//! Who may call what: the whole matrix, asked over the wire and compared with `permissions.golden`.
//!
//! Each cell is the outcome of a real call with an empty message: `yes` for everything but a refusal to authorise
//! (most empty messages are then refused as invalid), `no` for such a refusal, the reason's name where the refusal
//! gives one in its details, and `-` where the listener does not know the method. After a change that is meant,
//! `UPDATE_GOLDEN=1` writes the file anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_proto::spire::api::server::agent::v1 as agent_wire;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use finial_proto::spire::api::types::{self, PermissionDeniedDetails};
use finial_tests::network::Identity;
use finial_tests::raw;
use finial_tests::world::{Shape, World, id};
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status};

const HEALTH: [&str; 3] =
    ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/List", "grpc.health.v1.Health/Watch"];

#[tokio::test(start_paused = true)]
async fn callers_may_do_what_the_golden_file_says() {
    let server = r#"admin_ids = ["spiffe://example.org/configured"]"#.to_owned();
    let world = World::of(Shape { server, ..Shape::default() }).await;
    let callers = callers(&world).await;
    let mut table = vec![format!(
        "{:<80}{}",
        "# method",
        callers.iter().map(|(name, _)| format!("{name:<20}")).collect::<String>().trim_end()
    )];
    for method in methods() {
        let mut row = format!("{method:<80}");
        for (_, channel) in &callers {
            let outcome = raw::call(channel, &format!("/{method}"), b"".as_slice(), &[]).await;
            row += &format!("{:<20}", verdict(&method, outcome.err()));
        }
        table.push(row.trim_end().to_owned());
    }
    let found = table.join("\n") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(golden(), &found).unwrap();
    }
    let expected = std::fs::read_to_string(golden()).unwrap();
    let differs = found.lines().zip(expected.lines()).filter(|(found, expected)| found != expected);
    let differs: Vec<String> =
        differs.map(|(found, expected)| format!("is     {found}\nshould {expected}")).collect();
    assert!(found == expected, "permissions.golden differs:\n{}", differs.join("\n"));
}

/// The golden file has a row for every method of the descriptor set that a server serves, and no other.
#[test]
fn no_method_is_missing_from_the_golden_file() {
    let text = std::fs::read_to_string(golden()).unwrap();
    let rows: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(rows.iter().map(|row| (*row).to_owned()).collect::<BTreeSet<_>>(), methods());
    assert_eq!(rows.len(), methods().len(), "a method has two rows");
}

/// The classes of SPIRE's policy, read off the golden file: whoever is in a class may call the same methods, but for
/// the documented exceptions.
#[test]
fn the_golden_file_says_what_the_reference_documents() {
    let text = std::fs::read_to_string(golden()).unwrap();
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split_whitespace().skip(2).collect();
    let allowed: BTreeMap<&str, BTreeSet<&str>> = lines.fold(BTreeMap::new(), |mut allowed, line| {
        let mut cells = line.split_whitespace();
        let method = cells.next().unwrap().rsplit('/').next().unwrap();
        for (name, cell) in names.iter().zip(cells) {
            let methods: &mut BTreeSet<&str> = allowed.entry(*name).or_default();
            if cell == "yes" {
                methods.insert(method);
            }
        }
        allowed
    });
    let set = |methods: &[&'static str]| methods.iter().copied().collect::<BTreeSet<_>>();
    let anyone = set(&["AttestAgent", "GetBundle"]);
    let with = |methods: &[&'static str]| &anyone | &set(methods);
    assert_eq!(allowed["anonymous"], anyone);
    for shut_out in ["evicted", "banned", "replaced", "workload"] {
        assert_eq!(allowed[shut_out], anyone, "{shut_out}");
    }
    let of_agents = [
        "Authorized",
        "BatchNewWITSVID",
        "BatchNewX509SVID",
        "GetAuthorizedEntries",
        "GetFederatedBundle",
        "NewJWTSVID",
        "PostStatus",
        "RenewAgent",
        "SyncAuthorizedEntries",
    ];
    assert_eq!(allowed["agent"], with(&of_agents));
    assert_eq!(
        allowed["downstream"],
        with(&["NewDownstreamX509CA", "PublishJWTAuthority", "PublishWITAuthority"])
    );
    assert_eq!(allowed["admin"], allowed["configured"]);
    let on_the_socket =
        set(&["Check", "GetInfo", "GetLogger", "List", "ResetLogLevel", "SetLogLevel", "Watch"]);
    assert_eq!(&allowed["local"] - &allowed["admin"], on_the_socket);
    assert!(allowed["admin"].is_subset(&allowed["local"]));
    assert_eq!(&allowed["admin"] & &allowed["agent"], with(&["GetFederatedBundle"]));
}

/// Everybody who may call, by class. Agents have all used their SVIDs before something happened to them.
async fn callers(world: &World) -> Vec<(&'static str, Channel)> {
    let (_, active) = world.bare_agent("active").await;
    let (evicted_id, evicted) = world.bare_agent("evicted").await;
    let (banned_id, banned) = world.bare_agent("banned").await;
    let (_, replaced) = world.bare_agent("replaced").await;
    let channels = [&active, &evicted, &banned, &replaced].map(|identity| world.showing(identity));
    for channel in &channels {
        authorized(channel).await.unwrap();
    }
    let mut agents = world.agents();
    agents.delete_agent(agent_wire::DeleteAgentRequest { id: Some(evicted_id) }).await.unwrap();
    agents.ban_agent(agent_wire::BanAgentRequest { id: Some(banned_id) }).await.unwrap();
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    let csr = key.csr(&spire_subject(), &[]).unwrap();
    let renewal = agent_wire::RenewAgentRequest { params: Some(agent_wire::AgentX509svidParams { csr }) };
    let renewed = AgentClient::new(channels[3].clone()).renew_agent(renewal).await.unwrap().into_inner();
    let renewed = Identity { chain: renewed.svid.unwrap().cert_chain, key };
    authorized(&world.showing(&renewed)).await.unwrap();

    for (name, admin, downstream) in [("admin", true, false), ("downstream", false, true)] {
        world
            .register_as(types::Entry {
                spiffe_id: Some(id(name)),
                parent_id: Some(id("node")),
                selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
                admin,
                downstream,
                ..types::Entry::default()
            })
            .await;
    }
    let [active, evicted, banned, replaced] = channels;
    let mut callers = vec![
        ("anonymous", world.anonymous()),
        ("local", world.admin()),
        ("agent", active),
        ("evicted", evicted),
        ("banned", banned),
        ("replaced", replaced),
    ];
    for name in ["workload", "admin", "downstream", "configured"] {
        callers.push((name, world.showing(&world.minted(name).await)));
    }
    callers
}

async fn authorized(channel: &Channel) -> Result<(), Status> {
    let request = GetAuthorizedEntriesRequest::default();
    EntryClient::new(channel.clone()).get_authorized_entries(request).await.map(drop)
}

/// Methods of the server, as `package.Service/Method`.
fn methods() -> BTreeSet<String> {
    const OF_AGENTS: [&str; 4] = ["SpiffeWorkloadAPI", "envoy.", "spire.agent.", "spire.api.agent."];
    let all = finial_proto::methods().into_iter();
    let of_server = all.filter(|(service, _)| !OF_AGENTS.iter().any(|prefix| service.starts_with(prefix)));
    of_server
        .map(|(service, method)| format!("{service}/{method}"))
        .chain(HEALTH.map(str::to_owned))
        .collect()
}

fn verdict(method: &str, refused: Option<Status>) -> String {
    let Some(status) = refused else { return "yes".to_owned() };
    let (service, _) = method.split_once('/').unwrap();
    match status.code() {
        // The listener does not serve any method of the service.
        Code::Unimplemented if status.message() == format!("unknown service {service}") => "-".to_owned(),
        Code::PermissionDenied
            if status.message() == format!("authorization denied for method /{method}") =>
        {
            reason(&status).map_or_else(|| "no".to_owned(), |reason| reason.as_str_name().to_owned())
        }
        // Nothing else may look like a refusal of the caller, and no caller may fail to reach the method.
        Code::PermissionDenied | Code::Unauthenticated | Code::Unavailable | Code::Unknown => {
            panic!("{method}: {status}")
        }
        _ => "yes".to_owned(),
    }
}

/// The reason in the details of a refusal, found as agents find it.
fn reason(status: &Status) -> Option<Reason> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    let details = RpcStatus::decode(status.details()).unwrap().details;
    let detail = details.first()?;
    assert_eq!(detail.type_url, "type.googleapis.com/spire.api.types.PermissionDeniedDetails");
    Some(PermissionDeniedDetails::decode(detail.value.as_slice()).unwrap().reason())
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("permissions.golden")
}
