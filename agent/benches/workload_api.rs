//! How long a workload waits for the SVIDs that its agent holds, X.509 and JWT, and what agent and server hold of memory, with 10,000
//! entries on the node of which one is the caller's.
//!
//! `cargo bench -p finial-agent`, after `cargo build --release --bins`; see [`estate`] for the programs. Takes one to
//! two minutes; asserts nothing.

#[path = "../../server/benches/estate/mod.rs"]
mod estate;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use estate::table::{self, Row};
use estate::{Estate, Memory, Outcome, Programs};
use finial_daemon::clock::Clock;
use finial_daemon::dial::{self, Dialer};
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{JwtsvidRequest, X509svidRequest};
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

const ENTRIES: usize = 10_000;
const WARM_UP: usize = 500;
const CALLS: usize = 5_000;
const CONNECTIONS: usize = 500;
/// How long the agent may take to attest and sync.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workload_api: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn compare() -> Outcome<()> {
    let programs = Programs::all()?;
    println!("load before: {}", estate::load());
    let mut all = Vec::new();
    for one in &programs {
        all.push(measure(one).await?);
    }
    println!("load after: {}", estate::load());

    let column = |value: &dyn Fn(&Figures) -> f64| all.iter().map(value).collect::<Vec<_>>();
    let mut rows =
        vec![Row::new("from the agent's start to the first SVID, ms", 0, column(&|f| f.first), "")];
    type Waits = fn(&Figures) -> &[f64];
    let measures: [(&str, Waits, &str); 3] = [
        ("kept connection", |f| &f.on_kept_connection, "below 1"),
        ("new connection", |f| &f.on_new_connection, ""),
        ("cached FetchJWTSVID, kept connection", |f| &f.jwt, "below 1"),
    ];
    for (what, waits, below) in measures {
        rows.extend([
            Row::new(format!("{what}: p50, ms"), 3, column(&|f| table::median(waits(f))), ""),
            Row::new(format!("{what}: p99, ms"), 3, column(&|f| table::quantile(waits(f), 0.99)), below),
            Row::new(format!("{what}: max, ms"), 3, column(&|f| table::quantile(waits(f), 1.0)), ""),
        ]);
    }
    rows.extend([
        Row::new("agent memory, MiB", 1, column(&|f| f.agent.now), "ratio 0.25 or less"),
        Row::new("agent memory at its peak, MiB", 1, column(&|f| f.agent.peak), ""),
        Row::new("server memory, MiB", 1, column(&|f| f.server.now), "ratio 0.25 or less"),
        Row::new("server memory at its peak, MiB", 1, column(&|f| f.server.peak), ""),
    ]);
    let names: Vec<&str> = programs.iter().map(|one| one.name).collect();
    let title =
        format!("cached FetchX509SVID, {ENTRIES} entries; {CALLS} calls and {CONNECTIONS} connections");
    table::print(&title, &names, &rows);
    Ok(())
}

/// Of one pair of programs; times in milliseconds.
struct Figures {
    first: f64,
    on_kept_connection: Vec<f64>,
    on_new_connection: Vec<f64>,
    jwt: Vec<f64>,
    agent: Memory,
    server: Memory,
}

async fn measure(programs: &Programs) -> Outcome<Figures> {
    println!("{}: starting, {ENTRIES} entries", programs.name);
    let clock = Clock::wall();
    let mut estate = Estate::start(programs, None).await?;
    let (token, agent_path) = estate.admin.join_token().await?;
    // Users that do not exist, and the one who runs this.
    let mut uids: Vec<u32> = (100_000..).take(ENTRIES - 1).collect();
    uids.push(std::fs::metadata("/proc/self")?.uid());
    estate.admin.create_entries(&agent_path, &uids).await?;

    let begun = clock.monotonic();
    estate.start_agent(&token)?;
    let agent = estate.agent.as_ref().ok_or("no agent")?;
    let socket = estate.workload_socket();
    while let Err(error) = first_fetch(&socket).await {
        if clock.monotonic() - begun > PATIENCE {
            return Err(format!("no SVID from {}: {error}\n{}", programs.name, agent.last_lines()).into());
        }
        clock.sleep(Duration::from_millis(20)).await;
    }
    let first = milliseconds(clock.monotonic() - begun);
    agent.quiet(&clock, Duration::from_secs(30)).await?;

    let kept = connect(&socket).await?;
    for _ in 0..WARM_UP {
        fetch(kept.clone()).await?;
    }
    let mut on_kept_connection = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = clock.monotonic();
        fetch(kept.clone()).await?;
        on_kept_connection.push(milliseconds(clock.monotonic() - begun));
    }
    let mut on_new_connection = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let begun = clock.monotonic();
        first_fetch(&socket).await?;
        on_new_connection.push(milliseconds(clock.monotonic() - begun));
    }
    // The first call has the token signed; five minutes are more than the rest takes.
    for _ in 0..WARM_UP {
        fetch_jwt(kept.clone()).await?;
    }
    let mut jwt = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = clock.monotonic();
        fetch_jwt(kept.clone()).await?;
        jwt.push(milliseconds(clock.monotonic() - begun));
    }
    let (agent, server) = (agent.memory()?, estate.server.memory()?);
    Ok(Figures { first, on_kept_connection, on_new_connection, jwt, agent, server })
}

async fn connect(socket: &Path) -> Outcome<Channel> {
    Ok(dial::connect(Dialer::Unix(socket.to_owned()), None, "localhost").await?)
}

/// A fetch on a connection of its own.
async fn first_fetch(socket: &Path) -> Outcome<()> {
    fetch(connect(socket).await?).await
}

/// Opens a stream, reads its first message and drops it.
async fn fetch(channel: Channel) -> Outcome<()> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let answers = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await?;
    match answers.into_inner().message().await? {
        Some(answer) if answer.svids.len() == 1 => Ok(()),
        answer => {
            Err(format!("{} SVIDs instead of one", answer.map_or(0, |answer| answer.svids.len())).into())
        }
    }
}

/// Fetches the caller's token for one audience.
async fn fetch_jwt(channel: Channel) -> Outcome<()> {
    let message = JwtsvidRequest { audience: vec!["bench".to_owned()], spiffe_id: String::new() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let answer = SpiffeWorkloadApiClient::new(channel).fetch_jwtsvid(request).await?.into_inner();
    if answer.svids.len() == 1 {
        Ok(())
    } else {
        Err(format!("{} tokens instead of one", answer.svids.len()).into())
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
