//! The text tokenizer: SentencePiece BPE with byte fallback, as Mistral's, grown with special tokens.
//!
//! It is read from a `tokenizer.json`, or from the files that the released system has:
//! `tokenizer.model` with `tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json`
//! beside it. In both cases it becomes a `tokenizer.json` in memory, which [`TextTokenizer::save`]
//! writes: HuggingFace's `tokenizers` reads it too and gives the same ids.
//!
//! SentencePiece puts a space, its *dummy prefix*, before a text. `legacy` in `tokenizer_config.json`
//! says before which: `true`, which is also what its absence means, before every text between
//! special tokens; `false`, before the beginning of the whole only. A `tokenizer.json` says the same
//! through its normalizer and pre-tokenizer, and keeps it when it is saved.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use sentencepiece_model::{ModelType, SentencePieceModel, Type};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Token, Tokenizer,
};

const UNK: &str = "<unk>";
const BOS: &str = "<s>";
const EOS: &str = "</s>";
/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';
const FRAMES: usize = 256;

const DAMAGED: &str = "the file is damaged or incomplete: download it again";
const NOT_MISTRAL: &str = "use the tokenizer of a Mistral-7B or of a Divot-LLM";
const SAVE_AGAIN: &str =
    "write the tokenizer's files again with `save_pretrained`, or download them again";

/// Why a tokenizer could not be read, used or written; each message is one line that names the file
/// and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}; {remedy}", one_line(.path.display()))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done, to follow "cannot".
        action: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file is damaged, of another kind, or not there.
    #[error("{}: {problem}; {remedy}", one_line(.path.display()))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A special token that the tokenizer does not have.
    #[error(
        "`{}` is not a special token of this tokenizer; add it first (`add_divot_tokens` adds the video tokens), or encode it as text",
        one_line(.0)
    )]
    UnknownToken(String),
    /// An id beyond the vocabulary.
    #[error(
        "token id {id} is not among the tokenizer's {size}; use the tokenizer that the language model was trained with"
    )]
    UnknownId {
        /// The id.
        id: u32,
        /// The number of tokens.
        size: usize,
    },
    /// A step of the tokenizer failed on a text.
    #[error(
        "the text tokenizer failed: {0}; its tokenizer.json is damaged: download or convert it again"
    )]
    Step(String),
}

impl TokenizerError {
    fn file(path: &Path, problem: impl ToString, remedy: &'static str) -> Self {
        Self::File {
            path: path.to_path_buf(),
            problem: one_line(problem),
            remedy,
        }
    }

    fn step(error: tokenizers::Error) -> Self {
        Self::Step(one_line(error))
    }
}

/// A result of the tokenizer.
type Result<T, E = TokenizerError> = std::result::Result<T, E>;

/// A part of what is to be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Text as it is: a special token's name in it stays text.
    Text(&'a str),
    /// One special token, by its name.
    Special(&'a str),
}

/// A text tokenizer of the Mistral family.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    /// Whether a text at the very start gets a dummy prefix.
    prefix_at_start: bool,
    /// Whether a text after a special token gets a dummy prefix.
    prefix_after_special: bool,
}

impl TextTokenizer {
    /// Reads a tokenizer from a folder or from one file.
    ///
    /// In a folder, `tokenizer.json` goes before `tokenizer.model`. A file `*.json` is read as the
    /// former, any other as the latter, whose `tokenizer_config.json`, `added_tokens.json` and
    /// `special_tokens_map.json` lie beside it where there are any.
    ///
    /// # Errors
    ///
    /// Where no tokenizer is there, where a file is damaged, where it is not BPE with byte fallback
    /// normalised as Llama's, or where its special tokens do not fit its vocabulary.
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
        let bytes = read(&file)?;
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
    /// As [`open`](Self::open).
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        Self::parse(Path::new("tokenizer.json"), bytes)
    }

    /// Writes a `tokenizer.json`: to `path`, or into it if it is a folder.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written.
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
        std::fs::write(&file, json).map_err(|source| TokenizerError::Io {
            path: file,
            action: "write it",
            remedy: "check that the folder exists and is writable, and that the disk has space",
            source,
        })
    }

    /// Encodes segments, without a begin token. Texts beside one another count as one text. Spaces
    /// beside a special token stay, even if its `lstrip` or `rstrip` would eat them in a text.
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

    /// Encodes a text in which special tokens are found by their names, as the released system does,
    /// without a begin token.
    ///
    /// Never give it a text from outside: whoever wrote it could put special tokens into the prompt.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Step`] where the tokenizer's own file is at fault.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(TokenizerError::step)
    }

    /// The text of `ids`. Special tokens are written by their names, or left out as though they were
    /// not there. The dummy prefix is left out, and bytes that are no UTF-8 become U+FFFD each.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`] for an id beyond the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut stream = self.stream(skip_special_tokens);
        let mut text = String::new();
        for &id in ids {
            text += &stream.push(id)?;
        }
        Ok(text + &stream.finish())
    }

    /// Decodes ids one at a time, as they are generated: what the stream gives, put together, is
    /// what [`decode`](Self::decode) gives for all of them.
    pub fn stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream {
            tokenizer: self,
            skip_special_tokens,
            prefix: self.prefix_at_start,
            bytes: Vec::new(),
        }
    }

    /// The id of a token, special or not, by its name.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The number of tokens, special ones included: ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of `<s>`, which begins a text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id of `</s>`, which ends a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The special tokens and their ids, by ascending id.
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

    /// Whether an id is a special token's.
    pub fn is_special(&self, id: u32) -> bool {
        self.added().get(&id).is_some_and(|token| token.special)
    }

    /// Adds those of [`divot_tokens`] that are not there yet, at the end of the vocabulary, and
    /// returns the number of tokens after it, to which the language model's embeddings must grow.
    /// Tokens that are there keep their ids.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Step`] where the tokenizer's own file is at fault.
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

        // The library gives added tokens the next free ids, whatever the file says.
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
        // What the file does with a text says where it puts the prefix, however it says so.
        this.prefix_at_start = this.prefixes(&[Segment::Text("a")])?;
        this.prefix_after_special = this.prefixes(&[Segment::Special(BOS), Segment::Text("a")])?;
        Ok(this)
    }

    /// Whether the last text gets a dummy prefix.
    fn prefixes(&self, segments: &[Segment<'_>]) -> Result<bool> {
        let parts = self.split(segments)?;
        let splits = parts.get_splits(OffsetReferential::Original, OffsetType::None);
        Ok(splits.last().is_some_and(|part| part.0.starts_with(SPACE)))
    }

    /// Segments as the library has them between finding special tokens and tokenizing the rest.
    fn split(&self, segments: &[Segment<'_>]) -> Result<PreTokenizedString> {
        let mut text = String::new();
        // Where each part ends, and its id if it is a special token.
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
                        // Only the id is read of the token.
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

    fn added(&self) -> &HashMap<u32, AddedToken, impl std::hash::BuildHasher> {
        self.tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
    }
}

/// The tokens that Divot adds to Mistral's: `<img> </img> <vid> </vid> <frame> </frame>` and
/// `<frame_00000>` to `<frame_00255>`.
pub fn divot_tokens() -> impl Iterator<Item = String> {
    ["<img>", "</img>", "<vid>", "</vid>", "<frame>", "</frame>"]
        .into_iter()
        .map(String::from)
        .chain((0..FRAMES).map(|index| format!("<frame_{index:05}>")))
}

/// Decodes ids one at a time; see [`TextTokenizer::stream`].
#[derive(Debug, Clone)]
pub struct DecodeStream<'a> {
    tokenizer: &'a TextTokenizer,
    skip_special_tokens: bool,
    /// Whether the next text begins with a dummy prefix.
    prefix: bool,
    /// The first bytes of a character.
    bytes: Vec<u8>,
}

impl DecodeStream<'_> {
    /// Takes the next id and returns what is now known of the text: nothing while a character's
    /// bytes are still to come.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`] for an id beyond the vocabulary; the stream stays as it was.
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

    /// Ends the text: a character whose last bytes never came is U+FFFD for each byte that did.
    pub fn finish(mut self) -> String {
        self.take(true)
    }

    /// The text of the bytes held; those that may yet become a character stay, unless `all` are due.
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
            // One at a time, as SentencePiece does.
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

/// The byte that a byte-fallback token stands for.
fn byte_value(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Refuses the model of a `tokenizer.json` that is not as Mistral's, or that the library would trip
/// over.
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

/// What is read of `tokenizer_config.json`; `special` takes the keys that are not named here.
#[derive(Default, Deserialize)]
struct HubConfig {
    legacy: Option<bool>,
    added_tokens_decoder: Option<BTreeMap<u32, HubToken>>,
    #[serde(flatten)]
    special: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HubToken {
    content: String,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
    special: bool,
}

/// A `tokenizer.json` of a SentencePiece model and the files beside it.
fn convert(path: &Path, bytes: &[u8]) -> Result<Value> {
    let spm = SentencePieceModel::from_slice(bytes)
        .ok()
        .filter(|spm| !spm.pieces().is_empty())
        .ok_or_else(|| TokenizerError::file(path, "is not a SentencePiece model", DAMAGED))?;
    check_sentencepiece(path, &spm)?;
    let pieces: HashMap<&str, usize> = spm
        .pieces()
        .iter()
        .enumerate()
        .map(|(id, piece)| (piece.piece(), id))
        .collect();
    let (legacy, added) = added_tokens(path, &pieces)?;

    let space = SPACE.to_string();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
    let (normalizer, pre_tokenizer) = if legacy {
        let prepend = json!({"type": "Prepend", "prepend": space});
        (
            json!({"type": "Sequence", "normalizers": [prepend, replace]}),
            Value::Null,
        )
    } else {
        // A Metaspace puts its character before the first text only, but not where the text begins
        // with that character. The slow tokenizer always does. Hence one whose character is the
        // space, of which the normalizer has left none, and one that replaces what it put there.
        let metaspace = |character: &str, scheme| json!({"type": "Metaspace", "replacement": character, "prepend_scheme": scheme, "split": false});
        let pair = [metaspace(" ", "first"), metaspace(&space, "never")];
        (replace, json!({"type": "Sequence", "pretokenizers": pair}))
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": space}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": UNK,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": pieces,
            "merges": merges(&spm),
        },
    }))
}

/// Refuses what is not a model as Llama's and Mistral's: what it would do to a text is not known here.
fn check_sentencepiece(path: &Path, spm: &SentencePieceModel) -> Result<()> {
    let refuse = |problem: String| Err(TokenizerError::file(path, problem, NOT_MISTRAL));
    let Some((trainer, normalizer)) = spm.trainer().zip(spm.normalizer()) else {
        return Err(TokenizerError::file(
            path,
            "says nothing of its kind",
            DAMAGED,
        ));
    };
    if trainer.model_type() != ModelType::Bpe || !trainer.byte_fallback() {
        return refuse(format!(
            "is a SentencePiece model of type {:?} {} byte fallback, not BPE with it",
            trainer.model_type(),
            if trainer.byte_fallback() {
                "with"
            } else {
                "without"
            }
        ));
    }
    let charsmap = normalizer.precompiled_charsmap.as_deref();
    if !charsmap.unwrap_or_default().is_empty()
        || !normalizer.add_dummy_prefix()
        || normalizer.remove_extra_whitespaces()
        || !normalizer.escape_whitespaces()
        || trainer.treat_whitespace_as_suffix()
    {
        return refuse(format!(
            "normalises text ({}) otherwise than Llama's, which only marks spaces",
            normalizer.name()
        ));
    }
    match spm
        .pieces()
        .iter()
        .find(|piece| matches!(piece.r#type(), Type::UserDefined | Type::Unused))
    {
        Some(piece) => refuse(format!(
            "its piece `{}` is of type {:?}, which is not supported",
            piece.piece(),
            piece.r#type()
        )),
        None => Ok(()),
    }
}

/// The pairs that SentencePiece would join, best first.
fn merges(spm: &SentencePieceModel) -> Vec<(&str, &str)> {
    // Control and byte pieces are never made from text.
    let scores: HashMap<&str, f32> = spm
        .pieces()
        .iter()
        .filter(|piece| piece.r#type() == Type::Normal)
        .map(|piece| (piece.piece(), piece.score()))
        .collect();
    let mut merges = Vec::new();
    for piece in spm.pieces() {
        let Some(&score) = scores.get(piece.piece()) else {
            continue;
        };
        for (index, _) in piece.piece().char_indices().skip(1) {
            let (left, right) = piece.piece().split_at(index);
            if scores.contains_key(left) && scores.contains_key(right) {
                merges.push((score, left, right));
            }
        }
    }
    // Of pairs with one score, SentencePiece joins the leftmost, and so goes on to the right from what
    // it has just joined. Here every pair has a rank of its own: the longest left half first comes to
    // the same. It matters in Llama's runs of spaces, which all have one score.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())));
    merges
        .into_iter()
        .map(|(_, left, right)| (left, right))
        .collect()
}

/// The `legacy` flag, and the added tokens as a `tokenizer.json` has them, from the files beside a
/// `tokenizer.model`.
fn added_tokens(path: &Path, pieces: &HashMap<&str, usize>) -> Result<(bool, Vec<Value>)> {
    let config_file = path.with_file_name("tokenizer_config.json");
    let config: HubConfig = read_json(&config_file)?.unwrap_or_default();
    let legacy = config.legacy.unwrap_or(true);
    let mut names: Vec<String> = [UNK, BOS, EOS].map(String::from).into();
    names.extend(special_names(&config.special));

    // Newer files say everything in the configuration, and the others beside it count for nothing.
    let mut tokens: Vec<(u32, HubToken)> = match config.added_tokens_decoder {
        Some(tokens) => tokens.into_iter().collect(),
        None => {
            let map: Option<BTreeMap<String, Value>> =
                read_json(&path.with_file_name("special_tokens_map.json"))?;
            names.extend(special_names(&map.unwrap_or_default()));
            let ids: Option<BTreeMap<String, u32>> =
                read_json(&path.with_file_name("added_tokens.json"))?;
            ids.unwrap_or_default()
                .into_iter()
                .map(|(content, id)| {
                    (
                        id,
                        HubToken {
                            content,
                            ..HubToken::default()
                        },
                    )
                })
                .collect()
        }
    };
    for name in names {
        if let Some((_, token)) = tokens.iter_mut().find(|(_, token)| token.content == name) {
            token.special = true;
        } else if let Some(&id) = pieces.get(name.as_str()) {
            let token = HubToken {
                content: name,
                special: true,
                ..HubToken::default()
            };
            tokens.push((id as u32, token));
        } else {
            return Err(TokenizerError::file(
                &config_file,
                format!(
                    "the special token `{name}` has no id, neither there nor in added_tokens.json"
                ),
                SAVE_AGAIN,
            ));
        }
    }
    tokens.sort_by_key(|&(id, _)| id);

    tokens
        .into_iter()
        .map(|(id, token)| {
            // With either of these, ids would not be those of the released system.
            if token.single_word || !(token.special || legacy) {
                return Err(TokenizerError::file(
                    &config_file,
                    format!(
                        "the added token `{}` is single_word, or not special",
                        token.content
                    ),
                    "add it as an ordinary special token",
                ));
            }
            // Never `normalized`: a name is looked for in the text as it is.
            Ok(json!({
                "id": id,
                "content": token.content,
                "single_word": false,
                "lstrip": token.lstrip,
                "rstrip": token.rstrip,
                "normalized": false,
                "special": token.special,
            }))
        })
        .collect::<Result<_>>()
        .map(|added| (legacy, added))
}

/// The names under `bos_token`, `additional_special_tokens` and their like, which are given as
/// strings, as objects, or as lists of either.
fn special_names(map: &BTreeMap<String, Value>) -> Vec<String> {
    map.iter()
        .filter(|(key, _)| key.ends_with("_token") || *key == "additional_special_tokens")
        .flat_map(|(_, value)| match value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        })
        .filter_map(|token| token.as_str().or_else(|| token["content"].as_str()))
        .map(String::from)
        .collect()
}

/// A JSON file, if it is there.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_slice(&read(path)?)
        .map(Some)
        .map_err(|error| {
            TokenizerError::file(path, format!("cannot be understood: {error}"), DAMAGED)
        })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| {
        let (action, remedy) = match source.kind() {
            io::ErrorKind::NotFound => ("find it", "check the path or download the file"),
            io::ErrorKind::PermissionDenied => ("read it", "make it readable"),
            _ => ("read it", "check the disk, or download the file again"),
        };
        TokenizerError::Io {
            path: path.to_path_buf(),
            action,
            remedy,
            source,
        }
    })
}

/// `text` on one line: names and messages come from files, which may hold anything.
fn one_line(text: impl ToString) -> String {
    text.to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

    /// What the released system's tokenizer gives; `make_tokenizer_cases.py` beside it says how.
    #[derive(Deserialize)]
    struct Cases {
        encoded: Vec<Encoded>,
        decoded: Vec<Decoded>,
    }

    #[derive(Deserialize)]
    struct Encoded {
        text: String,
        legacy: Vec<u32>,
        new: Vec<u32>,
    }

    #[derive(Deserialize)]
    struct Decoded {
        ids: Vec<u32>,
        text: String,
    }

    impl Encoded {
        fn ids(&self, legacy: bool) -> &[u32] {
            if legacy { &self.legacy } else { &self.new }
        }
    }

    fn cases() -> Cases {
        serde_json::from_slice(&fs::read(format!("{DATA}/tokenizer_cases.json")).unwrap()).unwrap()
    }

    /// A way to spoil a JSON file.
    type Change<'a> = &'a dyn Fn(&mut Value);

    /// A copy of the tokenizer's folder, to be changed.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(format!("{DATA}/tokenizer")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        folder
    }

    fn edit(folder: &tempfile::TempDir, file: &str, change: impl FnOnce(&mut Value)) {
        let path = folder.path().join(file);
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }

    fn with_legacy(legacy: bool) -> TextTokenizer {
        let folder = folder();
        edit(&folder, "tokenizer_config.json", |config| {
            config["legacy"] = json!(legacy)
        });
        TextTokenizer::open(folder.path()).unwrap()
    }

    /// The segments in which a text has its special tokens.
    fn segments<'a>(tokenizer: &'a TextTokenizer, mut text: &'a str) -> Vec<Segment<'a>> {
        let names = tokenizer.special_tokens();
        let mut segments = Vec::new();
        while let Some((at, name)) = names
            .iter()
            .filter_map(|(name, _)| text.find(name).map(|at| (at, *name)))
            .min()
        {
            segments.extend([Segment::Text(&text[..at]), Segment::Special(name)]);
            text = &text[at + name.len()..];
        }
        segments.push(Segment::Text(text));
        segments
    }

    fn line(error: TokenizerError, words: &[&str]) {
        let line = error.to_string();
        assert!(!line.contains('\n') && line.contains("; "), "{line}");
        for word in words {
            assert!(line.contains(word), "{line} lacks {word}");
        }
    }

    /// Numbers without a pattern, for ids.
    fn numbers(seed: u64) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(seed), |state| {
            Some(
                state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407),
            )
        })
        .map(|state| (state >> 33) as u32)
    }

    #[test]
    fn ids_are_those_of_the_slow_tokenizer() {
        for legacy in [true, false] {
            let tokenizer = with_legacy(legacy);
            for case in cases().encoded {
                let ids = tokenizer.encode_with_special(&case.text).unwrap();
                assert_eq!(ids, case.ids(legacy), "{:?}, legacy {legacy}", case.text);
            }
        }
    }

    #[test]
    fn segments_give_the_same_ids_as_special_tokens_in_a_text() {
        for legacy in [true, false] {
            let tokenizer = with_legacy(legacy);
            for case in cases().encoded {
                // It eats the spaces around it, which only a search through a text can do.
                if case.text.contains("<trim>") {
                    continue;
                }
                let ids = tokenizer.encode(&segments(&tokenizer, &case.text)).unwrap();
                assert_eq!(ids, case.ids(legacy), "{:?}, legacy {legacy}", case.text);
            }
        }
    }

    #[test]
    fn texts_come_back() {
        for legacy in [true, false] {
            let tokenizer = with_legacy(legacy);
            for case in cases().encoded {
                if case.text.contains("<trim>") {
                    continue;
                }
                let text = tokenizer.decode(case.ids(legacy), false).unwrap();
                let written = case.text.replace(SPACE, " ");
                assert_eq!(text, written, "legacy {legacy}");
            }
        }
    }

    #[test]
    fn bytes_are_decoded_as_sentencepiece_does() {
        let tokenizer = with_legacy(true);
        for case in cases().decoded {
            assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.text);
        }
    }

    #[test]
    fn skipped_special_tokens_leave_no_trace() {
        let tokenizer = with_legacy(true);
        let ids = tokenizer
            .encode_with_special("<s>The dog.<vid><frame></frame></vid>A ball.</s>")
            .unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "The dog. A ball.");
    }

    #[test]
    fn a_saved_tokenizer_gives_the_same_ids() {
        for legacy in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let mut tokenizer = with_legacy(legacy);
            tokenizer.add_divot_tokens().unwrap();
            tokenizer.save(folder.path()).unwrap();
            let opened = TextTokenizer::open(folder.path()).unwrap();
            assert_eq!(opened.special_tokens(), tokenizer.special_tokens());
            assert_eq!(opened.vocab_size(), tokenizer.vocab_size());
            for case in cases().encoded {
                let ids = opened.encode_with_special(&case.text).unwrap();
                assert_eq!(ids, case.ids(legacy), "{:?}, legacy {legacy}", case.text);
                let segments = segments(&tokenizer, &case.text);
                let ids = opened.encode(&segments).unwrap();
                assert_eq!(ids, tokenizer.encode(&segments).unwrap());
                assert_eq!(
                    opened.decode(&ids, false).unwrap(),
                    tokenizer.decode(&ids, false).unwrap()
                );
            }
            let bytes = fs::read(folder.path().join("tokenizer.json")).unwrap();
            assert_eq!(
                TextTokenizer::from_json(&bytes).unwrap().eos(),
                tokenizer.eos()
            );
        }
    }

    #[test]
    fn older_files_give_the_same_ids() {
        let folder = folder();
        edit(&folder, "tokenizer_config.json", |config| {
            let config = config.as_object_mut().unwrap();
            for key in [
                "added_tokens_decoder",
                "additional_special_tokens",
                "legacy",
            ] {
                assert!(config.remove(key).is_some());
            }
        });
        let tokenizer = TextTokenizer::open(folder.path()).unwrap();
        assert_eq!(
            tokenizer.special_tokens(),
            with_legacy(true).special_tokens()
        );
        for case in cases().encoded {
            if !case.text.contains("<trim>") {
                let ids = tokenizer.encode_with_special(&case.text).unwrap();
                assert_eq!(ids, case.legacy, "{:?}", case.text);
            }
        }
    }

    #[test]
    fn special_tokens_in_a_text_stay_text() {
        let tokenizer = with_legacy(true);
        let text = "<vid></s>[INST]<unk><0x41>";
        let ids = tokenizer.encode(&[Segment::Text(text)]).unwrap();
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        // Not even when it is put together from two.
        let halves = [
            Segment::Text("<vi"),
            Segment::Text("d></s>[INST]<unk><0x41>"),
        ];
        assert_eq!(tokenizer.encode(&halves).unwrap(), ids);
        assert!(tokenizer.encode(&[]).unwrap().is_empty());
        assert!(tokenizer.encode(&[Segment::Text("")]).unwrap().is_empty());
    }

    #[test]
    fn unknown_tokens_and_ids_are_errors() {
        let tokenizer = with_legacy(true);
        for name in ["<clip>", "the", "", "<frame_00255>"] {
            let error = tokenizer.encode(&[Segment::Special(name)]).unwrap_err();
            line(error, &[name]);
        }
        let size = tokenizer.vocab_size() as u32;
        line(
            tokenizer.decode(&[5, size], false).unwrap_err(),
            &[&size.to_string()],
        );
    }

    #[test]
    fn a_stream_gives_what_decode_gives() {
        let tokenizer = with_legacy(true);
        let size = tokenizer.vocab_size() as u32;
        for seed in 0..200 {
            // Half of them bytes.
            let ids: Vec<u32> = numbers(seed)
                .take(60)
                .map(|number| {
                    if number % 2 == 0 {
                        3 + number / 2 % 256
                    } else {
                        number % size
                    }
                })
                .collect();
            for skip in [true, false] {
                let mut stream = tokenizer.stream(skip);
                let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
                text += &stream.finish();
                assert_eq!(text, tokenizer.decode(&ids, skip).unwrap());
            }
        }
    }

    #[test]
    fn a_stream_holds_back_split_characters() {
        let tokenizer = with_legacy(true);
        let ids = tokenizer.encode(&[Segment::Text("a😀b")]).unwrap();
        let mut stream = tokenizer.stream(false);
        let parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        assert_eq!(parts[parts.len() - 5..], ["", "", "", "😀", "b"]);

        let mut stream = tokenizer.stream(false);
        let cut: String = ids[..ids.len() - 2]
            .iter()
            .map(|&id| stream.push(id).unwrap())
            .collect();
        assert_eq!(cut, "a");
        assert_eq!(stream.finish(), "\u{FFFD}\u{FFFD}\u{FFFD}");
    }

    #[test]
    fn growth_adds_each_token_once() {
        let mut tokenizer = with_legacy(true);
        let (before, old) = (tokenizer.vocab_size(), tokenizer.clone());
        // The six marks and four frames are there.
        let size = tokenizer.add_divot_tokens().unwrap();
        assert_eq!((size, tokenizer.vocab_size()), (before + 252, size));
        assert_eq!(tokenizer.add_divot_tokens().unwrap(), size);
        for (name, id) in old.special_tokens() {
            assert_eq!(tokenizer.id(name), Some(id));
        }
        let ids: std::collections::BTreeSet<u32> = divot_tokens()
            .map(|token| tokenizer.encode(&[Segment::Special(&token)]).unwrap()[0])
            .collect();
        assert_eq!(ids.len(), 262);
        assert_eq!(ids.last(), Some(&(size as u32 - 1)));
        assert_eq!(
            tokenizer
                .encode_with_special("<frame_00255>")
                .unwrap()
                .len(),
            1
        );

        // From a plain model alone.
        let folder = folder();
        for file in [
            "tokenizer_config.json",
            "added_tokens.json",
            "special_tokens_map.json",
        ] {
            fs::remove_file(folder.path().join(file)).unwrap();
        }
        let mut plain = TextTokenizer::open(&folder.path().join("tokenizer.model")).unwrap();
        let names: Vec<_> = plain
            .special_tokens()
            .iter()
            .map(|token| token.0.to_string())
            .collect();
        assert_eq!(names, [UNK, BOS, EOS]);
        assert_eq!((plain.bos(), plain.eos()), (1, 2));
        let before = plain.vocab_size();
        assert_eq!(plain.add_divot_tokens().unwrap(), before + 262);
    }

    #[test]
    fn bad_folders_are_one_line() {
        let empty = tempfile::tempdir().unwrap();
        line(
            TextTokenizer::open(empty.path()).unwrap_err(),
            &["tokenizer.model", "folder"],
        );
        let missing = empty.path().join("tokenizer.json");
        line(
            TextTokenizer::open(&missing).unwrap_err(),
            &["tokenizer.json", "find"],
        );
        let tokenizer = with_legacy(true);
        let nowhere = empty.path().join("no/tokenizer.json");
        line(
            tokenizer.save(&nowhere).unwrap_err(),
            &["tokenizer.json", "write"],
        );

        let config = "tokenizer_config.json";
        let cases: [(Change<'_>, &[&str]); 8] = [
            (&|json| *json = json!([1]), &[config]),
            (&|json| json["legacy"] = json!("yes"), &[config, "yes"]),
            (
                &|json| json["added_tokens_decoder"] = json!({"x": {}}),
                &[config],
            ),
            (
                &|json| json["pad_token"] = json!("<pad>"),
                &[config, "<pad>", "no id"],
            ),
            // A name for an id that is a piece's, one that is there under another id, and a gap.
            (
                &|json| json["added_tokens_decoder"]["300"] = json!({"content": "<x>"}),
                &["<x>", "300"],
            ),
            (
                &|json| json["added_tokens_decoder"]["600"] = json!({"content": "<vid>"}),
                &["<vid>", "600"],
            ),
            (
                &|json| json["added_tokens_decoder"]["600"] = json!({"content": "<x>"}),
                &["<x>", "600"],
            ),
            (
                &|json| json["added_tokens_decoder"]["533"]["single_word"] = json!(true),
                &[config, "</vid>"],
            ),
        ];
        for (change, words) in cases {
            let folder = folder();
            edit(&folder, config, change);
            line(TextTokenizer::open(folder.path()).unwrap_err(), words);
        }

        let folder = folder();
        fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        fs::write(folder.path().join("added_tokens.json"), "{\"a\":\n").unwrap();
        line(
            TextTokenizer::open(folder.path()).unwrap_err(),
            &["added_tokens.json"],
        );
    }

    #[test]
    fn bad_models_are_one_line() {
        let model = fs::read(format!("{DATA}/tokenizer/tokenizer.model")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.model");
        let open = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            TextTokenizer::open(&path)
        };
        assert!(open(&model).is_ok());
        for cut in (0..model.len()).step_by(97) {
            line(open(&model[..cut]).unwrap_err(), &["tokenizer.model"]);
        }
        line(
            open(b"<html>not found</html>").unwrap_err(),
            &["tokenizer.model", "download"],
        );

        // Fields of the protobuf, each tag with the one after it.
        let replaced = |old: &[u8], new: &[u8]| {
            let at = model
                .windows(old.len())
                .rposition(|window| window == old)
                .unwrap();
            [&model[..at], new, &model[at + old.len()..]].concat()
        };
        let unigram = replaced(&[0x18, 2, 0x20], &[0x18, 1, 0x20]);
        line(open(&unigram).unwrap_err(), &["Unigram", "Mistral"]);
        let no_bytes = replaced(&[0x98, 2, 1], &[0x98, 2, 0]);
        line(open(&no_bytes).unwrap_err(), &["Bpe without byte fallback"]);
        let fewer_spaces = replaced(&[0x12, 0, 0x20, 0], &[0x12, 0, 0x20, 1]);
        line(open(&fewer_spaces).unwrap_err(), &["identity", "Mistral"]);
    }

    #[test]
    fn bad_json_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        with_legacy(false).save(folder.path()).unwrap();
        let good = fs::read(folder.path().join("tokenizer.json")).unwrap();
        let good: Value = serde_json::from_slice(&good).unwrap();
        let cases: [(Change<'_>, &[&str]); 11] = [
            (&|json| *json = json!("tokenizer"), &["BPE"]),
            (
                &|json| json["model"]["type"] = json!("Unigram"),
                &["Unigram"],
            ),
            (
                &|json| json["model"]["byte_fallback"] = json!(false),
                &["byte fallback"],
            ),
            (&|json| json["model"]["vocab"] = json!([]), &["vocabulary"]),
            (
                &|json| json["model"]["vocab"]["the"] = json!(7),
                &["none with id"],
            ),
            (
                &|json| json["model"]["vocab"] = json!({"a": 1}),
                &["<0x00>"],
            ),
            (
                &|json| json["model"]["merges"][0] = json!(["a".repeat(99), "b"]),
                &["merge"],
            ),
            (&|json| json["model"]["merges"][0] = json!(3), &["merge 3"]),
            (
                &|json| json["normalizer"] = json!({"type": "Unheard"}),
                &["tokenizer.json"],
            ),
            (
                &|json| json["added_tokens"][5]["id"] = json!(u32::MAX),
                &["4294967295"],
            ),
            (&|json| json["added_tokens"] = json!([]), &["<s>"]),
        ];
        for (change, words) in cases {
            let mut json = good.clone();
            change(&mut json);
            line(
                TextTokenizer::from_json(json.to_string().as_bytes()).unwrap_err(),
                words,
            );
        }
        line(TextTokenizer::from_json(b"{\n").unwrap_err(), &["JSON"]);
    }
}
