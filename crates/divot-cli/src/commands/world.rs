//! `divot world`

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use divot::data::world::{Counts, Split, World, write};
use divot_train::record::Printer;

use crate::interrupt;
use crate::output::{Output, plural};

/// Write clips of a synthetic world, with captions, questions and stories to train on
///
/// Coloured shapes move before textured backgrounds. Training also reads the world without files: a recipe's source has
/// `world = {}` instead of a path.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot world --out world --count 1000
  divot world --out world/test --count 200 --stories 50 --split test"
)]
pub struct Arguments {
    /// The folder to write into
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// How many clips
    #[arg(long, value_name = "COUNT")]
    count: u32,
    /// How many stories, of three clips each
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    stories: u32,
    /// Which samples; some combinations of colour, shape and motion are only in tests
    #[arg(long, default_value = "train", value_parser = split())]
    split: Split,
    /// Seed of everything; the same seed gives the same files
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Share of clips that are moving textures, 0 to 1; they have no questions
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    textures: f64,
    /// Width and height of frames in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: usize,
}

fn split() -> impl TypedValueParser<Value = Split> {
    PossibleValuesParser::new(Split::ALL.map(Split::name)).try_map(|name| {
        let split = Split::ALL.into_iter().find(|split| split.name() == name);
        split.ok_or_else(|| anyhow!("there is no split {name}"))
    })
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let world = World {
            seed: self.seed,
            split: self.split,
            textures: self.textures,
            size: self.size,
            ..World::default()
        };
        let counts = Counts {
            clips: self.count.into(),
            stories: self.stories.into(),
        };
        let printer = Printer::new();
        // A log gets fewer lines than a terminal.
        let pause = Duration::from_secs(if io::stderr().is_terminal() { 1 } else { 30 });
        let mut shown = Instant::now();
        let flow = write(&world, &self.out, counts, |done, total| {
            if shown.elapsed() >= pause {
                printer.show(format!("{done}/{total} clips"));
                shown = Instant::now();
            }
            interrupt::flow()
        });
        printer.finish();
        if flow?.is_break() {
            bail!(
                "{}: stopped before the lists of clips were written; the same command begins anew",
                self.out.display()
            );
        }
        output.line(format!(
            "{}, {} → {}",
            plural(self.count as usize, "clip"),
            match self.stories {
                1 => "1 story".to_owned(),
                stories => format!("{stories} stories"),
            },
            self.out.display()
        ))?;
        output.set("output", self.out.to_string_lossy());
        output.set("clips", self.count);
        output.set("stories", self.stories);
        Ok(())
    }
}
