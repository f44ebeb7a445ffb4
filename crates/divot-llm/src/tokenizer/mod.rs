//! The text tokenizer: Mistral's SentencePiece BPE with byte fallback, extended by special tokens.
//!
//! It converts text to token ids. The *video* tokenizer, which converts frames to features, is in the crate
//! `divot`.
//!
//! It is read from a `tokenizer.json`, or from the files of the released system: `tokenizer.model`, with
//! `tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json` beside it. Both become a
//! `tokenizer.json` in memory, which [`TextTokenizer::save`] writes. HuggingFace's `tokenizers` reads that
//! file and returns the same ids.
//!
//! SentencePiece puts a space before a text, its *dummy prefix*. `legacy` in `tokenizer_config.json`
//! determines where: with `true`, the default, before every text between special tokens; with `false`, only
//! before the very first text. In a `tokenizer.json`, the normalizer and the pre-tokenizer determine it.

mod decode;
mod error;
mod file;
mod sentencepiece;
mod special;
mod text;
mod train;

#[cfg(test)]
mod tests;

pub use decode::DecodeStream;
pub use error::TokenizerError;
pub use special::divot_tokens;
pub use text::{Segment, TextTokenizer};
