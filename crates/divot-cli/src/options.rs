//! Options that several commands and examples share, as groups for `clap`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use burn::tensor::Device;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use divot::data::{self, ClipFiles};
use divot::gmm::SampleOptions;
use divot::language::TextSampling;
use divot::pipeline::{Decoding, Precision};
use divot::unet::{Solver, Spacing};
use divot::{GenerationConfig, Pipeline, device};

use crate::complain;
use crate::output::Output;

/// Options of a command that decodes tokens to video.
#[derive(Args)]
pub struct DecodeOptions {
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    diffusion: Diffusion,
}

impl DecodeOptions {
    /// Returns the seed of the noise.
    pub fn seed(&self) -> u64 {
        self.seed.seed
    }

    /// Returns the folder of the model.
    pub fn folder(&self) -> &Path {
        self.model.folder()
    }

    /// Opens the model on the device.
    ///
    /// # Errors
    /// If the model or the device does not exist.
    pub fn pipeline(&self, output: &mut Output) -> Result<Pipeline> {
        self.model.open(self.weights.dtype, output)
    }

    /// Returns the options of decoding. What is not asked for is as the model has it.
    ///
    /// # Errors
    /// If an option is out of range, or the model's configuration is invalid.
    pub fn decoding(&self, pipeline: &Pipeline, output: &mut Output) -> Result<Decoding> {
        self.diffusion.decoding(&self.seed, pipeline, output)
    }
}

/// Options of a command that asks a language model.
#[derive(Args)]
pub struct AskOptions {
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: LlmWeights,
    #[command(flatten)]
    text: Text,
}

impl AskOptions {
    /// Returns the seed of the text.
    pub fn seed(&self) -> u64 {
        self.seed.seed
    }

    /// Opens the model on the device.
    ///
    /// # Errors
    /// If the model or the device does not exist.
    pub fn pipeline(&self, output: &mut Output) -> Result<Pipeline> {
        self.model.open(self.weights.dtype, output)
    }

    /// Opens the model on the device if there is one other than divot-tiny. Only the default model may be missing.
    ///
    /// # Errors
    /// If a model that was named, or the device, does not exist.
    pub fn pipeline_if_any(&self, output: &mut Output) -> Result<Option<Pipeline>> {
        match self.model.model.is_none() && !self.model.folder().exists() {
            true => Ok(None),
            false => self.pipeline(output).map(Some),
        }
    }

    /// Returns the device of the options, for work without a model.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn device(&self) -> Result<Device> {
        select(&self.model.device)
    }

    /// Returns the options of text generation.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn generation(&self) -> Result<GenerationConfig> {
        self.text.generation(SampleOptions::new(), &self.seed)
    }
}

/// Options of a command that generates video with a language model.
#[derive(Args)]
pub struct MakeOptions {
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: LlmWeights,
    #[command(flatten)]
    features: Features,
    #[command(flatten)]
    diffusion: Diffusion,
    #[command(flatten)]
    text: Text,
}

impl MakeOptions {
    /// Returns the seed of text, tokens and noise.
    pub fn seed(&self) -> u64 {
        self.seed.seed
    }

    /// Returns the folder of the model.
    pub fn folder(&self) -> &Path {
        self.model.folder()
    }

    /// Opens the model on the device.
    ///
    /// # Errors
    /// If the model or the device does not exist.
    pub fn pipeline(&self, output: &mut Output) -> Result<Pipeline> {
        self.model.open(self.weights.dtype, output)
    }

    /// Returns the options for sampling text and tokens.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn generation(&self) -> Result<GenerationConfig> {
        let features = SampleOptions::new().with_var_scale(self.features.var_scale);
        self.text.generation(features, &self.seed)
    }

    /// Returns the options of decoding. What is not asked for is as the model has it.
    ///
    /// # Errors
    /// If an option is out of range, or the model's configuration is invalid.
    pub fn decoding(&self, pipeline: &Pipeline, output: &mut Output) -> Result<Decoding> {
        self.diffusion.decoding(&self.seed, pipeline, output)
    }
}

/// Options of a command that needs only the tokenizer.
#[derive(Args)]
pub struct TokenizeOptions {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: Weights,
}

impl TokenizeOptions {
    /// Returns the folder of the model.
    pub fn folder(&self) -> &Path {
        self.model.folder()
    }

    /// Opens the model on the device.
    ///
    /// # Errors
    /// If the model or the device does not exist.
    pub fn pipeline(&self, output: &mut Output) -> Result<Pipeline> {
        self.model.open(self.weights.dtype, output)
    }
}

/// Folder of the model if none is named. Without this folder, divot-tiny is used.
pub const DEFAULT_MODEL: &str = "models/divot";

/// The model and the device.
#[derive(Args)]
#[command(next_help_heading = "Model")]
struct Model {
    /// Folder of the model, as `divot download` and `divot convert` write it [default: models/divot if it is there, or
    /// divot-tiny, a small model that the program contains]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Element type of networks other than language models.
#[derive(Args)]
#[command(next_help_heading = "Model")]
struct Weights {
    /// Element type of the weights in memory; auto is f32 on the CPU, and the stored type elsewhere; with bf16, a
    /// CPU that can multiply in bf16 does so
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = precision(4))]
    dtype: Precision,
}

/// Element type of networks, including language models.
#[derive(Args)]
#[command(next_help_heading = "Model")]
struct LlmWeights {
    /// Element type of the weights in memory; auto is f32 on the CPU, except that a language
    /// model that is stored in 8 or 4 bits keeps them, and the stored type elsewhere;
    /// with bf16, a CPU that can multiply in bf16 does so;
    /// q8 and q4 keep the language model's weights in 8 or 4 bits, which takes less memory
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "TYPE",
        default_value = "auto",
        value_parser = precision(6)
    )]
    dtype: Precision,
}

/// Parses the first `count` names of a precision.
fn precision(count: usize) -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(&Precision::NAMES[..count]).try_map(|name| name.parse::<Precision>())
}

impl Model {
    /// The folder that was named, or the default one.
    fn folder(&self) -> &Path {
        self.model.as_deref().unwrap_or(Path::new(DEFAULT_MODEL))
    }

    /// Opens the model's folder and the device.
    fn open(&self, precision: Precision, output: &mut Output) -> Result<Pipeline> {
        let pipeline = open(self.model.as_deref(), &self.device, output)?;
        output.set_device(pipeline.device());
        output.set("model", pipeline.name());
        let pipeline = pipeline.with_precision(precision);
        if pipeline.multiplies_in_bf16() {
            output.note("this processor multiplies in bf16: results differ from f32 by about 1 %");
        }
        Ok(pipeline)
    }
}

/// Opens a model on a device: that in the folder, that in [`DEFAULT_MODEL`], or divot-tiny, which is said.
///
/// # Errors
/// If the model or the device does not exist.
pub fn open(folder: Option<&Path>, device: &str, output: &mut Output) -> Result<Pipeline> {
    let default = Path::new(DEFAULT_MODEL);
    #[cfg(not(feature = "tiny"))]
    let _ = output;
    #[cfg(feature = "tiny")]
    if folder.is_none() && !default.exists() {
        let pipeline = Pipeline::tiny(&select(device)?)?;
        output.note(format!(
            "no model is named and none is in {DEFAULT_MODEL}: this is divot-tiny, which knows a synthetic world"
        ));
        return Ok(pipeline);
    }
    let folder = folder.unwrap_or(default);
    if !folder.is_dir() {
        bail!(
            "{}: there is no model; get one with `divot download --to {0}`, convert one with `cargo xtask convert-weights`, or name the folder of one with --model",
            folder.display()
        );
    }
    Ok(Pipeline::open(folder, &select(device)?)?)
}

/// Selects a device. If its kernels are yet to be compiled, that is said, because nothing else happens for a while.
///
/// # Errors
/// Those of [`device::select`].
pub fn select(name: &str) -> Result<Device> {
    let device = device::select(name)?;
    if device::is_new(&device) {
        complain(&format!(
            "compiling and trying kernels for {} takes minutes at first; where they can be stored, later runs find them",
            device::name(&device)
        ));
    }
    Ok(device)
}

/// Returns the input that was named, or else the model's own sample clip, and says so.
///
/// # Errors
/// If there is neither.
pub fn input(named: Option<PathBuf>, pipeline: &Pipeline, output: &Output) -> Result<PathBuf> {
    if let Some(named) = named {
        return Ok(named);
    }
    let sample = pipeline.sample_clip();
    let sample = sample.context("no input: name one with --input")?;
    let name = sample.file_name().unwrap_or_default().display();
    output.note(format!(
        "no input is named: this is {name}, a sample of the model"
    ));
    Ok(sample)
}

/// Where a clip is written.
#[derive(Args)]
pub struct ClipOutput {
    /// Video to write; a contact sheet is written beside it as .png
    #[arg(long, value_name = "FILE", default_value = "out.mp4")]
    output: PathBuf,
    /// Replace an existing picture at the path of the contact sheet
    #[arg(long)]
    force: bool,
}

impl ClipOutput {
    /// Returns the paths of the clip's files, after checking that writing them does not damage `inputs`.
    pub fn files(&self, inputs: &[&Path]) -> Result<ClipFiles> {
        let files = ClipFiles::new(&self.output)?;
        files.check(inputs, self.force).map_err(|error| match error {
            data::Error::Exists { path } => anyhow!(
                "{}: is no contact sheet, and one goes there; use --force to replace it, or choose another --output",
                path.display()
            ),
            error => error.into(),
        })?;
        Ok(files)
    }
}

/// The seed of random numbers.
#[derive(Args)]
struct Seed {
    /// Seed of all random numbers; the same seed gives the same result on every run
    // It belongs to no heading, not even to one before it.
    #[arg(long, help_heading = None, default_value_t = 42, allow_negative_numbers = true, value_parser = seed)]
    seed: u64,
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

/// How tokens are decoded to video.
#[derive(Args)]
#[command(next_help_heading = "Video sampling")]
struct Diffusion {
    /// Sampler; the last two need fewer steps and no fresh noise [default: the model's, which is ddim for the released
    /// one]
    #[arg(long, value_enum)]
    sampler: Option<Sampler>,
    /// Sampling steps, 1 to 1000 [default: the model's, or 50 for --sampler ddim and 20 for the others]; with uniform
    /// spacing, a number that does not divide 1000 is changed to one near it
    #[arg(long)]
    steps: Option<usize>,
    /// Spacing of the timesteps [default: the model's, or uniform for --sampler ddim and quadratic for the others]; all
    /// except uniform start at pure noise
    #[arg(long, value_enum)]
    spacing: Option<Timesteps>,
    /// Strength of classifier-free guidance; 1 means none, which takes half the time [default: the model's, which is 7.5
    /// for the released one]
    #[arg(long, allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// Share of fresh noise in each step of ddim, 0 to 1 [default: the model's, or 1 for --sampler ddim]
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
    /// Returns the checked options. What is not asked for is as the model has it.
    fn decoding(&self, seed: &Seed, pipeline: &Pipeline, output: &mut Output) -> Result<Decoding> {
        let mut decoding = pipeline.decoding()?;
        let sampling = &mut decoding.sampling;
        if let Some(sampler) = self.sampler {
            (sampling.solver, sampling.steps) = match sampler {
                Sampler::Ddim => (Solver::Ddim { eta: 1.0 }, 50),
                Sampler::DpmSolverPlusPlus => (Solver::DpmSolverPlusPlus, 20),
                Sampler::UniPc => (Solver::UniPc, 20),
            };
            sampling.spacing = None;
        }
        if let Some(eta) = self.eta {
            if !matches!(sampling.solver, Solver::Ddim { .. }) {
                bail!("--eta is for --sampler ddim; the other samplers draw no fresh noise");
            }
            sampling.solver = Solver::Ddim { eta };
        }
        if let Some(spacing) = self.spacing {
            sampling.spacing = Some(match spacing {
                Timesteps::Uniform => Spacing::Uniform,
                Timesteps::Trailing => Spacing::UniformTrailing,
                Timesteps::Quadratic => Spacing::QuadraticTrailing,
            });
        }
        let asked = self.steps.unwrap_or(sampling.steps);
        sampling.steps = asked;
        let steps = sampling.check()?;
        if steps != asked {
            output.note(format!(
                "{steps} steps are taken: uniform spacing gives that many for {asked}"
            ));
        }
        output.set("steps", steps);
        if let Some(scale) = self.guidance {
            decoding.guidance.scale = scale;
        }
        decoding.guidance.check()?;
        decoding.seed = seed.seed;
        Ok(decoding)
    }
}

/// How text is generated.
#[derive(Args)]
#[command(next_help_heading = "Text sampling")]
struct Text {
    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    max_new_tokens: usize,
    /// Always take the most likely token, like --temperature 0
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// Temperature of sampling; 0 takes the most likely token
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample from the most likely tokens with this total probability
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true)]
    top_p: f64,
    /// Sample from this number of most likely tokens; 0 means all
    #[arg(long, default_value_t = 50)]
    top_k: usize,
    /// Number of beams of a beam search, which is not random and prints its text at the end; 1 means none
    #[arg(long, default_value_t = 1)]
    beams: usize,
    /// Element type of the keys and values of what was read; auto is that of the computation, and f16 takes half of
    /// the memory of f32
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = precision(3))]
    cache_dtype: Precision,
}

impl Text {
    /// Returns the checked options.
    fn generation(&self, features: SampleOptions, seed: &Seed) -> Result<GenerationConfig> {
        let config = GenerationConfig {
            text: TextSampling::new()
                .with_max_new_tokens(self.max_new_tokens)
                .with_temperature(if self.greedy { 0.0 } else { self.temperature })
                .with_top_p(self.top_p)
                .with_top_k(self.top_k)
                .with_beams(self.beams),
            features,
            seed: seed.seed,
            cache_dtype: self.cache_dtype.dtype,
        };
        config.check()?;
        Ok(config)
    }
}

/// How video tokens are sampled.
#[derive(Args)]
#[command(next_help_heading = "Video sampling")]
struct Features {
    /// Factor of the variances of sampled video tokens; with 0 there is no variation
    #[arg(long, default_value_t = 0.1, allow_negative_numbers = true)]
    var_scale: f64,
}
