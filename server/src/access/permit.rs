//! Who may call what: one row for each method, and the decision as a plain function.
//!
//! The rows are the reference implementation's embedded policy. The order of the questions is too: anyone, the local
//! socket, the configured `admin_ids`, the rights that entries give (admin, then downstream), and last the standing of
//! an agent. A local caller is no super-user: what only agents may call, it may not.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::SystemTime;

use finial_identity::spiffe_id::SpiffeId;

use super::caller::Caller;
use crate::agents::standing::Standing;
use crate::entries::snapshot::EntryFlags;

/// Proof that a caller may call a method. Only this file makes one.
#[derive(Clone, Debug)]
pub struct Granted {
    caller: Caller,
    row: &'static Row,
    role: Role,
}

/// One method of one service.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// `/package.Service/Method`.
    pub method: &'static str,
    pub who: Who,
    pub limit: Limit,
    pub audit: Audit,
}

/// The classes of callers that a method lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Anyone,
    Local,
    AdminOrLocal,
    AdminLocalOrAgent,
    Agent,
    Downstream,
}

/// The set of token buckets that calls of a method draw from; see [`super::limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    None,
    Attest,
    /// Everything that signs an X.509 certificate for somebody in the network.
    SignX509,
    SignJwt,
    SignWit,
    PublishKey,
    PostStatus,
}

/// What one line of the audit log stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// The call.
    Call,
    /// One element of the request, with its own status.
    Item,
    /// Not in the audit log (health).
    None,
}

/// As what a caller was let in, as the audit log and the request log name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The method is open to anyone.
    Anyone,
    Local,
    /// Listed in `admin_ids`.
    ConfiguredAdmin,
    /// By an entry with the flag `admin`.
    Admin,
    /// By an entry with the flag `downstream`.
    Downstream,
    Agent,
}

/// Everything that the decision looks at. `standing` is needed only if [`asks_standing`] says so.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    pub caller: &'a Caller,
    /// The setting `admin_ids`.
    pub admin_ids: &'a [SpiffeId],
    /// What entries give to the caller's SPIFFE ID.
    pub flags: EntryFlags,
    pub standing: Option<Standing>,
    pub now: SystemTime,
}

/// `PERMISSION_DENIED`. Where a reason is given it belongs into the status details: agents act on it, not on the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authorization denied for method {method}")]
pub struct Refusal {
    pub method: String,
    pub reason: Option<Reason>,
}

/// `spire.api.types.PermissionDeniedDetails.Reason`; the numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Reason {
    AgentExpired = 1,
    AgentNotAttested = 2,
    AgentNotActive = 3,
    AgentBanned = 4,
    AgentMustReattest = 5,
}

/// All rows: every method of every service of the server, the health service included.
pub fn table() -> &'static [Row] {
    TABLE
}

/// The row of a full method name (`/package.Service/Method`).
pub fn row(method: &str) -> Option<&'static Row> {
    static BY_METHOD: LazyLock<HashMap<&'static str, &'static Row>> =
        LazyLock::new(|| TABLE.iter().map(|row| (row.method, row)).collect());
    BY_METHOD.get(method).copied()
}

/// Whether the decision depends on the caller's standing as an agent. Looking that up costs a database read, so it is
/// done only where nothing cheaper has let the caller in.
pub fn asks_standing(row: &Row, facts: &Facts<'_>) -> bool {
    row.who.includes_agent() && facts.caller.spiffe_id().is_some() && without_standing(row, facts).is_none()
}

/// The decision. An SVID that has expired since the handshake proves nothing any more.
pub fn decide(row: &'static Row, facts: &Facts<'_>) -> Result<Granted, Refusal> {
    let refused = |reason| Refusal { method: row.method.to_owned(), reason };
    let role = match without_standing(row, facts) {
        Some(role) => role,
        None if row.who.includes_agent() && facts.caller.spiffe_id().is_some() => match &facts.standing {
            Some(Standing::Active) => Role::Agent,
            Some(standing) => return Err(refused(standing.reason())),
            None => return Err(refused(None)),
        },
        None => return Err(refused(None)),
    };
    Ok(Granted { caller: facts.caller.clone(), row, role })
}

impl Granted {
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The full method, `/package.Service/Method`.
    pub fn method(&self) -> &'static str {
        self.row.method
    }

    pub fn row(&self) -> &'static Row {
        self.row
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// The ID of the agent that was let in as such.
    pub fn agent_id(&self) -> Option<&SpiffeId> {
        self.caller.spiffe_id().filter(|_| self.role == Role::Agent)
    }
}

impl Row {
    /// `package.Service`.
    pub fn service(&self) -> &'static str {
        self.method.trim_start_matches('/').split('/').next().unwrap_or_default()
    }
}

impl Who {
    pub fn includes_local(self) -> bool {
        matches!(self, Who::Local | Who::AdminOrLocal | Who::AdminLocalOrAgent)
    }

    pub fn includes_admin(self) -> bool {
        matches!(self, Who::AdminOrLocal | Who::AdminLocalOrAgent)
    }

    pub fn includes_agent(self) -> bool {
        matches!(self, Who::Agent | Who::AdminLocalOrAgent)
    }
}

impl Role {
    /// The log field `authorized_as`.
    pub fn authorized_as(self) -> &'static str {
        match self {
            Role::Anyone => "nobody",
            Role::Local => "local",
            Role::ConfiguredAdmin | Role::Admin => "admin",
            Role::Downstream => "downstream",
            Role::Agent => "agent",
        }
    }

    /// The log field `authorized_via`.
    pub fn authorized_via(self) -> &'static str {
        match self {
            Role::Anyone => "",
            Role::Local => "transport",
            Role::ConfiguredAdmin => "config",
            Role::Admin | Role::Downstream => "entries",
            Role::Agent => "datastore",
        }
    }
}

impl Standing {
    fn reason(&self) -> Option<Reason> {
        match self {
            Standing::Active => None,
            Standing::Expired => Some(Reason::AgentExpired),
            Standing::NotAttested => Some(Reason::AgentNotAttested),
            Standing::NotActive { .. } => Some(Reason::AgentNotActive),
            Standing::Banned => Some(Reason::AgentBanned),
        }
    }
}

fn without_standing(row: &Row, facts: &Facts<'_>) -> Option<Role> {
    if row.who == Who::Anyone {
        return Some(Role::Anyone);
    }
    if row.who.includes_local() && facts.caller.is_local() {
        return Some(Role::Local);
    }
    let id = facts.caller.spiffe_id()?;
    if facts.caller.is_expired(facts.now) {
        return None;
    }
    if row.who.includes_admin() && facts.admin_ids.contains(id) {
        return Some(Role::ConfiguredAdmin);
    }
    if row.who.includes_admin() && facts.flags.admin {
        return Some(Role::Admin);
    }
    if row.who == Who::Downstream && facts.flags.downstream {
        return Some(Role::Downstream);
    }
    None
}

const fn method(method: &'static str, who: Who) -> Row {
    Row { method, who, limit: Limit::None, audit: Audit::Call }
}

const fn batch(method: &'static str, who: Who) -> Row {
    Row { method, who, limit: Limit::None, audit: Audit::Item }
}

const fn limited(method: &'static str, who: Who, limit: Limit, audit: Audit) -> Row {
    Row { method, who, limit, audit }
}

use Who::{AdminLocalOrAgent, AdminOrLocal, Agent, Anyone, Downstream, Local};

#[rustfmt::skip]
static TABLE: &[Row] = &[
    limited("/spire.api.server.agent.v1.Agent/AttestAgent", Anyone, Limit::Attest, Audit::Call),
    method("/spire.api.server.agent.v1.Agent/BanAgent", AdminOrLocal),
    method("/spire.api.server.agent.v1.Agent/CountAgents", AdminOrLocal),
    method("/spire.api.server.agent.v1.Agent/CreateJoinToken", AdminOrLocal),
    method("/spire.api.server.agent.v1.Agent/DeleteAgent", AdminOrLocal),
    method("/spire.api.server.agent.v1.Agent/GetAgent", AdminOrLocal),
    method("/spire.api.server.agent.v1.Agent/ListAgents", AdminOrLocal),
    limited("/spire.api.server.agent.v1.Agent/PostStatus", Agent, Limit::PostStatus, Audit::Call),
    limited("/spire.api.server.agent.v1.Agent/RenewAgent", Agent, Limit::SignX509, Audit::Call),

    method("/spire.api.server.bundle.v1.Bundle/AppendBundle", AdminOrLocal),
    batch("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", AdminOrLocal),
    batch("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", AdminOrLocal),
    batch("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", AdminOrLocal),
    batch("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", AdminOrLocal),
    method("/spire.api.server.bundle.v1.Bundle/CountBundles", AdminOrLocal),
    method("/spire.api.server.bundle.v1.Bundle/GetBundle", Anyone),
    method("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", AdminLocalOrAgent),
    method("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", AdminOrLocal),
    limited("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", Downstream, Limit::PublishKey, Audit::Call),
    limited("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", Downstream, Limit::PublishKey, Audit::Call),

    method("/spire.api.server.debug.v1.Debug/GetInfo", Local),

    batch("/spire.api.server.entry.v1.Entry/BatchCreateEntry", AdminOrLocal),
    batch("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", AdminOrLocal),
    batch("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", AdminOrLocal),
    method("/spire.api.server.entry.v1.Entry/CountEntries", AdminOrLocal),
    method("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", Agent),
    method("/spire.api.server.entry.v1.Entry/GetEntry", AdminOrLocal),
    method("/spire.api.server.entry.v1.Entry/ListEntries", AdminOrLocal),
    method("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", Agent),

    method("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", AdminOrLocal),
    method("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", AdminOrLocal),

    method("/spire.api.server.logger.v1.Logger/GetLogger", Local),
    method("/spire.api.server.logger.v1.Logger/ResetLogLevel", Local),
    method("/spire.api.server.logger.v1.Logger/SetLogLevel", Local),

    limited("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", Agent, Limit::SignWit, Audit::Item),
    limited("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", Agent, Limit::SignX509, Audit::Item),
    method("/spire.api.server.svid.v1.SVID/MintJWTSVID", AdminOrLocal),
    method("/spire.api.server.svid.v1.SVID/MintWITSVID", AdminOrLocal),
    method("/spire.api.server.svid.v1.SVID/MintX509SVID", AdminOrLocal),
    limited("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", Downstream, Limit::SignX509, Audit::Call),
    limited("/spire.api.server.svid.v1.SVID/NewJWTSVID", Agent, Limit::SignJwt, Audit::Call),

    batch("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", AdminOrLocal),
    batch("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", AdminOrLocal),
    batch("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", AdminOrLocal),
    method("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", AdminOrLocal),
    method("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", AdminOrLocal),
    method("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", AdminOrLocal),

    method("/finial.watch.v1.Watch/Authorized", Agent),

    limited("/grpc.health.v1.Health/Check", Local, Limit::None, Audit::None),
    limited("/grpc.health.v1.Health/List", Local, Limit::None, Audit::None),
    limited("/grpc.health.v1.Health/Watch", Local, Limit::None, Audit::None),
];

#[cfg(test)]
mod tests;
