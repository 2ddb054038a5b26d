//! The trust domain's authority.

pub mod access;
pub mod agents;
pub mod api;
pub mod authority;
pub mod build;
pub mod bundles;
pub mod entries;
pub mod plugins;
pub mod run;
pub mod settings;
pub mod store;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use finial_daemon::argv;

use settings::Flags;

/// The program: reads its arguments (the program's name first) and does what they say.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match argv::parse::<Program>(args) {
        Ok(Program { command: Command::Run(flags) }) => run::run(&flags),
        Ok(Program { command: Command::Validate(flags) }) => run::validate(&flags),
        Err(exit) => exit.report(),
    }
}

#[derive(Parser)]
#[command(name = "finial-server", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the server
    Run(Flags),
    /// Validates a SPIRE server configuration file
    Validate(Flags),
}
