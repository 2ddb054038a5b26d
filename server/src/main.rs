//! `finial-server`.

use std::process::ExitCode;

fn main() -> ExitCode {
    finial_server::main_with(std::env::args_os())
}
