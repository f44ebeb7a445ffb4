//! The `divot` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    divot_cli::main()
}
