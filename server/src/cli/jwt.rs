//! `jwt mint`

use std::path::{Path, PathBuf};

use finial_daemon::argv::text;
use finial_daemon::clock::{Clock, unix_seconds};
use finial_daemon::private_file;
use finial_identity::SpiffeId;
use finial_identity::jwt_svid::UnverifiedJwtSvid;
use finial_proto::spire::api::server::svid::v1::{MintJwtsvidRequest, MintJwtsvidResponse};
use finial_proto::spire::api::types;

use super::client::Server;
use super::lifetime::{capped, seconds};
use super::matching::given;
use super::output::{Failure, Output, Report, fail};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Makes a JWT-SVID for any SPIFFE ID, without an entry
    Mint(Mint),
}

const HELP: &str = "\
Whoever holds the token is taken for the SPIFFE ID by the audience until it expires: hand it over as a secret. With -write
the file is readable by this user alone.

Examples:
    finial-server jwt mint -spiffeID spiffe://example.org/ci -audience https://vault.example.org -ttl 10m
    finial-server jwt mint -spiffeID spiffe://example.org/ci -audience a -audience b -write /run/ci/token";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Mint {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The SPIFFE ID of the SVID
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
    /// How long it shall be valid, for example 30m; the server's default without it
    #[arg(long = "ttl", value_name = "duration", value_parser = text::duration)]
    ttl: Option<i64>,
    /// Who shall accept the token. May be given more than once
    #[arg(long = "audience", value_name = "value")]
    audience: Vec<String>,
    /// A file to write the token to, instead of printing it
    #[arg(long = "write")]
    write: Option<PathBuf>,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        let Verb::Mint(flags) = self;
        flags.mint(&Clock::wall()).await
    }
}

impl Mint {
    async fn mint(self, clock: &Clock) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let spiffe_id = given(&self.spiffe_id).ok_or_else(|| fail("spiffeID must be specified"))?;
        if self.audience.is_empty() {
            return Err(fail("at least one audience must be specified"));
        }
        let id = SpiffeId::parse(spiffe_id)?;
        let nanos = self.ttl.unwrap_or(0);
        let request = MintJwtsvidRequest {
            id: Some(types::Spiffeid {
                trust_domain: id.trust_domain_name().to_owned(),
                path: id.path().to_owned(),
            }),
            audience: self.audience.clone(),
            ttl: seconds(nanos)?,
        };
        let answer = client.svids().mint_jwtsvid(request).await;
        let answer = answer.map_err(|status| client.refused_to("unable to mint SVID", &status))?.into_inner();
        let token = token(&answer);
        if token.is_empty() {
            return Err(fail("server response missing token"));
        }
        let err = match UnverifiedJwtSvid::read(token) {
            Ok(svid) => capped("JWT-SVID", nanos, unix_seconds(svid.expires_at()), clock),
            Err(error) => format!("Unable to determine JWT-SVID lifetime: {error}\n"),
        };
        let report = match self.write.as_deref().filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => write(path, token),
            None => {
                self.output.print(&answer, |answer| Ok(Report::said(format!("{}\n", self::token(answer)))))?
            }
        };
        Ok(Report { err, ..report })
    }
}

fn token(answer: &MintJwtsvidResponse) -> &str {
    answer.svid.as_ref().map_or("", |svid| &svid.token)
}

fn write(path: &Path, token: &str) -> Report {
    let path = text::clean(path);
    match private_file::replace(&path, token.as_bytes()) {
        Ok(()) => Report::said(format!("JWT-SVID written to {}\n", path.display())),
        Err(error) => {
            let cause = text::file_error("open", &path, &error);
            Report::default().failed(fail(format!("unable to write token: {cause}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_private_and_holds_the_token_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "old and open").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let said = format!("JWT-SVID written to {}\n", path.display());
        assert_eq!(write(&dir.path().join("./token"), "a.b.c"), Report::said(said));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a.b.c");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            write(Path::new("/nonexist/token"), "a.b.c"),
            Report::default()
                .failed(fail("unable to write token: open /nonexist/token: no such file or directory"))
        );
    }
}
