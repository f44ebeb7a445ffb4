//! `divot generate`

use anyhow::Result;
use clap::Args;
use divot::language::LlmError;
use divot::pipeline::{Event, Stage};

use crate::options::{ClipOutput, MakeOptions};
use crate::output::{self, Output};

/// Generate a video from a caption
///
/// A language model samples the tokens of a clip, and the de-tokenizer decodes them to 16 frames at 8 fps. Text
/// that the model generates before the video is printed on standard output.
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
    #[command(flatten)]
    output: ClipOutput,
    #[command(flatten)]
    options: MakeOptions,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        if self.caption.trim().is_empty() {
            return Err(LlmError::Empty("caption").into());
        }
        let files = self.output.files(&[self.options.folder()])?;
        let config = self.options.generation()?;
        let pipeline = self.options.pipeline(output)?;
        let decoding = self.options.decoding(&pipeline, output)?;
        let mut said = false;
        let (scene, frames) =
            pipeline.generate(&self.caption, &config, &decoding, &mut |event| {
                said |= matches!(event, Event::Text(_));
                if matches!(event, Event::Finished(Stage::LanguageModel, _)) && said {
                    output.stream("\n")?;
                }
                output.observe(event)
            })?;
        files.write(&frames, &output::rows(&frames))?;

        output.set("caption", &self.caption);
        output.set("text", scene.text);
        output.set("output", files.clip.to_string_lossy());
        output.set("sheet", files.sheet.to_string_lossy());
        output.set("frames", frames.len());
        output.set("forced", scene.forced);
        output.set("seed", self.options.seed());
        output.line(format!(
            "{} and {}",
            files.clip.display(),
            files.sheet.display()
        ))?;
        output.line(output.summary())
    }
}
