//! A trained model in the folders that inference reads, or under the released files' names.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use divot::Progress;
use divot::checkpoint::{CONFIG, Checkpoint, Part};
use divot::convert::{self, Exported};
use divot::data::dataset::Format;
use divot::language::TextTokenizer;
use divot::weights::StoredType;

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::objective::TaskKind;
use crate::recipe::{ObjectiveSettings, Precision, Recipe, Samples};
use crate::trainer::Trainer;

/// Which of a run's parameters are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// The moving average if the run keeps one, the parameters themselves otherwise.
    Best,
    /// The parameters themselves.
    Last,
}

/// Writes the networks of a run's newest checkpoint, or of one of its checkpoints' folders, into a model's folder, as
/// far as the run has them. Frozen networks come from where the recipe says. Low-rank adaptation is merged, and the tokens that guidance needs are stored with
/// the tokenizer.
///
/// A de-tokenizer that was adapted becomes `detokenizer-adapted`, any other `detokenizer`. A language model becomes
/// `llm-comprehension` if the run learned comprehension only, `llm-generation` if it learned generation only, and
/// `llm-pretrained` otherwise. So several runs can be exported into one folder. Weights have the element type `stored`.
///
/// Returns the folders that were written.
///
/// # Errors
/// If there is no checkpoint, what the recipe names is no longer there, the run trained only what is no part of
/// a model by itself, or a folder cannot be written.
pub fn export(
    run: &Path,
    to: &Path,
    weights: Weights,
    stored: StoredType,
    device: &Device,
) -> Result<Vec<PathBuf>> {
    let newest = checkpoint::of(run)?
        .ok_or_else(|| Error::run(run, "holds no checkpoint", "name the folder of a run"))?;
    let to = Checkpoint::new(to, device).with_stored_type(stored);
    Run::load(run, &newest, weights, device)?.save(to)
}

/// Writes the networks of a run's newest checkpoint, or those of a model's folder, under the released files'
/// names ([`convert::export_released`]).
///
/// The networks are written as by [`export`] first, into a hidden folder beside `to` that is removed at the end.
///
/// # Errors
/// Those of [`export`] and of [`convert::export_released`].
pub fn export_released(
    from: &Path,
    to: &Path,
    weights: Weights,
    device: &Device,
    progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Exported> {
    let Some(newest) = checkpoint::of(from)? else {
        let is_model = Part::ALL
            .iter()
            .any(|part| part.folder(from).join(CONFIG).exists());
        return match is_model {
            true => Ok(convert::export_released(from, to, progress)?),
            false => Err(Error::run(
                from,
                "holds neither a checkpoint nor a model",
                "name the folder of a run or of a model",
            )),
        };
    };
    let run = Run::load(from, &newest, weights, device)?;
    let beside = to.ancestors().skip(1).find(|folder| folder.is_dir());
    let beside = beside.unwrap_or(Path::new("."));
    let model = tempfile::Builder::new()
        .prefix(".model-")
        .tempdir_in(beside)
        .map_err(|error| Error::io(beside, error))?;
    run.save(Checkpoint::new(model.path(), device))?;
    Ok(convert::export_released(model.path(), to, progress)?)
}

/// What a run trained.
struct Run {
    folder: PathBuf,
    recipe: Recipe,
    model: Model,
}

impl Run {
    fn load(
        folder: &Path,
        newest: &checkpoint::Checkpoint,
        weights: Weights,
        device: &Device,
    ) -> Result<Self> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let mut recipe = Recipe::parse(newest.folder(), &name, &newest.state()?.recipe, &[])?;
        // Frozen parts are exported as they were before training.
        recipe.settings.precision = Precision::F32;
        let trainer = Trainer::again(&recipe, device)?.resume(newest)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            recipe,
            model: match weights {
                Weights::Best => trainer.evaluated(),
                Weights::Last => trainer.learned(),
            },
        })
    }

    /// The part of a model that its de-tokenizer is.
    fn decoder(&self) -> Part {
        match self.recipe.settings.objective {
            ObjectiveSettings::Adaptation { .. } => Part::AdaptedDetokenizer,
            _ => Part::Detokenizer,
        }
    }

    /// The part of a model that its language model is.
    fn language(&self) -> Result<Part> {
        let settings = &self.recipe.settings;
        let mut tasks = Vec::new();
        for data in &settings.data {
            tasks.push(match Samples::of(&data.source)?.format {
                Format::Story => Some(TaskKind::Generation),
                Format::Questions => Some(TaskKind::Comprehension),
                Format::Texts => None,
                _ => data.task.or(match settings.objective {
                    ObjectiveSettings::Adaptation { .. } => Some(TaskKind::Generation),
                    _ => Some(TaskKind::Comprehension),
                }),
            });
        }
        tasks.dedup();
        Ok(match tasks[..] {
            [Some(TaskKind::Comprehension)] => Part::Comprehension,
            [Some(TaskKind::Generation)] => Part::Generation,
            _ => Part::Pretrained,
        })
    }

    /// Writes the networks.
    fn save(self, mut checkpoint: Checkpoint<'_>) -> Result<Vec<PathBuf>> {
        let decoder = self.decoder();
        // A run without a language model needs none of its caches.
        let language = self.model.llm.as_ref().map(|_| self.language());
        let language = language.transpose()?;
        let Self {
            folder,
            recipe,
            model:
                Model {
                    tokenizer,
                    detokenizer,
                    llm,
                    ..
                },
        } = self;
        let mut written = Vec::new();
        if let Some(tokenizer) = tokenizer {
            let config = &recipe.model.tokenizer;
            written.push(
                checkpoint
                    .save(Part::Tokenizer, config, tokenizer, None)?
                    .folder,
            );
        }
        // A language model's run only looks at clips with it.
        let shows = matches!(
            recipe.settings.objective,
            ObjectiveSettings::Language { .. }
        );
        if let Some(detokenizer) = detokenizer.filter(|_| !shows) {
            let config = &recipe.model.detokenizer;
            written.push(checkpoint.save(decoder, config, detokenizer, None)?.folder);
        }
        if let Some((mut llm, language)) = llm.zip(language) {
            llm.llm = llm.llm.merge_lora();
            let config = recipe.model.llm.clone().with_lora(None);
            let text = recipe.settings.model.text_tokenizer.as_deref();
            let text = TextTokenizer::open(text.unwrap_or(Path::new("")))
                .map_err(|error| Error::Model(divot::Error::Llm(error.into())))?;
            written.push(checkpoint.save(language, &config, llm, Some(&text))?.folder);
        }
        match written.is_empty() {
            false => Ok(written),
            true => Err(Error::run(
                &folder,
                "trained a network that is no part of a model by itself",
                "train a stage that starts from it, and export that",
            )),
        }
    }
}
