//! Where a model's first weights come from: runs, and converted models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use divot::checkpoint::{TEXT_TOKENIZER, WEIGHTS};
use divot::weights::Source;

use crate::checkpoint::{self, Start};
use crate::error::{Error, Result};
use crate::model::{Model, PARTS};
use crate::parameters::{self, is_below};

/// How many runs may start from each other.
const MAX_DEPTH: usize = 32;

/// A model that was filled with the weights that it starts from.
pub(crate) struct Filled {
    pub model: Model,
    /// Of each parameter that was filled, the run that it was read from and the step where that stood; `None` if it was a
    /// converted model.
    pub read: BTreeMap<String, Option<(PathBuf, usize)>>,
    /// Layers whose low-rank adaptation in this folder the model has no place for. Their bases alone are not what was
    /// trained.
    pub lost: BTreeMap<String, PathBuf>,
}

/// Fills a model with the weights that it starts from. Where one part lies within another, the longer path
/// counts. Parameters that are not trained are kept in the type `frozen`.
///
/// A part's parameters are found in its folder under the same path, or else under one of which one ends in the
/// other: `detokenizer.vae` is filled from `vae` of the run that trained the autoencoder, and `vision` from
/// `tokenizer.vision` of a converted model. Of a run, the moving average of the parameters is taken if it keeps one.
/// What it had frozen is found where it started from. Low-rank adaptation begins anew on a folder without it.
///
/// # Errors
/// If a folder is neither a run's nor a model's, or a parameter is missing there or has another shape.
pub(crate) fn fill(starts: &[Start], mut model: Model, frozen: DType) -> Result<Filled> {
    let mut starts: Vec<&Start> = starts.iter().collect();
    starts.sort_by_key(|start| start.part.len());
    let paths = parameters::paths(&model);
    // The start of a path: the one of the longest part around it.
    let start_of = |path: &str| starts.iter().rfind(|start| is_below(path, &start.part));
    let (mut read, mut lost) = (BTreeMap::new(), BTreeMap::new());
    for start in &starts {
        let Some(folder) = &start.folder else {
            continue;
        };
        let own = |path: &str| start_of(path).is_some_and(|owner| owner == start);
        let mut found = Vec::new();
        find(&start.part, folder, 0, &mut found)?;
        for (part, held) in &found {
            let (next, filled) = held.fill(part, own, model, frozen)?;
            model = next;
            for path in filled {
                // What has all of a layer needs no adaptation of it.
                lost.remove(layer(&path));
                read.insert(path, held.run.clone());
            }
            for layer in held.adapted(part, own, &paths) {
                lost.insert(layer, held.folder.clone());
            }
        }
    }
    for path in &paths {
        if let Some(folder) = start_of(path).and_then(|start| start.folder.as_ref())
            && !read.contains_key(path)
            && !is_adaptation(path)
        {
            return Err(Error::run(
                folder,
                format!("holds no `{path}`"),
                "name the folder that this part was trained or converted into",
            ));
        }
    }
    Ok(Filled { model, read, lost })
}

/// The path of the layer that a parameter is of.
fn layer(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(layer, _)| layer)
}

/// The text tokenizer of the language model that a folder holds: the one that the run's recipe names, or the one beside
/// the converted model's weights.
pub(crate) fn text_tokenizer(folder: &Path) -> Option<PathBuf> {
    if let Ok(Some(newest)) = checkpoint::of(folder) {
        let recipe: toml::Table = toml::from_str(&newest.state().ok()?.recipe).ok()?;
        let named = recipe.get("model")?.get("text_tokenizer")?.as_str()?;
        return Some(named.into());
    }
    let parts = PARTS.iter().rev().filter(|(path, ..)| *path == "llm");
    parts
        .map(|(_, part, _)| part.folder(folder))
        .chain([folder.to_owned()])
        .map(|part| part.join(TEXT_TOKENIZER))
        .find(|file| file.exists())
}

/// Returns whether a parameter is one of low-rank adaptation, which begins anew where a folder has none.
fn is_adaptation(path: &str) -> bool {
    ["lora_a", "lora_b"]
        .iter()
        .any(|name| path.split('.').any(|part| part == *name))
}

/// Finds the files that a part is filled from, as far as a folder leads to them, each with the part that it
/// fills; later ones count.
fn find(part: &str, folder: &Path, depth: usize, found: &mut Vec<(String, Held)>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::run(
            folder,
            "starts from itself, or after too many other runs",
            "export it, and start from what was exported",
        ));
    }
    let sources = match checkpoint::of(folder)? {
        Some(newest) => {
            // What the run had frozen is where it came from.
            for start in newest.state()?.start {
                let part = match is_below(part, &start.part) {
                    true => part,
                    false if is_below(&start.part, part) => &start.part,
                    false => continue,
                };
                if let Some(folder) = &start.folder {
                    find(part, folder, depth + 1, found)?;
                }
            }
            let weights = newest.average().unwrap_or_else(|| newest.weights());
            vec![Held {
                source: newest.source(&weights)?,
                folder: folder.to_owned(),
                run: Some((folder.to_owned(), newest.step)),
                name: "",
                path: "",
            }]
        }
        None => parts(folder)?,
    };
    found.extend(sources.into_iter().map(|held| (part.to_owned(), held)));
    Ok(())
}

/// A network that a folder holds.
struct Held {
    source: Source,
    folder: PathBuf,
    /// If the folder is a run's, it, and the step where it stands.
    run: Option<(PathBuf, usize)>,
    /// What its names have in front in the file. Other tensors of the file are not its own.
    name: &'static str,
    /// What its paths have in front in a model.
    path: &'static str,
}

impl Held {
    /// Fills those paths of a part of the model that are its `own` as far as the network has them. Returns the paths
    /// that were filled.
    fn fill(
        &self,
        part: &str,
        own: impl Fn(&str) -> bool,
        model: Model,
        frozen: DType,
    ) -> Result<(Model, Vec<String>)> {
        let Some(root) = self.root(part) else {
            return Ok((model, Vec::new()));
        };
        let name = |name: &str| self.place(part, &root, name).filter(|path| own(path));
        parameters::load(&self.source, model, name, frozen)
    }

    /// Layers at these `paths` of the model, as far as they are its `own`, that have low-rank adaptation here and none in
    /// the model.
    fn adapted(&self, part: &str, own: impl Fn(&str) -> bool, paths: &[String]) -> Vec<String> {
        let Some(root) = self.root(part) else {
            return Vec::new();
        };
        let has = |part: &str| paths.iter().any(|path| is_below(path, part));
        let tensors = self.source.tensors();
        let places = tensors.filter_map(|tensor| self.place(part, &root, &tensor.name));
        let places = places.filter(|path| is_adaptation(path) && own(path));
        let layers = places.filter_map(|path| {
            let (layer, _) = path.rsplit_once(".lora_")?;
            (has(layer) && !has(&path)).then(|| layer.to_owned())
        });
        layers.collect()
    }

    /// The path in the model that a tensor has for `part`, whose own path here is `root`, if it is of that part.
    fn place(&self, part: &str, root: &str, name: &str) -> Option<String> {
        let path = self.path(name)?;
        let rest = path.strip_prefix(root)?;
        is_below(&path, root).then(|| format!("{part}{rest}"))
    }

    /// The path of a tensor in a model, if it is the network's.
    fn path(&self, name: &str) -> Option<String> {
        let rest = match self.name {
            "" => name,
            own => name.strip_prefix(own)?.strip_prefix('.')?,
        };
        Some(match self.path {
            "" => rest.to_owned(),
            path => format!("{path}.{rest}"),
        })
    }

    /// The path that the network's tensors have for `part`: the same, or else one of which one ends in the other.
    fn root(&self, part: &str) -> Option<String> {
        let tensors = self.source.tensors();
        let paths: Vec<String> = tensors
            .filter_map(|tensor| self.path(&tensor.name))
            .collect();
        let last = part.rsplit('.').next().unwrap_or(part);
        let shorter = [part, last]
            .into_iter()
            .find(|root| paths.iter().any(|path| is_below(path, root)));
        let longer = || {
            paths.iter().find_map(|path| {
                let (network, rest) = path.split_once('.')?;
                is_below(rest, part).then(|| format!("{network}.{part}"))
            })
        };
        shorter.map(str::to_owned).or_else(longer)
    }
}

/// The networks of a converted model, or of one of its parts. Of several with the same path, only the last one of
/// [`PARTS`] is taken.
fn parts(folder: &Path) -> Result<Vec<Held>> {
    let mut networks: Vec<Held> = Vec::new();
    for (path, part, name) in PARTS {
        let alone = folder.ends_with(part.name()).then(|| folder.to_owned());
        let folders = [part.folder(folder)].into_iter().chain(alone);
        let mut files = folders.map(|folder| folder.join(WEIGHTS));
        if let Some(file) = files.find(|file| file.exists()) {
            let source = Source::open(&file)?;
            networks.retain(|held| held.path != path);
            networks.push(Held {
                source,
                folder: folder.to_owned(),
                run: None,
                name,
                path,
            });
        }
    }
    match networks.is_empty() {
        false => Ok(networks),
        true => Err(Error::run(
            folder,
            "holds neither a run nor a converted model",
            "train that part first, or name another folder",
        )),
    }
}
