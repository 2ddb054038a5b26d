//! The command line of `finial-server`: SPIRE's verbs, flags, texts and exit codes.
//!
//! Every verb but `run`, `validate` and `completion` talks to a running server over its admin socket ([`client`]) and
//! makes a [`output::Report`], which is printed here.

mod agent;
mod bundle;
mod client;
mod debug;
mod entry;
mod expiry;
mod federation;
mod healthcheck;
mod jwt;
mod lifetime;
mod localauthority;
mod logger;
mod matching;
mod output;
mod token;
mod upstreamauthority;
mod x509;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use finial_daemon::argv;

use crate::run;
use crate::settings::Flags;
use output::{Failure, Report};

/// Runs the program. `args` begin with its name.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(text) = not_built(&args) {
        eprintln!("Error: {text}");
        return ExitCode::FAILURE;
    }
    match argv::parse::<Program>(args) {
        Ok(program) => program.verb.run(),
        Err(exit) => exit.report(),
    }
}

#[derive(Debug, Parser)]
#[command(name = "finial-server", version, after_help = PROGRAM_HELP)]
struct Program {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
enum Verb {
    /// Runs the server
    #[command(after_help = RUN_HELP)]
    Run(Flags),
    /// Says whether the server would start with a configuration
    #[command(after_help = RUN_HELP)]
    Validate(Flags),
    /// Asks a running server whether it is healthy
    Healthcheck(healthcheck::Healthcheck),
    /// Registration entries: who gets which SPIFFE ID
    #[command(subcommand)]
    Entry(entry::Verb),
    /// Nodes that have attested
    #[command(subcommand)]
    Agent(agent::Verb),
    /// Join tokens, with which nodes attest for the first time
    #[command(subcommand)]
    Token(token::Verb),
    /// The bundle of this trust domain and those of others
    #[command(subcommand)]
    Bundle(bundle::Verb),
    /// Relationships with other trust domains
    #[command(subcommand)]
    Federation(federation::Verb),
    /// X.509-SVIDs made by hand
    #[command(subcommand)]
    X509(x509::Verb),
    /// JWT-SVIDs made by hand
    #[command(subcommand)]
    Jwt(jwt::Verb),
    /// What this server signs with: rotation by hand
    #[command(subcommand, name = "localauthority")]
    LocalAuthority(localauthority::Verb),
    /// What signs this server's CA: tainting and revoking it
    #[command(subcommand, name = "upstreamauthority")]
    UpstreamAuthority(upstreamauthority::Verb),
    /// What the server says of itself
    #[command(subcommand)]
    Debug(debug::Verb),
    /// The level of the server's log
    #[command(subcommand)]
    Logger(logger::Verb),
    /// Prints a completion script for a shell
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// bash, zsh or fish
        shell: Option<String>,
    },
}

const PROGRAM_HELP: &str = "\
The server is the authority of a trust domain: it admits nodes, keeps the entries and signs SVIDs.

Examples:
    finial-server run -config server.conf
    finial-server token generate -spiffeID spiffe://example.org/node
    finial-server entry create -parentID spiffe://example.org/node -spiffeID spiffe://example.org/web \\
        -selector unix:user:web
    finial-server agent list -output json

-h behind a command explains its flags. Commands find the server by its admin socket (-socketPath).";

const RUN_HELP: &str = "\
Flags go before what the file says. A flag that is empty, 0 or false counts as not given.
SIGTERM and SIGINT stop the server (exit code 0); SIGUSR2 opens the log file anew.

Examples:
    finial-server run -config /etc/finial/server.conf
    finial-server run -config server.conf -logLevel debug -expandEnv
    finial-server validate -config server.conf

A configuration that starts a server:
    server {
        trust_domain = \"example.org\"
        bind_port    = 8081
        data_dir     = \"/var/lib/finial-server\"
    }
    plugins {
        DataStore \"sql\" {
            plugin_data {
                database_type     = \"sqlite3\"
                connection_string = \"/var/lib/finial-server/datastore.sqlite3\"
            }
        }
        KeyManager \"disk\" { plugin_data { keys_path = \"/var/lib/finial-server/keys.json\" } }
        NodeAttestor \"join_token\" { plugin_data {} }
    }";

const COMPLETION_HELP: &str = "\
Examples:
    finial-server completion bash > /etc/bash_completion.d/finial-server
    finial-server completion zsh > \"${fpath[1]}/_finial-server\"
    finial-server completion fish > ~/.config/fish/completions/finial-server.fish";

impl Verb {
    fn run(self) -> ExitCode {
        match self {
            Verb::Run(flags) => run::run(&flags),
            Verb::Validate(flags) => run::validate(&flags),
            Verb::Healthcheck(verb) => talk(verb.run()),
            Verb::Entry(verb) => talk(verb.run()),
            Verb::Agent(verb) => talk(verb.run()),
            Verb::Token(verb) => talk(verb.run()),
            Verb::Bundle(verb) => talk(verb.run()),
            Verb::Federation(verb) => talk(verb.run()),
            Verb::X509(verb) => talk(verb.run()),
            Verb::Jwt(verb) => talk(verb.run()),
            Verb::LocalAuthority(verb) => talk(verb.run()),
            Verb::UpstreamAuthority(verb) => talk(verb.run()),
            Verb::Debug(verb) => talk(verb.run()),
            Verb::Logger(verb) => talk(verb.run()),
            Verb::Completion { shell } => completion(shell.as_deref().unwrap_or("")),
        }
    }
}

/// SPIRE's verbs that are not there yet, with what they are about.
const NOT_BUILT: &[(&str, &str)] = &[("wit", "WIT-SVIDs")];

fn not_built(args: &[OsString]) -> Option<String> {
    let first = args.get(1)?.to_str()?;
    let (noun, about) = NOT_BUILT.iter().find(|(noun, _)| *noun == first)?;
    let rest = args.iter().skip(2).map_while(|word| word.to_str()).take_while(|word| !word.starts_with('-'));
    let verb = rest.fold((*noun).to_owned(), |verb, word| format!("{verb} {word}"));
    Some(format!(
        "\"{verb}\" is not built into finial-server yet ({about} will come); \"finial-server -h\" lists what is there"
    ))
}

fn completion(shell: &str) -> ExitCode {
    match argv::completion(Program::command(), shell) {
        Ok(script) => {
            output::print(&script);
            ExitCode::SUCCESS
        }
        Err(exit) => exit.report(),
    }
}

fn talk(work: impl Future<Output = Result<Report, Failure>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work) {
        Ok(report) => report.tell(),
        Err(Failure::Flag(text)) => {
            let usage = argv::usage_of(Program::command(), std::env::args_os());
            argv::Exit { code: 1, text: format!("{text}\n{usage}") }.report()
        }
        Err(failure) => Report::default().failed(failure).tell(),
    }
}

#[cfg(test)]
mod tests;
