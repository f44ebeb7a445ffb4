//! A trained model in the folders that inference reads.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use divot::checkpoint::{Checkpoint, Part};
use divot::language::TextTokenizer;

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::recipe::{Precision, Recipe};
use crate::trainer::Trainer;

/// Which of a run's parameters are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// The moving average if the run keeps one, the parameters themselves otherwise.
    Best,
    /// The parameters themselves.
    Last,
}

/// Writes the networks of a run's newest checkpoint into a model's folder: `tokenizer`, `detokenizer` and
/// `llm`, as far as the run has them. Frozen networks come from where the recipe says. Low-rank adaptation is
/// merged, and the tokens that guidance needs are stored with the tokenizer.
///
/// Returns the folders that were written.
///
/// # Errors
/// If there is no checkpoint, what the recipe names is no longer there, the run trained only what is no part of
/// a model by itself, or a folder cannot be written.
pub fn export(run: &Path, to: &Path, weights: Weights, device: &Device) -> Result<Vec<PathBuf>> {
    let newest = checkpoint::newest(run)?
        .ok_or_else(|| Error::run(run, "holds no checkpoint", "name the folder of a run"))?;
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    let mut recipe = Recipe::parse(newest.folder(), &name, &newest.state()?.recipe, &[])?;
    // Frozen parts are exported as they were before training.
    recipe.settings.precision = Precision::F32;
    let trainer = Trainer::new(&recipe, device)?.resume(&newest)?;
    let model = match weights {
        Weights::Best => trainer.evaluated(),
        Weights::Last => trainer.learned(),
    };

    let Model {
        tokenizer,
        detokenizer,
        llm,
        ..
    } = model;
    let mut checkpoint = Checkpoint::new(to, device);
    let mut written = Vec::new();
    if let Some(tokenizer) = tokenizer {
        let config = &recipe.model.tokenizer;
        written.push(
            checkpoint
                .save(Part::Tokenizer, config, tokenizer, None)?
                .folder,
        );
    }
    if let Some(detokenizer) = detokenizer {
        let config = &recipe.model.detokenizer;
        written.push(
            checkpoint
                .save(Part::Detokenizer, config, detokenizer, None)?
                .folder,
        );
    }
    if let Some(mut llm) = llm {
        llm.llm = llm.llm.merge_lora();
        let config = recipe.model.llm.clone().with_lora(None);
        let text = recipe.settings.model.text_tokenizer.as_deref();
        let text = TextTokenizer::open(text.unwrap_or(Path::new("")))
            .map_err(|error| Error::Model(divot::Error::Llm(error.into())))?;
        written.push(
            checkpoint
                .save(Part::Llm, &config, llm, Some(&text))?
                .folder,
        );
    }
    match written.is_empty() {
        false => Ok(written),
        true => Err(Error::run(
            run,
            "trained a network that is no part of a model by itself",
            "train a stage that starts from it, and export that",
        )),
    }
}
