//! `agent list`, `count`, `show`, `evict`, `ban` and `purge`

use std::fmt::Write;

use finial_daemon::argv::{OutputFormat, text};
use finial_daemon::clock::{Clock, unix_seconds};
use finial_proto::spire::api::server::agent::v1::{
    BanAgentRequest, CountAgentsRequest, CountAgentsResponse, DeleteAgentRequest, GetAgentRequest,
    ListAgentsRequest, ListAgentsResponse, count_agents_request, list_agents_request,
};
use finial_proto::spire::api::types::{Agent, AgentMask, SelectorMatch, Spiffeid};
use serde_json::{Map, Value, json};

use super::client::{Client, Server};
use super::expiry;
use super::matching::{behavior, given, id, selector};
use super::output::{Failure, Output, Report, counted, fail, id_text, json_line};

/// Comfortably within the largest answer.
const PAGE: i32 = 1000;

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Lists the nodes that have attested
    #[command(after_help = LIST_HELP)]
    List(List),
    /// Counts them
    #[command(
        after_help = "Examples:\n    finial-server agent count\n    finial-server agent count -banned true"
    )]
    Count(List),
    /// Shows one
    #[command(
        after_help = "Examples:\n    finial-server agent show -spiffeID spiffe://example.org/spire/agent/…"
    )]
    Show(One),
    /// Removes one; where its attestor allows it, it may attest again
    #[command(after_help = EVICT_HELP)]
    Evict(One),
    /// Bans one: it gets nothing any more and cannot attest again
    #[command(after_help = BAN_HELP)]
    Ban(One),
    /// Removes those whose SVID expired long ago and who can attest again
    #[command(after_help = PURGE_HELP)]
    Purge(Purge),
}

const LIST_HELP: &str = "\
Examples:
    finial-server agent list
    finial-server agent list -attestationType join_token -expiresBefore \"2030-01-02 15:04:05 +0000 +00\"
    finial-server agent list -selector k8s_psat:cluster:prod -banned false -output json";

const EVICT_HELP: &str = "\
The agent learns of it at its next call. With an attestor that proves the node anew it comes back by itself; with a
join token it needs a new one.

Examples:
    finial-server agent evict -spiffeID spiffe://example.org/spire/agent/join_token/…";

const BAN_HELP: &str = "\
Use \"agent evict\" to lift a ban.

Examples:
    finial-server agent ban -spiffeID spiffe://example.org/spire/agent/join_token/…";

const PURGE_HELP: &str = "\
Examples:
    finial-server agent purge -dryRun
    finial-server agent purge -expiredFor 168h";

#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// Only nodes with this selector, type:value. May be given more than once
    #[arg(long = "selector", value_name = "value")]
    selectors: Vec<String>,
    /// How the selectors must match a node's: exact, any, superset (it has at least these) or subset (no others)
    #[arg(long = "matchSelectorsOn", default_value = "superset")]
    match_selectors_on: String,
    /// Only nodes that attested in this way, for example join_token
    #[arg(long = "attestationType")]
    attestation_type: Option<String>,
    /// true: only nodes that can attest again; false: only the others
    #[arg(long = "canReattest", value_name = "value")]
    can_reattest: Option<String>,
    /// true: only banned nodes; false: only the others
    #[arg(long = "banned", value_name = "value")]
    banned: Option<String>,
    /// Only nodes whose SVID expires before this time, in the form "2006-01-02 15:04:05 -0700 -07"
    #[arg(long = "expiresBefore")]
    expires_before: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct One {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The agent's SPIFFE ID
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Purge {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// How long ago the SVID must have expired
    #[arg(long = "expiredFor", value_name = "duration", default_value = "720h0m0s", value_parser = text::duration)]
    expired_for: i64,
    /// Only show who would be removed
    #[arg(long = "dryRun")]
    dry_run: bool,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        match self {
            Verb::List(flags) => flags.list().await,
            Verb::Count(flags) => flags.count().await,
            Verb::Show(flags) => flags.show().await,
            Verb::Evict(flags) => flags.evict().await,
            Verb::Ban(flags) => flags.ban().await,
            Verb::Purge(flags) => flags.purge(&Clock::wall()).await,
        }
    }
}

impl List {
    async fn list(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let filter = self.filter()?;
        let mut all = ListAgentsResponse::default();
        let mut page_token = String::new();
        loop {
            let filter = Some(filter.clone());
            let request = ListAgentsRequest { filter, output_mask: None, page_size: PAGE, page_token };
            let answer = client.agents().list_agents(request).await;
            let page = answer.map_err(|status| client.refused(&status))?.into_inner();
            all.agents.extend(page.agents);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        self.output.print(&all, |all| Ok(Report::said(listed(&all.agents))))
    }

    async fn count(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let filter = self.filter()?;
        let filter = count_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        };
        let answer = client.agents().count_agents(CountAgentsRequest { filter: Some(filter) }).await;
        let count = answer.map_err(|status| client.refused(&status))?.into_inner();
        self.output.print(&count, |count| Ok(Report::said(count_text(count))))
    }

    fn filter(&self) -> Result<list_agents_request::Filter, Failure> {
        let mut by_selector_match = None;
        if !self.selectors.is_empty() {
            let behavior =
                behavior(&self.match_selectors_on).ok_or_else(|| fail("unsupported match behavior"))?;
            let selectors = self.selectors.iter().map(|given| {
                selector(given).map_err(|failure| match failure {
                    Failure::Told(cause) => {
                        fail(format!("error parsing selector {}: {cause}", text::quote(given)))
                    }
                    other => other,
                })
            });
            let selectors = selectors.collect::<Result<Vec<_>, _>>()?;
            by_selector_match = Some(SelectorMatch { selectors, r#match: behavior.into() });
        }
        let expires_before = given(&self.expires_before).unwrap_or_default();
        if !expires_before.is_empty() {
            expiry::check(expires_before)?;
        }
        Ok(list_agents_request::Filter {
            by_attestation_type: self.attestation_type.clone().unwrap_or_default(),
            by_selector_match,
            by_banned: three_state(&self.banned),
            by_can_reattest: three_state(&self.can_reattest),
            by_expires_before: expires_before.to_owned(),
        })
    }
}

impl One {
    async fn show(self) -> Result<Report, Failure> {
        let (client, id) = self.prepare()?;
        let request = GetAgentRequest { id: Some(id), output_mask: None };
        let answer = client.agents().get_agent(request).await;
        let agent = answer.map_err(|status| client.refused(&status))?.into_inner();
        self.output.print(&agent, |agent| Ok(Report::said(shown(agent))))
    }

    async fn evict(self) -> Result<Report, Failure> {
        let (client, id) = self.prepare()?;
        let answer = client.agents().delete_agent(DeleteAgentRequest { id: Some(id) }).await;
        answer.map_err(|status| client.refused(&status))?;
        self.done("Agent evicted successfully\n")
    }

    async fn ban(self) -> Result<Report, Failure> {
        let (client, id) = self.prepare()?;
        let answer = client.agents().ban_agent(BanAgentRequest { id: Some(id) }).await;
        answer.map_err(|status| client.refused(&status))?;
        self.done("Agent banned successfully\n")
    }

    fn prepare(&self) -> Result<(Client, Spiffeid), Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let spiffe_id = given(&self.spiffe_id).ok_or_else(|| fail("a SPIFFE ID is required"))?;
        Ok((client, id(spiffe_id)?))
    }

    /// Both calls answer with nothing.
    fn done(&self, text: &str) -> Result<Report, Failure> {
        match self.output.format()? {
            OutputFormat::Pretty => Ok(Report::said(text)),
            OutputFormat::Json => Ok(json_line(Value::Object(Map::new()))),
        }
    }
}

/// What became of an agent whose SVID expired long ago.
#[derive(Debug)]
struct Expired {
    id: String,
    deleted: bool,
    error: Option<String>,
}

impl Purge {
    async fn purge(self, clock: &Clock) -> Result<Report, Failure> {
        let format = self.output.format()?;
        let client = self.server.connect()?;
        let filter = list_agents_request::Filter { by_can_reattest: Some(true), ..Default::default() };
        let request = ListAgentsRequest {
            filter: Some(filter),
            output_mask: Some(AgentMask { x509svid_expires_at: true, ..AgentMask::default() }),
            ..ListAgentsRequest::default()
        };
        let answer = client.agents().list_agents(request).await;
        let agents = answer.map_err(|status| client.refused_to("failed to list agents", &status))?;

        let now = i128::from(unix_seconds(clock.now())) * 1_000_000_000;
        let mut expired = Vec::new();
        for agent in agents.into_inner().agents {
            if now - i128::from(agent.x509svid_expires_at) * 1_000_000_000 <= i128::from(self.expired_for) {
                continue;
            }
            let id = id_text(agent.id.as_ref());
            let mut one = Expired { id, deleted: false, error: None };
            if !self.dry_run {
                match client.agents().delete_agent(DeleteAgentRequest { id: agent.id }).await {
                    Ok(_) => one.deleted = true,
                    Err(status) => one.error = Some(client.text(&status)),
                }
            }
            expired.push(one);
        }
        Ok(match format {
            OutputFormat::Pretty => Report::said(purged(&expired, self.dry_run)),
            OutputFormat::Json => json_line(purged_json(&expired)),
        })
    }
}

fn listed(agents: &[Agent]) -> String {
    if agents.is_empty() {
        return "No attested agents found\n".to_owned();
    }
    let mut out = format!("Found {}:\n\n", counted(agents.len(), "attested ", "agent", "agents"));
    agents.iter().for_each(|agent| block(&mut out, agent));
    out
}

fn shown(agent: &Agent) -> String {
    let mut out = "Found an attested agent given its SPIFFE ID\n\n".to_owned();
    block(&mut out, agent);
    for selector in &agent.selectors {
        let _ = writeln!(out, "Selectors         : {}:{}", selector.r#type, selector.value);
    }
    out
}

fn block(out: &mut String, agent: &Agent) {
    // Writing to a string does not fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<18}: {value}");
    };
    line("SPIFFE ID", &id_text(agent.id.as_ref()));
    line("Attestation type", &agent.attestation_type);
    line("Expiration time", &text::local_time(agent.x509svid_expires_at));
    // A banned agent has no serial number.
    if agent.banned {
        line("Banned", "true");
    } else {
        line("Serial number", &agent.x509svid_serial_number);
    }
    line("Can re-attest", if agent.can_reattest { "true" } else { "false" });
    if !agent.agent_version.is_empty() {
        line("Agent version", &agent.agent_version);
    }
    out.push('\n');
}

fn count_text(count: &CountAgentsResponse) -> String {
    format!("{}\n", counted(usize::try_from(count.count).unwrap_or(0), "attested ", "agent", "agents"))
}

fn purged(expired: &[Expired], dry_run: bool) -> String {
    if expired.is_empty() {
        return "No agents to purge.\n".to_owned();
    }
    let mut out = format!("Found {}\n\n", counted(expired.len(), "expired ", "agent", "agents"));
    if dry_run {
        out.push_str("\nAgents that can be purged:\n");
        expired.iter().for_each(|one| id_line(&mut out, one));
        return out;
    }
    let (gone, left): (Vec<_>, Vec<_>) = expired.iter().partition(|one| one.deleted);
    if !gone.is_empty() {
        out.push_str("Agents purged:\n");
        gone.iter().for_each(|one| id_line(&mut out, one));
    }
    if !left.is_empty() {
        out.push_str("Agents not purged:\n");
        for one in left {
            id_line(&mut out, one);
            let _ = writeln!(out, "Error             : {}", one.error.as_deref().unwrap_or_default());
        }
    }
    out
}

fn id_line(out: &mut String, one: &Expired) {
    let _ = writeln!(out, "SPIFFE ID         : {}", one.id);
}

fn purged_json(expired: &[Expired]) -> Value {
    let agents = expired.iter().map(|one| {
        let mut agent = json!({ "agent_id": one.id, "deleted": one.deleted });
        if let Some(error) = &one.error {
            agent["error"] = Value::from(error.as_str());
        }
        agent
    });
    json!({ "expired_agents": agents.collect::<Vec<_>>() })
}

/// Anything but the two words asks for all.
fn three_state(flag: &Option<String>) -> Option<bool> {
    match flag.as_deref() {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
