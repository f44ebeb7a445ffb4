//! The detectors, frame by frame.

use std::collections::VecDeque;

use super::filter::{Flashes, Length};
use super::hsv::Hsv;
use super::shrink::Shrink;
use super::{Adaptive, Cut, Method, Weights};
use crate::{Error, Frame, Result};

/// How much a frame differs from the one before it. All are 0 for the first frame.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Mean absolute difference of hue, 0 to 179.
    pub hue: f64,
    /// Mean absolute difference of saturation, 0 to 255.
    pub saturation: f64,
    /// Mean absolute difference of the value, 0 to 255.
    pub value: f64,
    /// The weighted mean of the three, which the detectors use.
    pub total: f64,
}

/// Finds cuts in frames that come one by one.
///
/// Only the last frame is kept, at 256 pixels, and the scores of a few, so memory does not grow.
///
/// ```
/// use divot_data::Frame;
/// use divot_data::shots::{Content, Detector};
///
/// # fn main() -> divot_data::Result<()> {
/// let mut detector = Detector::new(Content::default(), 25.0)?;
/// let mut cuts = Vec::new();
/// for i in 0..40 {
///     let frame = Frame::filled(64, 48, if i < 20 { [200, 0, 0] } else { [0, 0, 200] })?;
///     cuts.extend(detector.push(f64::from(i) / 25.0, &frame)?);
/// }
/// assert_eq!(cuts.len(), 1);
/// assert_eq!((cuts[0].frame, cuts[0].time), (20, 0.8));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Detector {
    scorer: Scorer,
    rule: Rule,
    score: Score,
    /// Number of frames so far.
    frames: usize,
}

impl Detector {
    /// A detector for a video of `fps` frames per second, on average if they vary.
    ///
    /// # Errors
    /// [`Error::Argument`] when a setting is out of range, or `fps` is not a positive number.
    pub fn new(method: impl Into<Method>, fps: f64) -> Result<Self> {
        let method = method.into();
        method.check()?;
        if !(fps.is_finite() && fps > 0.0) {
            return Err(Error::Argument(format!(
                "{fps} is no frame rate of a video; give a positive number"
            )));
        }
        let length = Length {
            shortest: method.min_length(),
            fps,
        };
        Ok(Self {
            scorer: Scorer {
                weights: method.weights(),
                hsv: Hsv::new(),
                last: None,
            },
            rule: match method {
                Method::Content(content) => Rule::Content {
                    threshold: content.threshold,
                    flashes: Flashes::new(content.filter, length),
                },
                Method::Adaptive(settings) => Rule::Adaptive(Window {
                    settings,
                    length,
                    scores: VecDeque::new(),
                    last: None,
                }),
            },
            score: Score::default(),
            frames: 0,
        })
    }

    /// Takes the next frame, which is shown at `time` seconds. Times never decrease, and frames are of one size.
    ///
    /// Returns the cut that is certain now. It may be an earlier frame, and comes after all earlier cuts.
    ///
    /// # Errors
    /// [`Error::Argument`] when the size differs from that of the first frame.
    pub fn push(&mut self, time: f64, frame: &Frame) -> Result<Option<Cut>> {
        self.score = self.scorer.push(frame)?;
        let now = Cut {
            frame: self.frames,
            time,
        };
        self.frames += 1;
        let score = self.score.total;
        Ok(match &mut self.rule {
            Rule::Content { threshold, flashes } => flashes.push(now, score >= *threshold),
            Rule::Adaptive(window) => window.push(now, score),
        })
    }

    /// Returns the score of the last frame.
    pub fn score(&self) -> Score {
        self.score
    }
}

#[derive(Debug)]
enum Rule {
    Content { threshold: f64, flashes: Flashes },
    Adaptive(Window),
}

/// Compares frames.
#[derive(Debug)]
struct Scorer {
    weights: Weights,
    hsv: Hsv,
    last: Option<Last>,
}

/// The last frame.
#[derive(Debug)]
struct Last {
    /// Width and height of frames in pixels, before resizing.
    size: (usize, usize),
    shrink: Shrink,
    /// Hue, saturation and value of the pixels after resizing.
    pixels: Vec<[u8; 3]>,
}

impl Scorer {
    fn push(&mut self, frame: &Frame) -> Result<Score> {
        let size = (frame.width, frame.height);
        let Some(last) = &mut self.last else {
            let shrink = Shrink::new(frame.width, frame.height);
            let mut pixels = Vec::new();
            shrink.pixels(frame, |rgb| pixels.push(self.hsv.convert(rgb)));
            self.last = Some(Last {
                size,
                shrink,
                pixels,
            });
            return Ok(Score::default());
        };
        if last.size != size {
            return Err(Error::Argument(format!(
                "a frame of {}x{} cannot be compared with one of {}x{}; resize it, or start another detector",
                size.0, size.1, last.size.0, last.size.1
            )));
        }
        let mut sums = [0u64; 3];
        let mut old = last.pixels.iter_mut();
        last.shrink.pixels(frame, |rgb| {
            let new = self.hsv.convert(rgb);
            if let Some(old) = old.next() {
                for ((sum, a), b) in sums.iter_mut().zip(new).zip(*old) {
                    *sum += u64::from(a.abs_diff(b));
                }
                *old = new;
            }
        });
        let [hue, saturation, value] = sums.map(|sum| sum as f64 / last.pixels.len() as f64);
        let weights = self.weights;
        let total = hue * weights.hue + saturation * weights.saturation + value * weights.value;
        Ok(Score {
            hue,
            saturation,
            value,
            total: total / (weights.hue.abs() + weights.saturation.abs() + weights.value.abs()),
        })
    }
}

/// The adaptive detector's view of the scores.
#[derive(Debug)]
struct Window {
    settings: Adaptive,
    length: Length,
    /// The last frames with their scores.
    scores: VecDeque<(Cut, f64)>,
    /// The last cut. At first, the first frame.
    last: Option<Cut>,
}

impl Window {
    fn push(&mut self, now: Cut, score: f64) -> Option<Cut> {
        let last = *self.last.get_or_insert(now);
        let width = self.settings.window;
        self.scores.push_back((now, score));
        if self.scores.len() <= 2 * width {
            return None;
        }
        let (frame, score) = self.scores[width];
        let others = self.scores.iter().enumerate().filter(|&(i, _)| i != width);
        let mean = others.map(|(_, &(_, score))| score).sum::<f64>() / (2.0 * width as f64);
        self.scores.pop_front();
        // Between equal frames, every change is a large one.
        let ratio = if mean.abs() < 1e-5 {
            255.0
        } else {
            (score / mean).min(255.0)
        };
        let is_cut = ratio >= self.settings.ratio
            && score >= self.settings.min_score
            && self.length.is_met(last, frame);
        is_cut.then(|| {
            self.last = Some(frame);
            frame
        })
    }
}
