//! The `handover` command: daemon and client.

/// What libc's `malloc` gives is then memory of C libraries alone, which are searched for pointers
/// to a generation before that is unmapped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    handover::main()
}
