//! `upstreamauthority taint` and `upstreamauthority revoke`

use finial_proto::spire::api::server::localauthority::v1::{
    RevokeX509UpstreamAuthorityRequest, TaintX509UpstreamAuthorityRequest,
};

use super::client::{Client, Server};
use super::matching::given;
use super::output::{Failure, Output, Report, fail};

const HELP: &str = "\
The authority must have signed the old X.509 authority of this server (localauthority x509 show prints its subject key
ID) and not the active one.

Examples:
    finial-server upstreamauthority taint -subjectKeyID 6b1927282d3d13a6676e74078a26768f548ea9e1
    finial-server upstreamauthority revoke -subjectKeyID 6b1927282d3d13a6676e74078a26768f548ea9e1";

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Marks an upstream authority as tainted: what stands below it is replaced everywhere
    #[command(after_help = HELP)]
    Taint(One),
    /// Takes a tainted upstream authority out of the bundle
    #[command(after_help = HELP)]
    Revoke(One),
}

#[derive(Debug, clap::Args)]
pub struct One {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The subject key ID of the authority's certificate, in hex
    #[arg(long = "subjectKeyID")]
    subject_key_id: Option<String>,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        match self {
            Verb::Taint(one) => {
                let (client, subject_key_id) = one.connect()?;
                let request = TaintX509UpstreamAuthorityRequest { subject_key_id };
                let answer = client.authorities().taint_x509_upstream_authority(request).await;
                let answer = answer.map_err(|status| {
                    client.refused_to("could not taint X.509 upstream authority", &status)
                })?;
                one.output.print(answer.get_ref(), |answer| {
                    Ok(told("Tainted", &answer.upstream_authority_subject_key_id))
                })
            }
            Verb::Revoke(one) => {
                let (client, subject_key_id) = one.connect()?;
                let request = RevokeX509UpstreamAuthorityRequest { subject_key_id };
                let answer = client.authorities().revoke_x509_upstream_authority(request).await;
                let answer = answer.map_err(|status| {
                    client.refused_to("could not revoke X.509 upstream authority", &status)
                })?;
                one.output.print(answer.get_ref(), |answer| {
                    Ok(told("Revoked", &answer.upstream_authority_subject_key_id))
                })
            }
        }
    }
}

impl One {
    fn connect(&self) -> Result<(Client, String), Failure> {
        self.output.format()?;
        let id = given(&self.subject_key_id)
            .ok_or_else(|| fail("the Subject Key ID of the X.509 upstream authority is required"))?;
        Ok((self.server.connect()?, id.to_owned()))
    }
}

fn told(what: &str, subject_key_id: &str) -> Report {
    Report::said(format!("{what} X.509 upstream authority:\n  Subject Key ID: {subject_key_id}\n"))
}
