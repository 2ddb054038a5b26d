use finial_proto::spire::api::server::entry::v1 as wire;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;

use super::*;

const AGENT: &str = "/spire/agent/x";

fn filter() -> wire::list_entries_request::Filter {
    wire::list_entries_request::Filter::default()
}

async fn list(server: &Server, filter: wire::list_entries_request::Filter) -> Result<Vec<String>, Status> {
    let request = wire::ListEntriesRequest { filter: Some(filter), ..Default::default() };
    let answer = server.entries().list_entries(request).await?.into_inner();
    assert_eq!(answer.next_page_token, "", "no page was asked for");
    Ok(answer.entries.into_iter().map(|entry| entry.id).collect())
}

#[tokio::test(start_paused = true)]
async fn every_fault_of_an_entry_has_its_text() {
    let server = Server::start().await;
    let good = || entry(AGENT, "/w", &["a:1"]);
    let cases: Vec<(types::Entry, Code, &str)> = vec![
        (
            types::Entry { parent_id: None, ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid parent ID: request must specify SPIFFE ID",
        ),
        (
            types::Entry { parent_id: id(""), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid parent ID: \"spiffe://example.org\" is not a member of trust domain \"example.org\"; path is empty",
        ),
        (
            types::Entry {
                parent_id: Some(types::Spiffeid { trust_domain: "other.org".into(), path: "/x".into() }),
                ..good()
            },
            Code::InvalidArgument,
            "failed to convert entry: invalid parent ID: \"spiffe://other.org/x\" is not a member of trust domain \"example.org\"",
        ),
        (
            types::Entry { spiffe_id: None, ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid spiffe ID: request must specify SPIFFE ID",
        ),
        (
            types::Entry { spiffe_id: id("x"), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid spiffe ID: path must have a leading slash",
        ),
        (
            types::Entry { spiffe_id: id("/a//b"), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid spiffe ID: path cannot contain empty segments",
        ),
        (
            types::Entry { spiffe_id: id("/a/"), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid spiffe ID: path cannot have a trailing slash",
        ),
        (
            types::Entry { spiffe_id: id("/../a"), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid spiffe ID: path cannot contain dot segments",
        ),
        (
            types::Entry { spiffe_id: id("/ä"), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid spiffe ID: path segment characters are limited to letters, numbers, dots, dashes, and underscores",
        ),
        (
            types::Entry { spiffe_id: id("/spire/server"), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid spiffe ID: \"spiffe://example.org/spire/server\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace",
        ),
        (
            types::Entry { selectors: vec![], ..good() },
            Code::InvalidArgument,
            "failed to convert entry: selector list is empty",
        ),
        (
            types::Entry {
                selectors: vec![types::Selector { r#type: "".into(), value: "1".into() }],
                ..good()
            },
            Code::InvalidArgument,
            "failed to convert entry: missing selector type",
        ),
        (
            types::Entry {
                selectors: vec![types::Selector { r#type: "a:b".into(), value: "1".into() }],
                ..good()
            },
            Code::InvalidArgument,
            "failed to convert entry: selector type contains ':'",
        ),
        (
            types::Entry {
                selectors: vec![types::Selector { r#type: "a".into(), value: "".into() }],
                ..good()
            },
            Code::InvalidArgument,
            "failed to convert entry: missing selector value",
        ),
        (
            types::Entry { dns_names: vec!["a..b".into()], ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid DNS name: ",
        ),
        (
            types::Entry { federates_with: vec!["UPPER".into()], ..good() },
            Code::InvalidArgument,
            "failed to convert entry: invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        ),
        (
            types::Entry { hint: "h".repeat(1025), ..good() },
            Code::InvalidArgument,
            "failed to convert entry: hint is too long, max length is 1024 characters",
        ),
        (
            types::Entry { x509_svid_ttl: -1, ..good() },
            Code::InvalidArgument,
            "failed to create entry: datastore-validation: invalid registration entry: X509SvidTtl is not set",
        ),
        (
            types::Entry { jwt_svid_ttl: -1, ..good() },
            Code::InvalidArgument,
            "failed to create entry: datastore-validation: invalid registration entry: JwtSvidTtl is not set",
        ),
        (
            types::Entry { id: "x".repeat(256), ..good() },
            Code::InvalidArgument,
            "failed to create entry: datastore-validation: invalid registration entry: entry ID too long",
        ),
        (
            types::Entry { id: "a b".into(), ..good() },
            Code::InvalidArgument,
            "failed to create entry: datastore-validation: invalid registration entry: entry ID contains invalid characters",
        ),
        (
            types::Entry { store_svid: true, selectors: vec![selector("a:1"), selector("b:1")], ..good() },
            Code::InvalidArgument,
            "failed to create entry: datastore-validation: invalid registration entry: selector types must be the same when store SVID is enabled",
        ),
        (
            types::Entry { federates_with: vec!["other.org".into()], ..good() },
            Code::Internal,
            "failed to create entry: unable to find federated bundle \"spiffe://other.org\"",
        ),
        (
            types::Entry { selectors: vec![selector("a:1"), selector("a:1")], ..good() },
            Code::AlreadyExists,
            "failed to create entry: datastore-sql: UNIQUE constraint failed: ",
        ),
    ];
    let request = wire::BatchCreateEntryRequest {
        entries: cases.iter().map(|(entry, ..)| entry.clone()).collect(),
        output_mask: None,
    };
    let results = server.entries().batch_create_entry(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), cases.len());
    for (result, (_, code, text)) in results.iter().zip(&cases) {
        let status = result.status.as_ref().unwrap();
        assert_eq!(status.code, *code as i32, "{text}: {status:?}");
        if text.ends_with(": ") {
            assert!(status.message.starts_with(text), "{status:?}");
        } else {
            assert_eq!(status.message, *text);
        }
        assert_eq!(result.entry, None, "{text}");
    }
    let count = server.entries().count_entries(wire::CountEntriesRequest::default()).await.unwrap();
    assert_eq!(count.into_inner().count, 0, "nothing was kept");
}

#[tokio::test(start_paused = true)]
async fn a_similar_entry_is_returned_and_left_alone() {
    let server = Server::start().await;
    let first = server.create(vec![entry(AGENT, "/w", &["a:1", "b:2"])]).await.remove(0);
    let other = types::Entry { hint: "changed".into(), ..entry(AGENT, "/w", &["b:2", "a:1"]) };
    let taken = types::Entry { id: first.id.clone(), ..entry(AGENT, "/v", &["a:1"]) };
    let request = wire::BatchCreateEntryRequest { entries: vec![other, taken], output_mask: None };
    let results = server.entries().batch_create_entry(request).await.unwrap().into_inner().results;
    let status = results[0].status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (6, "similar entry already exists"));
    assert_eq!(results[0].entry.as_ref(), Some(&first));
    let status = results[1].status.as_ref().unwrap();
    assert_eq!(status.code, 6);
    assert!(
        status.message.starts_with("failed to create entry: datastore-sql: UNIQUE constraint"),
        "{status:?}"
    );
    assert_eq!(results[1].entry, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_created_is_what_is_read() {
    let server = Server::start().await;
    let whole = types::Entry {
        id: "my-own.id_1".into(),
        x509_svid_ttl: 60,
        jwt_svid_ttl: 30,
        admin: true,
        downstream: true,
        expires_at: 1_890_000_000,
        dns_names: vec!["b.example".into(), "*.a.example".into()],
        hint: "hint".into(),
        additional_attributes: Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }),
        revision_number: 77,
        created_at: 77,
        ..entry(AGENT, "/w", &["a:1"])
    };
    let created = server.create(vec![whole.clone()]).await.remove(0);
    assert_eq!(created, types::Entry { revision_number: 0, created_at: server.clock.unix(), ..whole });
    let get = wire::GetEntryRequest { id: created.id.clone(), output_mask: None };
    assert_eq!(server.entries().get_entry(get).await.unwrap().into_inner(), created);
    let mask = types::EntryMask { dns_names: true, admin: true, ..Default::default() };
    let get = wire::GetEntryRequest { id: created.id.clone(), output_mask: Some(mask) };
    let masked = server.entries().get_entry(get).await.unwrap().into_inner();
    let expected = types::Entry {
        id: created.id.clone(),
        dns_names: created.dns_names.clone(),
        admin: true,
        ..Default::default()
    };
    assert_eq!(masked, expected);
}

#[tokio::test(start_paused = true)]
async fn updates_take_what_the_mask_names() {
    let server = Server::start().await;
    let created = server
        .create(vec![types::Entry { hint: "old".into(), ..entry(AGENT, "/w", &["a:1"]) }])
        .await
        .remove(0);
    let update = |entry, input_mask| wire::BatchUpdateEntryRequest {
        entries: vec![entry],
        input_mask,
        output_mask: None,
    };
    let draft =
        types::Entry { id: created.id.clone(), hint: "new".into(), x509_svid_ttl: 9, ..Default::default() };
    let mask = types::EntryMask { hint: true, ..Default::default() };
    let result = server
        .entries()
        .batch_update_entry(update(draft, Some(mask)))
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    assert_eq!(result.status.unwrap().message, "OK");
    let expected = types::Entry { hint: "new".into(), revision_number: 1, ..created.clone() };
    assert_eq!(result.entry.unwrap(), expected);

    // Without a mask everything is replaced, and the revision grows though nothing changes.
    let result = server
        .entries()
        .batch_update_entry(update(expected.clone(), None))
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    assert_eq!(result.entry.unwrap(), types::Entry { revision_number: 2, ..expected.clone() });

    for (draft, code, text) in [
        (
            types::Entry { id: "missing".into(), ..entry(AGENT, "/w", &["a:1"]) },
            Code::NotFound,
            "failed to update entry",
        ),
        (
            types::Entry { selectors: vec![], ..expected.clone() },
            Code::InvalidArgument,
            "failed to convert entry: selector list is empty",
        ),
        (
            types::Entry { x509_svid_ttl: -1, ..expected.clone() },
            Code::InvalidArgument,
            "failed to update entry: datastore-validation: invalid registration entry: X509SvidTtl is not set",
        ),
        (
            types::Entry { federates_with: vec!["other.org".into()], ..expected.clone() },
            Code::Internal,
            "failed to update entry: unable to find federated bundle \"spiffe://other.org\"",
        ),
    ] {
        let result = server
            .entries()
            .batch_update_entry(update(draft, None))
            .await
            .unwrap()
            .into_inner()
            .results
            .remove(0);
        let status = result.status.unwrap();
        assert_eq!((status.code, status.message.as_str()), (code as i32, text));
        assert_eq!(result.entry, None);
    }
}

#[tokio::test(start_paused = true)]
async fn get_and_delete_know_what_is_missing() {
    let server = Server::start().await;
    let created = server.create(vec![entry(AGENT, "/w", &["a:1"])]).await.remove(0);
    let get = |id: &str| wire::GetEntryRequest { id: id.into(), output_mask: None };
    assert_refused(server.entries().get_entry(get("")).await, Code::InvalidArgument, "missing ID");
    assert_refused(server.entries().get_entry(get("x")).await, Code::NotFound, "entry not found");
    let ids = vec![String::new(), "x".to_owned(), created.id.clone(), created.id.clone()];
    let delete = wire::BatchDeleteEntryRequest { ids: ids.clone() };
    let results = server.entries().batch_delete_entry(delete).await.unwrap().into_inner().results;
    let statuses: Vec<_> = results
        .iter()
        .map(|r| (r.status.as_ref().unwrap().code, r.status.as_ref().unwrap().message.as_str()))
        .collect();
    assert_eq!(
        statuses,
        [(3, "missing entry ID"), (5, "entry not found"), (0, "OK"), (5, "entry not found")]
    );
    assert_eq!(results.into_iter().map(|r| r.id).collect::<Vec<_>>(), ids);
}

#[tokio::test(start_paused = true)]
async fn filters_find_what_they_say() {
    let server = Server::start().await;
    let entries = vec![
        types::Entry { id: "1".into(), hint: "h".into(), ..entry(AGENT, "/a", &["s:1"]) },
        types::Entry { id: "2".into(), downstream: true, ..entry(AGENT, "/b", &["s:1", "s:2"]) },
        types::Entry { id: "3".into(), ..entry("/spire/agent/y", "/a", &["s:3"]) },
    ];
    server.create(entries).await;
    let selectors = |texts: &[&str], mode: i32| {
        let selectors = texts.iter().map(|text| selector(text)).collect();
        wire::list_entries_request::Filter {
            by_selectors: Some(types::SelectorMatch { selectors, r#match: mode }),
            ..filter()
        }
    };
    for (filter, expected) in [
        (filter(), vec!["1", "2", "3"]),
        (wire::list_entries_request::Filter { by_spiffe_id: id("/a"), ..filter() }, vec!["1", "3"]),
        (wire::list_entries_request::Filter { by_parent_id: id(AGENT), ..filter() }, vec!["1", "2"]),
        (wire::list_entries_request::Filter { by_hint: Some("h".into()), ..filter() }, vec!["1"]),
        (wire::list_entries_request::Filter { by_downstream: Some(true), ..filter() }, vec!["2"]),
        (wire::list_entries_request::Filter { by_downstream: Some(false), ..filter() }, vec!["1", "2", "3"]),
        (selectors(&["s:1"], 0), vec!["1"]),
        (selectors(&["s:1", "s:3"], 1), vec!["1", "3"]),
        (selectors(&["s:1"], 2), vec!["1", "2"]),
        (selectors(&["s:2", "s:3"], 3), vec!["2", "3"]),
    ] {
        assert_eq!(list(&server, filter.clone()).await.unwrap(), expected, "{filter:?}");
        let counted = wire::count_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        };
        let request = wire::CountEntriesRequest { filter: Some(counted) };
        let count = server.entries().count_entries(request).await.unwrap().into_inner().count;
        assert_eq!(count, i32::try_from(expected.len()).unwrap());
    }
    let federates = |trust_domains: &[&str]| {
        let trust_domains = trust_domains.iter().map(|td| (*td).to_owned()).collect();
        let by = types::FederatesWithMatch { trust_domains, r#match: 2 };
        wire::list_entries_request::Filter { by_federates_with: Some(by), ..filter() }
    };
    for (filter, text) in [
        (selectors(&[], 0), "malformed selectors filter: empty selector set"),
        (federates(&[]), "malformed federates with filter: empty trust domain set"),
        (
            federates(&["X"]),
            "malformed federates with filter: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        ),
        (selectors(&["s:1"], 9), "malformed selectors filter: unhandled match behavior 9"),
        (
            wire::list_entries_request::Filter { by_spiffe_id: id("/spire/x"), ..filter() },
            "malformed SPIFFE ID filter: \"spiffe://example.org/spire/x\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace",
        ),
        (
            wire::list_entries_request::Filter { by_parent_id: id(""), ..filter() },
            "malformed parent ID filter: \"spiffe://example.org\" is not a member of trust domain \"example.org\"; path is empty",
        ),
    ] {
        assert_refused(list(&server, filter).await, Code::InvalidArgument, text);
    }
}

#[tokio::test(start_paused = true)]
async fn pages_end_with_an_empty_one() {
    let server = Server::start().await;
    server.create((0..5).map(|i| entry(AGENT, &format!("/w{i}"), &["s:1"])).collect()).await;
    let (mut token, mut sizes) = (String::new(), Vec::new());
    loop {
        let request = wire::ListEntriesRequest { page_size: 2, page_token: token, ..Default::default() };
        let page = server.entries().list_entries(request).await.unwrap().into_inner();
        sizes.push(page.entries.len());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [2, 2, 1, 0]);
    let bad = wire::ListEntriesRequest { page_size: 2, page_token: "x".into(), ..Default::default() };
    let text = "failed to list entries: could not parse token 'x'";
    assert_refused(server.entries().list_entries(bad).await, Code::Internal, text);
    for size in [0, -1, i32::MAX] {
        let request = wire::ListEntriesRequest { page_size: size, ..Default::default() };
        assert_eq!(server.entries().list_entries(request).await.unwrap().into_inner().entries.len(), 5);
    }
}

async fn sync(
    agent: &Agent,
    requests: Vec<wire::SyncAuthorizedEntriesRequest>,
) -> Result<Vec<wire::SyncAuthorizedEntriesResponse>, Status> {
    let mut client = EntryClient::new(agent.channel.clone());
    let mut answers = client.sync_authorized_entries(futures::stream::iter(requests)).await?.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer);
    }
    Ok(all)
}

#[tokio::test(start_paused = true)]
async fn few_entries_are_synced_in_one_message() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let first = wire::SyncAuthorizedEntriesRequest::default();
    let empty = sync(&agent, vec![first.clone()]).await.unwrap();
    assert_eq!(empty, [wire::SyncAuthorizedEntriesResponse::default()]);

    let parent = agent.id.strip_prefix("spiffe://example.org").unwrap();
    let created =
        server.create(vec![entry(parent, "/w", &["s:1"]), entry("/spire/agent/other", "/v", &["s:1"])]).await;
    let all = sync(&agent, vec![first]).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].entries, created[..1]);
    assert!(!all[0].more && all[0].entry_revisions.is_empty());

    let mask = types::EntryMask { revision_number: true, hint: true, ..Default::default() };
    let masked =
        sync(&agent, vec![wire::SyncAuthorizedEntriesRequest { output_mask: Some(mask), ids: vec![] }])
            .await
            .unwrap();
    assert_eq!(masked[0].entries, [types::Entry { id: created[0].id.clone(), ..Default::default() }]);

    let get = wire::GetAuthorizedEntriesRequest { output_mask: Some(mask) };
    let got = EntryClient::new(agent.channel.clone()).get_authorized_entries(get).await.unwrap().into_inner();
    assert_eq!(got.entries, masked[0].entries);

    let ids = wire::SyncAuthorizedEntriesRequest { output_mask: None, ids: vec!["x".into()] };
    assert_refused(
        sync(&agent, vec![ids]).await,
        Code::InvalidArgument,
        "specifying IDs on initial request is not supported",
    );
    let blind = types::EntryMask { spiffe_id: true, ..Default::default() };
    let blind = wire::SyncAuthorizedEntriesRequest { output_mask: Some(blind), ids: vec![] };
    assert_refused(
        sync(&agent, vec![blind]).await,
        Code::InvalidArgument,
        "revision number cannot be masked",
    );
}

#[tokio::test(start_paused = true)]
async fn many_entries_are_synced_in_pages() {
    let server = Server::start().await;
    let agent = server.agent().await;
    let parent = agent.id.strip_prefix("spiffe://example.org").unwrap();
    let mut created =
        server.create((0..1203).map(|i| entry(parent, &format!("/w{i}"), &["s:1"])).collect()).await;
    created.sort_by(|a, b| a.id.cmp(&b.id));

    let mask = types::EntryMask { revision_number: true, spiffe_id: true, ..Default::default() };
    let first = wire::SyncAuthorizedEntriesRequest { output_mask: Some(mask), ids: vec![] };
    let ids = |of: std::ops::Range<usize>| created[of].iter().rev().map(|entry| entry.id.clone());
    let all = wire::SyncAuthorizedEntriesRequest { output_mask: None, ids: ids(0..1203).collect() };
    let some = wire::SyncAuthorizedEntriesRequest {
        output_mask: None,
        ids: ids(7..9).chain(["unknown".into()]).collect(),
    };
    let none = wire::SyncAuthorizedEntriesRequest { output_mask: None, ids: vec![] };
    let answers = sync(&agent, vec![first, all, some, none]).await.unwrap();

    let shape: Vec<_> = answers.iter().map(|a| (a.entry_revisions.len(), a.entries.len(), a.more)).collect();
    assert_eq!(
        shape,
        [
            (500, 0, true),
            (500, 0, true),
            (203, 0, false),
            (0, 500, true),
            (0, 500, true),
            (0, 203, false),
            (0, 2, false),
            (0, 0, false)
        ]
    );
    let revisions: Vec<_> = answers[..3].iter().flat_map(|a| &a.entry_revisions).collect();
    for (revision, entry) in revisions.iter().zip(&created) {
        assert_eq!(
            (&revision.id, revision.revision_number, revision.created_at),
            (&entry.id, 0, entry.created_at)
        );
    }
    let synced: Vec<_> = answers[3..6].iter().flat_map(|a| a.entries.clone()).collect();
    let expected: Vec<_> = created
        .iter()
        .map(|entry| types::Entry {
            id: entry.id.clone(),
            spiffe_id: entry.spiffe_id.clone(),
            ..Default::default()
        })
        .collect();
    assert_eq!(synced, expected, "the mask of the first request holds for all");
}
