//! A clip to tokens and back: `cargo run --release --example reconstruct`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use divot::data::Video;
use divot_cli::options::{self, ClipOutput, DecodeOptions};
use divot_cli::output;

/// Memory of a tensor serves the next one.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

/// Turns two seconds of video into tokens and the tokens back into video.
///
/// Writes 16 frames at 8 fps, and a contact sheet beside them: input frames over reconstructed ones.
#[derive(Parser)]
struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images [default: a sample of the model, if it has any]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where in the video the clip starts, in seconds
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    start: f64,
    #[command(flatten)]
    output: ClipOutput,
    #[command(flatten)]
    options: DecodeOptions,
}

fn main() -> ExitCode {
    divot_cli::program(|arguments: Arguments, output| {
        let pipeline = arguments.options.pipeline(output)?;
        let input = options::input(arguments.input, &pipeline, output)?;
        let files = arguments.output.files(&[&input])?;
        let video = Video::open(&input)?;
        let decoding = arguments.options.decoding(&pipeline, output)?;

        let made = pipeline.reconstruct(&video, arguments.start, &decoding, &mut |event| {
            output.observe(event)
        })?;
        let originals = made.originals()?;
        files.write(&made.frames, &[&originals, &made.frames])?;

        let [_, count, width] = made.tokens.dims();
        output.line(format!(
            "{} → {count} tokens of {width} → {}: {}",
            output::video(&video),
            files.clip.display(),
            made.fidelity(&originals)?
        ))?;
        output.line(output.summary())
    })
}
