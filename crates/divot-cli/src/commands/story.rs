//! `divot story`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use divot::StoryEnd;
use divot::language::LlmError;

use crate::options::MakeOptions;
use crate::output::{Output, plural};
use crate::story;

/// Tell a story in text and videos
///
/// The language model alternates between text and a video. Each takes everything before it into
/// account. The model may end the story before the last scene. The text is printed on standard output
/// as it is generated. The folder gets scene-01.mp4 with its contact sheet scene-01.png and so on,
/// story.md with text and pictures, and story.json.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot story \"Tell a story of a boy who finds a kite\" --scenes 3 --output kite"
)]
pub struct Arguments {
    /// Instruction for the story
    instruction: String,
    /// Maximum number of scenes
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    scenes: usize,
    /// Folder to write; an older story in it is replaced
    #[arg(long, value_name = "DIR", default_value = "story")]
    output: PathBuf,
    #[command(flatten)]
    options: MakeOptions,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        if self.instruction.trim().is_empty() {
            return Err(LlmError::Empty("instruction").into());
        }
        if self.scenes == 0 {
            bail!("a story of 0 scenes tells nothing; use --scenes 1 or more");
        }
        story::check_folder(&self.output)?;
        let config = self.options.generation()?;
        let pipeline = self.options.pipeline(output)?;
        let decoding = self.options.decoding(&pipeline, output)?;
        let (told, clips) = pipeline.story(
            &self.instruction,
            self.scenes,
            &config,
            &decoding,
            &mut |event| output.observe(event),
        )?;
        output.check()?;
        if told.end == StoryEnd::Window {
            output.remark("it ends there: the model's window is full");
        }
        if !told.ending.is_empty() {
            output.line("")?;
        }
        story::write(
            &self.output,
            &self.instruction,
            self.options.seed(),
            &told,
            &clips,
        )?;

        output.set("instruction", &self.instruction);
        output.set("output", self.output.to_string_lossy());
        output.set("scenes", story::scenes(&told));
        output.set("ending", told.ending.trim());
        output.set("seed", self.options.seed());
        output.line(format!(
            "{} of {} in {}",
            told.scenes.len(),
            plural(self.scenes, "scene"),
            self.output.join("story.md").display()
        ))?;
        output.line(output.summary())
    }
}
