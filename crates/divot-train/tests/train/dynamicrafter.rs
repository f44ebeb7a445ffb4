//! Stage 0 starts from a checkpoint like DynamiCrafter's, and computes the context that PyTorch computes
//! (`xtask/peer/dynamicrafter.py`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use divot::checkpoint::{Part, WEIGHTS};
use divot::convert::{Job, ReleasedConfig, convert};
use divot::unet::Context;
use divot::weights::{Saver, Source, TensorSpec, write_safetensors};
use divot::{GuidanceConfig, SamplingConfig};
use divot_train::objective::{ShowClips, Stage0};
use divot_train::{Model, Recipe, Trainer};
use tempfile::TempDir;

use crate::common::samples;

/// A file of the peer.
fn data(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/dynamicrafter");
    Path::new(folder).join(name)
}

/// The peer's numbers of this name, from -1 to below 1.
fn uniform(name: &str, count: usize) -> Vec<f64> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |seed: u64, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let number = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    (1..=count as u64).map(number).collect()
}

/// The peer's weights of a released tensor.
fn draw(name: &str, shape: &[usize]) -> Vec<f32> {
    let (centre, bound) = match shape {
        [] | [_] => (f64::from(u8::from(name.ends_with("weight"))), 0.3),
        [_, rest @ ..] => (0.0, (3.0 / rest.iter().product::<usize>() as f64).sqrt()),
    };
    let values = uniform(name, shape.iter().product());
    let values = values.into_iter().map(|value| centre + bound * value);
    values.map(|value| value as f32).collect()
}

/// Converts the peer's checkpoint, as far as it is `kept`, into a folder.
fn converted(kept: impl Fn(&str) -> bool) -> Result<TempDir, String> {
    let text = std::fs::read_to_string(data("tensors.json")).expect("the peer's names");
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).expect("names");
    let shapes = shapes.into_iter().filter(|(name, _)| kept(name));
    let specs = shapes.map(|(name, shape)| TensorSpec {
        name,
        shape,
        dtype: DType::F32,
    });
    let specs: Vec<TensorSpec> = specs.collect();
    let download = tempfile::tempdir().expect("a folder");
    let file = download.path().join("model.ckpt");
    write_safetensors(&file, &specs, &BTreeMap::new(), |i| {
        let TensorSpec { name, shape, .. } = &specs[i];
        Ok(TensorData::new(draw(name, shape), shape.clone()))
    })
    .expect("the checkpoint is written");

    let to = tempfile::tempdir().expect("a folder");
    let sizes = ReleasedConfig::read(&data("config.json")).expect("the peer's sizes");
    let job = Job::of(Part::DynamiCrafter, &[file]);
    let go_on = |_: divot::Progress<'_>| ControlFlow::Continue(());
    match convert(&job, &sizes, to.path(), FloatDType::F32, go_on) {
        Ok(report) => {
            assert_eq!(report.narrowed, ["unet.conv_in.weight"]);
            assert!(report.defaulted.is_empty(), "{report}");
            Ok(to)
        }
        Err(error) => {
            let left = std::fs::read_dir(to.path()).expect("the folder");
            assert_eq!(left.count(), 0);
            Err(error.to_string())
        }
    }
}

/// A recipe of stage 0 whose sizes and weights are those of a converted model. The checkpoint does not have
/// the sizes of Divot's own networks, of frames and of latents.
fn recipe(folder: &Path, changes: &[&str]) -> Recipe {
    let text = format!(
        r#"steps = 1000
batch = 2
frozen = ["vision", "text", "detokenizer.vae", "detokenizer.resampler"]
rate = {{ peak = 1e-3, warmup = 0, decay = "constant" }}
objective = {{ kind = "stage0" }}
[[data]]
source = {{ format = "captions", path = "clips" }}

[model]
sizes = {folder:?}
[model.start]
vision = {folder:?}
text = {folder:?}
image = {folder:?}
detokenizer = {folder:?}
"detokenizer.resampler" = "random"

[model.tokenizer]
frame_size = 32
[model.tokenizer.resampler]
input_dim = 32
hidden_dim = 32
temporal_width = 24
temporal_heads = 2
spatial_temporal_depth = 1
spatial_temporal_heads = 2
resampler_depth = 1
resampler_heads = 2
resampler_head_dim = 16
pool_size = 2
tokens = 8
token_dim = 16
[model.detokenizer]
latent_size = [8, 8]
[model.detokenizer.resampler]
queries = 90
input_dim = 16
width = 32
output_dim = 32
depth = 1
heads = 2
head_dim = 16
"#
    );
    let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
    Recipe::parse(Path::new("stage0.toml"), "stage0", &text, &changes).expect("a valid recipe")
}

/// Every parameter of a model, by its path.
fn parameters(model: &Model) -> BTreeMap<String, Vec<f32>> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    let saver = Saver::new(&file, FloatDType::F32).add("", model.valid());
    saver.finish().expect("the model is written");
    numbers(&file)
}

fn numbers(file: &Path) -> BTreeMap<String, Vec<f32>> {
    let source = Source::open(file).expect("a file of weights");
    let tensors = source.tensors();
    tensors
        .map(|tensor| {
            let values = tensor.read().expect("its values");
            (tensor.name.clone(), values.iter().collect())
        })
        .collect()
}

#[test]
fn the_context_is_that_of_pytorch() {
    let folder = converted(|_| true).expect("it is complete");
    let trainer = Trainer::new(&recipe(folder.path(), &[]), &Device::default()).expect("a model");
    let model = trainer.model();
    let io = Source::open(&data("io.safetensors")).expect("the peer's numbers");
    let given = io.get("frames").expect("frames").read().expect("frames");
    let frames = Tensor::<4>::from_data(given, &model.vision().class_embedding.device());
    let texts = ["a photo of a cat", ""];
    let show = ShowClips {
        sampling: SamplingConfig::new(),
        guidance: GuidanceConfig::new(),
    };
    let context = Stage0::new(0.05, None, show).context(model, &texts, frames, 16);
    let Context::PerFrame { text, frames } = context else {
        panic!("the context is that of single frames");
    };
    assert_eq!(text.dims(), [2, 77, 32]);
    assert_eq!(frames.dims(), [2, 16, 16, 32]);
    for (name, ours) in [("text", text.into_data()), ("image", frames.into_data())] {
        let theirs = io.get(name).expect("the context").read().expect("numbers");
        assert_eq!(ours.shape(), theirs.shape());
        let pairs = ours.iter::<f32>().zip(theirs.iter::<f32>());
        let [difference, size] = pairs.fold([0.0; 2], |[difference, size], (ours, theirs)| {
            let [ours, theirs] = [ours, theirs].map(f64::from);
            [difference + (ours - theirs).powi(2), size + theirs.powi(2)]
        });
        let error = (difference / size).sqrt();
        println!("{name}: {error:.1e}");
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn stage_0_starts_from_it() {
    let folder = converted(|_| true).expect("it is complete");
    let recipe = recipe(folder.path(), &[]);
    let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
    let first = parameters(trainer.model());

    // The numbers of the released tensors, which differ in their layout.
    let embedding = "cond_stage_model.model.token_embedding.weight";
    assert_eq!(
        first["text.token_embedding.weight"],
        draw(embedding, &[49408, 32])
    );
    let hidden = "embedder.model.visual.transformer.resblocks.1.mlp.c_fc.weight";
    let hidden = draw(hidden, &[128, 32]);
    let transposed: Vec<f32> = (0..32 * 128)
        .map(|i| hidden[i % 128 * 32 + i / 128])
        .collect();
    assert_eq!(first["vision.blocks.1.mlp.fc1.weight"], transposed);
    let input = draw(
        "model.diffusion_model.input_blocks.0.0.weight",
        &[32, 8, 3, 3],
    );
    let noise = input.chunks(8 * 9).flat_map(|row| &row[..4 * 9]).copied();
    assert_eq!(
        first["detokenizer.unet.conv_in.weight"],
        noise.collect::<Vec<f32>>()
    );
    assert_eq!(
        first["image.latents"],
        draw("image_proj_model.latents", &[1, 256, 40])
    );

    // Nothing but Divot's own Perceiver is from elsewhere.
    let mut others = first.clone();
    for (name, values) in numbers(&Part::DynamiCrafter.folder(folder.path()).join(WEIGHTS)) {
        let path = match name.split('.').next() {
            Some("unet" | "vae") => format!("detokenizer.{name}"),
            _ => name,
        };
        assert!(others.remove(&path) == Some(values), "{path}");
    }
    for path in others.keys() {
        assert!(path.starts_with("detokenizer.resampler."), "{path}");
    }

    let batch = samples(2, 32);
    let losses: Vec<f64> = (0..10)
        .map(|_| {
            let report = trainer.step(0, 0, &batch).expect("a step");
            assert!(report.learned);
            report.losses.loss()
        })
        .collect();
    assert!(losses[9] < losses[0], "{losses:?}");
    let last = parameters(trainer.model());
    for (path, values) in &last {
        let frozen = recipe.settings.frozen.iter();
        let mut frozen = frozen.filter(|frozen| path.starts_with(&format!("{frozen}.")));
        if frozen.next().is_some() {
            assert!(*values == first[path], "{path}");
        }
    }
    for path in ["image.latents", "detokenizer.unet.conv_in.weight"] {
        assert!(last[path] != first[path], "{path}");
    }
}

#[test]
fn stage_1_takes_its_frozen_parts_from_it() {
    let folder = converted(|_| true).expect("it is complete");
    let start = folder.path();
    let parts = format!(
        "model.start={{\"tokenizer.vision\"={start:?}, \"detokenizer.vae\"={start:?}, \
         \"detokenizer.unet\"={start:?}}}"
    );
    let changes = [
        "frozen=[\"tokenizer.vision\", \"detokenizer.vae\"]",
        "objective={kind=\"diffusion\"}",
        &parts,
    ];
    let trainer = Trainer::new(&recipe(start, &changes), &Device::default()).expect("a model");
    let model = parameters(trainer.model());
    for (name, values) in numbers(&Part::DynamiCrafter.folder(start).join(WEIGHTS)) {
        let path = match name.split('.').next() {
            Some("vision") => format!("tokenizer.{name}"),
            Some("unet" | "vae") => format!("detokenizer.{name}"),
            _ => continue,
        };
        assert!(model[&path] == values, "{path}");
    }
}

#[test]
fn what_a_checkpoint_lacks_is_named() {
    let alpha = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.alpha";
    for lacking in [
        "cond_stage_model.",
        "embedder.model.visual.",
        "image_proj_model.",
        "image_proj_model.layers.0.1.",
        "first_stage_model.",
        "model.diffusion_model.",
        alpha,
    ] {
        let line = converted(|name| !name.starts_with(lacking)).expect_err(lacking);
        assert_eq!(line.lines().count(), 1, "{line}");
        let named = lacking.trim_start_matches("model.");
        assert!(
            line.contains("model.ckpt") && line.contains(named),
            "{line}"
        );
    }
}
