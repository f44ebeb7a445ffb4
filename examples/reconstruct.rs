//! A clip through the Divot tokenizer and back: `cargo run --release --example reconstruct`.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use clap::{Parser, ValueEnum};
use common::Stopped;
use divot::data::transform::resize;
use divot::data::{Frame, Video, check_writable, metrics, write_mp4, write_png};
use divot::unet::Solver;
use divot::{Reconstructor, SamplingConfig, device, peak_memory};

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
    /// How each step is made; the last two need fewer steps and draw no fresh noise
    #[arg(long, value_enum, default_value = "ddim")]
    sampler: Sampler,
    /// Sampling steps, 1 to 1000 [default: 50 of ddim, 20 of the others]; of ddim, a number that does
    /// not divide 1000 is made one near it
    #[arg(long)]
    steps: Option<usize>,
    /// Strength of classifier-free guidance; 1 is none and takes half the time
    #[arg(long, default_value_t = 7.5, allow_negative_numbers = true)]
    guidance: f64,
    /// Share of fresh noise in each step of ddim, 0 to 1 [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    eta: Option<f64>,
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

#[derive(Clone, Copy, ValueEnum)]
enum Sampler {
    Ddim,
    #[value(name = "dpm-solver++")]
    DpmSolverPlusPlus,
    #[value(name = "unipc")]
    UniPc,
}

fn main() -> ExitCode {
    common::main(|| run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let model = common::model(&arguments.model)?;
    let Some(input) = &arguments.input else {
        bail!("no input; name a video, an image or a folder of images with --input");
    };
    common::handle_interrupts()?;

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
    let (solver, steps) = match (arguments.sampler, arguments.eta) {
        (Sampler::Ddim, eta) => (
            Solver::Ddim {
                eta: eta.unwrap_or(1.0),
            },
            50,
        ),
        (_, Some(_)) => {
            bail!("--eta is for --sampler ddim; the other samplers draw no fresh noise")
        }
        (Sampler::DpmSolverPlusPlus, None) => (Solver::DpmSolverPlusPlus, 20),
        (Sampler::UniPc, None) => (Solver::UniPc, 20),
    };
    let asked = arguments.steps.unwrap_or(steps);
    let sampling = SamplingConfig::new()
        .with_steps(asked)
        .with_solver(solver)
        .with_guidance_scale(arguments.guidance);
    let steps = sampling.check()?;
    if steps != asked {
        eprintln!("{steps} steps are taken: uniform spacing gives that many for {asked}");
    }
    let device = device::select(&arguments.device)?;

    let started = Instant::now();
    let dtype = match arguments.dtype {
        Dtype::Auto => None,
        Dtype::F32 => Some(FloatDType::F32),
        Dtype::F16 => Some(FloatDType::F16),
        Dtype::Bf16 => Some(FloatDType::BF16),
    };
    let model = common::load(model, &device, dtype, Reconstructor::load)?;
    let loaded = started.elapsed();

    let clip = model.read_clip(&video, arguments.start)?;
    let tokens = model.tokenizer.tokenize(clip.sparse(&device));
    let [_, count, width] = tokens.dims();

    let bar = common::progress_bar("steps", "{pos}/{len}");
    let started = Instant::now();
    let frames = model
        .detokenize(tokens, &sampling, arguments.seed, |step| {
            bar.set_length(step.total as u64);
            bar.set_position(step.done as u64);
            common::flow()
        })?
        .ok_or(Stopped)?;
    bar.finish_and_clear();
    common::check_interrupted()?;
    let sampled = started.elapsed();

    let originals = same_size(clip.frames(), &frames[0])?;
    let psnr = mean(&originals, &frames, metrics::psnr)?;
    // Frames below 11 pixels have none.
    let ssim = match mean(&originals, &frames, metrics::ssim) {
        Ok(ssim) => format!("{ssim:.4}"),
        Err(_) => "not defined".to_owned(),
    };
    write_mp4(&arguments.output, &frames, divot::data::sampling::CLIP_FPS)?;
    write_png(&sheet_path, &common::sheet(&[&originals, &frames])?)?;

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
