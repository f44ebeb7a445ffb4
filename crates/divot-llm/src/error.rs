use divot_nn::Stopped;

use crate::tokenizer::TokenizerError;

/// An error of the language model. Each message is one line that names the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlmError {
    /// The text tokenizer could not be read, or cannot encode a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The caller stopped the work.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// An option is out of range.
    #[error("{option} is {value}; use {remedy}")]
    Option {
        /// The name of the option.
        option: &'static str,
        /// The given value.
        value: f64,
        /// The valid values.
        remedy: &'static str,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt takes {tokens} tokens and the model's window is {window}; shorten the text or use fewer clips"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Number of positions of the model.
        window: usize,
    },
    /// A text is empty.
    #[error("the {0} is empty; say something")]
    Empty(&'static str),
    /// The text tokenizer lacks a token for video.
    #[error(
        "the text tokenizer has no `{0}`: it does not belong to a Divot language model; convert the model with its own text tokenizer"
    )]
    NoToken(String),
    /// The text tokenizer has more tokens than the embedding table has rows.
    #[error(
        "the text tokenizer has {tokens} tokens and the model {rows} rows for them; convert both from the same download"
    )]
    Vocabulary {
        /// Number of tokens of the text tokenizer.
        tokens: usize,
        /// Number of rows of the embedding table.
        rows: usize,
    },
    /// The features do not have the shape that the model and the prompt need.
    #[error("features of shape {found:?} do not fit; a clip is {tokens} tokens of {width}")]
    Features {
        /// The given shape.
        found: Vec<usize>,
        /// Tokens of a clip.
        tokens: usize,
        /// Width of a token.
        width: usize,
    },
    /// A training row is too long, and nothing learned would be left after cutting it.
    #[error(
        "the training row takes {tokens} tokens and {max_length} are allowed; allow longer rows, or leave this sample out"
    )]
    RowTooLong {
        /// Number of tokens of the row.
        tokens: usize,
        /// Maximum number of tokens.
        max_length: usize,
    },
    /// A computation gave a value that is not finite.
    #[error("the model's outputs are not finite in {0}; load the weights as f32 and compute in it")]
    NotFinite(&'static str),
}
