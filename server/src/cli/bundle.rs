//! `bundle show`, `list`, `set`, `delete` and `count`

pub mod format;

use std::path::Path;

use finial_daemon::argv::text;
use finial_proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use finial_proto::spire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchDeleteFederatedBundleResponse, BatchSetFederatedBundleRequest,
    BatchSetFederatedBundleResponse, CountBundlesRequest, CountBundlesResponse, GetBundleRequest,
    GetFederatedBundleRequest, ListFederatedBundlesRequest, ListFederatedBundlesResponse,
};
use finial_proto::spire::api::types::Bundle as WireBundle;

use format::Format;

use super::client::Server;
use super::matching::given;
use super::output::{Failure, Output, Report, counted, fail, is_ok};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Prints the bundle of the server's own trust domain
    #[command(after_help = SHOW_HELP)]
    Show(Show),
    /// Prints the bundles of other trust domains
    #[command(after_help = LIST_HELP)]
    List(List),
    /// Sets the bundle of another trust domain
    #[command(after_help = SET_HELP)]
    Set(Set),
    /// Deletes the bundle of another trust domain
    #[command(after_help = DELETE_HELP)]
    Delete(Delete),
    /// Counts bundles, the own one included
    #[command(after_help = "Examples:\n    finial-server bundle count")]
    Count(Count),
}

const SHOW_HELP: &str = "\
The output is what an agent takes as trust_bundle_path.

Examples:
    finial-server bundle show > bootstrap.pem
    finial-server bundle show -format spiffe";

const LIST_HELP: &str = "\
Examples:
    finial-server bundle list
    finial-server bundle list -id spiffe://other.org -format spiffe";

const SET_HELP: &str = "\
Examples:
    finial-server bundle set -id spiffe://other.org -path other.pem
    curl https://other.org/bundle.json | finial-server bundle set -id spiffe://other.org -format spiffe";

const DELETE_HELP: &str = "\
Examples:
    finial-server bundle delete -id spiffe://other.org
    finial-server bundle delete -id spiffe://other.org -mode dissociate";

#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// How the text shows the bundle: pem or spiffe (JSON with the keys for JWTs too)
    #[arg(long = "format", default_value = "pem")]
    format: String,
}

#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// Only the bundle of this trust domain
    #[arg(long = "id")]
    id: Option<String>,
    /// How the text shows a bundle: pem or spiffe (JSON with the keys for JWTs too)
    #[arg(long = "format", default_value = "pem")]
    format: String,
}

#[derive(Debug, clap::Args)]
pub struct Set {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The trust domain whose bundle it is
    #[arg(long = "id")]
    id: Option<String>,
    /// The file with the bundle; standard input without it
    #[arg(long = "path")]
    path: Option<String>,
    /// What the file holds: pem or spiffe (JSON)
    #[arg(long = "format", default_value = "pem")]
    format: String,
}

#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The trust domain whose bundle it is
    #[arg(long = "id")]
    id: Option<String>,
    /// What to do with entries that federate with it: restrict (refuse while there are any), dissociate (cut the
    /// link) or delete (delete those entries)
    #[arg(long = "mode", default_value = "restrict")]
    mode: String,
}

#[derive(Debug, clap::Args)]
pub struct Count {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        match self {
            Verb::Show(flags) => flags.show().await,
            Verb::List(flags) => flags.list().await,
            Verb::Set(flags) => flags.set().await,
            Verb::Delete(flags) => flags.delete().await,
            Verb::Count(flags) => flags.count().await,
        }
    }
}

impl Show {
    async fn show(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let answer = client.bundles().get_bundle(GetBundleRequest::default()).await;
        let bundle = answer.map_err(|status| client.refused(&status))?.into_inner();
        self.output.print(&bundle, |bundle| Ok(Report::said(Format::parse(&self.format)?.show(bundle)?)))
    }
}

impl List {
    async fn list(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        if let Some(id) = given(&self.id) {
            let request = GetFederatedBundleRequest { trust_domain: id.to_owned(), output_mask: None };
            let answer = client.bundles().get_federated_bundle(request).await;
            let bundle = answer.map_err(|status| client.refused(&status))?.into_inner();
            let shown = |bundle: &WireBundle| Format::parse(&self.format)?.show(bundle).map(Report::said);
            return self.output.print(&bundle, shown);
        }
        let answer = client.bundles().list_federated_bundles(ListFederatedBundlesRequest::default()).await;
        let bundles = answer.map_err(|status| client.refused(&status))?.into_inner();
        self.output.print(&bundles, |bundles| listed(bundles, &self.format))
    }
}

impl Set {
    async fn set(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let id = given(&self.id).ok_or_else(|| fail("id flag is required"))?;
        let format = Format::parse(&self.format)?;
        let bytes = read(given(&self.path))?;
        let (bundle, err) = format.read(id, &bytes)?;
        let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        let answer = client.bundles().batch_set_federated_bundle(request).await;
        let response = answer
            .map_err(|status| client.refused_to("failed to set federated bundle", &status))?
            .into_inner();
        let report = self.output.print(&response, was_set)?;
        Ok(Report { err, ..report })
    }
}

impl Delete {
    async fn delete(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let id = given(&self.id).ok_or_else(|| fail("id is required"))?;
        let mode = mode(&self.mode)?.into();
        let request = BatchDeleteFederatedBundleRequest { trust_domains: vec![id.to_owned()], mode };
        let answer = client.bundles().batch_delete_federated_bundle(request).await;
        let response = answer
            .map_err(|status| client.refused_to("failed to delete federated bundle", &status))?
            .into_inner();
        self.output.print(&response, was_deleted)
    }
}

impl Count {
    async fn count(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let answer = client.bundles().count_bundles(CountBundlesRequest {}).await;
        let count = answer.map_err(|status| client.refused(&status))?.into_inner();
        self.output.print(&count, |count| Ok(Report::said(count_text(count))))
    }
}

fn read(path: Option<&str>) -> Result<Vec<u8>, Failure> {
    let read = match path {
        None => format::read_at_most(std::io::stdin()),
        Some(path) => std::fs::File::open(path).and_then(format::read_at_most),
    };
    read.map_err(|error| {
        let cause = text::file_error("open", Path::new(path.unwrap_or("/dev/stdin")), &error);
        fail(format!("unable to load bundle data: {cause}"))
    })
}

fn mode(given: &str) -> Result<Mode, Failure> {
    match given {
        "" | "restrict" => Ok(Mode::Restrict),
        "dissociate" => Ok(Mode::Dissociate),
        "delete" => Ok(Mode::Delete),
        _ => Err(fail(format!("unsupported mode {}", text::quote(given)))),
    }
}

fn listed(bundles: &ListFederatedBundlesResponse, format: &str) -> Result<Report, Failure> {
    const STARS: &str = "****************************************";
    let mut blocks = Vec::new();
    for bundle in &bundles.bundles {
        let shown = Format::parse(format)?.show(bundle)?;
        blocks.push(format!("{STARS}\n* {}\n{STARS}\n{shown}", bundle.trust_domain));
    }
    Ok(Report::said(blocks.join("\n")))
}

fn was_set(response: &BatchSetFederatedBundleResponse) -> Result<Report, Failure> {
    let result = response.results.first().cloned().unwrap_or_default();
    if is_ok(result.status.as_ref()) {
        return Ok(Report::said("bundle set.\n"));
    }
    let message = result.status.unwrap_or_default().message;
    Err(fail(format!("failed to set federated bundle: {message}")))
}

fn was_deleted(response: &BatchDeleteFederatedBundleResponse) -> Result<Report, Failure> {
    let result = response.results.first().cloned().unwrap_or_default();
    if is_ok(result.status.as_ref()) {
        return Ok(Report::said("bundle deleted.\n"));
    }
    let message = result.status.unwrap_or_default().message;
    let name = text::quote(&result.trust_domain);
    Err(fail(format!("failed to delete federated bundle {name}: {message}")))
}

fn count_text(count: &CountBundlesResponse) -> String {
    format!("{}\n", counted(usize::try_from(count.count).unwrap_or(0), "", "bundle", "bundles"))
}

#[cfg(test)]
mod tests;
