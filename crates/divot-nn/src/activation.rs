use burn::config::Config;
use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, sigmoid};

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

/// QuickGELU, x·σ(1.702x): OpenAI CLIP's approximation of GELU, which Divot's temporal
/// transformer keeps.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    sigmoid(x.clone() * 1.702) * x
}

/// Gated GELU: the last axis holds value and gate side by side, `[..., 2·width]` →
/// `[..., width]`.
///
/// # Panics
/// If the last axis is odd.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let width = x.dims()[D - 1];
    assert!(
        width.is_multiple_of(2),
        "GEGLU needs an even width, not {width}"
    );
    let value = x.clone().narrow(D - 1, 0, width / 2);
    let gate = x.narrow(D - 1, width / 2, width / 2);
    value * gelu(gate)
}
