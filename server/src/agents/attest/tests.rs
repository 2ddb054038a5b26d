use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use finial_daemon::clock::Clock;
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::access::fixture::noon;
use crate::entries::fixture::{id, selectors, td};
use crate::plugins::node_attestor::{AttestorFault, Evidence, Host, NodeAttestor, exchange};
use crate::store::OpenSettings;

struct Bench {
    store: Store,
    clock: Clock,
    attestors: NodeAttestors,
}

/// An attestor whose verdict is in the payload: `<agent path> [tofu] [reattest] [s=<selector>]...`, or `!<number>` for a
/// fault. `?` in front asks the agent first, and believes only those who answer the question reversed.
struct Told;

#[async_trait]
impl NodeAttestor for Told {
    async fn attest(&self, payload: &[u8], exchange: &mut Exchange) -> Result<Evidence, AttestorFault> {
        let mut text = std::str::from_utf8(payload).unwrap();
        if let Some(rest) = text.strip_prefix('?') {
            if exchange.ask(b"abc".to_vec()).await? != b"cba" {
                return Err(AttestorFault::new(
                    Code::PermissionDenied,
                    "challenge response verification failed",
                ));
            }
            text = rest;
        }
        if let Some(number) = text.strip_prefix('!') {
            return Err(AttestorFault::new(Code::Other(number.parse().unwrap()), "no such cloud"));
        }
        let mut words = text.split(' ');
        Ok(Evidence {
            agent_id: id(words.next().unwrap()),
            selectors: words
                .clone()
                .filter_map(|w| w.strip_prefix("s="))
                .flat_map(|s| selectors(&[s]))
                .collect(),
            can_reattest: words.clone().any(|word| word == "reattest"),
            first_use_only: words.any(|word| word == "tofu"),
        })
    }
}

impl Bench {
    async fn new() -> Bench {
        let clock = Clock::paused(noon());
        let store = Store::open(OpenSettings::new(":memory:", td(), clock.clone())).await.unwrap();
        let host = Host { trust_domain: td(), store: store.clone(), clock: clock.clone() };
        let join_tokens: Arc<dyn NodeAttestor> = Arc::new(join_token::JoinTokens::new(&host));
        let told: Arc<dyn NodeAttestor> = Arc::new(Told);
        let attestors =
            NodeAttestors::of([(join_token::NAME.to_owned(), join_tokens), ("told".to_owned(), told)]);
        Bench { store, clock, attestors }
    }

    async fn prove(&self, kind: &str, payload: &str) -> Result<Attested, AttestFault> {
        self.prove_with(kind, payload, csr(), false).await
    }

    async fn prove_with(
        &self,
        kind: &str,
        payload: &str,
        csr: Vec<u8>,
        id_as_selector: bool,
    ) -> Result<Attested, AttestFault> {
        let (mut exchange, _agent) = exchange::pair();
        let data = AttestationData { kind: kind.to_owned(), payload: payload.as_bytes().to_vec() };
        let params = Params { data, csr };
        let proven = prove(&self.attestors, &self.store, id_as_selector, &params, &mut exchange).await?;
        Ok(proven.0)
    }

    /// Text and code of the refusal.
    async fn refusal(&self, kind: &str, payload: &str) -> (String, Code) {
        let fault = self.prove(kind, payload).await.expect_err("must be refused");
        (fault.to_string(), fault.code())
    }

    async fn attest(&self, kind: &str, payload: &str, serial: &str) -> Result<Attested, AttestFault> {
        let attested = self.prove(kind, payload).await?;
        record(&self.store, &attested, serial, noon() + Duration::from_secs(3600)).await?;
        Ok(attested)
    }

    async fn token(&self, token: &str, lifetime: i64) {
        self.store.tokens().create(token, self.clock.unix() + lifetime, None).await.unwrap();
    }
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

const UNKNOWN: &str = "failed to attest: join token does not exist or has already been used";

#[test]
fn incomplete_params_are_refused_by_name() {
    let data = |kind: &str, payload: &str| {
        Some(AttestationData { kind: kind.into(), payload: payload.as_bytes().to_vec() })
    };
    let csr = Some(vec![1]);
    let cases = [
        (None, "missing params"),
        (Some(ParamsDraft { data: None, csr: csr.clone() }), "missing attestation data"),
        (Some(ParamsDraft { data: data("x", "y"), csr: None }), "missing X509-SVID parameters"),
        (Some(ParamsDraft { data: data("x", "y"), csr: Some(Vec::new()) }), "missing CSR"),
        (Some(ParamsDraft { data: data("", "y"), csr: csr.clone() }), "missing attestation data type"),
        (Some(ParamsDraft { data: data("x", ""), csr: csr.clone() }), "missing attestation data payload"),
    ];
    for (draft, text) in cases {
        let fault = check_params(draft).unwrap_err();
        assert_eq!(fault.to_string(), format!("malformed param: {text}"));
        assert_eq!(fault.code(), Code::InvalidArgument);
    }
    check_params(Some(ParamsDraft { data: data("x", "y"), csr })).unwrap();
}

#[tokio::test]
async fn a_join_token_is_good_for_one_agent() {
    let bench = Bench::new().await;
    bench.token("abc", 60).await;
    let attested = bench.attest("join_token", "abc", "7").await.unwrap();
    assert_eq!(attested.agent_id(), &id("/spire/agent/join_token/abc"));
    assert_eq!((attested.attestation_type(), attested.can_reattest()), ("join_token", false));
    assert!(attested.selectors().is_empty());
    let node = bench.store.agents().get(attested.agent_id()).await.unwrap().unwrap();
    assert_eq!((node.serial_number.as_str(), node.attestation_type.as_str()), ("7", "join_token"));
    assert_eq!(node.expires_at, unix_seconds(noon()) + 3600);

    let unknown = (UNKNOWN.to_owned(), Code::InvalidArgument);
    assert_eq!(bench.refusal("join_token", "abc").await, unknown, "used");
    assert_eq!(bench.refusal("join_token", "guess").await, unknown);
    let (mut exchange, _agent) = exchange::pair();
    let data = AttestationData { kind: "join_token".into(), payload: vec![0xff, 0xfe] };
    let fault =
        prove(&bench.attestors, &bench.store, false, &Params { data, csr: csr() }, &mut exchange).await;
    assert_eq!(fault.unwrap_err().to_string(), UNKNOWN, "no text at all");
}

#[tokio::test]
async fn of_many_with_one_token_one_wins() {
    let bench = Bench::new().await;
    bench.token("abc", 60).await;
    let attempts = (0..8).map(|_| bench.prove("join_token", "abc"));
    let outcomes = futures::future::join_all(attempts).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn an_expired_token_is_used_up() {
    let bench = Bench::new().await;
    bench.token("abc", 60).await;
    bench.clock.jump(61);
    assert_eq!(
        bench.refusal("join_token", "abc").await,
        ("join token expired".to_owned(), Code::InvalidArgument)
    );
    bench.clock.jump(-61);
    assert_eq!(bench.refusal("join_token", "abc").await.0, UNKNOWN);
    bench.token("edge", 60).await;
    bench.clock.jump(60);
    bench.prove("join_token", "edge").await.unwrap();
}

#[tokio::test]
async fn a_banned_agent_is_refused_and_its_token_is_gone() {
    let bench = Bench::new().await;
    bench.token("abc", 60).await;
    let attested = bench.attest("join_token", "abc", "7").await.unwrap();
    bench.store.agents().ban(attested.agent_id()).await.unwrap();
    bench.token("abc", 60).await;
    assert_eq!(
        bench.refusal("join_token", "abc").await,
        ("failed to attest: agent is banned".to_owned(), Code::PermissionDenied)
    );
    assert_eq!(bench.refusal("join_token", "abc").await.0, UNKNOWN);
}

#[tokio::test]
async fn a_ban_between_proof_and_record_counts() {
    let bench = Bench::new().await;
    bench.attest("told", "/spire/agent/told/1", "7").await.unwrap();
    let again = bench.prove("told", "/spire/agent/told/1").await.unwrap();
    bench.store.agents().ban(again.agent_id()).await.unwrap();
    let fault = record(&bench.store, &again, "8", noon()).await.unwrap_err();
    assert!(matches!(fault, AttestFault::Banned), "{fault}");
    assert!(bench.store.agents().get(again.agent_id()).await.unwrap().unwrap().is_banned());
}

#[tokio::test]
async fn unknown_attestors_are_refused_by_name() {
    let bench = Bench::new().await;
    assert_eq!(
        bench.refusal("x509pop", "{}").await,
        (
            "error getting node attestor: could not find node attestor type \"x509pop\"".to_owned(),
            Code::FailedPrecondition
        )
    );
}

#[tokio::test]
async fn an_attestors_refusal_keeps_its_code_and_gets_its_name() {
    let bench = Bench::new().await;
    assert_eq!(
        bench.refusal("told", "!14").await,
        ("nodeattestor(told): no such cloud".to_owned(), Code::Other(14))
    );
}

#[tokio::test]
async fn evidence_for_one_use_is_refused_in_whatever_state_the_agent_is() {
    let bench = Bench::new().await;
    let payload = "/spire/agent/told/1 tofu";
    let refused = (
        "nodeattestor(told): attestation data has already been used to attest an agent".to_owned(),
        Code::PermissionDenied,
    );
    let attested = bench.attest("told", payload, "7").await.unwrap();
    assert_eq!(bench.refusal("told", payload).await, refused);
    bench.store.agents().ban(attested.agent_id()).await.unwrap();
    assert_eq!(bench.refusal("told", payload).await, refused);
    bench.store.agents().delete(attested.agent_id()).await.unwrap();
    bench.attest("told", payload, "8").await.unwrap();
}

#[tokio::test]
async fn of_two_who_use_at_once_what_is_good_once_one_gets_in() {
    let bench = Bench::new().await;
    let payload = "/spire/agent/told/1 tofu";
    let (first, second) =
        (bench.prove("told", payload).await.unwrap(), bench.prove("told", payload).await.unwrap());
    let end = noon() + Duration::from_secs(3600);
    record(&bench.store, &first, "7", end).await.unwrap();
    let fault = record(&bench.store, &second, "8", end).await.unwrap_err();
    assert_eq!(fault.code(), Code::PermissionDenied);
    let text = "nodeattestor(told): attestation data has already been used to attest an agent";
    assert_eq!(fault.to_string(), text);
    let node = bench.store.agents().get(first.agent_id()).await.unwrap().unwrap();
    assert_eq!(node.serial_number, "7", "the first one's SVID stays good");
}

#[tokio::test]
async fn attesting_again_replaces_selectors_and_the_serial_numbers() {
    let bench = Bench::new().await;
    let first = "/spire/agent/told/1 s=a:1 s=b:2 s=a:1";
    let agent = bench.attest("told", first, "7").await.unwrap().agent_id().clone();
    let node = || async { bench.store.agents().get(&agent).await.unwrap().unwrap() };
    assert_eq!(node().await.selectors, selectors(&["a:1", "b:2"]));
    bench.store.agents().set_pending(&agent, "8", 1).await.unwrap();

    bench.attest("told", "/spire/agent/told/1 reattest s=c:3", "9").await.unwrap();
    let again = node().await;
    assert_eq!(again.selectors, selectors(&["c:3"]));
    assert_eq!((again.serial_number.as_str(), again.new_serial_number.as_str()), ("9", ""));
    assert!(again.can_reattest);
    assert_eq!(bench.store.agents().list(&Default::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn the_id_becomes_a_selector_where_that_is_set() {
    let bench = Bench::new().await;
    let attested = bench.prove_with("told", "/spire/agent/told/1 s=z:1", csr(), true).await.unwrap();
    let expected = selectors(&["spiffe_id:spiffe://example.org/spire/agent/told/1", "z:1"]);
    assert_eq!(attested.selectors(), expected);
}

#[tokio::test]
async fn ids_that_no_agent_may_have_are_the_attestors_fault() {
    let bench = Bench::new().await;
    for (payload, text) in [
        (
            "spiffe://other.org/spire/agent/told/1",
            "invalid agent ID: \"spiffe://other.org/spire/agent/told/1\" is not a member of trust domain \"example.org\"",
        ),
        ("/spire/server", "agent ID cannot collide with the server ID"),
    ] {
        assert_eq!(bench.refusal("told", payload).await, (text.to_owned(), Code::Internal));
    }
    bench.prove("told", "/elsewhere").await.expect("outside of the attestor's namespace is only logged");
}

#[tokio::test]
async fn the_csr_is_looked_at_last_and_must_be_good() {
    let bench = Bench::new().await;
    let mut forged = csr();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [b"nonsense".to_vec(), forged] {
        let fault = bench.prove_with("told", "/spire/agent/told/1", bad.clone(), false).await.unwrap_err();
        assert!(fault.to_string().starts_with("failed to parse CSR: "), "{fault}");
        assert_eq!(fault.code(), Code::InvalidArgument);
        let fault = bench.prove_with("told", "!5", bad, false).await.unwrap_err();
        assert!(fault.to_string().starts_with("nodeattestor(told): "), "{fault}");
    }
    assert!(
        bench.store.agents().get(&id("/spire/agent/told/1")).await.unwrap().is_none(),
        "nothing is remembered"
    );
}

#[tokio::test]
async fn challenges_travel_to_the_agent_and_back() {
    let bench = Bench::new().await;
    for (answer, believed) in [("cba", true), ("abc", false)] {
        let (mut exchange, mut agent) = exchange::pair();
        let data = AttestationData { kind: "told".into(), payload: b"?/spire/agent/told/1".to_vec() };
        let params = Params { data, csr: csr() };
        let proof = prove(&bench.attestors, &bench.store, false, &params, &mut exchange);
        let (proof, ()) = tokio::join!(proof, async {
            assert_eq!(agent.challenges.recv().await.as_deref(), Some(&b"abc"[..]));
            agent.responses.send(answer.as_bytes().to_vec()).await.unwrap();
        });
        assert_eq!(proof.is_ok(), believed);
    }
    let (mut exchange, agent) = exchange::pair();
    drop(agent);
    let data = AttestationData { kind: "told".into(), payload: b"?/x".to_vec() };
    let fault =
        prove(&bench.attestors, &bench.store, false, &Params { data, csr: csr() }, &mut exchange).await;
    let fault = fault.unwrap_err();
    assert_eq!(fault.to_string(), "nodeattestor(told): failed to send challenge to agent");
    assert_eq!(fault.code(), Code::Internal);
}
