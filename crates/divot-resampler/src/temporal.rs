use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use divot_nn::ops::linear;
use divot_nn::{Activation, LayerNorm, LayerNormConfig, TransformerBlock, TransformerBlockConfig};

/// Sizes of a [`TemporalTransformer`].
#[derive(Config, Debug)]
pub struct TemporalTransformerConfig {
    /// Number of frames.
    pub frames: usize,
    /// Width of the input tokens.
    pub input_dim: usize,
    /// Width of the blocks, divisible by the number of heads.
    pub width: usize,
    /// Width of the output tokens.
    pub output_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Number of attention heads.
    #[config(default = 12)]
    pub heads: usize,
}

/// Attention of every patch position over time.
///
/// It has a learned position per frame, pre-norm blocks with QuickGELU, layer norms with epsilon 1e-6, and
/// no residual connection around the whole.
#[derive(Module, Debug)]
pub struct TemporalTransformer {
    /// Input width to the width of the blocks.
    pub proj_in: Linear,
    /// `[frames, width]`.
    pub positional_embedding: Param<Tensor<2>>,
    /// The transformer.
    pub blocks: Vec<TransformerBlock>,
    /// Norm after the blocks.
    pub norm: LayerNorm,
    /// Width of the blocks to the output width.
    pub proj_out: Linear,
}

impl TemporalTransformerConfig {
    /// Initialises the transformer. A frame's position starts as large as what the first layer makes of its tokens.
    pub fn init(&self, device: &Device) -> TemporalTransformer {
        let block = TransformerBlockConfig::new(self.width, self.heads)
            .with_epsilon(1e-6)
            .with_activation(Activation::QuickGelu);
        TemporalTransformer {
            proj_in: LinearConfig::new(self.input_dim, self.width).init(device),
            positional_embedding: Initializer::Normal {
                mean: 0.0,
                std: 0.5,
            }
            .init([self.frames, self.width], device),
            blocks: (0..self.depth).map(|_| block.init(device)).collect(),
            norm: LayerNormConfig::new(self.width)
                .with_epsilon(1e-6)
                .init(device),
            proj_out: LinearConfig::new(self.width, self.output_dim).init(device),
        }
    }
}

impl TemporalTransformer {
    /// Applies the transformer: `[positions, frames, input_dim]` → `[positions, frames, output_dim]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = linear(&self.proj_in, x);
        let position = self.positional_embedding.val().cast(x.dtype());
        let x = x + position.unsqueeze::<3>();
        let x = self
            .blocks
            .iter()
            .fold(x, |x, block| block.forward(x, false));
        linear(&self.proj_out, self.norm.forward(x))
    }
}
