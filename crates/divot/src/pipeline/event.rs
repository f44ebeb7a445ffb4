//! Events of a pipeline.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::{Progress, Scene};

/// An event of a running pipeline.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Progress of the current step.
    Progress(Progress<'a>),
    /// More text of the language model.
    Text(&'a str),
    /// The language model generated a scene of a story. The number starts at 1.
    Scene(usize, &'a Scene),
    /// A remark for the user, on one line.
    Remark(&'a str),
    /// A stage has finished, after this time.
    Finished(Stage, Duration),
}

/// A stage of a pipeline. The loading of a network is a separate stage.
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
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Tokenizer => "tokenizer",
            Self::LanguageModel => "language model",
            Self::Detokenizer => "de-tokenizer",
        }
    }
}

/// A callback for events. [`ControlFlow::Break`] stops the work, with the error
/// [`Error::Stopped`](crate::Error::Stopped).
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// An observer that ignores all events.
pub fn ignore(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
