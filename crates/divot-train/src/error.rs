use std::io;
use std::path::{Path, PathBuf};

use divot::weights::WeightsError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// What can go wrong in training. Each message is one line that names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller stopped the work. What was done was saved before.
    #[error("stopped; what was done is saved, and the work can be resumed from there")]
    Stopped,
    /// A recipe is wrong. The message names its line.
    #[error("{}:{line}: {problem}", .path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A setting that was given beside the recipe is wrong.
    #[error("the setting `{setting}`: {problem}")]
    Setting {
        /// The setting, `key=value`.
        setting: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A run's folder cannot be used.
    #[error("{}: {problem}; {remedy}", .path.display())]
    Run {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// No sample of a source fits the objective.
    #[error(
        "{source_name}: none of the samples of {batches} batches in a row can be learned from ({problem}); look at its texts, or raise `max_length`"
    )]
    NothingFits {
        /// The source.
        source_name: String,
        /// How many batches there were.
        batches: usize,
        /// What is wrong with one of the last samples.
        problem: String,
    },
    /// The loss was not finite too often.
    #[error(
        "the loss or its gradient was not finite in {steps} steps in a row, up to step {step}; lower the learning rate, or look at the data named in the log"
    )]
    NotFinite {
        /// The last of the steps.
        step: usize,
        /// How many there were.
        steps: usize,
    },
    /// The model and what trains it do not fit in memory.
    #[error(
        "parameters, gradients, the optimiser's moments and the moving average take {} of memory, and {} are free; choose smaller sizes, freeze more, leave `average` out, or train on a device with more memory",
        gib(*.needed), gib(*.available)
    )]
    Memory {
        /// Bytes that they take.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// The processes of a run do not come together.
    #[error("{0}")]
    Ranks(String),
    /// A file could not be read or written.
    #[error("{}: cannot be read or written ({source}); check the path, its permissions and the free space", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The record of a run could not be begun.
    #[error(transparent)]
    Record(#[from] crate::record::RecordError),
    /// A model could not be read or written.
    #[error(transparent)]
    Model(#[from] divot::Error),
    /// Samples could not be read.
    #[error(transparent)]
    Data(#[from] divot::data::Error),
}

impl From<WeightsError> for Error {
    fn from(error: WeightsError) -> Self {
        Self::Model(error.into())
    }
}

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn run(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Run {
            path: path.to_path_buf(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}
