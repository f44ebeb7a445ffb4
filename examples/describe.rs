//! What is in a video: `cargo run --release --example describe`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use divot::data::{Video, sampling::MAX_CLIPS};
use divot::pipeline::Clips;
use divot_cli::options::{self, AskOptions};

/// Memory of a tensor serves the next one.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

/// Asks a language model about a video or an image.
#[derive(Parser)]
struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images [default: a sample of the model, if it has any]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// What to ask
    #[arg(long, default_value = "What does this video describe?")]
    question: String,
    #[command(flatten)]
    options: AskOptions,
}

fn main() -> ExitCode {
    divot_cli::program(|arguments: Arguments, output| {
        let pipeline = arguments.options.pipeline(output)?;
        let input = options::input(arguments.input, &pipeline, output)?;
        let video = Video::open(input)?;
        let clips = match video.info().frames {
            1 => Clips::Image,
            _ => Clips::AtMost(MAX_CLIPS),
        };
        let config = arguments.options.generation()?;

        // The answer is printed as it comes.
        pipeline.describe(&video, clips, &arguments.question, &config, &mut |event| {
            output.observe(event)
        })?;
        output.line("")
    })
}
