//! Recipes: what a run trains, on what, and how, in TOML.
//!
//! A key that is not known, a value out of range and two values that contradict each other are errors which
//! name the line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use divot::data::dataset::SourceConfig;
use divot::language::{SpecialTokens, TextTokenizer};
use divot::{GuidanceConfig, SamplingConfig};
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};
use crate::model::{ModelConfig, Start};
use crate::objective::{
    Autoencoder, Contrastive, Diffusion, Language, LanguageTask, Objective, PixelError, TaskKind,
};
use crate::optimizer::OptimizerConfig;
use crate::parameters::is_below;
use crate::schedule::RateConfig;

/// A recipe, checked.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its name: that of its file.
    pub name: String,
    /// What it says, with the settings given beside it, in TOML.
    pub text: String,
    /// Sizes of the networks.
    pub model: ModelConfig,
    /// Where their weights come from; the others are random.
    pub start: Vec<Start>,
    /// Everything else.
    pub settings: Settings,
}

/// What a recipe says, apart from the model's sizes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Optimiser steps.
    pub steps: usize,
    /// Samples of a step.
    pub batch: usize,
    /// Samples that are in memory at a time; their gradients are accumulated. The whole batch if absent.
    pub micro_batch: Option<usize>,
    /// Seed of everything that is random.
    #[serde(default)]
    pub seed: u64,
    /// Paths of the parts that are not trained.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// Decay of the moving average of the parameters; none is kept if absent.
    pub average: Option<f64>,
    /// Recomputes cheap operations in the backward pass instead of keeping their results.
    #[serde(default)]
    pub gradient_checkpointing: bool,
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
    /// The language model's text tokenizer: a `tokenizer.json`, or a folder with SentencePiece's files.
    pub text_tokenizer: Option<PathBuf>,
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
    /// [`Diffusion`].
    Diffusion {
        /// Share of dropped conditions.
        #[serde(default)]
        dropped: f64,
        /// γ of the Min-SNR weights.
        min_snr_gamma: Option<f64>,
        /// Sampling steps of the clips that are shown.
        #[serde(default = "fifty")]
        sampling_steps: usize,
        /// Guidance scale of the clips that are shown.
        #[serde(default = "released_guidance")]
        guidance: f64,
    },
    /// [`Contrastive`].
    Contrastive {},
    /// [`Language`].
    Language {
        /// What the cross-entropy counts for.
        #[serde(default = "one_weight")]
        text_weight: f64,
        /// What the head's loss counts for.
        #[serde(default = "one_weight")]
        head_weight: f64,
    },
    /// [`Autoencoder`].
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

fn released_guidance() -> f64 {
    GuidanceConfig::new().scale
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
        match self {
            Self::Diffusion {
                dropped,
                min_snr_gamma,
                sampling_steps,
                guidance,
            } => {
                let share = (0.0..=1.0).contains(dropped);
                check(share, "objective.dropped", "a share from 0 to 1");
                let gamma = min_snr_gamma.is_none_or(|gamma| gamma > 0.0);
                check(gamma, "objective.min_snr_gamma", "a number above 0");
                let sampling = SamplingConfig::new().with_steps(*sampling_steps).check();
                check(
                    sampling.is_ok(),
                    "objective.sampling_steps",
                    "1 to 1000 steps",
                );
                check(
                    guidance.is_finite(),
                    "objective.guidance",
                    "a finite number",
                );
            }
            Self::Contrastive {} => {}
            Self::Language {
                text_weight,
                head_weight,
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

impl Recipe {
    /// Reads a recipe. `changes` are settings put over it, each `key=value` with a dotted key and a value
    /// in TOML.
    ///
    /// # Errors
    /// If the file cannot be read, a key is not known, a value is out of range, or two contradict each
    /// other.
    pub fn read(path: &Path, changes: &[String]) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(path, &name, &text, changes)
    }

    /// Reads the text of a recipe, which errors call `path`. `changes` are as in [`read`](Self::read).
    ///
    /// # Errors
    /// Those of [`read`](Self::read), but that the file cannot be read.
    pub fn parse(path: &Path, name: &str, text: &str, changes: &[String]) -> Result<Self> {
        let at = |offset: usize, problem: String| Error::Recipe {
            path: path.to_path_buf(),
            line: line(text, offset),
            problem,
        };
        let wrong = |error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            at(offset, error.message().replace('\n', " "))
        };
        let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
        let mut settings: Settings = toml::from_str(text).map_err(wrong)?;
        for change in changes {
            let wrong = |problem: String| Error::Setting {
                setting: change.clone(),
                problem,
            };
            change_table(&mut table, change).map_err(wrong)?;
            settings = Settings::deserialize(table.clone())
                .map_err(|error| wrong(error.message().replace('\n', " ")))?;
        }
        // A problem is one of the setting that was given last, or of the recipe's line.
        let refuse = |key: &str, problem: String| {
            let given = changes.iter().rev().find(|change| {
                let changed = change.split('=').next().unwrap_or_default().trim();
                is_below(key, changed) || is_below(changed, key)
            });
            match given {
                Some(change) => Error::Setting {
                    setting: change.clone(),
                    problem,
                },
                None => at(offset_of(text, key), problem),
            }
        };

        if let Some((key, wanted)) = settings.problems().into_iter().next() {
            return Err(refuse(key, format!("`{key}` is to be {wanted}")));
        }
        let sizes = match ModelConfig::preset(&settings.model.sizes) {
            Some(sizes) => sizes,
            None => {
                let folder = Path::new(&settings.model.sizes);
                ModelConfig::of_checkpoint(folder)
                    .map_err(|error| refuse("model.sizes", error.to_string()))?
            }
        };
        let mut changed = toml::Table::new();
        let ModelSettings {
            tokenizer,
            detokenizer,
            text: text_tower,
            llm,
            ..
        } = &settings.model;
        for (name, sizes) in [
            ("tokenizer", tokenizer),
            ("detokenizer", detokenizer),
            ("text", text_tower),
            ("llm", llm),
        ] {
            changed.insert(name.to_owned(), sizes.clone().into());
        }
        let model = sizes
            .with_changes(&changed)
            .map_err(|(key, problem)| refuse(&key, problem))?;
        let start = settings.model.start.iter().map(|(part, folder)| Start {
            part: part.clone(),
            folder: folder.clone(),
        });
        let start: Vec<Start> = start
            .filter(|start| start.folder != Path::new("random"))
            .collect();
        for frozen in &settings.frozen {
            let named = settings.model.start.keys();
            if !named
                .clone()
                .any(|part| is_below(frozen, part) || is_below(part, frozen))
            {
                let problem = format!(
                    "`{frozen}` is frozen and has no weights to start from; name their folder in \
                     [model.start], or `random`"
                );
                return Err(refuse("frozen", problem));
            }
        }
        Ok(Self {
            name: name.to_owned(),
            text: toml::to_string(&table).unwrap_or_default(),
            model,
            start,
            settings,
        })
    }

    /// The objective.
    ///
    /// # Errors
    /// If the text tokenizer of a language model is not named, cannot be read, or does not fit the model.
    pub fn objective(&self) -> Result<Box<dyn Objective>> {
        Ok(match self.settings.objective {
            ObjectiveSettings::Diffusion {
                dropped,
                min_snr_gamma,
                sampling_steps,
                guidance,
            } => Box::new(Diffusion {
                dropped,
                min_snr_gamma,
                sampling: SamplingConfig::new().with_steps(sampling_steps),
                guidance: GuidanceConfig::new().with_scale(guidance),
            }),
            ObjectiveSettings::Contrastive {} => Box::new(Contrastive::new()),
            ObjectiveSettings::Autoencoder {
                frames,
                error,
                kl_weight,
            } => Box::new(Autoencoder {
                frames,
                error,
                kl_weight,
            }),
            ObjectiveSettings::Language {
                text_weight,
                head_weight,
            } => Box::new(self.language(text_weight, head_weight)?),
        })
    }

    fn language(&self, text_weight: f64, head_weight: f64) -> Result<Language> {
        let setting = |problem: String| Error::Setting {
            setting: "model.text_tokenizer".to_owned(),
            problem,
        };
        let path = self.settings.model.text_tokenizer.as_ref();
        let path = path
            .ok_or_else(|| setting("is to name the language model's text tokenizer".to_owned()))?;
        let text = TextTokenizer::open(path).map_err(|error| setting(error.to_string()))?;
        let rows = self.model.llm.llm.vocab_size;
        if text.vocab_size() > rows {
            let tokens = text.vocab_size();
            let problem =
                format!("has {tokens} tokens, and the language model has rows for {rows}");
            return Err(setting(problem));
        }
        let ModelConfig { tokenizer, llm, .. } = &self.model;
        let [read, made] = [
            tokenizer.resampler.output_size(),
            [llm.num_queries, llm.head.token_dim()],
        ];
        if read != made {
            let problem = format!(
                "the tokenizer gives {} tokens of width {}, and the language model takes {} of {}",
                read[0], read[1], made[0], made[1]
            );
            let setting = "model".to_owned();
            return Err(Error::Setting { setting, problem });
        }
        let tokens = SpecialTokens::of(&text, self.model.llm.num_queries);
        let tokens = tokens.map_err(|error| setting(error.to_string()))?;
        let tasks = self.settings.data.iter().map(|data| LanguageTask {
            kind: data.task.unwrap_or(TaskKind::Comprehension),
            instructions: data.instructions,
            max_length: data.max_length,
        });
        Ok(Language {
            text,
            tokens,
            tasks: tasks.collect(),
            text_weight,
            head_weight,
        })
    }

    /// Every value of the recipe, by its dotted key.
    pub fn values(&self) -> Vec<(String, String)> {
        values(&self.text).into_iter().collect()
    }

    /// What differs from the recipe `older`, in TOML: key, value there, value here.
    pub fn differences(&self, older: &str) -> Vec<(String, String, String)> {
        let [older, newer] = [older, &self.text].map(values);
        let absent = || "nothing".to_owned();
        let mut keys: Vec<&String> = older.keys().chain(newer.keys()).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter()
            .filter(|key| older.get(*key) != newer.get(*key))
            .map(|key| {
                let value = |of: &BTreeMap<String, String>| of.get(key).cloned();
                let before = value(&older).unwrap_or_else(absent);
                (key.clone(), before, value(&newer).unwrap_or_else(absent))
            })
            .collect()
    }
}

impl Settings {
    /// Samples that are in memory at a time.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch)
    }

    /// Keys of values that are out of range or contradict others, and what would be right.
    fn problems(&self) -> Vec<(&'static str, String)> {
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
        let together = matches!(self.objective, ObjectiveSettings::Contrastive {});
        let whole = !together || self.micro_batch() == self.batch;
        let wanted = "all of `batch`, which this objective compares";
        check(whole, "micro_batch", wanted);
        let average = self.average.is_none_or(|decay| (0.0..1.0).contains(&decay));
        check(average, "average", "from 0 to below 1");
        check(self.log_every > 0, "log_every", "at least 1");
        check(!self.data.is_empty(), "data", "at least one source");
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

/// Puts `key=value` into a table.
fn change_table(table: &mut toml::Table, change: &str) -> Result<(), String> {
    let (key, value) = change
        .split_once('=')
        .ok_or("is no `key=value`; give a dotted key and a value")?;
    let value = value.trim();
    // What is no value of TOML is text.
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| value.into());
    let mut names: Vec<&str> = key.trim().split('.').collect();
    let last = names.pop().unwrap_or_default();
    let mut place = table;
    let mut names = names.into_iter();
    while let Some(name) = names.next() {
        let inner = place
            .entry(name)
            .or_insert_with(|| toml::Table::new().into());
        place = match inner {
            toml::Value::Table(inner) => inner,
            // Items of a list have their numbers as keys.
            toml::Value::Array(items) => {
                let count = items.len();
                let number = names.next().and_then(|number| number.parse::<usize>().ok());
                let item = number.and_then(|number| items.get_mut(number));
                item.and_then(toml::Value::as_table_mut).ok_or_else(|| {
                    format!("`{name}` is a list of {count}; name one of them by its number from 0")
                })?
            }
            _ => return Err(format!("`{name}` has no keys below it")),
        };
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

/// The line of a byte, from 1.
fn line(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|&&byte| byte == b'\n').count()
}

/// Where the value of a dotted key begins, or the nearest table that it would be in.
fn offset_of(text: &str, key: &str) -> usize {
    let Ok(table) = DeTable::parse(text) else {
        return 0;
    };
    let mut offset = 0;
    let mut table = table.get_ref();
    for name in key.split('.') {
        let Some((_, value)) = table.iter().find(|(found, _)| found.get_ref() == name) else {
            break;
        };
        offset = value.span().start;
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    offset
}

/// Every value of a text in TOML, by its dotted key.
fn values(text: &str) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    flatten(&toml::Value::Table(table), String::new(), &mut flat);
    flat
}

fn flatten(value: &toml::Value, key: String, flat: &mut BTreeMap<String, String>) {
    let below = |name: &str| match key.is_empty() {
        true => name.to_owned(),
        false => format!("{key}.{name}"),
    };
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                flatten(value, below(name), flat);
            }
        }
        toml::Value::Array(values) if values.iter().any(toml::Value::is_table) => {
            for (index, value) in values.iter().enumerate() {
                flatten(value, below(&index.to_string()), flat);
            }
        }
        value => {
            flat.insert(key, value.to_string());
        }
    }
}
