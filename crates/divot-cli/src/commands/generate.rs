//! `divot generate`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use divot::language::{LlmError, Prompt};

use crate::files::{ClipFiles, rows};
use crate::interrupt::Stopped;
use crate::models::decode;
use crate::options::{Diffusion, Features, LlmWeights, Model, Seed, Text};
use crate::output::Output;

/// Make a video of a caption
///
/// A language model draws 64 tokens and the de-tokenizer makes 16 frames at 8 fps of them. What the
/// model says before the video goes to standard output.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot generate \"a dog runs along the beach\" --output dog.mp4"
)]
pub struct Arguments {
    /// What the video should show
    caption: String,
    /// Where to write the video; a contact sheet goes beside it as .png
    #[arg(long, value_name = "FILE", default_value = "out.mp4")]
    output: PathBuf,
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: LlmWeights,
    #[command(flatten)]
    features: Features,
    #[command(flatten)]
    diffusion: Diffusion,
    #[command(flatten)]
    text: Text,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        if self.caption.trim().is_empty() {
            return Err(LlmError::Empty("caption").into());
        }
        let files = ClipFiles::check(&self.output, &[&self.model.model])?;
        let drawing = self.features.drawing(&self.text, &self.seed)?;
        let sampling = self.diffusion.sampling(output)?;
        let models = self.model.open_llm(&self.weights, output)?;
        let part = models
            .check_generation(&sampling, |text, _| Prompt::generation(text, &self.caption))?;

        let unconditional = models.unconditional(&sampling, true, output)?;
        let llm = models.llm(part, output)?;
        let scene = output.timed("language model", |output| {
            Ok(llm.generate(&self.caption, &drawing, |text| output.stream(text))?)
        })?;
        drop(llm);
        output.check()?;
        let scene = scene.ok_or(Stopped)?;
        if !scene.text.is_empty() {
            output.line("")?;
        }
        let detokenizer = models.detokenizer(true, output)?;
        let frames = decode(
            &detokenizer,
            scene.features,
            unconditional.as_ref(),
            &sampling,
            self.seed.seed,
            output,
        )?;
        files.write(&frames, &rows(&frames))?;

        output.set("caption", &self.caption);
        output.set("text", scene.text);
        output.set("output", files.clip.to_string_lossy());
        output.set("sheet", files.sheet.to_string_lossy());
        output.set("frames", frames.len());
        output.set("forced", scene.forced);
        output.set("seed", self.seed.seed);
        output.line(format!(
            "{} and {}",
            files.clip.display(),
            files.sheet.display()
        ))?;
        output.line(output.summary())
    }
}
