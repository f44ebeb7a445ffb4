//! `divot detokenize`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use divot::Error;
use divot::tokens::VideoTokens;

use crate::files::{ClipFiles, rows};
use crate::models::{decode, is_guided};
use crate::options::{Diffusion, Model, Seed, Weights};
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
    /// Where to write the video; a contact sheet goes beside it as .png
    #[arg(long, value_name = "FILE", default_value = "out.mp4")]
    output: PathBuf,
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
        let files = ClipFiles::check(&self.output, &[&self.input, &self.model.model])?;
        let sampling = self.diffusion.sampling(output)?;
        let models = self.model.open(&self.weights, output)?;
        let VideoTokens {
            tokens,
            unconditional,
        } = VideoTokens::open(&self.input, &models.device)?;
        let [clips, _, found] = tokens.dims();
        let expected = models.detokenizer_config(false)?.resampler.input_dim;
        if found != expected {
            return Err(Error::TokenWidth { found, expected })
                .with_context(|| self.input.display().to_string());
        }
        let unconditional = match unconditional {
            Some(tokens) if is_guided(&sampling) => Some(tokens),
            _ => models.unconditional(&sampling, false, output)?,
        };

        let detokenizer = models.detokenizer(false, output)?;
        let mut frames = Vec::new();
        for clip in 0..clips {
            frames.extend(decode(
                &detokenizer,
                tokens.clone().narrow(0, clip, 1),
                unconditional.as_ref(),
                &sampling,
                self.seed.seed,
                output,
            )?);
        }
        files.write(&frames, &rows(&frames))?;

        output.set("input", self.input.to_string_lossy());
        output.set("output", files.clip.to_string_lossy());
        output.set("sheet", files.sheet.to_string_lossy());
        output.set("clips", clips);
        output.set("frames", frames.len());
        output.set("seed", self.seed.seed);
        output.line(format!(
            "{} ({}) → {} and {}",
            self.input.display(),
            output::clips(clips),
            files.clip.display(),
            files.sheet.display()
        ))?;
        output.line(output.summary())
    }
}
