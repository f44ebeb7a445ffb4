//! Saves a part of a checkpoint. All code that writes a part's folder uses this module.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{FloatDType, TensorData};
use divot_llm::{LlmError, TextTokenizer};
use tempfile::TempDir;

use crate::checkpoint::{CONFIG, Checkpoint, Part, Saved, TEXT_TOKENIZER, UNCONDITIONAL, WEIGHTS};
use crate::error::{Error, Result, one_line};
use crate::progress::{Progress, Step, Watch};
use crate::weights::{SafetensorsWriter, Saver, TensorSpec, WeightsError};
use crate::{Tokenizer, device, unconditional};

impl<'a> Checkpoint<'a> {
    /// Saves a part: its configuration, its weights and, for a language model, its text tokenizer.
    ///
    /// The weights have the element type of [`with_dtype`](Self::with_dtype), or f32. One tensor is in
    /// memory at a time besides the module.
    ///
    /// With the video tokenizer, the tokens of a mid-grey clip are stored
    /// ([`unconditional`](Self::unconditional)). For this, the network runs once on the CPU, layer by
    /// layer, with the written weights.
    ///
    /// Everything is written beside the part's folder and renamed when it is complete. This replaces an
    /// older part of that name. On any error, the older part stays and nothing else is left.
    ///
    /// # Errors
    /// If the folder cannot be written, or contains files that do not belong to a part; if a parameter is
    /// NaN or infinite, or does not fit the element type; if a language model is saved without a text
    /// tokenizer, or another part with one; if another process wrote the part in the meantime; if the
    /// progress callback stops it.
    pub fn save<M: Module>(
        &mut self,
        part: Part,
        config: &impl Config,
        module: M,
        text: Option<&TextTokenizer>,
    ) -> Result<Saved> {
        if part.is_llm() != text.is_some() {
            return Err(Error::config(
                &part.folder(self.folder()),
                "a language model is saved with its text tokenizer, any other part without one",
                "give the text tokenizer with the language model only",
            ));
        }
        let config = serde_json::to_string_pretty(config).unwrap_or_default();
        let dtype = self.dtype.unwrap_or(FloatDType::F32);
        let mut saving = self.saving(part, &config)?;
        if let Some(text) = text {
            saving.text_tokenizer(text)?;
        }
        saving.module(module, dtype)?;
        saving.finish()
    }

    /// Starts to save a part. `config` is its configuration in JSON.
    pub(crate) fn saving(&mut self, part: Part, config: &str) -> Result<Saving<'_>> {
        let place = part.folder(self.folder());
        check_replaceable(&place)?;
        let before = Version::of(&place);
        let staging = Staging::beside(&place)?;
        let folder = staging.folder.path().join(part.name());
        // A sub-folder, because the temporary folder is readable only by its owner.
        fs::create_dir(&folder)
            .and_then(|()| fs::write(folder.join(CONFIG), config))
            .map_err(|error| not_written(&place, &error))?;
        Ok(Saving {
            staging,
            folder,
            place,
            before,
            part,
            progress: &mut *self.progress,
        })
    }
}

/// A part that is being written, in a folder beside its final place.
pub(crate) struct Saving<'c> {
    staging: Staging,
    /// The folder that is written.
    folder: PathBuf,
    /// The final place.
    place: PathBuf,
    /// The older part at the start, if any.
    before: Option<Version>,
    part: Part,
    progress: &'c mut Watch<'c>,
}

impl Saving<'_> {
    /// Writes the text tokenizer of a language model.
    pub fn text_tokenizer(&mut self, text: &TextTokenizer) -> Result<()> {
        let saved = text.save(&self.folder.join(TEXT_TOKENIZER));
        Ok(saved.map_err(LlmError::from)?)
    }

    /// Writes the weights from a module.
    fn module<M: Module>(&mut self, module: M, dtype: FloatDType) -> Result<()> {
        let saver = Saver::new(self.folder.join(WEIGHTS), dtype).metadata("format", "divot");
        let (part, progress) = (self.part, &mut *self.progress);
        let result = saver
            .add("", module)
            .finish_with(|done, total| progress(step(part, done, total)));
        self.in_place(result)
    }

    /// Writes the weights tensor by tensor. `tensor` returns the data of the `i`-th of `specs`.
    pub fn tensors(
        &mut self,
        specs: &[TensorSpec],
        mut tensor: impl FnMut(usize) -> Result<TensorData, WeightsError>,
    ) -> Result<()> {
        let metadata = BTreeMap::from([("format".to_owned(), "divot".to_owned())]);
        let path = self.folder.join(WEIGHTS);
        let mut write = || {
            let mut writer = SafetensorsWriter::create(&path, specs, &metadata)?;
            for i in 0..specs.len() {
                writer.write(&tensor(i)?)?;
                let (done, total) = writer.bytes();
                if (self.progress)(step(self.part, done, total)).is_break() {
                    return Err(WeightsError::Stopped);
                }
            }
            writer.finish()
        };
        let result = write();
        self.in_place(result)
    }

    /// Replaces the hidden folder in the path of an error by the part's final place.
    fn in_place(&self, result: Result<(), WeightsError>) -> Result<()> {
        Ok(result.map_err(|mut error| {
            if let WeightsError::Io { path, .. }
            | WeightsError::File { path, .. }
            | WeightsError::Tensor {
                path: Some(path), ..
            } = &mut error
                && let Ok(rest) = path.strip_prefix(&self.folder)
            {
                *path = self.place.join(rest);
            }
            error
        })?)
    }

    /// Moves the part to its final place. For a video tokenizer, the tokens of a mid-grey clip are computed
    /// first.
    pub fn finish(mut self) -> Result<Saved> {
        let not_stored = match self.part {
            Part::Tokenizer => self.store_unconditional()?,
            _ => None,
        };
        self.put_in_place()?;
        self.staging.keep();
        Ok(Saved {
            folder: self.place,
            not_stored,
        })
    }

    /// Stores the tokens of a mid-grey clip with the video tokenizer. Returns the reason if that is not
    /// possible.
    fn store_unconditional(&mut self) -> Result<Option<String>> {
        // On the CPU, so that the values are the same on every machine, up to differences between
        // processors.
        let cpu = match device::select("cpu") {
            Ok(cpu) => cpu,
            Err(error) => return Ok(Some(one_line(&error))),
        };
        let bytes = fs::metadata(self.folder.join(WEIGHTS)).map_or(0, |file| file.len());
        let (part, progress) = (self.part, &mut *self.progress);
        let mut checkpoint = Checkpoint::new(self.staging.folder.path(), &cpu);
        let on_layer = || progress(step(part, bytes, bytes));
        match Tokenizer::unconditional_by_layers(&mut checkpoint, on_layer) {
            Ok(tokens) => unconditional::store(&checkpoint, tokens),
            Err(error) if error.is_stopped() => Err(error),
            // If the weights cannot run, loading them reports it.
            Err(error) => Ok(Some(one_line(&error))),
        }
    }

    /// Renames the new folder to its final place. An older part is moved to the hidden folder first, and
    /// restored if the rename fails.
    fn put_in_place(&self) -> Result<()> {
        if Version::of(&self.place) != self.before {
            return Err(self.overtaken());
        }
        let failed = |error: io::Error| match Version::of(&self.place) == self.before {
            true => not_written(&self.place, &error),
            false => self.overtaken(),
        };
        if !self.place.exists() {
            return fs::rename(&self.folder, &self.place).map_err(failed);
        }
        let aside = self.staging.folder.path().join("old");
        fs::rename(&self.place, &aside).map_err(failed)?;
        fs::rename(&self.folder, &self.place).map_err(|error| {
            // This fails if another process has put a new part there, which is then kept.
            match fs::rename(&aside, &self.place) {
                Ok(()) => not_written(&self.place, &error),
                Err(_) => self.overtaken(),
            }
        })
    }

    fn overtaken(&self) -> Error {
        Error::config(
            &self.place,
            "another process wrote it first, and what that wrote is kept",
            "run again to replace it",
        )
    }
}

fn step(part: Part, done: u64, total: u64) -> Progress<'static> {
    Progress {
        name: part.name(),
        step: Step::Save,
        done,
        total,
    }
}

/// Identifies a state of a part's folder by its file of weights.
#[derive(Debug, PartialEq)]
struct Version {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Version {
    fn of(place: &Path) -> Option<Self> {
        let folder = fs::metadata(place).ok()?;
        let weights = fs::metadata(place.join(WEIGHTS)).unwrap_or(folder);
        Some(Self {
            modified: weights.modified().ok(),
            bytes: weights.len(),
            inode: inode(&weights),
        })
    }
}

#[cfg(unix)]
fn inode(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> u64 {
    0
}

/// A hidden folder beside a part's folder, so that the last step is a rename.
///
/// It is removed at the end, together with the folders that were created for it, unless they are kept.
struct Staging {
    folder: TempDir,
    made: Made,
}

/// Created folders, outermost first.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Staging {
    fn beside(place: &Path) -> Result<Self> {
        let parent = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut missing: Vec<PathBuf> = parent
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
            .map(Path::to_path_buf)
            .collect();
        missing.reverse();
        let made = Made(missing);
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let make = || {
            fs::create_dir_all(parent)?;
            tempfile::Builder::new()
                .prefix(&format!(".{name}-"))
                .tempdir_in(parent)
        };
        let folder = make()
            // Another process may have failed and removed the folder that it had created.
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => make(),
                _ => Err(error),
            })
            .map_err(|error| not_written(parent, &error))?;
        Ok(Self { folder, made })
    }

    fn keep(&mut self) {
        self.made.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        while let Some(folder) = self.0.pop() {
            // Only empty folders are removed. Files of others stay.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Refuses to replace a folder that contains more than a part.
fn check_replaceable(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    let known = [CONFIG, WEIGHTS, TEXT_TOKENIZER, UNCONDITIONAL];
    let foreign = entries
        .flatten()
        .map(|entry| entry.file_name())
        .find(|name| !known.iter().any(|known| name == known));
    match foreign {
        None => Ok(()),
        Some(name) => Err(Error::config(
            folder,
            format!(
                "holds `{}`, which is no file of a part",
                name.to_string_lossy()
            ),
            "move it away or choose another folder",
        )),
    }
}

fn not_written(path: &Path, error: &io::Error) -> Error {
    Error::config(
        path,
        format!("cannot be written ({error})"),
        "choose a folder with room that you may write to",
    )
}
