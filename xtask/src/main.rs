//! Tools for maintainers: `cargo xtask --help`.

mod bench;
mod parity;
mod score;
mod tiny;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use divot_cli::convert;

/// Reuses the memory of freed tensors.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

/// Maintenance of Divot in Rust.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(
        about = "Turn the released PyTorch checkpoints into ours",
        after_help = "\
Examples:
  cargo xtask convert-weights --from pretrained --to models/divot --dtype f16
  cargo xtask convert-weights --from model.ckpt --to models/start --part dynamicrafter
  cargo xtask convert-weights --from Divot_tokenizer.bin --from open_clip_pytorch_model.bin \
      --to models/divot --part tokenizer"
    )]
    ConvertWeights(convert::Arguments),
    /// Time the networks at full size, with random weights
    Bench(bench::Arguments),
    /// Compare every stage with the numbers of a parity fixture
    Parity(parity::Arguments),
    /// Train divot-tiny, the model in the box, from nothing
    TrainTiny(tiny::Arguments),
    /// Measure a trained divot-tiny on held-out clips of the world
    ScoreTiny(Box<score::Arguments>),
}

fn main() -> ExitCode {
    // What `gpu/run.sh` packs is one program under both names: half the size.
    let name = std::env::args_os().next().map(std::path::PathBuf::from);
    if name.is_some_and(|name| name.file_stem().is_some_and(|stem| stem == "divot")) {
        return divot_cli::main();
    }
    divot::compute_on_this_thread();
    let result = match Cli::parse().command {
        Command::ConvertWeights(arguments) => convert::run(&arguments).map(|()| true),
        Command::Bench(arguments) => bench::run(&arguments).map(|()| true),
        Command::Parity(arguments) => parity::run(&arguments),
        Command::TrainTiny(arguments) => tiny::run(&arguments).map(|()| true),
        Command::ScoreTiny(arguments) => score::run(&arguments).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => divot_cli::ending(&error),
    }
}
