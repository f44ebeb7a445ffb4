//! A video from a caption: `cargo run --release --example generate`.

use std::process::ExitCode;

use clap::Parser;
use divot_cli::options::{ClipOutput, MakeOptions};
use divot_cli::output;

/// Memory of a tensor serves the next one.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

/// Makes a video from a caption.
///
/// Writes 16 frames at 8 fps, and a contact sheet beside them.
#[derive(Parser)]
struct Arguments {
    /// What the video should show
    #[arg(default_value = "A large red circle moves to the right.")]
    caption: String,
    #[command(flatten)]
    output: ClipOutput,
    #[command(flatten)]
    options: MakeOptions,
}

fn main() -> ExitCode {
    divot_cli::program(|arguments: Arguments, output| {
        let pipeline = arguments.options.pipeline(output)?;
        let files = arguments.output.files(&[])?;
        let config = arguments.options.generation()?;
        let decoding = arguments.options.decoding(&pipeline, output)?;

        let (_, frames) =
            pipeline.generate(&arguments.caption, &config, &decoding, &mut |event| {
                output.observe(event)
            })?;
        files.write(&frames, &output::rows(&frames))?;
        output.line(format!("\n{}", files.clip.display()))
    })
}
