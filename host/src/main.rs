//! The `handover` command: daemon and client.

fn main() -> std::process::ExitCode {
    handover::cli::main()
}
