//! `spire.api.server.entry.v1.Entry`: registration entries, for operators and for agents.

use std::sync::Arc;

use finial_identity::entry::Entry as Registration;
use finial_identity::trust_domain::TrustDomain;
use finial_proto::spire::api::server::entry::v1 as wire;
use finial_proto::spire::api::server::entry::v1::entry_server::Entry;
use finial_proto::spire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::access::audit::{Others, Subject};
use crate::api::convert;
use crate::api::gate::Call;
use crate::api::status::{self, Refusal};
use crate::entries::authorized::{self, AuthorizedSet};
use crate::entries::feed::Feed;
use crate::entries::new_entry::{self, Action, EntryFault, Stage};
use crate::store::entries::ListEntries;
use crate::store::{Store, StoreError};

/// Entries in one message of an incremental sync. SPIRE's agents rely on no number, only on messages below 4 MiB.
const SYNC_PAGE: usize = 500;

/// The service.
pub struct Entries {
    pub trust_domain: TrustDomain,
    pub store: Store,
    pub feed: Feed,
}

#[tonic::async_trait]
impl Entry for Entries {
    async fn count_entries(
        &self,
        request: Request<wire::CountEntriesRequest>,
    ) -> Result<Response<wire::CountEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let filter = request.into_inner().filter.map(|f| wire::list_entries_request::Filter {
            by_spiffe_id: f.by_spiffe_id,
            by_parent_id: f.by_parent_id,
            by_selectors: f.by_selectors,
            by_federates_with: f.by_federates_with,
            by_hint: f.by_hint,
            by_downstream: f.by_downstream,
        });
        let subject = filter_subject(filter.as_ref());
        let work = async {
            let filter = self.read_filter(filter)?;
            let count = self.store.entries().count(&filter).await;
            let count = count.map_err(|e| Refusal::shown(Code::Internal, "failed to count entries", &e))?;
            Ok(wire::CountEntriesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
        };
        call.answer(|| subject, work).await
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let subject = filter_subject(request.filter.as_ref());
        let work = async {
            let mut list = self.read_filter(request.filter)?;
            list.page = convert::read_page(request.page_size, request.page_token);
            let page = self.store.entries().list(&list).await;
            let page = page.map_err(|e| Refusal::shown(Code::Internal, "failed to list entries", &e))?;
            let mask = request.output_mask.as_ref();
            let entries = page.items.iter().map(|entry| convert::entry(entry, mask)).collect();
            Ok(wire::ListEntriesResponse { entries, next_page_token: page.next_token })
        };
        call.answer(|| subject, work).await
    }

    async fn get_entry(
        &self,
        request: Request<wire::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let call = Call::of(&request)?;
        let wire::GetEntryRequest { id, output_mask } = request.into_inner();
        let subject = || Subject { entry_id: some(&id), ..Subject::default() };
        let work = async {
            if id.is_empty() {
                return Err(Refusal::invalid("missing ID"));
            }
            let entry = self.store.entries().get(id.as_str()).await;
            let entry = entry.map_err(|e| Refusal::shown(Code::Internal, "failed to fetch entry", &e))?;
            let entry = entry.ok_or_else(|| Refusal::not_found("entry not found"))?;
            Ok(convert::entry(&entry, output_mask.as_ref()))
        };
        call.answer(subject, work).await
    }

    async fn batch_create_entry(
        &self,
        request: Request<wire::BatchCreateEntryRequest>,
    ) -> Result<Response<wire::BatchCreateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchCreateEntryRequest { entries, output_mask } = request.into_inner();
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            let subject = entry_subject(&entry, None);
            let (status, entry) = match self.create(entry).await.map_err(|refusal| refusal.about(&subject)) {
                Ok((status, entry)) => (status, Some(convert::entry(&entry, output_mask.as_ref()))),
                Err(refusal) => (refusal.into(), None),
            };
            call.audit_item(&status, || subject);
            results.push(wire::batch_create_entry_response::Result { status: Some(status), entry });
        }
        self.feed.changed().await;
        Ok(Response::new(wire::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<wire::BatchUpdateEntryRequest>,
    ) -> Result<Response<wire::BatchUpdateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let wire::BatchUpdateEntryRequest { entries, input_mask, output_mask } = request.into_inner();
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            let subject = entry_subject(&entry, input_mask.as_ref());
            let (status, entry) = match self
                .update(entry, input_mask.as_ref())
                .await
                .map_err(|refusal| refusal.about(&subject))
            {
                Ok(entry) => (status::ok(), Some(convert::entry(&entry, output_mask.as_ref()))),
                Err(refusal) => (refusal.into(), None),
            };
            call.audit_item(&status, || subject);
            results.push(wire::batch_update_entry_response::Result { status: Some(status), entry });
        }
        self.feed.changed().await;
        Ok(Response::new(wire::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<wire::BatchDeleteEntryRequest>,
    ) -> Result<Response<wire::BatchDeleteEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let mut results = Vec::new();
        for id in request.into_inner().ids {
            let subject = || Subject { entry_id: some(&id), ..Subject::default() };
            let status = match self.delete(&id).await {
                Ok(()) => status::ok(),
                Err(refusal) => refusal.about(&subject()).into(),
            };
            call.audit_item(&status, subject);
            results.push(wire::batch_delete_entry_response::Result { status: Some(status), id });
        }
        self.feed.changed().await;
        Ok(Response::new(wire::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<wire::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<wire::GetAuthorizedEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let mask = request.into_inner().output_mask;
        let work = async {
            let set = self.authorized(&call)?;
            let entries = set.entries().iter().map(|entry| convert::entry(entry, mask.as_ref())).collect();
            Ok(wire::GetAuthorizedEntriesResponse { entries })
        };
        call.answer(Subject::default, work).await
    }

    type SyncAuthorizedEntriesStream = ReceiverStream<Result<wire::SyncAuthorizedEntriesResponse, Status>>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<wire::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let call = Call::of(&request)?;
        let set = self.authorized(&call)?;
        let requests = request.into_inner();
        // One message at a time: a slow agent holds one page, not all of them.
        let (answers, stream) = mpsc::channel(1);
        let work = async move {
            let ended = sync(set, requests, &answers).await;
            call.audit_stream(&ended, Subject::default);
            if let Err(refusal) = ended {
                // Fails when the agent is gone.
                let _ = answers.send(Err(refusal.into())).await;
            }
        };
        tokio::spawn(work.in_current_span());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Entries {
    fn authorized(&self, call: &Call) -> Result<AuthorizedSet, Refusal> {
        Ok(authorized::for_agent(&self.feed.snapshot(), &call.agent_id()?))
    }

    async fn create(&self, entry: types::Entry) -> Result<(types::Status, Registration), Refusal> {
        let draft = convert::read_entry(entry);
        let entry =
            new_entry::check(draft, &self.trust_domain).map_err(|fault| refused(&fault, Action::Create))?;
        let created = self.store.entries().create(entry).await;
        let created = created.map_err(|error| failed("failed to create entry", &error))?;
        let status = if created.existing {
            types::Status {
                code: Code::AlreadyExists as i32,
                message: "similar entry already exists".to_owned(),
            }
        } else {
            status::ok()
        };
        Ok((status, created.entry))
    }

    async fn update(
        &self,
        entry: types::Entry,
        mask: Option<&types::EntryMask>,
    ) -> Result<Registration, Refusal> {
        let mask = convert::read_entry_mask(mask);
        let draft = convert::read_entry(entry);
        let id = draft.id.clone();
        let update = new_entry::check_update(draft, &mask, &self.trust_domain)
            .map_err(|fault| refused(&fault, Action::Update))?;
        let updated = self.store.entries().update(id, update).await;
        updated.map_err(|error| failed("failed to update entry", &error))
    }

    async fn delete(&self, id: &str) -> Result<(), Refusal> {
        if id.is_empty() {
            return Err(Refusal::invalid("missing entry ID"));
        }
        match self.store.entries().delete(id).await {
            Ok(()) => Ok(()),
            Err(StoreError::NotFound(_)) => Err(Refusal::not_found("entry not found")),
            Err(error) => Err(Refusal::shown(Code::Internal, "failed to delete entry", &error)),
        }
    }

    fn read_filter(
        &self,
        filter: Option<wire::list_entries_request::Filter>,
    ) -> Result<ListEntries, Refusal> {
        let Some(filter) = filter else { return Ok(ListEntries::default()) };
        let own = &self.trust_domain;
        let parent_id = filter.by_parent_id.map(|id| convert::read_member(Some(id), own)).transpose();
        let parent_id = parent_id.map_err(|e| Refusal::invalid_because("malformed parent ID filter", &e))?;
        let spiffe_id = filter.by_spiffe_id.map(|id| convert::read_workload(Some(id), own)).transpose();
        let spiffe_id = spiffe_id.map_err(|e| Refusal::invalid_because("malformed SPIFFE ID filter", &e))?;
        let selectors = filter.by_selectors.map(read_selector_filter).transpose()?;
        let federates_with = filter.by_federates_with.map(read_federation_filter).transpose()?;
        Ok(ListEntries {
            spiffe_id,
            parent_id,
            hint: filter.by_hint.filter(|hint| !hint.is_empty()),
            // False filters nothing; SPIRE's command line always sends the field.
            downstream: filter.by_downstream.unwrap_or(false),
            selectors,
            federates_with,
            page: None,
        })
    }
}

type SelectorFilter = (finial_identity::selector::SelectorMatch, Vec<finial_identity::selector::Selector>);
type FederationFilter = (finial_identity::selector::SelectorMatch, Vec<TrustDomain>);

fn read_selector_filter(filter: types::SelectorMatch) -> Result<SelectorFilter, Refusal> {
    const WHAT: &str = "malformed selectors filter";
    let selectors = convert::read_selectors(filter.selectors);
    let selectors = selectors.map_err(|e| Refusal::invalid_because(WHAT, &e))?;
    if selectors.is_empty() {
        return Err(Refusal::invalid("malformed selectors filter: empty selector set"));
    }
    let matching = convert::read_match(filter.r#match).map_err(|e| Refusal::invalid_because(WHAT, &e))?;
    Ok((matching, selectors))
}

fn read_federation_filter(filter: types::FederatesWithMatch) -> Result<FederationFilter, Refusal> {
    const WHAT: &str = "malformed federates with filter";
    let domains: Result<Vec<_>, _> = filter.trust_domains.iter().map(|td| TrustDomain::parse(td)).collect();
    let domains = domains.map_err(|e| Refusal::invalid_because(WHAT, &e))?;
    if domains.is_empty() {
        return Err(Refusal::invalid("malformed federates with filter: empty trust domain set"));
    }
    let matching = convert::read_match(filter.r#match).map_err(|e| Refusal::invalid_because(WHAT, &e))?;
    Ok((matching, domains))
}

/// Few entries go in one message. Of many, first the revisions go, then those that the agent asks for.
async fn sync(
    set: AuthorizedSet,
    mut requests: Streaming<wire::SyncAuthorizedEntriesRequest>,
    answers: &mpsc::Sender<Result<wire::SyncAuthorizedEntriesResponse, Status>>,
) -> Result<(), Refusal> {
    let first = match requests.message().await {
        Ok(Some(first)) => first,
        Ok(None) => return Err(Refusal::invalid("failed to receive request from stream: EOF")),
        Err(status) => return Err(Refusal::from_stream(status)),
    };
    if !first.ids.is_empty() {
        return Err(Refusal::invalid("specifying IDs on initial request is not supported"));
    }
    let mask = first.output_mask;
    if mask.as_ref().is_some_and(|mask| !mask.revision_number) {
        return Err(Refusal::invalid("revision number cannot be masked"));
    }
    let entries = set.entries();
    let whole = |entries: &[Arc<Registration>], more| wire::SyncAuthorizedEntriesResponse {
        entry_revisions: Vec::new(),
        entries: entries.iter().map(|entry| convert::entry(entry, mask.as_ref())).collect(),
        more,
    };
    if entries.len() <= SYNC_PAGE {
        let _ = answers.send(Ok(whole(entries, false))).await;
        return Ok(());
    }
    let mut pages = entries.chunks(SYNC_PAGE).peekable();
    while let Some(page) = pages.next() {
        let revision = |entry: &Arc<Registration>| wire::EntryRevision {
            id: entry.id.clone(),
            revision_number: entry.revision_number,
            created_at: entry.created_at,
        };
        let answer = wire::SyncAuthorizedEntriesResponse {
            entry_revisions: page.iter().map(revision).collect(),
            entries: Vec::new(),
            more: pages.peek().is_some(),
        };
        if answers.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
    }
    loop {
        // The agent closes its side, or goes away, when it has what it wants.
        let Ok(Some(wanted)) = requests.message().await else { return Ok(()) };
        let mut ids = wanted.ids;
        ids.sort_unstable();
        let find = |id: &String| entries.binary_search_by(|entry| entry.id.cmp(id)).ok();
        let found: Vec<Arc<Registration>> =
            ids.iter().filter_map(find).map(|at| entries[at].clone()).collect();
        // A full page is followed by another, be it empty.
        let mut rest = found.as_slice();
        loop {
            let more = rest.len() > SYNC_PAGE;
            let (page, after) = rest.split_at(rest.len().min(SYNC_PAGE));
            if answers.send(Ok(whole(page, more))).await.is_err() {
                return Ok(());
            }
            if !more {
                break;
            }
            rest = after;
        }
    }
}

fn refused(fault: &EntryFault, action: Action) -> Refusal {
    let code = match fault.stage() {
        Stage::Conversion | Stage::Validation => Code::InvalidArgument,
        Stage::Constraint => Code::AlreadyExists,
    };
    Refusal::with_code(code, &fault.message(action))
}

fn failed(what: &str, error: &StoreError) -> Refusal {
    Refusal::shown(status::code_of(error), what, error)
}

fn filter_subject(filter: Option<&wire::list_entries_request::Filter>) -> Subject {
    let mut subject = Subject::default();
    let Some(filter) = filter else { return subject };
    subject.spiffe_id = filter.by_spiffe_id.as_ref().map(convert::id_text);
    subject.parent_id = filter.by_parent_id.as_ref().map(convert::id_text);
    if let Some(by) = &filter.by_selectors {
        subject.others.add("by_selector_match", by.r#match().as_str_name());
        subject.others.add("by_selectors", convert::selectors_text(&by.selectors));
    }
    if let Some(by) = &filter.by_federates_with {
        subject.others.add("federates_with_match", by.r#match().as_str_name());
        subject.federates_with = Some(by.trust_domains.join(","));
    }
    subject.downstream = filter.by_downstream;
    if let Some(hint) = &filter.by_hint {
        subject.others.add("hint", hint);
    }
    subject
}

fn entry_subject(entry: &types::Entry, mask: Option<&types::EntryMask>) -> Subject {
    let mask = mask.unwrap_or(&convert::ALL_OF_ENTRY);
    let list = |wanted: bool, items: &[String]| (wanted && !items.is_empty()).then(|| items.join(","));
    let mut others = Others::default();
    if mask.revision_number {
        others.add("revision_number", entry.revision_number);
    }
    if mask.store_svid {
        others.add("store_svid", entry.store_svid);
    }
    if mask.hint {
        others.add("hint", &entry.hint);
    }
    if mask.created_at {
        others.add("created_at", entry.created_at);
    }
    Subject {
        entry_id: some(&entry.id),
        spiffe_id: entry.spiffe_id.as_ref().filter(|_| mask.spiffe_id).map(convert::id_text),
        parent_id: entry.parent_id.as_ref().filter(|_| mask.parent_id).map(convert::id_text),
        selectors: mask.selectors.then(|| convert::selectors_text(&entry.selectors)),
        x509_svid_ttl: mask.x509_svid_ttl.then_some(entry.x509_svid_ttl),
        jwt_svid_ttl: mask.jwt_svid_ttl.then_some(entry.jwt_svid_ttl),
        federates_with: list(mask.federates_with, &entry.federates_with),
        dns_name: list(mask.dns_names, &entry.dns_names),
        admin: mask.admin.then_some(entry.admin),
        downstream: mask.downstream.then_some(entry.downstream),
        expires_at: mask.expires_at.then_some(entry.expires_at),
        others,
        ..Subject::default()
    }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}
