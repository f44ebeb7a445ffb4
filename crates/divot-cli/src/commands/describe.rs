//! `divot describe`

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use clap::Args;
use divot::Chat;
use divot::data::Video;
use divot::data::sampling::comprehend_indices;
use divot::language::{LlmError, Prompt, Shown};
use serde_json::{Value, json};

use crate::interrupt::{self, Stopped};
use crate::models::Models;
use crate::options::{LlmWeights, Model, Seed, Text};
use crate::output::Output;

/// Ask a language model about a video or an image
///
/// The answer goes to standard output as it comes, and nothing else does. A video is shown in clips of
/// two seconds; a file of one frame is shown as an image.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot describe --input clip.mp4
  divot describe --input clip.mp4 --question \"What is the man holding?\" --dtype q8
  divot describe --input photo.png --chat"
)]
pub struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// What to ask
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "What does this video describe?"
    )]
    question: String,
    /// After --question, read further ones from standard input, one a line, until it ends
    #[arg(long)]
    chat: bool,
    /// Clips that are shown at most; of a longer video they are spread evenly
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    clips: usize,
    /// Show the first frame as an image, of a video too
    #[arg(long)]
    image: bool,
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: LlmWeights,
    #[command(flatten)]
    text: Text,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        if self.question.trim().is_empty() {
            return Err(LlmError::Empty("question").into());
        }
        let drawing = self.text.drawing(&self.seed)?;
        let video = Video::open(&self.input)?;
        let info = video.info();
        let clips = comprehend_indices(info.frames, info.fps, self.clips)?.len();
        let shown = match self.image || info.frames == 1 {
            true => Shown::Image,
            false => Shown::Video(clips),
        };
        let models = self.model.open_llm(&self.weights, output)?;
        let part = models.check_comprehension(|text, tokens| {
            Prompt::question(text, tokens, shown, &self.question)
        })?;

        let features = self.features(&models, &video, shown, output)?;
        output.set("input", self.input.to_string_lossy());
        output.set("image", shown == Shown::Image);
        output.set("clips", features.dims()[0]);
        output.set("seed", self.seed.seed);

        let llm = models.llm(part, output)?;
        let mut chat = llm.chat(shown, Some(features), drawing);
        let mut answers = vec![ask(&mut chat, &self.question, output)?];
        if self.chat {
            let mut questions = io::stdin().lock();
            while !output.is_closed()
                && let Some(question) = next_question(&mut questions)?
            {
                answers.push(ask(&mut chat, &question, output)?);
            }
        }
        output.set("answers", answers);
        output.remark(output.summary());
        Ok(())
    }

    /// Tokens of what is shown, `[clips, 64, 256]`.
    fn features(
        &self,
        models: &Models,
        video: &Video,
        shown: Shown,
        output: &mut Output,
    ) -> Result<Tensor<3>> {
        let tokenizer = models.tokenizer(output)?;
        output.timed("tokenizer", |output| {
            if shown == Shown::Image {
                return Ok(tokenizer.tokenize_image(video)?);
            }
            let bar = output.bar("clips", "{pos}/{len}");
            let tokens = tokenizer.tokenize_video(video, self.clips, |done, total| {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                interrupt::flow()
            });
            bar.finish_and_clear();
            Ok(tokens?.ok_or(Stopped)?)
        })
    }
}

/// Asks and prints the answer, a line of its own.
fn ask(chat: &mut Chat<'_>, question: &str, output: &mut Output) -> Result<Value> {
    let answer = output.timed("language model", |output| {
        Ok(chat.ask(question, |text| match output.stream(text) {
            ControlFlow::Continue(()) if output.is_closed() => ControlFlow::Break(()),
            flow => flow,
        })?)
    })?;
    output.check()?;
    output.line("")?;
    if !answer.complete && !output.is_closed() {
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

/// The next line that is not blank.
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
