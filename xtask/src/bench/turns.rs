//! Two processes that do the same work in turns.
//!
//! Each makes its networks, runs them once and says that it is ready; then it waits for its turn. So
//! whatever else the machine does meets both, and each one's peak of memory is its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Between turns: threads that wait actively for more (OpenMP's do, a few milliseconds) fall asleep.
/// To forbid it (`OMP_WAIT_POLICY=PASSIVE`) would cost PyTorch a sixth of its speed on small networks.
const PAUSE: Duration = Duration::from_millis(300);

/// A process that serves a work.
pub struct Side {
    name: &'static str,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    parameters: u64,
    /// What it computes on.
    pub device: String,
}

impl Side {
    /// Starts it and waits until it is ready. `remedy`: what to do if there is no such program.
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

    fn ask(&mut self, question: &str) -> Result<Value> {
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

/// Of one side: seconds of each run, and its peak of memory where the system says.
pub struct Measured {
    seconds: Vec<f64>,
    peak: Option<u64>,
}

impl Measured {
    pub fn median(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        match self.seconds.len() % 2 {
            1 => self.seconds[middle],
            _ => (self.seconds[middle - 1] + self.seconds[middle]) / 2.0,
        }
    }

    /// Least, median and most, in the unit that suits `typical`.
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

    pub fn peak(&self) -> String {
        match self.peak {
            Some(bytes) => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
            None => "unknown".to_owned(),
        }
    }
}

/// What other programs did of the CPUs between turns, when both sides sleep: turns are fair to both only
/// where that is little, since threads that share the work evenly wait for the one that was held up.
#[derive(Default)]
pub struct Others {
    busy: u64,
    all: u64,
}

impl Others {
    fn pause(&mut self) {
        let before = cpu_ticks();
        std::thread::sleep(PAUSE);
        if let (Some(before), Some(after)) = (before, cpu_ticks()) {
            self.busy += after.0.saturating_sub(before.0);
            self.all += after.1.saturating_sub(before.1);
        }
    }

    /// In percent, where the system says.
    pub fn percent(&self) -> Option<u64> {
        (100 * self.busy).checked_div(self.all)
    }
}

/// Of all CPUs since the system started: ticks that were not idle, and all of them (Linux).
fn cpu_ticks() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|number| number.parse().ok())
        .collect();
    let all = ticks.iter().sum();
    // The fourth is idle, the fifth waits for disks.
    let idle: u64 = ticks.get(3..5)?.iter().sum();
    Some((all - idle, all))
}

/// Runs every side `count` times, one after the other. `same`: they must have as many parameters.
pub fn take_turns(
    sides: &mut [Side],
    count: usize,
    same: bool,
    others: &mut Others,
) -> Result<Vec<Measured>> {
    if let [ours, theirs] = sides
        && same
    {
        ensure!(
            ours.parameters == theirs.parameters,
            "{} has {} parameters and {} {}: not the same network",
            ours.name,
            ours.parameters,
            theirs.name,
            theirs.parameters
        );
    }
    let mut seconds = vec![Vec::new(); sides.len()];
    for _ in 0..count {
        for (side, seconds) in sides.iter_mut().zip(&mut seconds) {
            others.pause();
            let answer = side.ask("run")?;
            seconds.push(answer["seconds"].as_f64().context("no seconds")?);
        }
    }
    sides
        .iter_mut()
        .zip(seconds)
        .map(|(side, mut seconds)| {
            seconds.sort_by(f64::total_cmp);
            let peak = side.ask("peak")?["peak_bytes"].as_u64();
            Ok(Measured { seconds, peak })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_median_most() {
        let measured = |seconds: &[f64]| Measured {
            seconds: seconds.to_vec(),
            peak: Some(3 << 29),
        };
        let times = measured(&[1.0, 2.0, 40.0]).times(2.0);
        assert_eq!(times, "1.00 / **2.00** / 40.00 s");
        let times = measured(&[0.25, 0.75]).times(0.5);
        assert_eq!(times, "250.0 / **500.0** / 750.0 ms");
        assert_eq!(measured(&[1.0]).peak(), "1.50 GiB");
    }
}
