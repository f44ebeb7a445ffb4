//! Checkpoints: a folder with one sub-folder a part, each `config.json` beside `model.safetensors`.

use std::path::{Path, PathBuf};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, FloatDType};

use crate::error::{Error, Result};
use crate::weights::load_module;

/// A part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Vision tower, transformers and Perceiver: video to tokens.
    Tokenizer,
    /// Perceiver, UNet and autoencoder: tokens to video.
    Detokenizer,
    /// CLIP's text tower, for CLIP scores.
    Clip,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Tokenizer, Self::Detokenizer, Self::Clip];

    /// Its folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Detokenizer => "detokenizer",
            Self::Clip => "clip",
        }
    }

    /// Its folder in a checkpoint.
    pub fn folder(self, checkpoint: &Path) -> PathBuf {
        checkpoint.join(self.name())
    }
}

/// Name of the weights in a part's folder.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the sizes in a part's folder.
pub const CONFIG: &str = "config.json";

/// Reads a part's sizes.
///
/// # Errors
/// If the file is missing or is not such a configuration.
pub fn load_config<C: Config>(folder: &Path) -> Result<C> {
    let path = folder.join(CONFIG);
    let text = std::fs::read(&path).map_err(|error| {
        Error::config(
            &path,
            format!("cannot be read ({error})"),
            "point --model at a folder that `convert-weights` wrote",
        )
    })?;
    C::load_binary(&text).map_err(|error| {
        Error::config(
            &path,
            format!("is not the configuration of this part ({error})"),
            "convert the weights again",
        )
    })
}

/// Fills a module with a part's weights, in `dtype` or else as stored.
///
/// # Errors
/// If the file is missing or damaged, or a tensor is missing, unknown, misshapen or not a number.
pub fn load<M: Module>(
    folder: &Path,
    module: M,
    dtype: Option<FloatDType>,
    device: &Device,
) -> Result<M> {
    Ok(load_module(module, &folder.join(WEIGHTS), dtype, device)?)
}
