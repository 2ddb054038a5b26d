//! `debug getinfo`

use std::fmt::Write;
use std::time::Duration;

use finial_daemon::argv::text;
use finial_daemon::settings::GoDuration;
use finial_proto::spire::api::server::debug::v1::{GetInfoRequest, GetInfoResponse};

use super::client::Server;
use super::output::{Failure, Output, Report, id_text};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Shows how long the server runs, what it counts, and its own SVID
    #[command(
        after_help = "Examples:\n    finial-server debug getinfo\n    finial-server debug getinfo -output json"
    )]
    Getinfo(GetInfo),
}

#[derive(Debug, clap::Args)]
pub struct GetInfo {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        let Verb::Getinfo(flags) = self;
        flags.output.format()?;
        let client = flags.server.connect()?;
        let answer = client.debug().get_info(GetInfoRequest {}).await;
        let info = answer.map_err(|status| client.refused(&status))?.into_inner();
        flags.output.print(&info, |info| Ok(Report::said(pretty(info))))
    }
}

fn pretty(info: &GetInfoResponse) -> String {
    let uptime = GoDuration(Duration::from_secs(u64::try_from(info.uptime).unwrap_or(0)));
    let mut out = format!(
        "Server Debug Info:
  Uptime:                  {uptime}
  Registered Agents:       {}
  Registration Entries:    {}
  Federated Bundles:       {}
",
        info.agents_count, info.entries_count, info.federated_bundles_count
    );
    if !info.svid_chain.is_empty() {
        out.push_str("  SVID Chain:\n");
    }
    for (index, certificate) in info.svid_chain.iter().enumerate() {
        let id = match &certificate.id {
            None => "(none)".to_owned(),
            id => id_text(id.as_ref()),
        };
        let expires = text::rfc3339(certificate.expires_at);
        // Writing to a string does not fail.
        let _ = writeln!(out, "    [{index}] SPIFFE ID:  {id}");
        let _ = writeln!(out, "        Subject:    {}", certificate.subject);
        let _ = writeln!(out, "        Expires At: {expires}");
    }
    out
}

#[cfg(test)]
mod tests {
    use finial_proto::spire::api::server::debug::v1::get_info_response::Cert;
    use finial_proto::spire::api::types::Spiffeid;

    use super::*;

    #[test]
    fn prints_as_spire_does() {
        let id = |path: &str| Some(Spiffeid { trust_domain: "example.org".into(), path: path.into() });
        let info = GetInfoResponse {
            svid_chain: vec![
                Cert { id: id("/spire/server"), expires_at: 1_795_300_381, subject: "O=SPIRE,C=US".into() },
                Cert { id: None, expires_at: 1_795_383_181, subject: "O=SPIFFE,C=US".into() },
            ],
            uptime: 117,
            agents_count: 1,
            federated_bundles_count: 2,
            entries_count: 4,
        };
        assert_eq!(
            pretty(&info),
            "Server Debug Info:
  Uptime:                  1m57s
  Registered Agents:       1
  Registration Entries:    4
  Federated Bundles:       2
  SVID Chain:
    [0] SPIFFE ID:  spiffe://example.org/spire/server
        Subject:    O=SPIRE,C=US
        Expires At: 2026-11-21T22:33:01Z
    [1] SPIFFE ID:  (none)
        Subject:    O=SPIFFE,C=US
        Expires At: 2026-11-22T21:33:01Z
"
        );
        assert!(!pretty(&GetInfoResponse::default()).contains("Chain"));
    }
}
