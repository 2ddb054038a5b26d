use std::time::SystemTime;

use super::*;

/// What a registry shows, as Prometheus reads it.
struct Page {
    registry: Arc<Registry>,
    clock: Clock,
}

impl Page {
    fn text(&self) -> String {
        self.registry.page(self.clock.monotonic())
    }
}

fn program() -> Program {
    Program { prefix: "spire_server", trust_domain: "example.org".to_owned() }
}

fn paged(program: &Program, clock: Clock) -> (Metrics, Page) {
    let registry = Arc::new(Registry::default());
    let settings = MetricsSettings { hostname_label: Some(false), ..MetricsSettings::default() };
    let sinks = vec![Sink::Prometheus(Arc::clone(&registry))];
    (Metrics::with(&settings, program, sinks, clock.clone()), Page { registry, clock })
}

fn clock() -> Clock {
    Clock::paused(SystemTime::UNIX_EPOCH)
}

/// The lines about one family.
fn family(page: &Page, name: &str) -> Vec<String> {
    let text = page.text();
    let about =
        |line: &&str| line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with(name);
    text.lines().filter(about).map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_call_is_counted_and_timed_with_its_outcome() {
    let clock = clock();
    let (metrics, page) = paged(&program(), clock.clone());
    let mut call = metrics.call(&["rpc", "agent", "v1", "attest"]);
    call.label("attestor", "join_token");
    tokio::time::advance(Duration::from_millis(1500)).await;
    call.done(OK);
    assert_eq!(
        family(&page, "spire_server_rpc"),
        [
            "# HELP spire_server_rpc_agent_v1_attest spire_server_rpc_agent_v1_attest",
            "# TYPE spire_server_rpc_agent_v1_attest counter",
            "spire_server_rpc_agent_v1_attest{attestor=\"join_token\",status=\"OK\"} 1",
            "# HELP spire_server_rpc_agent_v1_attest_elapsed_time spire_server_rpc_agent_v1_attest_elapsed_time",
            "# TYPE spire_server_rpc_agent_v1_attest_elapsed_time summary",
            "spire_server_rpc_agent_v1_attest_elapsed_time{attestor=\"join_token\",status=\"OK\",quantile=\"0.5\"} 1500",
            "spire_server_rpc_agent_v1_attest_elapsed_time{attestor=\"join_token\",status=\"OK\",quantile=\"0.9\"} 1500",
            "spire_server_rpc_agent_v1_attest_elapsed_time{attestor=\"join_token\",status=\"OK\",quantile=\"0.99\"} 1500",
            "spire_server_rpc_agent_v1_attest_elapsed_time_sum{attestor=\"join_token\",status=\"OK\"} 1500",
            "spire_server_rpc_agent_v1_attest_elapsed_time_count{attestor=\"join_token\",status=\"OK\"} 1",
        ]
    );
    metrics.call(&["gone"]).discard();
    assert!(family(&page, "spire_server_gone").is_empty());
    drop(metrics.call(&["dropped"]));
    assert_eq!(family(&page, "spire_server_dropped{"), ["spire_server_dropped{status=\"Canceled\"} 1"]);
    let failed: Result<(), u8> = metrics.timed(&["failing"], |_| UNKNOWN, async { Err(1) }).await;
    assert_eq!(failed, Err(1));
    assert_eq!(family(&page, "spire_server_failing{"), ["spire_server_failing{status=\"Unknown\"} 1"]);
}

#[tokio::test(start_paused = true)]
async fn names_and_labels_are_made_as_go_metrics_makes_them() {
    let (metrics, page) = paged(&program(), clock());
    metrics.gauge_with(
        &["rate-limit", "a b"],
        1_471_423.0,
        &[("trust_domain_id", "example.org"), ("b", "1.15.3-dev")],
    );
    metrics.gauge_with(&["rate-limit", "a b"], -0.000_012, &[("odd", "a\"b\n é_x")]);
    assert_eq!(
        family(&page, "spire_server_rate_limit_a_b{"),
        [
            "spire_server_rate_limit_a_b{b=\"1_15_3_dev\",trust_domain_id=\"example_org\"} 1.471423e+06",
            "spire_server_rate_limit_a_b{odd=\"a_b_x\"} -1.2e-05",
        ]
    );
    // A name keeps its first type: a page with two would not be read at all.
    metrics.count(&["rate-limit", "a b"], 1);
    assert_eq!(family(&page, "spire_server_rate_limit_a_b{").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn things_that_are_gone_are_not_shown() {
    let (metrics, page) = paged(&program(), clock());
    let key = ["finial", "authority", "expiration"];
    metrics.gauges(&key, &[(vec![("id", "a")], 1.0), (vec![("id", "b")], 2.0)]);
    metrics.gauges(&key, &[(vec![("id", "b")], 2.0), (vec![("id", "c")], 3.0)]);
    let name = "spire_server_finial_authority_expiration";
    assert_eq!(
        family(&page, &format!("{name}{{")),
        [format!("{name}{{id=\"b\"}} 2"), format!("{name}{{id=\"c\"}} 3")]
    );
}

#[test]
fn filters_are_go_metrics() {
    let filter = |allowed: &[&str], blocked: &[&str]| {
        let list = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Filter::new(&MetricsSettings {
            allowed_prefixes: list(allowed),
            blocked_prefixes: list(blocked),
            ..MetricsSettings::default()
        })
    };
    let key = ["spire_server", "rpc", "agent", "v1"];
    assert!(filter(&[], &[]).admits(&key));
    assert!(!filter(&[], &["spire_server.rpc"]).admits(&key));
    assert!(filter(&["spire_server.rpc.agent"], &["spire_server.rpc"]).admits(&key));
    assert!(!filter(&["spire_server.rpc"], &["spire_server.rpc.a"]).admits(&key));
    assert!(!filter(&["spire_server.rpc"], &["spire_server.rpc"]).admits(&key));
    // What no prefix matches goes through, also when some are allowed.
    assert!(filter(&["spire_agent"], &[]).admits(&key));

    let labels = |allowed: Option<&[&str]>, blocked: &[&str]| {
        Filter::new(&MetricsSettings {
            allowed_labels: allowed.map(|list| list.iter().map(|&text| text.to_owned()).collect()),
            blocked_labels: blocked.iter().map(|&text| text.to_owned()).collect(),
            ..MetricsSettings::default()
        })
    };
    assert!(labels(None, &[]).admits_label("host"));
    assert!(!labels(None, &["host"]).admits_label("host"));
    assert!(!labels(Some(&[]), &[]).admits_label("host"));
    assert!(labels(Some(&["host"]), &[]).admits_label("host"));
    assert!(!labels(Some(&["host"]), &["host"]).admits_label("host"));
}

#[test]
fn pushed_lines_have_spires_form() {
    let labels = [("status".to_owned(), "OK".to_owned()), ("host".to_owned(), "a:b c".to_owned())];
    let point = |value| Point { key: &["spire_server", "rpc", "a b"], labels: &labels, value };
    assert_eq!(statsd::line(&point(Value::Count(2))), "spire_server.rpc.a_b.OK.a_b_c:2.000000|c\n");
    assert_eq!(statsd::line(&point(Value::Gauge(0.5))), "spire_server.rpc.a_b.OK.a_b_c:0.500000|g\n");
    assert_eq!(statsd::line(&point(Value::Sample(1.25))), "spire_server.rpc.a_b.OK.a_b_c:1.250000|ms\n");
    assert_eq!(statsd::dog_line(&point(Value::Count(2))), "spire_server.rpc.a_b:2|c|#status:OK,host:a_b_c\n");
    assert_eq!(
        statsd::dog_line(&point(Value::Gauge(1_795_306_139.0))),
        "spire_server.rpc.a_b:1795306139|g|#status:OK,host:a_b_c\n"
    );
    assert_eq!(
        statsd::dog_line(&point(Value::Sample(1.25))),
        "spire_server.rpc.a_b:1.250000|ms|#status:OK,host:a_b_c\n"
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_hour_can_be_dumped() {
    let clock = clock();
    let settings =
        MetricsSettings { in_mem: true, hostname_label: Some(false), ..MetricsSettings::default() };
    let (metrics, sinks) = Metrics::new(&settings, &program(), clock.clone());
    let recent = sinks.recent.unwrap();
    metrics.count_with(&["calls"], 1, &[("status", "OK")]);
    metrics.sample(&["size"], 1.0);
    metrics.sample(&["size"], 3.0);
    metrics.gauge(&["level"], 7.0);
    assert!(recent.recent.lines(clock.now()).is_empty(), "the second is not over");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(
        recent.recent.lines(clock.now()),
        [
            "[1970-01-01 00:00:00 +0000 UTC][G] 'spire_server.level': 7.000",
            "[1970-01-01 00:00:00 +0000 UTC][C] 'spire_server.calls.OK': Count: 1 Sum: 1.000 LastUpdated: 1970-01-01 00:00:00 +0000 UTC",
            "[1970-01-01 00:00:00 +0000 UTC][S] 'spire_server.size': Count: 2 Min: 1.000 Mean: 2.000 Max: 3.000 Stddev: 1.414 Sum: 4.000 LastUpdated: 1970-01-01 00:00:00 +0000 UTC",
        ]
    );
    for _ in 0..4000 {
        tokio::time::advance(Duration::from_secs(1)).await;
        metrics.gauge(&["level"], 8.0);
    }
    assert_eq!(recent.recent.lines(clock.now()).len(), 3599, "of an hour, but not of the second under way");
}

#[tokio::test]
async fn numbers_reach_every_sink_there_is() {
    let receiver = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dog.sock");
    let dog = tokio::net::UnixDatagram::bind(&path).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = MetricsSettings {
        statsd: vec![Addressed { address: receiver.local_addr().unwrap().to_string() }],
        dog_statsd: vec![Addressed { address: format!("unix://{}", path.display()) }],
        prometheus: Some(PrometheusSettings { host: "localhost".to_owned(), port, tls: None }),
        trust_domain_label: true,
        prefix: Some("mine".to_owned()),
        blocked_labels: vec!["host".to_owned()],
        ..MetricsSettings::default()
    };
    let (metrics, sinks) = Metrics::new(&settings, &program(), Clock::wall());
    let stop = CancellationToken::new();
    let nobody = SpiffeTls { svid: Arc::new(|| None), authorities: Arc::new(|_| Vec::new()) };
    let task = tokio::spawn(sinks.open(nobody, false, stop.clone()).await.unwrap());
    metrics.count(&["calls"], 3);
    let mut bytes = [0; 2000];
    let read = receiver.recv(&mut bytes).await.unwrap();
    let text = std::str::from_utf8(&bytes[..read]).unwrap().to_owned();
    assert!(text.contains("mine.calls.example_org:3.000000|c\n"), "{text}");
    let read = dog.recv(&mut bytes).await.unwrap();
    let text = std::str::from_utf8(&bytes[..read]).unwrap().to_owned();
    assert!(text.contains("mine.calls:3|c|#trust_domain:example_org\n"), "{text}");
    let page = get(port, "/any/path").await;
    assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
    assert!(page.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{page}");
    assert!(page.contains("\nmine_calls{trust_domain=\"example_org\"} 3\n"), "{page}");
    assert!(page.contains("\nmine_uptime_in_ms{trust_domain=\"example_org\"} "), "{page}");
    assert!(page.contains("\n# TYPE process_open_fds gauge\n"), "{page}");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_receiver_that_is_none_is_an_error() {
    let settings = MetricsSettings {
        statsd: vec![Addressed { address: "no port".to_owned() }],
        ..MetricsSettings::default()
    };
    let (_, sinks) = Metrics::new(&settings, &program(), Clock::wall());
    let nobody = SpiffeTls { svid: Arc::new(|| None), authorities: Arc::new(|_| Vec::new()) };
    let Err(error) = sinks.open(nobody, false, CancellationToken::new()).await else { panic!("accepted") };
    assert!(error.to_string().starts_with("cannot push metrics to \"no port\": "), "{error}");
}

async fn get(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = None;
    while stream.is_none() {
        stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok();
        tokio::task::yield_now().await;
    }
    let mut stream = stream.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}
