//! What a command says: text, or one JSON object.

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

use crate::interrupt;

/// Where a command's results go.
pub struct Output {
    json: bool,
    results: Map<String, Value>,
    seconds: Vec<(&'static str, f64)>,
    device: Option<String>,
    started: Instant,
    /// Nobody reads standard output any more.
    closed: bool,
    stops_when_closed: bool,
    /// Why standard output cannot be written.
    failed: Option<io::Error>,
    /// The bar that is shown.
    bar: Option<(Step, ProgressBar)>,
}

impl Output {
    /// For a command that starts now, and prints text.
    pub(crate) fn new() -> Self {
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

    /// Prints one JSON object at the end instead of text.
    pub(crate) fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    /// Keeps a result for the JSON object.
    pub fn set(&mut self, key: &str, value: impl Serialize) {
        // Whatever is set here has a form in JSON.
        let value = serde_json::to_value(value).unwrap_or_default();
        self.results.insert(key.to_owned(), value);
    }

    /// Keeps the device's name for the end.
    pub fn set_device(&mut self, device: &Device) {
        self.device = Some(device::name(device));
    }

    /// Prints a line of text.
    pub fn line(&mut self, line: impl Display) -> Result<()> {
        self.write(&format!("{line}\n"));
        self.failure()
    }

    /// Prints a piece of text as it comes; breaks if there should be no more of it.
    pub fn stream(&mut self, text: &str) -> ControlFlow<()> {
        // What a model makes up must not steer a terminal.
        let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
        self.write(&text.replace(steers, "\u{fffd}"));
        match self.failed.is_some() || (self.closed && self.stops_when_closed) {
            true => ControlFlow::Break(()),
            false => interrupt::flow(),
        }
    }

    /// Lets [`stream`](Self::stream) break when nobody reads the text any more, which is all there is.
    pub fn stop_when_closed(&mut self) {
        self.stops_when_closed = true;
    }

    /// Whether nobody reads the text any more.
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

    /// Prints a remark, which is no result, on standard error.
    pub fn note(&self, line: impl Display) {
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// Shows what a pipeline does, and keeps the seconds of its stages. Breaks if it should stop.
    pub fn observe(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Progress(progress) => self.progress(progress),
            Event::Text(text) => return self.stream(text),
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

    /// Does something, and adds the seconds it takes to those of a stage.
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

    /// Adds seconds to those of a stage.
    fn count(&mut self, stage: &'static str, seconds: f64) {
        match self.seconds.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((stage, seconds)),
        }
    }

    /// Seconds, device and memory on one line.
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

    /// Prints a remark that the JSON object makes needless.
    pub fn remark(&self, line: impl Display) {
        if !self.json {
            self.note(line);
        }
    }

    /// A bar on standard error, which is silent where that is no terminal.
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

    /// Ends a command: prints the JSON object, if one is wanted.
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

    /// Prints text as it is, script or answer.
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
            // As of `divot … | head`: it has all it wants.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.closed = true,
            Err(error) => self.failed = Some(error),
        }
    }
}

/// A clip in rows of eight.
pub fn rows(frames: &[Frame]) -> Vec<&[Frame]> {
    frames.chunks(8).collect()
}

/// A count for people.
pub fn count(number: usize) -> String {
    let number = number as f64;
    match number {
        _ if number >= 1e6 => format!("{:.1} M", number / 1e6),
        _ if number >= 1e3 => format!("{:.1} K", number / 1e3),
        _ => number.to_string(),
    }
}

/// `1 clip`, `2 clips`.
pub fn plural(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A video on one line: `clip.mp4 (69 frames at 25.000 fps, h264)`.
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

/// Bytes for people.
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
