#![doc = include_str!("../README.md")]

mod preprocess;
mod text;
mod tokenizer;
mod vision;

pub use divot_nn::{CheckSizes, LayerNorm, SizeError, TransformerBlock};
pub use preprocess::{CLIP_MEAN, CLIP_STD, preprocess};
pub use text::{TextTower, TextTowerConfig};
pub use tokenizer::{BpeTokenizer, TokenizerError};
pub use vision::{VisionTower, VisionTowerConfig};

use burn::tensor::Tensor;

/// Scales every row of `[batch, features]` to length one, as CLIP does before comparing features.
pub fn normalize(features: Tensor<2>) -> Tensor<2> {
    let length = features.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    features / length
}
