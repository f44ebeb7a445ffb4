//! Checkpoints of a run: everything that an interrupted run needs to go on as if it had not been.
//!
//! A checkpoint is a folder `checkpoints/step-00001000` below the run's. It holds the parameters
//! (`weights.safetensors`), their moving average (`average.safetensors`), the optimiser's moments
//! (`optimizer.safetensors`), all by the parameters' paths, and `state.json`. Frozen parameters that
//! come from another folder are not in it. A folder is written beside its place and renamed, so that a
//! checkpoint is whole or not there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::{AdamWState, AdaptiveMomentumState, DynState};
use burn::tensor::{DType, Device, Tensor, TensorData};
use divot::weights::{SafetensorsWriter, Source, TensorSpec, Weights, WeightsError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::losses::Losses;
use crate::optimizer::Optimizer;
use crate::parameters::{self, Average, Named, spec};
use crate::recipe::Precision;

const FOLDER: &str = "checkpoints";
const WEIGHTS: &str = "weights.safetensors";
const AVERAGE: &str = "average.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const PREFIX: &str = "step-";
const PARTIAL: &str = ".partial-";
/// What to do about a damaged file.
const GO_BACK: &str = "remove this checkpoint's folder to go on from the one before it";
/// Key of the optimiser's file under which its step counts are.
const TIMES: &str = "times";

/// Where a run stands, apart from its tensors. Fields of other versions are passed over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps that are done.
    pub step: usize,
    /// Samples that were read.
    pub samples: u64,
    /// Steps that were left out because their loss or gradient was not finite, in all.
    pub not_finite: usize,
    /// Such steps in a row, up to now.
    pub not_finite_in_a_row: usize,
    /// The lowest validation loss, and the step after which it was measured.
    pub best: Option<(f64, usize)>,
    /// Losses of the steps since numbers were logged last.
    #[serde(default)]
    pub unlogged: Losses,
    /// What the run computes in, bfloat16 or 32 bits. Absent in checkpoints of earlier versions.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// The seed of everything random. 0 in checkpoints of earlier versions, whose recipe says it.
    #[serde(default)]
    pub seed: u64,
    /// Where the weights came from that are not in the checkpoint.
    pub start: Vec<Start>,
    /// The runs that parameters were read from which are not in the checkpoint, and the steps where they stood.
    #[serde(default)]
    pub read: BTreeMap<PathBuf, usize>,
    /// The recipe, with the settings given beside it, in TOML.
    pub recipe: String,
    /// Its SHA-256, in hexadecimal. Empty in checkpoints of earlier versions.
    #[serde(default)]
    pub recipe_hash: String,
}

/// Where the weights of a part of the model come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Path of the part: `tokenizer`, `tokenizer.vision`, `detokenizer.vae`.
    pub part: String,
    /// A run's folder, or that of a converted model; random weights if absent.
    pub folder: Option<PathBuf>,
}

/// The SHA-256 of a recipe's text, in hexadecimal.
pub(crate) fn recipe_hash(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A checkpoint on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    folder: PathBuf,
    /// The steps that were done.
    pub step: usize,
}

/// The checkpoints of a run, oldest first.
///
/// # Errors
/// If the folder cannot be read.
pub fn all(run: &Path) -> Result<Vec<Checkpoint>> {
    let folder = run.join(FOLDER);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |error| Error::io(&folder, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            let folder = folder.join(&name);
            found.push(Checkpoint { folder, step });
        }
    }
    found.sort_by_key(|checkpoint| checkpoint.step);
    Ok(found)
}

/// The newest checkpoint of a run, if it has one.
///
/// # Errors
/// If the folder cannot be read.
pub fn newest(run: &Path) -> Result<Option<Checkpoint>> {
    Ok(all(run)?.pop())
}

/// A run's newest checkpoint, or the one whose folder this is.
///
/// # Errors
/// If the folder cannot be read.
pub fn of(folder: &Path) -> Result<Option<Checkpoint>> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let step = name.and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
    match step {
        Some(step) if folder.join(STATE).is_file() => Ok(Some(Checkpoint {
            folder: folder.to_path_buf(),
            step,
        })),
        _ => newest(folder),
    }
}

impl Checkpoint {
    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file with the trained parameters.
    pub fn weights(&self) -> PathBuf {
        self.folder.join(WEIGHTS)
    }

    /// The file with their moving average, if the run keeps one.
    pub fn average(&self) -> Option<PathBuf> {
        let path = self.folder.join(AVERAGE);
        path.exists().then_some(path)
    }

    /// Where the run stood.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn state(&self) -> Result<State> {
        let path = self.folder.join(STATE);
        let damaged = |what: String| Error::run(&path, format!("is damaged: {what}"), GO_BACK);
        let text = fs::read_to_string(&path).map_err(|error| damaged(error.to_string()))?;
        let state: State =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if !state.recipe_hash.is_empty() && state.recipe_hash != recipe_hash(&state.recipe) {
            return Err(damaged(
                "its recipe is not the one that it names".to_owned(),
            ));
        }
        Ok(state)
    }

    /// Opens one of its files with tensors.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub(crate) fn source(&self, path: &Path) -> Result<Source> {
        Source::open(path).map_err(|error| {
            let what = match error {
                WeightsError::File { problem, .. } => problem,
                WeightsError::Io { source, .. } => source.to_string(),
                other => return other.into(),
            };
            Error::run(path, format!("is damaged: {what}"), GO_BACK)
        })
    }

    /// Fills a model with the trained parameters.
    ///
    /// # Errors
    /// If a file is damaged, or the model has other trained parameters.
    pub(crate) fn load<M: Module>(&self, path: &Path, model: M, names: &[Named]) -> Result<M> {
        let source = self.source(path)?;
        let own = |name: &str| Some(name.to_owned());
        let (model, filled) = parameters::load(&source, model, own, DType::F32)?;
        let expected = names.iter().map(|(name, _)| name);
        match expected.clone().eq(&filled) && source.tensors().len() == filled.len() {
            true => Ok(model),
            false => {
                let missing = expected.into_iter().find(|&name| !filled.contains(name));
                let problem = match missing {
                    Some(name) => format!("does not hold `{name}`, which this recipe needs"),
                    None => "holds parameters that this recipe does not need".to_owned(),
                };
                let remedy =
                    "resume with the recipe that it was trained with, or start anew from it";
                Err(Error::run(path, problem, remedy))
            }
        }
    }

    /// Fills an optimiser with its moments.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(crate) fn load_optimizer(
        &self,
        optimizer: &mut Optimizer,
        names: &[Named],
        device: &Device,
    ) -> Result<()> {
        let path = self.folder.join(OPTIMIZER);
        let damaged = |what: String| Error::run(&path, format!("is damaged: {what}"), GO_BACK);
        let source = self.source(&path)?;
        let notes = Weights::open(&path)?;
        let times = notes.metadata().get(TIMES).map_or("", String::as_str);
        let times: BTreeMap<String, usize> =
            serde_json::from_str(times).map_err(|error| damaged(error.to_string()))?;
        if times.is_empty() {
            return Ok(());
        }
        for (name, time) in times {
            let shape = names.iter().find(|(known, _)| *known == name);
            let shape = shape.map(|(_, shape)| shape);
            let moment = |number: usize| -> Result<TensorData> {
                let name = format!("{name}.moment_{number}");
                let tensor = source.get(&name);
                let tensor = tensor.filter(|tensor| Some(&tensor.shape) == shape);
                let tensor = tensor
                    .ok_or_else(|| damaged(format!("`{name}` is missing or has another shape")))?;
                Ok(tensor.read()?)
            };
            let state = create(time, [moment(1)?, moment(2)?], device);
            let state = state.ok_or_else(|| damaged(format!("`{name}` has no known rank")))?;
            optimizer.states.insert(name, state);
        }
        Ok(())
    }
}

/// What a checkpoint is made of.
pub(crate) struct Contents<'a, M> {
    pub state: &'a State,
    pub model: &'a M,
    /// The parameters that are saved, in the order of the fields.
    pub names: &'a [Named],
    pub average: Option<&'a Average<M>>,
    pub optimizer: &'a Optimizer,
}

/// Saves a checkpoint, then removes older ones: all but the last `keep` and the best.
///
/// # Errors
/// If it cannot be written. Older checkpoints are as they were then.
pub(crate) fn save<M: Module>(
    run: &Path,
    contents: &Contents<'_, M>,
    keep: usize,
) -> Result<Checkpoint> {
    let folder = run.join(FOLDER);
    let failed = |error| Error::io(&folder, error);
    fs::create_dir_all(&folder).map_err(failed)?;
    let staging = tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(&folder)
        .map_err(failed)?;

    let name = format!("{PREFIX}{:08}", contents.state.step);
    // Not the temporary folder itself, which nobody but its owner may read.
    let made = staging.path().join(&name);
    write(&made, contents).map_err(|error| unwritten(&folder, contents.state.step, error))?;

    let place = folder.join(&name);
    if place.exists() {
        // Of the same step, which an earlier part of the run saved.
        fs::rename(&place, staging.path().join("old")).map_err(failed)?;
    }
    fs::rename(&made, &place).map_err(failed)?;
    // The new name is on the disk only once the folder is.
    #[cfg(unix)]
    File::open(&folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    drop(staging);

    let saved = all(run)?;
    let state = contents.state;
    let best = state.best.map(|(_, step)| step);
    let old = saved.len().saturating_sub(keep.max(1));
    for checkpoint in &saved[..old] {
        if Some(checkpoint.step) != best {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(&checkpoint.folder);
        }
    }
    Ok(Checkpoint {
        folder: place,
        step: state.step,
    })
}

/// Writes the files of a checkpoint into a new folder.
fn write<M: Module>(folder: &Path, contents: &Contents<'_, M>) -> Result<()> {
    let Contents {
        state,
        model,
        names,
        average,
        optimizer,
    } = contents;
    fs::create_dir(folder).map_err(|error| Error::io(folder, error))?;
    parameters::save(&folder.join(WEIGHTS), *model, names)?;
    if let Some(average) = average {
        parameters::save(&folder.join(AVERAGE), &average.model, names)?;
    }
    save_optimizer(&folder.join(OPTIMIZER), optimizer, names)?;
    let path = folder.join(STATE);
    let text = serde_json::to_string_pretty(state).unwrap_or_default();
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| Error::io(&path, error))
}

/// What is said of a checkpoint that cannot be written. The file that failed has a temporary name and is gone, so
/// the folder is named.
fn unwritten(folder: &Path, step: usize, error: Error) -> Error {
    let reason = match &error {
        Error::Io { source, .. }
        | Error::Model(divot::Error::Weights(WeightsError::Io { source, .. })) => source.kind(),
        _ => return error,
    };
    Error::run(
        folder,
        format!(
            "the checkpoint of step {step} cannot be written ({reason}), and those before it stand"
        ),
        "free some space or mend the disk, and resume",
    )
}

/// Removes what an interrupted save left.
pub(crate) fn clean(run: &Path) {
    let entries = fs::read_dir(run.join(FOLDER));
    for entry in entries.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn save_optimizer(path: &Path, optimizer: &Optimizer, names: &[Named]) -> Result<()> {
    let states = || {
        names
            .iter()
            .filter_map(|(name, shape)| Some((name, shape, optimizer.states.get(name)?)))
    };
    let mut times = BTreeMap::new();
    let mut specs: Vec<TensorSpec> = Vec::new();
    for (name, shape, state) in states() {
        times.insert(name, time(state));
        for number in [1, 2] {
            specs.push(spec(&format!("{name}.moment_{number}"), shape, DType::F32));
        }
    }
    let times = serde_json::to_string(&times).unwrap_or_default();
    let metadata = BTreeMap::from([(TIMES.to_owned(), times)]);
    let mut writer = SafetensorsWriter::create(path, &specs, &metadata)?;
    for (_, _, state) in states() {
        for moment in moments(state) {
            writer.write(&moment)?;
        }
    }
    Ok(writer.finish()?)
}

/// Calls a function of a state for the rank that it has.
macro_rules! of_rank {
    ($rank:expr, $d:ident => $body:expr) => {
        match $rank {
            1 => {
                const $d: usize = 1;
                Some($body)
            }
            2 => {
                const $d: usize = 2;
                Some($body)
            }
            3 => {
                const $d: usize = 3;
                Some($body)
            }
            4 => {
                const $d: usize = 4;
                Some($body)
            }
            5 => {
                const $d: usize = 5;
                Some($body)
            }
            _ => None,
        }
    };
}

/// Steps that a parameter took.
pub(crate) fn time(state: &DynState) -> usize {
    of_rank!(state.rank(), D => state.downcast_ref::<AdamWState<D>>().momentum.time)
        .expect("parameters have one to five axes")
}

pub(crate) fn moments(state: &DynState) -> [TensorData; 2] {
    of_rank!(state.rank(), D => {
        let momentum = &state.downcast_ref::<AdamWState<D>>().momentum;
        [&momentum.moment_1, &momentum.moment_2].map(|moment| moment.to_data())
    })
    .expect("parameters have one to five axes")
}

/// The state of a parameter, unless its moments have other ranks than parameters have.
pub(crate) fn create(
    time: usize,
    [first, second]: [TensorData; 2],
    device: &Device,
) -> Option<DynState> {
    let rank = first.shape().num_dims();
    of_rank!(rank, D => {
        let moment = |data: TensorData| Tensor::<D>::from_data(data, (device, DType::F32));
        let momentum = AdaptiveMomentumState {
            time,
            moment_1: moment(first),
            moment_2: moment(second),
            max_moment_2: None,
        };
        DynState::create(AdamWState { momentum }, D)
    })
}
