//! Recipes: what a run trains, on what, and how, in TOML.
//!
//! A key that is not known, a value out of range and two values that contradict each other are errors which
//! name the line.

mod contradictions;
mod settings;
mod text;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use divot::checkpoint::Part;
use divot::gmm::SampleOptions;
use divot::language::{SpecialTokens, TextTokenizer};
use divot::{GuidanceConfig, SamplingConfig};
use divot_nn::SizeError;
use serde::Deserialize;

use crate::checkpoint::Start;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::objective::{
    Adaptation, Autoencoder, Contrastive, Diffusion, Joint, Language, LanguageTask, NoiseOptions,
    Objective, ShowClips, Stage0, TaskKind,
};
use crate::parameters::is_below;
use crate::start;
use text::{change_table, line, offset_of, values};

pub(crate) use contradictions::Samples;
pub use settings::{
    CheckpointSettings, DataSettings, ModelSettings, ObjectiveSettings, Precision, Settings,
    ValidationSettings,
};

/// A recipe, checked.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its name: that of its file.
    pub name: String,
    /// What it says, with the settings given beside it, in TOML.
    pub text: String,
    /// Sizes of the networks.
    pub model: ModelConfig,
    /// Where their weights come from; those of other parts are random.
    pub start: Vec<Start>,
    /// Everything else.
    pub settings: Settings,
    origin: Origin,
}

/// Where a recipe comes from, for errors.
#[derive(Debug, Clone)]
struct Origin {
    path: PathBuf,
    text: String,
    /// The settings that were given beside it.
    changes: Vec<String>,
}

impl Origin {
    /// An error that names the setting which was given last for a key, or the recipe's line.
    fn refuse(&self, key: &str, problem: String) -> Error {
        let given = self.changes.iter().rev().find(|change| {
            let changed = change.split('=').next().unwrap_or_default().trim();
            let changed = &changed.replace(['"', '\''], "");
            // Where files are says nothing about what lies beside it.
            let place = changed.ends_with(".path")
                || ["model.start", "model.text_tokenizer"]
                    .iter()
                    .any(|place| is_below(changed, place));
            is_below(key, changed) || (!place && is_below(changed, key))
        });
        match given {
            Some(change) => Error::Setting {
                setting: change.clone(),
                problem,
            },
            None => Error::Recipe {
                path: self.path.clone(),
                line: line(&self.text, offset_of(&self.text, key)),
                problem,
            },
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
        let recipe = Self::parse(path, &name, &text, changes)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Checks what a run that was started before may say nevertheless.
    fn check(&self) -> Result<()> {
        let variational = self.model.tokenizer.resampler.variational;
        let problems = self.settings.contradictions(&self.text, variational);
        if let Some((key, problem)) = problems.into_iter().next() {
            return Err(self.refuse(&key, problem));
        }
        for (key, data) in self.settings.sources() {
            let checked = data.source.check();
            checked.map_err(|error| self.refuse(&format!("{key}.source"), error.to_string()))?;
        }
        Ok(())
    }

    /// Reads the text of a recipe, which errors call `path`. `changes` are as in [`read`](Self::read).
    ///
    /// # Errors
    /// Those of [`read`](Self::read), but that the file cannot be read.
    pub fn parse(path: &Path, name: &str, text: &str, changes: &[String]) -> Result<Self> {
        let wrong = |error: toml::de::Error| Error::Recipe {
            path: path.to_path_buf(),
            line: line(text, error.span().map_or(0, |span| span.start)),
            problem: error.message().replace('\n', " "),
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
        // A language model that goes on keeps its tokenizer.
        if settings.model.text_tokenizer.is_none()
            && let Some(folder) = settings.model.start.get("llm")
            && let Some(found) = start::text_tokenizer(folder)
        {
            if let Some(model) = table.get_mut("model").and_then(toml::Value::as_table_mut) {
                let path = found.to_string_lossy().into_owned();
                model.insert("text_tokenizer".to_owned(), path.into());
            }
            settings.model.text_tokenizer = Some(found);
        }
        let origin = Origin {
            path: path.to_path_buf(),
            text: text.to_owned(),
            changes: changes.to_vec(),
        };
        let refuse = |key: &str, problem: String| origin.refuse(key, problem);

        if let Some((key, wanted)) = settings.problems().into_iter().next() {
            return Err(refuse(key, format!("`{key}` is to be {wanted}")));
        }
        let preset = ModelConfig::preset(&settings.model.sizes);
        let folder = Path::new(&settings.model.sizes);
        let sizes = match &preset {
            Some(sizes) => sizes.clone(),
            None => ModelConfig::of_checkpoint(folder)
                .map_err(|error| refuse("model.sizes", error.to_string()))?,
        };
        let mut changed = toml::Table::new();
        let ModelSettings {
            tokenizer,
            detokenizer,
            text: text_tower,
            llm,
            image,
            ..
        } = &settings.model;
        for (name, sizes) in [
            ("tokenizer", tokenizer),
            ("detokenizer", detokenizer),
            ("text", text_tower),
            ("llm", llm),
            ("image", image),
        ] {
            changed.insert(name.to_owned(), sizes.clone().into());
        }
        let model = sizes
            .with_changes(&changed)
            .map_err(|(key, problem)| refuse(&key, problem))?;
        let model = match preset.is_some() {
            true => settings.model.with_vocabulary(model),
            false => model,
        };
        // Without a tokenizer in the folder, the model's is the released one, of which nothing follows.
        let has_tokenizer = preset.is_some() || Part::Tokenizer.folder(folder).is_dir();
        let model = match has_tokenizer {
            true => settings.model.with_token_sizes(model),
            false => model,
        };
        let start = settings.model.start.iter().map(|(part, folder)| Start {
            part: part.clone(),
            folder: (folder != Path::new("random")).then(|| folder.clone()),
        });
        let start = start.collect();
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
            origin,
        })
    }

    /// Checks that so many ranks can share the batches.
    ///
    /// # Errors
    /// The first batch that cannot be divided among them; an objective that compares all of a batch.
    pub(crate) fn check_ranks(&self, ranks: usize) -> Result<()> {
        let settings = &self.settings;
        if ranks > 1 && matches!(settings.objective, ObjectiveSettings::Contrastive {}) {
            let problem = "this objective compares all of a batch, and trains on one rank";
            return Err(self.refuse("objective.kind", problem.to_owned()));
        }
        for (key, data) in settings.sources() {
            let (key, batch) = match data.batch {
                Some(batch) => (format!("{key}.batch"), batch),
                None => ("batch".to_owned(), settings.batch),
            };
            if !batch.is_multiple_of(ranks) {
                let problem = format!("{batch} samples cannot be divided among {ranks} ranks");
                return Err(self.refuse(&key, problem));
            }
        }
        Ok(())
    }

    /// What the recipe allows, and is seldom meant.
    pub fn remarks(&self) -> Vec<String> {
        let validation = &self.settings.validation;
        let held_out = validation.every == 0 || !validation.data.is_empty();
        let remark = "the validation loss will be of the training data; `validation.data` is for other samples";
        let remarks = (!held_out).then(|| remark.to_owned()).into_iter();
        remarks.chain(self.settings.not_frozen()).collect()
    }

    /// An error about a value of the recipe.
    pub(crate) fn refuse(&self, key: &str, problem: String) -> Error {
        self.origin.refuse(key, problem)
    }

    /// The objective.
    ///
    /// # Errors
    /// If the text tokenizer of a language model is not named, cannot be read, or does not fit the model.
    pub fn objective(&self) -> Result<Box<dyn Objective>> {
        let sized = |checked: Result<(), SizeError>| {
            checked.map_err(|error| self.refuse("model", error.to_string()))
        };
        let released = GuidanceConfig::new().scale;
        let show = |steps, scale: Option<f64>, default| ShowClips {
            sampling: SamplingConfig::new().with_steps(steps),
            guidance: GuidanceConfig::new().with_scale(scale.unwrap_or(default)),
        };
        // A UNet that saw no dropped condition cannot be guided.
        let guided = |dropped: f64| if dropped > 0.0 { released } else { 1.0 };
        Ok(match self.settings.objective {
            ObjectiveSettings::Diffusion {
                dropped,
                min_snr_gamma,
                frames,
                timesteps,
                kl_weight,
                text_weight,
                sampling_steps,
                guidance,
            } => {
                sized(self.model.check_clips())?;
                let last = self.model.detokenizer.schedule.timesteps;
                if let Some([_, end]) = timesteps.filter(|[_, end]| *end > last) {
                    let problem =
                        format!("`timesteps` ends at {end}, but the schedule has {last} timesteps");
                    return Err(self.refuse("objective.timesteps", problem));
                }
                let variational = self.model.tokenizer.resampler.variational;
                let diffusion = Diffusion {
                    noise: NoiseOptions {
                        dropped,
                        frames,
                        timesteps,
                    },
                    min_snr_gamma,
                    kl_weight: variational.then_some(kl_weight),
                    show: show(sampling_steps, guidance, guided(dropped)),
                };
                match text_weight {
                    None => Box::new(diffusion),
                    Some(weight) => Box::new(Joint {
                        diffusion,
                        language: self.language(weight, 0.0, None)?,
                    }),
                }
            }
            ObjectiveSettings::Adaptation {
                dropped,
                min_snr_gamma,
                var_scale,
                sampling_steps,
                guidance,
            } => {
                sized(self.model.check_clips())?;
                Box::new(Adaptation {
                    language: self.language(0.0, 1.0, None)?,
                    features: SampleOptions::new().with_var_scale(var_scale),
                    noise: NoiseOptions {
                        dropped,
                        ..NoiseOptions::default()
                    },
                    min_snr_gamma,
                    show: show(sampling_steps, guidance, released),
                })
            }
            ObjectiveSettings::Stage0 {
                dropped,
                min_snr_gamma,
                sampling_steps,
                guidance,
            } => {
                sized(self.model.check_stage0())?;
                let show = show(sampling_steps, guidance, guided(dropped));
                let objective = Stage0::new(dropped, min_snr_gamma, show);
                sized(self.model.check_text(objective.vocabulary()))?;
                Box::new(objective)
            }
            ObjectiveSettings::Contrastive {} => {
                sized(self.model.check_contrastive())?;
                let objective = Contrastive::new();
                sized(self.model.check_text(objective.vocabulary()))?;
                Box::new(objective)
            }
            ObjectiveSettings::Autoencoder {
                frames,
                error,
                kl_weight,
            } => {
                sized(self.model.check_autoencoder())?;
                Box::new(Autoencoder {
                    frames,
                    error,
                    kl_weight,
                })
            }
            ObjectiveSettings::Language {
                text_weight,
                head_weight,
                sampling_steps,
                guidance,
            } => {
                let shows = self.settings.shows_clips();
                if shows {
                    sized(self.model.check_clips())?;
                    let frozen = &self.settings.frozen;
                    if !frozen.iter().any(|frozen| frozen == "detokenizer") {
                        let problem = "the de-tokenizer shows what the language model generates, and does not learn; freeze `detokenizer`";
                        return Err(self.refuse("frozen", problem.to_owned()));
                    }
                }
                // The de-tokenizer's own settings, unless the recipe has others.
                let mut show = ShowClips {
                    sampling: self.model.detokenizer.sampling.clone(),
                    guidance: self.model.detokenizer.guidance,
                };
                show.sampling.steps = sampling_steps.unwrap_or(show.sampling.steps);
                show.guidance.scale = guidance.unwrap_or(show.guidance.scale);
                let show = shows.then_some(show);
                Box::new(self.language(text_weight, head_weight, show)?)
            }
        })
    }

    fn language(
        &self,
        text_weight: f64,
        head_weight: f64,
        show: Option<ShowClips>,
    ) -> Result<Language> {
        let setting = |problem: String| {
            self.refuse(
                "model.text_tokenizer",
                format!("`model.text_tokenizer` {problem}"),
            )
        };
        let path = self.settings.model.text_tokenizer.as_ref();
        let path = path.ok_or_else(|| match self.settings.model.start.get("llm") {
            Some(folder) if folder != Path::new("random") => {
                let problem = format!(
                    "{} holds no language model with its text tokenizer; train that part first, or name another folder",
                    folder.display()
                );
                self.refuse("model.start.llm", problem)
            }
            _ => setting("is to name the language model's text tokenizer".to_owned()),
        })?;
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
            return Err(self.refuse("model", problem));
        }
        let tokens = SpecialTokens::of(&text, self.model.llm.num_queries);
        let tokens = tokens.map_err(|error| setting(error.to_string()))?;
        if self.settings.validation.data.len() > self.settings.data.len() {
            let problem = "`validation.data` has more sources than `data`; the first has the task of the first there, and so on";
            return Err(self.refuse("validation.data", problem.to_owned()));
        }
        let kind = match self.settings.objective {
            ObjectiveSettings::Adaptation { .. } => TaskKind::Generation,
            _ => TaskKind::Comprehension,
        };
        let tasks = self.settings.data.iter().map(|data| LanguageTask {
            kind: data.task.unwrap_or(kind),
            instructions: data.instructions,
            max_length: data.max_length,
        });
        Ok(Language {
            text,
            tokens,
            tasks: tasks.collect(),
            reads_clips: self.settings.reads_clips(),
            text_weight,
            head_weight,
            show,
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
