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

/// Divot: video to tokens, tokens to video, and a language model that reads and writes them.
///
/// Two seconds of video become 64 continuous tokens. A diffusion model turns tokens back into video;
/// a language model reads them to describe videos and draws new ones to make videos of text.
#[derive(Parser)]
#[command(
    name = "divot",
    version,
    after_help = "\
Start here:
  divot download                                get the released model (11 GiB)
  divot reconstruct --input clip.mp4            video → tokens → video
  divot download llm-comprehension              get a language model (14 GiB)
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

#[derive(Subcommand)]
enum Command {
    /// Turn two seconds of video into tokens and back
    Reconstruct(reconstruct::Arguments),
    /// Ask a language model about a video or an image
    Describe(describe::Arguments),
    /// Make a video of a caption
    Generate(generate::Arguments),
    /// Tell a story in text and videos
    Story(story::Arguments),
    /// Turn a video into a file of tokens
    Tokenize(tokenize::Arguments),
    /// Turn a file of tokens into a video
    Detokenize(detokenize::Arguments),
    /// Download the released checkpoints and convert them
    Download(download::Arguments),
    /// Convert PyTorch checkpoints that are here already
    Convert(convert::Arguments),
    /// Say what a model, a video or a file of tokens holds
    Info(info::Arguments),
    /// Print a script that completes commands and options in a shell
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
    let name = match &cli.command {
        Command::Reconstruct(arguments) => {
            arguments.run(&mut output)?;
            "reconstruct"
        }
        Command::Describe(arguments) => {
            arguments.run(&mut output)?;
            "describe"
        }
        Command::Generate(arguments) => {
            arguments.run(&mut output)?;
            "generate"
        }
        Command::Story(arguments) => {
            arguments.run(&mut output)?;
            "story"
        }
        Command::Tokenize(arguments) => {
            arguments.run(&mut output)?;
            "tokenize"
        }
        Command::Detokenize(arguments) => {
            arguments.run(&mut output)?;
            "detokenize"
        }
        Command::Download(arguments) => {
            arguments.run(&mut output)?;
            "download"
        }
        Command::Convert(arguments) => {
            convert::report(arguments, &mut output)?;
            "convert"
        }
        Command::Info(arguments) => {
            arguments.run(&mut output)?;
            "info"
        }
        Command::Completions(arguments) => {
            arguments.run(&mut output)?;
            "completions"
        }
    };
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
    complain(&format!("{}; --help says more", lines.join(" ")));
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
