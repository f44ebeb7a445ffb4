//! Saves a part of a checkpoint. All code that writes a part's folder uses this module.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::TensorData;
use divot_llm::{LlmError, TextTokenizer};

use crate::checkpoint::{CONFIG, Checkpoint, Part, Saved, TEXT_TOKENIZER, UNCONDITIONAL, WEIGHTS};
use crate::error::{Error, Result, one_line};
use crate::progress::{Progress, Step, Watch};
use crate::staging::Staged;
use crate::weights::{ParamWriter, Saver, StoredType, WeightsError};
use crate::{Tokenizer, device, unconditional};

impl<'a> Checkpoint<'a> {
    /// Saves a part: its configuration, its weights and, for a language model, its text tokenizer.
    ///
    /// The weights have the element type of [`with_stored_type`](Self::with_stored_type). One tensor is in
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
        let stored = self.stored;
        let mut saving = self.saving(part, &config)?;
        if let Some(text) = text {
            saving.text_tokenizer(text)?;
        }
        saving.module(module, stored)?;
        saving.finish()
    }

    /// Starts to save a part. `config` is its configuration in JSON.
    pub(crate) fn saving(&mut self, part: Part, config: &str) -> Result<Saving<'_>> {
        let place = part.folder(self.folder());
        check_replaceable(&place)?;
        let staged = Staged::beside(&place, part.name(), WEIGHTS)?;
        staged.write(CONFIG, config)?;
        Ok(Saving {
            staged,
            part,
            progress: &mut *self.progress,
        })
    }
}

/// A part that is being written, in a folder beside its final place.
pub(crate) struct Saving<'c> {
    staged: Staged,
    part: Part,
    progress: &'c mut Watch<'c>,
}

impl Saving<'_> {
    /// Writes the text tokenizer of a language model.
    pub fn text_tokenizer(&mut self, text: &TextTokenizer) -> Result<()> {
        let saved = text.save(&self.staged.folder().join(TEXT_TOKENIZER));
        Ok(saved.map_err(LlmError::from)?)
    }

    /// Writes the weights from a module.
    fn module<M: Module>(&mut self, module: M, stored: StoredType) -> Result<()> {
        let saver =
            Saver::new(self.staged.folder().join(WEIGHTS), stored).metadata("format", "divot");
        let (part, progress) = (self.part, &mut *self.progress);
        let result = saver
            .add("", module)
            .finish_with(|done, total| progress(step(part, done, total)));
        self.staged.in_place(result)
    }

    /// Writes the weights one by one. `param` returns the data of the `i`-th of `params`, which are names and
    /// shapes, in any float type.
    pub fn params(
        &mut self,
        params: &[(String, Vec<usize>)],
        stored: StoredType,
        mut param: impl FnMut(usize) -> Result<TensorData, WeightsError>,
    ) -> Result<()> {
        let metadata = BTreeMap::from([("format".to_owned(), "divot".to_owned())]);
        let path = self.staged.folder().join(WEIGHTS);
        let write = || {
            let mut writer = ParamWriter::create(&path, params, stored, metadata)?;
            for i in 0..params.len() {
                writer.write(param(i)?)?;
                let (done, total) = writer.bytes();
                if (self.progress)(step(self.part, done, total)).is_break() {
                    return Err(WeightsError::Stopped);
                }
            }
            writer.finish()
        };
        let result = write();
        self.staged.in_place(result)
    }

    /// Moves the part to its final place. For a video tokenizer, the tokens of a mid-grey clip are computed
    /// first.
    pub fn finish(mut self) -> Result<Saved> {
        let not_stored = match self.part {
            Part::Tokenizer => self.store_unconditional()?,
            _ => None,
        };
        Ok(Saved {
            folder: self.staged.put_in_place()?,
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
        let bytes = fs::metadata(self.staged.folder().join(WEIGHTS)).map_or(0, |file| file.len());
        let (part, progress) = (self.part, &mut *self.progress);
        let mut checkpoint = Checkpoint::new(self.staged.hidden(), &cpu);
        let on_layer = || progress(step(part, bytes, bytes));
        match Tokenizer::unconditional_by_layers(&mut checkpoint, on_layer) {
            Ok(tokens) => unconditional::store(&checkpoint, tokens),
            Err(error) if error.is_stopped() => Err(error),
            // If the weights cannot run, loading them reports it.
            Err(error) => Ok(Some(one_line(&error))),
        }
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
