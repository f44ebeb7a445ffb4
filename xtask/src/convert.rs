//! `cargo xtask convert-weights`

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
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
  cargo xtask convert-weights --from Divot_tokenizer.bin --from open_clip_pytorch_model.bin \
      --to models/divot --part tokenizer

PRETRAINED holds the download as it was published:
  CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin
  Divot_tokenizer_detokenizer/Divot_tokenizer.bin
  Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin
  Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin  (optional: adapted to the language model)
  dynamicrafter_256_v1/model.ckpt                           (optional: where training starts)
Each may be .bin, .safetensors, .pt, .pth or .ckpt, or a folder of shards.")]
pub struct Arguments {
    /// Folder that the released files were downloaded into; with --part also files or sharded
    /// folders, one --from for each
    #[arg(long, value_name = "PRETRAINED", required = true)]
    from: Vec<PathBuf>,
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

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

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
    let mut lacking = Vec::new();
    let mut done = Vec::new();
    let jobs = match (&arguments.part[..], &arguments.from[..]) {
        ([], [from]) => {
            let found = Job::find(from)?;
            for (target, file) in &found.lacking {
                eprintln!("no {}: {} is missing", target.name(), file.display());
            }
            lacking = found.lacking;
            found.jobs
        }
        ([], _) => bail!("several --from need a --part"),
        (parts, from) => parts
            .iter()
            .map(|part| Job::of(part.target(), from))
            .collect(),
    };
    // The first Ctrl-C stops at the next tensor and removes what was written of the part; a second
    // one stops at once.
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
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
        let report = report.with_context(|| {
            let finished = match done.is_empty() {
                true => String::new(),
                false => format!(" (finished before it: {})", done.join(", ")),
            };
            format!("{} is not converted{finished}", job.target.name())
        })?;
        done.push(job.target.name());
        println!("{report}");
    }
    ensure!(
        lacking.is_empty(),
        "the model is not complete without the parts above; add their files, or name the parts you want with --part"
    );
    Ok(())
}
