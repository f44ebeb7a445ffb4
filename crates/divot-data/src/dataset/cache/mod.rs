//! Caches: what frozen networks made of the clips of a source, written once and read instead of frames.
//!
//! A cache is a folder. `manifest.json` says what it was made of. `shard-00000.jsonl` has a line for each sample,
//! with its text, and `shard-00000.safetensors` the arrays of all clips of these samples, one clip a row. The lines
//! of all shards are the samples in their order, then again as they are in the second epoch, and so on.
//!
//! Shards are written one after another. The lines come last, so that a shard which has them is whole.

mod reader;
mod writer;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::sample::{Medium, Skip, Text};
use crate::{Error, Result};

pub(super) use reader::Cache;
pub use writer::CacheWriter;

const MANIFEST: &str = "manifest.json";
const PREFIX: &str = "shard-";
const LINES: &str = "jsonl";
const ARRAYS: &str = "safetensors";
/// The format that is written and read.
const VERSION: u32 = 1;
/// The largest manifest, in bytes.
const MAX_MANIFEST: u64 = 1 << 26;
const REMAKE: &str = "copy it again, or make the cache anew";

/// What a cache holds, and what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format.
    pub version: u32,
    /// Number of samples.
    pub samples: usize,
    /// How often each sample is there, each time with other random clips.
    pub draws: usize,
    /// Lengths of the runs of samples that are read together, such as those of an archive.
    pub groups: Vec<usize>,
    /// Names of the arrays.
    pub arrays: Vec<String>,
    /// The element type that numbers are stored in.
    pub element: ElementType,
    /// Whatever the arrays depend on, by name.
    pub made_of: BTreeMap<String, String>,
}

/// An element type of stored numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32 bits: what was computed.
    F32,
    /// 16 bits, 11 of them for precision; up to 65504.
    F16,
    /// 16 bits, 8 of them for precision; as large as f32.
    Bf16,
}

/// A line about a sample.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Sample {
        key: String,
        medium: Medium,
        text: Text,
        /// The first of its clips among the rows of the shard's arrays.
        row: usize,
        clips: usize,
    },
    /// Why the sample is left out.
    Skip(Skip),
}

impl Manifest {
    /// A manifest of this version of the format.
    pub fn new(samples: usize, arrays: Vec<String>) -> Self {
        Self {
            version: VERSION,
            samples,
            draws: 1,
            groups: vec![samples],
            arrays,
            element: ElementType::F32,
            made_of: BTreeMap::new(),
        }
    }

    /// Reads that of a cache.
    ///
    /// # Errors
    /// If it is missing, damaged, or of another version.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let file = File::open(&path).map_err(|error| Error::read(&path, error))?;
        let mut text = Vec::new();
        let read = file.take(MAX_MANIFEST).read_to_end(&mut text);
        read.map_err(|error| Error::read(&path, error))?;
        let damaged = |problem: String| Error::cache(&path, problem, REMAKE);
        let read = serde_json::from_slice::<Self>(&text);
        let manifest = read.map_err(|error| damaged(format!("is damaged ({error})")))?;
        if manifest.version != VERSION {
            let version = manifest.version;
            let problem = format!("is of version {version}, and {VERSION} is known");
            return Err(Error::cache(&path, problem, "make the cache anew"));
        }
        let groups = manifest.groups.iter();
        let sum = groups.fold(0usize, |sum, &len| sum.saturating_add(len));
        if sum != manifest.samples || manifest.lines().is_none() || manifest.draws == 0 {
            return Err(damaged("contradicts itself".to_owned()));
        }
        Ok(manifest)
    }

    /// How many lines there are in all.
    fn lines(&self) -> Option<usize> {
        self.samples.checked_mul(self.draws)
    }

    /// What differs from the manifest `older`: each name with what it was and is.
    pub fn differences(&self, older: &Self) -> Vec<String> {
        let fixed = |manifest: &Self| {
            let json = |value: serde_json::Value| value.to_string();
            let own = [
                ("samples", json(manifest.samples.into())),
                ("clips of each sample", json(manifest.draws.into())),
                ("stored", manifest.arrays.join(", ")),
                ("element type", manifest.element.name().to_owned()),
            ];
            let own = own.map(|(name, value)| (name.to_owned(), value));
            let mut all = manifest.made_of.clone();
            all.extend(own);
            all
        };
        let [older_values, values] = [older, self].map(fixed);
        let mut names: Vec<&String> = older_values.keys().chain(values.keys()).collect();
        names.sort();
        names.dedup();
        let mut found: Vec<String> = names
            .into_iter()
            .filter(|name| older_values.get(*name) != values.get(*name))
            .map(|name| {
                let value = |of: &BTreeMap<String, String>| {
                    of.get(name).cloned().unwrap_or_else(|| "absent".to_owned())
                };
                format!(
                    "`{name}` was {} and is {}",
                    value(&older_values),
                    value(&values)
                )
            })
            .collect();
        if found.is_empty() && self.groups != older.groups {
            found.push("the archives have other numbers of samples".to_owned());
        }
        found
    }
}

impl ElementType {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Adds numbers to little-endian bytes. Returns whether all of them are finite in this type.
    fn encode(self, values: &[f32], bytes: &mut Vec<u8>) -> bool {
        bytes.reserve(values.len() * self.bytes());
        let mut finite = true;
        for &value in values {
            match self {
                Self::F32 => {
                    finite &= value.is_finite();
                    bytes.extend(value.to_le_bytes());
                }
                Self::F16 => {
                    let value = f16::from_f32(value);
                    finite &= value.is_finite();
                    bytes.extend(value.to_le_bytes());
                }
                Self::Bf16 => {
                    let value = bf16::from_f32(value);
                    finite &= value.is_finite();
                    bytes.extend(value.to_le_bytes());
                }
            }
        }
        finite
    }

    /// The numbers in little-endian bytes.
    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let halves = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        match self {
            Self::F32 => {
                let numbers = bytes.chunks_exact(4);
                let numbers = numbers.map(|four| [four[0], four[1], four[2], four[3]]);
                numbers.map(f32::from_le_bytes).collect()
            }
            Self::F16 => {
                let numbers: Vec<f16> = halves().map(f16::from_le_bytes).collect();
                numbers.to_f32_vec()
            }
            Self::Bf16 => {
                let numbers: Vec<bf16> = halves().map(bf16::from_le_bytes).collect();
                numbers.to_f32_vec()
            }
        }
    }
}

/// The files of a shard: its lines, and its arrays.
fn shard_files(folder: &Path, number: usize) -> [PathBuf; 2] {
    [LINES, ARRAYS].map(|ending| folder.join(format!("{PREFIX}{number:05}.{ending}")))
}

/// How many shards are written.
///
/// # Errors
/// If the folder cannot be read, or one of them is missing.
fn count_shards(folder: &Path) -> Result<usize> {
    let failed = |error| Error::read(folder, error);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let name = name.and_then(|name| name.strip_suffix(LINES)?.strip_suffix('.'));
        numbers.extend(name.and_then(|name| name.parse::<usize>().ok()));
    }
    numbers.sort_unstable();
    match (0..numbers.len()).find(|&number| numbers[number] != number) {
        None => Ok(numbers.len()),
        Some(missing) => {
            let [path, _] = shard_files(folder, missing);
            let problem = "is missing, and later shards are there";
            Err(Error::cache(&path, problem, REMAKE))
        }
    }
}
