//! Options that several commands share.

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use clap::{Args, ValueEnum};
use divot::gmm::SampleOptions;
use divot::language::{Quantization, TextSampling};
use divot::unet::{Solver, Spacing};
use divot::{GenerationConfig, SamplingConfig};

use crate::models::Models;
use crate::output::Output;

/// Where the model is and where it runs.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct Model {
    /// Folder of the model, as `divot download` and `divot convert` write it
    #[arg(long, value_name = "DIR", default_value = "models/divot")]
    pub model: PathBuf,
    /// auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Element type of networks that are no language model.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct Weights {
    /// Element type of the weights in memory; auto is f32 on the CPU, as stored elsewhere
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Dtype,
}

/// Element type of networks among which is a language model.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct LlmWeights {
    /// Element type of the weights in memory; auto is f32 on the CPU, as stored elsewhere.
    /// q8 and q4 keep 8 or 4 bits of the language model's weights, for less memory
    #[arg(verbatim_doc_comment, long, value_enum, default_value = "auto")]
    dtype: LlmDtype,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Auto,
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum LlmDtype {
    Auto,
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
}

impl Model {
    /// Finds the folder and the device.
    pub fn open(&self, weights: &Weights, output: &mut Output) -> Result<Models> {
        let dtype = match weights.dtype {
            Dtype::Auto => None,
            Dtype::F32 => Some(FloatDType::F32),
            Dtype::F16 => Some(FloatDType::F16),
            Dtype::Bf16 => Some(FloatDType::BF16),
        };
        Models::open(&self.model, &self.device, dtype, None, output)
    }

    /// The same for commands with a language model.
    pub fn open_llm(&self, weights: &LlmWeights, output: &mut Output) -> Result<Models> {
        let (dtype, quantization) = match weights.dtype {
            LlmDtype::Auto => (None, None),
            LlmDtype::F32 => (Some(FloatDType::F32), None),
            LlmDtype::F16 => (Some(FloatDType::F16), None),
            LlmDtype::Bf16 => (Some(FloatDType::BF16), None),
            LlmDtype::Q8 => (None, Some(Quantization::Q8)),
            LlmDtype::Q4 => (None, Some(Quantization::Q4)),
        };
        Models::open(&self.model, &self.device, dtype, quantization, output)
    }
}

/// Where random numbers start.
#[derive(Args)]
pub struct Seed {
    /// Seed of everything that is drawn; the same gives the same on every run
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

/// How tokens become video.
#[derive(Args)]
#[command(next_help_heading = "Video sampling")]
pub struct Diffusion {
    /// How each step is made; the last two need fewer steps and draw no fresh noise
    #[arg(long, value_enum, default_value = "ddim")]
    sampler: Sampler,
    /// Sampling steps, 1 to 1000 [default: 50 of ddim, 20 of the others]; where spacing is uniform, a
    /// number that does not divide 1000 is made one near it
    #[arg(long)]
    steps: Option<usize>,
    /// Which timesteps are visited [default: uniform with ddim, quadratic with the others]; all but
    /// uniform start at pure noise
    #[arg(long, value_enum)]
    spacing: Option<Timesteps>,
    /// Strength of classifier-free guidance; 1 is none and takes half the time
    #[arg(long, default_value_t = 7.5, allow_negative_numbers = true)]
    guidance: f64,
    /// Share of fresh noise in each step of ddim, 0 to 1 [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    eta: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sampler {
    Ddim,
    #[value(name = "dpm-solver++")]
    DpmSolverPlusPlus,
    #[value(name = "unipc")]
    UniPc,
}

#[derive(Clone, Copy, ValueEnum)]
enum Timesteps {
    Uniform,
    Trailing,
    Quadratic,
}

impl Diffusion {
    /// The options, checked.
    pub fn sampling(&self, output: &mut Output) -> Result<SamplingConfig> {
        let (solver, steps) = match (self.sampler, self.eta) {
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
        let spacing = self.spacing.map(|spacing| match spacing {
            Timesteps::Uniform => Spacing::Uniform,
            Timesteps::Trailing => Spacing::UniformTrailing,
            Timesteps::Quadratic => Spacing::QuadraticTrailing,
        });
        let asked = self.steps.unwrap_or(steps);
        let sampling = SamplingConfig::new()
            .with_steps(asked)
            .with_solver(solver)
            .with_spacing(spacing)
            .with_guidance_scale(self.guidance);
        let steps = sampling.check()?;
        if steps != asked {
            output.note(format!(
                "{steps} steps are taken: uniform spacing gives that many for {asked}"
            ));
        }
        output.set("steps", steps);
        Ok(sampling)
    }
}

/// How text is generated.
#[derive(Args)]
#[command(next_help_heading = "Text sampling")]
pub struct Text {
    /// Tokens of an answer at most
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    max_new_tokens: usize,
    /// Always take the likeliest token: the same as --temperature 0
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// How freely tokens are drawn; 0 takes the likeliest
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true)]
    top_p: f64,
    /// Draw from that many of the likeliest tokens; 0 is all
    #[arg(long, default_value_t = 50)]
    top_k: usize,
    /// Beams of a beam search, which draws nothing and prints its text at the end; 1 is none
    #[arg(long, default_value_t = 1)]
    beams: usize,
}

impl Text {
    /// The options, checked, for a command that draws no features.
    pub fn drawing(&self, seed: &Seed) -> Result<GenerationConfig> {
        self.drawing_with(SampleOptions::new(), seed)
    }

    fn drawing_with(&self, features: SampleOptions, seed: &Seed) -> Result<GenerationConfig> {
        let drawing = GenerationConfig {
            text: TextSampling::new()
                .with_max_new_tokens(self.max_new_tokens)
                .with_temperature(if self.greedy { 0.0 } else { self.temperature })
                .with_top_p(self.top_p)
                .with_top_k(self.top_k)
                .with_beams(self.beams),
            features,
            seed: seed.seed,
        };
        drawing.check()?;
        Ok(drawing)
    }
}

/// How video tokens are drawn.
#[derive(Args)]
#[command(next_help_heading = "Video sampling")]
pub struct Features {
    /// What the variances of drawn video tokens are multiplied by; 0 draws no variety
    #[arg(long, default_value_t = 0.1, allow_negative_numbers = true)]
    var_scale: f64,
}

impl Features {
    /// The options, with those of text, checked.
    pub fn drawing(&self, text: &Text, seed: &Seed) -> Result<GenerationConfig> {
        text.drawing_with(SampleOptions::new().with_var_scale(self.var_scale), seed)
    }
}
