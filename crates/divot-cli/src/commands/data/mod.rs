//! `divot data`

mod captions;
mod film;
mod filter;
mod story;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use divot_train::record::Printer;

use crate::output::Output;

/// Make training data: stories from films, and captions that describe change
#[derive(Args)]
#[command(after_help = "\
Examples:
  divot data story episode-1.mp4 episode-2.mp4 --output stories
  divot data filter captions.jsonl --output dynamic.jsonl

`divot data COMMAND --help` explains a command.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Story(story::Arguments),
    Filter(filter::Arguments),
}

impl Arguments {
    /// Returns the command's name.
    pub fn name(&self) -> &'static str {
        match self.command {
            Command::Story(_) => "data story",
            Command::Filter(_) => "data filter",
        }
    }

    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        match &self.command {
            Command::Story(arguments) => arguments.run(output),
            Command::Filter(arguments) => arguments.run(output),
        }
    }
}

/// Shows how far the work is, now and then.
struct Pace {
    printer: Printer,
    pause: Duration,
    shown: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            printer: Printer::new(),
            // A log gets fewer lines than a terminal.
            pause: Duration::from_secs(if io::stderr().is_terminal() { 1 } else { 30 }),
            shown: Instant::now(),
        }
    }

    fn show(&mut self, line: impl FnOnce() -> String) {
        if self.shown.elapsed() >= self.pause {
            self.printer.show(line());
            self.shown = Instant::now();
        }
    }

    fn finish(self) {
        self.printer.finish();
    }
}
