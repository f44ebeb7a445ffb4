//! What a run leaves to look at, below its folder.
//!
//! | file | holds |
//! | --- | --- |
//! | `metrics.jsonl` | the numbers, a line for each call of [`Recorder::scalars`]: [`Metrics`] |
//! | `events.out.tfevents.*` | the same, sheets and texts for TensorBoard |
//! | `samples/step-*.png` | sheets of samples |
//! | `samples/step-*.gif` | the clips of a sheet |
//! | `texts.jsonl` | texts that were made at evaluations |
//! | `report.html` | all of it on a page that needs nothing else |
//!
//! A run that goes on from a checkpoint drops what was recorded after it, so that the record is that of a
//! run which was never interrupted.

mod chart;
mod events;
mod files;
mod history;
mod metrics;
mod progress;
mod report;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use divot::data::{Frame, write_gif};
use serde::{Deserialize, Serialize};

use events::EventWriter;
use files::Appender;
use history::History;
use progress::Pace;
use report::Report;

pub use metrics::Metrics;
pub use progress::{Printer, Status, line};

/// Names of numbers which the page and [`Status`] know. Any other may be recorded beside them.
///
/// What stands before the slash groups them. A name that ends with `_share` is shown in percent, one that
/// ends with `_bytes` in GiB.
pub mod names {
    /// Training loss.
    pub const LOSS: &str = "train/loss";
    /// Learning rate.
    pub const RATE: &str = "train/rate";
    /// Norm of the gradient of all parameters, before it is clipped.
    pub const GRADIENT_NORM: &str = "train/gradient_norm";
    /// Validation loss.
    pub const VALIDATION_LOSS: &str = "validation/loss";
    /// Samples that are learned from in a second.
    pub const SAMPLES_PER_SECOND: &str = "system/samples_per_second";
    /// Share of the time in which the run waits for data, from 0 to 1.
    pub const DATA_WAIT: &str = "system/data_wait_share";
    /// Share of the time in which ranks exchanged gradients and parameters, or waited for each other.
    pub const COMMUNICATION: &str = "system/communication_share";
    /// Memory in use at most, in bytes.
    pub const MEMORY: &str = "system/memory_bytes";
}

/// How names begin of samples that were skipped so far: the reason follows.
pub const SKIPPED: &str = "skipped/";
/// How names begin of what is measured on the validation set.
pub const VALIDATION: &str = "validation/";

const METRICS: &str = "metrics.jsonl";
const TEXTS: &str = "texts.jsonl";
const REPORT: &str = "report.html";
/// Longer texts are cut, in bytes.
const MAX_TEXT: usize = 64 << 10;
/// The page is written again after so long at the earliest.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// The page's writing takes at most one part in so many of the run's time.
const REPORT_COST: u32 = 100;

/// What went wrong with a run's record. The message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A file cannot be written.
    #[error("{}: cannot be written ({source}); check the folder, its permissions and the free space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read ({source}); check the file and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A line is not one that a run wrote.
    #[error("{}:{line}: not a line of a run's record; move the file away, or correct the line", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
    },
    /// A sheet is not a PNG image.
    #[error("the sheet `{name}` of step {step} is not a PNG image; encode it as one")]
    Sheet {
        /// Its step.
        step: usize,
        /// Its name.
        name: String,
    },
}

impl RecordError {
    fn write(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        Self::Write { path, source }
    }

    fn read(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        Self::Read { path, source }
    }
}

/// What a record says of its run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunInfo {
    /// The recipe's name.
    pub name: String,
    /// Steps of the whole run.
    pub steps: usize,
    /// Settings and their values, in the order in which they are shown.
    pub settings: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// All steps were taken.
    Finished,
    /// Someone stopped it. It can be resumed.
    Stopped,
    /// An error ended it; the text says which.
    Failed(String),
}

/// A text that was made at an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Text {
    step: usize,
    name: String,
    text: String,
}

/// A sheet of samples. Its file is named after it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Sheet {
    step: usize,
    name: String,
}

impl Sheet {
    const FOLDER: &str = "samples";

    fn new(step: usize, name: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name = name.chars().take(60).map(plain).collect();
        Self { step, name }
    }

    fn file(&self) -> String {
        format!("step-{:08}-{}.png", self.step, self.name)
    }

    /// The sheet that a file holds. `None` for files of other names.
    fn of(file: &str) -> Option<Self> {
        let (step, name) = file
            .strip_prefix("step-")?
            .strip_suffix(".png")?
            .split_once('-')?;
        let sheet = Self::new(step.parse().ok()?, name);
        (sheet.file() == file).then_some(sheet)
    }
}

/// Writes a run's record as the run goes on.
///
/// A record that cannot be written does not end a run. Methods return what went wrong, once, until
/// everything can be written again: a warning to show. Numbers and texts wait in memory for the disk, up to
/// 4 MiB a file.
///
/// Only one recorder at a time may write to a folder.
#[derive(Debug)]
pub struct Recorder {
    folder: PathBuf,
    run: RunInfo,
    metrics: Appender,
    texts: Appender,
    events: EventWriter,
    history: History,
    sheets: Vec<Sheet>,
    last_texts: Vec<Text>,
    status: Status,
    pace: Pace,
    started: Instant,
    /// Seconds of the run's interrupted parts.
    seconds_before: f64,
    /// When the page may be written again.
    report_due: Instant,
    /// Files that could not be written when it was last tried.
    failing: BTreeSet<PathBuf>,
}

impl Recorder {
    /// Begins the record of a run in its folder, or goes on with it. `step` is the number of steps that are
    /// done: 0, or that of the checkpoint from which the run goes on. Whatever was recorded after it is
    /// dropped, and everything if it is 0.
    ///
    /// # Errors
    /// If the folder cannot be read or written, or holds files of these names that no run wrote.
    pub fn open(folder: &Path, run: RunInfo, step: usize) -> Result<Self, RecordError> {
        let kept = |at: usize| step > 0 && at <= step;
        let samples = folder.join(Sheet::FOLDER);
        fs::create_dir_all(&samples).map_err(|error| RecordError::write(&samples, error))?;

        let mut history = History::new();
        let mut seconds_before = 0.0;
        let metrics = files::resume_lines(folder.join(METRICS), |line| {
            let metrics = Metrics::parse(line)?;
            if !kept(metrics.step) {
                return Some(false);
            }
            seconds_before = metrics.seconds;
            add(&mut history, &metrics);
            Some(true)
        })?;
        let mut last_texts = Vec::new();
        let texts = files::resume_lines(folder.join(TEXTS), |line| {
            let text: Text = serde_json::from_slice(line).ok()?;
            let kept = kept(text.step);
            if kept {
                show(&mut last_texts, text);
            }
            Some(kept)
        })?;
        let sheets = resume_sheets(&samples, kept)?;
        let events = EventWriter::create(folder, if step == 0 { 0 } else { step + 1 })?;

        let now = Instant::now();
        let mut recorder = Self {
            folder: folder.to_path_buf(),
            metrics,
            texts,
            events,
            history,
            sheets,
            last_texts,
            status: Status {
                step,
                steps: run.steps,
                seconds: seconds_before,
                ..Status::default()
            },
            run,
            pace: Pace::default(),
            started: now,
            seconds_before,
            report_due: now,
            failing: BTreeSet::new(),
        };
        recorder.note_status();
        recorder.pace.mark(step, seconds_before);
        let report = folder.join(REPORT);
        let written = recorder.write_report(None);
        written.map_err(|error| RecordError::write(&report, error))?;
        Ok(recorder)
    }

    /// Records numbers after a step, see [`names`]. Steps may not decrease.
    ///
    /// `step` and `seconds` are not names of numbers: each line of `metrics.jsonl` has its own.
    ///
    /// The warning is returned if a file cannot be written.
    #[must_use = "it is a warning to show"]
    pub fn scalars(
        &mut self,
        step: usize,
        values: &[(impl AsRef<str>, f64)],
    ) -> Option<RecordError> {
        let metrics = Metrics {
            step,
            seconds: self.seconds_before + self.started.elapsed().as_secs_f64(),
            values: values
                .iter()
                .map(|(name, value)| (name.as_ref().to_owned(), *value))
                .filter(|(name, _)| !["step", "seconds"].contains(&name.as_str()))
                .collect(),
        };
        add(&mut self.history, &metrics);
        self.status.step = step;
        self.status.seconds = metrics.seconds;
        self.note_status();
        self.pace.mark(step, metrics.seconds);
        let steps_left = self.run.steps.saturating_sub(step);
        self.status.seconds_left = self.pace.seconds(steps_left);

        let written = self.metrics.append(&metrics.line());
        let warning = self.judge(self.folder.join(METRICS), written);
        let values = metrics.values.iter();
        let values = values.map(|(name, value)| (name.as_str(), *value));
        let written = self.events.scalars(step, values);
        let event_warning = self.judge(self.events.path().to_owned(), written);
        warning.or(event_warning).or_else(|| self.report_if_due())
    }

    /// Records a sheet of samples as a PNG image. Names of a step's sheets differ in letters or digits.
    ///
    /// The warning is returned if a file cannot be written, or `png` is no PNG image.
    #[must_use = "it is a warning to show"]
    pub fn sheet(&mut self, step: usize, name: &str, png: &[u8]) -> Option<RecordError> {
        let Some(size) = png_size(png) else {
            let name = name.to_owned();
            return Some(RecordError::Sheet { step, name });
        };
        let sheet = Sheet::new(step, name);
        let path = self.folder.join(Sheet::FOLDER).join(sheet.file());
        let written = files::replace(&path, |file| file.write_all(png));
        if written.is_ok() && !self.sheets.contains(&sheet) {
            self.sheets.push(sheet);
        }
        let warning = self.judge(path, written);
        let written = self
            .events
            .image(step, &format!("samples/{name}"), png, size);
        let event_warning = self.judge(self.events.path().to_owned(), written);
        warning.or(event_warning)
    }

    /// Writes a clip that was made at an evaluation beside the sheet of this name, as a GIF with `fps` frames per second.
    ///
    /// The warning is returned if the file cannot be written.
    #[must_use = "it is a warning to show"]
    pub fn animation(
        &mut self,
        step: usize,
        name: &str,
        frames: &[Frame],
        fps: f64,
    ) -> Option<RecordError> {
        let sheet = Sheet::new(step, name).file();
        let path = self.folder.join(Sheet::FOLDER).join(sheet);
        let path = path.with_extension("gif");
        let written = fs::create_dir_all(self.folder.join(Sheet::FOLDER));
        let written =
            written.and_then(|()| write_gif(&path, frames, fps).map_err(io::Error::other));
        self.judge(path, written)
    }

    /// Records a text that was made at an evaluation, such as an answer; `name` says to what. The page shows
    /// the texts of the last step that has some.
    ///
    /// The warning is returned if a file cannot be written.
    #[must_use = "it is a warning to show"]
    pub fn text(&mut self, step: usize, name: &str, text: &str) -> Option<RecordError> {
        let cut = |text: &str| text[..text.floor_char_boundary(MAX_TEXT)].to_owned();
        let text = Text {
            step,
            name: cut(name),
            text: cut(text),
        };
        let mut line = serde_json::to_vec(&text).expect("texts are JSON");
        line.push(b'\n');
        let written = self.texts.append(&line);
        let warning = self.judge(self.folder.join(TEXTS), written);
        let tag = format!("texts/{}", text.name);
        let written = self.events.text(step, &tag, &text.text);
        let event_warning = self.judge(self.events.path().to_owned(), written);
        show(&mut self.last_texts, text);
        warning.or(event_warning)
    }

    /// Where the run stands, as far as the recorded numbers tell. [`line()`] puts it into words.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Writes what still waits, and the page for the last time.
    ///
    /// The warning is returned if a file cannot be written.
    #[must_use = "it is a warning to show"]
    pub fn finish(mut self, ending: &Ending) -> Option<RecordError> {
        self.status.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        let waiting = [
            self.metrics.append(b""),
            self.texts.append(b""),
            self.events.flush(),
        ];
        let written = waiting.into_iter().collect();
        let warning = self.judge(self.folder.clone(), written);
        let written = self.write_report(Some(ending));
        warning.or(self.judge(self.folder.join(REPORT), written))
    }

    /// Takes the newest numbers into the status.
    fn note_status(&mut self) {
        let last = |name: &str| self.history.get(name).map(|series| series.last);
        self.status.loss = last(names::LOSS);
        self.status.rate = last(names::RATE);
        self.status.samples_per_second = last(names::SAMPLES_PER_SECOND);
        self.status.data_wait = last(names::DATA_WAIT);
    }

    /// Makes the first of several failures a warning.
    fn judge(&mut self, path: PathBuf, written: io::Result<()>) -> Option<RecordError> {
        match written {
            Ok(()) => {
                self.failing.remove(&path);
                None
            }
            Err(error) => {
                let first = self.failing.is_empty();
                let warning = RecordError::write(&path, error);
                self.failing.insert(path);
                first.then_some(warning)
            }
        }
    }

    fn report_if_due(&mut self) -> Option<RecordError> {
        if Instant::now() < self.report_due {
            return None;
        }
        let written = self.write_report(None);
        self.judge(self.folder.join(REPORT), written)
    }

    fn write_report(&mut self, ending: Option<&Ending>) -> io::Result<()> {
        let begun = Instant::now();
        let page = Report {
            folder: &self.folder,
            run: &self.run,
            ending,
            status: &self.status,
            history: &self.history,
            sheets: &self.sheets,
            texts: &self.last_texts,
        }
        .html();
        let written = files::replace(&self.folder.join(REPORT), |file| {
            file.write_all(page.as_bytes())
        });
        let cost = begun.elapsed().saturating_mul(REPORT_COST);
        self.report_due = Instant::now() + cost.max(REPORT_EVERY);
        written
    }
}

/// Adds numbers to their curves.
fn add(history: &mut History, metrics: &Metrics) {
    for (name, value) in &metrics.values {
        let series = history.entry(name.clone()).or_default();
        series.push(metrics.step, *value);
    }
}

/// Adds a text to those of the last evaluation.
fn show(last: &mut Vec<Text>, text: Text) {
    last.retain(|other| other.step == text.step && other.name != text.name);
    last.push(text);
}

/// The sheets in a folder, oldest first. Those that are not kept are removed.
fn resume_sheets(folder: &Path, kept: impl Fn(usize) -> bool) -> Result<Vec<Sheet>, RecordError> {
    let failed = |error| RecordError::read(folder, error);
    let mut sheets = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(sheet) = name.to_str().and_then(Sheet::of) else {
            continue;
        };
        if kept(sheet.step) {
            sheets.push(sheet);
            continue;
        }
        let path = folder.join(&name);
        fs::remove_file(&path).map_err(|error| RecordError::write(&path, error))?;
        // Most sheets of single frames have none.
        let _ = fs::remove_file(path.with_extension("gif"));
    }
    sheets.sort();
    Ok(sheets)
}

/// Width and height of a PNG image in pixels. `None` if it is none.
fn png_size(png: &[u8]) -> Option<[u32; 2]> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let side = |at: usize| Some(u32::from_be_bytes(*header.get(at..)?.first_chunk()?));
    Some([side(0)?, side(4)?])
}
