//! How far long work is, and the callbacks that watch it.

use std::ops::ControlFlow;

/// How far loading, saving, converting or downloading is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// What is being worked on: the name of a part, or of a file in its repository.
    pub name: &'a str,
    /// What is being done to it.
    pub step: Step,
    /// Bytes done. A download counts those of earlier runs.
    pub done: u64,
    /// Bytes in all; 0 where that is not known yet.
    pub total: u64,
}

/// What is being done.
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
}

/// A callback that is told about progress and may stop the work.
pub(crate) type Watch<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;
