//! Progress of long operations, and callbacks for it.

use std::ops::ControlFlow;

/// Progress of a long operation: in bytes for files, in clips for tokenizing, in steps for sampling.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Name of the part, or of the file in its repository.
    pub name: &'a str,
    /// The current step.
    pub step: Step,
    /// Amount done. For a download, it includes the bytes of earlier runs.
    pub done: u64,
    /// Total amount, or 0 if it is not known yet.
    pub total: u64,
}

/// A step of a long operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// A part's weights are being loaded.
    Load,
    /// A part is being written.
    Save,
    /// A file is being downloaded.
    Download,
    /// A file's checksum is being computed.
    Verify,
    /// Clips of a video are being tokenized.
    Tokenize,
    /// A clip is being sampled.
    Sample,
}

/// A callback for progress, which may stop the work.
pub(crate) type Watch<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;
