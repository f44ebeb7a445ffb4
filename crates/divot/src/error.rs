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
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A video or image could not be read or written.
    #[error(transparent)]
    Data(#[from] divot_data::Error),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The sampler cannot run so.
    #[error(transparent)]
    Sampling(#[from] divot_unet::DdimError),
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

impl Error {
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
