//! `federation create`, `update`, `list`, `show`, `delete` and `refresh`

mod draft;

use std::fmt::Write;

use finial_daemon::argv::text;
use finial_proto::spire::api::server::trustdomain::v1::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchDeleteFederationRelationshipResponse, BatchUpdateFederationRelationshipRequest,
    GetFederationRelationshipRequest, ListFederationRelationshipsRequest,
    ListFederationRelationshipsResponse, RefreshBundleRequest,
};
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use finial_proto::spire::api::types::{FederationRelationship, Status};
use tonic::Code;

use super::client::Server;
use super::matching::given;
use super::output::{Failure, Output, Report, counted, fail, is_ok, status_text};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Adds a relationship with another trust domain
    #[command(after_help = CREATE_HELP)]
    Create(Create),
    /// Changes a relationship
    #[command(after_help = UPDATE_HELP)]
    Update(Update),
    /// Lists the relationships
    #[command(after_help = "Examples:\n    finial-server federation list")]
    List(List),
    /// Shows one
    #[command(after_help = "Examples:\n    finial-server federation show -trustDomain other.org")]
    Show(Show),
    /// Ends one; the bundle of the trust domain stays
    #[command(after_help = "Examples:\n    finial-server federation delete -id other.org")]
    Delete(Delete),
    /// Fetches the bundle of a trust domain now
    #[command(after_help = REFRESH_HELP)]
    Refresh(Refresh),
}

const CREATE_HELP: &str = "\
An https_spiffe endpoint is verified with the bundle of its own trust domain: give that with -trustDomainBundlePath, or
set it with \"bundle set\". This server does not ask endpoints yet: it keeps relationships and shows them.

Examples:
    finial-server federation create -trustDomain other.org -bundleEndpointURL https://other.org/bundle.json \\
        -bundleEndpointProfile https_web
    finial-server federation create -trustDomain other.org -bundleEndpointURL https://other.org:8443 \\
        -bundleEndpointProfile https_spiffe -endpointSpiffeID spiffe://other.org/spire/server \\
        -trustDomainBundlePath other.json -trustDomainBundleFormat spiffe
    finial-server federation create -data relationships.json

A file for -data:
    {\"federationRelationships\": [{\"trustDomain\": \"other.org\", \"bundleEndpointURL\": \"https://other.org/\",
      \"bundleEndpointProfile\": \"https_spiffe\", \"endpointSPIFFEID\": \"spiffe://other.org/spire/server\",
      \"trustDomainBundle\": {\"keys\": [...]}, \"trustDomainBundleFormat\": \"spiffe\"}]}";

const UPDATE_HELP: &str = "\
The whole relationship is replaced; without a bundle the stored one stays.

Examples:
    finial-server federation update -trustDomain other.org -bundleEndpointURL https://other.org/new \\
        -bundleEndpointProfile https_web
    finial-server federation update -data relationships.json";

const REFRESH_HELP: &str = "\
This server does not ask bundle endpoints yet and says so; use \"bundle set\".

Examples:
    finial-server federation refresh -id other.org";

#[derive(Debug, clap::Args)]
pub struct Create {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    draft: draft::Draft,
}

#[derive(Debug, clap::Args)]
pub struct Update {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    draft: draft::Draft,
}

#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The other trust domain
    #[arg(long = "trustDomain")]
    trust_domain: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The other trust domain
    #[arg(long = "id")]
    id: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Refresh {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The other trust domain
    #[arg(long = "id")]
    id: Option<String>,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        match self {
            Verb::Create(flags) => flags.create().await,
            Verb::Update(flags) => flags.update().await,
            Verb::List(flags) => flags.list().await,
            Verb::Show(flags) => flags.show().await,
            Verb::Delete(flags) => flags.delete().await,
            Verb::Refresh(flags) => flags.refresh().await,
        }
    }
}

impl Create {
    async fn create(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let (asked, err) = self.draft.relationships()?;
        let request = BatchCreateFederationRelationshipRequest {
            federation_relationships: asked.clone(),
            output_mask: None,
        };
        let answer = client.trust_domains().batch_create_federation_relationship(request).await;
        let response = answer.map_err(|status| client.refused_to("request failed", &status))?.into_inner();
        let report = self.output.print(&response, |response| {
            let results = response.results.iter();
            let outcomes = results.map(|one| (one.status.as_ref(), one.federation_relationship.as_ref()));
            Ok(changed(outcomes, &asked, "create"))
        })?;
        Ok(Report { err: err + &report.err, ..report })
    }
}

impl Update {
    async fn update(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let (asked, err) = self.draft.relationships()?;
        let request = BatchUpdateFederationRelationshipRequest {
            federation_relationships: asked.clone(),
            ..BatchUpdateFederationRelationshipRequest::default()
        };
        let answer = client.trust_domains().batch_update_federation_relationship(request).await;
        let response = answer.map_err(|status| client.refused_to("request failed", &status))?.into_inner();
        let report = self.output.print(&response, |response| {
            let results = response.results.iter();
            let outcomes = results.map(|one| (one.status.as_ref(), one.federation_relationship.as_ref()));
            Ok(changed(outcomes, &asked, "update"))
        })?;
        Ok(Report { err: err + &report.err, ..report })
    }
}

impl List {
    async fn list(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let request = ListFederationRelationshipsRequest::default();
        let answer = client.trust_domains().list_federation_relationships(request).await;
        let list =
            answer.map_err(|status| client.refused_to("error listing federation relationship", &status))?;
        self.output.print(list.get_ref(), |list| Ok(Report::said(listed(list))))
    }
}

impl Show {
    async fn show(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let name = given(&self.trust_domain).ok_or_else(|| fail("a trust domain name is required"))?;
        let request = GetFederationRelationshipRequest { trust_domain: name.to_owned(), output_mask: None };
        let answer = client.trust_domains().get_federation_relationship(request).await;
        let found =
            answer.map_err(|status| client.refused_to("error showing federation relationship", &status))?;
        self.output.print(found.get_ref(), |found| {
            let mut out = format!("Found a federation relationship with trust domain {name}:\n\n");
            block(&mut out, found);
            Ok(Report::said(out))
        })
    }
}

impl Delete {
    async fn delete(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let id = given(&self.id).ok_or_else(|| fail("id is required"))?;
        let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec![id.to_owned()] };
        let answer = client.trust_domains().batch_delete_federation_relationship(request).await;
        let response = answer
            .map_err(|status| client.refused_to("failed to delete federation relationship", &status))?
            .into_inner();
        self.output.print(&response, was_deleted)
    }
}

impl Refresh {
    async fn refresh(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let id = given(&self.id).ok_or_else(|| fail("id is required"))?;
        let request = RefreshBundleRequest { trust_domain: id.to_owned() };
        match client.trust_domains().refresh_bundle(request).await {
            Ok(_) => {
                let status = Status { code: 0, message: "OK".to_owned() };
                self.output.print(&status, |_| Ok(Report::said("Bundle refreshed\n")))
            }
            Err(status) if status.code() == Code::NotFound => {
                let id = text::quote(id);
                Err(fail(format!("there is no federation relationship with trust domain {id}")))
            }
            Err(status) => Err(client.refused_to("failed to refresh bundle", &status)),
        }
    }
}

/// What came of a batch. The server does not repeat what it refused, so that comes out of `asked`.
fn changed<'a>(
    outcomes: impl Iterator<Item = (Option<&'a Status>, Option<&'a FederationRelationship>)>,
    asked: &[FederationRelationship],
    verb: &str,
) -> Report {
    let mut report = Report::default();
    let mut failed = Vec::new();
    for ((status, relationship), asked) in outcomes.zip(asked) {
        if is_ok(status) {
            report.out.push('\n');
            relationship.into_iter().for_each(|one| block(&mut report.out, one));
        } else {
            failed.push((status, asked));
        }
    }
    for (status, asked) in &failed {
        report.out.push('\n');
        let why = status_text(*status);
        // Writing to a string does not fail.
        let _ = writeln!(report.err, "Failed to {verb} the following federation relationship {why}:");
        block(&mut report.err, asked);
    }
    let failure = fail(format!("failed to {verb} one or more federation relationships"));
    report.failure = (!failed.is_empty()).then_some(failure);
    report
}

fn listed(list: &ListFederationRelationshipsResponse) -> String {
    let relationships = &list.federation_relationships;
    let count = counted(relationships.len(), "", "federation relationship", "federation relationships");
    let mut out = format!("Found {count}\n");
    for one in relationships {
        out.push('\n');
        block(&mut out, one);
    }
    out
}

fn block(out: &mut String, one: &FederationRelationship) {
    // Writing to a string does not fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<26}: {value}");
    };
    line("Trust domain", &one.trust_domain);
    line("Bundle endpoint URL", &one.bundle_endpoint_url);
    match &one.bundle_endpoint_profile {
        None => {}
        Some(BundleEndpointProfile::HttpsWeb(_)) => line("Bundle endpoint profile", "https_web"),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            line("Bundle endpoint profile", "https_spiffe");
            line("Endpoint SPIFFE ID", &profile.endpoint_spiffe_id);
        }
    }
}

fn was_deleted(response: &BatchDeleteFederationRelationshipResponse) -> Result<Report, Failure> {
    let result = response.results.first().cloned().unwrap_or_default();
    if is_ok(result.status.as_ref()) {
        return Ok(Report::said("federation relationship deleted.\n"));
    }
    let message = result.status.unwrap_or_default().message;
    let name = text::quote(&result.trust_domain);
    Err(fail(format!("failed to delete federation relationship {name}: {message}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relationship(name: &str) -> FederationRelationship {
        FederationRelationship {
            trust_domain: name.to_owned(),
            bundle_endpoint_url: "https://h".to_owned(),
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(Default::default())),
            trust_domain_bundle: None,
        }
    }

    /// Both streams, as SPIRE 1.15.3 fills them.
    #[test]
    fn what_failed_goes_to_the_other_stream() {
        let ok = Status { code: 0, message: "OK".to_owned() };
        let no = Status { code: 3, message: "no".to_owned() };
        let asked = [relationship("a.org"), relationship("b.org")];
        let answers = [(Some(&no), None), (Some(&ok), Some(&asked[1]))];
        let report = changed(answers.into_iter(), &asked, "create");
        let lines = |name: &str| {
            format!(
                "Trust domain              : {name}\nBundle endpoint URL       : https://h\n\
                 Bundle endpoint profile   : https_web\n"
            )
        };
        assert_eq!(report.out, format!("\n{}\n", lines("b.org")));
        let why =
            "Failed to create the following federation relationship (code: InvalidArgument, msg: \"no\"):\n";
        assert_eq!(report.err, format!("{why}{}", lines("a.org")));
        assert_eq!(report.failure, Some(fail("failed to create one or more federation relationships")));
    }
}
