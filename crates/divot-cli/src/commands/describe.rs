//! `divot describe`

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use divot::Answer;
use divot::data::{ClipReader, Video};
use divot::language::LlmError;
use divot::pipeline::{Clips, Stage};
use serde_json::{Value, json};

use crate::interrupt;
use crate::options::{self, AskOptions};
use crate::output::Output;

/// Ask a language model about a video or an image
///
/// Only the answer is printed on standard output, as it is generated. A video is shown in clips of
/// two seconds. A file of one frame is shown as an image.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot describe
  divot describe --input clip.mp4
  divot describe --input clip.mp4 --question \"What is the man holding?\" --dtype q8
  divot describe --input photo.png --chat"
)]
pub struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images [default: a sample of the model, if it has any]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Question to ask
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "What does this video describe?"
    )]
    question: String,
    /// After --question, read further questions from standard input, one per line, until it ends
    #[arg(long)]
    chat: bool,
    /// Maximum number of clips that are shown; those of a longer video are spread evenly
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    clips: usize,
    /// Show the first frame as an image, also of a video
    #[arg(long)]
    image: bool,
    #[command(flatten)]
    options: AskOptions,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        if self.question.trim().is_empty() {
            return Err(LlmError::Empty("question").into());
        }
        let config = self.options.generation()?;
        let pipeline = self.options.pipeline(output)?;
        let input = options::input(self.input.clone(), &pipeline, output)?;
        let video = Video::open(&input)?;
        let clips = match self.image || video.info().frames == 1 {
            true => Clips::Image,
            false => Clips::AtMost(self.clips),
        };
        output.set("input", input.to_string_lossy());
        output.set("image", clips == Clips::Image);
        let count = match clips {
            Clips::AtMost(most) => ClipReader::default().count(&video, most)?,
            _ => 1,
        };
        output.set("clips", count);
        output.set("seed", self.options.seed());
        output.stop_when_closed();

        let (mut chat, answer) =
            pipeline.describe(&video, clips, &self.question, &config, &mut |event| {
                output.observe(event)
            })?;
        let mut answers = vec![print(&self.question, &answer, output)?];
        if self.chat {
            let mut questions = io::stdin().lock();
            while let Some(question) = next_question(&mut questions)? {
                let answer = output.timed(Stage::LanguageModel.name(), |output| {
                    Ok(chat.ask(&question, |text| output.stream(text))?)
                })?;
                answers.push(print(&question, &answer, output)?);
            }
        }
        output.set("answers", answers);
        output.remark(output.summary());
        Ok(())
    }
}

/// Ends the last line of a streamed answer and returns the answer for the JSON object.
fn print(question: &str, answer: &Answer, output: &mut Output) -> Result<Value> {
    output.check()?;
    output.line("")?;
    if !answer.complete {
        output.remark("cut there: --max-new-tokens allows a longer answer");
    }
    Ok(json!({
        "question": question,
        "answer": answer.text,
        "complete": answer.complete,
        "tokens": answer.ids.len(),
        "prompt_tokens": answer.prompt_tokens,
    }))
}

/// Returns the next line that is not blank.
fn next_question(lines: &mut impl BufRead) -> Result<Option<String>> {
    loop {
        if io::stdin().is_terminal() {
            let mut stderr = io::stderr();
            let _ = write!(stderr, "> ").and_then(|()| stderr.flush());
        }
        let mut line = String::new();
        let read = interrupt::waiting(|| lines.read_line(&mut line))
            .context("standard input is no text; write questions in UTF-8, one a line")?;
        if read == 0 {
            if io::stdin().is_terminal() {
                let _ = writeln!(io::stderr());
            }
            return Ok(None);
        }
        let line = line.trim();
        if !line.is_empty() {
            return Ok(Some(line.to_owned()));
        }
    }
}
