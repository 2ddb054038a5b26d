//! Requests that are refused, with code and text: what SPIRE's clients and operators know.
//!
//! The tables beside this file hold one row for each request: who sends it, the request as JSON, and what SPIRE 1.15.3
//! answers, recorded from the program. A text that ends with `…` is how the answer begins; the rest comes from another
//! library. A row in which Finial differs on purpose says what Finial answers, and why. An answer that is a list of lists
//! holds the statuses of a batch.
//!
//! Each table is put to a whole trust domain. With `FINIAL_REFERENCE_BIN` naming a folder with SPIRE's `spire-server`,
//! they are put to that program too, so that a row that is wrong about SPIRE comes to light.

mod reference;
mod target;

use std::collections::BTreeMap;
use std::fmt;

use finial_tests::raw;
use finial_tests::world::World;
use prost::Message;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use serde::Deserialize;
use serde_json::Value;
use tonic::Code;

use target::Target;

/// The table with steps that succeed between the refusals: what may be done depends on what was done before.
const STEPS: &str = "localauthority";

/// The tables, by the name of their file.
const TABLES: [(&str, &str); 8] = [
    ("agent", include_str!("agent.json")),
    ("bundle", include_str!("bundle.json")),
    ("entry", include_str!("entry.json")),
    ("health", include_str!("health.json")),
    (STEPS, include_str!("localauthority.json")),
    ("logger", include_str!("logger.json")),
    ("svid", include_str!("svid.json")),
    ("trustdomain", include_str!("trustdomain.json")),
];

/// Methods whose requests say nothing, or nothing that can be wrong.
const NEVER_WRONG: [&str; 8] = [
    "CountBundles",
    "GetAuthorizedEntries",
    "GetBundle",
    "GetInfo",
    "GetJWTAuthorityState",
    "GetLogger",
    "GetX509AuthorityState",
    "ResetLogLevel",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// `package.Service/Method`.
    call: String,
    /// Who calls: `admin` on the socket; `agent`, `downstream` or `anyone` from the network.
    r#as: String,
    /// One message, or a list of them for a stream. A text `@name` stands for a value of [`Target`].
    request: Value,
    spire: Answer,
    /// Where it is not SPIRE's.
    finial: Option<Answer>,
    why: Option<String>,
}

#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
enum Answer {
    Call(Refusal),
    Items(Vec<Refusal>),
}

/// Code by name, and text.
#[derive(Clone, Deserialize, PartialEq, Eq)]
struct Refusal(String, String);

#[tokio::test(start_paused = true)]
async fn agents() {
    finial_answers("agent").await;
}

#[tokio::test(start_paused = true)]
async fn bundles() {
    finial_answers("bundle").await;
}

#[tokio::test(start_paused = true)]
async fn entries() {
    finial_answers("entry").await;
}

#[tokio::test(start_paused = true)]
async fn health() {
    finial_answers("health").await;
}

#[tokio::test(start_paused = true)]
async fn local_authorities() {
    finial_answers(STEPS).await;
}

#[tokio::test(start_paused = true)]
async fn loggers() {
    finial_answers("logger").await;
}

#[tokio::test(start_paused = true)]
async fn svids() {
    finial_answers("svid").await;
}

#[tokio::test(start_paused = true)]
async fn trust_domains() {
    finial_answers("trustdomain").await;
}

/// What is no message is refused by each method that the tables know, and an unknown method by its name.
#[tokio::test(start_paused = true)]
async fn nonsense() {
    let world = World::new().await;
    assert_eq!(takes_nonsense(&Target::of(&world).await).await, Vec::<String>::new());
}

/// The tables tell the truth about SPIRE.
#[tokio::test]
async fn the_reference_answers_so_too() {
    let Some(program) = reference::program() else { return };
    let reference = reference::Reference::start(&program).await;
    assert_eq!(takes_nonsense(&reference.target().await).await, Vec::<String>::new());
    for (name, _) in TABLES {
        let reference = reference::Reference::start(&program).await;
        let mut target = reference.target().await;
        let wrong = put(name, &mut target, |row| &row.spire).await;
        assert!(wrong.is_empty(), "{name}.json is wrong about SPIRE:\n{}", wrong.join("\n"));
    }
}

#[test]
fn a_difference_has_a_reason_and_a_refusal() {
    for (name, _) in TABLES {
        for row in table(name) {
            assert_eq!(row.finial.is_some(), row.why.is_some(), "{name}: {row}");
            assert!(row.finial.as_ref() != Some(&row.spire), "{name}: {row}");
            let refused = row.finial.unwrap_or(row.spire).has_refusal();
            assert!(refused || name == STEPS, "{name}: {} is refused by nobody", row.call);
        }
    }
}

/// Every method that a server serves has a row, or takes nothing that could be wrong.
#[test]
fn no_method_is_missing() {
    let rows: Vec<Row> = TABLES.iter().flat_map(|(name, _)| table(name)).collect();
    for (service, method) in finial_proto::methods() {
        if service.starts_with("spire.api.server.") {
            let call = format!("{service}/{method}");
            let has_row = rows.iter().any(|row| row.call == call);
            assert_ne!(has_row, NEVER_WRONG.contains(&method.as_str()), "{call}");
        }
    }
}

/// Puts a table to a trust domain of its own. What is refused changes nothing.
async fn finial_answers(name: &str) {
    let world = World::new().await;
    let mut target = Target::of(&world).await;
    let before = target.state().await;
    let wrong = put(name, &mut target, |row| row.finial.as_ref().unwrap_or(&row.spire)).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if name == STEPS {
        return;
    }
    for (was, is) in before.iter().zip(&target.state().await) {
        assert_eq!(was, is, "a refused request changed something");
    }
}

async fn put(name: &str, target: &mut Target, expected: impl Fn(&Row) -> &Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in table(name) {
        target.learn_authorities().await;
        let answer = ask(target, &row).await;
        let expected = expected(&row);
        if !answer.fits(expected) {
            wrong.push(format!("{row}\n  is     {answer}\n  should {expected}"));
        }
    }
    wrong
}

/// The methods that do not refuse what they have to.
async fn takes_nonsense(target: &Target) -> Vec<String> {
    let mut wrong = Vec::new();
    let rows = TABLES.iter().flat_map(|(name, _)| table(name));
    let callers: BTreeMap<String, String> = rows.map(|row| (row.call, row.r#as)).collect();
    let unread = ["grpc.health.v1.Health/Watch", "spire.api.server.bundle.v1.Bundle/PublishWITAuthority"];
    for (call, who) in callers.iter().filter(|(call, _)| !unread.contains(&call.as_str())) {
        let answer = raw::call(target.channel(who), &format!("/{call}"), b"\xff\xff".as_slice(), &[]).await;
        if answer.as_ref().map_err(|status| status.code()) != Err(Code::Internal) {
            wrong.push(format!("{call}: {answer:?}"));
        }
    }
    for (who, path, text) in [
        (
            "admin",
            "/spire.api.server.entry.v1.Entry/Nothing",
            "unknown method Nothing for service spire.api.server.entry.v1.Entry",
        ),
        ("agent", "/no.Such/Thing", "unknown service no.Such"),
        (
            "agent",
            "/spire.api.server.logger.v1.Logger/GetLogger",
            "unknown service spire.api.server.logger.v1.Logger",
        ),
    ] {
        let status = raw::call(target.channel(who), path, b"".as_slice(), &[]).await.unwrap_err();
        if (status.code(), status.message()) != (Code::Unimplemented, text) {
            wrong.push(format!("{path}: {status}"));
        }
    }
    wrong
}

async fn ask(target: &Target, row: &Row) -> Answer {
    let request = target.fill(&row.request);
    let messages = match request {
        Value::Array(messages) => messages,
        message => vec![message],
    };
    let method = method(&row.call);
    let bodies = messages.into_iter().map(|message| match &method {
        Some(method) => DynamicMessage::deserialize(method.input(), message).unwrap().encode_to_vec().into(),
        None => health_check(&message).into(),
    });
    let channel = target.channel(&row.r#as);
    let answer = raw::exchange(channel, &format!("/{}", row.call), bodies.collect(), &[]).await;
    match answer {
        Err(status) => Answer::Call(refusal(status.code(), status.message())),
        Ok(body) => method
            .zip(body)
            .and_then(|(method, body)| items(&DynamicMessage::decode(method.output(), body).unwrap()))
            .unwrap_or_else(|| Answer::Call(refusal(Code::Ok, ""))),
    }
}

/// The statuses of a batch, if the answer is one.
fn items(answer: &DynamicMessage) -> Option<Answer> {
    let results = answer.get_field_by_name("results")?;
    let statuses = results.as_list()?.iter().map(|result| {
        let status = result.as_message().unwrap().get_field_by_name("status").unwrap();
        let status = status.as_message().unwrap();
        let code = status.get_field_by_name("code").unwrap().as_i32().unwrap();
        let message = status.get_field_by_name("message").unwrap();
        refusal(Code::from(code), message.as_str().unwrap())
    });
    Some(Answer::Items(statuses.collect()))
}

fn method(call: &str) -> Option<MethodDescriptor> {
    let (service, method) = call.split_once('/').unwrap();
    let service = finial_proto::descriptors().get_service_by_name(service)?;
    Some(service.methods().find(|known| known.name() == method).unwrap())
}

/// grpc.health.v1.HealthCheckRequest, which is not among our descriptors.
fn health_check(message: &Value) -> Vec<u8> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckRequest {
        #[prost(string, tag = "1")]
        service: String,
    }
    HealthCheckRequest { service: message["service"].as_str().unwrap().to_owned() }.encode_to_vec()
}

fn table(name: &str) -> Vec<Row> {
    let (_, text) = TABLES.into_iter().find(|(known, _)| *known == name).unwrap();
    serde_json::from_str(text).unwrap()
}

fn refusal(code: Code, text: &str) -> Refusal {
    Refusal(format!("{code:?}"), text.to_owned())
}

impl Answer {
    fn fits(&self, expected: &Answer) -> bool {
        match (self, expected) {
            (Answer::Call(is), Answer::Call(should)) => is.fits(should),
            (Answer::Items(is), Answer::Items(should)) => {
                is.len() == should.len() && is.iter().zip(should).all(|(is, should)| is.fits(should))
            }
            _ => false,
        }
    }

    fn has_refusal(&self) -> bool {
        match self {
            Answer::Call(one) => one.0 != "Ok",
            Answer::Items(all) => all.iter().any(|one| one.0 != "Ok"),
        }
    }
}

impl Refusal {
    fn fits(&self, expected: &Refusal) -> bool {
        let fits = match expected.1.strip_suffix('…') {
            Some(start) => self.1.starts_with(start),
            None => self.1 == expected.1,
        };
        fits && self.0 == expected.0
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {} with {}", self.call, self.r#as, self.request)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Call(Refusal(code, text)) => write!(f, "{code} {text:?}"),
            Answer::Items(items) => {
                items.iter().try_for_each(|Refusal(code, text)| write!(f, "\n    {code} {text:?}"))
            }
        }
    }
}
