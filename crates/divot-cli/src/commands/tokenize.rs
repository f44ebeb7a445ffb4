//! `divot tokenize`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use divot::data::{Video, check_output};
use divot::pipeline::Clips;

use crate::interrupt;
use crate::options::{self, TokenizeOptions};
use crate::output::{self, Output};

/// Tokenize a video into a file of tokens
///
/// The file is in the safetensors format. It contains `tokens`, [clips, tokens, width], and `unconditional`,
/// [1, tokens, width], which `divot detokenize` needs for guidance. A clip is two seconds. With the released
/// model, it has 64 tokens of width 256.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot tokenize --input clip.mp4 --output clip.safetensors
  divot tokenize --input film.mp4 --start 95.5 --output scene.safetensors"
)]
pub struct Arguments {
    /// Video (MP4, GIF, WebP), image, or folder of images [default: a sample of the model, if it has any]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// File of tokens to write
    #[arg(long, value_name = "FILE", default_value = "tokens.safetensors")]
    output: PathBuf,
    /// Maximum number of clips; those of a longer video are spread evenly
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 20,
        conflicts_with = "start"
    )]
    clips: usize,
    /// Tokenize one clip that starts at this second
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    start: Option<f64>,
    #[command(flatten)]
    options: TokenizeOptions,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        check_extension(&self.output)?;
        let pipeline = self.options.pipeline(output)?;
        let input = options::input(self.input.clone(), &pipeline, output)?;
        check_output(&self.output, &[input.as_path(), self.options.folder()])?;
        let video = Video::open(&input)?;
        let clips = match self.start {
            Some(start) => Clips::From(start),
            None => Clips::AtMost(self.clips),
        };
        // Fail before the weights are loaded if the video has no such clips.
        pipeline.check_clips(&video, clips)?;
        if is_foreign(&self.output) {
            bail!(
                "{}: holds something other than tokens; choose another --output",
                self.output.display()
            );
        }
        let tokens = pipeline.tokenize(&video, clips, &mut |event| output.observe(event))?;
        interrupt::check()?;
        tokens.save(&self.output)?;

        let [clips, count, width] = tokens.tokens.dims();
        output.set("input", input.to_string_lossy());
        output.set("output", self.output.to_string_lossy());
        output.set("clips", clips);
        output.set("tokens", [count, width]);
        output.line(format!(
            "{} → {} of {count} tokens of {width} → {}",
            output::video(&video),
            output::plural(clips, "clip"),
            self.output.display()
        ))?;
        output.line(output.summary())
    }
}

fn check_extension(path: &Path) -> Result<()> {
    let extension = path.extension();
    if !extension.is_some_and(|found| found.eq_ignore_ascii_case("safetensors")) {
        bail!(
            "{}: what is written is safetensors; choose an output that ends in .safetensors",
            path.display()
        );
    }
    Ok(())
}

/// Returns whether a file exists that holds no tokens. Files of weights have the same extension.
fn is_foreign(path: &Path) -> bool {
    path.exists()
        && !divot::weights::Source::open(path).is_ok_and(|file| file.get("tokens").is_some())
}
