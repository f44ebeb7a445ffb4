//! A story in text and videos: `cargo run --release --example story`.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use common::{Dtype, Stopped};
use divot::data::{check_writable, sampling::CLIP_FPS, write_mp4};
use divot::{Detokenizer, GenerationConfig, StoryEnd, StoryPart, Task, VideoLlm, device};

/// Tells a story in text and videos.
///
/// Writes scene-01.mp4 and so on, and story.md with the text and links to them.
#[derive(Parser)]
#[command(after_help = "\
Example:
  cargo run --release --example story -- --model models/divot --instruction \"A boy finds a kite\"")]
struct Arguments {
    /// Folder that `cargo xtask convert-weights` wrote
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What the story should be
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
    /// Scenes at most
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    scenes: usize,
    /// Folder to write
    #[arg(long, value_name = "DIR", default_value = "story")]
    output: PathBuf,
    /// Seed of words, tokens and noise, which are the same on every run
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
    /// Element type of the weights in memory; q8 and q4 pack the language model's
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Dtype,
}

fn main() -> ExitCode {
    common::main(|| run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let model = common::model(&arguments.model)?;
    let instruction = match arguments.instruction.as_deref().map(str::trim) {
        None | Some("") => bail!("no instruction; say what the story should be with --instruction"),
        Some(instruction) => instruction,
    };
    if arguments.scenes == 0 {
        bail!("a story of 0 scenes is none; use --scenes 1 or more");
    }
    common::handle_interrupts()?;
    let part = Task::Generation.part(model)?;
    let device = device::select(&arguments.device)?;
    let dtype = arguments.dtype;
    let folder = &arguments.output;
    fs::create_dir_all(folder).with_context(|| {
        format!(
            "{}: cannot be made; choose another --output",
            folder.display()
        )
    })?;
    let page_path = folder.join("story.md");
    check_writable(&page_path)?;

    // One network is in memory at a time; the language model tells the whole story first.
    let unconditional = common::unconditional(model, &device, dtype.float())?;
    let llm = common::load(model, &device, dtype.float(), |checkpoint| {
        VideoLlm::load_part(checkpoint, part, dtype.quantization())
    })?;
    let drawing = GenerationConfig {
        seed: arguments.seed,
        ..GenerationConfig::default()
    };
    let story = llm.story(instruction, arguments.scenes, &drawing, |part| match part {
        StoryPart::Text(text) => common::say(text),
        StoryPart::Scene(number, _) => common::say(&format!("\n[scene {number}]\n")),
    })?;
    drop(llm);
    if story.end == StoryEnd::Caller {
        return Err(Stopped.into());
    }

    let (detokenizer, _) = common::load(model, &device, dtype.float(), Detokenizer::load_adapted)?;
    let mut page = format!("# {instruction}\n");
    let mut clips = Vec::new();
    for (i, scene) in story.scenes.into_iter().enumerate() {
        let name = format!("scene-{:02}.mp4", i + 1);
        page += &format!("\n{}\n\n[{name}]({name})\n", scene.text);
        let seed = arguments.seed;
        let frames = common::decode(&detokenizer, scene.features, &unconditional, seed)?;
        clips.push((name, frames));
    }
    for (name, frames) in clips {
        write_mp4(folder.join(name), &frames, CLIP_FPS)?;
    }
    page += &format!("\n{}\n", story.ending);
    fs::write(&page_path, page.trim_end())
        .with_context(|| format!("{}: cannot be written", page_path.display()))?;
    let _ = common::say(&format!("\n{}\n", page_path.display()));
    Ok(())
}
