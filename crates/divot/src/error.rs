use std::path::{Path, PathBuf};

use crate::device::DeviceError;
use crate::weights::WeightsError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a video and its reconstruction; each message is one line that names
/// the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller stopped the work. This is the one error for it: a callback that returned
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break) ends in it, wherever it was called.
    #[error("stopped")]
    Stopped,
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Weights(WeightsError),
    /// A video or image could not be read or written.
    #[error(transparent)]
    Data(#[from] divot_data::Error),
    /// A released checkpoint could not be downloaded.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(crate::hub::HubError),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The sampler cannot run so.
    #[error(transparent)]
    Sampling(#[from] divot_unet::SamplerError),
    /// The language model cannot do it.
    #[error(transparent)]
    Llm(divot_llm::LlmError),
    /// A sampling option makes no sense.
    #[error("{option} is {value}; use {remedy}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: f64,
        /// What would do.
        remedy: &'static str,
    },
    /// A number overflowed on the way.
    #[error(
        "the reconstruction is not a number everywhere ({0} weights overflowed); load them as f32"
    )]
    NotFinite(&'static str),
    /// There is no precision of that name.
    #[error("`{0}` is no precision; use auto, f32, f16, bf16, q8 or q4")]
    Precision(String),
    /// Video tokens are of another model than the de-tokenizer.
    #[error(
        "tokens of {found} numbers do not fit a de-tokenizer of {expected}; make them with the same model"
    )]
    TokenWidth {
        /// Width of the tokens.
        found: usize,
        /// Width that the de-tokenizer reads.
        expected: usize,
    },
    /// A configuration could not be read, or does not fit.
    #[error("{}: {problem}; {remedy}", .path.display())]
    Config {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

/// An error and its causes on one line, none of which is said twice.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

impl From<divot_nn::Stopped> for Error {
    fn from(_: divot_nn::Stopped) -> Self {
        Self::Stopped
    }
}

impl From<divot_llm::LlmError> for Error {
    fn from(error: divot_llm::LlmError) -> Self {
        match error {
            divot_llm::LlmError::Stopped(_) => Self::Stopped,
            error => Self::Llm(error),
        }
    }
}

impl From<WeightsError> for Error {
    fn from(error: WeightsError) -> Self {
        match error {
            WeightsError::Stopped => Self::Stopped,
            error => Self::Weights(error),
        }
    }
}

#[cfg(feature = "hub")]
impl From<crate::hub::HubError> for Error {
    fn from(error: crate::hub::HubError) -> Self {
        match error {
            crate::hub::HubError::Stopped => Self::Stopped,
            error => Self::Hub(error),
        }
    }
}

impl Error {
    /// Whether the caller stopped the work, so that nothing went wrong.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped)
    }

    pub(crate) fn config(
        path: &Path,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Config {
            path: path.to_path_buf(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}
