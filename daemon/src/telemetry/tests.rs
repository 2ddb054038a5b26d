use std::time::Duration;

use super::*;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

/// A log at a fixed time: 2026-11-21T20:51:21.5Z.
async fn with_log(settings: TelemetrySettings, body: impl FnOnce(&LogHandle, &Captured)) {
    let clock = Clock::paused(SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_294_281_500));
    let captured = Captured::default();
    let output = Output { path: None, sink: Mutex::new(Box::new(captured.clone())) };
    let (subscriber, handle) = subscriber(&settings, clock, output);
    tracing::subscriber::with_default(subscriber, || body(&handle, &captured));
}

#[tokio::test(start_paused = true)]
async fn writes_logrus_lines() {
    with_log(TelemetrySettings::default(), |_, log| {
        tracing::info!(target: "finial_server::authority::drive", entry_id = "abc-1", ttl = 3600, "X509 CA activated");
        assert_eq!(
            log.take(),
            "time=\"2026-11-21T20:51:21Z\" level=info msg=\"X509 CA activated\" entry_id=abc-1 \
             subsystem_name=authority ttl=3600\n"
        );
        let error = io::Error::other("disk \"a\"\nfull");
        tracing::warn!(target: "finial_server", error = &error as &dyn std::error::Error, path = %"/x y", "Oops");
        assert_eq!(
            log.take(),
            "time=\"2026-11-21T20:51:21Z\" level=warning msg=Oops error=\"disk \\\"a\\\"\\nfull\" path=\"/x y\"\n"
        );
        tracing::error!(target: "finial_agent::x", r#type = "t", subsystem_name = "given", msg = "m", "A\u{1b}[0m");
        assert_eq!(
            log.take(),
            "time=\"2026-11-21T20:51:21Z\" level=error msg=\"A\\x1b[0m\" fields.msg=m subsystem_name=given type=t\n"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn adds_the_fields_of_spans_and_lets_the_event_win() {
    with_log(TelemetrySettings::default(), |_, log| {
        let outer = tracing::info_span!(target: "finial_server", "call", method = "AttestAgent", caller = tracing::field::Empty);
        let _outer = outer.enter();
        outer.record("caller", "10.0.0.1");
        let _inner = tracing::info_span!(target: "finial_server", "inner", agent_id = "a").entered();
        tracing::info!(target: "finial_server", agent_id = "b", "Done");
        assert_eq!(
            log.take(),
            "time=\"2026-11-21T20:51:21Z\" level=info msg=Done agent_id=b caller=10.0.0.1 method=AttestAgent\n"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn spreads_fields_that_an_event_names_itself() {
    with_log(TelemetrySettings::default(), |_, log| {
        let more = r#"{"hint":"a \"b\"\n","mode":"other","n":7}"#;
        tracing::info!(target: "finial_server", fields = more, mode = "own", "Done");
        assert_eq!(
            log.take(),
            "time=\"2026-11-21T20:51:21Z\" level=info msg=Done hint=\"a \\\"b\\\"\\n\" mode=own n=7\n"
        );
        tracing::info!(target: "finial_server", fields = "no object", "Done");
        assert_eq!(log.take(), "time=\"2026-11-21T20:51:21Z\" level=info msg=Done fields=\"no object\"\n");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn writes_json_and_places() {
    let settings =
        TelemetrySettings { format: LogFormat::Json, source_location: true, ..TelemetrySettings::default() };
    with_log(settings, |_, log| {
        tracing::info!(target: "finial_server", count = 2, ok = true, "Hello");
        let line: serde_json::Value = serde_json::from_str(&log.take()).unwrap();
        assert_eq!(line["level"], "info");
        assert_eq!(line["msg"], "Hello");
        assert_eq!(line["time"], "2026-11-21T20:51:21.5Z");
        assert_eq!(line["count"], 2);
        assert_eq!(line["ok"], true);
        assert!(line["file"].as_str().unwrap().starts_with("tests.rs:"), "{line}");
        assert_eq!(line["func"], module_path!());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn changes_the_level_while_running() {
    with_log(TelemetrySettings { level: LogLevel::Warn, ..TelemetrySettings::default() }, |handle, log| {
        let speak = || {
            tracing::error!(target: "finial_server", "e");
            tracing::info!(target: "finial_server", "i");
            tracing::trace!(target: "finial_server", "t");
            tracing::info!(target: "h2::codec", "library");
            log.take().lines().count()
        };
        assert_eq!(speak(), 1);
        handle.set_level(LogLevel::Trace);
        assert_eq!((handle.level(), handle.launch_level()), (LogLevel::Trace, LogLevel::Warn));
        assert_eq!(speak(), 3);
        handle.set_level(LogLevel::Fatal);
        assert_eq!(speak(), 0);
        handle.reset_level();
        assert_eq!((handle.level(), speak()), (LogLevel::Warn, 1));
    })
    .await;
}

#[test]
fn reopens_a_rotated_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.log");
    let output = Output::open(Some(path.clone())).unwrap();
    output.write(b"one\n");
    std::fs::rename(&path, dir.path().join("server.log.1")).unwrap();
    output.write(b"two\n");
    output.reopen().unwrap();
    output.write(b"three\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("server.log.1")).unwrap(), "one\ntwo\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");

    let nowhere = dir.path().join("missing/server.log");
    let text = Output::open(Some(nowhere)).err().unwrap().to_string();
    assert!(text.contains("missing/server.log") && text.contains("check log_file"), "{text}");
}

#[test]
fn names_are_those_of_spire() {
    for level in LogLevel::ALL {
        assert_eq!(level.name().to_uppercase().parse::<LogLevel>().unwrap(), level);
    }
    assert_eq!("warn".parse::<LogLevel>().unwrap(), LogLevel::Warn);
    assert_eq!("JSON".parse::<LogFormat>().unwrap(), LogFormat::Json);
    assert_eq!(
        "loud".parse::<LogLevel>().unwrap_err().to_string(),
        "unknown log level \"loud\"; must be one of panic, fatal, error, warn, info, debug, trace"
    );
    assert_eq!(
        "xml".parse::<LogFormat>().unwrap_err().to_string(),
        "unknown log format \"xml\"; must be one of text, json"
    );
}
