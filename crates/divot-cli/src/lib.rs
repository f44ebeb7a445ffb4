//! The `divot` program: video to tokens, tokens to video, and a language model that reads and writes
//! them. `divot --help` says what it can do.
//!
//! Each command is a file in `commands`; what several of them share is beside it. Only
//! [`convert`], which `cargo xtask convert-weights` is too, and [`main`] are for others.

mod commands;
mod files;
mod interrupt;
mod models;
mod options;
mod output;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

pub use commands::convert;
pub use interrupt::interrupted;

use commands::{
    completions, describe, detokenize, download, generate, info, reconstruct, story, tokenize,
};
use interrupt::Stopped;
use output::Output;

/// For this program and for xtask, which links it.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

/// Divot: video to tokens, tokens to video, and a language model that reads and writes them
///
/// Two seconds of video become 64 continuous tokens. A diffusion model turns tokens back into
/// video; a language model reads them to describe videos and draws new ones to make videos.
#[derive(Parser)]
#[command(
    name = "divot",
    version,
    verbatim_doc_comment,
    after_help = "\
Start here:
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

/// What each says of itself is beside its arguments.
#[derive(Subcommand)]
enum Command {
    Reconstruct(reconstruct::Arguments),
    Describe(describe::Arguments),
    Generate(generate::Arguments),
    Story(story::Arguments),
    Tokenize(tokenize::Arguments),
    Detokenize(detokenize::Arguments),
    Download(download::Arguments),
    Convert(convert::Arguments),
    Info(info::Arguments),
    Completions(completions::Arguments),
}

/// Runs the program with the arguments that it was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Stopped>() => {
            complain("stopped; nothing was written");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => {
            complain(&format!("error: {}", divot::one_line(error.as_ref())));
            match interrupted() {
                true => ExitCode::from(interrupt::EXIT_CODE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    interrupt::handle()?;
    let mut output = Output::new(cli.json);
    let (name, result) = match &cli.command {
        Command::Reconstruct(arguments) => ("reconstruct", arguments.run(&mut output)),
        Command::Describe(arguments) => ("describe", arguments.run(&mut output)),
        Command::Generate(arguments) => ("generate", arguments.run(&mut output)),
        Command::Story(arguments) => ("story", arguments.run(&mut output)),
        Command::Tokenize(arguments) => ("tokenize", arguments.run(&mut output)),
        Command::Detokenize(arguments) => ("detokenize", arguments.run(&mut output)),
        Command::Download(arguments) => ("download", arguments.run(&mut output)),
        Command::Convert(arguments) => ("convert", convert::report(arguments, &mut output)),
        Command::Info(arguments) => ("info", arguments.run(&mut output)),
        Command::Completions(arguments) => ("completions", arguments.run(&mut output)),
    };
    result?;
    output.finish(name)
}

/// Help goes out as it is; what is wrong with the arguments goes on one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // There is nobody to tell if it cannot be printed.
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

/// Says it on standard error, if anyone listens.
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
