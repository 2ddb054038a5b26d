use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::access::fixture::{Authority, anonymous, local, noon};

/// Services of the agent's sockets.
const OF_AGENTS: [&str; 5] =
    ["SpiffeWorkloadAPI", "envoy.", "spire.agent.debug.", "spire.api.agent.", "spire.service.private."];
/// Served, but not among the generated files.
const HEALTH: [&str; 3] =
    ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch"];

#[test]
fn every_method_has_one_row_and_every_row_a_method() {
    let of_server = finial_proto::methods()
        .into_iter()
        .filter(|(service, _)| !OF_AGENTS.iter().any(|prefix| service.starts_with(prefix)))
        .map(|(service, method)| format!("/{service}/{method}"));
    let expected: BTreeSet<String> = of_server.chain(HEALTH.map(str::to_owned)).collect();
    let rows: BTreeSet<String> = table().iter().map(|row| row.method.to_owned()).collect();
    assert_eq!(rows, expected);
    assert_eq!(rows.len(), table().len(), "a method has two rows");
    for expected in table() {
        assert_eq!(row(expected.method), Some(expected));
    }
    assert_eq!(row("/spire.api.server.entry.v1.Entry/Missing"), None);
}

/// Who gets in, as the reference implementation's policy has it: all other methods are for administrators and local
/// callers.
#[test]
fn the_exceptions_are_those_of_the_reference() {
    let of = |who| -> Vec<&str> {
        table().iter().filter(|row| row.who == who).filter_map(|row| row.method.rsplit('/').next()).collect()
    };
    assert_eq!(of(Who::Anyone), ["AttestAgent", "GetBundle"]);
    assert_eq!(
        of(Who::Agent),
        [
            "PostStatus",
            "RenewAgent",
            "GetAuthorizedEntries",
            "SyncAuthorizedEntries",
            "BatchNewWITSVID",
            "BatchNewX509SVID",
            "NewJWTSVID",
            "Authorized"
        ]
    );
    assert_eq!(of(Who::AdminLocalOrAgent), ["GetFederatedBundle"]);
    assert_eq!(of(Who::Downstream), ["PublishJWTAuthority", "PublishWITAuthority", "NewDownstreamX509CA"]);
    assert_eq!(
        of(Who::Local),
        ["GetInfo", "GetLogger", "ResetLogLevel", "SetLogLevel", "Check", "List", "Watch"]
    );
}

#[test]
fn limits_are_shared_as_in_the_reference() {
    let of = |limit| -> Vec<&str> {
        table()
            .iter()
            .filter(|row| row.limit == limit)
            .filter_map(|row| row.method.rsplit('/').next())
            .collect()
    };
    assert_eq!(of(Limit::Attest), ["AttestAgent"]);
    assert_eq!(of(Limit::SignX509), ["RenewAgent", "BatchNewX509SVID", "NewDownstreamX509CA"]);
    assert_eq!(of(Limit::SignJwt), ["NewJWTSVID"]);
    assert_eq!(of(Limit::SignWit), ["BatchNewWITSVID"]);
    assert_eq!(of(Limit::PublishKey), ["PublishJWTAuthority", "PublishWITAuthority"]);
    assert_eq!(of(Limit::PostStatus), ["PostStatus"]);
}

fn any_row(who: Who) -> &'static Row {
    table().iter().find(|row| row.who == who).unwrap()
}

const ALL_FLAGS: EntryFlags = EntryFlags { admin: true, downstream: true };
const NO_FLAGS: EntryFlags = EntryFlags { admin: false, downstream: false };

#[test]
fn roles_are_tried_in_order() {
    let authority = Authority::new("example.org");
    let svid = authority.svid("/admin", 7).caller();
    let configured = [svid.spiffe_id().unwrap().clone()];
    let (nobody, local) = (anonymous(), local());
    let active = || Some(Standing::Active);
    // Row, caller, in admin_ids, flags, standing: role.
    let cases = [
        (Who::Anyone, &nobody, false, NO_FLAGS, None, Some(Role::Anyone)),
        (Who::Anyone, &local, false, NO_FLAGS, None, Some(Role::Anyone)),
        (Who::Anyone, &svid, true, ALL_FLAGS, active(), Some(Role::Anyone)),
        (Who::Local, &local, false, NO_FLAGS, None, Some(Role::Local)),
        (Who::Local, &nobody, false, NO_FLAGS, None, None),
        (Who::Local, &svid, true, ALL_FLAGS, active(), None),
        (Who::AdminOrLocal, &local, false, NO_FLAGS, None, Some(Role::Local)),
        (Who::AdminOrLocal, &nobody, false, ALL_FLAGS, active(), None),
        (Who::AdminOrLocal, &svid, true, ALL_FLAGS, active(), Some(Role::ConfiguredAdmin)),
        (Who::AdminOrLocal, &svid, false, ALL_FLAGS, active(), Some(Role::Admin)),
        (Who::AdminOrLocal, &svid, false, EntryFlags { downstream: true, ..NO_FLAGS }, active(), None),
        (Who::AdminLocalOrAgent, &local, false, NO_FLAGS, None, Some(Role::Local)),
        (Who::AdminLocalOrAgent, &svid, true, ALL_FLAGS, active(), Some(Role::ConfiguredAdmin)),
        (Who::AdminLocalOrAgent, &svid, false, ALL_FLAGS, active(), Some(Role::Admin)),
        (Who::AdminLocalOrAgent, &svid, false, NO_FLAGS, active(), Some(Role::Agent)),
        (Who::AdminLocalOrAgent, &svid, false, NO_FLAGS, Some(Standing::NotAttested), None),
        (Who::AdminLocalOrAgent, &nobody, false, NO_FLAGS, active(), None),
        (Who::Downstream, &svid, true, EntryFlags { admin: true, ..NO_FLAGS }, active(), None),
        (Who::Downstream, &svid, true, ALL_FLAGS, active(), Some(Role::Downstream)),
        (Who::Downstream, &local, false, NO_FLAGS, None, None),
        (Who::Agent, &svid, true, ALL_FLAGS, active(), Some(Role::Agent)),
        (Who::Agent, &svid, true, ALL_FLAGS, Some(Standing::Banned), None),
        (Who::Agent, &svid, true, ALL_FLAGS, None, None),
        (Who::Agent, &local, false, NO_FLAGS, active(), None),
        (Who::Agent, &nobody, false, NO_FLAGS, active(), None),
    ];
    for (number, (who, caller, listed, flags, standing, expected)) in cases.into_iter().enumerate() {
        let row = any_row(who);
        let admin_ids: &[SpiffeId] = if listed { &configured } else { &[] };
        let facts = Facts { caller, admin_ids, flags, standing, now: noon() };
        let decision = decide(row, &facts);
        assert_eq!(decision.as_ref().ok().map(Granted::role), expected, "case {number}: {who:?}");
        match decision {
            Ok(granted) => {
                assert_eq!((granted.method(), granted.row()), (row.method, row));
                assert_eq!(granted.caller().spiffe_id(), caller.spiffe_id());
                assert_eq!(granted.agent_id().is_some(), expected == Some(Role::Agent));
            }
            Err(refusal) => {
                assert_eq!(refusal.to_string(), format!("authorization denied for method {}", row.method));
            }
        }
    }
}

#[test]
fn a_refused_agent_learns_the_reason_and_nobody_else_does() {
    let authority = Authority::new("example.org");
    let agent = authority.svid("/spire/agent/join_token/a", 7).caller();
    for (standing, reason, number) in [
        (Standing::Expired, Reason::AgentExpired, 1),
        (Standing::NotAttested, Reason::AgentNotAttested, 2),
        (Standing::NotActive { expected: "8".into() }, Reason::AgentNotActive, 3),
        (Standing::Banned, Reason::AgentBanned, 4),
    ] {
        let facts =
            Facts { caller: &agent, admin_ids: &[], flags: NO_FLAGS, standing: Some(standing), now: noon() };
        for who in [Who::Agent, Who::AdminLocalOrAgent] {
            let refusal = decide(any_row(who), &facts).unwrap_err();
            assert_eq!((refusal.reason, reason as i32), (Some(reason), number));
        }
        for who in [Who::AdminOrLocal, Who::Downstream, Who::Local] {
            assert_eq!(decide(any_row(who), &facts).unwrap_err().reason, None);
        }
    }
    assert_eq!(Reason::AgentMustReattest as i32, 5);
}

#[test]
fn an_expired_svid_gives_no_rights() {
    let authority = Authority::new("example.org");
    let caller = authority.svid("/admin", 7).caller();
    let admin_ids = [caller.spiffe_id().unwrap().clone()];
    for (after, valid) in [(3600, true), (3601, false)] {
        let now = noon() + Duration::from_secs(after);
        let facts = Facts { caller: &caller, admin_ids: &admin_ids, flags: ALL_FLAGS, standing: None, now };
        for who in [Who::AdminOrLocal, Who::Downstream, Who::AdminLocalOrAgent] {
            assert_eq!(decide(any_row(who), &facts).is_ok(), valid, "{who:?} after {after} s");
        }
    }
}

#[test]
fn standing_is_asked_for_only_where_it_decides() {
    let authority = Authority::new("example.org");
    let svid = authority.svid("/spire/agent/join_token/a", 7).caller();
    let (nobody, local) = (anonymous(), local());
    let admin = EntryFlags { admin: true, ..NO_FLAGS };
    for (who, caller, flags, asked) in [
        (Who::Agent, &svid, NO_FLAGS, true),
        (Who::Agent, &svid, ALL_FLAGS, true),
        (Who::Agent, &nobody, NO_FLAGS, false),
        (Who::Agent, &local, NO_FLAGS, false),
        (Who::AdminLocalOrAgent, &svid, NO_FLAGS, true),
        (Who::AdminLocalOrAgent, &svid, admin, false),
        (Who::AdminLocalOrAgent, &local, NO_FLAGS, false),
        (Who::AdminOrLocal, &svid, NO_FLAGS, false),
        (Who::Anyone, &svid, NO_FLAGS, false),
        (Who::Downstream, &svid, NO_FLAGS, false),
    ] {
        let facts = Facts { caller, admin_ids: &[], flags, standing: None, now: noon() };
        assert_eq!(asks_standing(any_row(who), &facts), asked, "{who:?}");
    }
}
