//! `cargo xtask train-tiny`: trains divot-tiny from nothing on the synthetic world.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use divot::weights::StoredType;
use divot_data::dataset::{ElementType, Text};
use divot_data::world::{Asking, Split, World};
use divot_data::write_mp4;
use divot_llm::TextTokenizer;
use divot_train::objective::instructions;
use divot_train::{CacheOptions, Recipe, RunOptions, Weights};

/// Arguments of `train-tiny`.
#[derive(Args)]
#[command(after_help = "\
All stages but text and model are recipes in examples/recipes/tiny, and folders in outputs/tiny: runs with their
report.html, or caches. Ctrl-C saves what is there; the same command goes on. The model is written into
outputs/tiny/model in 8 bits, each time anew.")]
pub struct Arguments {
    /// Only this stage, from what those before it left [default: all that are not done]
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    /// Where to compute: auto, cpu, wgpu, vulkan or cuda, with :index for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads that read and make clips
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
}

/// The stages, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// The text tokenizer
    Text,
    /// The autoencoder, which takes the place of Stable Diffusion's
    Vae,
    /// CLIP, which takes the place of OpenCLIP's
    Vision,
    /// The UNet, from a text and an image, which takes the place of DynamiCrafter's
    Stage0,
    /// The video tokenizer and the UNet together, on images
    #[value(name = "stage1-images")]
    Images,
    /// The video tokenizer, its vision tower and the UNet together, mostly on plain backgrounds
    #[value(name = "stage1-places")]
    Places,
    /// CLIP again, until its vision tower tells shapes
    VisionShapes,
    /// The video tokenizer and the UNet together, with that tower
    Stage1,
    /// The decoder, from texts alone, which takes the place of Mistral
    Language,
    /// The video tokenizer, by what questions and captions ask for
    TokenizerQuestions,
    /// The video tokenizer and the UNet together, while the language model reads the tokens
    #[value(name = "stage1-joint")]
    Joint,
    /// What the frozen networks make of clips with captions
    CacheCaptions,
    /// What the tokenizer makes of clips with questions, and of stories
    CacheTurns,
    /// The de-tokenizer, on whole clips and for guidance
    Stage2,
    /// The language model reads and predicts clips
    Pretrain,
    /// It answers questions
    TuneComprehension,
    /// It makes clips from captions
    TuneGeneration,
    /// It tells stories
    Story,
    /// The de-tokenizer, adapted to tokens that the language model draws
    Adapt,
    /// All of it as a checkpoint
    Model,
}

/// Where everything is written.
const FOLDER: &str = "outputs/tiny";
/// Runs that have the parts of the model. The adapted de-tokenizer is not among them: it scored worse (docs/tiny.md).
const PARTS: [&str; 3] = ["stage2", "tune-comprehension", "story"];
/// Numbers of the sample clips in the test split of the world.
const SAMPLES: [u64; 3] = [9, 20, 28];
/// Pieces of the text tokenizer, without Divot's tokens.
const PIECES: usize = 720;
/// Clips and stories whose texts it learns from.
const TEXTS: u64 = 20_000;

/// Runs the stages.
pub fn run(arguments: &Arguments) -> Result<()> {
    divot_cli::handle_interrupts()?;
    let all = Stage::value_variants();
    let wanted = |stage: &&Stage| arguments.stage.is_none_or(|only| only == **stage);
    let device = divot::device::select(&arguments.device)?;
    for &stage in all.iter().filter(wanted) {
        let name = stage.to_possible_value().expect("each has a name");
        let name = name.get_name();
        let folder = Path::new(FOLDER).join(name);
        match stage {
            Stage::Text => text(Path::new(FOLDER))?,
            Stage::Model => model(&folder, &device)?,
            Stage::CacheCaptions | Stage::CacheTurns => {
                let options = CacheOptions {
                    element: ElementType::F16,
                    shard_bytes: 32 << 20,
                    workers: arguments.workers.into(),
                    ..CacheOptions::default()
                };
                divot_cli::follow_cache(&recipe(name)?, &folder, &device, &options)?;
            }
            _ => {
                let options = RunOptions {
                    resume: true,
                    allow_changes: false,
                    workers: arguments.workers.into(),
                    ..RunOptions::default()
                };
                divot_cli::follow(&recipe(name)?, &folder, &device, &options)?;
            }
        }
    }
    Ok(())
}

fn recipe(name: &str) -> Result<Recipe> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join(format!("examples/recipes/tiny/{name}.toml"));
    Ok(Recipe::read(&path, &[])?)
}

/// Puts what was trained into one checkpoint, with sample clips.
fn model(folder: &Path, device: &Device) -> Result<()> {
    for name in PARTS {
        let run = Path::new(FOLDER).join(name);
        let stored = StoredType::Q8;
        for part in divot_train::export(&run, folder, Weights::Best, stored, device)? {
            println!("model: {}", part.display());
        }
    }
    let clips = folder.join("clips");
    fs::create_dir_all(&clips).with_context(|| format!("{} cannot be made", clips.display()))?;
    let world = World {
        split: Split::TestSeen,
        ..World::default()
    };
    for (place, number) in SAMPLES.into_iter().enumerate() {
        let path = clips.join(format!("clip-{}.mp4", place + 1));
        let scene = world.scene(number);
        write_mp4(&path, &scene.frames(world.size, world.frames), world.fps)?;
        println!("model: {}: {}", path.display(), world.caption(number));
    }
    Ok(())
}

/// Learns the text tokenizer from the texts of the world and the phrasings of instructions.
fn text(folder: &Path) -> Result<()> {
    let path = folder.join("tokenizer.json");
    if path.exists() {
        println!("text: {} is there", path.display());
        return Ok(());
    }
    let world = World::default();
    let mut texts: Vec<String> = Vec::new();
    for number in 0..TEXTS {
        texts.push(world.caption(number));
        for turn in world.questions(number, Asking::Any) {
            texts.push(format!("[INST] {} [/INST]", turn.question));
            texts.push(turn.answer);
        }
        if let Text::Story {
            instruction,
            scenes,
            ending,
        } = world.story_text(number)
        {
            texts.extend(instruction.into_iter().chain(scenes).chain([ending]));
        }
    }
    // Each of them as often as words of the world, so that they are whole tokens.
    texts.extend((0..TEXTS / 100).flat_map(|_| instructions().map(str::to_owned)));
    let tokenizer = TextTokenizer::train(texts.iter().map(String::as_str), PIECES)?;
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    tokenizer.save(&path)?;
    println!(
        "text: {} tokens, into {}",
        tokenizer.vocab_size(),
        path.display()
    );
    Ok(())
}
