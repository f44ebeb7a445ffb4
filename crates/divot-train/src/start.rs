//! Where a model's first weights come from: runs, and converted models.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::DType;
use divot::checkpoint::WEIGHTS;
use divot::weights::Source;

use crate::checkpoint::{self, Start};
use crate::error::{Error, Result};
use crate::model::{Model, PARTS};
use crate::parameters::{self, is_below};

/// How many runs may start from each other.
const MAX_DEPTH: usize = 32;

/// Fills a model with the weights that it starts from. Where one part lies within another, the longer path
/// counts. Parameters that are not trained are kept in the type
/// `frozen`.
///
/// A part's parameters are found in its folder under the same path, or else under the last name of it:
/// `detokenizer.vae` is filled from `vae` of the run that trained the autoencoder. What a run had frozen is
/// found where that run started from.
///
/// # Errors
/// If a folder is neither a run's nor a model's, or a parameter is missing there or has another shape.
pub(crate) fn fill(starts: &[Start], mut model: Model, frozen: DType) -> Result<Model> {
    let mut starts: Vec<&Start> = starts.iter().collect();
    starts.sort_by_key(|start| start.part.len());
    let mut filled = BTreeSet::new();
    for start in &starts {
        if let Some(folder) = &start.folder {
            let (next, paths) = fill_part(&start.part, folder, 0, model, frozen)?;
            model = next;
            filled.extend(paths);
        }
    }
    let paths = parameters::paths(&model);
    for start in &starts {
        let named = start.folder.is_some();
        if named && !paths.iter().any(|path| is_below(path, &start.part)) {
            return Err(Error::Setting {
                setting: format!("model.start.{:?}", start.part),
                problem: "is no part of this recipe's model".to_owned(),
            });
        }
    }
    for path in paths {
        let last = starts.iter().rfind(|start| is_below(&path, &start.part));
        if let Some(folder) = last.and_then(|start| start.folder.as_ref())
            && !filled.contains(&path)
        {
            return Err(Error::run(
                folder,
                format!("holds no `{path}`"),
                "name the folder that this part was trained or converted into",
            ));
        }
    }
    Ok(model)
}

/// Fills a part of the model as far as a folder has it. Returns the paths that were filled.
fn fill_part(
    part: &str,
    folder: &Path,
    depth: usize,
    mut model: Model,
    frozen: DType,
) -> Result<(Model, Vec<String>)> {
    if depth > MAX_DEPTH {
        return Err(Error::run(
            folder,
            "starts from itself, or after too many other runs",
            "export it, and start from what was exported",
        ));
    }
    let mut filled = Vec::new();
    let newest = checkpoint::newest(folder)?;
    let sources = match &newest {
        Some(newest) => {
            // What the run had frozen is where it came from.
            for start in newest.state()?.start {
                let part = match is_below(part, &start.part) {
                    true => part,
                    false if is_below(&start.part, part) => &start.part,
                    false => continue,
                };
                if let Some(folder) = &start.folder {
                    let (next, paths) = fill_part(part, folder, depth + 1, model, frozen)?;
                    model = next;
                    filled.extend(paths);
                }
            }
            vec![(String::new(), Source::open(&newest.weights())?)]
        }
        None => parts(folder)?,
    };
    for (prefix, source) in sources {
        let named = |name: &str| format!("{prefix}{name}");
        let last = part.rsplit('.').next().unwrap_or(part);
        let whole = source
            .tensors()
            .any(|tensor| is_below(&named(&tensor.name), part));
        let own = |name: &str| {
            let name = named(name);
            if whole {
                return is_below(&name, part).then_some(name);
            }
            let rest = name.strip_prefix(last)?;
            rest.starts_with('.').then(|| format!("{part}{rest}"))
        };
        let (next, paths) = parameters::load(&source, model, own, frozen)?;
        model = next;
        filled.extend(paths);
    }
    Ok((model, filled))
}

/// The files of a converted model, each with what its names lack in front.
fn parts(folder: &Path) -> Result<Vec<(String, Source)>> {
    let mut sources = Vec::new();
    for (name, part) in PARTS {
        let path = part.folder(folder).join(WEIGHTS);
        if path.exists() {
            sources.push((format!("{name}."), Source::open(&path)?));
        }
    }
    match sources.is_empty() {
        false => Ok(sources),
        true => Err(Error::run(
            folder,
            "holds neither a run nor a converted model",
            "train that part first, or name another folder",
        )),
    }
}
