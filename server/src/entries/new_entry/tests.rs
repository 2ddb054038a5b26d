use super::*;

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> Option<IdDraft> {
    Some(IdDraft { trust_domain: "example.org".into(), path: path.into() })
}

fn pairs(selectors: &[&str]) -> Vec<(String, String)> {
    let split =
        |text: &&str| text.split_once(':').map(|(kind, value)| (kind.to_owned(), value.to_owned())).unwrap();
    selectors.iter().map(split).collect()
}

fn draft() -> EntryDraft {
    EntryDraft {
        id: "web-1".into(),
        spiffe_id: id("/web"),
        parent_id: id("/spire/agent/join_token/abc"),
        selectors: pairs(&["unix:uid:1000", "unix:gid:7"]),
        ..EntryDraft::default()
    }
}

fn fault(change: impl Fn(&mut EntryDraft)) -> EntryFault {
    let mut draft = draft();
    change(&mut draft);
    check(draft, &td()).expect_err("the draft must be refused")
}

type Change = Box<dyn Fn(&mut EntryDraft)>;

fn change(change: impl Fn(&mut EntryDraft) + 'static) -> Change {
    Box::new(change)
}

#[test]
fn a_good_draft_becomes_an_entry() {
    let mut draft = draft();
    draft.federates_with =
        vec!["b.org".into(), "spiffe://a.org/x".into(), "b.org".into(), "example.org".into()];
    draft.dns_names = vec!["web.example.org".into(), "*.example.org".into()];
    draft.x509_svid_ttl = 60;
    draft.hint = "h".repeat(1024);
    let entry = check(draft, &td()).unwrap();
    assert_eq!(entry.id, "web-1");
    assert_eq!(entry.spiffe_id.as_str(), "spiffe://example.org/web");
    assert_eq!(entry.parent_id.as_str(), "spiffe://example.org/spire/agent/join_token/abc");
    let selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
    assert_eq!(selectors, ["unix:gid:7", "unix:uid:1000"], "sorted");
    let federated: Vec<&str> = entry.federates_with.iter().map(TrustDomain::name).collect();
    assert_eq!(federated, ["b.org", "a.org", "example.org"]);
    assert_eq!((entry.x509_svid_ttl, entry.revision_number, entry.created_at), (60, 0, 0));
}

#[test]
fn an_id_is_chosen_for_a_draft_without() {
    let without = |_: usize| check(EntryDraft { id: String::new(), ..draft() }, &td()).unwrap().id;
    let (one, other) = (without(0), without(1));
    assert_eq!(Uuid::parse_str(&one).unwrap().get_version_num(), 4);
    assert_ne!(one, other);
}

#[test]
fn parents_may_be_agents_workloads_and_the_server() {
    for path in ["/spire/agent/x509pop/1", "/spire/server", "/web", "/spire"] {
        check(EntryDraft { parent_id: id(path), ..draft() }, &td()).unwrap();
    }
}

#[test]
fn each_fault_of_the_first_stage_has_its_text() {
    let foreign = |path: &str| Some(IdDraft { trust_domain: "other.org".into(), path: path.into() });
    let cases: Vec<(Change, &str)> = vec![
        (change(|d| d.parent_id = None), "invalid parent ID: request must specify SPIFFE ID"),
        (change(|d| d.parent_id = Some(IdDraft::default())), "invalid parent ID: trust domain is missing"),
        (
            change(move |d| d.parent_id = foreign("/spire/agent/x")),
            "invalid parent ID: \"spiffe://other.org/spire/agent/x\" is not a member of trust domain \"example.org\"",
        ),
        (
            change(|d| d.parent_id = id("")),
            "invalid parent ID: \"spiffe://example.org\" is not a member of trust domain \"example.org\"; path is empty",
        ),
        (change(|d| d.parent_id = id("agent")), "invalid parent ID: path must have a leading slash"),
        (change(|d| d.spiffe_id = None), "invalid spiffe ID: request must specify SPIFFE ID"),
        (change(|d| d.spiffe_id = id("/web/")), "invalid spiffe ID: path cannot have a trailing slash"),
        (change(|d| d.spiffe_id = id("/a//b")), "invalid spiffe ID: path cannot contain empty segments"),
        (change(|d| d.spiffe_id = id("/a/../b")), "invalid spiffe ID: path cannot contain dot segments"),
        (
            change(|d| d.spiffe_id = id("/wéb")),
            "invalid spiffe ID: path segment characters are limited to letters, numbers, dots, dashes, and underscores",
        ),
        (
            change(move |d| d.spiffe_id = foreign("/web")),
            "invalid spiffe ID: \"spiffe://other.org/web\" is not a member of trust domain \"example.org\"",
        ),
        (
            change(|d| d.spiffe_id = id("")),
            "invalid spiffe ID: \"spiffe://example.org\" is not a workload in trust domain \"example.org\"; \
             path is empty",
        ),
        (
            change(|d| d.spiffe_id = id("/spire/web")),
            "invalid spiffe ID: \"spiffe://example.org/spire/web\" is not a workload in trust domain \"example.org\"; \
             path is in the reserved namespace",
        ),
        (change(|d| d.dns_names = vec!["a.example.".into()]), "invalid DNS name: domain ends with dot"),
        (change(|d| d.dns_names = vec!["".into()]), "invalid DNS name: empty or only whitespace"),
        (change(|d| d.dns_names = vec!["a.*.b".into()]), "invalid DNS name: wildcard must be first label"),
        (change(|d| d.dns_names = vec!["*.*.b".into()]), "invalid DNS name: too many wildcards"),
        (change(|d| d.dns_names = vec!["dömäin".into()]), "invalid DNS name: name must be ascii"),
        (
            change(|d| d.federates_with = vec!["UPPER".into()]),
            "invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, dots, \
             dashes, and underscores",
        ),
        (change(|d| d.selectors.clear()), "selector list is empty"),
        (change(|d| d.selectors = vec![("".into(), "v".into())]), "missing selector type"),
        (change(|d| d.selectors = vec![("a:b".into(), "v".into())]), "selector type contains ':'"),
        (change(|d| d.selectors = vec![("a".into(), "".into())]), "missing selector value"),
        (change(|d| d.hint = "h".repeat(1025)), "hint is too long, max length is 1024 characters"),
    ];
    for (change, text) in cases {
        let fault = fault(change);
        assert_eq!(fault.stage(), Stage::Conversion);
        assert_eq!(fault.to_string(), text);
        for action in [Action::Create, Action::Update] {
            assert_eq!(fault.message(action), format!("failed to convert entry: {text}"));
        }
    }
    let fault = fault(|d| d.dns_names = vec!["a..b".into()]);
    assert!(fault.to_string().starts_with("invalid DNS name: idna error"), "{fault}");
}

#[test]
fn each_fault_of_the_second_stage_has_its_text() {
    let invalid = |text: &str| format!("invalid registration entry: {text}");
    let cases: Vec<(Change, String)> = vec![
        (
            change(|d| {
                d.store_svid = true;
                d.selectors = pairs(&["a:1", "b:2"]);
            }),
            invalid("selector types must be the same when store SVID is enabled"),
        ),
        (change(|d| d.id = "i".repeat(256)), invalid("entry ID too long")),
        (change(|d| d.id = "a/b".into()), invalid("entry ID contains invalid characters")),
        (change(|d| d.id = "ä".into()), invalid("entry ID contains invalid characters")),
        (change(|d| d.x509_svid_ttl = -1), invalid("X509SvidTtl is not set")),
        (change(|d| d.jwt_svid_ttl = i32::MIN), invalid("JwtSvidTtl is not set")),
        (
            change(|d| {
                d.store_svid = true;
                d.additional_attributes =
                    Some(AdditionalAttributes { disable_x509_svid_prefetch: true, ..Default::default() });
            }),
            "specifying cache behaviour is incompatible with storable SVIDs".to_owned(),
        ),
    ];
    for (change, text) in cases {
        let fault = fault(change);
        assert_eq!(fault.stage(), Stage::Validation);
        assert_eq!(
            fault.message(Action::Create),
            format!("failed to create entry: datastore-validation: {text}")
        );
        assert_eq!(
            fault.message(Action::Update),
            format!("failed to update entry: datastore-validation: {text}")
        );
    }
    check(EntryDraft { id: "i".repeat(255), store_svid: true, ..draft() }, &td()).unwrap();
    check(EntryDraft { id: "A-z.0_9".into(), ..draft() }, &td()).unwrap();
}

#[test]
fn repetitions_are_the_databases_to_refuse() {
    let selector = fault(|d| d.selectors = pairs(&["a:1", "b:2", "a:1"]));
    let name = fault(|d| d.dns_names = vec!["a.org".into(), "a.org".into()]);
    for fault in [selector, name] {
        assert_eq!(fault.stage(), Stage::Constraint);
        let message = fault.message(Action::Create);
        assert!(
            message.starts_with("failed to create entry: datastore-sql: UNIQUE constraint failed: "),
            "{message}"
        );
    }
}

/// A draft that is wrong in every field: what a mask leaves out must not be looked at.
fn all_wrong() -> EntryDraft {
    EntryDraft {
        id: "web-1".into(),
        spiffe_id: None,
        parent_id: None,
        selectors: Vec::new(),
        x509_svid_ttl: -1,
        jwt_svid_ttl: -1,
        federates_with: vec!["UPPER".into()],
        expires_at: -5,
        dns_names: vec!["..".into()],
        hint: "h".repeat(2000),
        ..EntryDraft::default()
    }
}

#[test]
fn an_update_takes_only_what_the_mask_names() {
    let nothing = check_update(all_wrong(), &EntryMask::NONE, &td()).unwrap();
    assert_eq!(format!("{nothing:?}"), format!("{:?}", EntryUpdate::default()));

    let attributes = AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() };
    let new = EntryDraft {
        id: "web-1".into(),
        spiffe_id: id("/db"),
        parent_id: id("/node"),
        selectors: pairs(&["unix:uid:5", "unix:gid:3"]),
        x509_svid_ttl: 1,
        jwt_svid_ttl: 2,
        federates_with: vec!["b.org".into()],
        admin: true,
        downstream: true,
        expires_at: 9,
        dns_names: vec!["db.example.org".into()],
        store_svid: true,
        hint: "db".into(),
        additional_attributes: Some(attributes.clone()),
    };
    let expected = EntryUpdate::all(check(new.clone(), &td()).unwrap());
    let update = check_update(new, &EntryMask::ALL, &td()).unwrap();
    assert_eq!(
        format!("{update:?}"),
        format!("{expected:?}"),
        "an update knows the same rules as a new entry"
    );
    assert_eq!(update.additional_attributes, Some(Some(attributes)));

    let removed =
        check_update(draft(), &EntryMask { additional_attributes: true, ..EntryMask::NONE }, &td()).unwrap();
    assert_eq!(removed.additional_attributes, Some(None), "an absent message replaces the whole");
}

#[test]
fn an_update_is_held_to_the_same_rules() {
    let one = |set: fn(&mut EntryMask)| {
        let mut mask = EntryMask::NONE;
        set(&mut mask);
        check_update(all_wrong(), &mask, &td()).unwrap_err().message(Action::Update)
    };
    let conversion = "failed to convert entry: ";
    assert_eq!(
        one(|m| m.spiffe_id = true),
        format!("{conversion}invalid spiffe ID: request must specify SPIFFE ID")
    );
    assert_eq!(
        one(|m| m.parent_id = true),
        format!("{conversion}invalid parent ID: request must specify SPIFFE ID")
    );
    assert_eq!(one(|m| m.selectors = true), format!("{conversion}selector list is empty"));
    assert!(one(|m| m.dns_names = true).starts_with(&format!("{conversion}invalid DNS name: ")));
    assert!(
        one(|m| m.federates_with = true)
            .starts_with(&format!("{conversion}invalid federated trust domain: "))
    );
    assert!(one(|m| m.hint = true).starts_with(&format!("{conversion}hint is too long")));
    let validation = "failed to update entry: datastore-validation: invalid registration entry: ";
    assert_eq!(one(|m| m.x509_svid_ttl = true), format!("{validation}X509SvidTtl is not set"));
    assert_eq!(one(|m| m.jwt_svid_ttl = true), format!("{validation}JwtSvidTtl is not set"));

    let twice = EntryDraft { selectors: pairs(&["a:1", "a:1"]), ..draft() };
    let mask = EntryMask { selectors: true, ..EntryMask::NONE };
    let fault = check_update(twice, &mask, &td()).unwrap_err();
    assert!(matches!(fault, EntryFault::RepeatedSelector(_)), "{fault}");
}
