//! A clip through the Divot tokenizer and back: `cargo run --release --example reconstruct`.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use clap::{Parser, ValueEnum};
use divot::checkpoint::Checkpoint;
use divot::data::transform::resize;
use divot::data::{Frame, Video, check_writable, contact_sheet, metrics, write_mp4, write_png};
use divot::{Reconstructor, SamplingConfig, device, peak_memory};
use indicatif::{ProgressBar, ProgressStyle};

/// Turns two seconds of video into 64 tokens and the tokens back into video.
///
/// Writes 16 frames at 8 fps and, beside them, a contact sheet: input frames over reconstructed
/// ones.
#[derive(Parser)]
#[command(after_help = "\
Example:
  cargo run --release --example reconstruct -- --model models/divot --input clip.mp4 --output out.mp4")]
struct Arguments {
    /// Folder that `cargo xtask convert-weights` wrote
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Video (MP4, GIF, WebP), image, or folder of images
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where to write the reconstruction; the contact sheet goes beside it as .png
    #[arg(long, value_name = "FILE", default_value = "out.mp4")]
    output: PathBuf,
    /// DDIM steps, 1 to 1000; one that does not divide 1000 is made one near it
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Strength of classifier-free guidance; 1 is none and takes half the time
    #[arg(long, default_value_t = 7.5, allow_negative_numbers = true)]
    guidance: f64,
    /// Share of fresh noise in each step, 0 to 1
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    eta: f64,
    /// Seed of the noise, which is the same on every device
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
    /// Element type of the weights in memory; auto is f32 on the CPU, as stored elsewhere
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Dtype,
    /// Where in the video the clip starts, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    start: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Auto,
    F32,
    F16,
    Bf16,
}

/// Ctrl-C was pressed before anything was written.
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
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

fn run(arguments: &Arguments) -> Result<()> {
    let Some(model) = &arguments.model else {
        bail!(
            "no trained model ships with the project yet; download the released checkpoints, run `cargo xtask convert-weights --from pretrained --to models/divot`, and add `--model models/divot --input FILE`"
        );
    };
    let Some(input) = &arguments.input else {
        bail!("no input; name a video, an image or a folder of images with --input");
    };
    // The first Ctrl-C stops at the next step, with nothing half-written; a second one at once.
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;

    // Whatever can go wrong quickly goes wrong before the weights are read.
    let is_mp4 = |extension: &std::ffi::OsStr| extension.eq_ignore_ascii_case("mp4");
    if !arguments.output.extension().is_some_and(is_mp4) {
        bail!(
            "{}: what is written is an MP4; choose an output that ends in .mp4",
            arguments.output.display()
        );
    }
    let sheet_path = arguments.output.with_extension("png");
    for path in [&arguments.output, &sheet_path] {
        if let (Ok(path), Ok(input)) = (path.canonicalize(), input.canonicalize())
            && path == input
        {
            bail!(
                "{}: would be overwritten by the output; choose another --output",
                input.display()
            );
        }
    }
    check_writable(&arguments.output)?;
    check_writable(&sheet_path)?;
    let video = Video::open(input)?;
    let sampling = SamplingConfig::new()
        .with_steps(arguments.steps)
        .with_guidance_scale(arguments.guidance)
        .with_eta(arguments.eta);
    let steps = sampling.check()?;
    if steps != arguments.steps {
        eprintln!(
            "{steps} steps are taken: uniform spacing gives that many for {}",
            arguments.steps
        );
    }
    let device = device::select(&arguments.device)?;

    let started = Instant::now();
    let model = load(model, arguments.dtype, &device)?;
    check_interrupted()?;
    let loaded = started.elapsed();

    let clip = model.read_clip(&video, arguments.start)?;
    let tokens = model.tokenizer.tokenize(clip.sparse(&device));
    let [_, count, width] = tokens.dims();

    let bar = progress_bar("steps", "{pos}/{len}");
    let started = Instant::now();
    let frames = model
        .detokenize(tokens, &sampling, arguments.seed, |step| {
            bar.set_length(step.total as u64);
            bar.set_position(step.done as u64);
            match check_interrupted() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?
        .ok_or(Stopped)?;
    bar.finish_and_clear();
    check_interrupted()?;
    let sampled = started.elapsed();

    let originals = same_size(clip.frames(), &frames[0])?;
    let psnr = mean(&originals, &frames, metrics::psnr)?;
    // Frames below 11 pixels have none.
    let ssim = match mean(&originals, &frames, metrics::ssim) {
        Ok(ssim) => format!("{ssim:.4}"),
        Err(_) => "not defined".to_owned(),
    };
    write_mp4(&arguments.output, &frames, divot::data::sampling::CLIP_FPS)?;
    write_png(&sheet_path, &sheet(&originals, &frames)?)?;

    println!(
        "{} ({} frames at {:.3} fps, {}) → {count} tokens of {width} → {} and {}",
        input.display(),
        video.info().frames,
        video.info().fps,
        video.info().codec,
        arguments.output.display(),
        sheet_path.display()
    );
    println!(
        "PSNR {psnr:.2} dB, SSIM {ssim} against the input's {} frames",
        frames.len()
    );
    let memory = match peak_memory() {
        Some(bytes) => format!(
            ", peak memory {:.2} GiB",
            bytes as f64 / (1u64 << 30) as f64
        ),
        None => String::new(),
    };
    println!(
        "weights {:.1} s, reconstruction {:.1} s on {}{memory}",
        loaded.as_secs_f64(),
        sampled.as_secs_f64(),
        device::name(&device)
    );
    Ok(())
}

fn load(folder: &Path, dtype: Dtype, device: &burn::tensor::Device) -> Result<Reconstructor> {
    let bar = progress_bar("weights", "{bytes}/{total_bytes}");
    let mut checkpoint = Checkpoint::new(folder, device).with_progress(|progress| {
        bar.set_message(progress.part.name());
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    checkpoint = match dtype {
        Dtype::Auto => checkpoint,
        Dtype::F32 => checkpoint.with_dtype(FloatDType::F32),
        Dtype::F16 => checkpoint.with_dtype(FloatDType::F16),
        Dtype::Bf16 => checkpoint.with_dtype(FloatDType::BF16),
    };
    let model = Reconstructor::load(&mut checkpoint);
    bar.finish_and_clear();
    Ok(model?)
}

/// Silent where there is no terminal to draw on.
fn progress_bar(message: &'static str, position: &str) -> ProgressBar {
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

fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(Stopped.into());
    }
    Ok(())
}

/// The input's frames as large as the reconstructed ones.
fn same_size(frames: &[Frame], like: &Frame) -> Result<Vec<Frame>> {
    Ok(frames
        .iter()
        .map(|frame| resize(frame, like.width, like.height))
        .collect::<Result<_, _>>()?)
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

/// Input frames over reconstructed ones, each 128 pixels wide.
fn sheet(originals: &[Frame], frames: &[Frame]) -> Result<Frame> {
    let row = |frames: &[Frame]| {
        frames
            .iter()
            .map(|frame| resize(frame, 128, (128 * frame.height / frame.width).max(1)))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(contact_sheet(&[&row(originals)?, &row(frames)?], 4)?)
}
