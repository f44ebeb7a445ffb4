use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};

use crate::ops::layer_norm;

/// Sizes of a [`LayerNorm`].
#[derive(Config, Debug)]
pub struct LayerNormConfig {
    /// Width of the last axis.
    pub width: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

/// Layer norm over the last axis, by [`layer_norm`](crate::ops::layer_norm). Unlike Burn's module, its
/// epsilon is a public field.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale, `[width]`.
    pub gamma: Param<Tensor<1>>,
    /// Shift, `[width]`.
    pub beta: Param<Tensor<1>>,
    /// Added to the variance.
    #[module(skip)]
    pub epsilon: f64,
}

impl LayerNormConfig {
    /// Initialises the norm: scale one, shift zero.
    pub fn init(&self, device: &Device) -> LayerNorm {
        LayerNorm {
            gamma: Initializer::Ones.init([self.width], device),
            beta: Initializer::Zeros.init([self.width], device),
            epsilon: self.epsilon,
        }
    }
}

impl LayerNorm {
    /// Applies the norm to `[..., width]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        layer_norm(x, self.gamma.val(), self.beta.val(), self.epsilon)
    }
}
