//! `entry create`, `update`, `delete`, `show` and `count`

mod fields;
mod file;
mod filter;
mod show;

use std::fmt::Write;

use finial_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchCreateEntryResponse, BatchDeleteEntryRequest, BatchDeleteEntryResponse,
    BatchUpdateEntryRequest, BatchUpdateEntryResponse, CountEntriesRequest, CountEntriesResponse,
    GetEntryRequest, ListEntriesRequest, ListEntriesResponse,
};
use finial_proto::spire::api::types::{Entry, Status};

use self::fields::Fields;
use self::filter::Filter;
use super::client::{Client, Server};
use super::matching::given;
use super::output::{Failure, Output, Report, counted, fail, is_ok, status_text};

/// Entries that are asked for at once.
const PAGE: i32 = 500;

#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Verb {
    /// Creates entries
    Create(Create),
    /// Replaces entries
    Update(Update),
    /// Deletes entries
    Delete(Delete),
    /// Shows entries
    Show(Show),
    /// Counts entries
    Count(Count),
}

const CREATE_HELP: &str = "\
An entry says: a process with all of these selectors, on the nodes of this parent, gets this SPIFFE ID.
With -node it groups nodes instead: every agent with all of the selectors gets the SPIFFE ID as an alias, which other
entries can name as their parent.

Examples:
    finial-server entry create -parentID spiffe://example.org/web-nodes -spiffeID spiffe://example.org/web \\
        -selector unix:user:web -selector unix:path:/usr/bin/web -dns web.example.org -x509SVIDTTL 3600
    finial-server entry create -node -spiffeID spiffe://example.org/prod -selector k8s_psat:cluster:prod
    finial-server entry create -data entries.json

entries.json:
    {\"entries\": [{
        \"parent_id\": \"spiffe://example.org/web-nodes\",
        \"spiffe_id\": \"spiffe://example.org/web\",
        \"selectors\": [{\"type\": \"unix\", \"value\": \"user:web\"}],
        \"x509_svid_ttl\": 3600
    }]}";

const UPDATE_HELP: &str = "\
The whole entry is replaced: what is not given is emptied. Only -disableX509SVIDPrefetch and -jwtSVIDIncludeJTI keep
what the entry had when one of the two is given.

Examples:
    finial-server entry update -entryID 4fa627d0-… -parentID spiffe://example.org/web-nodes \\
        -spiffeID spiffe://example.org/web -selector unix:user:www
    finial-server entry update -data entries.json";

const DELETE_HELP: &str = "\
Examples:
    finial-server entry delete -entryID 4fa627d0-…
    echo '{\"ids\": [\"one\", \"two\"]}' | finial-server entry delete -file -";

const SHOW_HELP: &str = "\
Conditions are joined by \"and\".

Examples:
    finial-server entry show
    finial-server entry show -spiffeID spiffe://example.org/web -output json
    finial-server entry show -selector unix:user:web -matchSelectorsOn exact";

const COUNT_HELP: &str = "\
Examples:
    finial-server entry count
    finial-server entry count -parentID spiffe://example.org/web-nodes";

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE_HELP)]
pub struct Create {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    fields: Fields,
    /// An ID for the entry; the server chooses one without it
    #[arg(long = "entryID")]
    entry_id: Option<String>,
    /// Group nodes: the parent is the server, the selectors are those of nodes
    #[arg(long = "node")]
    node: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = UPDATE_HELP)]
pub struct Update {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    fields: Fields,
    /// The ID of the entry to replace
    #[arg(long = "entryID")]
    entry_id: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = DELETE_HELP)]
pub struct Delete {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    /// The ID of the entry to delete
    #[arg(long = "entryID")]
    entry_id: Option<String>,
    /// A JSON file with the IDs of several, {"ids": ["…"]}; - reads standard input
    #[arg(long = "file")]
    file: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = SHOW_HELP)]
pub struct Show {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    filter: Filter,
    /// The ID of the one entry to show
    #[arg(long = "entryID")]
    entry_id: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = COUNT_HELP)]
pub struct Count {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    filter: Filter,
}

impl Verb {
    pub async fn run(self) -> Result<Report, Failure> {
        match self {
            Verb::Create(flags) => flags.create().await,
            Verb::Update(flags) => flags.update().await,
            Verb::Delete(flags) => flags.delete().await,
            Verb::Show(flags) => flags.show().await,
            Verb::Count(flags) => flags.count().await,
        }
    }
}

impl Create {
    async fn create(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let entries = self.entries()?;
        let request = BatchCreateEntryRequest { entries: entries.clone(), output_mask: None };
        let answer = client.entries().batch_create_entry(request).await;
        let mut response = answer.map_err(|status| client.refused(&status))?.into_inner();
        for (result, asked) in response.results.iter_mut().zip(entries) {
            // The server does not say which entry it refused.
            if !is_ok(result.status.as_ref()) {
                result.entry = Some(asked);
            }
        }
        self.output.print(&response, |response| Ok(created(response)))
    }

    fn entries(&self) -> Result<Vec<Entry>, Failure> {
        match given(&self.fields.data) {
            Some(path) => file::entries(path),
            None => Ok(vec![self.fields.new_entry(given(&self.entry_id), self.node)?]),
        }
    }
}

impl Update {
    async fn update(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let mut entries = match given(&self.fields.data) {
            Some(path) => file::entries(path)?,
            None => vec![self.fields.replacement(given(&self.entry_id))?],
        };
        if given(&self.fields.data).is_none() && self.fields.names_attributes() {
            for entry in &mut entries {
                let request = GetEntryRequest { id: entry.id.clone(), output_mask: None };
                let known = client.entries().get_entry(request).await.map_err(|status| {
                    let what = "failed to fetch existing entry to merge additional attributes";
                    client.refused_to(what, &status)
                })?;
                self.fields.merge_attributes(entry, known.get_ref());
            }
        }
        let request =
            BatchUpdateEntryRequest { entries: entries.clone(), input_mask: None, output_mask: None };
        let answer = client.entries().batch_update_entry(request).await;
        let mut response = answer.map_err(|status| client.refused(&status))?.into_inner();
        for (result, asked) in response.results.iter_mut().zip(entries) {
            if !is_ok(result.status.as_ref()) {
                result.entry = Some(asked);
            }
        }
        self.output.print(&response, |response| Ok(updated(response)))
    }
}

impl Delete {
    async fn delete(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let ids = match (given(&self.file), given(&self.entry_id)) {
            (Some(path), _) => file::ids(path)?,
            (None, Some(id)) => vec![id.to_owned()],
            (None, None) => return Err(fail("an entry ID is required")),
        };
        let answer = client.entries().batch_delete_entry(BatchDeleteEntryRequest { ids }).await;
        let response = answer.map_err(|status| client.refused(&status))?.into_inner();
        self.output.print(&response, |response| Ok(deleted(response)))
    }
}

impl Show {
    async fn show(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let mut found = match given(&self.entry_id) {
            Some(_) if self.filter.names_an_entry() => {
                return Err(fail("the -entryID flag can't be combined with others"));
            }
            Some(id) => one(&client, id).await?,
            None => self.all(&client).await?,
        };
        show::sort(&mut found.entries);
        self.output.print(&found, |found| Ok(Report::said(show::found(&found.entries))))
    }

    async fn all(&self, client: &Client) -> Result<ListEntriesResponse, Failure> {
        let filter = self.filter.listing()?;
        let mut all = ListEntriesResponse::default();
        let mut page_token = String::new();
        loop {
            let filter = Some(filter.clone());
            let request = ListEntriesRequest { filter, output_mask: None, page_size: PAGE, page_token };
            let answer = client.entries().list_entries(request).await;
            let page =
                answer.map_err(|status| client.refused_to("error fetching entries", &status))?.into_inner();
            all.entries.extend(page.entries);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }
}

async fn one(client: &Client, id: &str) -> Result<ListEntriesResponse, Failure> {
    let request = GetEntryRequest { id: id.to_owned(), output_mask: None };
    let answer = client.entries().get_entry(request).await;
    let entry =
        answer.map_err(|status| client.refused_to(&format!("error fetching entry ID {id}"), &status))?;
    Ok(ListEntriesResponse { entries: vec![entry.into_inner()], next_page_token: String::new() })
}

impl Count {
    async fn count(self) -> Result<Report, Failure> {
        self.output.format()?;
        let client = self.server.connect()?;
        let request = CountEntriesRequest { filter: Some(self.filter.counting()?) };
        let answer = client.entries().count_entries(request).await;
        let count = answer.map_err(|status| client.refused(&status))?.into_inner();
        self.output.print(&count, |count| Ok(Report::said(count_text(count))))
    }
}

fn created(response: &BatchCreateEntryResponse) -> Report {
    let results = response.results.iter().map(|result| (result.status.as_ref(), result.entry.as_ref()));
    changed(results, "create")
}

fn updated(response: &BatchUpdateEntryResponse) -> Report {
    let results = response.results.iter().map(|result| (result.status.as_ref(), result.entry.as_ref()));
    changed(results, "update")
}

fn changed<'a>(results: impl Iterator<Item = (Option<&'a Status>, Option<&'a Entry>)>, verb: &str) -> Report {
    let mut report = Report::default();
    let mut any_failed = false;
    for (status, entry) in results {
        if is_ok(status) {
            entry.into_iter().for_each(|entry| show::entry(&mut report.out, entry));
        } else {
            any_failed = true;
            let why = status_text(status);
            // Writing to a string does not fail.
            let _ = writeln!(report.err, "Failed to {verb} the following entry {why}:");
            entry.into_iter().for_each(|entry| show::entry(&mut report.err, entry));
        }
    }
    report.failure = any_failed.then(|| fail(format!("failed to {verb} one or more entries")));
    report
}

fn deleted(response: &BatchDeleteEntryResponse) -> Report {
    let (gone, left): (Vec<_>, Vec<_>) =
        response.results.iter().partition(|result| is_ok(result.status.as_ref()));
    let mut report = Report::default();
    for result in &gone {
        let _ = writeln!(report.out, "Deleted entry with ID: {}", result.id);
    }
    if !gone.is_empty() {
        report.out.push_str("\n\n");
    }
    for result in &left {
        let why = status_text(result.status.as_ref());
        let _ = writeln!(report.err, "Failed to delete entry with ID {} {why}", result.id);
    }
    let (gone, left) = (gone.len(), left.len());
    let summary = match (gone, left) {
        (gone, 0) => format!("Deleted {gone} entries successfully"),
        (0, left) => format!("\n\nFailed to delete {left} entries"),
        (gone, left) => {
            format!("\n\nDeleted {gone} entries successfully, but failed to delete {left} entries")
        }
    };
    report.out.push_str(&summary);
    report.failure = (left > 0).then(|| fail("failed to delete one or more entries"));
    report
}

fn count_text(count: &CountEntriesResponse) -> String {
    format!("{}\n", counted(usize::try_from(count.count).unwrap_or(0), "registration ", "entry", "entries"))
}

#[cfg(test)]
mod tests;
