//! Caches: outputs of a recipe's frozen networks, computed once and read in training instead of frames.

mod fingerprint;
mod make;

use std::collections::BTreeMap;
use std::path::Path;

use divot::data::dataset::{Format, Manifest};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::objective::{LOGVAR, MEAN, PATCHES, TOKENS};
use crate::recipe::{DataSettings, ObjectiveSettings, Recipe};
use fingerprint::fingerprint;

pub use make::{CacheOptions, CacheStatus, Cached, cache};

/// Name of the frames' size among what a cache was made of.
const FRAME_SIZE: &str = "frame size";

/// What a frozen network makes of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Patch tokens of the sparse frames, `[frames, patches, width]`.
    Patches,
    /// Video tokens, `[tokens, width]`.
    Tokens,
    /// Mean and logarithm of the variance of the latents of all frames, `[channels, frames, height, width]` each.
    /// Training draws from them anew in each step.
    Moments,
}

impl Output {
    /// The part of the model that makes it.
    fn part(self) -> &'static str {
        match self {
            Self::Patches => "tokenizer.vision",
            Self::Tokens => "tokenizer",
            Self::Moments => "detokenizer.vae",
        }
    }

    /// Names of its arrays.
    fn arrays(self) -> &'static [&'static str] {
        match self {
            Self::Patches => &[PATCHES],
            Self::Tokens => &[TOKENS],
            Self::Moments => &[MEAN, LOGVAR],
        }
    }

    fn is_in(self, manifest: &Manifest) -> bool {
        let mut arrays = self.arrays().iter();
        arrays.all(|name| manifest.arrays.iter().any(|array| array == name))
    }
}

/// The outputs that a recipe's objective takes instead of frames.
///
/// # Errors
/// If frames are needed for something that is trained.
fn outputs(recipe: &Recipe) -> Result<Vec<Output>> {
    let refused = |setting: &str, problem: String| {
        let setting = setting.to_owned();
        Err(Error::Setting { setting, problem })
    };
    let tokenizer = recipe.settings.freezes_tokenizer();
    // Tokens that are drawn are drawn anew in each step.
    let drawn = recipe.model.tokenizer.resampler.variational;
    let mut outputs = match recipe.settings.objective {
        ObjectiveSettings::Diffusion { .. } if drawn => vec![Output::Patches, Output::Moments],
        // The tokens of images are those of a clip's first frame.
        ObjectiveSettings::Diffusion {
            frames: Some(1), ..
        } => vec![Output::Patches, Output::Moments],
        ObjectiveSettings::Diffusion { .. } if tokenizer => vec![Output::Tokens, Output::Moments],
        ObjectiveSettings::Diffusion { .. } => vec![Output::Patches, Output::Moments],
        ObjectiveSettings::Adaptation { .. } => vec![Output::Tokens, Output::Moments],
        ObjectiveSettings::Language { .. } if tokenizer => vec![Output::Tokens],
        ObjectiveSettings::Language { .. } => vec![Output::Patches],
        ObjectiveSettings::Stage0 { .. }
        | ObjectiveSettings::Contrastive {}
        | ObjectiveSettings::Autoencoder { .. } => {
            let problem = "learns from frames, and has no cache; train without one";
            return refused("objective", problem.to_owned());
        }
    };
    for output in &outputs {
        let part = output.part();
        let fixed = recipe.settings.freezes(part) || (part == "tokenizer" && tokenizer);
        if !fixed {
            let problem = format!(
                "does not hold `{part}`, whose outputs change while it is trained; freeze it, or train from frames"
            );
            return refused("frozen", problem);
        }
    }
    outputs.dedup();
    Ok(outputs)
}

/// Sources of a recipe, with the keys that they have in it.
fn sources(recipe: &Recipe) -> impl Iterator<Item = (String, &DataSettings)> {
    let keyed = |key: &'static str, data: &'_ [DataSettings]| {
        let numbers = 0..data.len();
        numbers.map(move |number| format!("{key}.{number}"))
    };
    let settings = &recipe.settings;
    let validation = &settings.validation.data;
    let keys = keyed("data", &settings.data).chain(keyed("validation.data", validation));
    keys.zip(settings.data.iter().chain(validation))
}

/// Checks that caches among a recipe's sources hold what the model's own networks would make.
///
/// # Errors
/// If a cache cannot be read, lacks what the recipe needs, or was made by other networks: the cache, and what
/// differs.
pub(crate) fn check(recipe: &Recipe, model: &Model) -> Result<()> {
    let mut prints = BTreeMap::new();
    for (_, data) in sources(recipe) {
        if data.source.format != Format::Cache {
            continue;
        }
        let outputs = outputs(recipe)?;
        let folder = data.source.path.first().map_or(Path::new(""), |path| path);
        let manifest = Manifest::read(folder)?;
        let remedy = "make a cache with this recipe, or train from frames";
        let was = |name: &str| manifest.made_of.get(name).map(String::as_str);
        let size = recipe.model.tokenizer.frame_size.to_string();
        if was(FRAME_SIZE) != Some(&size) {
            let found = was(FRAME_SIZE).unwrap_or("another number of");
            let problem =
                format!("is of frames of {found} pixels a side, and this model's have {size}");
            return Err(Error::run(folder, problem, remedy));
        }
        for mut output in outputs {
            // The frozen rest of the tokenizer can still be computed.
            if output == Output::Tokens && !output.is_in(&manifest) {
                output = Output::Patches;
            }
            if !output.is_in(&manifest) {
                let holds = manifest.arrays.join(", ");
                let needs = output.arrays().join(", ");
                let problem = format!("holds {holds}, and this recipe needs {needs}");
                return Err(Error::run(folder, problem, remedy));
            }
            let part = output.part();
            let print = prints
                .entry(part)
                .or_insert_with(|| fingerprint(recipe, model, part));
            if was(part) != Some(print) {
                let problem =
                    format!("is stale: it was made with other weights or sizes of `{part}`");
                return Err(Error::run(folder, problem, remedy));
            }
        }
    }
    Ok(())
}
