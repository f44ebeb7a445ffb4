//! The inverse of conversion: a model under the released files' names.

mod plan;
mod schedule;
mod sizes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::released::OWN;
use crate::checkpoint::CONFIG;
use crate::error::{Error, Result};
use crate::progress::{Progress, Step};
use crate::staging::{Staged, not_written};
use crate::weights::{TensorSpec, WeightsError, write_pytorch, write_safetensors};
use plan::{Plan, Planned};

/// A model that was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The folder.
    pub folder: PathBuf,
    /// The files with weights, relative to it.
    pub files: Vec<PathBuf>,
    /// What the reader of the files should know, a line each: parts that were left out, and values that the
    /// released system has as constants.
    pub notes: Vec<String>,
}

/// Writes the parts of the model in the folder `model` under the released files' names: the inverse of
/// [`convert`](super::convert).
///
/// Tensors have the released names and shapes, and the element type that the model is stored in, or f16 if that is
/// 8 or 4 bits. LoRA is merged. `torch.load` reads the `.bin` files, with `weights_only` too, and `transformers` reads
/// the folders of language models and of the text tokenizer. A part `llm` gets the names of `llm-pretrained`. `config.json` has the
/// sizes, for [`ReleasedConfig::read`](super::ReleasedConfig::read).
///
/// One tensor is in memory at a time. Everything is written beside `to` and renamed when it is complete. An
/// older export at `to` is replaced.
///
/// # Errors
/// If the model has no part with a released name, or a variant of a network that was never released; if a file
/// of it is missing or damaged; if `to` holds anything but an older export of the same files, or cannot be
/// written; if `progress` stops it ([`Error::Stopped`]).
pub fn export_released(
    model: &Path,
    to: &Path,
    mut progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Exported> {
    let plan = Plan::of(model)?;
    let mut known: BTreeSet<PathBuf> = plan.texts.keys().cloned().collect();
    known.extend(plan.files.keys().map(PathBuf::from));
    check_replaceable(to, &known)?;

    let total: u64 = plan.files.values().flatten().map(Planned::bytes).sum();
    let mut done = 0;
    let staged = Staged::beside(to, "released", CONFIG)?;
    for (name, contents) in &plan.texts {
        make_parent(&staged, name, to)?;
        staged.write(name, contents)?;
    }
    for (name, tensors) in &plan.files {
        make_parent(&staged, name.as_ref(), to)?;
        let specs: Vec<TensorSpec> = tensors.iter().map(Planned::spec).collect();
        let tensor = |i: usize| {
            let data = tensors[i].read()?;
            done += tensors[i].bytes();
            let step = Progress {
                name,
                step: Step::Save,
                done,
                total,
            };
            match progress(step) {
                ControlFlow::Continue(()) => Ok(data),
                ControlFlow::Break(()) => Err(WeightsError::Stopped),
            }
        };
        let path = staged.folder().join(name);
        staged.in_place(match name.ends_with(".safetensors") {
            // Without the format, `transformers` refuses the file.
            true => {
                let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
                write_safetensors(&path, &specs, &metadata, tensor)
            }
            false => write_pytorch(&path, &specs, tensor),
        })?;
    }
    Ok(Exported {
        folder: staged.put_in_place()?,
        files: plan.files.into_keys().map(PathBuf::from).collect(),
        notes: plan.notes,
    })
}

fn make_parent(staged: &Staged, name: &Path, place: &Path) -> Result<()> {
    let parent = name.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(staged.folder().join(parent)).map_err(|error| not_written(place, &error))
}

/// Refuses to replace a folder that is no older export of the same files.
fn check_replaceable(to: &Path, known: &BTreeSet<PathBuf>) -> Result<()> {
    let refused = |problem: String| {
        Err(Error::config(
            to,
            problem,
            "move it away or choose another folder",
        ))
    };
    if !to.exists() {
        return Ok(());
    }
    if !to.is_dir() {
        return refused("is no folder".to_owned());
    }
    if let Some(file) = foreign(to, Path::new(""), known)? {
        return refused(format!("holds `{}`, which would be lost", file.display()));
    }
    let config = fs::read(to.join(CONFIG)).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    let is_empty = fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none());
    match config.get(OWN).is_some() || is_empty {
        true => Ok(()),
        false => refused("holds released files that are no export".to_owned()),
    }
}

/// Finds a file below `folder` that is not `known`. Only folders with known files are looked into.
fn foreign(to: &Path, folder: &Path, known: &BTreeSet<PathBuf>) -> Result<Option<PathBuf>> {
    let path = to.join(folder);
    let unreadable = |error| not_written(&path, &error);
    for entry in fs::read_dir(&path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = folder.join(entry.file_name());
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() && known.iter().any(|file| file.starts_with(&name)) {
            if let Some(found) = foreign(to, &name, known)? {
                return Ok(Some(found));
            }
        } else if !(kind.is_file() && known.contains(&name)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
