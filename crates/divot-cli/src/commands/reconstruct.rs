//! `divot reconstruct`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use divot::data::transform::resize;
use divot::data::{Frame, Video, metrics};

use crate::files::ClipFiles;
use crate::models::{decode, is_guided};
use crate::options::{Diffusion, Model, Seed, Weights};
use crate::output::Output;

/// Turn two seconds of video into tokens and back
///
/// Writes 16 frames at 8 fps and, beside them, a contact sheet: input frames over reconstructed ones.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot reconstruct --input clip.mp4 --output out.mp4"
)]
pub struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write the reconstruction; the contact sheet goes beside it as .png
    #[arg(long, value_name = "FILE", default_value = "out.mp4")]
    output: PathBuf,
    /// Where in the video the clip starts, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    start: f64,
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
        let video = Video::open(&self.input)?;
        let sampling = self.diffusion.sampling(output)?;
        let models = self.model.open(&self.weights, output)?;
        models.tokenizer_config()?;
        models.detokenizer_config(false)?;

        let tokenizer = models.tokenizer(output)?;
        let (clip, tokens, unconditional) = output.timed("tokenizer", |output| {
            let clip = tokenizer.read_clip(&video, self.start)?;
            let tokens = tokenizer.tokenize(clip.sparse(&models.device));
            let unconditional = match is_guided(&sampling) {
                true => Some(models.unconditional_of(&tokenizer, output)?),
                false => None,
            };
            Ok((clip, tokens, unconditional))
        })?;
        drop(tokenizer);
        let [_, count, width] = tokens.dims();

        let detokenizer = models.detokenizer(false, output)?;
        let unconditional = unconditional.as_ref();
        let seed = self.seed.seed;
        let frames = decode(&detokenizer, tokens, unconditional, &sampling, seed, output)?;

        let originals = clip
            .frames()
            .iter()
            .map(|frame| resize(frame, frames[0].width, frames[0].height))
            .collect::<Result<Vec<_>, _>>()?;
        let psnr = mean(&originals, &frames, metrics::psnr)?;
        // Frames below 11 pixels have none.
        let ssim = mean(&originals, &frames, metrics::ssim).ok();
        files.write(&frames, &[&originals, &frames])?;

        let info = video.info();
        output.set("input", self.input.to_string_lossy());
        output.set("output", files.clip.to_string_lossy());
        output.set("sheet", files.sheet.to_string_lossy());
        output.set("tokens", [count, width]);
        output.set("frames", frames.len());
        output.set("psnr", psnr);
        output.set("ssim", ssim);
        output.set("seed", seed);
        output.line(format!(
            "{} ({} frames at {:.3} fps, {}) → {count} tokens of {width} → {} and {}",
            self.input.display(),
            info.frames,
            info.fps,
            info.codec,
            files.clip.display(),
            files.sheet.display()
        ))?;
        let ssim = ssim.map_or("not defined".to_owned(), |ssim| format!("{ssim:.4}"));
        output.line(format!(
            "PSNR {psnr:.2} dB, SSIM {ssim} against the input's {} frames",
            frames.len()
        ))?;
        output.line(output.summary())
    }
}

fn mean(
    originals: &[Frame],
    frames: &[Frame],
    metric: impl Fn(&Frame, &Frame) -> divot::data::Result<f64>,
) -> Result<f64> {
    let values = originals
        .iter()
        .zip(frames)
        .map(|(original, frame)| metric(original, frame))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}
