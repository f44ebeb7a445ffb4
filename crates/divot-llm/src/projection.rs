use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;
use divot_nn::ops::linear;

use crate::lora::LoraLinear;
use crate::packed::{PackedLinear, Quantization};

/// A linear layer without bias, in one of the forms that a decoder's weights come in.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a box is no module")]
pub enum Projection {
    /// Weights in f32, f16 or bf16, or quantised by Burn on a GPU.
    Dense(Linear),
    /// Frozen weights beside a trained product of two thin matrices.
    Lora(LoraLinear),
    /// Weights of 8 or 4 bits on the CPU.
    Packed(PackedLinear),
}

impl Projection {
    /// `[batch, tokens, input]` → `[batch, tokens, output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Dense(dense) => linear(dense, x),
            Self::Lora(lora) => lora.forward(x),
            Self::Packed(packed) => packed.forward(x),
        }
    }

    /// Keeps 8 or 4 bits of each weight, for inference. Only dense weights can be, and of those only
    /// ones whose blocks of 32 are whole; the rest stays what it is.
    ///
    /// `on_host` says that the device is the CPU: weights are packed in host memory then. Elsewhere
    /// they become Burn's quantised tensors.
    pub fn quantize(self, quantization: Quantization, on_host: bool) -> Self {
        quantization.quantize(self, on_host)
    }

    /// Whether [`quantize`](Self::quantize) would change it.
    pub fn can_quantize(&self, on_host: bool) -> bool {
        matches!(self, Self::Dense(linear) if Quantization::fits(linear, on_host))
    }
}
