//! What a training sample is.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::Clip;

/// A training sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What it is called in the log: a path, or a file and a line.
    pub key: String,
    /// Whether it is a video or an image.
    pub medium: Medium,
    /// Its clips, in order. An image is one clip of equal frames.
    pub clips: Vec<Clip>,
    /// What is said about it.
    pub text: Text,
    /// What networks made of its clips, which a cache has instead of them.
    pub stored: Option<Stored>,
}

impl Sample {
    /// How many clips it has, be it frames or what was made of them.
    pub fn clip_count(&self) -> usize {
        match &self.stored {
            Some(stored) => stored.clips,
            None => self.clips.len(),
        }
    }
}

/// What networks made of the clips of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// How many clips there are.
    pub clips: usize,
    /// Arrays by name.
    pub arrays: BTreeMap<String, Array>,
}

/// Numbers that a network made of clips.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Sizes, outermost first; the first axis is the clip.
    pub shape: Vec<usize>,
    /// The numbers, row by row.
    pub values: Vec<f32>,
}

/// A video or an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// A video.
    Video,
    /// An image.
    Image,
}

/// What is said about a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Text {
    /// Nothing.
    None,
    /// A text of its own, of no clip.
    Plain(String),
    /// A caption.
    Caption(String),
    /// Questions with their answers.
    Turns(Vec<Turn>),
    /// A story, with a text for each clip.
    Story {
        /// What the story was asked for with.
        instruction: Option<String>,
        /// The text before each clip.
        scenes: Vec<String>,
        /// The text after the last clip; may be empty.
        ending: String,
    },
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// A sample that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// What the sample is called.
    pub key: String,
    /// The reason to count it by.
    pub reason: Reason,
    /// What was wrong, on one line.
    pub message: String,
}

/// Why samples are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Its line or entry cannot be understood.
    Malformed,
    /// A file is not there.
    Missing,
    /// A file cannot be read or decoded.
    Undecodable,
    /// A file that was indexed has changed since.
    Changed,
    /// A picture has more pixels than allowed.
    TooLarge,
    /// Its shorter side has too few pixels.
    TooSmall,
    /// It is too narrow or too flat.
    Aspect,
    /// It has too few frames, or lasts too short.
    TooShort,
    /// It lasts too long.
    TooLong,
    /// It has no text.
    NoText,
    /// Its text is too long.
    TooMuchText,
    /// It has nothing that the objective could learn from, such as a row that is too long.
    DoesNotFit,
    /// No sample, but a file or folder that was searched for samples, and passed over wholly or from a damage
    /// on.
    PassedOver,
    /// Reading it failed in a way that is a bug.
    Panicked,
}

impl Reason {
    /// Its name where a person reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Missing => "missing",
            Self::Undecodable => "undecodable",
            Self::Changed => "changed",
            Self::TooLarge => "too large",
            Self::TooSmall => "too small",
            Self::Aspect => "aspect ratio",
            Self::TooShort => "too short",
            Self::TooLong => "too long",
            Self::NoText => "no text",
            Self::TooMuchText => "too much text",
            Self::DoesNotFit => "does not fit",
            Self::PassedOver => "file passed over",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Anything that samples are read from by number.
pub trait Samples: Send + Sync {
    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs of samples that are cheap to read together, such as those of an archive. They cover all samples
    /// in order.
    fn groups(&self) -> Vec<Range<usize>>;

    /// Files and folders that were passed over while samples were looked for.
    fn passed_over(&self) -> &[Skip] {
        &[]
    }

    /// Reads a sample. `uniform` draws from [0, 1) what is random: where a clip starts, which caption is
    /// taken.
    ///
    /// # Errors
    /// Why the sample is left out.
    fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip>;
}
