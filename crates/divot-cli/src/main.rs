//! The `divot` program.

use std::process::ExitCode;

/// Reuses the memory of freed tensors.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

fn main() -> ExitCode {
    divot_cli::main()
}
