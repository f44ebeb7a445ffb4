//! The line about a run that a terminal shows.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

use super::text::{duration, number};

/// Marks that the time left is computed from.
const MARKS: usize = 100;

/// Where a run stands. What is not known is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Steps that are done.
    pub step: usize,
    /// All steps.
    pub steps: usize,
    /// Mean training loss since it was shown last.
    pub loss: Option<f64>,
    /// Learning rate.
    pub rate: Option<f64>,
    /// Samples that are learned from in a second.
    pub samples_per_second: Option<f64>,
    /// Share of the time in which the run waits for data, from 0 to 1.
    pub data_wait: Option<f64>,
    /// Seconds of training so far, those of interrupted parts included.
    pub seconds: f64,
    /// Seconds until the last step.
    pub seconds_left: Option<f64>,
}

/// The status in one line, in the order of [`Status`].
///
/// ```
/// use divot_train::record::{Status, line};
///
/// let status = Status {
///     step: 1200,
///     steps: 5000,
///     loss: Some(0.23456),
///     rate: Some(1e-4),
///     samples_per_second: Some(12.34),
///     data_wait: Some(0.031),
///     seconds_left: Some(4321.0),
///     ..Status::default()
/// };
/// assert_eq!(
///     line(&status),
///     "step 1200/5000, loss 0.2346, rate 1e-4, 12.3 samples/s, data wait 3 %, 1 h 12 min left"
/// );
/// ```
pub fn line(status: &Status) -> String {
    let parts = [
        Some(format!("step {}/{}", status.step, status.steps)),
        status.loss.map(|loss| format!("loss {}", number(loss, 4))),
        status.rate.map(|rate| format!("rate {}", number(rate, 3))),
        status
            .samples_per_second
            .map(|speed| format!("{} samples/s", number(speed, 3))),
        status
            .data_wait
            .map(|share| format!("data wait {:.0} %", 100.0 * share)),
        status
            .seconds_left
            .map(|seconds| format!("{} left", duration(seconds))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The pace of a run: seconds a step, as a moving average over the last hundred marks.
#[derive(Debug, Default)]
pub(super) struct Pace {
    marks: VecDeque<(usize, f64)>,
}

impl Pace {
    /// Notes that a step was done after so many seconds of the run.
    pub(super) fn mark(&mut self, step: usize, seconds: f64) {
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((step, seconds));
    }

    /// Seconds for so many steps. `None` until two steps were marked.
    pub(super) fn seconds(&self, steps: usize) -> Option<f64> {
        let (first, last) = (self.marks.front()?, self.marks.back()?);
        let done = last.0.checked_sub(first.0).filter(|done| *done > 0)?;
        Some((last.1 - first.1).max(0.0) / done as f64 * steps as f64)
    }
}

/// Shows lines on the standard error: in place on a terminal, one below the other elsewhere.
#[derive(Debug)]
pub struct Printer {
    bar: Option<ProgressBar>,
}

impl Printer {
    /// A printer that has shown nothing.
    #[expect(clippy::new_without_default, reason = "it looks at the terminal")]
    pub fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_msg}");
            ProgressBar::no_length().with_style(style.expect("the template is constant"))
        });
        Self { bar }
    }

    /// Shows the line in place of the last one.
    pub fn show(&self, line: String) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None => self.note(&line),
        }
    }

    /// Shows a line that stays.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            // Nobody reads it, which is no reason to stop.
            None => drop(writeln!(io::stderr(), "{line}")),
        }
    }

    /// Leaves the last line where it is.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        let mut status = Status {
            step: 3,
            steps: 20,
            ..Status::default()
        };
        assert_eq!(line(&status), "step 3/20");
        status.loss = Some(f64::NAN);
        status.data_wait = Some(0.996);
        assert_eq!(line(&status), "step 3/20, loss NaN, data wait 100 %");
    }

    #[test]
    fn the_time_left_follows_the_pace() {
        let mut pace = Pace::default();
        assert_eq!(pace.seconds(10), None);
        pace.mark(100, 50.0);
        assert_eq!(pace.seconds(10), None);
        pace.mark(110, 70.0);
        assert_eq!(pace.seconds(10), Some(20.0));
        // A slow start is forgotten.
        for i in 0..MARKS {
            pace.mark(120 + i, 1000.0 + i as f64);
        }
        assert_eq!(pace.seconds(10), Some(10.0));
        // Two marks at one step.
        let mut pace = Pace::default();
        pace.mark(5, 1.0);
        pace.mark(5, 2.0);
        assert_eq!(pace.seconds(10), None);
    }
}
