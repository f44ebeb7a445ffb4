//! `divot tokenize`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use divot::data::Video;
use divot::data::sampling::{comprehend_indices, reconstruct_indices_from};
use divot::tokens::VideoTokens;

use crate::files::check_output;
use crate::interrupt::{self, Stopped};
use crate::options::{Model, Weights};
use crate::output::{self, Output};

/// Turn a video into a file of tokens
///
/// The file is safetensors with `tokens`, [clips, 64, 256], and `unconditional`, [1, 64, 256], which
/// `divot detokenize` needs for guidance. A clip is two seconds.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot tokenize --input clip.mp4 --output clip.safetensors
  divot tokenize --input film.mp4 --start 95.5 --output scene.safetensors"
)]
pub struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write the tokens
    #[arg(long, value_name = "FILE", default_value = "tokens.safetensors")]
    output: PathBuf,
    /// Clips at most; of a longer video they are spread evenly
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 20,
        conflicts_with = "start"
    )]
    clips: usize,
    /// One clip, that starts at this second
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    start: Option<f64>,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: Weights,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let inputs = [self.input.as_path(), &self.model.model];
        check_output(&self.output, "safetensors", "safetensors", &inputs)?;
        let video = Video::open(&self.input)?;
        let info = video.info();
        // Both only to find out whether there are such clips.
        match self.start {
            Some(start) => drop(reconstruct_indices_from(info.frames, info.fps, start)?),
            None => drop(comprehend_indices(info.frames, info.fps, self.clips)?),
        }
        let models = self.model.open(&self.weights, output)?;
        models.tokenizer_config()?;
        if is_foreign(&self.output) {
            bail!(
                "{}: holds something other than tokens; choose another --output",
                self.output.display()
            );
        }

        let tokenizer = models.tokenizer(output)?;
        let tokens = output.timed("tokenizer", |output| {
            let tokens = match self.start {
                Some(start) => {
                    let clip = tokenizer.read_clip(&video, start)?;
                    tokenizer.tokenize(clip.sparse(&models.device))
                }
                None => {
                    let bar = output.bar("clips", "{pos}/{len}");
                    let tokens = tokenizer.tokenize_video(&video, self.clips, |done, total| {
                        bar.set_length(total as u64);
                        bar.set_position(done as u64);
                        interrupt::flow()
                    });
                    bar.finish_and_clear();
                    tokens?.ok_or(Stopped)?
                }
            };
            Ok(VideoTokens {
                tokens,
                unconditional: Some(models.unconditional_of(&tokenizer, output)?),
            })
        })?;
        interrupt::check()?;
        tokens.save(&self.output)?;

        let [clips, count, width] = tokens.tokens.dims();
        output.set("input", self.input.to_string_lossy());
        output.set("output", self.output.to_string_lossy());
        output.set("clips", clips);
        output.set("tokens", [count, width]);
        output.line(format!(
            "{} ({} frames at {:.3} fps, {}) → {} of {count} tokens of {width} → {}",
            self.input.display(),
            info.frames,
            info.fps,
            info.codec,
            output::clips(clips),
            self.output.display()
        ))?;
        output.line(output.summary())
    }
}

/// Whether there is a file that is not of tokens: weights have the same extension.
fn is_foreign(path: &std::path::Path) -> bool {
    path.exists()
        && !divot::weights::Source::open(path).is_ok_and(|file| file.get("tokens").is_some())
}
