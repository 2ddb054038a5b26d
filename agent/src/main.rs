fn main() -> std::process::ExitCode {
    finial_agent::main_with(std::env::args_os().collect())
}
