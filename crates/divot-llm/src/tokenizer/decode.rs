use super::error::{Result, TokenizerError};
use super::special::SPACE;
use super::text::TextTokenizer;

impl TextTokenizer {
    /// Decodes `ids` to text.
    ///
    /// Special tokens appear by name, or are left out with `skip_special_tokens`. The dummy prefix is
    /// removed. Each byte of invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut stream = self.stream(skip_special_tokens);
        let mut text = String::new();
        for &id in ids {
            text += &stream.push(id)?;
        }
        Ok(text + &stream.finish())
    }

    /// Returns a decoder of single ids, for text that is being generated. Its pieces join to the result of
    /// [`decode`](Self::decode) for all ids.
    pub fn stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream {
            tokenizer: self,
            skip_special_tokens,
            prefix: self.prefix_at_start,
            bytes: Vec::new(),
        }
    }
}

/// Decodes ids one at a time; see [`TextTokenizer::stream`].
#[derive(Debug, Clone)]
pub struct DecodeStream<'a> {
    tokenizer: &'a TextTokenizer,
    skip_special_tokens: bool,
    /// Whether the next text starts with a dummy prefix.
    prefix: bool,
    /// The bytes of an incomplete character.
    bytes: Vec<u8>,
}

impl DecodeStream<'_> {
    /// Takes the next id and returns the text that it completes. The text is empty while bytes of a
    /// character are missing.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`] for an id outside the vocabulary. The stream does not change then.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Self {
            tokenizer: this, ..
        } = *self;
        let piece = this
            .tokenizer
            .id_to_token(id)
            .ok_or_else(|| TokenizerError::UnknownId {
                id,
                size: this.vocab_size(),
            })?;
        if let Some(token) = this.added().get(&id) {
            if token.special && self.skip_special_tokens {
                return Ok(String::new());
            }
            self.prefix = this.prefix_after_special;
            return Ok(self.take(true) + &piece);
        }
        let prefix = std::mem::take(&mut self.prefix);
        if let Some(byte) = byte_value(&piece) {
            self.bytes.push(byte);
            return Ok(self.take(false));
        }
        let text = match piece.strip_prefix(SPACE) {
            Some(rest) if prefix => rest,
            _ => &piece,
        };
        Ok(self.take(true) + &text.replace(SPACE, " "))
    }

    /// Ends the text. Each byte of an incomplete character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        self.take(true)
    }

    /// Decodes the pending bytes. An incomplete character at the end stays pending, unless `all` is set.
    fn take(&mut self, all: bool) -> String {
        let mut text = String::new();
        let mut rest = self.bytes.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            text += &String::from_utf8_lossy(valid);
            rest = invalid;
            if error.error_len().is_none() && !all {
                break;
            }
            // One replacement per byte, as in SentencePiece.
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[1..];
        }
        if let Ok(valid) = std::str::from_utf8(rest) {
            text += valid;
            rest = &[];
        }
        self.bytes = rest.to_vec();
        text
    }
}

/// Returns the byte of a byte-fallback token.
fn byte_value(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}
