//! Writing a cache.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;

use super::reader::Shard;
use super::{Line, MANIFEST, Manifest, shard_files};
use crate::dataset::records::{MAX_RECORD, Problem};
use crate::dataset::sample::{Array, Reason, Sample, Skip};
use crate::write::{TEMPORARY, temporary};
use crate::{Error, Result};

/// Longest key of a sample whose line is too long, in characters.
const MAX_KEY: usize = 1000;

/// Writes a cache, sample after sample.
///
/// The samples since the last whole shard are in memory. A process that is killed loses these, and another one goes
/// on after the last whole shard.
#[derive(Debug)]
pub struct CacheWriter {
    folder: PathBuf,
    manifest: Manifest,
    shard_bytes: usize,
    /// Samples that were pushed in all.
    done: usize,
    /// Clips of those.
    clips: usize,
    /// Shards that are written.
    shards: usize,
    /// Lines of the shard that is being made.
    lines: Vec<u8>,
    /// How many clips it has.
    rows: usize,
    arrays: BTreeMap<String, Rows>,
}

/// An array of a shard that is being made.
#[derive(Debug, Default)]
struct Rows {
    /// Sizes of one clip's.
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl CacheWriter {
    /// Begins a cache in a folder, or goes on with the one that is there. Shards have about `shard_bytes`, or one
    /// sample.
    ///
    /// # Errors
    /// If the folder holds a cache that was made of something else, a shard of it is damaged, or it cannot be
    /// written.
    pub fn open(folder: &Path, mut manifest: Manifest, shard_bytes: usize) -> Result<Self> {
        let path = folder.join(MANIFEST);
        fs::create_dir_all(folder).map_err(|error| Error::write(folder, error))?;
        clean(folder);
        manifest.arrays.sort();
        match path.try_exists() {
            Ok(true) => {
                let different = manifest.differences(&Manifest::read(folder)?);
                if !different.is_empty() {
                    let problem = format!("is of something else: {}", different.join(", "));
                    let remedy = "remove it, or choose another folder";
                    return Err(Error::cache(folder, problem, remedy));
                }
            }
            _ => {
                let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
                write_whole(&path, [&text[..]])?;
            }
        }
        let mut writer = Self {
            folder: folder.to_path_buf(),
            manifest,
            shard_bytes,
            done: 0,
            clips: 0,
            shards: 0,
            lines: Vec::new(),
            rows: 0,
            arrays: BTreeMap::new(),
        };
        for shard in Shard::all(folder, &writer.manifest)? {
            writer.shards += 1;
            writer.done += shard.len();
            writer.clips += shard.rows;
        }
        Ok(writer)
    }

    /// How many samples are done. The next one is that number, counted on through the samples of each epoch.
    pub fn done(&self) -> usize {
        self.done
    }

    /// How many there are to be.
    pub fn total(&self) -> usize {
        self.manifest.samples.saturating_mul(self.manifest.draws)
    }

    /// How many clips are stored.
    pub fn clips(&self) -> usize {
        self.clips
    }

    /// Adds the next sample, or why it is left out.
    ///
    /// # Errors
    /// If the sample does not have the arrays of the manifest with the sizes of those before it, a number is not
    /// finite in the element type, or a shard cannot be written.
    pub fn push(&mut self, sample: &Result<Sample, Skip>) -> Result<()> {
        match sample {
            Ok(sample) => self.add(sample)?,
            Err(skip) => self.line(&Line::Skip(skip.clone())),
        }
        self.done += 1;
        let bytes = self.arrays.values().map(|rows| rows.bytes.len());
        match bytes.sum::<usize>() + self.lines.len() >= self.shard_bytes {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn add(&mut self, sample: &Sample) -> Result<()> {
        let unfit = |problem: String| {
            let remedy = "store samples of one kind and size";
            Error::cache(&self.folder, format!("{}: {problem}", sample.key), remedy)
        };
        let stored = sample.stored.as_ref();
        let stored = stored.filter(|stored| stored.arrays.keys().eq(&self.manifest.arrays));
        let stored = stored
            .ok_or_else(|| unfit(format!("does not have {}", self.manifest.arrays.join(", "))))?;
        let line = Line::Sample {
            key: sample.key.clone(),
            medium: sample.medium,
            text: sample.text.clone(),
            row: self.rows,
            clips: stored.clips,
        };
        let length = serde_json::to_vec(&line).map_or(0, |text| text.len());
        if length as u64 >= MAX_RECORD {
            let problem = Problem::new(Reason::TooMuchText, format!("a line of {length} bytes"));
            let key = sample.key.chars().take(MAX_KEY).collect();
            self.line(&Line::Skip(problem.skip(key)));
            return Ok(());
        }
        for (name, Array { shape, values }) in &stored.arrays {
            let known = self.arrays.get(name);
            let [clips, sizes @ ..] = &shape[..] else {
                return Err(unfit(format!("`{name}` has no axes")));
            };
            if *clips != stored.clips
                || *clips == 0
                || shape.iter().product::<usize>() != values.len()
                || known.is_some_and(|rows| rows.shape != sizes)
            {
                return Err(unfit(format!("`{name}` is of the shape {shape:?}")));
            }
        }
        let element = self.manifest.element;
        for (name, Array { shape, values }) in &stored.arrays {
            let rows = self.arrays.entry(name.clone()).or_insert_with(|| Rows {
                shape: shape[1..].to_vec(),
                bytes: Vec::new(),
            });
            if !element.encode(values, &mut rows.bytes) {
                let key = &sample.key;
                let element = element.name();
                let problem =
                    format!("`{name}` of {key} has a number that is not finite in {element}");
                let remedy = "store another element type, or leave that sample out";
                return Err(Error::cache(&self.folder, problem, remedy));
            }
        }
        self.rows += stored.clips;
        self.clips += stored.clips;
        self.line(&line);
        Ok(())
    }

    fn line(&mut self, line: &Line) {
        let text = serde_json::to_vec(line).unwrap_or_default();
        self.lines.extend(text);
        self.lines.push(b'\n');
    }

    /// Writes the samples since the last shard as another.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let mut header = BTreeMap::new();
        let mut content = Vec::new();
        let mut end = 0;
        for (name, rows) in self.arrays.iter().filter(|_| self.rows > 0) {
            let start = end;
            end += rows.bytes.len();
            let mut shape = vec![self.rows];
            shape.extend(&rows.shape);
            let info = TensorInfo {
                dtype: self.manifest.element.dtype(),
                shape,
                data_offsets: (start, end),
            };
            header.insert(name, info);
            content.push(&rows.bytes[..]);
        }
        let mut header = serde_json::to_vec(&header).unwrap_or_default();
        header.resize(header.len().next_multiple_of(8), b' ');
        let length = (header.len() as u64).to_le_bytes();
        let parts = [&length[..], &header[..]].into_iter().chain(content);
        let [lines, arrays] = shard_files(&self.folder, self.shards);
        write_whole(&arrays, parts)?;
        // A shard that has its lines is whole.
        write_whole(&lines, [&self.lines[..]])?;
        self.shards += 1;
        self.rows = 0;
        self.lines.clear();
        for rows in self.arrays.values_mut() {
            rows.bytes.clear();
        }
        Ok(())
    }
}

/// Writes a file beside its place and renames it once it is on the disk.
fn write_whole<'a>(path: &Path, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
    let write = || -> io::Result<()> {
        let (mut file, target) = temporary(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.as_file().sync_all()?;
        file.persist(&target).map_err(|error| error.error)?;
        // The new name is on the disk only once the folder is.
        #[cfg(unix)]
        if let Some(folder) = target.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| Error::write(path, error))
}

/// Removes what a killed process was writing.
fn clean(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
