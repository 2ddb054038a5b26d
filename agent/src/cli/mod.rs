//! The command line of `finial-agent`: SPIRE's verbs, flags, texts and exit codes.

mod admin;
mod api;
mod healthcheck;
mod output;
mod socket;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use finial_daemon::argv;

use crate::run;
use crate::settings::Flags;

use output::print;

/// Runs the program. `args` begin with its name.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_help_on_fetch = asks_for_help(&args) && has_default_verb(&args);
    match argv::parse::<Program>(with_default_verb(args)) {
        Ok(program) => program.verb.run(),
        Err(mut exit) => {
            if is_help_on_fetch {
                let group = argv::usage_of(Program::command(), ["", "api", "fetch"].map(OsString::from));
                exit.text.extend(group.find("\nSubcommands").map(|at| &group[at..]));
            }
            exit.report()
        }
    }
}

#[derive(Debug, Parser)]
#[command(name = "finial-agent", version, after_help = PROGRAM_HELP)]
struct Program {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the agent
    #[command(after_help = run::HELP)]
    Run(Flags),
    /// Says whether the agent would start with a configuration
    #[command(after_help = run::HELP)]
    Validate(Flags),
    /// Asks a running agent whether it is healthy
    Healthcheck(healthcheck::Healthcheck),
    /// Talks to the Workload API as a workload does
    #[command(subcommand)]
    Api(api::Verb),
    /// Shows and changes the log level of a running agent
    #[command(subcommand)]
    Logger(admin::LoggerVerb),
    /// Shows what a running agent says about itself
    #[command(subcommand)]
    Debug(admin::DebugVerb),
    /// Prints a completion script for a shell
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// bash, zsh or fish
        shell: Option<String>,
    },
}

const PROGRAM_HELP: &str = "\
One agent runs on each node. It proves the node to the server and hands workloads their SVIDs on a Unix socket.

Examples:
    finial-agent run -config agent.conf -joinToken 0d4f5a68-…      the first start on a node
    finial-agent healthcheck -socketPath /run/spire/agent.sock
    finial-agent api fetch -write /tmp                             what this user's processes would get

-h behind a command explains its flags.";

const COMPLETION_HELP: &str = "\
Examples:
    finial-agent completion bash > /etc/bash_completion.d/finial-agent
    finial-agent completion zsh > \"${fpath[1]}/_finial-agent\"
    finial-agent completion fish > ~/.config/fish/completions/finial-agent.fish";

impl Verb {
    fn run(self) -> ExitCode {
        match self {
            Verb::Run(flags) => run::run(&flags),
            Verb::Validate(flags) => run::validate(&flags),
            Verb::Healthcheck(check) => block_on(check.run()),
            Verb::Api(api::Verb::Fetch(api::Fetch::X509(fetch))) => block_on(fetch.run()),
            Verb::Api(api::Verb::Fetch(api::Fetch::Jwt(fetch))) => block_on(fetch.run()),
            Verb::Api(api::Verb::Validate(api::Validate::Jwt(validate))) => block_on(validate.run()),
            Verb::Api(api::Verb::Watch(watch)) => block_on(watch.run()),
            Verb::Logger(verb) => block_on(verb.run()),
            Verb::Debug(verb) => block_on(verb.run()),
            Verb::Completion { shell } => completion(shell.as_deref().unwrap_or("")),
        }
    }
}

/// `api fetch` alone means `api fetch x509`.
fn with_default_verb(mut args: Vec<OsString>) -> Vec<OsString> {
    if has_default_verb(&args) {
        let at = args.iter().position(|word| *word == "fetch").map_or(args.len(), |fetch| fetch + 1);
        args.insert(at, OsString::from("x509"));
    }
    args
}

fn has_default_verb(args: &[OsString]) -> bool {
    let mut words = args.iter().skip(1).skip_while(|word| is_help(word)).map(OsString::as_os_str);
    let mut is = |word: &str| words.next() == Some(OsStr::new(word));
    is("api") && is("fetch") && !matches!(words.next().and_then(OsStr::to_str), Some("x509" | "jwt"))
}

fn asks_for_help(args: &[OsString]) -> bool {
    args.iter().take_while(|word| *word != "--").any(is_help)
}

fn is_help(word: &OsString) -> bool {
    matches!(word.to_str(), Some("-h" | "-help" | "--help"))
}

/// Tells what is wrong with the flags, with the usage. For what the flags' parser cannot see.
fn refused_flag(text: &str) -> ExitCode {
    let usage = argv::usage_of(Program::command(), with_default_verb(std::env::args_os().collect()));
    argv::Exit { code: 1, text: format!("{text}\n{usage}") }.report()
}

fn completion(shell: &str) -> ExitCode {
    match argv::completion(Program::command(), shell) {
        Ok(script) => {
            print(&script);
            ExitCode::SUCCESS
        }
        Err(exit) => exit.report(),
    }
}

fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            eprintln!("Error: cannot start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
