//! What is in a video: `cargo run --release --example describe`.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use common::{Dtype, Stopped};
use divot::data::{Video, sampling::MAX_CLIPS};
use divot::language::Shown;
use divot::{GenerationConfig, Task, Tokenizer, VideoLlm, device};

/// Asks a language model about a video.
#[derive(Parser)]
#[command(after_help = "\
Example:
  cargo run --release --example describe -- --model models/divot --input clip.mp4")]
struct Arguments {
    /// Folder that `cargo xtask convert-weights` wrote
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Video (MP4, GIF, WebP), image, or folder of images
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// What to ask
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "What does this video describe?"
    )]
    question: String,
    /// Seed of the words, which are the same on every run
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
    let Some(input) = &arguments.input else {
        bail!("no input; name a video, an image or a folder of images with --input");
    };
    common::handle_interrupts()?;
    // Whatever can go wrong quickly goes wrong before the weights are read.
    if arguments.question.trim().is_empty() {
        bail!("the question is empty; say something with --question");
    }
    let video = Video::open(input)?;
    let part = Task::Comprehension.part(model)?;
    let device = device::select(&arguments.device)?;
    let dtype = arguments.dtype;

    // One network is in memory at a time: the tokenizer reads the video …
    let (tokenizer, _) = common::load(model, &device, dtype.float(), Tokenizer::load)?;
    let bar = common::progress_bar("clips", "{pos}/{len}");
    let tokens = tokenizer.tokenize_video(&video, MAX_CLIPS, |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        common::flow()
    });
    bar.finish_and_clear();
    let tokens = tokens?.ok_or(Stopped)?; // [clips, 64, 256]
    drop(tokenizer);

    // … and the language model reads its tokens.
    let llm = common::load(model, &device, dtype.float(), |checkpoint| {
        VideoLlm::load_part(checkpoint, part, dtype.quantization())
    })?;
    let shown = match video.info().frames {
        1 => Shown::Image,
        _ => Shown::Video(tokens.dims()[0]),
    };
    let drawing = GenerationConfig {
        seed: arguments.seed,
        ..GenerationConfig::default()
    };
    let mut chat = llm.chat(shown, Some(tokens), drawing);
    chat.ask(&arguments.question, common::say)?;
    common::check_interrupted()?;
    let _ = common::say("\n");
    Ok(())
}
