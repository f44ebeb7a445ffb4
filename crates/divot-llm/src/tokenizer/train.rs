//! Learns a text tokenizer from texts.

use std::collections::HashSet;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::{AddedToken, Trainer as _};

use super::error::{Result, TokenizerError};
use super::sentencepiece::tokenizer_json;
use super::special::{BOS, EOS, SPACE, UNK};
use super::text::TextTokenizer;

impl TextTokenizer {
    /// Learns a tokenizer of Mistral's kind from texts, for a language model that starts from nothing: three control
    /// tokens, a piece for each byte, and as many merged pieces of words as make `pieces` in all. Divot's tokens come
    /// after them.
    ///
    /// No piece goes beyond a word, and none joins letters with other characters.
    ///
    /// # Errors
    /// If `pieces` is too small for the control tokens, the bytes and the characters of the texts.
    pub fn train<'a>(texts: impl Iterator<Item = &'a str>, pieces: usize) -> Result<Self> {
        let control = [UNK, BOS, EOS].map(str::to_owned);
        let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
        let first: Vec<String> = control.into_iter().chain(bytes).collect();
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(pieces)
            .show_progress(false)
            .special_tokens(
                first
                    .iter()
                    .map(|name| AddedToken::from(name.as_str(), true))
                    .collect(),
            )
            .build();
        let words: Vec<String> = texts.flat_map(words).collect();
        let alphabet: HashSet<char> = words.iter().flat_map(|word| word.chars()).collect();
        if first.len() + alphabet.len() > pieces {
            let needed = first.len() + alphabet.len();
            return Err(TokenizerError::TooFewPieces { pieces, needed });
        }
        trainer
            .feed(words.iter(), |word| Ok(vec![word.to_owned()]))
            .map_err(TokenizerError::step)?;
        let mut model = BPE::default();
        trainer.train(&mut model).map_err(TokenizerError::step)?;
        let model =
            serde_json::to_value(&model).map_err(|error| TokenizerError::step(error.into()))?;
        let added = [UNK, BOS, EOS].iter().enumerate().map(|(id, name)| {
            json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        });
        let [vocabulary, merges] = ["vocab", "merges"].map(|name| model[name].clone());
        let json = tokenizer_json(false, added.collect(), vocabulary, merges);
        let mut tokenizer = Self::from_json(json.to_string().as_bytes())?;
        tokenizer.add_divot_tokens()?;
        Ok(tokenizer)
    }
}

/// Words with the mark of the space before them, and what is no letter by itself.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        let mut part = SPACE.to_string();
        for character in word.chars() {
            let joins =
                character.is_alphabetic() && part.chars().all(|c| c == SPACE || c.is_alphabetic());
            if !joins && part.chars().any(|c| c != SPACE) {
                words.push(std::mem::take(&mut part));
            }
            part.push(character);
        }
        words.push(part);
    }
    words
}
