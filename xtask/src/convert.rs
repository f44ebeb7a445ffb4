//! `cargo xtask convert-weights`

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use clap::{Args, ValueEnum};
use divot::convert::{Job, Progress, ReleasedConfig, Target, convert};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `convert-weights`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask convert-weights --from pretrained --to models/divot --dtype f16
  cargo xtask convert-weights --from model.ckpt --to models/start --part dynamicrafter

PRETRAINED holds the download as it was published:
  CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin
  Divot_tokenizer_detokenizer/Divot_tokenizer.bin
  Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin
  Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin  (optional)")]
pub struct Arguments {
    /// Folder that the released files were downloaded into, or one file with --part
    #[arg(long, value_name = "PRETRAINED")]
    from: PathBuf,
    /// Folder to write; each part becomes a folder in it
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Element type of the converted weights
    #[arg(long, value_enum, default_value = "f16")]
    dtype: Dtype,
    /// Parts to convert; all that are there if left out
    #[arg(long, value_enum, value_name = "PART")]
    part: Vec<PartName>,
    /// JSON file with the model's sizes; the released model's if left out
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum PartName {
    Tokenizer,
    Detokenizer,
    DetokenizerAdapted,
    Clip,
    Dynamicrafter,
}

impl PartName {
    fn target(self) -> Target {
        match self {
            Self::Tokenizer => Target::Tokenizer,
            Self::Detokenizer => Target::Detokenizer,
            Self::DetokenizerAdapted => Target::AdaptedDetokenizer,
            Self::Clip => Target::Clip,
            Self::Dynamicrafter => Target::DynamiCrafter,
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Converts what was asked for and prints a report.
pub fn run(arguments: &Arguments) -> Result<()> {
    let sizes = match &arguments.config {
        Some(path) => ReleasedConfig::read(path)?,
        None => ReleasedConfig::divot(),
    };
    let dtype = match arguments.dtype {
        Dtype::F32 => FloatDType::F32,
        Dtype::F16 => FloatDType::F16,
        Dtype::Bf16 => FloatDType::BF16,
    };
    let jobs = match &arguments.part[..] {
        [] => Job::find(&arguments.from)?,
        [part] => vec![Job::of(part.target(), &arguments.from)],
        _ if arguments.from.is_file() => bail!(
            "{}: one file is one part; give --part once",
            arguments.from.display()
        ),
        parts => parts
            .iter()
            .map(|part| Job::of(part.target(), &arguments.from))
            .collect(),
    };
    // A conversion that is stopped at a tensor removes what it wrote so far.
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))?;
    for job in jobs {
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{msg:20} {wide_bar} {pos}/{len} tensors, {eta} left")
                .expect("the template is constant"),
        );
        bar.set_message(job.target.name());
        let report = convert(&job, &sizes, &arguments.to, dtype, |progress: Progress| {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
            match INTERRUPTED.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        bar.finish_and_clear();
        println!("{}", report?);
    }
    Ok(())
}
