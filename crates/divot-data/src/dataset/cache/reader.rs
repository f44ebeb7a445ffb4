//! Reading a cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{ElementType, Line, Manifest, REMAKE, count_shards, shard_files};
use crate::dataset::chain::Chain;
use crate::dataset::config::SourceConfig;
use crate::dataset::records::{Problem, Records};
use crate::dataset::sample::{Array, Reason, Sample, Skip, Stored, Text};
use crate::{Error, Result};

/// The longest header of a shard's arrays, in bytes.
const MAX_HEADER: u64 = 1 << 20;
/// Most bytes of a sample's arrays.
const MAX_SAMPLE: usize = 1 << 30;

/// A cache, whose samples are read one by one. In memory are 12 bytes for each.
#[derive(Debug)]
pub(in crate::dataset) struct Cache {
    manifest: Manifest,
    shards: Chain<Shard>,
    text: bool,
}

/// Samples whose arrays are in one file.
#[derive(Debug)]
pub(super) struct Shard {
    records: Records,
    path: PathBuf,
    length: u64,
    /// How many clips it has.
    pub rows: usize,
    arrays: Vec<Rows>,
}

/// An array of all clips of a shard.
#[derive(Debug)]
struct Rows {
    name: String,
    /// Sizes of one clip's.
    shape: Vec<usize>,
    element: ElementType,
    /// Where it begins in the file.
    offset: u64,
    /// Bytes of one clip.
    bytes: usize,
}

impl Cache {
    /// Opens a cache and looks at each of its shards.
    pub fn open(config: &SourceConfig) -> Result<Self> {
        let folder = config.path.first().map_or(Path::new(""), PathBuf::as_path);
        let manifest = Manifest::read(folder)?;
        let shards = Shard::all(folder, &manifest)?;
        let shards = Chain::new(shards, Shard::len);
        if Some(shards.len) != manifest.lines() {
            let problem = format!(
                "is not complete: {} of {} samples are there",
                shards.len,
                manifest.lines().unwrap_or(usize::MAX)
            );
            let remedy = "make the rest of it as it was begun";
            return Err(Error::cache(folder, problem, remedy));
        }
        Ok(Self {
            manifest,
            shards,
            text: config.text,
        })
    }

    pub fn len(&self) -> usize {
        self.manifest.samples
    }

    /// Those of the source that it was made of, so that the order of samples is the same.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let groups = self.manifest.groups.iter().map(|len| {
            start += len;
            start - len..start
        });
        groups.collect()
    }

    pub fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip> {
        let Manifest { samples, draws, .. } = self.manifest;
        let draw = match draws {
            1 => 0,
            _ => ((uniform() * draws as f64) as usize).min(draws - 1),
        };
        let (shard, number) = self.shards.at(draw * samples + index);
        let sample = shard.read(number).map_err(|problem| {
            let (path, line) = (shard.records.path.display(), shard.records.line(number));
            problem.skip(format!("{path}:{line}"))
        })??;
        Ok(match self.text {
            true => sample,
            false => Sample {
                text: Text::None,
                ..sample
            },
        })
    }
}

impl Shard {
    /// All shards of a cache.
    pub fn all(folder: &Path, manifest: &Manifest) -> Result<Vec<Self>> {
        let mut shards: Vec<Self> = Vec::new();
        for number in 0..count_shards(folder)? {
            let shard = Self::open(folder, number)?;
            let form = |shard: &Self| -> Vec<(String, Vec<usize>)> {
                let arrays = shard.arrays.iter();
                let arrays = arrays.map(|rows| (rows.name.clone(), rows.shape.clone()));
                arrays.collect()
            };
            let names = shard.arrays.iter().map(|rows| &rows.name);
            let named = shard.rows == 0 || names.eq(&manifest.arrays);
            // Shards without any clip have no arrays.
            let before = shards.iter().rfind(|shard| shard.rows > 0);
            let alike = shard.rows == 0 || before.is_none_or(|other| form(other) == form(&shard));
            if !named || !alike {
                let problem = "has other arrays than the manifest or the shards before it";
                return Err(Error::cache(&shard.path, problem, REMAKE));
            }
            shards.push(shard);
        }
        Ok(shards)
    }

    /// Looks at the header of a shard's arrays, and finds its lines.
    fn open(folder: &Path, number: usize) -> Result<Self> {
        let [lines, path] = shard_files(folder, number);
        let damaged = |problem: String| Error::cache(&path, problem, REMAKE);
        let failed = |error: io::Error| damaged(format!("cannot be read ({error})"));
        let records = Records::lines(&lines).map_err(|error| Error::read(&lines, error))?;
        let mut file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(failed)?;
        let header = u64::from_le_bytes(start);
        if header > MAX_HEADER {
            return Err(damaged("is no shard of a cache".to_owned()));
        }
        let mut text = Vec::new();
        file.take(header).read_to_end(&mut text).map_err(failed)?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("is truncated or damaged ({error})")))?;
        let expected = (8 + header).saturating_add(metadata.data_len() as u64);
        if length != expected {
            let problem = format!("is truncated or damaged: {length} bytes instead of {expected}");
            return Err(damaged(problem));
        }
        let mut rows = None;
        let mut arrays = Vec::new();
        for (name, info) in metadata.tensors() {
            let element = match info.dtype {
                Dtype::F32 => ElementType::F32,
                Dtype::F16 => ElementType::F16,
                Dtype::BF16 => ElementType::Bf16,
                other => return Err(damaged(format!("`{name}` is of the type {other}"))),
            };
            let (start, end) = info.data_offsets;
            let count = info.shape.first().copied().unwrap_or(0);
            if count == 0 || *rows.get_or_insert(count) != count {
                return Err(damaged(format!("`{name}` has no row for each clip")));
            }
            arrays.push(Rows {
                name,
                shape: info.shape[1..].to_vec(),
                element,
                offset: 8 + header + start as u64,
                bytes: (end - start) / count,
            });
        }
        arrays.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self {
            records,
            path,
            length,
            rows: rows.unwrap_or(0),
            arrays,
        })
    }

    /// How many samples it has.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Reads a sample, or why it was left out.
    fn read(&self, number: usize) -> Result<Result<Sample, Skip>, Problem> {
        let line = self.records.read(number)?;
        let line = serde_json::from_slice(&line);
        let line = line.map_err(|error| Problem::malformed(error.to_string()))?;
        let (key, medium, text, first, clips) = match line {
            Line::Skip(skip) => return Ok(Err(skip)),
            Line::Sample {
                key,
                medium,
                text,
                row,
                clips,
            } => (key, medium, text, row, clips),
        };
        if clips == 0 || first.checked_add(clips).is_none_or(|end| end > self.rows) {
            let message = format!("clips {first} and on of {} are not there", self.rows);
            return Err(Problem::malformed(message));
        }
        let sizes = self.arrays.iter().map(|rows| rows.bytes);
        let size = sizes.sum::<usize>().checked_mul(clips);
        if size.is_none_or(|size| size > MAX_SAMPLE) {
            let message = format!("more than {MAX_SAMPLE} bytes");
            return Err(Problem::new(Reason::TooLarge, message));
        }
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() != self.length {
            let message = "the file was changed after it was indexed";
            return Err(Problem::new(Reason::Changed, message));
        }
        let mut arrays = BTreeMap::new();
        for rows in &self.arrays {
            let mut bytes = vec![0; rows.bytes * clips];
            let skipped = rows.bytes as u64 * first as u64;
            file.seek(SeekFrom::Start(rows.offset + skipped))?;
            file.read_exact(&mut bytes)?;
            let mut shape = vec![clips];
            shape.extend(&rows.shape);
            let values = rows.element.decode(&bytes);
            arrays.insert(rows.name.clone(), Array { shape, values });
        }
        Ok(Ok(Sample {
            key,
            medium,
            clips: Vec::new(),
            text,
            stored: Some(Stored { clips, arrays }),
        }))
    }
}
