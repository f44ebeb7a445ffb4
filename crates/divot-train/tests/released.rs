//! Runs under the released files' names: what converts them again is the exported model.

#[path = "train/common.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, FloatDType};
use common::{recipe, samples};
use divot::checkpoint::{Part, WEIGHTS};
use divot::convert::{Job, ReleasedConfig, convert};
use divot::data::write_mp4;
use divot::weights::{Source, StoredType};
use divot_train::{Recipe, RunOptions, Trainer, Weights, export, export_released, run};

/// First weights are drawn by the device, whose generator all runs of a process share.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Clips with captions, and the JSONL that names them.
fn captions(folder: &Path) -> PathBuf {
    let mut lines = String::new();
    for (number, sample) in samples(3, 32).iter().enumerate() {
        let name = format!("{number}.mp4");
        write_mp4(folder.join(&name), sample.clips[0].frames(), 8.0).expect("a clip is written");
        lines += &format!("{{\"video\": \"{name}\", \"caption\": \"a square {number}\"}}\n");
    }
    let path = folder.join("captions.jsonl");
    fs::write(&path, lines).expect("a file");
    path
}

fn short(objective: &str, frozen: &str, source: &str, changes: &[&str]) -> Recipe {
    let head = format!(
        "steps = 3\nbatch = 2\naverage = 0.5\nfrozen = {frozen}\n\
         rate = {{ peak = 1e-2, warmup = 0 }}\nvalidation = {{ every = 0 }}\n\
         objective = {objective}\n{source}\n"
    );
    recipe(&head, changes).expect("a valid recipe")
}

fn source(path: &Path, rest: &str) -> String {
    format!(
        "[[data]]\nsource = {{ format = \"captions\", path = {path:?}, filter = {{ min_side = 16 }} }}\n{rest}\n"
    )
}

fn go(recipe: &Recipe, folder: &Path) {
    let options = RunOptions {
        resume: false,
        allow_changes: false,
        workers: 1,
        ..RunOptions::default()
    };
    let go = &mut |_: divot_train::Event<'_>| ControlFlow::Continue(());
    run(recipe, folder, &Device::default(), &options, go).expect("it runs");
}

/// Every file below the folders of parts, with its bytes.
fn files(model: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for part in fs::read_dir(model).expect("a model") {
        let part = part.expect("a part").path();
        for file in fs::read_dir(&part).expect("a folder") {
            let file = file.expect("a file").path();
            let name = file.strip_prefix(model).expect("it is below");
            found.insert(name.to_path_buf(), fs::read(&file).expect("a file"));
        }
    }
    found
}

/// Exports a run both ways, and converts the released files. `parts` are those of the plain export.
fn comes_back(run: &Path, parts: &[Part], files_written: &[&str]) {
    let device = Device::default();
    let [plain, out, again] = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    for weights in [Weights::Last, Weights::Best] {
        export(run, plain.path(), weights, StoredType::F32, &device).expect("it is exported");
        let to = out.path().join("released");
        let mut calls = 0;
        let exported = export_released(run, &to, weights, &device, |_| {
            calls += 1;
            ControlFlow::Continue(())
        })
        .expect("it is exported");
        assert!(calls > 0);
        let written: Vec<&str> = exported
            .files
            .iter()
            .map(|file| file.to_str().expect("a plain name"))
            .collect();
        assert_eq!(written, files_written);
        // Tiny models have other heads than the released code.
        let own = "tokenizer.resampler.temporal_heads is 2 instead of 12";
        assert!(
            exported.notes.iter().any(|note| note.starts_with(own)),
            "{:?}",
            exported.notes
        );
        assert_eq!(fs::read_dir(out.path()).expect("a folder").count(), 1);

        let sizes = ReleasedConfig::read(&to.join("config.json")).expect("sizes");
        for part in parts {
            let job = Job::of(*part, &[&to]);
            convert(&job, &sizes, again.path(), FloatDType::F32, |_| {
                ControlFlow::Continue(())
            })
            .expect("it is converted");
        }
        let [expected, found] = [&plain, &again].map(|folder| files(folder.path()));
        assert_eq!(expected.len(), found.len());
        for (name, bytes) in &found {
            assert!(expected.get(name) == Some(bytes), "{}", name.display());
        }
    }
    // Nothing else may lie there.
    let to = out.path().join("other");
    fs::create_dir(&to).expect("a folder");
    fs::write(to.join("mine.txt"), "mine").expect("a file");
    let error = export_released(run, &to, Weights::Best, &device, |_| {
        ControlFlow::Continue(())
    });
    let error = error.expect_err("it is refused").to_string();
    assert!(error.contains("mine.txt"), "{error}");
    assert_eq!(fs::read_dir(out.path()).expect("a folder").count(), 2);
}

const OPEN_CLIP: &str = "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin";
const TOKENIZER: &str = "Divot_tokenizer_detokenizer/Divot_tokenizer.bin";
const STAGE1: &str = "Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin";
const STAGE2: &str = "Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin";

#[test]
fn a_tokenizer_and_its_detokenizer_come_back() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let [data, folder] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let path = captions(data.path());
    let recipe = short(
        "{ kind = \"diffusion\" }",
        "[\"tokenizer.vision\", \"detokenizer.vae\"]",
        &source(&path, ""),
        &[],
    );
    let run = folder.path().join("run");
    go(&recipe, &run);
    let parts = [Part::Tokenizer, Part::Detokenizer];
    comes_back(&run, &parts, &[OPEN_CLIP, STAGE1, TOKENIZER]);

    // Neither a run nor a model.
    let to = folder.path().join("to");
    let error = export_released(data.path(), &to, Weights::Best, &Device::default(), |_| {
        ControlFlow::Continue(())
    });
    let error = error.expect_err("it is refused").to_string();
    assert!(
        error.contains("neither a checkpoint nor a model"),
        "{error}"
    );
}

fn text_tokenizer() -> String {
    let text = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer"
    );
    format!("model.text_tokenizer={text:?}")
}

/// Low-rank adaptation is merged in both exports. The run's sources say which of the released language models it
/// is.
#[test]
fn a_language_model_comes_back() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let data = tempfile::tempdir().expect("a folder");
    let path = captions(data.path());
    let [read, made] = ["comprehension", "generation"]
        .map(|task| source(&path, &format!("task = \"{task}\"\ninstructions = true")));
    let lora = "model.llm.lora={rank=2, alpha=6.0, dropout=0.0, train_norms=true, \
                train_embeddings=true, targets=[\"q_proj\", \"down_proj\"]}";
    for (source, part, folder) in [
        (read.clone(), Part::Comprehension, "Divot_sft_comp"),
        (made.clone(), Part::Generation, "Divot_sft_gen"),
        (read + &made, Part::Pretrained, "Divot_pretrain"),
    ] {
        let run = data.path().join(folder);
        let text = text_tokenizer();
        let changes = ["model.start={tokenizer=\"random\"}", &text, lora];
        let objective = "{ kind = \"language\" }";
        go(
            &short(objective, "[\"tokenizer\"]", &source, &changes),
            &run,
        );
        let parts = [Part::Tokenizer, part];
        let agent = format!("{folder}/agent/pytorch_model.bin");
        let llm = format!("{folder}/llm/model.safetensors");
        comes_back(&run, &parts, &[OPEN_CLIP, &agent, &llm, TOKENIZER]);
    }
}

/// Low-rank adaptation begins on weights that were trained without it, in a run, in a model's folder or in its part's.
#[test]
fn low_rank_adaptation_of_a_plain_language_model() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let data = tempfile::tempdir().expect("a folder");
    let path = captions(data.path());
    let source = source(&path, "task = \"comprehension\"\ninstructions = true");
    let text = text_tokenizer();
    let [plain, model] = ["plain", "model"].map(|name| data.path().join(name));
    let device = Device::default();
    let language = |changes: &[&str]| {
        let changes = [&[text.as_str()], changes].concat();
        short(
            "{ kind = \"language\" }",
            "[\"tokenizer\"]",
            &source,
            &changes,
        )
    };
    go(
        &language(&["model.start={tokenizer=\"random\"}", "average=0.0"]),
        &plain,
    );
    export(&plain, &model, Weights::Last, StoredType::F32, &device).expect("it is exported");
    let trained = tensors(&model);
    let part = Part::Comprehension.folder(&model);
    for (name, start) in [("of-run", &plain), ("of-model", &model), ("of-part", &part)] {
        let run = data.path().join(name);
        let start = format!("model.start={{tokenizer=\"random\", llm={start:?}}}");
        let lora = "model.llm.lora={rank=2, alpha=2.0, dropout=0.0, train_norms=false, \
                    train_embeddings=false, targets=[\"q_proj\"]}";
        go(&language(&[&start, lora, "average=0.0"]), &run);
        // What was adapted is not lost without a word.
        let start = format!("model.start={{tokenizer=\"random\", llm={run:?}}}");
        let without = Trainer::new(&language(&[&start]), &device);
        let text = without.err().expect("it is refused").to_string();
        assert!(text.contains("low-rank adaptation of `llm.llm."), "{text}");

        let merged = data.path().join(format!("{name}-exported"));
        export(&run, &merged, Weights::Last, StoredType::F32, &device).expect("it is exported");
        let merged = tensors(&merged);
        let change = |ending: &str| {
            let mut named = trained.iter().filter(|(name, _)| name.ends_with(ending));
            let (name, before) = named.next().expect("such a weight");
            let pairs = merged[name].iter().zip(before);
            pairs.fold(0f32, |largest, (a, b)| largest.max((a - b).abs()))
        };
        let adapted = change("layers.0.self_attn.q_proj.weight");
        assert!(adapted > 0.0 && adapted < 0.1, "{name}: {adapted}");
        assert_eq!(change("embed_tokens.weight"), 0.0, "{name}");
    }
}

/// The tensors of a model's language model.
fn tensors(model: &Path) -> BTreeMap<String, Vec<f32>> {
    let file = Part::Comprehension.folder(model).join(WEIGHTS);
    let source = Source::open(&file).expect("weights");
    let tensors = source.tensors().map(|tensor| {
        let data = tensor.read().expect("numbers");
        (tensor.name.clone(), data.iter().collect())
    });
    tensors.collect()
}

#[test]
fn an_adapted_detokenizer_is_that_of_stage_2() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let data = tempfile::tempdir().expect("a folder");
    let path = captions(data.path());
    let text = text_tokenizer();
    let start =
        "model.start={tokenizer=\"random\", llm=\"random\", \"detokenizer.vae\"=\"random\"}";
    let recipe = short(
        "{ kind = \"adaptation\" }",
        "[\"tokenizer\", \"llm\", \"detokenizer.vae\"]",
        &source(&path, ""),
        &[start, &text],
    );
    let run = data.path().join("run");
    go(&recipe, &run);
    let parts = [Part::Tokenizer, Part::AdaptedDetokenizer, Part::Generation];
    let [agent, llm] = ["agent/pytorch_model.bin", "llm/model.safetensors"]
        .map(|name| format!("Divot_sft_gen/{name}"));
    comes_back(&run, &parts, &[OPEN_CLIP, &agent, &llm, STAGE2, TOKENIZER]);
}
