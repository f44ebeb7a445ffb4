//! Runs two processes that do the same work in alternation.
//!
//! Each process builds its networks, runs them once and reports that it is ready. Then it waits for its
//! turn. Other load on the machine therefore affects both, and each process has its own peak memory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Pause between turns, in which threads that wait actively fall asleep (OpenMP's spin for a few
/// milliseconds). Forbidding it (`OMP_WAIT_POLICY=PASSIVE`) would make PyTorch a sixth slower on small
/// networks.
const PAUSE: Duration = Duration::from_millis(300);

/// A process that serves a work.
pub struct Side {
    name: &'static str,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    parameters: u64,
    /// The device that it uses.
    pub device: String,
}

impl Side {
    /// Starts the process and waits until it is ready. `remedy` is the advice if the program is missing.
    pub fn start(name: &'static str, mut command: Command, remedy: &str) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| {
                let program = command.get_program().to_string_lossy();
                format!("`{program}` cannot be run; {remedy}")
            })?;
        let input = process.stdin.take().context("no pipe to it")?;
        let output = process.stdout.take().context("no pipe from it")?;
        let mut side = Self {
            name,
            process,
            input,
            output: BufReader::new(output),
            parameters: 0,
            device: String::new(),
        };
        let ready = side.answer()?;
        side.parameters = ready["parameters"].as_u64().context("no parameters")?;
        side.device = ready["device"].as_str().unwrap_or_default().to_owned();
        Ok(side)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{} ended without a word", self.name);
        let answer: Value = serde_json::from_str(&line)
            .with_context(|| format!("{} said: {}", self.name, line.trim()))?;
        match answer["error"].as_str() {
            Some(error) => bail!("{}: {error}", self.name),
            None => Ok(answer),
        }
    }

    /// Sends a line and returns the answer.
    pub fn ask(&mut self, question: &str) -> Result<Value> {
        writeln!(self.input, "{question}")?;
        self.answer()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Measurements of one side: the seconds of each run and, if the system reports them, peak memory and CPU
/// ticks.
#[derive(Default)]
pub struct Measured {
    seconds: Vec<f64>,
    peak: Option<u64>,
    ticks: Ticks,
}

impl Measured {
    pub fn median(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        match self.seconds.len() % 2 {
            1 => self.seconds[middle],
            _ => (self.seconds[middle - 1] + self.seconds[middle]) / 2.0,
        }
    }

    /// Formats the minimum, median and maximum, in the unit that suits `typical`.
    pub fn times(&self, typical: f64) -> String {
        let (first, last) = (self.seconds[0], self.seconds[self.seconds.len() - 1]);
        let (factor, unit) = match typical < 1.0 {
            true => (1e3, "ms"),
            false => (1.0, "s"),
        };
        let [first, median, last] = [first, self.median(), last].map(|seconds| factor * seconds);
        let digits = if median < 10.0 { 2 } else { 1 };
        format!("{first:.digits$} / **{median:.digits$}** / {last:.digits$} {unit}")
    }

    /// Formats the least, median and greatest rate per second of runs that each did `count` things.
    pub fn rates(&self, count: usize) -> String {
        let (first, last) = (self.seconds[0], self.seconds[self.seconds.len() - 1]);
        let [least, median, most] =
            [last, self.median(), first].map(|seconds| count as f64 / seconds);
        format!("{least:.1} / **{median:.1}** / {most:.1}")
    }

    /// Formats the share of all CPUs that other programs used during the runs. The comparison is fair only
    /// if it is small: threads that share the work evenly wait for the one that was held up.
    pub fn others(&self) -> String {
        let ticks = self.ticks.busy.saturating_sub(self.ticks.own);
        match (100 * ticks).checked_div(self.ticks.all) {
            Some(percent) => format!("{percent} %"),
            None => "unknown".to_owned(),
        }
    }

    pub fn peak(&self) -> String {
        match self.peak {
            Some(bytes) => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
            None => "unknown".to_owned(),
        }
    }
}

/// CPU ticks of all processes since the system started, and those of one process (Linux).
#[derive(Clone, Copy, Default)]
struct Ticks {
    all: u64,
    busy: u64,
    own: u64,
}

impl Ticks {
    fn now(process: u32) -> Option<Self> {
        let numbers = |text: &str, skip: usize| -> Vec<u64> {
            text.split_whitespace()
                .skip(skip)
                .map(|number| number.parse().unwrap_or(0))
                .collect()
        };
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let all = numbers(text.lines().next()?, 1);
        // A program's name may contain spaces. It ends at the last parenthesis.
        let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let own = numbers(text.rsplit_once(')')?.1, 0);
        let total: u64 = all.get(..8)?.iter().sum();
        // Idle time and time waiting for disks.
        let idle: u64 = all[3..5].iter().sum();
        Some(Self {
            all: total,
            busy: total - idle,
            // Its own, and those of the processes that it started and that have ended.
            own: own.get(11..15)?.iter().sum(),
        })
    }

    fn add(&mut self, before: Self, after: Self) {
        self.all += after.all.saturating_sub(before.all);
        self.busy += after.busy.saturating_sub(before.busy);
        self.own += after.own.saturating_sub(before.own);
    }
}

/// Runs every side `count` times, in alternation. All must have the same number of parameters.
pub fn take_turns(sides: &mut [Side], count: usize) -> Result<Vec<Measured>> {
    if let [ours, theirs] = sides {
        ensure!(
            ours.parameters == theirs.parameters,
            "{} has {} parameters and {} {}: not the same network",
            ours.name,
            ours.parameters,
            theirs.name,
            theirs.parameters
        );
    }
    let mut measured: Vec<_> = sides.iter().map(|_| Measured::default()).collect();
    for _ in 0..count {
        for (side, measured) in sides.iter_mut().zip(&mut measured) {
            std::thread::sleep(PAUSE);
            let before = Ticks::now(side.process.id());
            let answer = side.ask("run")?;
            if let (Some(before), Some(after)) = (before, Ticks::now(side.process.id())) {
                measured.ticks.add(before, after);
            }
            let seconds = answer["seconds"].as_f64().context("no seconds")?;
            measured.seconds.push(seconds);
        }
    }
    for (side, measured) in sides.iter_mut().zip(&mut measured) {
        measured.seconds.sort_by(f64::total_cmp);
        measured.peak = side.ask("peak")?["peak_bytes"].as_u64();
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_median_most() {
        let measured = |seconds: &[f64]| Measured {
            seconds: seconds.to_vec(),
            peak: Some(3 << 29),
            ..Measured::default()
        };
        let times = measured(&[1.0, 2.0, 40.0]).times(2.0);
        assert_eq!(times, "1.00 / **2.00** / 40.00 s");
        let times = measured(&[0.25, 0.75]).times(0.5);
        assert_eq!(times, "250.0 / **500.0** / 750.0 ms");
        assert_eq!(measured(&[1.0]).peak(), "1.50 GiB");
    }
}
