//! SPIFFE IDs at the doors of the server: entries, requests for certificates, trust domains by name.
//!
//! `identity` holds the same table against its parser. Here it is the services that must neither let an invalid ID in
//! nor change a valid one.

use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_daemon::keys::{KeyType, WorkloadKey, spire_subject};
use finial_daemon::listen;
use finial_daemon::metrics::Metrics;
use finial_daemon::settings;
use finial_daemon::telemetry::{LogHandle, LogLevel};
use finial_identity::x509_svid::X509Svid;
use finial_identity::{TrustDomain, peer};
use finial_proto::spire::api::server::bundle::v1::GetFederatedBundleRequest;
use finial_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, CountEntriesRequest};
use finial_proto::spire::api::server::svid::v1::MintX509svidRequest;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::types;
use finial_tests::world::{World, id, my_uid};
use tonic::Code;

/// Paths that an ID in the trust domain may have, V02 to V14 and V31.
fn valid_paths() -> Vec<String> {
    let mut paths: Vec<String> = [
        "/a",
        "/ns/staging/sa/default",
        "/9eebccd2-12bf-40a6-b262-65fe0487d453",
        "/A/b/C",
        "/.hidden",
        "/..foo",
        "/...",
        "/a..b",
        "/foo.",
        "/_",
        "/-",
        "/a_b-c.d",
        "/0",
    ]
    .map(str::to_owned)
    .into();
    paths.push(format!("/{}", "p".repeat(2027)));
    paths
}

/// Trust domains V15 to V28 and V30.
fn valid_trust_domains() -> Vec<String> {
    let mut names: Vec<String> = [
        "1.2.3.4",
        "trust_domain",
        "_",
        "-",
        ".",
        "..",
        "a..b",
        "example.org.",
        "-example-",
        "1",
        "td",
        "localhost",
        "999.999.999.999",
        "xn--bcher-kva.example",
    ]
    .map(str::to_owned)
    .into();
    names.push("a".repeat(255));
    names
}

/// R01 to R92, and of those to be decided C1, C3, C4 and C6: refused, not lowered.
const INVALID: [(&str, &str); 96] = [
    ("R01", ""),
    ("R02", "spiffe"),
    ("R03", "spiffe:"),
    ("R04", "spiffe:/"),
    ("R05", "spiffe://"),
    ("R06", "spiffe:///"),
    ("R07", "spiffe:///path"),
    ("R08", "spiffe:example.org/x"),
    ("R09", "spiffe:/example.org/x"),
    ("R10", "://example.org/x"),
    ("R11", "//example.org/x"),
    ("R12", "example.org/x"),
    ("R13", "https://example.org/x"),
    ("R14", "spiffes://example.org/x"),
    ("R15", "spiff://example.org/x"),
    ("R16", "spiffe ://example.org/x"),
    ("R17", " spiffe://example.org/x"),
    ("R18", "spiffe://example.org/x "),
    ("R19", "spiffe://example.org/x\n"),
    ("R20", "\u{feff}spiffe://example.org/x"),
    ("R21", "spiffe://example.org/"),
    ("R22", "spiffe://example.org//"),
    ("R23", "spiffe://example.org//x"),
    ("R24", "spiffe://example.org/x/"),
    ("R25", "spiffe://example.org/x//y"),
    ("R26", "spiffe://example.org/."),
    ("R27", "spiffe://example.org/.."),
    ("R28", "spiffe://example.org/./x"),
    ("R29", "spiffe://example.org/../x"),
    ("R30", "spiffe://example.org/x/."),
    ("R31", "spiffe://example.org/x/.."),
    ("R32", "spiffe://example.org/x/./y"),
    ("R33", "spiffe://example.org/x/../y"),
    ("R34", "spiffe://example.org?q=1"),
    ("R35", "spiffe://example.org/x?q=1"),
    ("R36", "spiffe://example.org/x?"),
    ("R37", "spiffe://example.org#f"),
    ("R38", "spiffe://example.org/x#f"),
    ("R39", "spiffe://example.org/x#"),
    ("R40", "spiffe://user@example.org/x"),
    ("R41", "spiffe://user:pw@example.org/x"),
    ("R42", "spiffe://@example.org/x"),
    ("R43", "spiffe://example.org:8443/x"),
    ("R44", "spiffe://example.org:/x"),
    ("R45", "spiffe://[::1]/x"),
    ("R46", "spiffe://[2001:db8::1]:80/x"),
    ("R47", "spiffe://example%2eorg/x"),
    ("R48", "spiffe://%65xample.org/x"),
    ("R49", "spiffe://example.org/%61"),
    ("R50", "spiffe://example.org/a%2Fb"),
    ("R51", "spiffe://example.org/%2e%2e/x"),
    ("R52", "spiffe://example.org/x%"),
    ("R53", "spiffe://exam ple.org/x"),
    ("R54", "spiffe://example.org/a b"),
    ("R55", "spiffe://example.org/a+b"),
    ("R56", "spiffe://example.org/a:b"),
    ("R57", "spiffe://example.org/a@b"),
    ("R58", "spiffe://example.org/a~b"),
    ("R59", "spiffe://example.org/a!b"),
    ("R60", "spiffe://example.org/a$b"),
    ("R61", "spiffe://example.org/a*b"),
    ("R62", "spiffe://example.org/a,b;c=d"),
    ("R63", "spiffe://example.org/(a)"),
    ("R64", "spiffe://example.org/a'b"),
    ("R65", "spiffe://example.org/a\\b"),
    ("R66", "spiffe://example.org\\x"),
    ("R67", "spiffe:\\\\example.org\\x"),
    ("R68", "spiffe://example.org/a\"b"),
    ("R69", "spiffe://example.org/{a}"),
    ("R70", "spiffe://example.org/<a>"),
    ("R71", "spiffe://example.org/a|b"),
    ("R72", "spiffe://example.org/a^b"),
    ("R73", "spiffe://example.org/a`b"),
    ("R74", "spiffe://example.org/a[0]"),
    ("R75", "spiffe://example.org/a\0b"),
    ("R76", "spiffe://example.org\0.evil.com/x"),
    ("R77", "spiffe://example.org/a\tb"),
    ("R78", "spiffe://example.org/\u{e9}"),
    ("R79", "spiffe://ex\u{e4}mple.org/x"),
    ("R80", "spiffe://b\u{fc}cher.example/x"),
    ("R81", "spiffe://example.org/\u{2215}"),
    ("R82", "spiffe://example\u{3002}org/x"),
    ("R83", "spiffe://ex!ample.org/x"),
    ("R84", "spiffe://example~org/x"),
    ("R85", "spiffe://example.org,other.org/x"),
    ("R86", "spiffe://*.example.org/x"),
    ("R87", "spiffe://example.org/*"),
    ("R88", "spiffe://example.org/\u{1f92f}"),
    ("R89", "spiffe://example.org;v=1/x"),
    ("R90", "spiffe://$td/x"),
    ("R91", "spiffe://example.org/a/b/../../../c"),
    ("R92", "spiffe://example.org&/x"),
    ("C1", "SPIFFE://example.org/x"),
    ("C3", "spiffe://EXAMPLE.org/x"),
    ("C4", "spiffe://Example.Org"),
    ("C6", "Spiffe://example.org/x"),
];

/// The wire has trust domain and path apart. What does not begin as an ID does is tried as each of them.
fn on_the_wire(text: &str) -> Vec<types::Spiffeid> {
    let whole = |trust_domain: &str, path: &str| types::Spiffeid {
        trust_domain: trust_domain.to_owned(),
        path: path.to_owned(),
    };
    match text.strip_prefix("spiffe://") {
        Some(rest) => {
            let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            vec![whole(trust_domain, path)]
        }
        None => vec![whole(text, ""), whole("example.org", text)],
    }
}

#[tokio::test(start_paused = true)]
async fn no_invalid_id_becomes_an_entry() {
    let world = World::new().await;
    let mut asked = Vec::new();
    for (case, text) in INVALID {
        for bad in on_the_wire(text) {
            let good = || types::Entry {
                spiffe_id: Some(id("w")),
                parent_id: Some(id("node")),
                selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
                ..types::Entry::default()
            };
            asked.push((case, "spiffe ID", types::Entry { spiffe_id: Some(bad.clone()), ..good() }));
            asked.push((case, "parent ID", types::Entry { parent_id: Some(bad), ..good() }));
        }
    }
    let entries = asked.iter().map(|(_, _, entry)| entry.clone()).collect();
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let results = world.entries().batch_create_entry(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), asked.len());
    for ((case, place, entry), result) in asked.iter().zip(results) {
        let status = result.status.unwrap();
        assert_eq!(status.code, Code::InvalidArgument as i32, "{case} as {place}: {entry:?}: {status:?}");
        let start = format!("failed to convert entry: invalid {place}: ");
        assert!(status.message.starts_with(&start), "{case}: {status:?}");
        assert_eq!(result.entry, None);
    }
    let count =
        world.entries().count_entries(CountEntriesRequest::default()).await.unwrap().into_inner().count;
    assert_eq!(count, 0);
}

#[tokio::test(start_paused = true)]
async fn no_invalid_id_is_certified() {
    let world = World::new().await;
    let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
    let mut tried = 0;
    for (case, text) in INVALID {
        // Only ASCII can stand in a certificate.
        let Ok(csr) = key.csr(&spire_subject(), &[text]) else { continue };
        let refused = world.svids().mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{case}: {refused}");
        assert!(refused.message().starts_with("CSR URI SAN is invalid: "), "{case}: {refused}");
        tried += 1;
    }
    assert_eq!(tried, INVALID.iter().filter(|(_, text)| text.is_ascii()).count());
}

#[tokio::test(start_paused = true)]
async fn no_invalid_id_names_a_trust_domain() {
    let world = World::new().await;
    for (case, text) in INVALID {
        // A bare name is as good as an ID here.
        if case == "R02" {
            continue;
        }
        let request = GetFederatedBundleRequest { trust_domain: text.to_owned(), output_mask: None };
        let refused = world.bundles().get_federated_bundle(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{case}: {refused}");
        assert!(refused.message().starts_with("trust domain argument is not valid: "), "{case}: {refused}");
    }
    for name in valid_trust_domains() {
        for text in [name.clone(), format!("spiffe://{name}"), format!("spiffe://{name}/x/y")] {
            let request = GetFederatedBundleRequest { trust_domain: text.clone(), output_mask: None };
            let refused = world.bundles().get_federated_bundle(request).await.unwrap_err();
            assert_eq!((refused.code(), refused.message()), (Code::NotFound, "bundle not found"), "{text}");
        }
    }
}

/// Valid IDs arrive at the workload as they were registered; upper and lower case are two IDs (ID-13, ID-16).
#[tokio::test(start_paused = true)]
async fn valid_ids_reach_the_workload_unchanged() {
    let world = World::new().await;
    let node = world.node("node").await;
    let mut paths = valid_paths();
    paths.push("/A".to_owned());
    for path in &paths {
        world.register("node", &path[1..], &[my_uid()]).await;
    }
    let mut updates = node.me().open().await;
    let context = updates.until(&world.clock, |context| context.svids.len() >= paths.len()).await;
    paths.sort();
    let served: Vec<&str> = context.svids.values().map(|svid| svid.id().path()).collect();
    assert_eq!(served, paths);

    // No SVID for the trust domain itself (V01) nor in the reserved part (V29); no ID beyond 2048 bytes (C2).
    for (path, names) in [
        (String::new(), "path is empty"),
        ("/spire/agent/join_token/abc".to_owned(), "path is in the reserved namespace"),
        (format!("/{}", "p".repeat(2028)), "2048"),
    ] {
        let spiffe_id = Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path });
        let entry = types::Entry {
            spiffe_id,
            parent_id: Some(id("node")),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            ..types::Entry::default()
        };
        let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let results = world.entries().batch_create_entry(request).await.unwrap().into_inner().results;
        let status = results[0].status.as_ref().unwrap();
        assert_eq!(status.code, Code::InvalidArgument as i32);
        assert!(status.message.contains(names), "{status:?}");
    }
}

/// ID-08: a trust domain that looks like something else is a trust domain like any other.
#[tokio::test(start_paused = true)]
async fn every_valid_trust_domain_can_have_a_server() {
    for name in valid_trust_domains() {
        let text = format!(
            r#"server {{ trust_domain = "{name}" data_dir = "/nowhere" }}
            plugins {{
                DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = ":memory:" }} }}
                KeyManager "memory" {{ plugin_data {{}} }}
            }}"#
        );
        let file = settings::parse(&text, "server.conf").unwrap();
        let settings = finial_server::settings::Settings::read(&file, &Default::default()).unwrap();
        let clock = Clock::paused(World::beginning());
        let (_network, api) = listen::memory();
        let (socket, admin) = listen::memory();
        let log = LogHandle::detached(LogLevel::Info);
        let around = finial_server::build::Surroundings {
            clock: clock.clone(),
            api,
            admin,
            log,
            metrics: Metrics::none(clock.clone()),
        };
        let built = finial_server::build::build(settings, around).await.unwrap();
        let (bundle, stop) = (built.handles.own_bundle.clone(), built.handles.stop.clone());
        let served = tokio::spawn(built.task);

        let uri = format!("spiffe://{name}/workload");
        let key = WorkloadKey::generate(KeyType::EcP256).unwrap();
        let csr = key.csr(&spire_subject(), &[&uri]).unwrap();
        let channel = dial::channel(Dialer::Memory(socket), None, "localhost");
        let minted = SvidClient::new(channel).mint_x509svid(MintX509svidRequest { csr, ttl: 60 }).await;
        let chain = minted.unwrap().into_inner().svid.unwrap().cert_chain;
        let svid = X509Svid::read(chain.into_iter().map(Into::into).collect()).unwrap();
        assert_eq!(svid.id().as_str(), uri);
        assert_eq!(svid.id().trust_domain(), TrustDomain::parse(&name).unwrap());
        let roots: Vec<_> = bundle.current().x509_authorities.iter().map(|root| root.der.clone()).collect();
        peer::verify_svid(&svid, &roots, clock.now() + Duration::from_secs(1)).unwrap();
        stop.cancel();
        served.await.unwrap().unwrap();
    }
}
