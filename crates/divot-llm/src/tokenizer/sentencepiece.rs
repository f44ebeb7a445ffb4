//! Converts a SentencePiece model, and the released system's files beside it, to a `tokenizer.json`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use sentencepiece_model::{ModelType, SentencePieceModel, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{DAMAGED, NOT_MISTRAL, Result, SAVE_AGAIN, TokenizerError};
use super::file::read_json;
use super::special::{BOS, EOS, SPACE, UNK};

/// `tokenizer_config.json`. `special` collects the keys that have no field here.
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

/// Converts a SentencePiece model, with the files beside it, to a `tokenizer.json`.
pub(super) fn convert(path: &Path, bytes: &[u8]) -> Result<Value> {
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

    Ok(tokenizer_json(
        legacy,
        added,
        json!(pieces),
        json!(merges(&spm)),
    ))
}

/// The `tokenizer.json` of a BPE with byte fallback and Llama's normalisation.
pub(super) fn tokenizer_json(
    legacy: bool,
    added: Vec<Value>,
    vocabulary: Value,
    merges: Value,
) -> Value {
    let space = SPACE.to_string();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
    let (normalizer, pre_tokenizer) = if legacy {
        let prepend = json!({"type": "Prepend", "prepend": space});
        (
            json!({"type": "Sequence", "normalizers": [prepend, replace]}),
            Value::Null,
        )
    } else {
        // A Metaspace puts its character before the first text, unless the text starts with that character.
        // The released tokenizer always adds one. Therefore two are used: the first adds a plain space,
        // with which no normalized text starts, and the second replaces it.
        let metaspace = |character: &str, scheme| json!({"type": "Metaspace", "replacement": character, "prepend_scheme": scheme, "split": false});
        let pair = [metaspace(" ", "first"), metaspace(&space, "never")];
        (replace, json!({"type": "Sequence", "pretokenizers": pair}))
    };
    json!({
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
            "vocab": vocabulary,
            "merges": merges,
        },
    })
}

/// Checks that a model is of Llama's and Mistral's kind. The conversion is known only for that kind.
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

/// Returns the pairs that SentencePiece would merge, best first.
fn merges(spm: &SentencePieceModel) -> Vec<(&str, &str)> {
    // Text is never encoded as control or byte pieces.
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
    // Of pairs with equal scores, SentencePiece merges the leftmost and continues to the right. In a
    // `tokenizer.json`, every pair has its own rank. Ranking the longest left half first gives the same
    // result. This matters for Llama's runs of spaces, which all have the same score.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())));
    merges
        .into_iter()
        .map(|(_, left, right)| (left, right))
        .collect()
}

/// Returns the `legacy` flag, and the added tokens in the form of a `tokenizer.json`, from the files beside
/// a `tokenizer.model`.
fn added_tokens(path: &Path, pieces: &HashMap<&str, usize>) -> Result<(bool, Vec<Value>)> {
    let config_file = path.with_file_name("tokenizer_config.json");
    let config: HubConfig = read_json(&config_file)?.unwrap_or_default();
    let legacy = config.legacy.unwrap_or(true);
    let mut names: Vec<String> = [UNK, BOS, EOS].map(String::from).into();
    names.extend(special_names(&config.special));

    // Newer configurations list all added tokens. The other files are then ignored.
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
            // Both would give other ids than the released system.
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
            // Never `normalized`, because names are searched in the original text.
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

/// Returns the names under `bos_token`, `additional_special_tokens` and similar keys. They are strings,
/// objects, or lists of either.
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
