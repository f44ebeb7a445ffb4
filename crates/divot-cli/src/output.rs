//! Output of a command: text, or one JSON object.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use divot::checkpoint::Part;
use divot::data::{Frame, Video};
use divot::pipeline::Event;
use divot::{Progress, Step};
use divot::{device, peak_memory};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{interrupt, story};

/// Collects and prints the results of a command.
pub struct Output {
    json: bool,
    results: Map<String, Value>,
    seconds: Vec<(&'static str, f64)>,
    device: Option<String>,
    started: Instant,
    /// The reader has closed standard output.
    closed: bool,
    stops_when_closed: bool,
    /// The error if standard output cannot be written.
    failed: Option<io::Error>,
    /// The progress bar on the screen.
    bar: Option<(Step, ProgressBar)>,
}

impl Default for Output {
    /// The output of a command that starts now and prints text.
    fn default() -> Self {
        Self {
            json: false,
            results: Map::new(),
            seconds: Vec::new(),
            device: None,
            started: Instant::now(),
            closed: false,
            stops_when_closed: false,
            failed: None,
            bar: None,
        }
    }
}

impl Output {
    /// Sets whether to print one JSON object at the end instead of text.
    pub(crate) fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    /// Adds a result to the JSON object.
    pub fn set(&mut self, key: &str, value: impl Serialize) {
        // All values that are set here can be serialised.
        let value = serde_json::to_value(value).unwrap_or_default();
        self.results.insert(key.to_owned(), value);
    }

    /// Sets the device that the summary and the JSON object name.
    pub fn set_device(&mut self, device: &Device) {
        self.device = Some(device::name(device));
    }

    /// Prints a line of text.
    pub fn line(&mut self, line: impl Display) -> Result<()> {
        self.write(&format!("{line}\n"));
        self.failure()
    }

    /// Prints a piece of streamed text. Breaks if the stream should stop.
    pub fn stream(&mut self, text: &str) -> ControlFlow<()> {
        // Generated text must not control the terminal.
        let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
        self.write(&text.replace(steers, "\u{fffd}"));
        match self.failed.is_some() || (self.closed && self.stops_when_closed) {
            true => ControlFlow::Break(()),
            false => interrupt::flow(),
        }
    }

    /// Makes [`stream`](Self::stream) break when the reader closes standard output. For commands whose
    /// only result is the text.
    pub fn stop_when_closed(&mut self) {
        self.stops_when_closed = true;
    }

    /// Returns whether the reader has closed standard output.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Fails if standard output could not be written, or Ctrl-C was pressed.
    pub fn check(&mut self) -> Result<()> {
        interrupt::check()?;
        self.failure()
    }

    fn failure(&mut self) -> Result<()> {
        match self.failed.take() {
            Some(error) => Err(error).context("standard output cannot be written; check the disk"),
            None => Ok(()),
        }
    }

    /// Prints a remark on standard error. A remark is not part of the result.
    pub fn note(&self, line: impl Display) {
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// Shows the progress of a pipeline and records the seconds of its stages. Breaks if the pipeline
    /// should stop.
    pub fn observe(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Progress(progress) => self.progress(progress),
            Event::Text(text) => return self.stream(text),
            Event::Scene(number, _) => {
                return self.stream(&format!("\n[{}]\n", story::clip_name(number)));
            }
            Event::Remark(remark) => self.note(remark),
            Event::Finished(stage, elapsed) => {
                self.clear_bar();
                self.count(stage.name(), elapsed.as_secs_f64());
            }
            _ => {}
        }
        interrupt::flow()
    }

    fn progress(&mut self, progress: Progress<'_>) {
        let Progress { name, step, .. } = progress;
        if step == Step::Load && Part::from_name(name).is_some_and(Part::is_llm) {
            self.set("llm", name);
        }
        if self.bar.as_ref().is_none_or(|(shown, _)| *shown != step) {
            self.clear_bar();
            let position = match step {
                Step::Tokenize | Step::Sample => "{pos}/{len}",
                _ => "{bytes}/{total_bytes}",
            };
            self.bar = Some((step, self.bar(position)));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_message(match step {
                Step::Download => format!("download {name}"),
                Step::Verify => format!("check {name}"),
                _ => name.to_owned(),
            });
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }
    }

    fn clear_bar(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Runs `work` and adds its time to that of a stage.
    pub fn timed<T>(
        &mut self,
        stage: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let result = work(self);
        self.clear_bar();
        let result = result?;
        self.count(stage, started.elapsed().as_secs_f64());
        Ok(result)
    }

    /// Adds seconds to the time of a stage.
    fn count(&mut self, stage: &'static str, seconds: f64) {
        match self.seconds.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((stage, seconds)),
        }
    }

    /// Returns the seconds of each stage, the device and the peak memory on one line.
    pub fn summary(&self) -> String {
        let mut parts: Vec<String> = self
            .seconds
            .iter()
            .map(|(what, seconds)| format!("{what} {seconds:.1} s"))
            .collect();
        if let Some(device) = &self.device {
            let last = parts.pop().unwrap_or_default();
            parts.push(format!("{last} on {device}"));
        }
        if let Some(bytes) = peak_memory() {
            parts.push(format!("peak memory {}", size(bytes)));
        }
        parts.join(", ")
    }

    /// Prints a remark whose content the JSON object has too. With JSON, nothing is printed.
    pub fn remark(&self, line: impl Display) {
        if !self.json {
            self.note(line);
        }
    }

    /// Creates a progress bar on standard error. It is hidden if standard error is not a terminal.
    fn bar(&self, position: &str) -> ProgressBar {
        let template = format!("{{msg:12}} {{wide_bar}} {position}, {{eta}} left");
        let bar = if io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(ProgressStyle::with_template(&template).expect("the template is constant"));
        bar
    }

    /// Ends the command. Prints the JSON object if it is enabled.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let total = self.started.elapsed().as_secs_f64();
        let seconds: Map<String, Value> = self
            .seconds
            .iter()
            .chain(&[("total", total)])
            .map(|(what, seconds)| ((*what).to_owned(), Value::from(*seconds)))
            .collect();
        let mut object = Map::new();
        object.extend(self.results.remove_entry("command"));
        object.append(&mut self.results);
        object.insert("seconds".to_owned(), seconds.into());
        object.insert("device".to_owned(), self.device.clone().into());
        object.insert("peak_memory_bytes".to_owned(), peak_memory().into());
        self.json = false;
        let text = serde_json::to_string_pretty(&object)?;
        self.line(text)
    }

    /// Prints text unchanged.
    fn write(&mut self, text: &str) {
        if self.json || self.closed || self.failed.is_some() {
            return;
        }
        let mut stdout = io::stdout().lock();
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Ok(()) => {}
            // The reader has enough, as in `divot … | head`.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.closed = true,
            Err(error) => self.failed = Some(error),
        }
    }
}

/// Splits a clip into rows of eight frames.
pub fn rows(frames: &[Frame]) -> Vec<&[Frame]> {
    frames.chunks(8).collect()
}

/// Formats a count: `1.1 K`, `2.5 M`.
pub fn count(number: usize) -> String {
    let number = number as f64;
    match number {
        _ if number >= 1e6 => format!("{:.1} M", number / 1e6),
        _ if number >= 1e3 => format!("{:.1} K", number / 1e3),
        _ => number.to_string(),
    }
}

/// Formats a count with its noun: `1 clip`, `2 clips`.
pub fn plural(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Describes a video on one line: `clip.mp4 (69 frames at 25.000 fps, h264)`.
pub fn video(video: &Video) -> String {
    let info = video.info();
    format!(
        "{} ({} at {:.3} fps, {})",
        video.path().display(),
        plural(info.frames, "frame"),
        info.fps,
        info.codec
    )
}

/// Formats a number of bytes: `512 bytes`, `1.50 GiB`.
pub fn size(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} {}", units[0]),
        _ => format!("{value:.2} {}", units[unit]),
    }
}
