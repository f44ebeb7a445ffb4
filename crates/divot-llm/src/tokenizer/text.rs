use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::{
    AddedToken, Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Token, Tokenizer,
};

use super::error::{DAMAGED, NOT_MISTRAL, Result, SAVE_AGAIN, TokenizerError};
use super::file;
use super::sentencepiece::convert;
use super::special::{BOS, EOS, SPACE, divot_tokens};

/// A part of the input of [`TextTokenizer::encode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Plain text. The name of a special token in it stays text.
    Text(&'a str),
    /// A special token, by its name.
    Special(&'a str),
}

/// A text tokenizer of the Mistral family. It converts text to token ids and back.
///
/// It is not the video tokenizer, which converts frames to features.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    pub(super) tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    /// Whether text at the very start gets a dummy prefix.
    pub(super) prefix_at_start: bool,
    /// Whether text after a special token gets a dummy prefix.
    pub(super) prefix_after_special: bool,
}

impl TextTokenizer {
    /// Reads a tokenizer from a folder or a file.
    ///
    /// In a folder, `tokenizer.json` is preferred to `tokenizer.model`. A file `*.json` is read as a
    /// `tokenizer.json`, and any other file as a `tokenizer.model`. With a `tokenizer.model`, the files
    /// `tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json` beside it are read if
    /// they exist.
    ///
    /// # Errors
    ///
    /// If no tokenizer is found, a file is damaged, the model is not BPE with byte fallback and
    /// Llama's normalization, or the special tokens do not fit the vocabulary.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            ["tokenizer.json", "tokenizer.model"]
                .map(|name| path.join(name))
                .into_iter()
                .find(|file| file.is_file())
                .ok_or_else(|| {
                    TokenizerError::file(
                        path,
                        "holds no text tokenizer, neither tokenizer.json nor tokenizer.model",
                        "choose the folder of a language model, or copy its tokenizer there",
                    )
                })?
        } else {
            path.to_path_buf()
        };
        let bytes = file::read(&file)?;
        if file
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            Self::parse(&file, &bytes)
        } else {
            let json = convert(&file, &bytes)?.to_string();
            Self::parse(&file, json.as_bytes())
        }
    }

    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        Self::parse(Path::new("tokenizer.json"), bytes)
    }

    /// Writes a `tokenizer.json` to `path`, or into `path` if it is a folder. The file is whole, or as it was before.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = if path.is_dir() {
            path.join("tokenizer.json")
        } else {
            path.to_path_buf()
        };
        let json = self
            .tokenizer
            .to_string(true)
            .map_err(TokenizerError::step)?;
        let mut partial = file.clone().into_os_string();
        partial.push(".partial");
        let written =
            std::fs::write(&partial, json).and_then(|()| std::fs::rename(&partial, &file));
        written.map_err(|source| {
            let _ = std::fs::remove_file(&partial);
            TokenizerError::Io {
                path: file,
                action: "write it",
                remedy: "check that the folder exists and is writable, and that the disk has space",
                source,
            }
        })
    }

    /// Encodes segments, without a begin token.
    ///
    /// Adjacent texts count as one text. Spaces beside a special token are kept, even if `lstrip` or
    /// `rstrip` would remove them in a text.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownToken`] for a [`Segment::Special`] that is not a special token.
    pub fn encode(&self, segments: &[Segment<'_>]) -> Result<Vec<u32>> {
        let mut parts = self.split(segments)?;
        parts
            .tokenize(|text| self.tokenizer.get_model().tokenize(text.get()))
            .and_then(|()| parts.into_encoding(None, 0, OffsetType::None))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(TokenizerError::step)
    }

    /// Encodes a text without a begin token. Special tokens are found by their names, as in the released
    /// system.
    ///
    /// Do not use it for untrusted text, because its author could put special tokens into the prompt.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Step`] if the tokenizer's file is invalid.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(TokenizerError::step)
    }

    /// Returns the id of a token by its name, special or not.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Returns the number of tokens, including special ones. All ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Returns the id of `<s>`, which starts a text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Returns the id of `</s>`, which ends a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Returns the special tokens with their ids, by ascending id.
    pub fn special_tokens(&self) -> Vec<(&str, u32)> {
        let mut tokens: Vec<_> = self
            .added()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, token)| (token.content.as_str(), id))
            .collect();
        tokens.sort_unstable_by_key(|&(_, id)| id);
        tokens
    }

    /// Returns whether an id is that of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added().get(&id).is_some_and(|token| token.special)
    }

    /// Adds the missing [`divot_tokens`] at the end of the vocabulary. Existing tokens keep their ids.
    ///
    /// Returns the new number of tokens, to which the language model's embeddings must grow.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Step`] if the tokenizer's file is invalid.
    pub fn add_divot_tokens(&mut self) -> Result<usize> {
        let missing: Vec<_> = divot_tokens()
            .filter(|token| !self.id(token).is_some_and(|id| self.is_special(id)))
            .map(|token| AddedToken::from(token, true))
            .collect();
        self.tokenizer
            .add_special_tokens(missing)
            .map_err(TokenizerError::step)?;
        Ok(self.vocab_size())
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |problem: String| TokenizerError::file(path, problem, DAMAGED);
        let json: Value = serde_json::from_slice(bytes)
            .map_err(|error| damaged(format!("is not JSON: {error}")))?;
        check_model(path, &json["model"])?;
        let mut tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|error| damaged(format!("is not a tokenizer.json: {error}")))?;
        tokenizer
            .with_padding(None)
            .with_truncation(None)
            .map_err(TokenizerError::step)?;

        // The library gives added tokens the next free ids and ignores those in the file.
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let content = token["content"].as_str().unwrap_or_default();
            let due = tokenizer.token_to_id(content);
            if token["id"].as_u64() != due.map(u64::from) {
                let due = due.map_or("none".to_string(), |due| due.to_string());
                return Err(TokenizerError::file(
                    path,
                    format!(
                        "the added token `{content}` has id {} where {due} is due: ids collide or leave gaps",
                        token["id"]
                    ),
                    SAVE_AGAIN,
                ));
            }
        }
        let size = tokenizer.get_vocab_size(true);
        if let Some(id) = (0..size as u32).find(|&id| tokenizer.id_to_token(id).is_none()) {
            return Err(damaged(format!("has {size} tokens, but none with id {id}")));
        }

        let mut this = Self {
            tokenizer,
            bos: 0,
            eos: 0,
            prefix_at_start: false,
            prefix_after_special: false,
        };
        let special = |name| {
            let id = this.id(name).filter(|&id| this.is_special(id));
            id.ok_or_else(|| {
                TokenizerError::file(path, format!("has no special token {name}"), NOT_MISTRAL)
            })
        };
        (this.bos, this.eos) = (special(BOS)?, special(EOS)?);
        // Normalizers differ between files, so encode a text to see where this one puts the prefix.
        this.prefix_at_start = this.prefixes(&[Segment::Text("a")])?;
        this.prefix_after_special = this.prefixes(&[Segment::Special(BOS), Segment::Text("a")])?;
        Ok(this)
    }

    /// Returns whether the last text gets a dummy prefix.
    fn prefixes(&self, segments: &[Segment<'_>]) -> Result<bool> {
        let parts = self.split(segments)?;
        let splits = parts.get_splits(OffsetReferential::Original, OffsetType::None);
        Ok(splits.last().is_some_and(|part| part.0.starts_with(SPACE)))
    }

    /// Splits segments into special tokens and normalized texts. The texts are not tokenized yet.
    fn split(&self, segments: &[Segment<'_>]) -> Result<PreTokenizedString> {
        let mut text = String::new();
        // The end of each part, and its id if it is a special token.
        let mut ends: Vec<(usize, Option<u32>)> = Vec::new();
        for segment in segments {
            let id = match *segment {
                Segment::Text(part) => {
                    text += part;
                    None
                }
                Segment::Special(name) => {
                    text += name;
                    let id = self.id(name).filter(|&id| self.is_special(id));
                    Some(id.ok_or_else(|| TokenizerError::UnknownToken(name.to_string()))?)
                }
            };
            ends.pop_if(|(_, last)| last.is_none() && id.is_none());
            ends.push((text.len(), id));
        }

        let mut parts = PreTokenizedString::from(text);
        parts
            .split(|_, whole| {
                let mut start = 0;
                Ok(ends
                    .iter()
                    .filter_map(|&(end, id)| {
                        let part = whole.slice(tokenizers::normalizer::Range::Original(start..end));
                        start = end;
                        // Only the id of the token is used.
                        let tokens = id.map(|id| vec![Token::new(id, String::new(), (0, 0))]);
                        part.map(|part| (part, tokens))
                    })
                    .collect::<Vec<_>>())
            })
            .and_then(|()| match self.tokenizer.get_normalizer() {
                Some(normalizer) => parts.normalize(|text| normalizer.normalize(text)),
                None => Ok(()),
            })
            .and_then(|()| match self.tokenizer.get_pre_tokenizer() {
                Some(pre_tokenizer) => pre_tokenizer.pre_tokenize(&mut parts),
                None => Ok(()),
            })
            .map_err(TokenizerError::step)?;
        Ok(parts)
    }

    /// Returns the added tokens by id.
    pub(super) fn added(&self) -> &HashMap<u32, AddedToken, impl std::hash::BuildHasher> {
        self.tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
    }
}

/// Checks the model of a `tokenizer.json`. It must be BPE with byte fallback, and its vocabulary must
/// contain every byte and the result of every merge. Otherwise the `tokenizers` crate panics on some
/// models.
fn check_model(path: &Path, model: &Value) -> Result<()> {
    let unset = |key: &str| matches!(model[key].as_str(), None | Some(""));
    if model["type"] != "BPE"
        || model["byte_fallback"] != true
        || model["dropout"].as_f64().unwrap_or(0.0) != 0.0
        || !unset("continuing_subword_prefix")
        || !unset("end_of_word_suffix")
    {
        return Err(TokenizerError::file(
            path,
            format!(
                "holds no BPE with byte fallback (its type is {})",
                model["type"]
            ),
            NOT_MISTRAL,
        ));
    }
    let damaged = |problem: String| TokenizerError::file(path, problem, DAMAGED);
    let vocab = model["vocab"]
        .as_object()
        .ok_or_else(|| damaged("its vocabulary is missing".to_string()))?;
    if let Some(byte) = (0..=u8::MAX)
        .map(|byte| format!("<0x{byte:02X}>"))
        .find(|byte| !vocab.contains_key(byte))
    {
        return Err(damaged(format!("its vocabulary lacks the byte {byte}")));
    }
    for merge in model["merges"].as_array().into_iter().flatten() {
        let pair = match merge {
            Value::String(pair) => pair.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        if !pair.is_some_and(|(left, right)| vocab.contains_key(&format!("{left}{right}"))) {
            return Err(damaged(format!("the merge {merge} gives no token")));
        }
    }
    Ok(())
}
