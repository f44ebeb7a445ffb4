//! What the examples share: errors on one line, Ctrl-C, progress, loading.

#![allow(dead_code, reason = "not every example needs all of it")]

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use burn::tensor::{Device, FloatDType, Tensor};
use clap::ValueEnum;
use divot::checkpoint::Checkpoint;
use divot::data::transform::resize;
use divot::data::{Frame, contact_sheet};
use divot::language::Quantization;
use divot::{Detokenizer, SamplingConfig, Tokenizer};
use indicatif::{ProgressBar, ProgressStyle};

/// Memory of a tensor serves the next one.
#[global_allocator]
static ALLOCATOR: divot::Recycler = divot::Recycler;

/// Element types of networks among which is a language model.
#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
    Auto,
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
}

impl Dtype {
    /// The type that weights are loaded in, if it is a certain one.
    pub fn float(self) -> Option<FloatDType> {
        match self {
            Self::F32 => Some(FloatDType::F32),
            Self::F16 => Some(FloatDType::F16),
            Self::Bf16 => Some(FloatDType::BF16),
            Self::Auto | Self::Q8 | Self::Q4 => None,
        }
    }

    /// What the language model's weights are packed into, if they are.
    pub fn quantization(self) -> Option<Quantization> {
        match self {
            Self::Q8 => Some(Quantization::Q8),
            Self::Q4 => Some(Quantization::Q4),
            _ => None,
        }
    }
}

/// Ctrl-C was pressed before anything was written.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs an example; what goes wrong is one line.
pub fn main(run: impl FnOnce() -> Result<()>) -> ExitCode {
    divot::compute_on_this_thread();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Stopped>() => {
            eprintln!("stopped; nothing was written");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {}", divot::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The model's folder, or how to get one.
pub fn model(folder: &Option<PathBuf>) -> Result<&Path> {
    match folder {
        Some(folder) => Ok(folder),
        None => bail!(
            "no trained model ships with the project yet; get the released one with `cargo run --release -p divot-cli -- download`, or download it by hand and run `cargo xtask convert-weights --from pretrained --to models/divot`, and add `--model models/divot`"
        ),
    }
}

/// The first Ctrl-C stops at the next step, with nothing half-written; a second one at once.
pub fn handle_interrupts() -> Result<()> {
    Ok(ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?)
}

/// Stops if Ctrl-C was pressed.
pub fn check_interrupted() -> Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(Stopped.into()),
        false => Ok(()),
    }
}

/// The same for callbacks.
pub fn flow() -> ControlFlow<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Prints text as it comes, as long as somebody reads it.
pub fn say(text: &str) -> ControlFlow<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => flow(),
        Err(_) => ControlFlow::Break(()),
    }
}

/// Silent where there is no terminal to draw on.
pub fn progress_bar(message: &'static str, position: &str) -> ProgressBar {
    let template = format!("{{msg:12}} {{wide_bar}} {position}, {{eta}} left");
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(ProgressStyle::with_template(&template).expect("the template is constant"));
    bar.set_message(message);
    bar
}

/// Loads a network and shows how far it is.
pub fn load<T>(
    folder: &Path,
    device: &Device,
    dtype: Option<FloatDType>,
    load: impl FnOnce(&mut Checkpoint<'_>) -> divot::Result<T>,
) -> Result<T> {
    let bar = progress_bar("weights", "{bytes}/{total_bytes}");
    let mut checkpoint = Checkpoint::new(folder, device).with_progress(|progress| {
        bar.set_message(progress.name.to_owned());
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        flow()
    });
    if let Some(dtype) = dtype {
        checkpoint = checkpoint.with_dtype(dtype);
    }
    let loaded = load(&mut checkpoint);
    bar.finish_and_clear();
    check_interrupted()?;
    Ok(loaded?)
}

/// Tokens of a grey clip: stored with the tokenizer, or else computed with it.
pub fn unconditional(
    folder: &Path,
    device: &Device,
    dtype: Option<FloatDType>,
) -> Result<Tensor<3>> {
    if let Ok(Some(tokens)) = Checkpoint::new(folder, device).unconditional() {
        return Ok(tokens);
    }
    let (tokenizer, _) = load(folder, device, dtype, Tokenizer::load)?;
    Ok(tokenizer.unconditional())
}

/// Turns the tokens of one clip into frames and shows how far it is.
pub fn decode(
    detokenizer: &Detokenizer,
    tokens: Tensor<3>,
    unconditional: &Tensor<3>,
    seed: u64,
) -> Result<Vec<Frame>> {
    let bar = progress_bar("steps", "{pos}/{len}");
    let (sampling, unconditional) = (SamplingConfig::new(), Some(unconditional.clone()));
    let frames = detokenizer.frames(tokens, unconditional, &sampling, seed, |step| {
        bar.set_length(step.total as u64);
        bar.set_position(step.done as u64);
        flow()
    });
    bar.finish_and_clear();
    Ok(frames?.ok_or(Stopped)?)
}

/// Rows of frames, each 128 pixels wide.
pub fn sheet(rows: &[&[Frame]]) -> Result<Frame> {
    let small = |frame: &Frame| resize(frame, 128, (128 * frame.height / frame.width).max(1));
    let rows = rows
        .iter()
        .map(|row| row.iter().map(small).collect::<Result<Vec<_>, _>>())
        .collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&[Frame]> = rows.iter().map(Vec::as_slice).collect();
    Ok(contact_sheet(&rows, 4)?)
}
