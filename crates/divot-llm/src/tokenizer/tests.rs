use std::fs;

use serde::Deserialize;
use serde_json::{Value, json};

use super::special::{BOS, EOS, SPACE, UNK};
use super::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// Results of the released system's tokenizer. `make_tokenizer_cases.py` beside it computes them.
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

/// A change that makes a JSON file invalid.
type Change<'a> = &'a dyn Fn(&mut Value);

/// Copies the tokenizer's folder for a test that changes it.
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

/// Splits a text into segments at its special tokens.
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

/// Returns pseudo-random numbers for ids.
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
            // This token removes the spaces around it, which happens only in a search through a text.
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
    // Not even if it is joined from two texts.
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
        // Half of the ids are bytes.
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
    // The six marks and four frames exist already.
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

    // A model without other files.
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
        // A name for the id of a piece, an existing name with another id, and a gap.
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

    // Fields of the protobuf, each with the tag of the next field.
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

#[test]
fn a_tokenizer_is_learned_from_texts() {
    let texts = [
        "A red circle moves left.",
        "A blue circle moves left, then right.",
        "Is it red?",
    ];
    let learn = |pieces| TextTokenizer::train(texts.into_iter().cycle().take(300), pieces);
    let tokenizer = learn(400).unwrap();
    assert!(tokenizer.vocab_size() <= 400 + 262);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (1, 2));
    for text in [
        "A red circle moves right.",
        "Is it left, then?",
        "Déjà vu: 7 kites!\n",
        "",
    ] {
        let ids = tokenizer.encode(&[Segment::Text(text)]).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
    // Each word is a token, and so is each mark.
    let ids = |text| tokenizer.encode(&[Segment::Text(text)]).unwrap();
    assert_eq!(ids("A circle moves left, then right.").len(), 8);
    // Divot's tokens are there, and the same texts give the same tokenizer, also from its file.
    let clip = [
        Segment::Special("<frame>"),
        Segment::Special("<frame_00063>"),
    ];
    assert_eq!(tokenizer.encode(&clip).unwrap().len(), 2);
    let folder = tempfile::tempdir().unwrap();
    for (name, tokenizer) in [("a", &tokenizer), ("b", &learn(400).unwrap())] {
        tokenizer
            .save(&folder.path().join(format!("{name}.json")))
            .unwrap();
    }
    let [a, b] = ["a.json", "b.json"].map(|name| fs::read(folder.path().join(name)).unwrap());
    assert!(a == b);
    let opened = TextTokenizer::open(&folder.path().join("a.json")).unwrap();
    assert_eq!(
        opened.encode(&[Segment::Text(texts[1])]).unwrap(),
        ids(texts[1])
    );
    let error = learn(260).unwrap_err().to_string();
    assert!(error.starts_with("260 pieces are too few"), "{error}");
}
