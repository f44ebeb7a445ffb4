//! The safetensors format: a JSON header, and then the bytes of every tensor.

use super::new_file::NewFile;
use super::{DAMAGED, WeightsError, eight_bits};
use ::safetensors::tensor::{Dtype, Metadata};
use burn::tensor::{BoolStore, DType, TensorData};
use divot_nn::Quantization;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The largest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Returns whether a file that begins with `start` is in the safetensors format: the header's length as a
/// little-endian `u64`, and then the opening brace.
pub(super) fn is_safetensors(start: &[u8]) -> bool {
    start.get(8) == Some(&b'{')
        && start
            .first_chunk()
            .is_some_and(|len| (1..=MAX_HEADER).contains(&u64::from_le_bytes(*len)))
}

/// An open safetensors file. Its header was checked against its length.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    pub path: PathBuf,
    /// Behind a lock, because reading moves the cursor.
    pub file: Mutex<File>,
    pub metadata: BTreeMap<String, String>,
    pub tensors: BTreeMap<String, Entry>,
    /// Tensors of element types that Burn does not have, with descriptions.
    pub unreadable: BTreeMap<String, String>,
}

/// One tensor of a [`SafetensorsFile`].
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Offset of its bytes in the file.
    pub offset: u64,
    /// Number of bytes.
    pub len: usize,
    /// The scales of a tensor of 8 bits.
    pub scales: Option<Box<Entry>>,
    /// The bits of a packed matrix. Its shape is that of the parameter.
    pub packed: Option<Quantization>,
}

impl Entry {
    /// Returns the type in which the tensor is read if no other is asked for. It is f16 for a tensor of few bits, like
    /// the other tensors of its file.
    pub fn read_type(&self) -> DType {
        match self.scales.is_some() || self.packed.is_some() {
            true => DType::F16,
            false => self.dtype,
        }
    }

    /// Returns the size of the tensor in the file, with its scales, in bytes.
    pub fn bytes(&self) -> usize {
        self.len + self.scales.as_ref().map_or(0, |scales| scales.len)
    }
}

impl SafetensorsFile {
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let reading = |err| WeightsError::reading(path, err);
        let damaged = |problem: String| WeightsError::file(path, problem, DAMAGED);

        let mut file = File::open(path).map_err(reading)?;
        let info = file.metadata().map_err(reading)?;
        if info.is_dir() {
            let problem = "is a folder, not a file";
            return Err(WeightsError::file(path, problem, "name a file in it"));
        }
        let file_len = info.len();

        let mut start = [0; 9];
        if file_len < start.len() as u64 {
            return Err(damaged(format!(
                "truncated: {file_len} bytes are too few for a safetensors file"
            )));
        }
        file.read_exact(&mut start).map_err(reading)?;
        if !is_safetensors(&start) {
            return Err(damaged("not a safetensors file".to_string()));
        }
        let header_len = u64::from_le_bytes(std::array::from_fn(|i| start[i]));
        if header_len + 8 > file_len {
            return Err(damaged(format!(
                "truncated: the header takes {header_len} bytes, the whole file has {file_len}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        header[0] = start[8];
        file.read_exact(&mut header[1..]).map_err(reading)?;

        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|err| damaged(format!("the safetensors header is invalid: {err}")))?;
        let expected = (8 + header_len).saturating_add(header.data_len() as u64);
        if file_len < expected {
            return Err(damaged(format!(
                "truncated: {file_len} bytes of {expected} are there"
            )));
        }
        if file_len > expected {
            return Err(damaged(format!(
                "{} bytes too long: {expected} bytes were expected",
                file_len - expected
            )));
        }

        let mut tensors = BTreeMap::new();
        let mut unreadable = BTreeMap::new();
        for (name, info) in header.tensors() {
            let Some(dtype) = dtype_from_safetensors(info.dtype) else {
                let what = format!("a tensor of the element type {}", info.dtype);
                unreadable.insert(name, what);
                continue;
            };
            let (start, end) = info.data_offsets;
            let entry = Entry {
                dtype,
                shape: info.shape.clone(),
                offset: 8 + header_len + start as u64,
                len: end - start,
                scales: None,
                packed: None,
            };
            tensors.insert(name, entry);
        }
        let metadata = header.metadata().clone().unwrap_or_default();
        let metadata = metadata.into_iter().collect();
        eight_bits::read_encoding(path, &metadata, &mut tensors)?;

        Ok(Self {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            metadata,
            tensors,
            unreadable,
        })
    }

    /// Reads the stored bytes of one tensor. It uses no memory map, whose pages would count as resident until the
    /// file is closed. This matters for files that are larger than memory.
    pub fn read(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; entry.len];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.offset))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn dtype_from_safetensors(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

fn dtype_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::I8 => "I8",
        DType::U64 => "U64",
        DType::U32 => "U32",
        DType::U16 => "U16",
        DType::U8 => "U8",
        DType::Bool(BoolStore::Native) => "BOOL",
        _ => return None,
    })
}

/// The header entry of a tensor in a safetensors file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Its name, unique in the file.
    pub name: String,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

impl TensorSpec {
    /// Returns its size in bytes, or `None` if that overflows or safetensors has no name for the type.
    pub(super) fn byte_len(&self) -> Option<usize> {
        dtype_name(self.dtype)?;
        let elements = self
            .shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))?;
        elements.checked_mul(self.dtype.size())
    }

    /// Checks that data is what was announced.
    pub(super) fn check(&self, data: &TensorData) -> Result<(), WeightsError> {
        let bytes = data.as_bytes().len();
        if *data.shape().as_slice() == self.shape[..]
            && data.dtype() == self.dtype
            && Some(bytes) == self.byte_len()
        {
            return Ok(());
        }
        let problem = format!(
            "is {} {:?} in {bytes} bytes where {} {:?} was announced",
            data.dtype().name(),
            data.shape().as_slice(),
            self.dtype.name(),
            self.shape
        );
        Err(WeightsError::tensor(&self.name, problem, BUG))
    }
}

/// Writes a safetensors file one tensor at a time, in the order of the header.
///
/// The file has a temporary name in the same folder until [`finish`](Self::finish), which renames it after
/// everything has reached the disk. Dropping the writer before that removes the temporary file. An older
/// file stays unchanged.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    file: NewFile,
    specs: Vec<TensorSpec>,
    written: usize,
}

impl SafetensorsWriter {
    /// Writes the header of a file at `path` with `specs`, in their order, and `metadata`.
    ///
    /// # Errors
    ///
    /// If two specs have the same name, safetensors has no name for an element type, or the folder cannot
    /// be written.
    pub fn create(
        path: &Path,
        specs: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, WeightsError> {
        let header = header(specs, metadata).map_err(|err| err.in_file(path))?;
        if header.len() as u64 > MAX_HEADER {
            let problem = format!(
                "a header of {} bytes is above the format's limit",
                header.len()
            );
            return Err(WeightsError::file(
                path,
                problem,
                "write several smaller files",
            ));
        }
        let writing = |err| WeightsError::writing(path, err);

        let mut file = NewFile::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .map_err(writing)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            specs: specs.to_vec(),
            written: 0,
        })
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    ///
    /// If the tensor does not match its spec, there are no more specs, or the disk is full.
    pub fn write(&mut self, data: &TensorData) -> Result<(), WeightsError> {
        let Some(spec) = self.specs.get(self.written) else {
            let problem = format!("more than the {} tensors announced", self.specs.len());
            return Err(WeightsError::file(&self.path, problem, BUG));
        };
        spec.check(data).map_err(|err| err.in_file(&self.path))?;
        self.file
            .write_all(data.as_bytes())
            .map_err(|err| WeightsError::writing(&self.path, err))?;
        self.written += 1;
        Ok(())
    }

    /// Returns the bytes of the tensors that were written, and of all tensors.
    pub fn bytes(&self) -> (u64, u64) {
        let bytes = |specs: &[TensorSpec]| {
            let bytes = specs.iter().filter_map(TensorSpec::byte_len);
            bytes.map(|bytes| bytes as u64).sum()
        };
        (bytes(&self.specs[..self.written]), bytes(&self.specs))
    }

    /// Flushes everything to the disk and renames the file.
    ///
    /// # Errors
    ///
    /// If tensors are missing, the disk is full, or the file cannot be renamed.
    pub fn finish(self) -> Result<(), WeightsError> {
        let Self {
            path,
            file,
            specs,
            written,
        } = self;
        if let Some(spec) = specs.get(written) {
            let problem = "was announced and not written";
            return Err(WeightsError::tensor(&spec.name, problem, BUG).in_file(&path));
        }
        file.finish()
    }
}

/// Writes the tensors `specs` to a safetensors file at `path`, in their order. `tensor` is called for the
/// data of the `i`-th tensor when it is needed.
///
/// The header is padded, so that the tensors start at a cache line. If anything fails, nothing is
/// left behind, see [`SafetensorsWriter`].
///
/// # Errors
///
/// Those of `tensor`, of a tensor that does not match its spec, and of the disk.
pub fn write_safetensors(
    path: &Path,
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    mut tensor: impl FnMut(usize) -> Result<TensorData, WeightsError>,
) -> Result<(), WeightsError> {
    let mut writer = SafetensorsWriter::create(path, specs, metadata)?;
    for i in 0..specs.len() {
        writer.write(&tensor(i)?)?;
    }
    writer.finish()
}

const BUG: &str = "this is a bug, please report it";

/// Returns the header as bytes. It is written by hand because the order of the tensors is that of the file,
/// and the same weights must give the same bytes. The crate's own serializer uses a hash map.
fn header(
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WeightsError> {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let mut fields = Vec::with_capacity(specs.len() + 1);
    if !metadata.is_empty() {
        let pairs: Vec<_> = metadata
            .iter()
            .map(|(key, value)| format!("{}:{}", json(key), json(value)))
            .collect();
        fields.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut names = BTreeSet::from(["__metadata__"]);
    let mut offset = 0usize;
    for spec in specs {
        if !names.insert(&spec.name) {
            let problem = "is named twice";
            return Err(WeightsError::tensor(
                &spec.name,
                problem,
                "give every tensor its own name",
            ));
        }
        let (Some(dtype), Some(end)) = (
            dtype_name(spec.dtype),
            spec.byte_len().and_then(|len| len.checked_add(offset)),
        ) else {
            let problem = format!(
                "of type {} and shape {:?} does not fit the safetensors format",
                spec.dtype.name(),
                spec.shape
            );
            return Err(WeightsError::tensor(
                &spec.name,
                problem,
                "convert it to f32, f16 or bf16",
            ));
        };
        fields.push(format!(
            "{}:{{\"dtype\":\"{dtype}\",\"shape\":{:?},\"data_offsets\":[{offset},{end}]}}",
            json(&spec.name),
            spec.shape
        ));
        offset = end;
    }
    let mut header = format!("{{{}}}", fields.join(",")).into_bytes();
    let end = (8 + header.len()).next_multiple_of(64);
    header.resize(end - 8, b' ');
    Ok(header)
}
