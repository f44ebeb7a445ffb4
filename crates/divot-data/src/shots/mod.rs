//! Shot boundaries: the content detector and the adaptive detector of PySceneDetect.
//!
//! Both compare each frame with the one before it. The score of a frame is the mean absolute difference of hue,
//! saturation and value. A hard cut has a high score.
//!
//! ```
//! use std::ops::ControlFlow;
//! use divot_data::shots::{Adaptive, Content, MinLength, detect};
//! use divot_data::{Frame, Video, write_mp4};
//!
//! # fn main() -> divot_data::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("film.mp4");
//! // A second of red and a second of blue.
//! let frames: Vec<Frame> = (0..50)
//!     .map(|i| Frame::filled(64, 48, if i < 25 { [200, 0, 0] } else { [0, 0, 200] }))
//!     .collect::<Result<_, _>>()?;
//! write_mp4(&path, &frames, 25.0)?;
//!
//! let video = Video::open(&path)?;
//! let ControlFlow::Continue(shots) = detect(&video, Content::default(), |_| ControlFlow::Continue(()))? else {
//!     unreachable!("the callback does not stop it")
//! };
//! assert_eq!(shots.len(), 2);
//! assert_eq!((shots[0].frames.clone(), shots[1].frames.clone()), (0..25, 25..50));
//! assert_eq!(shots[1].seconds, 1.0..2.0);
//!
//! // Shots of at least two thirds of a second, in films that were filmed by hand.
//! let adaptive = Adaptive { min_length: MinLength::Seconds(0.66), ..Adaptive::default() };
//! let _ = detect(&video, adaptive, |_| ControlFlow::Continue(()))?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is computed
//!
//! Everything is computed as PySceneDetect 0.7.2 does on OpenCV, so that both give the same cuts.
//!
//! 1. A frame whose longer side is over 256 pixels is resized until it has 256, as OpenCV's `INTER_LINEAR` does for
//!    bytes: bilinear, without smoothing, in integers. A frame of 512 pixels with even sides is averaged over squares
//!    of 2x2 pixels.
//! 2. Pixels become hue (0 to 179), saturation and value (0 to 255), as OpenCV's `COLOR_BGR2HSV` does for bytes.
//! 3. The score is the weighted mean of the three mean absolute differences ([`Weights`]). The first frame scores 0.
//! 4. The content detector ([`Content`]) finds a frame that scores at least a threshold. A filter keeps shots from
//!    being too short ([`Filter`]).
//! 5. The adaptive detector ([`Adaptive`]) finds a frame that scores several times the mean of its neighbours. A
//!    camera that moves quickly raises all scores, and makes no cut.
//!
//! On the same frames, scores are equal to the bit. Frames of 8 bits are decoded equally, too. OpenCV rounds colours of
//! 10 bits differently, so that scores differ where pictures are nearly grey. PySceneDetect's component for edges,
//! which is off by default, is missing here.
//!
//! | here | PySceneDetect | default |
//! | --- | --- | --- |
//! | [`Content::threshold`] | `threshold` | 27 |
//! | [`Content::filter`] | `filter_mode` | merge |
//! | [`Adaptive::ratio`] | `adaptive_threshold` | 3 |
//! | [`Adaptive::window`] | `window_width` | 2 |
//! | [`Adaptive::min_score`] | `min_content_val` | 15 |
//! | `min_length` of both | `min_scene_len` | 15 frames |
//! | `weights` of both | `weights`, `luma_only` | 1 each |
//!
//! # Time
//!
//! Times are compared in microseconds. A length in frames is a time at the video's average rate. In a video of
//! constant rate, that is the number of frames. A shot ends when the next one begins. The last one ends a frame after
//! its last frame begins. A video without cuts is one shot.

mod cut;
mod detector;
mod filter;
mod hsv;
mod shrink;
mod stitch;

use std::ops::{ControlFlow, Range};

use crate::{Error, Result, Video};

pub use cut::cut;
pub use detector::{Detector, Score};
pub use filter::{Filter, MinLength};
pub use stitch::{split, stitch};

/// Weights of the differences in a frame's score, which is divided by the sum of their absolute values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Weight of hue, which is 0 to 179.
    pub hue: f64,
    /// Weight of saturation, which is 0 to 255.
    pub saturation: f64,
    /// Weight of the value, the largest of red, green and blue.
    pub value: f64,
}

impl Weights {
    /// Only the value counts.
    pub const VALUE_ONLY: Self = Self {
        hue: 0.0,
        saturation: 0.0,
        value: 1.0,
    };
}

impl Default for Weights {
    /// All the same.
    fn default() -> Self {
        Self {
            hue: 1.0,
            saturation: 1.0,
            value: 1.0,
        }
    }
}

/// Settings of the content detector: a frame that scores at least a threshold is a cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Lowest score of a cut, over 0.
    pub threshold: f64,
    /// Shortest shot.
    pub min_length: MinLength,
    /// Weights of the score.
    pub weights: Weights,
    /// What happens to cuts that follow one another too quickly.
    pub filter: Filter,
}

impl Default for Content {
    /// A threshold of 27, shots of 15 frames, equal weights, merging.
    fn default() -> Self {
        Self {
            threshold: 27.0,
            min_length: MinLength::default(),
            weights: Weights::default(),
            filter: Filter::default(),
        }
    }
}

/// Settings of the adaptive detector: a frame that scores much more than its neighbours is a cut.
///
/// Cuts that follow another too quickly are ignored. There is none in the first and last `window` frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Adaptive {
    /// Lowest ratio of a cut's score to the mean score of its neighbours, at least 0. Ratios are at most 255.
    pub ratio: f64,
    /// Shortest shot.
    pub min_length: MinLength,
    /// Number of neighbours on each side, 1 to 1000. A cut is found this many frames later.
    pub window: usize,
    /// Lowest score of a cut, over 0.
    pub min_score: f64,
    /// Weights of the score.
    pub weights: Weights,
}

impl Default for Adaptive {
    /// Three times the mean of two neighbours on each side, a score of 15, shots of 15 frames, equal weights.
    fn default() -> Self {
        Self {
            ratio: 3.0,
            min_length: MinLength::default(),
            window: 2,
            min_score: 15.0,
            weights: Weights::default(),
        }
    }
}

/// A detector with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// The content detector.
    Content(Content),
    /// The adaptive detector.
    Adaptive(Adaptive),
}

impl From<Content> for Method {
    fn from(settings: Content) -> Self {
        Self::Content(settings)
    }
}

impl From<Adaptive> for Method {
    fn from(settings: Adaptive) -> Self {
        Self::Adaptive(settings)
    }
}

impl Method {
    fn min_length(&self) -> MinLength {
        match self {
            Self::Content(content) => content.min_length,
            Self::Adaptive(adaptive) => adaptive.min_length,
        }
    }

    fn weights(&self) -> Weights {
        match self {
            Self::Content(content) => content.weights,
            Self::Adaptive(adaptive) => adaptive.weights,
        }
    }

    /// # Errors
    /// [`Error::Argument`] for the first setting that is out of range.
    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Argument(what));
        let is_score = |value: f64| value.is_finite() && value > 0.0;
        match self {
            Self::Content(content) if !is_score(content.threshold) => {
                return bad(format!(
                    "{} is no threshold of the content detector; give a number over 0 (27 is usual)",
                    content.threshold
                ));
            }
            Self::Adaptive(adaptive) if !is_score(adaptive.min_score) => {
                return bad(format!(
                    "{} is no lowest score of a cut; give a number over 0 (15 is usual)",
                    adaptive.min_score
                ));
            }
            Self::Adaptive(adaptive) if !(adaptive.ratio.is_finite() && adaptive.ratio >= 0.0) => {
                return bad(format!(
                    "{} is no ratio of the adaptive detector; give a number from 0 to 255 (3 is usual)",
                    adaptive.ratio
                ));
            }
            Self::Adaptive(adaptive) if !(1..=1000).contains(&adaptive.window) => {
                return bad(format!(
                    "the adaptive detector cannot compare with {} neighbours on each side; give 1 to 1000 (2 is usual)",
                    adaptive.window
                ));
            }
            _ => {}
        }
        if let MinLength::Seconds(seconds) = self.min_length()
            && !(seconds.is_finite() && seconds >= 0.0)
        {
            return bad(format!(
                "a shot cannot last at least {seconds} s; give a number of seconds from 0"
            ));
        }
        let Weights {
            hue,
            saturation,
            value,
        } = self.weights();
        let sum = hue.abs() + saturation.abs() + value.abs();
        if !(sum.is_finite() && sum > 0.0) {
            return bad(format!(
                "a score cannot be weighted by {hue}, {saturation} and {value}; give numbers that are not all 0"
            ));
        }
        Ok(())
    }
}

/// The first frame of a shot, other than that of the video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// Number of the frame, from 0.
    pub frame: usize,
    /// Its time in seconds.
    pub time: f64,
}

/// A shot.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    /// Its frames, as indices into the video.
    pub frames: Range<usize>,
    /// Its time in seconds from the video's first frame.
    pub seconds: Range<f64>,
}

/// Finds the shots of a video. Every frame is decoded once, in order, and one is in memory at a time.
///
/// `each` is called with the number of frames that were read, and may stop the work. Then the result is a break.
/// The shots are in order and cover the video.
///
/// # Errors
/// Those of [`Video::visit_all`]. [`Error::Argument`] for settings that are out of range.
pub fn detect(
    video: &Video,
    method: impl Into<Method>,
    mut each: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<ControlFlow<(), Vec<Shot>>> {
    let info = video.info();
    let mut detector = Detector::new(method, info.fps)?;
    let mut cuts = Vec::new();
    let flow = video.visit_all(|index, frame| {
        cuts.extend(detector.push(video.time(index), frame)?);
        Ok(each(index + 1))
    })?;
    if flow.is_break() {
        return Ok(ControlFlow::Break(()));
    }
    let start = Cut {
        frame: 0,
        time: 0.0,
    };
    let end = Cut {
        frame: info.frames,
        time: video.time(info.frames - 1) + 1.0 / info.fps,
    };
    let starts = std::iter::once(&start).chain(&cuts);
    let shots = starts.zip(cuts.iter().chain(std::iter::once(&end)));
    Ok(ControlFlow::Continue(
        shots
            .map(|(from, to)| Shot {
                frames: from.frame..to.frame,
                seconds: from.time..to.time,
            })
            .collect(),
    ))
}
