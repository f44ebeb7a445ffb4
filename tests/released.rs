//! Models under the released files' names: the inverse of conversion.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::config::Config;
use burn::tensor::{DType, Device, FloatDType};
use divot::TokenizerConfig;
use divot::checkpoint::{Checkpoint, Part};
use divot::convert::{Exported, Job, Lora, ReleasedConfig, convert, export_released};
use divot::gmm::{HeadConfig, RegressionConfig};
use divot::language::{DivotLlmConfig, QueryMechanism, TextTokenizer};
use divot::weights::Source;

const STAGE1: &str = "Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin";
const TOKENIZER: &str = "Divot_tokenizer_detokenizer/Divot_tokenizer.bin";
const OPEN_CLIP: &str = "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin";

/// Folders of fixtures: the project's own, and the one that `DIVOT_FIXTURE` names.
fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = root.join("../../tests/fixture");
    let other = std::env::var_os("DIVOT_FIXTURE").map_or_else(
        || root.join("../../../shared/reference/mini"),
        PathBuf::from,
    );
    match other.is_dir() {
        true => vec![own, other],
        false => {
            let other = other.display();
            println!("skipped in part: there is no {other}; set DIVOT_FIXTURE");
            vec![own]
        }
    }
}

fn go(_: divot::Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Converts everything that is found in `from`.
fn convert_all(from: &Path, sizes: &Path, to: &Path, dtype: FloatDType) {
    let sizes = ReleasedConfig::read(sizes).unwrap();
    for job in Job::find(from).unwrap().jobs {
        convert(&job, &sizes, to, dtype, go).unwrap();
    }
}

/// A model of the project's own fixture.
fn model(dtype: FloatDType) -> tempfile::TempDir {
    let fixture = &fixtures()[0];
    let model = tempfile::tempdir().unwrap();
    let sizes = fixture.join("config.json");
    convert_all(&fixture.join("pretrained"), &sizes, model.path(), dtype);
    model
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_path_buf();
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
    }
    found
}

/// Every tensor of a checkpoint: element type, shape, bytes in f32, which lose nothing.
fn tensors(path: &Path) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let source = Source::open(path).unwrap();
    let tensors = source.tensors().map(|tensor| {
        let data = tensor.read().unwrap().convert_dtype(DType::F32);
        let bytes = data.as_bytes().to_vec();
        (
            tensor.name.clone(),
            (tensor.dtype, tensor.shape.clone(), bytes),
        )
    });
    tensors.collect()
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes
        .chunks_exact(4)
        .map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]))
}

/// Converting a fixture and exporting it gives the fixture's own tensors: names, shapes, numbers.
/// Converting that again gives the same files.
#[test]
fn a_converted_model_becomes_what_it_was() {
    for fixture in fixtures() {
        let pretrained = fixture.join("pretrained");
        let [model, again, out] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let released = out.path().join("a/released");
        let sizes = fixture.join("config.json");
        convert_all(&pretrained, &sizes, model.path(), FloatDType::F32);
        let mut last = (0, 0);
        let Exported {
            files: written,
            notes,
            folder,
        } = export_released(model.path(), &released, |progress| {
            assert!(last.0 < progress.done && progress.done <= progress.total);
            last = (progress.done, progress.total);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(last.0, last.1);
        assert_eq!(folder, released);
        assert_eq!(notes, [""; 0], "{fixture:?}");
        assert_eq!(written.len(), 5, "{written:?}");

        for file in [
            TOKENIZER,
            STAGE1,
            OPEN_CLIP,
            "Divot_sft_gen/llm",
            "Divot_sft_gen/agent/pytorch_model.bin",
        ] {
            let [theirs, ours] = [&pretrained, &released].map(|folder| tensors(&folder.join(file)));
            assert!(ours.keys().eq(theirs.keys()), "{file}");
            for (name, (dtype, shape, bytes)) in &ours {
                let (_, expected_shape, expected) = &theirs[name];
                assert_eq!((*dtype, shape), (DType::F32, expected_shape), "{name}");
                if shape == &[1000] {
                    // The tables of the schedule, which another program computed.
                    for (ours, theirs) in floats(bytes).zip(floats(expected)) {
                        let scale = theirs.abs().max(1e-6);
                        assert!(
                            (ours - theirs).abs() <= 1e-5 * scale,
                            "{name}: {ours} {theirs}"
                        );
                    }
                } else {
                    assert!(bytes == expected, "{name}");
                }
            }
        }

        let sizes = released.join("config.json");
        convert_all(&released, &sizes, again.path(), FloatDType::F32);
        let [before, after] = [&model, &again].map(|folder| files(folder.path()));
        assert!(before.keys().eq(after.keys()));
        for (name, bytes) in &before {
            assert!(&after[name] == bytes, "{name:?}");
        }

        // The exported text tokenizer gives the same ids.
        let text = |folder: &Path| {
            let folder = folder.join("cvlm_mistral_instruct_tokenizer");
            let text = TextTokenizer::open(&folder).unwrap();
            text.encode_with_special("<s>[INST] <frame_00012> a dog [/INST]")
                .unwrap()
        };
        assert_eq!(text(&released), text(&pretrained));

        // Exporting again replaces the export with the same bytes.
        let before = files(&released);
        export_released(model.path(), &released, go).unwrap();
        assert!(files(&released) == before);
        assert_eq!(fs::read_dir(out.path().join("a")).unwrap().count(), 1);
    }
}

#[test]
fn the_element_type_stays() {
    for (dtype, stored, torch) in [
        (FloatDType::F16, DType::F16, "float16"),
        (FloatDType::BF16, DType::BF16, "bfloat16"),
    ] {
        let model = model(dtype);
        let [out, again] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let released = out.path().join("released");
        export_released(model.path(), &released, go).unwrap();
        let vae = tensors(&released.join(STAGE1));
        assert_eq!(vae["first_stage_model.quant_conv.weight"].0, stored);
        assert_eq!(vae["betas"].0, DType::F32);
        let config = fs::read(released.join("Divot_sft_gen/llm/config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["torch_dtype"], torch);
        convert_all(
            &released,
            &released.join("config.json"),
            again.path(),
            dtype,
        );
        assert!(files(model.path()) == files(again.path()));
    }
}

#[test]
fn lora_is_merged() {
    let fixture = &fixtures()[0];
    let pretrained = fixture.join("pretrained");
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let from = [
        "Divot_lora",
        "Divot_sft_gen/llm",
        "cvlm_mistral_instruct_tokenizer",
    ]
    .map(|name| pretrained.join(name));
    let mut job = Job::of(Part::Llm, &from);
    let [kept, merged, out] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    job.lora = Lora::Keep { alpha: Some(6.0) };
    convert(&job, &sizes, kept.path(), FloatDType::F32, go).unwrap();
    job.lora = Lora::Merge { alpha: Some(6.0) };
    convert(&job, &sizes, merged.path(), FloatDType::F32, go).unwrap();

    let [kept, merged] = [kept, merged].map(|model| {
        let released = out.path().join("released");
        let exported = export_released(model.path(), &released, go).unwrap();
        // Nothing but the language model is there, so that the sizes of the rest are the released ones.
        assert_eq!(exported.notes, [""; 0]);
        ReleasedConfig::read(&released.join("config.json")).unwrap();
        tensors(&released.join("Divot_pretrain/llm"))
    });
    assert!(kept.keys().eq(merged.keys()));
    for (name, (_, shape, bytes)) in &kept {
        let (_, expected_shape, expected) = &merged[name];
        assert_eq!(shape, expected_shape, "{name}");
        for (kept, merged) in floats(bytes).zip(floats(expected)) {
            assert!(
                (kept - merged).abs() < 1e-6,
                "{name}: {kept} is not {merged}"
            );
        }
    }
}

#[test]
fn nothing_else_is_overwritten() {
    let model = model(FloatDType::F16);
    let out = tempfile::tempdir().unwrap();
    let refused = |to: &Path, says: &str| {
        let before = files(out.path());
        let error = export_released(model.path(), to, go)
            .unwrap_err()
            .to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(says), "{error} does not say {says}");
        assert!(files(out.path()) == before);
    };
    // The published files, which lie under the same names.
    let download = out.path().join("download");
    fs::create_dir_all(download.join("Divot_tokenizer_detokenizer")).unwrap();
    fs::write(download.join(STAGE1), "published").unwrap();
    refused(&download, "no export");

    // An empty folder may be filled. An export with another file in it stays.
    let to = out.path().join("to");
    fs::create_dir(&to).unwrap();
    export_released(model.path(), &to, go).unwrap();
    let other = to.join("Divot_sft_gen/llm/notes.txt");
    fs::write(&other, "mine").unwrap();
    refused(&to, "notes.txt");
    fs::remove_file(&other).unwrap();
    fs::create_dir(to.join("mine")).unwrap();
    refused(&to, "`mine`");
    fs::remove_dir(to.join("mine")).unwrap();
    let file = out.path().join("file");
    fs::write(&file, "mine").unwrap();
    refused(&file, "is no folder");
    refused(&file.join("below"), "cannot be written");
    // An export of more parts stays too.
    fs::remove_dir_all(model.path().join("llm-generation")).unwrap();
    refused(&to, "would be lost");
    refused(model.path(), "would be lost");

    // A stopped export leaves nothing.
    let mut tensors = 0;
    let stopped = export_released(model.path(), &out.path().join("a/b"), |_| {
        tensors += 1;
        match tensors {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert!(stopped.unwrap_err().is_stopped());
    assert!(!out.path().join("a").exists());
}

#[test]
fn what_was_never_released_is_named() {
    let device = Device::default();
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("released");
    let refused = |model: &Path, says: &[&str]| {
        let error = export_released(model, &to, go).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        for says in says {
            assert!(error.contains(says), "{error} does not say {says}");
        }
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    };
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), &["no part"]);

    let model = model(FloatDType::F32);
    let path = model.path().join("tokenizer/config.json");
    let config = TokenizerConfig::load(&path).unwrap();
    let mut changed = config.clone();
    changed.resampler.variational = true;
    changed.save(&path).unwrap();
    refused(model.path(), &["tokenizer", "variational"]);
    changed = config.clone();
    changed.resampler.perceiver = false;
    changed.save(&path).unwrap();
    refused(model.path(), &["tokenizer", "position of patches"]);
    // Weights of other sizes.
    changed = config.clone();
    changed.vision.layers += 1;
    changed.save(&path).unwrap();
    refused(model.path(), &["model.safetensors", "missing"]);
    changed.vision.layers -= 2;
    changed.save(&path).unwrap();
    refused(model.path(), &["model.safetensors", "does not have"]);
    changed = config.clone();
    changed.vision.embed_dim *= 2;
    changed.save(&path).unwrap();
    refused(model.path(), &["model.safetensors", "proj.weight"]);
    config.save(&path).unwrap();

    let path = model.path().join("llm-generation/config.json");
    let config = DivotLlmConfig::load(&path).unwrap();
    let mut changed = config.clone();
    changed.query_mechanism = QueryMechanism::Causal;
    changed.save(&path).unwrap();
    refused(model.path(), &["llm-generation", "queries"]);
    changed = config.clone();
    changed.head = HeadConfig::Regression(RegressionConfig::new().with_dim(16));
    changed.save(&path).unwrap();
    refused(model.path(), &["llm-generation", "mixture"]);
    config.save(&path).unwrap();

    // Two language models of one name, and two text tokenizers.
    let copy = |to: &str| {
        let [from, to] = ["llm-generation", to].map(|name| model.path().join(name));
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(&from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    };
    copy("llm");
    copy("llm-pretrained");
    refused(model.path(), &["second model", "Divot_pretrain/llm"]);
    fs::remove_dir_all(model.path().join("llm")).unwrap();
    let text = model.path().join("llm-pretrained/tokenizer.json");
    let changed = fs::read_to_string(&text).unwrap() + "\n";
    fs::write(&text, changed).unwrap();
    refused(model.path(), &["another text tokenizer"]);
    fs::remove_dir_all(model.path().join("llm-pretrained")).unwrap();

    // What is left can be exported, and what has other constants is told.
    let path = model.path().join("tokenizer/config.json");
    let config = TokenizerConfig::load(&path).unwrap();
    config.clone().with_frame_size(64).save(&path).unwrap();
    fs::rename(
        model.path().join("clip"),
        model.path().join("dynamicrafter"),
    )
    .unwrap();
    let exported = export_released(model.path(), &to, go).unwrap();
    let notes = exported.notes.join("\n");
    for says in [
        "dynamicrafter is left out",
        "tokenizer.frame_size is 64 instead of 256",
        "no text tower",
    ] {
        assert!(notes.contains(says), "{notes} does not say {says}");
    }
    let again = tempfile::tempdir().unwrap();
    let sizes = ReleasedConfig::read(&to.join("config.json")).unwrap();
    let job = Job::of(Part::Tokenizer, &[&to]);
    convert(&job, &sizes, again.path(), FloatDType::F32, go).unwrap();
    let read = Checkpoint::new(again.path(), &device).config::<TokenizerConfig>(Part::Tokenizer);
    assert_eq!(read.unwrap().frame_size, 64);
}
