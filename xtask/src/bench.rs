//! `cargo xtask bench`: how long the networks take at full size, and how much memory.

mod language;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::{Device, FloatDType, Tensor};
use clap::{Args, ValueEnum};
use divot::{DetokenizerConfig, TokenizerConfig, peak_memory};

/// Arguments of `bench`.
#[derive(Args)]
#[command(after_help = "\
Example: cargo xtask bench --only unet --repeat 3

Weights are random, sizes are the released ones but for the language model, which takes --model. Peak memory is the process's: measure one part at a
time with --only.")]
pub struct Arguments {
    /// What to run; everything if left out
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Work>,
    /// Runs of each, after one that is not counted
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder that `convert-weights` wrote, for `llm`; without it a random decoder of 0.2 B is timed
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Text to measure `--model`'s perplexity on
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// What the weights of `--model` are loaded in
    #[arg(long, value_enum, default_value = "q8")]
    dtype: language::Dtype,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Work {
    /// Five frames of 256x256 to 64 tokens
    Tokenizer,
    /// One forward of 1x4x16x32x32 with 125 context tokens
    Unet,
    /// 16 frames of 256x256 to latents
    VaeEncode,
    /// Latents to 16 frames of 256x256
    VaeDecode,
    /// The language model: a prompt of 256 tokens, and text token by token
    Llm,
    /// A token of the language model at position 1,400 against one at 200
    LlmCache,
    /// How well the language model of --model foretells --text: lower is better
    Perplexity,
}

/// Runs and prints one line each.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.repeat > 0,
        "--repeat 0 measures nothing; use at least 1"
    );
    let device = divot::device::select(&arguments.device)?;
    println!(
        "{}; networks in float32, median (minimum to maximum) of {}",
        divot::device::name(&device),
        arguments.repeat
    );
    for work in Work::value_variants() {
        if arguments.only.is_empty() || arguments.only.contains(work) {
            measure(*work, arguments, &device)?;
        }
    }
    Ok(())
}

fn measure(work: Work, arguments: &Arguments, device: &Device) -> Result<()> {
    let tokenizer = TokenizerConfig::divot();
    let detokenizer = DetokenizerConfig::divot();
    let zeros5 = |shape: [usize; 5]| Tensor::<5>::zeros(shape, device);
    let name = work
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    match work {
        Work::Tokenizer => {
            let module = tokenizer.init(device);
            time(&name, arguments, || {
                module.tokenize(zeros5([1, 5, 3, 256, 256])).sum()
            })
        }
        Work::Unet => {
            let module = detokenizer.unet.init(device);
            time(&name, arguments, || {
                let number = Tensor::<1>::full([1], 500.0, device);
                let context = Tensor::<3>::ones([1, 125, 1024], device);
                let latents = zeros5([1, 4, 16, 32, 32]);
                module.forward(latents, number, context, None).sum()
            })
        }
        Work::VaeEncode => {
            let module = detokenizer.vae.init(device);
            time(&name, arguments, || {
                module.encode_clip(zeros5([1, 3, 16, 256, 256]), None).sum()
            })
        }
        Work::VaeDecode => {
            let module = detokenizer.vae.init(device);
            time(&name, arguments, || {
                module.decode_clip(zeros5([1, 4, 16, 32, 32])).sum()
            })
        }
        Work::Llm => language::tokens(&name, arguments, device),
        Work::LlmCache => language::cache(&name, device),
        Work::Perplexity => language::perplexity(&name, arguments, device),
    }
}

/// Times `work`, which ends in a number that is read back, so that all of it has happened.
fn time(name: &str, arguments: &Arguments, work: impl Fn() -> Tensor<1>) -> Result<()> {
    let once = || -> Result<f64> {
        let started = Instant::now();
        let sum = work().cast(FloatDType::F32).into_scalar::<f32>();
        ensure!(!sum.is_nan(), "{name} gives NaN");
        Ok(started.elapsed().as_secs_f64())
    };
    // Initialises the weights, and on a GPU compiles the kernels.
    once()?;
    let mut seconds = (0..arguments.repeat)
        .map(|_| once())
        .collect::<Result<Vec<_>>>()?;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let memory = match peak_memory() {
        Some(bytes) => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
        None => "unknown".to_owned(),
    };
    let (minimum, maximum) = (seconds[0], seconds[seconds.len() - 1]);
    println!("{name:12} {median:8.2} s ({minimum:.2} to {maximum:.2}), peak memory {memory}");
    Ok(())
}
