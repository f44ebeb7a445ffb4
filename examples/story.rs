//! A story in text and clips: `cargo run --release --example story`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use divot_cli::options::MakeOptions;
use divot_cli::story;

/// Memory of a tensor serves the next one.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

/// Tells a story in text and videos.
///
/// The folder gets a video and a contact sheet of each scene, and story.md to read.
#[derive(Parser)]
struct Arguments {
    /// What the story should be
    #[arg(default_value = "Tell a story about Kiki, a cyan circle.")]
    instruction: String,
    /// Scenes at most
    #[arg(long, default_value_t = 3)]
    scenes: usize,
    /// Folder to write
    #[arg(long, value_name = "DIR", default_value = "story")]
    output: PathBuf,
    #[command(flatten)]
    options: MakeOptions,
}

fn main() -> ExitCode {
    divot_cli::program(|arguments: Arguments, output| {
        let pipeline = arguments.options.pipeline(output)?;
        story::check_folder(&arguments.output)?;
        let config = arguments.options.generation()?;
        let decoding = arguments.options.decoding(&pipeline, output)?;

        let (told, clips) = pipeline.story(
            &arguments.instruction,
            arguments.scenes,
            &config,
            &decoding,
            &mut |event| output.observe(event),
        )?;
        story::write(
            &arguments.output,
            &arguments.instruction,
            config.seed,
            &told,
            &clips,
        )?;
        output.line(format!("\n{}", arguments.output.display()))
    })
}
