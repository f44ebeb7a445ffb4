//! The tokens of a mid-grey clip, stored with a tokenizer.
//!
//! `unconditional.safetensors` in the tokenizer's folder holds `unconditional`, `[1, 64, 256]`, in f32,
//! and in its notes under `weights` the fingerprint of the weights and sizes that they come from.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use burn::tensor::{DType, Tensor};

use crate::TokenizerConfig;
use crate::checkpoint::{CONFIG, Checkpoint, Part, UNCONDITIONAL, WEIGHTS};
use crate::error::{Error, Result};
use crate::weights::{Source, TensorSpec, Weights, WeightsError, write_safetensors};

const TENSOR: &str = "unconditional";
const FINGERPRINT: &str = "weights";

impl Checkpoint<'_> {
    /// Tokens of an all-zero (mid-grey) clip as a conversion stored them: `[1, 64, 256]`, in f32, on the
    /// checkpoint's device. `None` where they are not stored;
    /// [`Tokenizer::unconditional`](crate::Tokenizer::unconditional) computes them.
    ///
    /// They were computed in f32 from the weights as stored, which is what a CPU computes unless it is
    /// told to load them in another element type. The tokenizer itself is not needed; where its weights
    /// are there, they must be the ones that the tokens come from.
    ///
    /// # Errors
    /// If the file is damaged, or of another tokenizer than the one beside it.
    pub fn unconditional(&self) -> Result<Option<Tensor<3>>> {
        let folder = Part::Tokenizer.folder(self.folder());
        let path = folder.join(UNCONDITIONAL);
        if !path.exists() {
            return Ok(None);
        }
        // Reading may fail for reasons of the system's, which have their own remedies.
        let damaged = |error: WeightsError| match error {
            WeightsError::Io { .. } => error.into(),
            _ => refused(&path, "is damaged"),
        };
        let source = Source::open(&path).map_err(damaged)?;
        let shaped = source.get(TENSOR).filter(|tensor| {
            tensor.shape.len() == 3
                && tensor.shape[0] == 1
                && tensor.shape.iter().all(|&side| side > 0)
                && tensor.dtype.is_float()
        });
        let tensor = shaped.ok_or_else(|| refused(&path, "holds no tokens of one clip"))?;
        if folder.join(CONFIG).exists() {
            let config: TokenizerConfig = self.config(Part::Tokenizer)?;
            if tensor.shape[1..] != config.resampler.output_size() {
                return Err(refused(
                    &path,
                    "is of another tokenizer than the one beside it",
                ));
            }
        }
        if folder.join(WEIGHTS).exists() {
            let notes = Weights::open(&path).map_err(damaged)?;
            let expected = fingerprint(&folder)?;
            if notes.metadata().get(FINGERPRINT) != Some(&expected) {
                return Err(refused(&path, "is of other weights than those beside it"));
            }
        }
        let data = tensor.read().map_err(damaged)?;
        if !data.iter::<f32>().all(f32::is_finite) {
            return Err(refused(&path, "holds what is no number"));
        }
        Ok(Some(Tensor::from_data(data, (self.device(), DType::F32))))
    }
}

/// Writes the tokens of the checkpoint's tokenizer beside its weights, or says why they are not worth
/// it.
///
/// # Errors
/// If the weights cannot be read or the file cannot be written.
pub(crate) fn store(checkpoint: &Checkpoint<'_>, tokens: Tensor<3>) -> Result<Option<String>> {
    let folder = Part::Tokenizer.folder(checkpoint.folder());
    let data = tokens.into_data();
    if !data.iter::<f32>().all(f32::is_finite) {
        return Ok(Some("they are not numbers everywhere".to_owned()));
    }
    let spec = TensorSpec {
        name: TENSOR.to_owned(),
        shape: data.shape().iter().copied().collect(),
        dtype: data.dtype(),
    };
    let metadata = BTreeMap::from([
        ("format".to_owned(), "divot tokens".to_owned()),
        (FINGERPRINT.to_owned(), fingerprint(&folder)?),
    ]);
    let path = folder.join(UNCONDITIONAL);
    write_safetensors(&path, &[spec], &metadata, |_| Ok(data.clone()))?;
    Ok(None)
}

/// What a tokenizer's tokens depend on, in a few digits: its sizes and its weights.
fn fingerprint(folder: &Path) -> Result<String> {
    let config = match fs::read(folder.join(CONFIG)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let problem = format!("cannot be read ({error})");
            return Err(Error::config(
                &folder.join(CONFIG),
                problem,
                "make it readable",
            ));
        }
        config => config.unwrap_or_default(),
    };
    let weights = Weights::open(&folder.join(WEIGHTS))?;
    Ok(format!("{:016x}", weights.fingerprint(&config)?))
}

fn refused(path: &Path, problem: &str) -> Error {
    let remedy = "convert the tokenizer again, or remove this file to have it computed";
    Error::config(path, problem, remedy)
}
