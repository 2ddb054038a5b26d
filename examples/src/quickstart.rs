//! From an enterprise root to a rotating SVID in a workload's hands, on this machine, in a minute.
//!
//! `cargo run --release --bin quickstart` makes an enterprise PKI, starts the real server and the real
//! agent, registers workloads, fetches an SVID through the public `spiffe` crate, does mTLS between two
//! workloads, waits for one live rotation, and stays up so that other clients can be tried.
//! `--once` exits after the proof.
//!
//! The binary starts itself again as the server, the agent and the two workloads, so each is a process of
//! its own, attested by the kernel as any other.

#[path = "quickstart/estate.rs"]
mod estate;
#[path = "quickstart/programs.rs"]
mod programs;
#[path = "quickstart/show.rs"]
mod show;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use estate::Estate;
use programs::Programs;
use spiffe::X509Source;

/// What a step of the quickstart failed with, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}\n  next: {next}")]
pub struct Stuck {
    what: String,
    cause: String,
    next: String,
}

impl Stuck {
    fn new(what: impl Into<String>, cause: impl ToString, next: impl Into<String>) -> Self {
        Stuck { what: what.into(), cause: cause.to_string(), next: next.into() }
    }
}

/// SVID lifetime of the workload whose rotation is shown, in seconds.
const SHOWN_TTL: u32 = 20;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|arg| arg.to_str()) {
        Some("as-server") => {
            return finial_server::main_with(programs::arguments_of("finial-server", &mut args));
        }
        Some("as-agent") => {
            return finial_agent::main_with(programs::arguments_of("finial-agent", &mut args));
        }
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quickstart: the async runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match args.get(1).and_then(|arg| arg.to_str()) {
            Some("as-orders") => finial_examples::mtls::serve(&text(&args, 2)).await.map_err(workload),
            Some("as-billing") => {
                finial_examples::mtls::call(&text(&args, 2), &text(&args, 3)).await.map_err(workload)
            }
            Some("--once") => quickstart(true).await,
            None => quickstart(false).await,
            Some(other) => Err(Stuck::new(
                format!("unknown argument {other:?}"),
                "the quickstart takes --once or nothing",
                "cargo run --release --bin quickstart -- --once",
            )),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(stuck) => {
            eprintln!("\nquickstart: {stuck}");
            ExitCode::FAILURE
        }
    }
}

async fn quickstart(once: bool) -> Result<(), Stuck> {
    show::title("Finial quickstart: from an enterprise root to a rotating SVID");

    show::step(1, "An enterprise root, and an intermediate that the enterprise gives to Finial");
    let estate = Estate::make()?;
    show::fact("files", estate.folder().display());

    show::step(2, "The server and the agent, each a process of its own");
    let mut programs = Programs::new(&estate);
    programs.start_server().await?;
    show::fact(
        "server",
        format_args!("answers on 127.0.0.1:{} and {}", estate.port(), estate.admin_socket()),
    );
    let token = programs.join_token()?;
    programs.start_agent(&token).await?;
    show::fact(
        "agent",
        format_args!("proved its node with a one-use token, serves {}", estate.workload_socket()),
    );

    show::step(3, "Registration entries: who gets which identity");
    let user = nix::unistd::Uid::effective();
    programs.register("you", &[format!("unix:uid:{user}")], Some(SHOWN_TTL))?;
    show::fact(
        "you",
        format_args!("every process of uid {user} (SVIDs of {SHOWN_TTL} s, to see them rotate)"),
    );
    for name in ["orders", "billing"] {
        let program = estate.workload_program(name)?;
        programs.register(
            name,
            &[format!("unix:uid:{user}"), format!("unix:path:{}", program.display())],
            None,
        )?;
        show::fact(name, format_args!("the program {}", program.display()));
    }

    show::step(4, "An SVID, fetched by the public `spiffe` crate");
    let endpoint = format!("unix://{}", estate.workload_socket());
    let source = X509Source::builder()
        .endpoint(&endpoint)
        .picker(Yours)
        .build()
        .await
        .map_err(|error| Stuck::new("no SVID came", error, programs.logs()))?;
    let first = source.svid().map_err(|error| Stuck::new("no SVID is held", error, programs.logs()))?;
    let bundle =
        source.bundle_set().map_err(|error| Stuck::new("no bundle is held", error, programs.logs()))?;
    let roots = bundle.get(first.spiffe_id().trust_domain());
    show::chain(&first, roots.as_deref())?;

    show::step(5, "mTLS between two workloads, by rustls, without a sidecar");
    let heard = programs.mutual_tls(&endpoint).await?;
    for line in heard.lines() {
        show::line(line);
    }

    show::step(6, "One rotation, live");
    show::line("waiting for the next SVID (a few seconds) ...");
    let mut updates = source.updated();
    let before = show::serial(&first)?;
    let rotated = tokio::time::timeout(Duration::from_secs(u64::from(SHOWN_TTL) * 3), async {
        loop {
            updates
                .changed()
                .await
                .map_err(|error| Stuck::new("the stream ended", error, programs.logs()))?;
            let svid =
                source.svid().map_err(|error| Stuck::new("the SVID is gone", error, programs.logs()))?;
            if show::serial(&svid)? != before {
                return Ok(svid);
            }
        }
    })
    .await
    .map_err(|_| Stuck::new("no rotation came", format!("{} s went by", SHOWN_TTL * 3), programs.logs()))??;
    show::fact("before", &before);
    show::fact("after", show::serial(&rotated)?);
    show::line("pushed over the open stream: nobody asked, nobody restarted");

    if once {
        show::title("Done. Everything that was started is stopped.");
        return programs.stop().await;
    }
    show::title("Up and running. Try your own client:");
    show::line(format_args!("export SPIFFE_ENDPOINT_SOCKET={endpoint}"));
    show::line(format_args!("finial-agent api fetch x509 -socketPath {}", estate.workload_socket()));
    show::line(format_args!("finial-server entry show -socketPath {}", estate.admin_socket()));
    show::line("Ctrl-C stops it and removes its folder.");
    programs.wait_for_stop().await
}

/// Of the identities this process gets, shows the one registered for its user.
#[derive(Debug)]
struct Yours;

impl spiffe::x509_source::SvidPicker for Yours {
    fn pick_svid(&self, svids: &[std::sync::Arc<spiffe::X509Svid>]) -> Option<usize> {
        svids.iter().position(|svid| svid.spiffe_id().path() == "/you")
    }
}

fn text(args: &[OsString], at: usize) -> String {
    args.get(at).map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default()
}

fn workload(error: finial_examples::mtls::Error) -> Stuck {
    Stuck::new("the workload failed", error, "see the agent's log")
}
