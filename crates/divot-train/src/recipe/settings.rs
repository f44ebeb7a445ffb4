//! What a recipe may say, and what is checked of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{DType, Device};
use divot::SamplingConfig;
use divot::data::dataset::{Format, SourceConfig};
use divot::device::{is_cpu, name};
use divot::gmm::{HeadConfig, SampleOptions};
use divot::language::TextTokenizer;
use divot_nn::ops::{self, TrainingPrecision};
use serde::{Deserialize, Serialize};

use crate::buckets::RankSettings;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::objective::{PixelError, TaskKind};
use crate::optimizer::OptimizerConfig;
use crate::parameters::is_below;
use crate::schedule::RateConfig;

/// What a recipe says, apart from the model's sizes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Optimiser steps.
    pub steps: usize,
    /// Samples of a step.
    pub batch: usize,
    /// Samples that are computed at a time; their gradients are accumulated. The whole batch if absent.
    pub micro_batch: Option<usize>,
    /// Micro-batches that are computed at the same time on a CPU, each on its share of the threads: for networks that
    /// are too small to occupy all threads. Losses and weights stay the same to the bit.
    #[serde(default = "one")]
    pub at_once: usize,
    /// Seed of everything that is random.
    #[serde(default)]
    pub seed: u64,
    /// Paths of the parts that are not trained.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// Decay of the moving average of the parameters; none is kept if absent.
    pub average: Option<f64>,
    /// Keeps only the inputs of blocks, and computes each block again in the backward pass.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Element type of activations and frozen parameters.
    #[serde(default)]
    pub precision: Precision,
    /// How ranks work together, if there are several.
    #[serde(default)]
    pub ranks: RankSettings,
    /// Steps between two lines of the log.
    #[serde(default = "ten")]
    pub log_every: usize,
    /// The networks.
    pub model: ModelSettings,
    /// What is made smaller.
    pub objective: ObjectiveSettings,
    /// The samples.
    pub data: Vec<DataSettings>,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate.
    #[serde(default)]
    pub rate: RateConfig,
    /// Measurements on a fixed set of samples.
    #[serde(default)]
    pub validation: ValidationSettings,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoints: CheckpointSettings,
}

fn ten() -> usize {
    10
}

/// The element type of activations and of frozen parameters. Trained parameters, their gradients and averages, the
/// optimiser's moments and the losses are in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16 on a GPU that computes in it, else 32 bits.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16. On a CPU, frozen parameters are kept so, and products round both operands to it where the processor
    /// has AVX512-BF16. Everything else is in f32 there.
    Bf16,
}

impl Precision {
    /// What a device computes in: 32 bits or bfloat16.
    pub(crate) fn on(self, device: &Device) -> Self {
        match self {
            Self::Auto if !is_cpu(device) && device.supports_dtype(DType::BF16) => Self::Bf16,
            Self::Auto => Self::F32,
            precision => precision,
        }
    }

    /// The type of frozen parameters.
    pub(crate) fn frozen(self, device: &Device) -> DType {
        match self.on(device) {
            Self::Bf16 => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Sets the precision of the CPU's products, which is one for the process, until the result is dropped.
    pub(crate) fn products(self, device: &Device) -> TrainingPrecision {
        ops::training_in_bf16(self.on(device) == Self::Bf16 && is_cpu(device))
    }

    /// The type that a device computes in.
    ///
    /// # Errors
    /// If the device does not compute in it.
    pub(crate) fn activations(self, device: &Device) -> Result<DType> {
        match self.on(device) {
            Self::Auto | Self::F32 => Ok(DType::F32),
            Self::Bf16 if is_cpu(device) => Ok(DType::F32),
            Self::Bf16 if device.supports_dtype(DType::BF16) => Ok(DType::BF16),
            Self::Bf16 => Err(Error::Setting {
                setting: "precision = \"bf16\"".to_owned(),
                problem: format!("is no type that the device {} computes in", name(device)),
            }),
        }
    }
}

/// The networks of a recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A preset's name, or the folder of a converted model whose sizes are taken.
    pub sizes: String,
    /// Folders that parts of the model start from, by their paths; `random` for none.
    #[serde(default)]
    pub start: BTreeMap<String, PathBuf>,
    /// Sizes that differ.
    #[serde(default)]
    pub tokenizer: toml::Table,
    /// Sizes that differ.
    #[serde(default)]
    pub detokenizer: toml::Table,
    /// Sizes that differ.
    #[serde(default)]
    pub text: toml::Table,
    /// Sizes that differ.
    #[serde(default)]
    pub llm: toml::Table,
    /// Sizes that differ.
    #[serde(default)]
    pub image: toml::Table,
    /// The language model's text tokenizer: a `tokenizer.json`, or a folder with SentencePiece's files.
    pub text_tokenizer: Option<PathBuf>,
}

impl ModelSettings {
    /// Lets the de-tokenizer and the language model take as many tokens as the tokenizer gives, of the same width, unless
    /// the recipe says otherwise.
    pub(super) fn with_token_sizes(&self, mut model: ModelConfig) -> ModelConfig {
        let [tokens, width] = model.tokenizer.resampler.output_size();
        if !says(&self.detokenizer, &["resampler", "input_dim"]) {
            model.detokenizer.resampler.input_dim = width;
        }
        if !says(&self.llm, &["num_queries"]) {
            model.llm.num_queries = tokens;
        }
        let kind = match &model.llm.head {
            HeadConfig::Gmm(_) => "Gmm",
            HeadConfig::Regression(_) => "Regression",
            HeadConfig::Denoising(_) => "Denoising",
        };
        if !says(&self.llm, &["head", kind, "dim"]) {
            model.llm.head = model.llm.head.with_token_dim(width);
        }
        model
    }

    /// A language model of as many tokens as its text tokenizer has, unless the recipe says how many.
    pub(super) fn with_vocabulary(&self, mut model: ModelConfig) -> ModelConfig {
        // One that cannot be read is an error where it is needed.
        if !says(&self.llm, &["llm", "vocab_size"])
            && let Some(path) = &self.text_tokenizer
            && let Ok(text) = TextTokenizer::open(path)
        {
            model.llm.llm.vocab_size = text.vocab_size();
        }
        model
    }
}

/// Whether a table has a value at a path of keys.
fn says(table: &toml::Table, path: &[&str]) -> bool {
    let (first, rest) = path.split_first().expect("a path is not empty");
    table
        .get(*first)
        .is_some_and(|value| match value.as_table() {
            Some(table) if !rest.is_empty() => says(table, rest),
            _ => rest.is_empty(),
        })
}

/// A source of samples.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Where the samples are, and which of them are taken.
    pub source: SourceConfig,
    /// How often a batch is of this source, in proportion to the others' weights.
    #[serde(default = "one_weight")]
    pub weight: f64,
    /// Samples of a batch of this source; the recipe's batch if absent.
    pub batch: Option<usize>,
    /// What a language model learns from it.
    pub task: Option<TaskKind>,
    /// Whether a language model's rows begin with an instruction.
    #[serde(default)]
    pub instructions: bool,
    /// Largest number of tokens of a language model's row.
    #[serde(default = "row_length")]
    pub max_length: usize,
}

fn one_weight() -> f64 {
    1.0
}

fn row_length() -> usize {
    1400
}

/// An objective with its settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ObjectiveSettings {
    /// [`Diffusion`](crate::objective::Diffusion).
    Diffusion {
        /// Share of dropped conditions.
        #[serde(default)]
        dropped: f64,
        /// γ of the Min-SNR weights.
        min_snr_gamma: Option<f64>,
        /// How many of a clip's frames are denoised.
        frames: Option<usize>,
        /// The first timestep that is drawn, and the one after the last.
        timesteps: Option<[usize; 2]>,
        /// Weight of the divergence of a variational tokenizer's tokens.
        #[serde(default = "kl_weight")]
        kl_weight: f64,
        /// Weight of what a language model loses that reads the clips' tokens ([`Joint`](crate::objective::Joint)); if
        /// absent, there is none.
        text_weight: Option<f64>,
        /// Sampling steps of the clips that are shown.
        #[serde(default = "fifty")]
        sampling_steps: usize,
        /// Guidance scale of the clips that are shown; if absent, the released one where conditions are dropped, and
        /// none where they are not.
        guidance: Option<f64>,
    },
    /// [`Stage0`](crate::objective::Stage0).
    Stage0 {
        /// Share of dropped texts, of dropped images, and of both.
        #[serde(default = "released_dropped")]
        dropped: f64,
        /// γ of the Min-SNR weights.
        min_snr_gamma: Option<f64>,
        /// Sampling steps of the clips that are shown.
        #[serde(default = "fifty")]
        sampling_steps: usize,
        /// Guidance scale of the clips that are shown, as in `Diffusion`.
        guidance: Option<f64>,
    },
    /// [`Adaptation`](crate::objective::Adaptation).
    Adaptation {
        /// Share of dropped conditions.
        #[serde(default)]
        dropped: f64,
        /// γ of the Min-SNR weights.
        min_snr_gamma: Option<f64>,
        /// What the variances of the mixture are multiplied by.
        #[serde(default = "released_variance")]
        var_scale: f64,
        /// Sampling steps of the clips that are shown.
        #[serde(default = "fifty")]
        sampling_steps: usize,
        /// Guidance scale of the clips that are shown; the released one if absent.
        guidance: Option<f64>,
    },
    /// [`Contrastive`](crate::objective::Contrastive).
    Contrastive {},
    /// [`Language`](crate::objective::Language).
    Language {
        /// What the cross-entropy counts for.
        #[serde(default = "one_weight")]
        text_weight: f64,
        /// What the head's loss counts for.
        #[serde(default = "one_weight")]
        head_weight: f64,
        /// Sampling steps of the clips that are shown, if the model starts with a de-tokenizer; its own if absent.
        sampling_steps: Option<usize>,
        /// Guidance scale of these clips; the de-tokenizer's own if absent.
        guidance: Option<f64>,
    },
    /// [`Autoencoder`](crate::objective::Autoencoder).
    Autoencoder {
        /// Random frames of each clip.
        #[serde(default = "one")]
        frames: usize,
        /// The error between pixels.
        #[serde(default = "l1")]
        error: PixelError,
        /// Weight of the divergence.
        #[serde(default = "kl_weight")]
        kl_weight: f64,
    },
}

fn fifty() -> usize {
    50
}

fn released_dropped() -> f64 {
    0.05
}

fn released_variance() -> f64 {
    SampleOptions::new().var_scale
}

fn one() -> usize {
    1
}

fn l1() -> PixelError {
    PixelError::L1
}

fn kl_weight() -> f64 {
    1e-6
}

impl ObjectiveSettings {
    /// Keys of values that are out of range, and what would be right.
    fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let mut problems = Vec::new();
        let mut check = |fine: bool, key, wanted| {
            if !fine {
                problems.push((key, wanted));
            }
        };
        if let Self::Diffusion {
            frames,
            timesteps,
            text_weight,
            ..
        } = self
        {
            let positive = frames.is_none_or(|frames| frames > 0);
            check(positive, "objective.frames", "at least 1");
            let clips = text_weight.is_none() || *frames != Some(1);
            let wanted = "more than 1 beside `text_weight`, since a language model reads clips";
            check(clips, "objective.frames", wanted);
            let text = text_weight.is_none_or(|weight| weight > 0.0 && weight.is_finite());
            check(text, "objective.text_weight", "a number above 0");
            let timesteps = timesteps.is_none_or(|[start, end]| start < end);
            check(
                timesteps,
                "objective.timesteps",
                "[start, end] with start below end",
            );
        }
        let (steps, guidance) = match self {
            Self::Diffusion {
                sampling_steps,
                guidance,
                ..
            }
            | Self::Stage0 {
                sampling_steps,
                guidance,
                ..
            }
            | Self::Adaptation {
                sampling_steps,
                guidance,
                ..
            } => (Some(*sampling_steps), *guidance),
            Self::Language {
                sampling_steps,
                guidance,
                ..
            } => (*sampling_steps, *guidance),
            Self::Contrastive {} | Self::Autoencoder { .. } => (None, None),
        };
        let steps =
            steps.is_none_or(|steps| SamplingConfig::new().with_steps(steps).check().is_ok());
        check(steps, "objective.sampling_steps", "1 to 1000 steps");
        let finite = guidance.is_none_or(f64::is_finite);
        check(finite, "objective.guidance", "a finite number");
        if let Self::Diffusion {
            dropped,
            min_snr_gamma,
            ..
        }
        | Self::Stage0 {
            dropped,
            min_snr_gamma,
            ..
        }
        | Self::Adaptation {
            dropped,
            min_snr_gamma,
            ..
        } = self
        {
            // Stage 0 drops texts, images, and both, each in this share.
            let (most, wanted) = match self {
                Self::Stage0 { .. } => (1.0 / 3.0, "a share from 0 to 1/3"),
                _ => (1.0, "a share from 0 to 1"),
            };
            check((0.0..=most).contains(dropped), "objective.dropped", wanted);
            let gamma = min_snr_gamma.is_none_or(|gamma| gamma > 0.0);
            check(gamma, "objective.min_snr_gamma", "a number above 0");
        }
        match self {
            Self::Diffusion { kl_weight, .. } => {
                check(*kl_weight >= 0.0, "objective.kl_weight", "0 or more");
            }
            Self::Adaptation { var_scale, .. } => {
                check(*var_scale >= 0.0, "objective.var_scale", "0 or more");
            }
            Self::Stage0 { .. } | Self::Contrastive {} => {}
            Self::Language {
                text_weight,
                head_weight,
                ..
            } => {
                check(*text_weight >= 0.0, "objective.text_weight", "0 or more");
                check(*head_weight >= 0.0, "objective.head_weight", "0 or more");
            }
            Self::Autoencoder {
                frames, kl_weight, ..
            } => {
                check(*frames > 0, "objective.frames", "at least 1");
                check(*kl_weight >= 0.0, "objective.kl_weight", "0 or more");
            }
        }
        problems
    }
}

/// Measurements on a fixed set of samples.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationSettings {
    /// Steps between two measurements; 0 for none.
    pub every: usize,
    /// Batches whose loss is measured.
    pub batches: usize,
    /// Samples that are shown.
    pub shown: usize,
    /// The samples; those of training if there are none.
    pub data: Vec<DataSettings>,
}

impl Default for ValidationSettings {
    fn default() -> Self {
        Self {
            every: 1000,
            batches: 4,
            shown: 4,
            data: Vec::new(),
        }
    }
}

/// When checkpoints are saved, and how many stay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSettings {
    /// Steps between two checkpoints.
    pub every: usize,
    /// How many of the last stay, beside the best.
    pub keep: usize,
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        Self {
            every: 1000,
            keep: 2,
        }
    }
}

impl Settings {
    /// Samples that are computed at a time.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch).min(self.batch)
    }

    /// Whether a language model is trained beside a de-tokenizer, which shows what it generates.
    pub(super) fn shows_clips(&self) -> bool {
        self.model.start.contains_key("detokenizer") && self.reads_clips()
    }

    /// Whether a part is frozen, by itself or with one around it.
    pub(crate) fn freezes(&self, part: &str) -> bool {
        let mut frozen = self.frozen.iter();
        frozen.any(|frozen| is_below(part, frozen))
    }

    /// Whether the tokenizer is frozen, as a whole or part by part.
    pub(crate) fn freezes_tokenizer(&self) -> bool {
        self.freezes("tokenizer.vision") && self.freezes("tokenizer.resampler")
    }

    /// Whether a source has clips.
    pub(super) fn reads_clips(&self) -> bool {
        let mut all = self.data.iter().chain(&self.validation.data);
        all.any(|data| data.source.format != Format::Texts)
    }

    /// All sources, by their keys.
    pub(super) fn sources(&self) -> Vec<(String, &DataSettings)> {
        let keyed = |key: &str, data: &'_ [DataSettings]| {
            (0..data.len())
                .map(|number| format!("{key}.{number}"))
                .collect::<Vec<_>>()
        };
        let keys = [
            keyed("data", &self.data),
            keyed("validation.data", &self.validation.data),
        ];
        let sources = self.data.iter().chain(&self.validation.data);
        keys.concat().into_iter().zip(sources).collect()
    }

    /// Keys of values that are out of range or contradict others, and what would be right.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut check = |fine: bool, key, wanted: &str| {
            if !fine {
                problems.push((key, wanted.to_owned()));
            }
        };
        check(self.steps > 0, "steps", "at least 1");
        check(self.batch > 0, "batch", "at least 1");
        let divides = self.micro_batch() > 0 && self.batch.is_multiple_of(self.micro_batch());
        check(divides, "micro_batch", "a divisor of `batch`");
        check(self.at_once > 0, "at_once", "at least 1");
        let together = matches!(self.objective, ObjectiveSettings::Contrastive {});
        let sources = self.data.iter().chain(&self.validation.data);
        let batches = sources.map(|data| data.batch.unwrap_or(self.batch));
        let most = batches.max().unwrap_or(self.batch);
        let whole = !together || self.micro_batch() == self.batch && most <= self.batch;
        let wanted =
            "all of `batch`, which this objective compares, and no source's `batch` larger";
        check(whole, "micro_batch", wanted);
        let average = self.average.is_none_or(|decay| (0.0..1.0).contains(&decay));
        check(average, "average", "from 0 to below 1");
        check(self.log_every > 0, "log_every", "at least 1");
        check(!self.data.is_empty(), "data", "at least one source");
        let fine = |data: &DataSettings| data.weight > 0.0 && data.weight.is_finite();
        check(
            self.data.iter().all(fine),
            "data",
            "sources of a `weight` above 0",
        );
        let mut sources = self.data.iter().chain(&self.validation.data);
        let some = sources.all(|data| data.batch != Some(0));
        check(some, "data", "sources of a `batch` of at least 1");
        let OptimizerConfig {
            betas,
            epsilon,
            weight_decay,
            max_gradient_norm,
        } = &self.optimizer;
        let inside = betas.iter().all(|beta| (0.0..1.0).contains(beta));
        check(inside, "optimizer.betas", "from 0 to below 1");
        check(*epsilon > 0.0, "optimizer.epsilon", "above 0");
        check(*weight_decay >= 0.0, "optimizer.weight_decay", "0 or more");
        let key = "optimizer.max_gradient_norm";
        check(*max_gradient_norm >= 0.0, key, "0 or more");
        let RateConfig {
            peak,
            warmup,
            floor,
            ..
        } = &self.rate;
        check(*peak > 0.0 && peak.is_finite(), "rate.peak", "above 0");
        check(*warmup < self.steps, "rate.warmup", "less than `steps`");
        check((0.0..=1.0).contains(floor), "rate.floor", "from 0 to 1");
        let ValidationSettings { every, batches, .. } = &self.validation;
        let measured = *every == 0 || *batches > 0;
        check(measured, "validation.batches", "at least 1");
        check(
            self.checkpoints.every > 0,
            "checkpoints.every",
            "at least 1",
        );
        check(self.checkpoints.keep > 0, "checkpoints.keep", "at least 1");
        let objective = self.objective.problems().into_iter();
        problems.extend(objective.map(|(key, wanted)| (key, wanted.to_owned())));
        problems
    }
}
