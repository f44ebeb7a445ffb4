use std::path::{Path, PathBuf};

use crate::device::DeviceError;
use crate::weights::WeightsError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error between a video and its reconstruction. Each message is one line that names the file and the
/// remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller stopped the work. This is the only error for it, whichever callback returned
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break).
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
    /// A language model behind an endpoint could not be asked.
    #[cfg(feature = "endpoint")]
    #[error(transparent)]
    Endpoint(crate::endpoint::EndpointError),
    /// The device is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The sampler does not accept its options.
    #[error(transparent)]
    Sampling(#[from] divot_unet::SamplerError),
    /// An error of the language model.
    #[error(transparent)]
    Llm(divot_llm::LlmError),
    /// A sampling option is invalid.
    #[error("{option} is {value}; use {remedy}")]
    Option {
        /// Its name.
        option: &'static str,
        /// The given value.
        value: f64,
        /// The valid values.
        remedy: &'static str,
    },
    /// A computation gave values that are not finite.
    #[error(
        "the reconstruction is not a number everywhere ({0} weights overflowed); load them as f32"
    )]
    NotFinite(&'static str),
    /// The name is not that of a precision.
    #[error("`{0}` is no precision; use auto, f32, f16, bf16, q8 or q4")]
    Precision(String),
    /// The name is not that of an element type on disk.
    #[error("`{0}` is no element type of weights on disk; use f32, f16, bf16, q8 or q4")]
    StoredType(String),
    /// Video tokens belong to another model than the de-tokenizer.
    #[error(
        "tokens of {found} numbers do not fit a de-tokenizer of {expected}; make them with the same model"
    )]
    TokenWidth {
        /// Width of the tokens.
        found: usize,
        /// Width that the de-tokenizer needs.
        expected: usize,
    },
    /// A configuration could not be read, or does not match the other files.
    #[error("{}: {problem}; {remedy}", .path.display())]
    Config {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// How to fix it.
        remedy: String,
    },
}

/// Formats an error and its causes on one line, without repetitions.
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

#[cfg(feature = "endpoint")]
impl From<crate::endpoint::EndpointError> for Error {
    fn from(error: crate::endpoint::EndpointError) -> Self {
        match error {
            crate::endpoint::EndpointError::Stopped => Self::Stopped,
            error => Self::Endpoint(error),
        }
    }
}

impl Error {
    /// Returns whether the caller stopped the work, which is not a failure.
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
