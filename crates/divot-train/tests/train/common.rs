//! What the tests of training share: tiny recipes and samples. Each of them uses a part of it.

#![allow(dead_code)]

use std::path::PathBuf;

use divot::data::dataset::{Medium, Sample, Text};
use divot::data::{Clip, Frame};
use divot_train::{Recipe, Result};
use toml::{Table, Value};

/// Steps of a recipe at toy size.
pub const STEPS: usize = 20;

/// Sizes at which a step takes a fraction of a second.
pub const TINY: &str = r#"
[model]
sizes = "small"

[model.start]
"tokenizer.vision" = "random"
"detokenizer.vae" = "random"

[model.tokenizer]
frame_size = 32
[model.tokenizer.vision]
image_size = 28
patch_size = 14
width = 32
layers = 1
heads = 2
embed_dim = 16
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
queries = 12
width = 32
output_dim = 32
depth = 1
heads = 2
head_dim = 16
[model.detokenizer.unet]
model_channels = 32
channel_mult = [1, 2]
context_dim = 32
head_dim = 16
num_res_blocks = 1
attention_resolutions = [1, 2]
primary_context = 8
[model.detokenizer.vae]
channels = 32
channel_mult = [1, 1, 1]

[model.llm.llm]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
[model.llm.head.Gmm]
num_components = 2

[model.image]
queries = 32
input_dim = 32
width = 32
output_dim = 32
depth = 1
heads = 2
head_dim = 16

[model.text]
context_length = 16
width = 32
layers = 1
heads = 2
embed_dim = 16
"#;

/// A recipe of tiny networks, with `head` before its tables.
pub fn recipe(head: &str, changes: &[&str]) -> Result<Recipe> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path().join("tiny.toml"), head);
    let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
    Recipe::read(&path, &changes)
}

/// Writes a recipe.
pub fn write(path: PathBuf, head: &str) -> PathBuf {
    std::fs::write(&path, format!("{head}\n{TINY}")).expect("the recipe is written");
    path
}

/// Clips of a square that moves over a plain background, in other colours for each sample.
pub fn samples(count: usize, side: usize) -> Vec<Sample> {
    (0..count)
        .map(|number| {
            let frames = (0..16).map(|t| frame(number, t, side)).collect();
            Sample {
                key: format!("sample {number}"),
                medium: Medium::Video,
                clips: vec![Clip::new(frames).expect("16 frames of one size")],
                text: Text::Caption(format!("a square of colour {number}")),
                stored: None,
            }
        })
        .collect()
}

fn frame(number: usize, t: usize, side: usize) -> Frame {
    let colour = |part: usize| (37 * (number + 1) * (part + 3) % 256) as u8;
    let mut frame =
        Frame::filled(side, side, [colour(0), colour(1), colour(2)]).expect("a frame of some size");
    let square = side / 3;
    let left = t * (side - square) / 15;
    for y in square..2 * square {
        for x in left..left + square {
            let at = 3 * (y * side + x);
            frame.rgb[at..at + 3].copy_from_slice(&[colour(3), colour(4), colour(5)]);
        }
    }
    frame
}

/// The settings that make a recipe [`STEPS`] steps of toy networks, without those that it makes itself.
pub fn toy(recipe: &Table) -> Vec<String> {
    let tiny: Table = toml::from_str(TINY).expect("the toy sizes");
    let mut changes = Vec::new();
    flatten("", &Value::Table(tiny), &mut changes);
    changes
        .retain(|change| !change.starts_with("model.start") && !change.starts_with("model.sizes"));
    // As many as the UNet's states for text in stage 0.
    changes.push("model.text.context_length=8".to_owned());

    let value = |key: &str| {
        let mut names = key.split('.');
        let first = recipe.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    };
    if let Some(Value::Table(head)) = value("model.llm.head") {
        let name = head.keys().next().expect("a head has a name");
        changes.retain(|change| !change.starts_with("model.llm.head"));
        let sizes: &[&str] = match head[name].get("width") {
            Some(_) => &["cond_dim=32", "width=32", "depth=1", "timestep_width=16"],
            None => &[],
        };
        changes.extend(
            sizes
                .iter()
                .map(|size| format!("model.llm.head.{name}.{size}")),
        );
    }
    let kind = value("objective.kind").and_then(Value::as_str);
    let shows = match kind {
        Some("language") => recipe["model"]
            .get("start")
            .is_some_and(|start| start.get("detokenizer").is_some()),
        kind => matches!(kind, Some("diffusion" | "stage0" | "adaptation")),
    };
    if shows {
        changes.push("objective.sampling_steps=2".to_owned());
    }
    if value("micro_batch").is_some() {
        changes.push("micro_batch=1".to_owned());
    }
    for (number, data) in value("data")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        if data.get("batch").is_some() {
            changes.push(format!("data.{number}.batch=3"));
        }
    }
    let more = [
        &format!("steps={STEPS}"),
        "batch=2",
        "log_every=1",
        "rate.warmup=2",
        "validation.every=20",
        "validation.batches=1",
        "checkpoints.every=20",
    ];
    changes.extend(more.map(str::to_owned));
    changes
}

/// Every value as `key=value`.
fn flatten(key: &str, value: &Value, changes: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                flatten(&key, value, changes);
            }
        }
        value => changes.push(format!("{key}={value}")),
    }
}
