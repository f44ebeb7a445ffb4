use burn::config::Config;
use burn::tensor::Tensor;

use crate::ops::{gelu, quick_gelu};

/// The activation of a feed-forward layer.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU, x·Φ(x).
    Gelu,
    /// QuickGELU, x·σ(1.702x).
    QuickGelu,
}

impl Activation {
    /// Applies the activation element by element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => gelu(x),
            Self::QuickGelu => quick_gelu(x),
        }
    }
}
