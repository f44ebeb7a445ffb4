//! `cargo xtask score-tiny`: measures a trained divot-tiny on clips of the world that no training saw.
//!
//! The world's oracle reads what the model made, and is compared with the ground truth. Nothing here knows what a good
//! score is: it measures, and the tables say by which rule.

mod answers;
mod generation;
mod held_out;
mod networks;
mod questions;
mod real;
mod reconstruction;
mod samplers;
mod sheets;
mod stories;
mod table;
mod tally;
mod tokens;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use divot::checkpoint::Part;
use divot::pipeline::Decoding;
use divot::unet::Solver;
use divot::{Detokenizer, GenerationConfig, Pipeline, Task};
use divot_cli::options::MakeOptions;
use divot_cli::output::{Output, plural};
use divot_data::world::Oracle;
use divot_train::record::{Printer, Status, line};
use serde_json::json;

use table::Table;

/// Arguments of `score-tiny`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask score-tiny --model outputs/tiny/model --sheets sheets --json scores.json
  cargo xtask score-tiny --model outputs/tiny/model --only reconstruction --clips 100 --sampler unipc --guidance 1
  cargo xtask score-tiny --model outputs/tiny/model --only samplers --clips 48 --seeds 1
  cargo xtask score-tiny --model outputs/tiny/model --only real --real DIR --sheets sheets

The tables are printed in Markdown. They are a function of the model, the options and the counts; only seconds are not.
Parts that the model does not have are left out, which is said.")]
pub struct Arguments {
    /// Table to make [default: all but tokens and samplers; real if --real is given]
    #[arg(long, value_enum, value_name = "TABLE")]
    only: Vec<Subject>,
    /// Held-out clips, half of them with combinations that training never has; stories are a third as many, of three
    /// clips each
    #[arg(long, value_name = "COUNT", default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    clips: u32,
    /// Seeds over which scores are averaged: --seed and those after it
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    seeds: u32,
    /// Folder of real videos (MP4, GIF) to reconstruct
    #[arg(long, value_name = "DIR")]
    real: Option<PathBuf>,
    /// Folder for contact sheets: the first clips and the worst ones, real above made, and what was said
    #[arg(long, value_name = "DIR")]
    sheets: Option<PathBuf>,
    /// File for the numbers of each seed
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    options: MakeOptions,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// What a linear map reads off tokens
    Tokens,
    /// Clips to tokens and back
    Reconstruction,
    /// Questions about clips, and captions
    Questions,
    /// Clips from captions
    Generation,
    /// Stories in text and clips
    Stories,
    /// Samplers, steps and guidance: quality against cost
    Samplers,
    /// Real videos, reconstructed
    Real,
}

/// The model, and how it is measured.
struct Scoring {
    pipeline: Pipeline,
    decoding: Decoding,
    generation: GenerationConfig,
    seeds: Vec<u64>,
    clips: usize,
    sheets: Option<PathBuf>,
    oracle: Oracle,
    printer: Printer,
}

/// Makes the tables.
pub fn run(arguments: &Arguments) -> Result<()> {
    divot_cli::handle_interrupts()?;
    let subjects = subjects(arguments)?;
    let videos = match &arguments.real {
        Some(folder) => real::videos(folder)?,
        None => Vec::new(),
    };
    if let Some(folder) = &arguments.sheets {
        fs::create_dir_all(folder).with_context(|| {
            format!(
                "{}: no folder can be made there; choose another --sheets",
                folder.display()
            )
        })?;
        divot_data::check_writable(folder.join("sheet.md"))?;
    }
    if let Some(path) = &arguments.json {
        divot_data::check_writable(path)?;
    }

    let mut output = Output::default();
    let options = &arguments.options;
    let first = options.seed();
    let pipeline = options.pipeline(&mut output)?;
    let scoring = Scoring {
        generation: options.generation()?,
        decoding: options.decoding(&pipeline, &mut output)?,
        pipeline,
        seeds: (0..u64::from(arguments.seeds))
            .map(|number| first.wrapping_add(number))
            .collect(),
        clips: arguments.clips as usize,
        sheets: arguments.sheets.clone(),
        oracle: Oracle::default(),
        printer: Printer::new(),
    };

    println!("{}", scoring.heading());
    let mut tables = Vec::new();
    let mut lacks: Vec<String> = Vec::new();
    for subject in subjects {
        if let Some(missing) = scoring.missing(subject) {
            println!("\nLeft out: {}: the model {missing}.", subject.name());
            if !lacks.contains(&missing) {
                lacks.push(missing);
            }
            continue;
        }
        let started = Instant::now();
        let made = match subject {
            Subject::Tokens => tokens::tables(&scoring)?,
            Subject::Reconstruction => reconstruction::tables(&scoring)?,
            Subject::Questions => questions::tables(&scoring)?,
            Subject::Generation => generation::tables(&scoring)?,
            Subject::Stories => stories::tables(&scoring)?,
            Subject::Samplers => samplers::tables(&scoring)?,
            Subject::Real => real::tables(&scoring, &videos)?,
        };
        for table in &made {
            println!("\n{}", table.markdown());
        }
        scoring.printer.note(&format!(
            "{}: {:.0} s",
            subject.name(),
            started.elapsed().as_secs_f64()
        ));
        tables.extend(made);
        // After each table, so that a run that is stopped leaves those that it made.
        if let Some(path) = &arguments.json {
            write_json(path, &scoring, &tables)?;
        }
    }
    scoring.printer.finish();
    if tables.is_empty() {
        bail!(
            "{}: no table can be made: the model {}; name another one with --model, or other tables with --only",
            scoring.pipeline.name(),
            lacks.join(" and ")
        );
    }
    Ok(())
}

/// What to measure, in order.
fn subjects(arguments: &Arguments) -> Result<Vec<Subject>> {
    let real = arguments.real.is_some();
    if arguments.only.contains(&Subject::Real) && !real {
        bail!("--only real needs a folder of videos; name one with --real");
    }
    if arguments.only.contains(&Subject::Tokens) && (arguments.clips as usize) < tokens::LEAST {
        bail!(
            "--only tokens needs {} clips or more; ask for them with --clips",
            tokens::LEAST
        );
    }
    let wanted = |subject: &Subject| match (arguments.only.is_empty(), subject) {
        (false, _) => arguments.only.contains(subject),
        (true, Subject::Tokens | Subject::Samplers) => false,
        (true, Subject::Real) => real,
        (true, _) => true,
    };
    let all = Subject::value_variants().iter().copied();
    Ok(all.filter(wanted).collect())
}

fn write_json(path: &Path, scoring: &Scoring, tables: &[Table]) -> Result<()> {
    let tables: Vec<_> = tables.iter().map(Table::json).collect();
    let value = json!({
        "model": scoring.pipeline.name(),
        "device": divot::device::name(scoring.pipeline.device()),
        "clips": scoring.clips,
        "seeds": scoring.seeds,
        "sampling": scoring.sampling(),
        "tables": tables,
    });
    let text = serde_json::to_string_pretty(&value)? + "\n";
    Ok(divot_data::atomically(path, |file| {
        file.write_all(text.as_bytes())
    })?)
}

impl Subject {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Scoring {
    /// Which part a subject needs that the model does not have, if any.
    fn missing(&self, subject: Subject) -> Option<String> {
        let folder = self.pipeline.folder();
        let lacks = |part: Part| {
            let absent = !part.folder(folder).is_dir();
            absent.then(|| format!("has no {part}", part = part.name()))
        };
        let mute = |task: Task| {
            let absent = task.part(folder).is_err();
            absent.then(|| "has no language model".to_owned())
        };
        match subject {
            Subject::Tokens => lacks(Part::Tokenizer),
            Subject::Reconstruction | Subject::Samplers | Subject::Real => {
                lacks(Part::Tokenizer).or_else(|| lacks(Part::Detokenizer))
            }
            Subject::Questions => lacks(Part::Tokenizer).or_else(|| mute(Task::Comprehension)),
            Subject::Generation | Subject::Stories => mute(Task::Generation)
                .or_else(|| lacks(Detokenizer::adapted_part(folder)))
                .or_else(|| lacks(Part::Tokenizer).filter(|_| self.decoding.guidance.is_on())),
        }
    }

    fn heading(&self) -> String {
        let seeds = match &self.seeds[..] {
            [one] => format!("seed {one}"),
            seeds => format!("seeds {} to {}", seeds[0], seeds[seeds.len() - 1]),
        };
        format!(
            "# Scores of {}\n\n{}, {seeds}, {}, on {}. Where there are several seeds, a score is their mean ± their \
             standard deviation. Shares are in percent.",
            self.pipeline.name(),
            plural(self.clips, "clip"),
            self.sampling(),
            divot::device::name(self.pipeline.device()),
        )
    }

    /// How clips and texts are sampled, in words.
    fn sampling(&self) -> String {
        let sampling = &self.decoding.sampling;
        let guidance = self.decoding.guidance.scale;
        let (text, features) = (&self.generation.text, &self.generation.features);
        format!(
            "{} steps of {}, guidance {guidance}, text at temperature {} and top-p {}, tokens at {} of their variance",
            sampling.check().unwrap_or(sampling.steps),
            solver_name(sampling.solver),
            text.temperature,
            text.top_p,
            features.var_scale,
        )
    }

    /// Follows a work of so many steps.
    fn progress(&self, name: &str, steps: usize) -> Progress<'_> {
        Progress {
            printer: &self.printer,
            name: name.to_owned(),
            status: Status {
                steps,
                ..Status::default()
            },
            weight: 1,
            started: Instant::now(),
            shown: Instant::now(),
        }
    }
}

/// What a solver is called, with its share of fresh noise.
fn solver_name(solver: Solver) -> String {
    match solver {
        Solver::Ddim { eta } => format!("ddim (eta {eta})"),
        Solver::DpmSolverPlusPlus => "dpm-solver++".to_owned(),
        Solver::UniPc => "unipc".to_owned(),
    }
}

/// The seed of the random numbers of one clip or answer, a different one for each.
fn seed_of(seed: u64, number: u64) -> u64 {
    seed.wrapping_mul(1_000_003).wrapping_add(number)
}

/// Least seconds between two lines about how far a work is.
const SECONDS: f64 = 5.0;

/// How far a work is.
struct Progress<'a> {
    printer: &'a Printer,
    name: String,
    status: Status,
    /// Steps that a clip takes.
    weight: usize,
    started: Instant,
    shown: Instant,
}

impl Progress<'_> {
    /// Notes that so many more clips, answers or the like are done.
    ///
    /// # Errors
    /// If Ctrl-C was pressed.
    fn advance(&mut self, clips: usize) -> Result<()> {
        if divot_cli::interrupted() {
            return Err(divot::Error::Stopped.into());
        }
        let status = &mut self.status;
        status.step += clips * self.weight;
        if self.shown.elapsed().as_secs_f64() >= SECONDS {
            let left = status.steps.saturating_sub(status.step) as f64;
            let pace = self.started.elapsed().as_secs_f64() / status.step.max(1) as f64;
            status.seconds_left = Some(pace * left);
            self.printer
                .show(format!("{}: {}", self.name, line(status)));
            self.shown = Instant::now();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn score(options: &[&str]) -> Result<()> {
        let all = [&["score-tiny", "--device", "cpu"][..], options].concat();
        let cli = Cli::try_parse_from(all)?;
        run(&cli.arguments)
    }

    #[test]
    fn the_model_in_the_box_is_scored() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scores.json");
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/divot-tiny/model");
        let counts = ["--clips", "4", "--seeds", "1", "--only", "reconstruction"];
        let files = ["--model", model, "--json", file.to_str().unwrap()];
        score(&[&counts[..], &files[..]].concat()).unwrap();

        let scores: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(scores["model"], model);
        assert_eq!(scores["clips"], 4);
        assert_eq!(scores["seeds"], json!([42]));
        assert_eq!(scores["tables"][0]["title"], "Reconstruction");
        let rows = scores["tables"][0]["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 12);
        let decibels = |frames: &str| -> Vec<f64> {
            let rows = rows.iter().filter(|row| row["frames"] == frames);
            rows.map(|row| row["PSNR dB"]["mean"].as_f64().unwrap())
                .collect()
        };
        let made = decibels("**tokens and back**");
        let other = decibels("another clip");
        assert_eq!([made.len(), other.len()], [2, 2]);
        let mut pairs = made.iter().zip(&other);
        assert!(
            pairs.all(|(made, other)| made > other),
            "{made:?} {other:?}"
        );
    }

    /// What is wrong with the options is said before the model is looked for.
    #[test]
    fn what_cannot_be_scored_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let below = file.join("below");
        let below = below.to_str().unwrap();
        for (options, says) in [
            (vec!["--only", "real"], "--real"),
            (vec!["--only", "tokens", "--clips", "3"], "--clips"),
            (vec!["--sheets", below], "--sheets"),
            (vec!["--json", below], below),
        ] {
            let options = [&["--model", "nowhere"][..], &options[..]].concat();
            let error = score(&options).unwrap_err();
            let line = divot::one_line(error.as_ref());
            assert!(line.contains(says) && !line.contains("nowhere"), "{line}");
        }

        let empty = tempfile::tempdir().unwrap();
        let name = empty.path().to_str().unwrap();
        let error = score(&["--model", name]).unwrap_err().to_string();
        for says in [name, "has no tokenizer", "has no language model"] {
            assert!(error.contains(says), "{error}");
        }
    }
}
