//! The `divot` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    divot::compute_on_this_thread();
    divot_cli::main()
}
