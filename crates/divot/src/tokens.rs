//! Files of video tokens.
//!
//! A file is in the safetensors format. It holds `tokens`, `[clips, 64, 256]`, and may hold
//! `unconditional`, `[1, 64, 256]`: the tokens of a mid-grey clip, which guidance needs. A file with both
//! can be decoded without the tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::weights::{Source, TensorSpec, WeightsError, write_safetensors};

/// The tokens of a video.
#[derive(Debug, Clone)]
pub struct VideoTokens {
    /// Tokens of each clip: `[clips, 64, 256]`.
    pub tokens: Tensor<3>,
    /// Tokens of a mid-grey clip, for guidance: `[1, 64, 256]`.
    pub unconditional: Option<Tensor<3>>,
}

const TOKENS: &str = "tokens";
const UNCONDITIONAL: &str = "unconditional";

impl VideoTokens {
    /// Writes the tokens to a file, in f32. The file appears at `path` when it is complete.
    ///
    /// # Errors
    /// If a value is not finite, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = vec![(TOKENS, &self.tokens)];
        tensors.extend(
            self.unconditional
                .as_ref()
                .map(|tokens| (UNCONDITIONAL, tokens)),
        );
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .map(|(name, tensor)| TensorSpec {
                name: (*name).to_owned(),
                shape: tensor.dims().to_vec(),
                dtype: DType::F32,
            })
            .collect();
        let metadata = BTreeMap::from([("format".to_owned(), "divot tokens".to_owned())]);
        write_safetensors(path, &specs, &metadata, |i| {
            Ok(tensors[i].1.clone().cast(DType::F32).into_data())
        })?;
        Ok(())
    }

    /// Reads the tokens from a file.
    ///
    /// # Errors
    /// If the file is missing, damaged, or holds no tokens.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let source = Source::open(path).map_err(|error| match error {
            WeightsError::File { .. } => refused(path, "is no file of tokens"),
            error => error.into(),
        })?;
        let read = |name: &str| -> Result<Option<Tensor<3>>> {
            let Some(tensor) = source.get(name) else {
                return Ok(None);
            };
            let data = tensor.read()?;
            if data.shape().num_dims() != 3 || !data.dtype().is_float() {
                return Err(refused(path, &format!("`{name}` is no table of tokens")));
            }
            if !data.iter::<f32>().all(f32::is_finite) {
                return Err(refused(path, &format!("`{name}` holds what is no number")));
            }
            Ok(Some(Tensor::from_data(data, (device, DType::F32))))
        };
        let tokens = read(TOKENS)?.ok_or_else(|| refused(path, "holds no `tokens`"))?;
        let unconditional = read(UNCONDITIONAL)?;
        let [clips, _, width] = tokens.dims();
        if clips == 0 {
            return Err(refused(path, "holds the tokens of no clip"));
        }
        if let Some(unconditional) = &unconditional {
            let [clips, _, its_width] = unconditional.dims();
            if clips != 1 || its_width != width {
                return Err(refused(path, "`unconditional` does not fit `tokens`"));
            }
        }
        Ok(Self {
            tokens,
            unconditional,
        })
    }
}

fn refused(path: &Path, problem: &str) -> Error {
    Error::config(path, problem, "give a file that `divot tokenize` wrote")
}
