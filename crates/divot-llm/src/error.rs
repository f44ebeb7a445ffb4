use crate::tokenizer::TokenizerError;

/// What can go wrong between a prompt and its answer; each message is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlmError {
    /// The text tokenizer could not be read, or cannot encode a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// An option makes no sense.
    #[error("{option} is {value}; use {remedy}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: f64,
        /// What would do.
        remedy: &'static str,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt takes {tokens} tokens and the model's window is {window}; shorten the text or use fewer clips"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions that the model has.
        window: usize,
    },
    /// There is nothing to answer.
    #[error("the {0} is empty; say something")]
    Empty(&'static str),
    /// The vocabulary lacks a token that marks video.
    #[error(
        "the tokenizer has no `{0}`: it is not of a Divot language model; convert the model with its own tokenizer"
    )]
    NoToken(String),
    /// The vocabulary and the embedding table are of different models.
    #[error(
        "the tokenizer has {tokens} tokens and the model {rows} rows for them; convert both from the same download"
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// Features are not of the sizes that the model reads.
    #[error("features of shape {found:?} do not fit; a clip is {tokens} tokens of {width}")]
    Features {
        /// What was given.
        found: Vec<usize>,
        /// Tokens of a clip.
        tokens: usize,
        /// Width of a token.
        width: usize,
    },
    /// A score overflowed.
    #[error(
        "the model's scores are not numbers ({0} weights overflowed); load them as f32 (--dtype f32)"
    )]
    NotFinite(&'static str),
}
