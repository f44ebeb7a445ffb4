//! The `divot` program.

use std::process::ExitCode;

/// Memory of a tensor serves the next one.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

fn main() -> ExitCode {
    divot_cli::main()
}
