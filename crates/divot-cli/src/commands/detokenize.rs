//! `divot detokenize`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use divot::Error;
use divot::tokens::VideoTokens;

use crate::options::{ClipOutput, Diffusion, Model, Seed, Weights};
use crate::output::{self, Output};

/// Turn a file of tokens into a video
///
/// The clips come one after another, 16 frames at 8 fps each, and each starts from the seed's noise:
/// the same tokens give the same clip wherever they are in the file.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot detokenize --input clip.safetensors --output clip-again.mp4"
)]
pub struct Arguments {
    /// Tokens, as `divot tokenize` writes them
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    output: ClipOutput,
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    diffusion: Diffusion,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let files = self.output.files(&[&self.input, &self.model.model])?;
        let decoding = self.diffusion.decoding(&self.seed, output)?;
        let pipeline = self.model.open(&self.weights, output)?;
        let tokens = VideoTokens::open(&self.input, pipeline.device())?;
        let frames = pipeline.detokenize(&tokens, &decoding, &mut |event| output.observe(event));
        let frames = match frames {
            Err(error @ Error::TokenWidth { .. }) => {
                return Err(error).with_context(|| self.input.display().to_string());
            }
            frames => frames?.concat(),
        };
        files.write(&frames, &output::rows(&frames))?;

        let clips = tokens.tokens.dims()[0];
        output.set("input", self.input.to_string_lossy());
        output.set("output", files.clip.to_string_lossy());
        output.set("sheet", files.sheet.to_string_lossy());
        output.set("clips", clips);
        output.set("frames", frames.len());
        output.set("seed", self.seed.seed);
        output.line(format!(
            "{} ({}) → {} and {}",
            self.input.display(),
            output::plural(clips, "clip"),
            files.clip.display(),
            files.sheet.display()
        ))?;
        output.line(output.summary())
    }
}
