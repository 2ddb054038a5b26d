//! `token generate`

use finial_daemon::argv::text;
use finial_proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use finial_proto::spire::api::types::JoinToken;

use super::client::Server;
use super::matching::{given, id, int32};
use super::output::{Failure, Output, Report};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Makes a join token
    Generate(Generate),
}

const HELP: &str = "\
A join token lets one agent attest once (agent flag -joinToken). With -spiffeID the node also gets that SPIFFE ID as
an alias, which entries can name as their parent; without it they must name the agent's own ID, which is another for
each token.

Examples:
    finial-server token generate -spiffeID spiffe://example.org/web-nodes
    finial-server token generate -ttl 60 -output json";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Generate {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// How many seconds the token can be used
    #[arg(long = "ttl", value_name = "int", default_value = "600", value_parser = text::integer)]
    ttl: i64,
    /// A SPIFFE ID that the node shall have besides its own
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        let Verb::Generate(flags) = self;
        flags.output.format()?;
        let client = flags.server.connect()?;
        let spiffe_id = given(&flags.spiffe_id);
        let agent_id = spiffe_id.map(id).transpose()?;
        let ttl = int32("TTL", flags.ttl)?;
        let request = CreateJoinTokenRequest { ttl, token: String::new(), agent_id };
        let answer = client.agents().create_join_token(request).await;
        let token = answer.map_err(|status| client.refused(&status))?.into_inner();
        flags.output.print(&token, |token| Ok(pretty(token, spiffe_id.is_some())))
    }
}

fn pretty(token: &JoinToken, has_id: bool) -> Report {
    let warning = if has_id { "" } else { "Warning: Missing SPIFFE ID.\n" };
    Report::said(format!("Token: {}\n{warning}", token.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_an_id_is_warned_of() {
        let token = JoinToken { value: "7b1f866b".into(), expires_at: 1_795_297_481 };
        assert_eq!(pretty(&token, true).out, "Token: 7b1f866b\n");
        assert_eq!(pretty(&token, false).out, "Token: 7b1f866b\nWarning: Missing SPIFFE ID.\n");
        let json = Output::default().print(&token, |token| Ok(pretty(token, true))).unwrap();
        assert_eq!(json, Report::said("Token: 7b1f866b\n"));
        let value = finial_proto::json::to_json(&token).unwrap();
        assert_eq!(
            super::super::output::json_line(value).out,
            "{\"expires_at\":\"1795297481\",\"value\":\"7b1f866b\"}\n"
        );
    }
}
