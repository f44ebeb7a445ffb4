//! The `divot` program: video to tokens, tokens to video, and a language model that reads and writes them.
//! `divot --help` lists the commands.
//!
//! Each command is a file in `commands`. As a library, this crate contains the common parts of command-line
//! programs: options, output, and exit codes ([`program`]).

mod commands;
mod endpoint;
mod files;
mod interrupt;
pub mod options;
pub mod output;
pub mod story;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

pub use commands::cache::follow_cache;
pub use commands::convert;
pub use commands::train::follow;
pub use interrupt::{handle as handle_interrupts, interrupted};

use commands::{
    cache, completions, data, describe, detokenize, download, export, generate, info, reconstruct,
    tokenize, train, world,
};
use output::Output;

/// Divot: video to tokens, tokens to video, and a language model that reads and writes them
///
/// Two seconds of video become a few continuous tokens, 64 in the released model. A diffusion model decodes tokens to video. A
/// language model reads tokens to describe videos, and samples new ones to generate videos.
#[derive(Parser)]
#[command(
    name = "divot",
    version,
    verbatim_doc_comment,
    after_help = "\
Without a model, commands use divot-tiny, a small one of a synthetic world, and a clip of it:
  divot reconstruct
  divot describe
  divot generate \"A large red circle moves to the right.\"
  divot story \"Tell a story about Kiki, a cyan circle.\"

Start here for real videos:
  divot download                                get the released model (about 10 GiB)
  divot reconstruct --input clip.mp4            video → tokens → video
  divot download llm-comprehension              get a language model (about 14 GiB)
  divot describe --input clip.mp4               ask what is in a video

`divot COMMAND --help` explains a command, with an example."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object instead of text: results, seconds, memory, device
    #[arg(long, global = true, display_order = 1000)]
    json: bool,
}

/// The commands. Their help is beside their arguments.
#[derive(Subcommand)]
enum Command {
    Reconstruct(reconstruct::Arguments),
    Describe(describe::Arguments),
    Generate(generate::Arguments),
    Story(commands::story::Arguments),
    Tokenize(tokenize::Arguments),
    Detokenize(detokenize::Arguments),
    World(world::Arguments),
    Data(data::Arguments),
    Train(train::Arguments),
    Cache(cache::Arguments),
    Export(export::Arguments),
    Download(download::Arguments),
    Convert(convert::Arguments),
    Info(info::Arguments),
    Completions(completions::Arguments),
}

/// Runs the program `divot` with the arguments of the process.
pub fn main() -> ExitCode {
    program(run)
}

/// Runs a program: parses its arguments, handles Ctrl-C, and prints an error on one line.
///
/// The exit code is 0, 1 after an error, or 130 after Ctrl-C.
pub fn program<A: Parser>(run: impl FnOnce(A, &mut Output) -> Result<()>) -> ExitCode {
    divot::compute_on_this_thread();
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let mut output = Output::default();
    let result = interrupt::handle().and_then(|()| run(arguments, &mut output));
    let result = match result {
        // The output stopped the work: its reader has closed it, or it cannot be written.
        Err(error) if is_stopped(&error) && !interrupted() => match output.check() {
            Ok(()) if output.is_closed() => Ok(()),
            Ok(()) => Err(error),
            Err(error) => Err(error),
        },
        result => result,
    };
    match result.and_then(|()| output.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_stopped(&error) => {
            complain("stopped; nothing was written");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => ending(&error),
    }
}

/// Says in one line why a program ends, and returns its exit code.
pub fn ending(error: &anyhow::Error) -> ExitCode {
    match is_saved(error) {
        true => complain(&error.to_string()),
        false => complain(&format!("error: {}", divot::one_line(error.as_ref()))),
    }
    match is_saved(error) || interrupted() {
        true => ExitCode::from(interrupt::EXIT_CODE),
        false => ExitCode::FAILURE,
    }
}

fn is_stopped(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<divot::Error>();
    error.is_some_and(divot::Error::is_stopped)
}

/// Whether training, or what comes before it, was stopped, which saved what was done.
fn is_saved(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<divot_train::Error>();
    matches!(error, Some(divot_train::Error::Stopped))
}

fn run(cli: Cli, output: &mut Output) -> Result<()> {
    output.set_json(cli.json);
    let (name, result) = match &cli.command {
        Command::Reconstruct(arguments) => ("reconstruct", arguments.run(output)),
        Command::Describe(arguments) => ("describe", arguments.run(output)),
        Command::Generate(arguments) => ("generate", arguments.run(output)),
        Command::Story(arguments) => ("story", arguments.run(output)),
        Command::Tokenize(arguments) => ("tokenize", arguments.run(output)),
        Command::Detokenize(arguments) => ("detokenize", arguments.run(output)),
        Command::World(arguments) => ("world", arguments.run(output)),
        Command::Data(arguments) => (arguments.name(), arguments.run(output)),
        Command::Train(arguments) => ("train", arguments.run(output)),
        Command::Cache(arguments) => ("cache", arguments.run(output)),
        Command::Export(arguments) => ("export", arguments.run(output)),
        Command::Download(arguments) => ("download", arguments.run(output)),
        Command::Convert(arguments) => ("convert", convert::report(arguments, output)),
        Command::Info(arguments) => ("info", arguments.run(output)),
        Command::Completions(arguments) => ("completions", arguments.run(output)),
    };
    output.set("command", name);
    result
}

/// Prints help unchanged, and errors about the arguments on one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // If it cannot be printed, the error cannot be reported either.
        let _ = error.print();
        return ExitCode::from(u8::from(error.use_stderr()));
    }
    let text = error.render().to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let line = lines.join(" ").replace(" tip: ", "; ");
    complain(&format!("{line}; --help says more"));
    ExitCode::FAILURE
}

/// Prints a line on standard error.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
