use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;
use divot_nn::ops::linear;
use divot_nn::{PackedLinear, Quantization};

use crate::lora::LoraLinear;

/// A linear layer without bias in a decoder, in one of three forms.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a box is no module")]
pub enum Projection {
    /// Weights in f32, f16 or bf16, or quantised by Burn on a GPU.
    Dense(Linear),
    /// Frozen weights with a trained low-rank product.
    Lora(LoraLinear),
    /// Weights of 8 or 4 bits on the CPU.
    Packed(PackedLinear),
}

impl Projection {
    /// Applies the layer: `[batch, tokens, input]` → `[batch, tokens, output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Dense(dense) => linear(dense, x),
            Self::Lora(lora) => lora.forward(x),
            Self::Packed(packed) => packed.forward(x),
        }
    }

    /// Quantises the weights to 8 or 4 bits, for inference.
    ///
    /// Layers that are not dense stay the same. So do layers that blocks of 32 do not divide.
    ///
    /// `on_host` means that the device is the CPU. The weights are then packed in host memory. On other
    /// devices they become Burn's quantised tensors.
    pub fn quantize(self, quantization: Quantization, on_host: bool) -> Self {
        match self {
            Self::Dense(linear) if Quantization::fits(&linear, on_host) => match on_host {
                true => Self::Packed(PackedLinear::new(linear, quantization)),
                false => Self::Dense(quantization.quantize(linear)),
            },
            other => other,
        }
    }

    /// Returns whether [`quantize`](Self::quantize) changes this layer.
    pub fn can_quantize(&self, on_host: bool) -> bool {
        matches!(self, Self::Dense(linear) if Quantization::fits(linear, on_host))
    }
}
