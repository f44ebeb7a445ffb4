use std::collections::HashMap;
use std::io::Read;
use std::sync::OnceLock;

use regex::Regex;

/// CLIP's merges as published by OpenAI (MIT licence): one pair per line, most frequent first.
static MERGES: &[u8] = include_bytes!("../data/bpe_simple_vocab_16e6.txt.gz");
/// Number of merges in CLIP's vocabulary of 49,408 tokens: 256 bytes, 256 bytes with an end-of-word mark,
/// the merges, and two special tokens.
const MERGE_COUNT: usize = 49_408 - 512 - 2;
const END_OF_WORD: &str = "</w>";

/// An error of CLIP's tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The merges cannot be read.
    #[error("CLIP's merges cannot be read: {0}; use the file as OpenAI published it")]
    Merges(String),
    /// There is no room for the two special tokens.
    #[error("a context of {0} tokens has no room for a text; use at least 2")]
    ContextLength(usize),
}

/// CLIP's byte-pair tokenizer.
///
/// Texts are lower-cased, white space is folded, and HTML entities are decoded. The result starts with
/// `<start_of_text>`, ends with `<end_of_text>` and is padded with zeros. A longer text is cut and still
/// ends with `<end_of_text>`.
#[derive(Debug)]
pub struct BpeTokenizer {
    ids: HashMap<String, i64>,
    ranks: HashMap<(String, String), usize>,
    bytes: [char; 256],
    words: Regex,
}

impl BpeTokenizer {
    /// Creates the tokenizer with CLIP's own vocabulary, which is part of the crate.
    ///
    /// # Errors
    /// If the vocabulary cannot be unpacked.
    pub fn clip() -> Result<Self, TokenizerError> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(MERGES)
            .read_to_string(&mut text)
            .map_err(|error| TokenizerError::Merges(error.to_string()))?;
        // The first line contains the version of the file.
        Self::from_merges(text.lines().skip(1).take(MERGE_COUNT))
    }

    /// Creates a tokenizer from merges, each `left right`, most frequent first.
    ///
    /// # Errors
    /// If a line is not a pair.
    pub fn from_merges<'a>(
        merges: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, TokenizerError> {
        let (order, bytes) = printable_bytes();
        let mut vocabulary: Vec<String> = order.iter().map(char::to_string).collect();
        vocabulary.extend(order.iter().map(|c| format!("{c}{END_OF_WORD}")));
        let mut ranks = HashMap::new();
        for line in merges {
            let (left, right) = line
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' '))
                .ok_or_else(|| TokenizerError::Merges(format!("`{line}` is not a pair")))?;
            vocabulary.push(format!("{left}{right}"));
            ranks.insert((left.to_owned(), right.to_owned()), ranks.len());
        }
        vocabulary.push("<start_of_text>".to_owned());
        vocabulary.push("<end_of_text>".to_owned());
        let ids = vocabulary.into_iter().zip(0..).collect();
        Ok(Self {
            ids,
            ranks,
            bytes,
            words: word_pattern().clone(),
        })
    }

    /// Returns the number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.ids.len()
    }

    /// Returns the ids of a text, without special tokens or padding.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let text = clean(text);
        let mut ids = Vec::new();
        for word in self.words.find_iter(&text) {
            let symbols = word
                .as_str()
                .bytes()
                .map(|byte| self.bytes[usize::from(byte)].to_string())
                .collect();
            // Every byte is in the vocabulary, so all symbols after merging are too.
            ids.extend(self.merge(symbols).iter().map(|symbol| self.ids[symbol]));
        }
        ids
    }

    /// Returns the ids of several texts, `[texts, context_length]` row by row, for
    /// [`TextTower::text_features`](crate::TextTower::text_features).
    ///
    /// # Errors
    /// If `context_length` is below 2.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        context_length: usize,
    ) -> Result<Vec<Vec<i64>>, TokenizerError> {
        if context_length < 2 {
            return Err(TokenizerError::ContextLength(context_length));
        }
        let [start, end] = ["<start_of_text>", "<end_of_text>"].map(|token| self.ids[token]);
        let row = |text: &&str| {
            let mut row = vec![start];
            row.extend(self.encode(text));
            row.truncate(context_length - 1);
            row.push(end);
            row.resize(context_length, 0);
            row
        };
        Ok(texts.iter().map(row).collect())
    }

    /// Merges the most frequent neighbouring pair until no pair is in the merges.
    fn merge(&self, mut symbols: Vec<String>) -> Vec<String> {
        if let Some(last) = symbols.last_mut() {
            last.push_str(END_OF_WORD);
        }
        loop {
            let rank =
                |pair: &[String]| self.ranks.get(&(pair[0].clone(), pair[1].clone())).copied();
            let Some(best) = symbols.windows(2).filter_map(rank).min() else {
                return symbols;
            };
            let mut merged = Vec::with_capacity(symbols.len());
            let mut i = 0;
            while i < symbols.len() {
                if i + 1 < symbols.len() && rank(&symbols[i..i + 2]) == Some(best) {
                    merged.push(format!("{}{}", symbols[i], symbols[i + 1]));
                    i += 2;
                } else {
                    merged.push(std::mem::take(&mut symbols[i]));
                    i += 1;
                }
            }
            symbols = merged;
        }
    }
}

fn word_pattern() -> &'static Regex {
    static PATTERN: OnceLock<Regex> = OnceLock::new();
    PATTERN.get_or_init(|| {
        Regex::new(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
            .expect("the pattern is constant")
    })
}

/// Returns printable characters for bytes, so that merges are plain text. The printable characters of
/// Latin-1 come first and stand for themselves. The others follow from U+0100.
fn printable_bytes() -> (Vec<char>, [char; 256]) {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut table = ['\0'; 256];
    let mut order = Vec::with_capacity(256);
    for byte in (0..=255u8).filter(|&byte| printable(byte)) {
        table[usize::from(byte)] = char::from(byte);
        order.push(char::from(byte));
    }
    let others = (0..=255u8).filter(|&byte| !printable(byte));
    for (byte, c) in others.zip('\u{100}'..) {
        table[usize::from(byte)] = c;
        order.push(c);
    }
    (order, table)
}

/// Decodes HTML entities (twice, because scraped captions are often escaped twice), folds white space and
/// lower-cases.
fn clean(text: &str) -> String {
    let once = html_escape::decode_html_entities(text);
    let twice = html_escape::decode_html_entities(&once);
    let folded: Vec<&str> = twice.split_whitespace().collect();
    folded.join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of `open_clip` 2.x.
    #[test]
    fn clip_ids() {
        let tokenizer = BpeTokenizer::clip().unwrap();
        assert_eq!(tokenizer.vocab_size(), 49_408);
        for (text, ids) in [
            ("a diagram", &[320, 22697][..]),
            (
                "A  Dog's\tball &amp;amp; 42 caf\u{e9}s!",
                &[320, 1929, 568, 1069, 261, 275, 273, 3471, 20507, 256],
            ),
            (
                "na\u{ef}ve \u{65e5}\u{672c}\u{8a9e} don't <b>it'll</b>",
                &[
                    1097, 35689, 563, 39121, 44353, 34002, 508, 847, 713, 283, 321, 285, 585, 1342,
                    34308, 321, 285,
                ],
            ),
        ] {
            assert_eq!(tokenizer.encode(text), ids, "{text}");
        }
    }

    #[test]
    fn long_texts_are_cut_and_short_ones_padded() {
        let tokenizer = BpeTokenizer::clip().unwrap();
        let long = "dog ".repeat(100);
        let rows = tokenizer.encode_batch(&[&long, "dog"], 8).unwrap();
        assert_eq!(rows[0], [49406, 1929, 1929, 1929, 1929, 1929, 1929, 49407]);
        assert_eq!(rows[1], [49406, 1929, 49407, 0, 0, 0, 0, 0]);
        assert!(tokenizer.encode_batch(&["dog"], 1).is_err());
    }
}
