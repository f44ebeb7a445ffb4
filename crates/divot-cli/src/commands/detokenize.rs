//! `divot detokenize`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use divot::Error;
use divot::tokens::VideoTokens;

use crate::options::{ClipOutput, DecodeOptions};
use crate::output::{self, Output};

/// Decode a file of tokens to a video
///
/// The clips follow one another, with 16 frames at 8 fps each. The noise of each clip starts from the
/// seed, so the same tokens give the same clip anywhere in the file.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot detokenize --input clip.safetensors --output clip-again.mp4"
)]
pub struct Arguments {
    /// File of tokens, as `divot tokenize` writes it
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    output: ClipOutput,
    #[command(flatten)]
    options: DecodeOptions,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let files = self.output.files(&[&self.input, self.options.folder()])?;
        let pipeline = self.options.pipeline(output)?;
        let decoding = self.options.decoding(&pipeline, output)?;
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
        output.set("seed", self.options.seed());
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
