//! `divot reconstruct`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use divot::data::Video;

use crate::options::{self, ClipOutput, DecodeOptions};
use crate::output::{self, Output};

/// Tokenize two seconds of video and decode the tokens
///
/// Writes 16 frames at 8 fps and a contact sheet beside them: input frames above reconstructed ones.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot reconstruct
  divot reconstruct --input clip.mp4 --output out.mp4"
)]
pub struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images [default: a sample of the model, if it has any]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    #[command(flatten)]
    output: ClipOutput,
    /// Start of the clip in the video, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    start: f64,
    #[command(flatten)]
    options: DecodeOptions,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let pipeline = self.options.pipeline(output)?;
        let input = options::input(self.input.clone(), &pipeline, output)?;
        let files = self.output.files(&[&input, self.options.folder()])?;
        let video = Video::open(&input)?;
        let decoding = self.options.decoding(&pipeline, output)?;
        let made = pipeline.reconstruct(&video, self.start, &decoding, &mut |event| {
            output.observe(event)
        })?;
        let originals = made.originals()?;
        let fidelity = made.fidelity(&originals)?;
        files.write(&made.frames, &[&originals, &made.frames])?;

        let [_, count, width] = made.tokens.dims();
        output.set("input", input.to_string_lossy());
        output.set("output", files.clip.to_string_lossy());
        output.set("sheet", files.sheet.to_string_lossy());
        output.set("tokens", [count, width]);
        output.set("frames", made.frames.len());
        output.set("psnr", fidelity.psnr);
        output.set("ssim", fidelity.ssim);
        output.set("seed", self.options.seed());
        output.line(format!(
            "{} → {count} tokens of {width} → {} and {}",
            output::video(&video),
            files.clip.display(),
            files.sheet.display()
        ))?;
        output.line(format!(
            "{fidelity} against the input's {}",
            output::plural(made.frames.len(), "frame")
        ))?;
        output.line(output.summary())
    }
}
