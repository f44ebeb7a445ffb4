//! The tokens of a mid-grey clip, stored with a tokenizer.
//!
//! The file is `unconditional.safetensors` in the tokenizer's folder. It holds the tensor
//! `unconditional`, `[1, 64, 256]`, in f32. The key `weights` of its metadata is the fingerprint of the
//! tokenizer's configuration and weights.

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
    /// Reads the tokens of an all-zero (mid-grey) clip that the conversion stored.
    ///
    /// The tokens are `[1, 64, 256]`, in f32, on the checkpoint's device. The result is `None` if they
    /// are not stored. [`Tokenizer::unconditional`](crate::Tokenizer::unconditional) computes them then.
    ///
    /// The conversion computed the tokens in f32 from the stored weights. A CPU computes the same ones
    /// unless the weights are loaded in another element type. The tokenizer's weights need not exist. If
    /// they do, the tokens must come from them.
    ///
    /// # Errors
    /// If the file is damaged, or belongs to another tokenizer.
    pub fn unconditional(&self) -> Result<Option<Tensor<3>>> {
        let folder = Part::Tokenizer.folder(self.folder());
        let path = folder.join(UNCONDITIONAL);
        if !path.exists() {
            return Ok(None);
        }
        // Errors of the operating system come with their own remedies.
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

/// Stores the tokens of a mid-grey clip beside the tokenizer's weights.
///
/// The result is a reason if the tokens are not worth storing, `None` otherwise.
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

/// Returns a fingerprint of a tokenizer's configuration and weights.
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
