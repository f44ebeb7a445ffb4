//! What a pipeline says while it works.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::{Progress, Scene};

/// What a pipeline does, as it does it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// How far it is.
    Progress(Progress<'a>),
    /// More text of the language model.
    Text(&'a str),
    /// The language model drew a scene of a story: its number, from 1, and what it is.
    Scene(usize, &'a Scene),
    /// Something that a user should know, on one line.
    Remark(&'a str),
    /// A stage is over.
    Finished(Stage, Duration),
}

/// A stage of a pipeline. Each network is loaded before its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Loading weights.
    Loading,
    /// Videos to tokens.
    Tokenizer,
    /// Text and tokens to text and tokens.
    LanguageModel,
    /// Tokens to videos.
    Detokenizer,
}

impl Stage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Tokenizer => "tokenizer",
            Self::LanguageModel => "language model",
            Self::Detokenizer => "de-tokenizer",
        }
    }
}

/// A callback that is told about events. [`ControlFlow::Break`] stops the work, which then ends in
/// [`Error::Stopped`](crate::Error::Stopped).
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// An observer that lets everything go on.
pub fn ignore(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
