//! Reading of training samples, compared with decord in PyTorch's DataLoader.

mod make;
mod memory;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use divot_data::dataset::{
    Format, Loader, LoaderConfig, MixedSource, Samples as _, Source, SourceConfig,
};
use divot_data::{ClipReader, Frame};
use serde_json::{Value, json};

pub use memory::memory;

use super::turns::{Side, take_turns};
use super::{Arguments, Work, ourselves, python};

/// Samples of a batch.
const BATCH: usize = 8;
/// Batches of a run, after one that is not counted.
const BATCHES: usize = 16;
/// Largest difference of the mean of a part of a frame, in levels. Decoders of JPEG differ.
const TOLERANCE: f64 = 2.0;

const REMEDY: &str = "install Python with torch, pillow, and decord or av, or name one that has them with --python or DIVOT_PYTHON";

/// What samples are read from.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Videos,
    Shards,
    Images,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Videos => "videos",
            Self::Shards => "shards",
            Self::Images => "images",
        }
    }

    fn folder(self, folder: &Path) -> PathBuf {
        folder.join(self.name())
    }

    /// What a row of the table is called.
    fn title(self) -> &'static str {
        match self {
            Self::Videos => "MP4 files",
            Self::Shards => "MP4 in tar",
            Self::Images => "pictures in tar",
        }
    }
}

const ROWS: [(Kind, usize); 6] = [
    (Kind::Videos, 64),
    (Kind::Videos, 256),
    (Kind::Shards, 64),
    (Kind::Shards, 256),
    (Kind::Images, 64),
    (Kind::Images, 256),
];

/// Makes the data, times each row, and prints a table.
pub fn compare(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
    let what = make::make(folder.path()).context("the data cannot be made")?;
    let repeat = arguments
        .repeat
        .unwrap_or(if arguments.peer.is_some() { 5 } else { 1 });
    let clips = BATCH * BATCHES;
    for (number, (kind, size)) in ROWS.into_iter().enumerate() {
        let mut command = ourselves(Work::Data, arguments)?;
        command
            .args(["--data", kind.name(), &size.to_string()])
            .arg(folder.path());
        let mut sides = vec![Side::start("ours", command, "build it again")?];
        if arguments.peer.is_some() {
            let command = peer(kind, size, folder.path(), arguments);
            sides.push(Side::start("theirs", command, REMEDY)?);
        }
        if number == 0 {
            let peer = sides
                .get(1)
                .map(|side| format!("; theirs: {}", side.device));
            println!("{what}.\n");
            println!(
                "Clips per second of 16 frames, in batches of {BATCH}; {} threads or workers{}. {repeat} runs of {clips} clips of each, in turns: least / **median** / most.\n",
                arguments.threads(),
                peer.unwrap_or_default()
            );
            println!(
                "| samples | ours | theirs | ours / theirs | peak, ours | peak, theirs | others took |"
            );
            println!("| --- | --- | --- | --- | --- | --- | --- |");
        }
        let looks = sides.iter_mut().map(|side| side.ask("look"));
        let looks = looks.collect::<Result<Vec<_>>>()?;
        if let [ours, theirs] = &looks[..] {
            same(ours, theirs).with_context(|| format!("{} at {size}", kind.title()))?;
        }
        let measured = take_turns(&mut sides, repeat)?;
        let ours = &measured[0];
        let mut columns = vec![ours.rates(clips)];
        match measured.get(1) {
            Some(theirs) => columns.extend([
                theirs.rates(clips),
                format!("**{:.2}**", theirs.median() / ours.median()),
                ours.peak(),
                theirs.peak(),
                format!("{}, {}", ours.others(), theirs.others()),
            ]),
            None => columns.extend([
                String::new(),
                String::new(),
                ours.peak(),
                String::new(),
                ours.others(),
            ]),
        }
        println!(
            "| {}, {size}x{size} | {} |",
            kind.title(),
            columns.join(" | ")
        );
    }
    println!();
    Ok(())
}

fn peer(kind: Kind, size: usize, folder: &Path, arguments: &Arguments) -> Command {
    let mut command = python(arguments, "peer/data.py");
    command
        .args(["--serve", kind.name(), "--size", &size.to_string()])
        .args(["--workers", &arguments.threads().to_string()])
        .args([
            "--batch",
            &BATCH.to_string(),
            "--batches",
            &BATCHES.to_string(),
        ])
        .arg("--folder")
        .arg(kind.folder(folder));
    command
}

/// Checks that both sides read the same frames, and cut them in the same way.
fn same(ours: &Value, theirs: &Value) -> Result<()> {
    let means = |side: &Value| -> Result<Vec<f64>> {
        let means = side["means"].as_array().context("no means")?;
        let means = means.iter().map(|mean| mean.as_f64().context("no number"));
        means.collect()
    };
    let (ours, theirs) = (means(ours)?, means(theirs)?);
    ensure!(
        ours.len() == theirs.len(),
        "ours has {} means of parts of frames and theirs {}",
        ours.len(),
        theirs.len()
    );
    let differences = ours
        .iter()
        .zip(&theirs)
        .map(|(ours, theirs)| (ours - theirs).abs());
    let worst = differences.fold(0.0, f64::max);
    ensure!(
        worst <= TOLERANCE,
        "a part of a frame differs by {worst:.1} levels: not the same work"
    );
    Ok(())
}

/// A source that is read as a row of the table says.
struct Reading {
    config: SourceConfig,
    clips: ClipReader,
    workers: usize,
    /// The step that the next run begins at.
    step: u64,
}

impl Reading {
    fn new(arguments: &Arguments) -> Result<Self> {
        let [kind, size, folder] = &arguments.data[..] else {
            bail!("--data takes a kind, a size and a folder")
        };
        let kinds = [Kind::Videos, Kind::Shards, Kind::Images];
        let kind = kinds.into_iter().find(|known| known.name() == kind);
        let kind = kind.context("--data takes videos, shards or images")?;
        let format = match kind {
            Kind::Videos => Format::Videos,
            Kind::Shards | Kind::Images => Format::Webdataset,
        };
        Ok(Self {
            config: SourceConfig::new(format, kind.folder(folder.as_ref())),
            clips: ClipReader::of_size(size.parse()?),
            workers: arguments.threads(),
            step: 0,
        })
    }

    fn open(&self) -> Result<Source> {
        Ok(Source::open(&self.config, &self.clips)?)
    }

    /// Returns the seconds that a run took. Its first batch, for which threads are started, is not counted, and
    /// nothing is read ahead of it.
    fn run(&mut self) -> Result<f64> {
        let source = MixedSource {
            name: self.config.name(),
            samples: Box::new(self.open()?),
            weight: 1.0,
            batch: BATCH,
        };
        let config = LoaderConfig {
            workers: self.workers,
            first_step: self.step,
            ..LoaderConfig::default()
        };
        self.step += 1 + BATCHES as u64;
        let mut loader = Loader::new(vec![source], config)?;
        let mut next = || {
            loader
                .next()
                .context("the loader ended")?
                .context("a batch")
        };
        next()?;
        let started = Instant::now();
        let mut samples = 0;
        for _ in 0..BATCHES {
            samples += next()?.samples.len();
        }
        let seconds = started.elapsed().as_secs_f64();
        ensure!(samples == BATCH * BATCHES, "a batch of another size");
        ensure!(
            loader.skipped().is_empty(),
            "samples were left out: {:?}",
            loader.skipped()
        );
        Ok(seconds)
    }

    /// Returns the means of the parts of two samples' frames, with clips from the middle of what is random.
    fn look(&self) -> Result<Vec<f64>> {
        let source = self.open()?;
        let mut means = Vec::new();
        // Of other sizes and formats.
        for index in [0, 3] {
            let sample = source.read(index, &mut || 0.5);
            let sample =
                sample.map_err(|skip| anyhow::anyhow!("{}: {}", skip.key, skip.message))?;
            for frame in sample.clips.iter().flat_map(|clip| clip.frames()) {
                means.extend(parts(frame));
            }
        }
        Ok(means)
    }
}

/// Means of 4x4 parts of a frame, by channel.
fn parts(frame: &Frame) -> Vec<f64> {
    let side = frame.width / 4;
    let mut sums = vec![0.0; 3 * 16];
    for (place, &value) in frame.rgb.iter().enumerate() {
        let (channel, x, y) = (place % 3, place / 3 % frame.width, place / 3 / frame.width);
        sums[channel * 16 + y / side * 4 + x / side] += f64::from(value) / (side * side) as f64;
    }
    sums
}

/// Serves a row to [`turns`](super::turns).
pub fn serve(arguments: &Arguments) -> Result<()> {
    // The parent prints this error.
    if let Err(error) = answer(arguments) {
        let error = divot::one_line(error.as_ref());
        println!("{}", json!({"error": error}));
    }
    Ok(())
}

fn answer(arguments: &Arguments) -> Result<()> {
    let mut reading = Reading::new(arguments)?;
    // Warms up, and brings the files into memory.
    reading.run()?;
    let samples = reading.open()?.len();
    println!(
        "{}",
        json!({"ready": true, "parameters": samples, "device": "threads"})
    );
    for line in std::io::stdin().lines() {
        let answer = match line?.trim() {
            "run" => json!({"seconds": reading.run()?}),
            "peak" => json!({"peak_bytes": divot::peak_memory()}),
            "look" => json!({"means": reading.look()?}),
            other => bail!("`{other}` is neither run, peak nor look"),
        };
        println!("{answer}");
    }
    Ok(())
}
