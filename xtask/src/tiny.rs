//! `cargo xtask train-tiny`: trains divot-tiny from nothing on the synthetic world.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use divot::weights::StoredType;
use divot_cli::options::select;
use divot_data::dataset::{ElementType, Text};
use divot_data::world::{Asking, Split, World};
use divot_data::write_mp4;
use divot_llm::TextTokenizer;
use divot_train::objective::instructions;
use divot_train::{CacheOptions, Recipe, RunOptions, Weights, checkpoint};

/// Arguments of `train-tiny`.
#[derive(Args)]
#[command(after_help = "\
All stages but text and model are recipes in examples/recipes/tiny, and folders in outputs/tiny, of the workspace: runs
with their report.html, or caches. Ctrl-C saves what is there; the same command goes on. The model is written into
outputs/tiny/model in 8 bits, each time anew, once its runs have taken all their steps. The stage adapt trains what is
not in it.")]
pub struct Arguments {
    /// Only this stage, from what those before it left [default: all that are not done]
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    /// Go on although a recipe changed
    #[arg(long, visible_alias = "allow")]
    allow_changes: bool,
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
    /// The de-tokenizer, adapted to tokens that the language model draws; the model goes without it, since it scored
    /// worse
    Adapt,
    /// All of it as a checkpoint
    Model,
}

/// Where everything is written, in the workspace.
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
    // Recipes name files from there.
    std::env::set_current_dir(root()).with_context(|| {
        format!(
            "{}: the workspace cannot be entered; run this where it was built",
            root().display()
        )
    })?;
    let device = select(&arguments.device)?;
    let result = stages(arguments, &device);
    if result.is_err() {
        // Folders that are not empty stay.
        for folder in Path::new(FOLDER).ancestors() {
            let _ = fs::remove_dir(folder);
        }
    }
    result
}

fn stages(arguments: &Arguments, device: &Device) -> Result<()> {
    let all = Stage::value_variants();
    let wanted = |stage: &&Stage| arguments.stage.is_none_or(|only| only == **stage);
    for &stage in all.iter().filter(wanted) {
        let name = &stage.name();
        let folder = Path::new(FOLDER).join(name);
        match stage {
            Stage::Text => text(Path::new(FOLDER))?,
            Stage::Model => model(&folder, device)?,
            Stage::CacheCaptions | Stage::CacheTurns => {
                let options = CacheOptions {
                    element: ElementType::F16,
                    shard_bytes: 32 << 20,
                    workers: arguments.workers.into(),
                    ..CacheOptions::default()
                };
                divot_cli::follow_cache(&recipe(name)?, &folder, device, &options)?;
            }
            _ => {
                let options = RunOptions {
                    resume: true,
                    allow_changes: arguments.allow_changes,
                    workers: arguments.workers.into(),
                    ..RunOptions::default()
                };
                divot_cli::follow(&recipe(name)?, &folder, device, &options)?;
            }
        }
    }
    Ok(())
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The folder of the workspace.
fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The folder of the recipes.
fn recipes() -> PathBuf {
    root().join("examples/recipes/tiny")
}

fn recipe(name: &str) -> Result<Recipe> {
    let path = recipes().join(format!("{name}.toml"));
    Ok(Recipe::read(&path, &[])?)
}

/// Refuses a run that has steps left.
fn check_finished(name: &str) -> Result<()> {
    let run = Path::new(FOLDER).join(name);
    let steps = recipe(name)?.settings.steps;
    let done = checkpoint::newest(&run)?.map_or(0, |newest| newest.step);
    if done < steps {
        bail!(
            "{}: {done} of {steps} steps are done; take the others with `cargo xtask train-tiny --stage {name}`",
            run.display()
        );
    }
    Ok(())
}

/// Puts what was trained into one checkpoint, with sample clips.
fn model(folder: &Path, device: &Device) -> Result<()> {
    for name in PARTS {
        check_finished(name)?;
    }
    // The old one stays until the new one is whole.
    let partial = folder.with_extension("partial");
    remove(&partial)?;
    for name in PARTS {
        let run = Path::new(FOLDER).join(name);
        let stored = StoredType::Q8;
        for part in divot_train::export(&run, &partial, Weights::Best, stored, device)? {
            println!("model: {}", part.display());
        }
    }
    let clips = partial.join("clips");
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
    remove(folder)?;
    fs::rename(&partial, folder)
        .with_context(|| format!("{}: cannot become {}", partial.display(), folder.display()))?;
    println!("model: all of it is in {}", folder.display());
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match folder.exists() {
        true => fs::remove_dir_all(folder)
            .with_context(|| format!("{}: cannot be removed; remove it by hand", folder.display())),
        false => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn stages_read_what_those_before_them_leave() {
        let mut left: Vec<PathBuf> = Vec::new();
        let mut read = BTreeSet::new();
        for &stage in Stage::value_variants() {
            let name = stage.name();
            let mut leaves = name.clone();
            if stage == Stage::Text {
                leaves = "tokenizer.json".to_owned();
            } else if stage != Stage::Model {
                let recipe = recipe(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
                let settings = &recipe.settings;
                let data = settings.data.iter().chain(&settings.validation.data);
                let mut paths: Vec<&PathBuf> =
                    data.flat_map(|data| data.source.path.iter()).collect();
                paths.extend(recipe.start.iter().flat_map(|start| &start.folder));
                paths.extend(&settings.model.text_tokenizer);
                for path in paths {
                    let is_left = left.iter().any(|left| path.starts_with(left));
                    assert!(is_left, "{name}: no stage before it leaves {path:?}");
                }
                read.insert(format!("{name}.toml"));
            }
            left.push(Path::new(FOLDER).join(leaves));
        }
        for name in PARTS {
            assert!(left.contains(&Path::new(FOLDER).join(name)), "{name}");
        }
        let files = fs::read_dir(recipes()).unwrap();
        let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        assert_eq!(files.collect::<BTreeSet<_>>(), read);
    }
}
