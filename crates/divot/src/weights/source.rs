//! Reads released checkpoints, one tensor at a time.

use super::pytorch::{self, PytorchTensor};
use super::safetensors::{Entry, SafetensorsFile, is_safetensors};
use super::{DAMAGED, WeightsError, count, eight_bits, one_line, packed, some_names};

use burn::tensor::{Bytes, DType, TensorData};
use divot_nn::SharedBytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prefixes that wrappers around the network add to every name: Lightning, DeepSpeed,
/// `DistributedDataParallel`, `torch.compile`.
const PREFIXES: [&str; 5] = [
    "module.",
    "_forward_module.",
    "_orig_mod.",
    "state_dict.",
    "model.",
];

/// Files beside weights that have the same extension but are not weights.
const NOT_WEIGHTS: [&str; 6] = [
    "training_args",
    "optimizer",
    "scheduler",
    "rng_state",
    "scaler",
    "random_states",
];

/// A released checkpoint: one file or several shards, PyTorch or safetensors.
///
/// Opening reads only names, shapes and element types. A PyTorch pickle is parsed and never run.
///
/// Names are those of the state dict. In a training checkpoint, the entry with the state dict
/// (`state_dict`, `model`, `module` and the like) is found, and its key is removed from the names. The
/// prefixes `module.`, `_forward_module.`, `_orig_mod.` and `model.` are removed if **every** tensor has
/// them.
///
/// ```no_run
/// # use divot::weights::Source;
/// let source = Source::open("pretrained/Divot_tokenizer.bin".as_ref())?;
/// for tensor in source.tensors() {
///     println!("{} {:?} {:?}", tensor.name, tensor.shape, tensor.dtype);
/// }
/// # Ok::<(), divot::weights::WeightsError>(())
/// ```
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    tensors: Vec<SourceTensor>,
    unreadable: BTreeMap<String, String>,
    prefix: String,
}

/// A tensor of a [`Source`] that is not read yet.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// Its name in the state dict.
    pub name: String,
    /// Extents, outermost first, in PyTorch's order.
    pub shape: Vec<usize>,
    /// Element type: the stored one, or f16 for a tensor that is stored in 8 or 4 bits.
    pub dtype: DType,
    /// The file that contains it.
    pub file: PathBuf,
    data: TensorSource,
}

#[derive(Debug, Clone)]
enum TensorSource {
    Pytorch(PytorchTensor),
    Safetensors(Arc<SafetensorsFile>, Entry),
}

impl SourceTensor {
    /// Reads only this tensor. The data is not cached, so another call reads the file again.
    ///
    /// # Errors
    ///
    /// If the file is shorter than stated, its checksum is wrong, or it cannot be read; if the tensor is stored in 8 or
    /// 4 bits, and its scales are damaged.
    pub fn read(&self) -> Result<TensorData, WeightsError> {
        let failed = |err: io::Error| match err.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                let problem = format!("cannot be read ({err})");
                WeightsError::tensor(&self.name, problem, DAMAGED).in_file(&self.file)
            }
            _ => WeightsError::reading(&self.file, err),
        };
        let bytes = match &self.data {
            TensorSource::Pytorch(tensor) => Bytes::from_bytes_vec(tensor.read().map_err(failed)?),
            TensorSource::Safetensors(file, entry) => {
                let bytes = file.read(entry).map_err(failed)?;
                let restored = match (&entry.scales, entry.packed) {
                    (None, None) => Ok(Bytes::from_bytes_vec(bytes)),
                    (None, Some(bits)) => {
                        let range = 0..bytes.len();
                        let bytes = SharedBytes::new(Arc::new(bytes), range);
                        packed::restore(&self.name, bits, bytes, &self.shape, self.dtype)
                    }
                    (Some(scales), _) => {
                        let scales = file.read(scales).map_err(failed)?;
                        let rows = entry.shape[0];
                        eight_bits::restore(&self.name, rows, &bytes, &scales, self.dtype)
                    }
                };
                restored.map_err(|error| error.in_file(&self.file))?
            }
        };
        Ok(TensorData::from_bytes(
            bytes,
            self.shape.clone(),
            self.dtype,
        ))
    }

    /// Returns the name of the stored element type: `q8` or `q4` for a tensor of 8 or 4 bits, which is read as f16.
    pub fn stored_type(&self) -> &'static str {
        match &self.data {
            TensorSource::Safetensors(_, entry) if entry.scales.is_some() => eight_bits::NAME,
            TensorSource::Safetensors(
                _,
                Entry {
                    packed: Some(bits), ..
                },
            ) => packed::bits_name(*bits),
            _ => self.dtype.name(),
        }
    }
}

impl Source {
    /// Opens a checkpoint.
    ///
    /// `path` is a PyTorch or safetensors file (detected by content, not by extension), the `*.index.json`
    /// of a sharded checkpoint, or a folder that contains such an index, the shards of one checkpoint, or a
    /// single file.
    ///
    /// # Errors
    ///
    /// If a file is missing, unreadable, truncated, of neither format, or made to run code; if a folder has
    /// no checkpoint or several; if a shard of the index is missing; if a tensor is in two shards.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let info = fs::metadata(path).map_err(|err| WeightsError::reading(path, err))?;
        let found = if info.is_dir() {
            open_folder(path)?
        } else if path.extension().is_some_and(|ext| ext == "json") {
            open_index(path)?
        } else {
            open_file(path)?
        };
        let Found {
            tensors,
            unreadable,
        } = found;
        if tensors.is_empty() {
            return Err(match unreadable.first_key_value() {
                None => {
                    let remedy = "point at the file with the weights";
                    WeightsError::file(path, "holds no tensors", remedy)
                }
                Some((name, what)) => {
                    let problem = format!("holds no tensors, and `{name}` is {what}");
                    WeightsError::file(path, problem, pytorch::STATE_DICT)
                }
            });
        }
        let (tensors, prefix) = strip_prefixes(tensors);
        Ok(Self {
            path: path.to_path_buf(),
            tensors: tensors.into_values().collect(),
            unreadable,
            prefix,
        })
    }

    /// Returns the path that was opened: a file or a folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &SourceTensor> {
        self.tensors.iter()
    }

    /// Returns the tensor called `name`, if it exists.
    pub fn get(&self, name: &str) -> Option<&SourceTensor> {
        self.tensors
            .binary_search_by(|tensor| tensor.name.as_str().cmp(name))
            .ok()
            .map(|i| &self.tensors[i])
    }

    /// Describes the entry `name` if it cannot be read as a tensor: a sparse or quantised tensor, a tensor
    /// of an element type that Burn does not have, or an object. Returns `None` for tensors and missing
    /// names.
    ///
    /// Such an entry is an error only for code that needs it.
    pub fn unreadable(&self, name: &str) -> Option<&str> {
        let what = self.unreadable.get(&format!("{}{name}", self.prefix));
        what.map(String::as_str)
    }

    /// Returns the prefix that was removed from every name, such as `module.`. Empty if none was.
    pub fn stripped_prefix(&self) -> &str {
        &self.prefix
    }
}

type Tensors = BTreeMap<String, SourceTensor>;

/// The contents of one or several files.
#[derive(Default)]
struct Found {
    tensors: Tensors,
    /// Entries that cannot be read as tensors, with descriptions.
    unreadable: BTreeMap<String, String>,
}

/// Removes the [`PREFIXES`] that all tensors share, repeatedly.
fn strip_prefixes(mut tensors: Tensors) -> (Tensors, String) {
    let mut stripped = String::new();
    // A tensor called just "model." would have no name left.
    while let Some(prefix) = PREFIXES.into_iter().find(|prefix| {
        tensors
            .keys()
            .all(|name| name.starts_with(prefix) && name.len() > prefix.len())
    }) {
        stripped += prefix;
        tensors = tensors
            .into_values()
            .map(|mut tensor| {
                tensor.name.drain(..prefix.len());
                (tensor.name.clone(), tensor)
            })
            .collect();
    }
    (tensors, stripped)
}

fn open_folder(path: &Path) -> Result<Found, WeightsError> {
    let reading = |err| WeightsError::reading(path, err);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(reading)? {
        // Names that are not UTF-8 are not searched for.
        if let Ok(name) = entry.map_err(reading)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();

    let indices = names.iter().map(String::as_str);
    let indices = prefer_safetensors(indices.filter(|n| n.ends_with(".index.json")).collect());
    match indices[..] {
        [] => {}
        [index] => return open_index(&path.join(index)),
        _ => return Err(ambiguous(path, &indices)),
    }

    let files = names.iter().map(String::as_str).filter(|name| {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        EXTENSIONS.contains(&extension) && !NOT_WEIGHTS.iter().any(|other| stem.starts_with(other))
    });
    let files = prefer_safetensors(files.collect());
    match files[..] {
        [] => {
            let problem = "holds no .safetensors, .bin, .pt, .pth or .ckpt file";
            let remedy = "point at the folder or the file with the weights";
            Err(WeightsError::file(path, problem, remedy))
        }
        [file] if Shard::parse(file).is_none() => open_file(&path.join(file)),
        _ => open_shards(path, &files),
    }
}

/// Extensions of files of weights.
const EXTENSIONS: [&str; 5] = ["safetensors", "bin", "pt", "pth", "ckpt"];

/// Returns whether a folder looks like a checkpoint, complete or not.
pub(crate) fn holds_weights(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        let extension = path.extension().unwrap_or_default();
        EXTENSIONS.iter().any(|known| extension == *known)
            || path.to_string_lossy().ends_with(".index.json")
    })
}

/// Prefers safetensors, because publishers often offer the same weights in both formats.
fn prefer_safetensors(mut names: Vec<&str>) -> Vec<&str> {
    if names.iter().any(|name| name.contains(".safetensors")) {
        names.retain(|name| name.contains(".safetensors"));
    }
    names
}

fn ambiguous(path: &Path, names: &[&str]) -> WeightsError {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let problem = format!("holds several checkpoints: {}", some_names(&names));
    WeightsError::file(path, problem, "name one of them instead of the folder")
}

/// `model-00002-of-00004.safetensors`: number 2 of 4.
struct Shard<'a> {
    stem: &'a str,
    number: usize,
    total: usize,
    digits: usize,
    extension: &'a str,
}

impl<'a> Shard<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (rest, extension) = name.rsplit_once('.')?;
        let (rest, total) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        Some(Self {
            stem,
            digits: number.len(),
            number: number.parse().ok()?,
            total: total.parse().ok()?,
            extension,
        })
    }

    fn belongs_with(&self, other: &Self) -> bool {
        (self.stem, self.total, self.extension) == (other.stem, other.total, other.extension)
    }
}

/// Opens the files of a folder as the shards of one checkpoint, which must be complete.
fn open_shards(folder: &Path, files: &[&str]) -> Result<Found, WeightsError> {
    let shards: Option<Vec<_>> = files.iter().map(|name| Shard::parse(name)).collect();
    match shards.as_deref() {
        Some([first, rest @ ..]) => {
            if rest.iter().any(|shard| !shard.belongs_with(first)) {
                return Err(ambiguous(folder, files));
            }
            let there: BTreeSet<_> = rest.iter().chain([first]).map(|s| s.number).collect();
            // Numbers start at 1. The total comes from a file name, so do not loop up to it.
            if let Some(missing) = (1..=there.len() + 1)
                .find(|number| !there.contains(number))
                .filter(|&number| number <= first.total)
            {
                let name = format!(
                    "{}-{missing:0digits$}-of-{:0digits$}.{}",
                    first.stem,
                    first.total,
                    first.extension,
                    digits = first.digits.min(16)
                );
                return Err(missing_shard(&folder.join(name), folder));
            }
        }
        // `pytorch_model-0.bin`, `pytorch_model-1.bin`: the same name except for a number.
        _ => {
            let stem = |name: &str| {
                let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
                stem.rsplit_once('-')
                    .filter(|(_, number)| number.parse::<usize>().is_ok())
                    .map(|(stem, _)| stem.to_string())
            };
            if stem(files[0]).is_none() || files.iter().any(|name| stem(name) != stem(files[0])) {
                return Err(ambiguous(folder, files));
            }
        }
    }
    let paths: Vec<_> = files.iter().map(|name| folder.join(name)).collect();
    merge(&paths)
}

fn missing_shard(shard: &Path, named_by: &Path) -> WeightsError {
    let problem = format!("this shard of {} is missing", one_line(named_by.display()));
    WeightsError::file(shard, problem, "download it into the same folder")
}

/// Opens every file and joins their tensors.
fn merge(paths: &[PathBuf]) -> Result<Found, WeightsError> {
    let mut all = Found::default();
    for path in paths {
        let found = open_file(path)?;
        all.unreadable.extend(found.unreadable);
        for (name, tensor) in found.tensors {
            if let Some(first) = all.tensors.get(&name) {
                let problem = format!("is also in {}", one_line(first.file.display()));
                let remedy = "keep the shards of one checkpoint only in a folder";
                return Err(WeightsError::tensor(&name, problem, remedy).in_file(path));
            }
            all.tensors.insert(name, tensor);
        }
    }
    Ok(all)
}

/// The relevant part of a `*.index.json`.
#[derive(serde::Deserialize)]
struct Index {
    /// File name of each tensor.
    weight_map: BTreeMap<String, String>,
}

fn open_index(path: &Path) -> Result<Found, WeightsError> {
    let text = fs::read(path).map_err(|err| WeightsError::reading(path, err))?;
    let index: Index = serde_json::from_slice(&text).map_err(|err| {
        let problem = format!("not the index of a sharded checkpoint ({err})");
        WeightsError::file(
            path,
            problem,
            "point at the checkpoint or download it again",
        )
    })?;

    let folder = path.parent().unwrap_or(Path::new(""));
    let shards: BTreeSet<_> = index.weight_map.values().collect();
    let mut paths = Vec::with_capacity(shards.len());
    for shard in shards {
        // An index is as untrusted as any download. It may name files beside it, but not elsewhere.
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            let problem = format!("names the shard `{shard}`, which is not a file beside it");
            return Err(WeightsError::file(path, problem, DAMAGED));
        }
        let shard = folder.join(shard);
        if !shard.exists() {
            return Err(missing_shard(&shard, path));
        }
        paths.push(shard);
    }

    let found = merge(&paths)?;
    let absent: Vec<_> = index
        .weight_map
        .into_iter()
        .filter(|(name, shard)| {
            let tensor = found.tensors.get(name);
            !found.unreadable.contains_key(name)
                && tensor.is_none_or(|tensor| tensor.file != folder.join(shard))
        })
        .map(|(name, _)| name)
        .collect();
    if !absent.is_empty() {
        let problem = format!(
            "lists {} that its shards do not hold: {}",
            count(&absent),
            some_names(&absent)
        );
        return Err(WeightsError::file(path, problem, DAMAGED));
    }
    Ok(found)
}

fn open_file(path: &Path) -> Result<Found, WeightsError> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut start))
        .map_err(|err| WeightsError::reading(path, err))?;

    if start.is_empty() {
        return Err(WeightsError::file(path, "empty", DAMAGED));
    }
    if start.starts_with(b"version https://git-lfs") {
        let problem = "a Git LFS pointer, not the file it stands for";
        return Err(WeightsError::file(path, problem, "run `git lfs pull`"));
    }
    if start.trim_ascii_start().starts_with(b"<") {
        let problem = "a web page, not a checkpoint";
        return Err(WeightsError::file(
            path,
            problem,
            "download the file itself",
        ));
    }
    let named_safetensors = path.extension().is_some_and(|ext| ext == "safetensors");
    if is_safetensors(&start) || (named_safetensors && !start.starts_with(b"PK")) {
        open_safetensors(path)
    } else {
        open_pytorch(path)
    }
}

fn open_safetensors(path: &Path) -> Result<Found, WeightsError> {
    let file = Arc::new(SafetensorsFile::open(path)?);
    let tensor = |(name, entry): (&String, &Entry)| {
        let tensor = SourceTensor {
            name: name.clone(),
            shape: entry.shape.clone(),
            dtype: entry.read_type(),
            file: path.to_path_buf(),
            data: TensorSource::Safetensors(file.clone(), entry.clone()),
        };
        (name.clone(), tensor)
    };
    Ok(Found {
        tensors: file.tensors.iter().map(tensor).collect(),
        unreadable: file.unreadable.clone(),
    })
}

fn open_pytorch(path: &Path) -> Result<Found, WeightsError> {
    let contents = pytorch::open(path)?;
    let tensor = |(name, data): (String, PytorchTensor)| {
        let tensor = SourceTensor {
            name: name.clone(),
            shape: data.shape.clone(),
            dtype: data.dtype,
            file: path.to_path_buf(),
            data: TensorSource::Pytorch(data),
        };
        (name, tensor)
    };
    Ok(Found {
        tensors: contents.tensors.into_iter().map(tensor).collect(),
        unreadable: contents.unreadable,
    })
}
