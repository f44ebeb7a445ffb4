//! Steps of recipes, taken as `divot train` takes them.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::Device;
use divot::data::dataset::{Medium, Sample, Text};
use divot::data::sampling::CLIP_FRAMES;
use divot::data::{Clip, Frame};
use divot_llm::{LoraConfig, MistralConfig};
use divot_train::{Recipe, Trainer};

use super::works::Ready;

/// The step of stage 1 at small size, with a moving average: two times 4 clips of 64x64, from frames on.
pub fn stage1(device: &Device) -> Result<Ready> {
    let recipe = recipe(
        "stage1",
        include_str!("../../../examples/recipes/stage1.toml"),
        &[
            r#"model.start."tokenizer.vision" = "random""#,
            r#"model.start."detokenizer.vae" = "random""#,
        ],
    )?;
    steps(&recipe, device, &[samples(&Text::None)?])
}

/// Two steps of pre-training with LoRA: 8 clips of 64x64 are described, and 8 are predicted from captions. The decoder
/// has 0.1 B parameters in Mistral's proportions.
pub fn llm(device: &Device) -> Result<Ready> {
    let tokenizer = super::beside(
        "fixtures/project/pretrained/cvlm_mistral_instruct_tokenizer",
        "../tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer",
    );
    let mut recipe = recipe(
        "pretrain",
        include_str!("../../../examples/recipes/pretrain.toml"),
        &[
            r#"model.start.tokenizer = "random""#,
            &format!("model.text_tokenizer = {tokenizer:?}"),
            "data.1.instructions = false",
        ],
    )?;
    recipe.model.llm.llm = MistralConfig::new(32_262, 768, 2048, 12, 12, 4);
    recipe.model.llm.lora = Some(LoraConfig::new());
    let samples = samples(&Text::Caption(CAPTION.to_owned()))?;
    steps(&recipe, device, &[samples.clone(), samples])
}

/// The text tokenizer makes 30 tokens of it.
const CAPTION: &str = "A yellow kite rises over the hill, then falls into the water.";

fn recipe(name: &str, text: &str, changes: &[&str]) -> Result<Recipe> {
    // The peer computes in it on every device.
    let f32 = ["precision = \"f32\""];
    let changes = changes.iter().chain(&f32);
    let changes: Vec<String> = changes.map(ToString::to_string).collect();
    Ok(Recipe::parse(Path::new(name), name, text, &changes)?)
}

/// Each run takes one step with the samples of each source.
fn steps(recipe: &Recipe, device: &Device, sources: &[Vec<Sample>]) -> Result<Ready> {
    let mut trainer = Trainer::new(recipe, device)?;
    let sources = sources.to_vec();
    let parameters = trainer.model().num_params();
    let mut step = 0;
    Ok(Ready::new(parameters, move || {
        let mut losses = 0.0;
        for (source, samples) in sources.iter().enumerate() {
            let report = trainer.step(step, source, samples)?;
            ensure!(
                report.learned && report.left_out == 0,
                "a step did not learn from all samples"
            );
            losses += report.losses.loss();
            step += 1;
        }
        Ok(losses as f32)
    }))
}

/// Eight clips with the same text.
fn samples(text: &Text) -> Result<Vec<Sample>> {
    (0..8).map(|index| sample(index, text)).collect()
}

/// A clip of 64x64 in which a square moves.
fn sample(index: usize, text: &Text) -> Result<Sample> {
    let frames = (0..CLIP_FRAMES).map(|time| {
        let rgb = (0..64 * 64).flat_map(|at| {
            let (x, y) = (at % 64, at / 64);
            let inside = (x + 64 - 2 * time - index) % 64 < 20 && (20..40).contains(&y);
            [if inside { 220 } else { 60 }, (x * 3) as u8, (y * 3) as u8]
        });
        Frame {
            width: 64,
            height: 64,
            rgb: rgb.collect(),
        }
    });
    Ok(Sample {
        key: format!("clip {index}"),
        medium: Medium::Video,
        clips: vec![Clip::new(frames.collect())?],
        text: text.clone(),
        stored: None,
    })
}
