//! `localauthority x509` and `localauthority jwt`: `show`, `prepare`, `activate`, `taint` and `revoke`

use finial_daemon::argv::text;
use finial_proto::spire::api::server::localauthority::v1 as wire;
use wire::AuthorityState;

use super::client::{Client, Server};
use super::matching::given;
use super::output::{Failure, Output, Report, fail};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// The X.509 authorities, which sign X509-SVIDs
    #[command(subcommand)]
    X509(Step),
    /// The JWT authorities, which sign JWT-SVIDs
    #[command(subcommand)]
    Jwt(Step),
}

const HELP: &str = "\
A rotation by hand takes these steps, each with the ID that show or the step before printed:
    prepare     makes a new authority and puts it into the bundle; wait until agents have it
    activate    lets it sign; the one before is old then
    taint       marks the old one, so that everything it signed is replaced
    revoke      takes the tainted one out of the bundle

Examples:
    finial-server localauthority x509 show
    finial-server localauthority x509 prepare
    finial-server localauthority x509 activate -authorityID 6b1927282d3d13a6676e74078a26768f548ea9e1
    finial-server localauthority jwt show -output json";

#[derive(Debug, clap::Subcommand)]
pub enum Step {
    /// Shows the authorities: the active, the prepared and the old one
    #[command(after_help = HELP)]
    Show(All),
    /// Makes a new authority and puts it into the bundle; it does not sign yet
    #[command(after_help = HELP)]
    Prepare(All),
    /// Lets the prepared authority sign from now on
    #[command(after_help = HELP)]
    Activate(One),
    /// Marks the old authority as tainted: what it signed is replaced everywhere
    #[command(after_help = HELP)]
    Taint(One),
    /// Takes the tainted authority out of the bundle: what it signed is worth nothing any more
    #[command(after_help = HELP)]
    Revoke(One),
}

#[derive(Debug, clap::Args)]
pub struct All {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub struct One {
    #[command(flatten)]
    all: All,
    /// The ID of the authority
    #[arg(long = "authorityID")]
    authority_id: Option<String>,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        match self {
            Verb::X509(step) => step.of_x509().await,
            Verb::Jwt(step) => step.of_jwt().await,
        }
    }
}

impl Step {
    async fn of_x509(self) -> Result<Report, Failure> {
        match self {
            Step::Show(all) => {
                let client = all.connect()?;
                let request = wire::GetX509AuthorityStateRequest {};
                let answer = client.authorities().get_x509_authority_state(request).await;
                let answer =
                    answer.map_err(|status| client.refused_to("could not get X.509 authorities", &status))?;
                all.output.print(answer.get_ref(), |answer| {
                    Ok(shown(X509, [&answer.active, &answer.prepared, &answer.old]))
                })
            }
            Step::Prepare(all) => {
                let client = all.connect()?;
                let request = wire::PrepareX509AuthorityRequest {};
                let answer = client.authorities().prepare_x509_authority(request).await;
                let answer = answer
                    .map_err(|status| client.refused_to("could not prepare X.509 authority", &status))?;
                all.output.print(answer.get_ref(), |answer| {
                    done(X509, "Prepared", answer.prepared_authority.as_ref())
                })
            }
            Step::Activate(one) => {
                let (client, authority_id) = one.connect()?;
                let request = wire::ActivateX509AuthorityRequest { authority_id };
                let answer = client.authorities().activate_x509_authority(request).await;
                let answer = answer
                    .map_err(|status| client.refused_to("could not activate X.509 authority", &status))?;
                one.all.output.print(answer.get_ref(), |answer| {
                    done(X509, "Activated", answer.activated_authority.as_ref())
                })
            }
            Step::Taint(one) => {
                let (client, authority_id) = one.connect()?;
                let request = wire::TaintX509AuthorityRequest { authority_id };
                let answer = client.authorities().taint_x509_authority(request).await;
                let answer =
                    answer.map_err(|status| client.refused_to("could not taint X.509 authority", &status))?;
                one.all.output.print(answer.get_ref(), |answer| {
                    done(X509, "Tainted", answer.tainted_authority.as_ref())
                })
            }
            Step::Revoke(one) => {
                let (client, authority_id) = one.connect()?;
                let request = wire::RevokeX509AuthorityRequest { authority_id };
                let answer = client.authorities().revoke_x509_authority(request).await;
                let answer = answer
                    .map_err(|status| client.refused_to("could not revoke X.509 authority", &status))?;
                one.all.output.print(answer.get_ref(), |answer| {
                    done(X509, "Revoked", answer.revoked_authority.as_ref())
                })
            }
        }
    }

    async fn of_jwt(self) -> Result<Report, Failure> {
        match self {
            Step::Show(all) => {
                let client = all.connect()?;
                let request = wire::GetJwtAuthorityStateRequest {};
                let answer = client.authorities().get_jwt_authority_state(request).await;
                let answer = answer.map_err(|status| client.refused(&status))?;
                all.output.print(answer.get_ref(), |answer| {
                    Ok(shown(JWT, [&answer.active, &answer.prepared, &answer.old]))
                })
            }
            Step::Prepare(all) => {
                let client = all.connect()?;
                let request = wire::PrepareJwtAuthorityRequest {};
                let answer = client.authorities().prepare_jwt_authority(request).await;
                let answer =
                    answer.map_err(|status| client.refused_to("could not prepare JWT authority", &status))?;
                all.output.print(answer.get_ref(), |answer| {
                    done(JWT, "Prepared", answer.prepared_authority.as_ref())
                })
            }
            Step::Activate(one) => {
                let (client, authority_id) = one.connect()?;
                let request = wire::ActivateJwtAuthorityRequest { authority_id };
                let answer = client.authorities().activate_jwt_authority(request).await;
                let answer = answer
                    .map_err(|status| client.refused_to("could not activate JWT authority", &status))?;
                one.all.output.print(answer.get_ref(), |answer| {
                    done(JWT, "Activated", answer.activated_authority.as_ref())
                })
            }
            Step::Taint(one) => {
                let (client, authority_id) = one.connect()?;
                let request = wire::TaintJwtAuthorityRequest { authority_id };
                let answer = client.authorities().taint_jwt_authority(request).await;
                let answer =
                    answer.map_err(|status| client.refused_to("could not taint JWT authority", &status))?;
                one.all
                    .output
                    .print(answer.get_ref(), |answer| done(JWT, "Tainted", answer.tainted_authority.as_ref()))
            }
            Step::Revoke(one) => {
                let (client, authority_id) = one.connect()?;
                let request = wire::RevokeJwtAuthorityRequest { authority_id };
                let answer = client.authorities().revoke_jwt_authority(request).await;
                let answer =
                    answer.map_err(|status| client.refused_to("could not revoke JWT authority", &status))?;
                one.all
                    .output
                    .print(answer.get_ref(), |answer| done(JWT, "Revoked", answer.revoked_authority.as_ref()))
            }
        }
    }
}

impl All {
    fn connect(&self) -> Result<Client, Failure> {
        self.output.format()?;
        self.server.connect()
    }
}

impl One {
    fn connect(&self) -> Result<(Client, String), Failure> {
        self.all.output.format()?;
        let id = given(&self.authority_id).ok_or_else(|| fail("an authority ID is required"))?;
        Ok((self.all.server.connect()?, id.to_owned()))
    }
}

/// How a kind of authority is told.
struct Kind {
    name: &'static str,
    has_upstream: bool,
}

const X509: Kind = Kind { name: "X.509", has_upstream: true };
const JWT: Kind = Kind { name: "JWT", has_upstream: false };

fn shown(kind: Kind, states: [&Option<AuthorityState>; 3]) -> Report {
    let named = [("Active", "active"), ("Prepared", "prepared"), ("Old", "old")].into_iter().zip(states);
    let parts = named.map(|((title, word), state)| {
        let body = match state {
            Some(state) => lines(&kind, state),
            None => format!("  No {word} {} authority found\n", kind.name),
        };
        format!("{title} {} authority:\n{body}", kind.name)
    });
    Report::said(parts.collect::<Vec<_>>().join("\n"))
}

fn done(kind: Kind, what: &str, state: Option<&AuthorityState>) -> Result<Report, Failure> {
    let title = format!("{what} {} authority:\n", kind.name);
    match state {
        Some(state) => Ok(Report::said(format!("{title}{}", lines(&kind, state)))),
        None => Ok(Report::said(title).failed(fail(format!(
            "internal error: expected to have {} {} authority information",
            what.to_lowercase(),
            kind.name
        )))),
    }
}

fn lines(kind: &Kind, state: &AuthorityState) -> String {
    let mut lines = format!(
        "  Authority ID: {}\n  Expires at: {}\n",
        state.authority_id,
        text::utc_time(state.expires_at)
    );
    if kind.has_upstream {
        lines += &match state.upstream_authority_subject_key_id.as_str() {
            "" => "  Upstream authority ID: No upstream authority\n".to_owned(),
            id => format!("  Upstream authority Subject Key ID: {id}\n"),
        };
    }
    lines
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn state(id: &str, upstream: &str) -> AuthorityState {
        AuthorityState {
            authority_id: id.into(),
            expires_at: 1_795_393_878,
            upstream_authority_subject_key_id: upstream.into(),
        }
    }

    #[test]
    fn authorities_are_shown_as_spire_shows_them() {
        assert_eq!(
            shown(X509, [&Some(state("6b19", "")), &None, &Some(state("a16f", "f00d"))]).out,
            "Active X.509 authority:\n  Authority ID: 6b19\n  Expires at: 2026-11-23 00:31:18 +0000 UTC\n  Upstream \
             authority ID: No upstream authority\n\nPrepared X.509 authority:\n  No prepared X.509 authority \
             found\n\nOld X.509 authority:\n  Authority ID: a16f\n  Expires at: 2026-11-23 00:31:18 +0000 UTC\n  \
             Upstream authority Subject Key ID: f00d\n"
        );
        assert_eq!(
            shown(JWT, [&Some(state("k1", "")), &Some(state("k2", "")), &None]).out,
            "Active JWT authority:\n  Authority ID: k1\n  Expires at: 2026-11-23 00:31:18 +0000 UTC\n\nPrepared JWT \
             authority:\n  Authority ID: k2\n  Expires at: 2026-11-23 00:31:18 +0000 UTC\n\nOld JWT authority:\n  No old \
             JWT authority found\n"
        );
    }

    #[test]
    fn what_was_done_is_told_with_the_authority() {
        assert_eq!(
            done(JWT, "Revoked", Some(&AuthorityState { authority_id: "k".into(), ..Default::default() }))
                .unwrap()
                .out,
            "Revoked JWT authority:\n  Authority ID: k\n  Expires at: 1970-01-01 00:00:00 +0000 UTC\n"
        );
        let nothing = done(X509, "Tainted", None).unwrap();
        assert_eq!(nothing.out, "Tainted X.509 authority:\n");
        assert_eq!(
            nothing.failure.unwrap().to_string(),
            "Error: internal error: expected to have tainted X.509 authority information"
        );
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        verb: Verb,
    }

    #[tokio::test]
    async fn an_authority_must_be_named() {
        for line in [&["", "jwt", "taint"][..], &["", "x509", "activate", "--authorityID", ""]] {
            let failure = Line::parse_from(line).verb.run().await.unwrap_err();
            assert_eq!(failure.to_string(), "Error: an authority ID is required");
        }
    }
}
