//! `health_checks { }`: whether the program works, over HTTP, for whoever restarts it or sends it traffic.
//!
//! The checks are made in the background, each second until all of them are well for the first time and each minute from
//! then on; who asks is told what was found last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use http::StatusCode;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::listen;
use crate::settings::Section;
use crate::web::{self, Answer};

const UNTIL_READY: Duration = Duration::from_secs(1);
const WHEN_READY: Duration = Duration::from_secs(60);

/// The block of both programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    pub listener_enabled: bool,
    /// A name or an address.
    pub bind_address: String,
    pub bind_port: u16,
    pub live_path: String,
    pub ready_path: String,
}

/// One thing that is looked at.
pub struct Check {
    pub name: &'static str,
    /// Looks at it. May take a minute.
    pub look: Box<dyn Fn() -> BoxFuture<'static, State> + Send + Sync>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether the start is over; until then a fault is no surprise.
    pub started: bool,
    pub live: bool,
    pub ready: bool,
    /// What there is to say, by name.
    pub live_details: Map<String, Value>,
    pub ready_details: Map<String, Value>,
}

impl Default for HealthSettings {
    fn default() -> HealthSettings {
        HealthSettings {
            listener_enabled: false,
            bind_address: "localhost".to_owned(),
            bind_port: 80,
            live_path: "/live".to_owned(),
            ready_path: "/ready".to_owned(),
        }
    }
}

impl HealthSettings {
    /// Reads the block out of the file's top. `bind_port` is a string; a number will do.
    pub fn read(top: &Section) -> HealthSettings {
        let default = HealthSettings::default();
        let Some(section) = top.block("health_checks") else { return default };
        let text = |key| section.string(key).filter(|text| !text.is_empty());
        HealthSettings {
            listener_enabled: section.bool("listener_enabled").unwrap_or(false),
            bind_address: text("bind_address").unwrap_or(default.bind_address),
            bind_port: section.number("bind_port").unwrap_or(default.bind_port),
            live_path: text("live_path").unwrap_or(default.live_path),
            ready_path: text("ready_path").unwrap_or(default.ready_path),
        }
    }
}

impl State {
    /// Live and ready without a fault, neither with one, which is told under `name`.
    pub fn of(name: &str, fault: Option<String>) -> State {
        let well = fault.is_none();
        let details: Map<String, Value> =
            fault.into_iter().map(|fault| (name.to_owned(), fault.into())).collect();
        State {
            started: true,
            live: well,
            ready: well,
            live_details: details.clone(),
            ready_details: details,
        }
    }

    fn fault(&self) -> Option<&'static str> {
        match (self.ready, self.live) {
            (true, true) => None,
            (true, false) => Some("subsystem is not live"),
            (false, true) => Some("subsystem is not ready"),
            (false, false) => Some("subsystem is not live or ready"),
        }
    }
}

/// Makes the checks, and serves what they find when `listener_enabled`, until `stop`.
pub async fn run(settings: HealthSettings, checks: Vec<Check>, clock: Clock, stop: CancellationToken) {
    let board = Arc::new(Board::new(&checks));
    let served = async {
        if settings.listener_enabled {
            serve(&settings, Arc::clone(&board), clock.clone(), stop.clone()).await;
        }
        stop.cancelled().await;
    };
    tokio::select! {
        () = served => {}
        () = keep_looking(&checks, &board, &clock) => {}
    }
}

async fn serve(settings: &HealthSettings, board: Arc<Board>, clock: Clock, stop: CancellationToken) {
    let subsystem_name = "health";
    let (host, port) = (settings.bind_address.trim_matches(['[', ']']), settings.bind_port);
    let listener = match web::bind(host, port).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, subsystem_name, "Error serving health checks");
            return;
        }
    };
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    tracing::info!(address, subsystem_name, "Serving health checks");
    let (live, ready) = (settings.live_path.clone(), settings.ready_path.clone());
    let pages = move |request: &http::request::Parts| match request.uri.path() {
        path if path == ready => board.answer(|state| state.ready, |state| &state.ready_details),
        path if path == live => board.answer(|state| state.live, |state| &state.live_details),
        _ => Answer::not_found(),
    };
    web::serve(listen::tcp(listener), None, Arc::new(pages), clock, stop).await;
}

async fn keep_looking(checks: &[Check], board: &Board, clock: &Clock) {
    let mut interval = UNTIL_READY;
    loop {
        let found = join_all(checks.iter().map(|check| (check.look)())).await;
        let all_well = found.iter().all(|state| state.fault().is_none());
        for (check, state) in checks.iter().zip(found) {
            board.put(check.name, state, clock.monotonic());
        }
        if all_well {
            interval = WHEN_READY;
        }
        clock.sleep(interval).await;
    }
}

/// What was found last, by check.
struct Board {
    entries: Mutex<BTreeMap<&'static str, Entry>>,
}

#[derive(Default)]
struct Entry {
    /// Nothing was found yet: neither live nor ready.
    state: Option<State>,
    /// Since when, in running time, and how often in a row.
    failing: Option<(Duration, u64)>,
    /// The last fault of the start that was told.
    told: Option<State>,
}

impl Board {
    fn new(checks: &[Check]) -> Board {
        let entries = checks.iter().map(|check| (check.name, Entry::default())).collect();
        Board { entries: Mutex::new(entries) }
    }

    fn answer(&self, is_well: fn(&State) -> bool, details: fn(&State) -> &Map<String, Value>) -> Answer {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all_well = true;
        let mut body = Map::new();
        for (name, entry) in entries.iter() {
            all_well &= entry.state.as_ref().is_some_and(is_well);
            let details = entry.state.as_ref().map(|state| Value::Object(details(state).clone()));
            body.insert((*name).to_owned(), details.unwrap_or(Value::Null));
        }
        let status = if all_well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
        Answer { status, content_type: "application/json", body: format!("{}\n", Value::Object(body)) }
    }

    fn put(&self, check: &'static str, state: State, now: Duration) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.entry(check).or_default();
        let subsystem_name = "health";
        let details = details_text(&state);
        match (state.fault(), entry.failing) {
            (Some(error), failing) => {
                if state.started {
                    tracing::error!(check, error, subsystem_name, "Health check has failed");
                } else if entry.told.as_ref() != Some(&state) {
                    tracing::warn!(
                        check,
                        error,
                        subsystem_name,
                        "Health check has failed. Starting up still."
                    );
                    entry.told = Some(state.clone());
                }
                if failing.is_none() {
                    tracing::warn!(check, details, error, subsystem_name, "Health check failed");
                }
                let (since, times) = failing.unwrap_or((now, 0));
                entry.failing = Some((since, times + 1));
            }
            (None, Some((since, failures))) => {
                let duration = now.saturating_sub(since).as_secs_f64();
                let error = entry.state.as_ref().and_then(State::fault);
                tracing::info!(
                    check,
                    details,
                    error,
                    failures,
                    duration,
                    subsystem_name,
                    "Health check recovered"
                );
                entry.failing = None;
            }
            (None, None) => {}
        }
        entry.state = Some(state);
    }
}

fn details_text(state: &State) -> String {
    serde_json::json!({
        "Live": state.live,
        "Ready": state.ready,
        "LiveDetails": state.live_details,
        "ReadyDetails": state.ready_details,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::UNIX_EPOCH;

    use super::*;

    fn answers(board: &Board) -> [(u16, String); 2] {
        let live = board.answer(|state| state.live, |state| &state.live_details);
        let ready = board.answer(|state| state.ready, |state| &state.ready_details);
        [(live.status.as_u16(), live.body), (ready.status.as_u16(), ready.body)]
    }

    /// A check that finds what it is told to, and counts.
    fn check(name: &'static str, well: &Arc<AtomicBool>, looks: &Arc<AtomicU32>) -> Check {
        let (well, looks) = (Arc::clone(well), Arc::clone(looks));
        let look = move || -> BoxFuture<'static, State> {
            looks.fetch_add(1, Ordering::Relaxed);
            let fault = (!well.load(Ordering::Relaxed)).then(|| "broken".to_owned());
            Box::pin(std::future::ready(State::of("some_err", fault)))
        };
        Check { name, look: Box::new(look) }
    }

    #[tokio::test(start_paused = true)]
    async fn looked_at_each_second_until_well_and_each_minute_then() {
        let clock = Clock::paused(UNIX_EPOCH);
        let (well, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let always = Arc::new(AtomicBool::new(true));
        let checks =
            vec![check("server", &well, &looks), check("catalog.datastore", &always, &Arc::default())];
        let board = Board::new(&checks);
        let nothing_yet = (500, "{\"catalog.datastore\":null,\"server\":null}\n".to_owned());
        assert_eq!(answers(&board), [nothing_yet.clone(), nothing_yet]);
        let after = |millis| clock.sleep(Duration::from_millis(millis));
        let script = async {
            after(3500).await;
            assert_eq!(looks.load(Ordering::Relaxed), 4);
            let broken =
                (500, "{\"catalog.datastore\":{},\"server\":{\"some_err\":\"broken\"}}\n".to_owned());
            assert_eq!(answers(&board), [broken.clone(), broken]);
            well.store(true, Ordering::Relaxed);
            after(1000).await;
            let fine = (200, "{\"catalog.datastore\":{},\"server\":{}}\n".to_owned());
            assert_eq!(answers(&board), [fine.clone(), fine]);
            assert_eq!(looks.load(Ordering::Relaxed), 5);
            well.store(false, Ordering::Relaxed);
            after(59_000).await;
            assert_eq!(answers(&board)[0].0, 200, "known no better");
            after(1000).await;
            assert_eq!(answers(&board)[0].0, 500);
            after(600_000).await;
            assert_eq!(looks.load(Ordering::Relaxed), 16, "once a minute, also while it is broken");
        };
        tokio::select! {
            () = script => {}
            () = keep_looking(&checks, &board, &clock) => {}
        }
    }

    #[test]
    fn the_block_is_spires() {
        let read = |text: &str| {
            let file = crate::settings::parse(text, "server.conf").unwrap();
            let top = Section::new(&file);
            let settings = HealthSettings::read(&top);
            top.finish().map(|()| settings).map_err(|error| error.to_string())
        };
        assert_eq!(read("").unwrap(), HealthSettings::default());
        let settings = HealthSettings {
            listener_enabled: true,
            bind_address: "0.0.0.0".to_owned(),
            bind_port: 8080,
            live_path: "/l".to_owned(),
            ready_path: "/r".to_owned(),
        };
        let text =
            "listener_enabled = true bind_address = \"0.0.0.0\" live_path = \"/l\" ready_path = \"/r\"";
        assert_eq!(read(&format!("health_checks {{ {text} bind_port = \"8080\" }}")).unwrap(), settings);
        assert_eq!(read(&format!("health_checks {{ {text} bind_port = 8080 }}")).unwrap(), settings);
        assert!(read("health_checks { listener = true }").unwrap_err().contains("unknown key \"listener\""));
        assert!(read("health_checks { bind_port = \"http\" }").unwrap_err().contains("bind_port"));
    }
}
