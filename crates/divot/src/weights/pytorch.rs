//! Reads PyTorch checkpoints tensor by tensor: zip archives, and the format before version 1.6.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{BoolStore, DType};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Pickle, PickleError, Storage, TensorInfo, Value};
use super::{DAMAGED, WeightsError, one_line};

/// Remedy for a file that contains other objects than tensors.
pub(super) const STATE_DICT: &str = "save the model's state_dict() in PyTorch and use that";

/// Entries of a training checkpoint that may contain the weights, the likeliest first.
const WRAPPERS: [&str; 10] = [
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "network",
    "net",
    "weights",
    "params",
    "model_ema",
    "ema",
];

/// Maximum depth of dictionaries in the search for tensors.
const MAX_DEPTH: usize = 32;
/// Maximum number of visited entries of dictionaries. An entry counts each time it is referred to.
const MAX_ENTRIES: usize = 1 << 22;
/// Maximum number of elements that a tensor may have beyond those of its storage, by repetition.
const MAX_REPEATED: usize = 1 << 24;
/// The number at the start of files of PyTorch 0.1.10 to 1.5.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The contents of a file.
pub(super) struct Contents {
    pub tensors: BTreeMap<String, PytorchTensor>,
    /// Entries that cannot be read as tensors, with descriptions.
    pub unreadable: BTreeMap<String, String>,
}

/// A tensor that is not read yet.
#[derive(Debug, Clone)]
pub(super) struct PytorchTensor {
    pub shape: Vec<usize>,
    pub dtype: DType,
    strides: Vec<usize>,
    /// Offset in elements from the beginning of the storage.
    offset: usize,
    /// The name of the storage.
    storage: String,
    file: Arc<PytorchFile>,
}

/// The locations of the storages.
enum PytorchFile {
    Zip {
        archive: Mutex<ZipArchive<BufReader<File>>>,
        /// The prefix before `data/` in the names of storages.
        prefix: String,
        file_len: u64,
        /// Storages whose checksum was verified.
        checked: Mutex<HashSet<String>>,
    },
    Legacy {
        file: Mutex<File>,
        /// The offset and the length in bytes of each storage.
        storages: HashMap<String, (u64, u64)>,
    },
}

impl std::fmt::Debug for PytorchFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Zip { .. } => "Zip",
            Self::Legacy { .. } => "Legacy",
        })
    }
}

/// Opens a PyTorch file and finds its tensors without reading them.
pub(super) fn open(path: &Path) -> Result<Contents, WeightsError> {
    let reading = |err| WeightsError::reading(path, err);
    let mut reader = BufReader::new(File::open(path).map_err(reading)?);
    let start = reader.fill_buf().map_err(reading)?;
    if start.get(257..262) == Some(b"ustar") {
        let problem = "written by PyTorch before 0.1.10";
        let remedy = "load it with a current PyTorch and save its state_dict again";
        return Err(WeightsError::file(path, problem, remedy));
    }
    let (pickle, file) = match start.starts_with(b"PK") {
        true => open_zip(path, reader)?,
        false => open_legacy(path, reader)?,
    };
    let Value::Dict(root) = pickle.root else {
        let problem = format!("holds {} instead of a state dict", pickle.root.describe());
        return Err(WeightsError::file(path, problem, STATE_DICT));
    };
    let mut search = Search {
        pickle: &pickle,
        file: &file,
        visited: Cell::new(0),
        contents: Contents {
            tensors: BTreeMap::new(),
            unreadable: BTreeMap::new(),
        },
    };
    let state_dict = search.state_dict(root);
    search
        .collect(state_dict, "", 0)
        .map_err(|problem| WeightsError::file(path, problem, STATE_DICT))?;
    Ok(search.contents)
}

fn refused(path: &Path, err: PickleError, is_pickle: bool) -> WeightsError {
    let problem = match err {
        PickleError::RunsCode(callable) => {
            return WeightsError::Refused {
                path: path.to_path_buf(),
                callable: one_line(callable),
            };
        }
        PickleError::Io(err) if err.raw_os_error().is_some() => {
            return WeightsError::reading(path, err);
        }
        PickleError::Io(err) => match err.kind() {
            io::ErrorKind::UnexpectedEof if is_pickle => "truncated inside a pickle".to_owned(),
            _ if is_pickle => format!("holds a broken pickle ({err})"),
            _ => "neither a PyTorch checkpoint nor a safetensors file".to_owned(),
        },
    };
    WeightsError::file(path, problem, DAMAGED)
}

fn open_zip(
    path: &Path,
    reader: BufReader<File>,
) -> Result<(Pickle, Arc<PytorchFile>), WeightsError> {
    let zip_error = |err: ZipError| match err {
        ZipError::Io(err) if err.raw_os_error().is_some() => WeightsError::reading(path, err),
        err => WeightsError::file(path, format!("not a complete zip archive ({err})"), DAMAGED),
    };
    let file_len = match reader.get_ref().metadata() {
        Ok(metadata) => metadata.len(),
        Err(err) => return Err(WeightsError::reading(path, err)),
    };
    let mut archive = ZipArchive::new(reader).map_err(zip_error)?;
    let mut found = None;
    let mut script = false;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(zip_error)?;
        let name = entry.name().map_err(zip_error)?.to_string();
        script |= name.ends_with("/constants.pkl") || name.contains("/code/__torch__");
        if name.ends_with("/byteorder") {
            let mut order = Vec::new();
            let read = (&mut entry).take(16).read_to_end(&mut order);
            read.map_err(|err| refused(path, err.into(), true))?;
            if order == b"big" {
                let problem = "written on a big-endian machine";
                let remedy = "load it with PyTorch on this machine and save its state_dict again";
                return Err(WeightsError::file(path, problem, remedy));
            }
        }
        // Check each of them for functions that run code.
        if name.ends_with(".pkl") {
            let pickle =
                pickle::read(&mut BufReader::new(entry)).map_err(|err| refused(path, err, true))?;
            if let Some(prefix) = name.strip_suffix("data.pkl")
                && (prefix.is_empty() || prefix.ends_with('/'))
                && found.is_none()
            {
                found = Some((pickle, prefix.to_owned()));
            }
        }
    }
    if script {
        let problem = "a TorchScript archive, which holds a program beside its weights";
        return Err(WeightsError::file(path, problem, STATE_DICT));
    }
    let Some((pickle, prefix)) = found else {
        let problem = "a zip archive without a `data.pkl`, so not a PyTorch checkpoint";
        let remedy = "point at the file with the weights";
        return Err(WeightsError::file(path, problem, remedy));
    };
    let file = PytorchFile::Zip {
        archive: Mutex::new(archive),
        prefix,
        file_len,
        checked: Mutex::default(),
    };
    Ok((pickle, Arc::new(file)))
}

/// Opens a file of five pickles (a magic number, the version of the protocol, information about the system,
/// the saved object, the names of the storages), followed by every storage with its length.
fn open_legacy(
    path: &Path,
    mut reader: BufReader<File>,
) -> Result<(Pickle, Arc<PytorchFile>), WeightsError> {
    let reading = |err| WeightsError::reading(path, err);
    let start = reader.fill_buf().map_err(reading)?;
    // Every pickle of Python 3 starts with this opcode. Other pickles may look like text.
    let is_pickle = start.starts_with(b"\x80");
    let is_legacy = start
        .get(2..)
        .is_some_and(|rest| rest.starts_with(LEGACY_MAGIC));
    let mut read = || pickle::read(&mut reader).map_err(|err| refused(path, err, is_pickle));
    let first = read()?;
    if !is_legacy {
        if matches!(first.root, Value::Dict(_)) && first.storages.is_empty() {
            return Ok((first, Arc::new(PytorchFile::legacy(reader.into_inner()))));
        }
        let problem = format!(
            "a pickle that `torch.save` did not write: it holds {}",
            first.root.describe()
        );
        return Err(WeightsError::file(path, problem, STATE_DICT));
    }
    let (_version, _system, pickle, keys) = (read()?, read()?, read()?, read()?);
    let mut file = PytorchFile::legacy(reader.get_ref().try_clone().map_err(reading)?);
    let Value::List(list) = keys.root else {
        let problem = "has no list of storages";
        return Err(WeightsError::file(path, problem, DAMAGED));
    };
    let mut at = reader.stream_position().map_err(reading)?;
    let len = reader.get_ref().metadata().map_err(reading)?.len();
    let PytorchFile::Legacy { storages, .. } = &mut file else {
        return Ok((pickle, Arc::new(file)));
    };
    for key in &keys.lists[list] {
        let Value::Str(key) = key else {
            continue;
        };
        let mut elements = [0; 8];
        reader.seek(SeekFrom::Start(at)).map_err(reading)?;
        reader.read_exact(&mut elements).map_err(|_| {
            WeightsError::file(path, format!("storage {key} lies beyond the end"), DAMAGED)
        })?;
        at += 8;
        let class = pickle.storages.get(key).map(|storage| &*storage.class);
        let Some(size) = class.and_then(element_size) else {
            let problem = format!("has storage {key} of an unknown type");
            return Err(WeightsError::file(path, problem, STATE_DICT));
        };
        let bytes = u64::from_le_bytes(elements).checked_mul(size);
        let end = bytes.and_then(|bytes| at.checked_add(bytes));
        let Some(end) = end.filter(|&end| end <= len) else {
            let problem = format!("truncated: storage {key} reaches beyond the end");
            return Err(WeightsError::file(path, problem, DAMAGED));
        };
        storages.insert(key.to_string(), (at, end - at));
        at = end;
    }
    Ok((pickle, Arc::new(file)))
}

/// The search for tensors in a pickle.
struct Search<'a> {
    pickle: &'a Pickle,
    file: &'a Arc<PytorchFile>,
    /// Number of visited entries.
    visited: Cell<usize>,
    contents: Contents,
}

impl Search<'_> {
    /// Returns the dictionary of tensors in a training checkpoint, or `root` itself.
    fn state_dict(&self, root: usize) -> usize {
        let wrapped = WRAPPERS.into_iter().find_map(|wrapper| {
            let entries = self.pickle.dicts[root].iter().rev();
            let value = entries.into_iter().find_map(|(key, value)| match key {
                Value::Str(key) if **key == *wrapper => Some(value),
                _ => None,
            });
            match value {
                Some(&Value::Dict(dict)) if self.holds_tensors(dict) => Some(dict),
                _ => None,
            }
        });
        wrapped.unwrap_or(root)
    }

    fn holds_tensors(&self, dict: usize) -> bool {
        let mut seen = HashSet::from([dict]);
        let mut waiting = vec![dict];
        while let Some(dict) = waiting.pop() {
            for (_, value) in &self.pickle.dicts[dict] {
                match *value {
                    Value::Tensor(_) => return true,
                    Value::Dict(inner) if seen.insert(inner) => waiting.push(inner),
                    _ => {}
                }
            }
        }
        false
    }

    /// Collects the tensors of a dictionary and of nested ones, whose keys are joined by dots. Keys that
    /// are not strings are ignored, because no network has such names.
    fn collect(&mut self, dict: usize, prefix: &str, depth: usize) -> Result<(), String> {
        let pickle = self.pickle;
        for (key, value) in &pickle.dicts[dict] {
            self.visited.set(self.visited.get() + 1);
            if self.visited.get() > MAX_ENTRIES {
                return Err("its dictionaries hold too many entries".to_owned());
            }
            let Value::Str(key) = key else {
                continue;
            };
            let name = format!("{prefix}{key}");
            match value {
                Value::Dict(inner) if depth < MAX_DEPTH => {
                    self.collect(*inner, &format!("{name}."), depth + 1)?;
                }
                Value::Tensor(tensor) => match self.tensor(tensor) {
                    Ok(tensor) => {
                        self.contents.unreadable.remove(&name);
                        self.contents.tensors.insert(name, tensor);
                    }
                    Err(what) => {
                        self.contents.tensors.remove(&name);
                        self.contents.unreadable.insert(name, what);
                    }
                },
                other => {
                    self.contents.tensors.remove(&name);
                    self.contents.unreadable.insert(name, other.describe());
                }
            }
        }
        Ok(())
    }

    /// Returns a tensor whose position fits its storage, or a description of the problem.
    fn tensor(&self, info: &Rc<TensorInfo>) -> Result<PytorchTensor, String> {
        let Storage {
            key,
            class,
            elements,
            ..
        } = &*info.storage;
        let dtype = match &info.dtype {
            None => class_dtype(class).ok_or_else(|| format!("a tensor of torch.{class}"))?,
            Some(name) => named_dtype(name).ok_or_else(|| format!("a tensor of {name}"))?,
        };
        let elements = match info.dtype {
            // The storage is in bytes.
            Some(_) => elements / dtype.size(),
            None => *elements,
        };
        let tensor = PytorchTensor {
            shape: info.shape.clone(),
            dtype,
            strides: info.strides.clone(),
            offset: info.offset,
            storage: key.to_string(),
            file: self.file.clone(),
        };
        let count = tensor.elements();
        let end = tensor.span().and_then(|span| info.offset.checked_add(span));
        match (count, end) {
            (Some(count), Some(end))
                if (count == 0 || end <= elements)
                    && count <= elements.saturating_add(MAX_REPEATED)
                    && count.checked_mul(8).is_some() =>
            {
                Ok(tensor)
            }
            _ => Err(format!(
                "a tensor of shape {:?} in a storage of {elements} elements",
                info.shape
            )),
        }
    }
}

impl PytorchTensor {
    fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Returns the number of elements of the storage from its first element to its last, inclusive.
    fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let axes = self.shape.iter().zip(&self.strides);
        axes.into_iter()
            .try_fold(1usize, |span, (&length, &stride)| {
                span.checked_add((length - 1).checked_mul(stride)?)
            })
    }

    /// Reads its elements in the order of its axes.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let size = self.dtype.size();
        let overflow = || io::Error::new(io::ErrorKind::InvalidData, "its size is impossible");
        let count = self.elements().ok_or_else(overflow)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let span = self.span().ok_or_else(overflow)?;
        let bytes = |elements: usize| elements.checked_mul(size).ok_or_else(overflow);
        let (start, len) = (bytes(self.offset)?, bytes(span)?);
        let stored = self.file.read(&self.storage, start as u64, len)?;
        let mut expected = 1;
        let contiguous = self
            .shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(&length, &stride)| {
                let fits = length == 1 || stride == expected;
                expected *= length;
                fits
            });
        if contiguous {
            return Ok(stored);
        }
        let mut gathered = Vec::with_capacity(bytes(count)?);
        let mut index = vec![0; self.shape.len()];
        let mut at = 0;
        loop {
            gathered.extend_from_slice(&stored[at * size..(at + 1) * size]);
            let mut axis = self.shape.len();
            loop {
                if axis == 0 {
                    return Ok(gathered);
                }
                axis -= 1;
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * index[axis];
                index[axis] = 0;
            }
        }
    }
}

impl PytorchFile {
    fn legacy(file: File) -> Self {
        Self::Legacy {
            file: Mutex::new(file),
            storages: HashMap::new(),
        }
    }

    /// Reads a part of a storage.
    fn read(&self, storage: &str, start: u64, len: usize) -> io::Result<Vec<u8>> {
        let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        let short = || invalid(format!("storage {storage} is too short"));
        let end = start.checked_add(len as u64).ok_or_else(short)?;
        let mut bytes = Vec::new();
        match self {
            Self::Legacy { file, storages } => {
                let &(at, size) = storages
                    .get(storage)
                    .ok_or_else(|| invalid(format!("storage {storage} is not found")))?;
                if end > size {
                    return Err(short());
                }
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(at + start))?;
                bytes.resize(len, 0);
                file.read_exact(&mut bytes)?;
            }
            Self::Zip {
                archive,
                prefix,
                file_len,
                checked,
            } => {
                let name = format!("{prefix}data/{storage}");
                let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
                let mut checked = checked.lock().unwrap_or_else(PoisonError::into_inner);
                let seen = checked.contains(storage);
                if seen && let Ok(mut entry) = archive.by_name_seek(&name) {
                    // Many tensors may share a storage.
                    entry.seek(SeekFrom::Start(start))?;
                    bytes.resize(len, 0);
                    entry.read_exact(&mut bytes)?;
                    return Ok(bytes);
                }
                let mut entry = archive.by_name(&name).map_err(|err| match err {
                    ZipError::Io(err) => err,
                    err => invalid(format!("storage {storage}: {err}")),
                })?;
                let is_stored = entry.compression() == CompressionMethod::Stored;
                let available = match is_stored {
                    true => entry.compressed_size().min(*file_len),
                    false => entry.size(),
                };
                if end > available {
                    return Err(short());
                }
                io::copy(&mut (&mut entry).take(start), &mut io::sink())?;
                // The length of a compressed storage is known only after it is read.
                bytes.reserve_exact(if is_stored { len } else { 0 });
                (&mut entry).take(len as u64).read_to_end(&mut bytes)?;
                if bytes.len() < len {
                    return Err(short());
                }
                // Its checksum is verified at its end, once.
                if !seen {
                    io::copy(&mut entry, &mut io::sink())?;
                    checked.insert(storage.to_owned());
                }
            }
        }
        Ok(bytes)
    }
}

/// Returns the element type of a class of storages.
fn class_dtype(class: &str) -> Option<DType> {
    Some(match class {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

/// Returns the element type of a name such as `torch.uint16`.
fn named_dtype(name: &str) -> Option<DType> {
    Some(match name {
        "torch.float64" => DType::F64,
        "torch.float32" => DType::F32,
        "torch.float16" => DType::F16,
        "torch.bfloat16" => DType::BF16,
        "torch.int64" => DType::I64,
        "torch.int32" => DType::I32,
        "torch.int16" => DType::I16,
        "torch.int8" => DType::I8,
        "torch.uint64" => DType::U64,
        "torch.uint32" => DType::U32,
        "torch.uint16" => DType::U16,
        "torch.uint8" => DType::U8,
        "torch.bool" => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

/// Returns the bytes per element of a class of storages, including classes that cannot be read.
fn element_size(class: &str) -> Option<u64> {
    Some(match class {
        "UntypedStorage" | "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage"
        | "QUInt2x4Storage" => 1,
        "QInt32Storage" => 4,
        "ComplexFloatStorage" => 8,
        "ComplexDoubleStorage" => 16,
        class => class_dtype(class)?.size() as u64,
    })
}
