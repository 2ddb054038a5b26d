use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finial_daemon::clock::{from_unix_seconds, unix_seconds};
use finial_daemon::keys::{self, KeyType, WorkloadKey, spire_subject};
use finial_daemon::listen::{ConnInfo, Origin};
use finial_identity::csr::VerifiedCsr;
use finial_identity::entry::Entry;
use finial_identity::peer;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509_svid::AuthorityCertificate;
use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::OctetString;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::AuthorityKeyIdentifier;
use x509_cert::name::Name;

use super::pki::{self, Pki};
use super::{Machine, trust_domain};
use crate::access::caller::Caller;
use crate::access::permit::{self, Facts, Granted};
use crate::authority::chain;
use crate::authority::drive::Driver;
use crate::authority::issue::{ActiveCa, IssueError, Issuer};
use crate::authority::profile::{
    MintIntent, Occasion, Parent, ProfileError, Profiles, Serial, SubjectSettings,
};
use crate::authority::x509_cas::X509Cas;
use crate::entries::authorized::{Authorized, one_for_agent};
use crate::entries::snapshot::{EntryFlags, Rows, Snapshot};
use crate::store::issued::{IssuedKind, ListIssued, key_fingerprint};

const HOUR: u64 = 3600;
/// Two organizational units, which a library that keeps a name as a map would make one of.
const ISSUING: &str = "/C=DE/O=Big Corp/OU=one/OU=two/CN=Issuing";
/// A multi-valued RDN.
const ROOT: &str = "/DC=org/DC=example/O=Big Corp/CN=Root+serialNumber=7";

fn agent() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/spire/agent/join_token/1").unwrap()
}

pub(super) fn entry(id: &str, ttl: i32, dns_names: &[&str]) -> Entry {
    let selectors = vec![Selector { kind: "unix".into(), value: "uid:1".into() }];
    Entry {
        id: "entry-1".into(),
        x509_svid_ttl: ttl,
        dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
        revision_number: 3,
        ..Entry::plain(SpiffeId::parse(id).unwrap(), agent(), selectors)
    }
}

pub(super) fn authorized(entry: Entry) -> Authorized {
    let id = entry.id.clone();
    let rows = Rows { entries: vec![(id.clone(), Some(entry))], ..Rows::default() };
    let snapshot = Snapshot::empty(trust_domain()).with(rows, 0).unwrap();
    one_for_agent(&snapshot, &agent(), &id).unwrap()
}

fn csr() -> VerifiedCsr {
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    VerifiedCsr::from_der(&key.csr(&spire_subject(), &[]).unwrap()).unwrap()
}

fn granted(caller: Caller, method: &str, flags: EntryFlags, now: SystemTime) -> Granted {
    let facts = Facts { caller: &caller, admin_ids: &[], flags, standing: None, now };
    permit::decide(permit::row(method).unwrap(), &facts).unwrap()
}

pub(super) fn local(method: &str, now: SystemTime) -> Granted {
    granted(Caller::from_socket(&ConnInfo::new(Origin::Memory, None)), method, EntryFlags::default(), now)
}

struct Ca {
    machine: Machine,
    issuer: Issuer,
    // Holds the watch open, as the running server does.
    driver: Driver<X509Cas>,
}

async fn start(machine: Machine) -> Ca {
    let mut driver = machine.driver().await;
    driver.start().await.unwrap();
    let profiles = Arc::new(Profiles::new(machine.settings.clone()));
    let (_, jwt) = tokio::sync::watch::channel(None);
    let issuer = Issuer::new(profiles, machine.clock.clone(), driver.active(), jwt, machine.issued.clone());
    Ca { machine, issuer, driver }
}

impl Ca {
    fn now(&self) -> SystemTime {
        self.machine.clock.now()
    }

    fn active(&self) -> Arc<ActiveCa> {
        self.driver.active().borrow().clone().unwrap()
    }
}

fn parse(der: &CertificateDer<'_>) -> Certificate {
    Certificate::from_der(der).unwrap()
}

/// (object identifier, critical, value) in order.
fn extensions(certificate: &Certificate) -> Vec<(String, bool, Vec<u8>)> {
    let list = certificate.tbs_certificate().extensions().unwrap();
    list.iter()
        .map(|extension| {
            (extension.extn_id.to_string(), extension.critical, extension.extn_value.as_bytes().to_vec())
        })
        .collect()
}

fn subject(der: &CertificateDer<'_>) -> String {
    parse(der).tbs_certificate().subject().to_string()
}

async fn check_leaf(ca: &Ca, pki: &Pki) {
    let csr = csr();
    let who = authorized(entry(
        "spiffe://example.org/ns/shop/web",
        600,
        &["web.example.org", "*.shop.example.org"],
    ));
    let now = ca.now();
    let issued = ca.issuer.workload_x509(&who, &csr).await.unwrap();
    let (svid, active) = (&issued.svid, ca.active());
    let roots = ca.machine.roots().await;

    // By our own rules, by openssl's, and field by field.
    peer::verify_svid(svid, &roots, now).unwrap();
    pki.judge(svid.chain(), &roots, now).unwrap();
    assert!(svid.issuer_faults().is_empty());
    assert_eq!(svid.chain()[1..], *active.above());
    assert_eq!(issued.authority_id, active.authority_id());

    let leaf = parse(svid.leaf_der());
    let body = leaf.tbs_certificate();
    assert_eq!(body.issuer().to_der().unwrap(), active.certificate().subject_der());
    assert_eq!(body.subject().to_string(), "CN=web.example.org,O=SPIRE,C=US");
    assert_eq!(body.subject_public_key_info().to_der().unwrap(), csr.public_key_der());
    assert_eq!(body.validity().not_before.to_unix_duration().as_secs() as i64, unix_seconds(now) - 10);
    assert_eq!(body.validity().not_after.to_unix_duration().as_secs() as i64, unix_seconds(now) + 600);
    let serial = body.serial_number().as_bytes();
    assert!(serial.len() <= 17 && serial[0] < 0x80, "positive and at most 128 bits: {serial:02x?}");

    let found = extensions(&leaf);
    let kinds: Vec<_> = found.iter().map(|(kind, critical, _)| (kind.as_str(), *critical)).collect();
    let expected = [
        ("2.5.29.15", true),
        ("2.5.29.37", false),
        ("2.5.29.19", true),
        ("2.5.29.14", false),
        ("2.5.29.35", false),
        ("2.5.29.17", false),
    ];
    assert_eq!(kinds, expected, "Go's extensions in Go's order");
    assert_eq!(found[0].2, [3, 2, 3, 0xa8]);
    assert_eq!(found[2].2, [0x30, 0]);
    let bits = body.subject_public_key_info().subject_public_key.raw_bytes();
    let sha1 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bits);
    assert_eq!(OctetString::from_der(&found[3].2).unwrap().as_bytes(), sha1.as_ref());
    let authority = AuthorityKeyIdentifier::from_der(&found[4].2).unwrap();
    assert_eq!(authority.key_identifier.unwrap().as_bytes(), active.certificate().subject_key_id().unwrap());

    let text = pki.describe(svid.leaf_der());
    for expected in [
        "Version: 3",
        "CA:FALSE",
        "Digital Signature, Key Encipherment, Key Agreement",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "DNS:web.example.org, DNS:*.shop.example.org, URI:spiffe://example.org/ns/shop/web",
    ] {
        assert!(text.contains(expected), "{expected} is missing in {text}");
    }
}

fn check_ca(ca: &Ca) {
    let active = ca.active();
    let certificate = parse(active.der());
    let found = extensions(&certificate);
    let mut expected = vec![("2.5.29.15", true), ("2.5.29.19", true), ("2.5.29.14", false)];
    if !active.above().is_empty() {
        expected.push(("2.5.29.35", false));
    }
    expected.push(("2.5.29.17", false));
    assert_eq!(
        found.iter().map(|(kind, critical, _)| (kind.as_str(), *critical)).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(found[0].2, [3, 2, 1, 6]);
    assert_eq!(found[1].2, [0x30, 3, 1, 1, 0xff], "a CA without a path length");
    assert_eq!(active.certificate().uris(), ["spiffe://example.org"]);
    active.certificate().check_for(&trust_domain()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn self_signed_chains_hold_for_every_key_type() {
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let ca = start(Machine { key_type, ..Machine::new().await }).await;
        check_ca(&ca);
        assert!(ca.active().certificate().is_self_signed() && ca.active().above().is_empty());
        let serial = ca.active().certificate().serial_decimal();
        assert_eq!(subject(ca.active().der()), format!("SERIALNUMBER={serial},O=SPIFFE,C=US"));
        check_leaf(&ca, &Pki::new()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn chains_below_an_enterprise_hold_for_every_key_type() {
    let enterprise = [
        (KeyType::EcP256, pki::RSA, pki::P384),
        (KeyType::EcP384, pki::P521, pki::RSA),
        (KeyType::Rsa2048, pki::P256, pki::ED25519),
    ];
    for (key_type, root, issuing) in enterprise {
        let pki = Pki::new();
        pki.root("root", root, ROOT, 3650, pki::CA);
        pki.below("policy", "root", pki::P256, "/O=Big Corp/CN=Policy", 3000, pki::CA);
        pki.below("issuing", "policy", issuing, ISSUING, 1825, "critical,CA:TRUE,pathlen:1");
        pki.join("chain.pem", &["issuing.pem", "policy.pem"]);
        let mut machine = Machine { key_type, ..Machine::new().await };
        machine.upstream =
            Some(pki.upstream("chain.pem", "issuing.key", Some("root.pem"), machine.clock.clone()));
        let ca = start(machine).await;
        check_ca(&ca);
        let issuing = AuthorityCertificate::read(&pki.der("issuing.pem")).unwrap();
        assert_eq!(ca.active().certificate().issuer_der(), issuing.subject_der(), "byte for byte");
        assert_eq!(ca.active().upstream_authority_id(), issuing.authority_id());
        assert_eq!(ca.active().above()[1..], [pki.der("issuing.pem"), pki.der("policy.pem")]);
        assert_eq!(ca.machine.roots().await, [pki.der("root.pem").to_vec()]);
        check_leaf(&ca, &pki).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_enterprise_root_may_sign_directly() {
    let pki = Pki::new();
    pki.root("root", pki::RSA, ROOT, 3650, pki::CA);
    let mut machine = Machine::new().await;
    machine.upstream = Some(pki.upstream("root.pem", "root.key", None, machine.clock.clone()));
    let ca = start(machine).await;
    assert_eq!(ca.active().above().len(), 1, "our CA; the root is not sent");
    check_leaf(&ca, &pki).await;

    // The root in both files: it is not sent either.
    let mut machine = Machine::new().await;
    machine.upstream = Some(pki.upstream("root.pem", "root.key", Some("root.pem"), machine.clock.clone()));
    let ca = start(machine).await;
    assert_eq!(ca.active().above().len(), 1);
    check_leaf(&ca, &pki).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_outlives_any_certificate_above_it() {
    let pki = Pki::new();
    pki.root("root", pki::P256, "/O=Big Corp/CN=Root", 3, pki::CA);
    pki.below("issuing", "root", pki::P256, "/O=Big Corp/CN=Issuing", 30, pki::CA);
    let root_ends = AuthorityCertificate::read(&pki.der("root.pem")).unwrap().not_after();
    let mut machine = Machine::new().await;
    machine.settings.ca_ttl = Duration::from_secs(10 * 24 * HOUR);
    machine.upstream =
        Some(pki.upstream("issuing.pem", "issuing.key", Some("root.pem"), machine.clock.clone()));
    let ca = start(machine).await;
    assert_eq!(ca.active().certificate().not_after(), root_ends, "the root ends before the intermediate");
    let who = authorized(entry("spiffe://example.org/w", 200 * HOUR as i32, &[]));
    let issued = ca.issuer.workload_x509(&who, &csr()).await.unwrap();
    assert_eq!(issued.svid.not_after(), root_ends);

    ca.machine.clock.jump(4 * 24 * HOUR as i64);
    let error = ca.issuer.workload_x509(&who, &csr()).await.unwrap_err();
    assert!(matches!(error, IssueError::Profile(ProfileError::ParentExpired(_))), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_operators_ca_subject_is_used() {
    let mut machine = Machine::new().await;
    machine.settings.ca_subject = SubjectSettings {
        country: vec!["DE".into(), "FR".into()],
        organization: vec!["Größe & Co".into()],
        common_name: "Trust".into(),
    };
    let ca = start(machine).await;
    let found = parse(ca.active().der()).tbs_certificate().subject().clone();
    assert_eq!(found.iter_rdn().count(), 4, "two countries are one RDN, as in Go");
    let text = Pki::new().describe(ca.active().der());
    assert!(text.contains("C=FR + C=DE") || text.contains("C=DE + C=FR"), "{text}");
    assert!(text.contains("CN=Trust"), "{text}");
    assert!(text.contains(&format!("serialNumber={}", ca.active().certificate().serial_decimal())), "{text}");
}

#[tokio::test(start_paused = true)]
async fn ids_that_are_not_workloads_of_ours_are_never_signed() {
    let ca = start(Machine::new().await).await;
    let profiles = Profiles::new(ca.machine.settings.clone());
    let parent = Parent::new(ca.active().certificate(), Vec::new(), i64::MAX);
    let at = Occasion { now: ca.now(), serial: Serial::from_random([1; 16]).unwrap() };
    for id in [
        "spiffe://other.org/w",
        "spiffe://example.org",
        "spiffe://example.org/spire",
        "spiffe://example.org/spire/server",
        "spiffe://example.org/spire/agent/x",
    ] {
        // Entries as a database made by others may hold them.
        let error = profiles.workload(&entry(id, 0, &[]), &csr(), &parent, at).unwrap_err();
        assert!(matches!(error, ProfileError::Id(_)), "{id}: {error}");
        let as_agent = profiles.agent(&SpiffeId::parse(id).unwrap(), &csr(), &parent, at);
        assert_eq!(as_agent.is_ok(), id == "spiffe://example.org/spire/agent/x", "{id}");
        let mint =
            MintIntent { id: SpiffeId::parse(id).unwrap(), dns_names: Vec::new(), ttl: Duration::ZERO };
        let permit = local("/spire.api.server.svid.v1.SVID/MintX509SVID", ca.now());
        let error = ca.issuer.minted_x509(&permit, &csr(), mint).await.unwrap_err();
        assert!(matches!(error, IssueError::Profile(ProfileError::Id(_))), "{id}: {error}");
    }
    ca.machine.issued.flush().await.unwrap();
    let only_ca = ca.machine.store.issued().list(&ListIssued::default()).await.unwrap();
    assert_eq!(only_ca.items.len(), 1, "nothing but the CA itself was recorded: {only_ca:?}");
}

#[tokio::test(start_paused = true)]
async fn everything_is_recorded() {
    let ca = start(Machine::new().await).await;
    let csr = csr();
    let who = authorized(entry("spiffe://example.org/w", 0, &[]));
    let svid = ca.issuer.workload_x509(&who, &csr).await.unwrap().svid;
    ca.machine.issued.flush().await.unwrap();
    let log = ca.machine.store.issued().list(&ListIssued::default()).await.unwrap().items;
    assert_eq!(log.len(), 2);
    assert_eq!(log[0].record.kind, IssuedKind::Ca);
    assert_eq!(log[0].record.authority_id, ca.active().authority_id(), "signed by itself");
    let record = &log[1].record;
    assert_eq!(record.kind, IssuedKind::Workload);
    assert_eq!(record.serial, svid.serial_decimal());
    assert_eq!(record.spiffe_id, "spiffe://example.org/w");
    assert_eq!((record.entry_id.as_str(), record.entry_revision), ("entry-1", 3));
    assert_eq!(record.agent_id, agent().to_string());
    assert_eq!(record.not_after, unix_seconds(svid.not_after()));
    assert_eq!(record.not_before, unix_seconds(svid.not_before()));
    assert_eq!(svid.not_after(), from_unix_seconds(unix_seconds(ca.now()) + 3600), "the default of one hour");
    assert_eq!(record.key_fingerprint, key_fingerprint(csr.public_key_der()));
}

#[tokio::test(start_paused = true)]
async fn a_minted_svid_takes_the_subject_of_its_csr() {
    let ca = start(Machine::new().await).await;
    let permit = local("/spire.api.server.svid.v1.SVID/MintX509SVID", ca.now());
    let mint = |dns: &[&str]| MintIntent {
        id: SpiffeId::parse("spiffe://example.org/minted").unwrap(),
        dns_names: dns.iter().map(|name| (*name).to_owned()).collect(),
        ttl: Duration::from_secs(60),
    };
    let asks = |name: &str| {
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let name = if name.is_empty() { Name::default() } else { name.parse().unwrap() };
        VerifiedCsr::from_der(&key.csr(&name, &[]).unwrap()).unwrap()
    };
    let given = asks("serialNumber=9,CN=mine,OU=unit,O=Org,DC=dropped,C=DE");
    let svid = ca.issuer.minted_x509(&permit, &given, mint(&[])).await.unwrap().svid;
    assert_eq!(subject(svid.leaf_der()), "SERIALNUMBER=9,CN=mine,OU=unit,O=Org,C=DE");
    assert_eq!(unix_seconds(svid.not_after()), unix_seconds(ca.now()) + 60);
    let svid = ca.issuer.minted_x509(&permit, &given, mint(&["a.example"])).await.unwrap().svid;
    assert_eq!(subject(svid.leaf_der()), "SERIALNUMBER=9,CN=a.example,OU=unit,O=Org,C=DE");
    let svid = ca.issuer.minted_x509(&permit, &asks(""), mint(&["a.example"])).await.unwrap().svid;
    assert_eq!(subject(svid.leaf_der()), "CN=a.example,O=SPIRE,C=US");

    let other = local("/spire.api.server.entry.v1.Entry/ListEntries", ca.now());
    let error = ca.issuer.minted_x509(&other, &given, mint(&[])).await.unwrap_err();
    assert!(matches!(error, IssueError::OtherPermit(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_nested_server_gets_a_ca_that_works() {
    let ca = start(Machine::new().await).await;
    let key = ca.machine.keys.generate("nested", KeyType::EcP256).await.unwrap();
    let request = keys::csr(&key, &spire_subject(), &["spiffe://example.org"]).await.unwrap();
    let request = VerifiedCsr::from_der(&request).unwrap();
    let who = authorized(entry("spiffe://example.org/nested", 0, &[]));
    let svid = ca.issuer.workload_x509(&who, &csr()).await.unwrap().svid;
    let caller = Caller::from_network(&ConnInfo::new(Origin::Memory, Some(svid.chain().into()))).unwrap();
    let flags = EntryFlags { downstream: true, ..EntryFlags::default() };
    let permit = granted(caller, "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", flags, ca.now());
    let issued = ca.issuer.downstream_ca(&permit, &request, Duration::ZERO).await.unwrap();
    assert_eq!(issued.chain.len(), 1, "ours is the root and not part of the chain");
    assert_eq!(issued.not_after, ca.active().certificate().not_after());
    let serial = ca.active().certificate().serial_decimal();
    assert_eq!(subject(&issued.chain[0]), format!("SERIALNUMBER={serial},OU=DOWNSTREAM-1,O=SPIFFE,C=US"));

    let roots = ca.machine.roots().await;
    let ends = chain::check(&issued.chain, &roots, 0, ca.now()).unwrap().ends;
    let nested = ActiveCa::new(key, issued.chain[0].clone(), issued.chain.clone(), ends).unwrap();
    nested.prove(&Profiles::new(ca.machine.settings.clone()), &roots, ca.now()).await.unwrap();
}
