//! `finial-agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    finial_agent::main_with(std::env::args_os())
}
