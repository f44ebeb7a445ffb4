//! The text tokenizer: Mistral's SentencePiece BPE with byte fallback, extended by special tokens.
//!
//! It turns text into token ids. The *video* tokenizer, which turns frames into features, is another
//! thing and lives in the crate `divot`.
//!
//! It is read from a `tokenizer.json`, or from the files that the released system has:
//! `tokenizer.model` with `tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json`
//! beside it. Both become a `tokenizer.json` in memory, which [`TextTokenizer::save`] writes.
//! HuggingFace's `tokenizers` reads that file and gives the same ids.
//!
//! SentencePiece puts a space, its *dummy prefix*, before a text. `legacy` in `tokenizer_config.json`
//! says where: `true`, the default, before every text between special tokens; `false`, only before
//! the very first text. A `tokenizer.json` says the same through its normalizer and pre-tokenizer.

mod decode;
mod error;
mod file;
mod sentencepiece;
mod special;
mod text;

#[cfg(test)]
mod tests;

pub use decode::DecodeStream;
pub use error::TokenizerError;
pub use special::divot_tokens;
pub use text::{Segment, TextTokenizer};
