//! A video of a caption: `cargo run --release --example generate`.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use common::{Dtype, Stopped};
use divot::data::{check_writable, sampling::CLIP_FPS, write_mp4, write_png};
use divot::{Detokenizer, GenerationConfig, Task, VideoLlm, device};

/// Makes a video of a caption.
///
/// Writes 16 frames at 8 fps and, beside them, a contact sheet.
#[derive(Parser)]
#[command(after_help = "\
Example:
  cargo run --release --example generate -- --model models/divot --caption \"a dog on the beach\"")]
struct Arguments {
    /// Folder that `cargo xtask convert-weights` wrote
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What the video should show
    #[arg(long, value_name = "TEXT")]
    caption: Option<String>,
    /// Where to write the video; the contact sheet goes beside it as .png
    #[arg(long, value_name = "FILE", default_value = "out.mp4")]
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
    let caption = match arguments.caption.as_deref().map(str::trim) {
        None | Some("") => bail!("no caption; say what the video should show with --caption"),
        Some(caption) => caption,
    };
    common::handle_interrupts()?;
    // Whatever can go wrong quickly goes wrong before the weights are read.
    let sheet = arguments.output.with_extension("png");
    if sheet == arguments.output {
        bail!(
            "{}: what is written is an MP4; choose another --output",
            sheet.display()
        );
    }
    check_writable(&arguments.output)?;
    check_writable(&sheet)?;
    let part = Task::Generation.part(model)?;
    let device = device::select(&arguments.device)?;
    let dtype = arguments.dtype;

    // First the tokens of a grey clip, which guidance leads away from. One network is in memory at a
    // time after that …
    let unconditional = common::unconditional(model, &device, dtype.float())?;

    // … the language model, which draws the tokens of the video …
    let llm = common::load(model, &device, dtype.float(), |checkpoint| {
        VideoLlm::load_part(checkpoint, part, dtype.quantization())
    })?;
    let drawing = GenerationConfig {
        seed: arguments.seed,
        ..GenerationConfig::default()
    };
    let scene = llm
        .generate(caption, &drawing, common::say)?
        .ok_or(Stopped)?;
    drop(llm);
    let _ = common::say("\n");

    // … and the de-tokenizer, which makes frames of them.
    let (detokenizer, _) = common::load(model, &device, dtype.float(), Detokenizer::load_adapted)?;
    let frames = common::decode(&detokenizer, scene.features, &unconditional, arguments.seed)?;
    write_mp4(&arguments.output, &frames, CLIP_FPS)?;
    let rows: Vec<_> = frames.chunks(8).collect();
    write_png(&sheet, &common::sheet(&rows)?)?;
    let written = format!("{} and {}\n", arguments.output.display(), sheet.display());
    let _ = common::say(&written);
    Ok(())
}
