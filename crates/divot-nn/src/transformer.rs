use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::ops::linear;
use crate::{
    Activation, LayerNorm, LayerNormConfig, SelfAttention, SelfAttentionConfig, recompute,
};

/// Sizes of a [`TransformerBlock`].
#[derive(Config, Debug)]
pub struct TransformerBlockConfig {
    /// Width of the tokens.
    pub width: usize,
    /// Number of attention heads. It divides the width.
    pub heads: usize,
    /// Ratio of the width of the feed-forward layer to that of the tokens.
    #[config(default = 4.0)]
    pub mlp_ratio: f64,
    /// Epsilon of both layer norms.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// Activation of the feed-forward layer.
    #[config(default = "Activation::Gelu")]
    pub activation: Activation,
}

/// A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Norm before the attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn: SelfAttention,
    /// Norm before the feed-forward layer.
    pub norm2: LayerNorm,
    /// Feed-forward layer.
    pub mlp: Mlp,
}

/// Two linear layers with an activation between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// To the hidden width.
    pub fc1: Linear,
    /// Back to the token width.
    pub fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl TransformerBlockConfig {
    /// Initialises the block.
    pub fn init(&self, device: &Device) -> TransformerBlock {
        let hidden = (self.width as f64 * self.mlp_ratio) as usize;
        let norm = LayerNormConfig::new(self.width).with_epsilon(self.epsilon);
        TransformerBlock {
            norm1: norm.init(device),
            attn: SelfAttentionConfig::new(self.width, self.heads).init(device),
            norm2: norm.init(device),
            mlp: Mlp {
                fc1: LinearConfig::new(self.width, hidden).init(device),
                fc2: LinearConfig::new(hidden, self.width).init(device),
                activation: self.activation,
            },
        }
    }
}

impl TransformerBlock {
    /// Applies the block to `[batch, tokens, width]`. With `causal`, a token sees itself and the tokens
    /// before it.
    pub fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        recompute(self, x, move |block, x| {
            let x = x.clone() + block.attn.forward(block.norm1.forward(x), causal);
            x.clone() + block.mlp.forward(block.norm2.forward(x))
        })
    }
}

impl Mlp {
    /// Applies the layer to `[batch, tokens, width]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        linear(&self.fc2, self.activation.forward(linear(&self.fc1, x)))
    }
}
