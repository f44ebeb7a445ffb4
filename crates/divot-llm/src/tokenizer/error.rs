use std::io;
use std::path::{Path, PathBuf};

pub(super) const DAMAGED: &str = "the file is damaged or incomplete: download it again";
pub(super) const NOT_MISTRAL: &str = "use the tokenizer of a Mistral-7B or of a Divot-LLM";
pub(super) const SAVE_AGAIN: &str =
    "write the tokenizer's files again with `save_pretrained`, or download them again";

/// An error of a text tokenizer. Each message is one line with the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}; {remedy}", one_line(.path.display()))]
    Io {
        /// The file.
        path: PathBuf,
        /// The attempted action, to follow "cannot".
        action: &'static str,
        /// How to fix it.
        remedy: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file is missing, damaged, or of another kind.
    #[error("{}: {problem}; {remedy}", one_line(.path.display()))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// How to fix it.
        remedy: &'static str,
    },
    /// The tokenizer does not have this special token.
    #[error(
        "`{}` is not a special token of this tokenizer; add it first (`add_divot_tokens` adds the video tokens), or encode it as text",
        one_line(.0)
    )]
    UnknownToken(String),
    /// The id is outside the vocabulary.
    #[error(
        "token id {id} is not among the tokenizer's {size}; use the tokenizer that the language model was trained with"
    )]
    UnknownId {
        /// The id.
        id: u32,
        /// The number of tokens.
        size: usize,
    },
    /// A tokenizer of this size cannot be learned from the texts.
    #[error(
        "{pieces} pieces are too few: control tokens, bytes and the characters of the texts are {needed}"
    )]
    TooFewPieces {
        /// The number of pieces that was asked for.
        pieces: usize,
        /// The least number.
        needed: usize,
    },
    /// A step of the tokenizer failed for a text.
    #[error(
        "the text tokenizer failed: {0}; its tokenizer.json is damaged: download or convert it again"
    )]
    Step(String),
}

impl TokenizerError {
    pub(super) fn file(path: &Path, problem: impl ToString, remedy: &'static str) -> Self {
        Self::File {
            path: path.to_path_buf(),
            problem: one_line(problem),
            remedy,
        }
    }

    pub(super) fn step(error: tokenizers::Error) -> Self {
        Self::Step(one_line(error))
    }
}

/// A result of the tokenizer.
pub(super) type Result<T, E = TokenizerError> = std::result::Result<T, E>;

/// Returns `text` on one line. Names and messages come from files and may contain control characters.
fn one_line(text: impl ToString) -> String {
    text.to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
